"""DeBERTa v1, v2 and v3, the same numbers as transformers: outputs, every parameter's gradient,
files in both directions. peers.py tells how it is compared.

transformers has no enhanced mask decoder and no head for replaced tokens; test_deberta.py holds
these to references written out."""
import json

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine.nn import Init
from tinybert_family.models import deberta, deberta_v2
from tinybert_family.models.parts import disentangled

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import oracles  # noqa: E402
import peers  # noqa: E402
from peers import LIMIT, compare, random_inputs, run_theirs  # noqa: E402

RELATIVE = dict(relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False)
BUCKETS = dict(RELATIVE, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True)
TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
         "ForQuestionAnswering", "Model")
CLASSES = [*(f"Deberta{task}" for task in TASKS), *(f"DebertaV2{task}" for task in TASKS),
           "DebertaV2ForMultipleChoice"]


@pytest.fixture(scope="module", autouse=True)
def an_oracle_that_stays_in_float64():
    torch.set_num_threads(1)
    with oracles.exact():
        yield


def theirs(name, seed=0, std=0.5, **more):
    usual = BUCKETS if "V2" in name else RELATIVE
    return peers.theirs(name, std, seed, **{**peers.SMALL, **usual, **more})


def shape_for(name, rows=3, columns=13):
    return (rows, 3, columns) if "Choice" in name else (rows, columns)


# ---- the numbers

@pytest.mark.parametrize("name", CLASSES)
def test_outputs_and_every_gradient_are_those_of_transformers(name, tmp_path):
    model = theirs(name)
    compare(model, random_inputs(model.config, shape_for(name), "right"), tmp_path)


BOTH = {
    "odd": dict(vocab_size=71, hidden_size=35, num_attention_heads=5, intermediate_size=37,
                num_hidden_layers=3),
    "one head, one layer": dict(num_attention_heads=1, num_hidden_layers=1),
    "c2p alone": dict(pos_att_type=["c2p"]),
    "p2c alone": dict(pos_att_type="p2c"),
    "neither": dict(pos_att_type=None),
    "no distances": dict(relative_attention=False, norm_rel_ebd="none"),
    "no distances, yet a smaller scale": dict(relative_attention=False, norm_rel_ebd="none",
                                              pos_att_type="c2p|p2c", position_biased_input=True),
    "positions too": dict(position_biased_input=True),
    "types": dict(type_vocab_size=3),
    "distances beyond the fourth are alike": dict(max_relative_positions=4, position_buckets=-1),
    "the head that transformers does not call legacy": dict(legacy=False),
    "eps and activation": dict(layer_norm_eps=1e-2, hidden_act="gelu_new"),
    "the class's defaults": dict.fromkeys(BUCKETS),
}
V2 = {
    "2 buckets": dict(position_buckets=2),
    "5 buckets": dict(position_buckets=5),
    "more buckets than distances": dict(position_buckets=256),
    "no buckets": dict(position_buckets=-1),
    "buckets for other distances": dict(max_relative_positions=11),
    "a table as it is": dict(norm_rel_ebd="none"),
    "projections for distances": dict(share_att_key=False),
    "of which one": dict(share_att_key=False, pos_att_type=["p2c"]),
    "convolution": dict(conv_kernel_size=3, conv_act="gelu"),
    "a wide one, on the only layer": dict(conv_kernel_size=5, num_hidden_layers=1),
}


@pytest.mark.parametrize("name, config", [
    *(("DebertaForMaskedLM", config) for config in BOTH),
    *(("DebertaV2ForMaskedLM", config) for config in BOTH | V2)])
def test_every_switch_agrees(name, config, tmp_path):
    """With sequences of up to 30 tokens, more than there are positions: distances have no limit."""
    settings = {**BUCKETS, **(BOTH | V2)[config]}
    settings = {key: x for key, x in settings.items() if x is not None}
    if "V2" not in name:
        for key in "position_buckets", "norm_rel_ebd", "share_att_key":
            settings.pop(key, None)
    model = peers.theirs(name, **{**peers.SMALL, **settings})
    absolute = model.config.position_biased_input
    inputs = random_inputs(model.config, (3, 17 if absolute else 30), "right",
                           pairs=model.config.type_vocab_size > 0)
    compare(model, inputs, tmp_path)


SHAPES = [(3, 8, "none"), (1, 7, "right"), (2, 1, "none"), (1, 1, "none"), (4, 9, "left"),
          (2, LIMIT, "right")]


@pytest.mark.parametrize("rows, columns, mask", SHAPES)
@pytest.mark.parametrize("name", ["DebertaModel", "DebertaV2Model"])
def test_every_shape_of_batch_agrees(name, rows, columns, mask, tmp_path):
    model = theirs(name, seed=1, **dict(conv_kernel_size=3) if "V2" in name else {})
    compare(model, random_inputs(model.config, (rows, columns), mask), tmp_path)


@pytest.mark.parametrize("name", ["DebertaForMaskedLM", "DebertaV2ForMaskedLM"])
def test_a_wide_model_with_long_sequences_agrees(name, tmp_path):
    """Where float32 sums are long, and a tile's tokens are taken some at a time."""
    model = theirs(name, std=0.08, vocab_size=500, hidden_size=128, intermediate_size=256,
                   max_position_embeddings=160, num_attention_heads=2,
                   **dict(position_buckets=32) if "V2" in name else {})
    compare(model, random_inputs(model.config, (2, 200), "right"), tmp_path, what="wide")


def test_buckets_are_those_of_transformers():
    far = np.arange(-700, 701)
    usual = [(256, 512), (32, 128), (8, 64), (16, 64), (4, 16), (5, 24), (64, 513)]
    # Here distances lie exactly on the edges of buckets.
    edges = [(32, 129), (18, 17), (18, 26), (98, 257), (128, 513), (32, 1025)]
    for buckets, furthest in usual + edges:
        expected = oracles.v2.make_log_bucket_position(torch.tensor(far), buckets, furthest)
        expected = expected.long().numpy()
        found = disentangled.bucket(far, buckets, furthest)
        assert np.array_equal(found.clip(-buckets, buckets - 1),
                              expected.clip(-buckets, buckets - 1)), (buckets, furthest)


def test_types_that_are_not_told_apart_are_not_looked_at(tmp_path):
    """Tokenizers give them all the same."""
    model = theirs("DebertaV2Model")
    types = np.arange(18).reshape(2, 9) % 2
    inputs = dict(random_inputs(model.config, (2, 9)), token_type_ids=types)
    compare(model, inputs, tmp_path)


# ---- files

@pytest.mark.parametrize("name", CLASSES)
def test_files_go_there_and_back(name, tmp_path):
    usual = BUCKETS if "V2" in name else RELATIVE
    peers.there_and_back(name, tmp_path, **{**peers.SMALL, **usual})


@pytest.mark.parametrize("name, more", [
    ("DebertaForMaskedLM", dict(RELATIVE, legacy=False)),
    ("DebertaForMaskedLM", dict(legacy=False)),
    ("DebertaForSequenceClassification", dict()),
    ("DebertaForTokenClassification", dict(RELATIVE, type_vocab_size=2, pos_att_type=["p2c"],
                                           cls_dropout=0.3, position_biased_input=True)),
    ("DebertaV2ForMaskedLM", dict(BUCKETS, legacy=False, conv_kernel_size=3, conv_act="gelu")),
    ("DebertaV2Model", dict(position_biased_input=True, type_vocab_size=2)),
    ("DebertaV2ForMaskedLM", dict(RELATIVE, attention_head_size=8)),
    ("DebertaV2ForMultipleChoice", dict(RELATIVE, position_biased_input=True)),
])
def test_files_of_other_settings_go_there_and_back(name, more, tmp_path):
    peers.there_and_back(name, tmp_path, **{**peers.SMALL, **more})


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_of_our_own_opens_in_transformers(name, tmp_path):
    module = deberta_v2 if "V2" in name else deberta
    more = dict(conv=3, buckets=6) if module is deberta_v2 else {}
    c = module.Config(vocab=61, layers=3, heads=2, width=20, hidden=28, positions=30, seq=30,
                      eps=1e-3, dropout=0.2, attention_dropout=0.3, init=0.0, **more)
    mine = module.Model(c, Init(3, 0.5), module.HF_CLASSES[name])
    inputs = random_inputs(transformers.BertConfig(vocab_size=61), shape_for(name), "right")
    again = peers.opens_in_transformers(mine, name, tmp_path, inputs)
    assert again.config.hidden_dropout_prob == 0.2 and again.config.relative_attention
    assert getattr(again.config, "cls_dropout", None) == c.head_dropout


@pytest.mark.parametrize("module, name", [(deberta, "DebertaForMaskedLM"),
                                          (deberta_v2, "DebertaV2ForMaskedLM")])
def test_what_transformers_has_no_class_for_does_not_disturb_it(module, name, tmp_path):
    """The enhanced mask decoder and v3's head stay in a file of their own, and come back."""
    heads = {"mlm", "emd", "rtd"} & set(module.Model.HEADS)
    mine = module.Model(module.SIZES["smoke"], Init(0, 0.3, np.float64), heads)
    tbf.save(mine, tmp_path)
    again = peers.loads_without_a_word(getattr(transformers, name), tmp_path)
    ids = np.random.default_rng(0).integers(5, 2000, (2, 9))
    states = run_theirs(again.double().eval(), dict(input_ids=ids))[0]["last_hidden_state"]
    back = tbf.load(tmp_path, dtype=np.float64)
    out = back(ids)
    np.testing.assert_allclose(out.last_hidden_state.numpy(), states, atol=1e-9 * abs(states).max())
    assert all(getattr(back, head) is not None for head in heads)
    assert np.array_equal(out.logits.numpy(), mine(ids).logits.numpy())


@pytest.mark.parametrize("module, config_class", [
    (deberta, transformers.DebertaConfig), (deberta_v2, transformers.DebertaV2Config)])
def test_defaults_are_those_of_transformers(module, config_class):
    peers.defaults_agree(module, config_class)


@pytest.mark.parametrize("name", CLASSES)
def test_counts_are_those_of_transformers_without_memory(name):
    family = transformers.DebertaV2Config if "V2" in name else transformers.DebertaConfig
    more = dict(BUCKETS, conv_kernel_size=5) if "V2" in name else RELATIVE
    config = family(vocab_size=777, hidden_size=36, num_attention_heads=3, intermediate_size=55,
                    num_hidden_layers=5, type_vocab_size=4, architectures=[name], **more)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    assert tbf.count_parameters(config.to_dict()) == sum(p.numel() for p in model.parameters())


def test_a_config_of_old_transformers_with_its_head_keeps_that_head(tmp_path):
    """It did not write `legacy`; the class says it. The authors' files name no class."""
    theirs("DebertaForMaskedLM").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["legacy"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert tbf.load(tmp_path).config.legacy
