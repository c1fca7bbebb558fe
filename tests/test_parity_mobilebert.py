"""MobileBERT beside transformers: outputs and every parameter's gradient, files in both directions,
and what padding does to its trigrams on either side."""
import contextlib
import re

import numpy as np
import pytest

from tinybert_family.engine.nn import Init
from tinybert_family.models import mobilebert

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import peers  # noqa: E402
from peers import (LIMIT, close, comparable, compare, ours, random_inputs,  # noqa: E402
                   run_theirs, there_and_back)

SMALL = dict(peers.SMALL, embedding_size=12, intra_bottleneck_size=16, num_feedforward_networks=3)
CLASSES = dict(pretraining="MobileBertForPreTraining", masked="MobileBertForMaskedLM",
               bare="MobileBertModel", sentences="MobileBertForNextSentencePrediction",
               sequence="MobileBertForSequenceClassification",
               choice="MobileBertForMultipleChoice", token="MobileBertForTokenClassification",
               question="MobileBertForQuestionAnswering")
# Every class with the pooler that its default has; those that read it also without its weights.
POOLED = [(kind, True) for kind in CLASSES] + [
    (kind, False) for kind in ("pretraining", "bare", "sentences", "sequence", "choice")]
# Each switch, alone and with those it meets.
CONFIGS = {
    "as published": dict(classifier_activation=False, num_feedforward_networks=4),
    "tiny as published": dict(use_bottleneck_attention=True, key_query_shared_bottleneck=False,
                              num_feedforward_networks=2, classifier_activation=False),
    "attention from the residual, and an idle bottleneck": dict(use_bottleneck_attention=True),
    "norms": dict(normalization_type="layer_norm", layer_norm_eps=1e-3),
    # Where it is as wide inside as between layers, transformers can run the teacher's attention.
    "everything from x": dict(key_query_shared_bottleneck=False, intra_bottleneck_size=32,
                              num_feedforward_networks=1, hidden_act="gelu_new",
                              normalization_type="layer_norm", embedding_size=32),
    "no bottleneck": dict(use_bottleneck=False, hidden_act="gelu"),
    "single words": dict(trigram_input=False),
    "wide single words": dict(trigram_input=False, embedding_size=32, type_vocab_size=5,
                              num_hidden_layers=1),
    "odd": dict(vocab_size=71, hidden_size=35, num_attention_heads=5, intra_bottleneck_size=15,
                intermediate_size=37, num_hidden_layers=3, embedding_size=35),
}


@pytest.fixture(scope="module", autouse=True)
def factors(request):
    """{what: largest (our error / torch's error)}, printed when the module is done."""
    torch.set_num_threads(1)
    found = {}
    yield found
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        print("\nMobileBERT, float32 error as a multiple of torch's own: " +
              ", ".join(f"{what} {x:.2f}" for what, x in sorted(found.items())))


@pytest.fixture
def padded_like_hf(monkeypatch):
    """Trigrams that see the padding, which is what transformers computes."""
    pack = mobilebert.Model.pack
    monkeypatch.setattr(mobilebert.Model, "pack", lambda self, *given, **more: pack(
        self, *given, **{"pad_like_hf": True, **more}))


# Nothing in MobileBERT keeps numbers small. Under wider noise they run into the thousands by
# themselves, every tanh and softmax saturates, and both sides' float32 is luck.
def theirs(kind="pretraining", seed=0, std=0.15, **more):
    return peers.theirs(CLASSES[kind], std, seed, **{**SMALL, **more})


def batch_for(kind, rows=2, columns=9):
    return (rows // 2, 3, columns) if kind == "choice" else (rows, columns)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_switch_agrees(config, tmp_path, factors, padded_like_hf):
    model = theirs(**CONFIGS[config])
    inputs = random_inputs(model.config, (4, 13), "right", pairs=True)
    compare(model, inputs, tmp_path, factors, config)


@pytest.mark.parametrize("kind, pooled", POOLED)
def test_every_class_agrees(kind, pooled, tmp_path, factors, padded_like_hf):
    model = theirs(kind, classifier_activation=pooled)
    inputs = random_inputs(model.config, batch_for(kind, 4, 13), "right", pairs=True)
    compare(model, inputs, tmp_path, factors, kind)


@pytest.mark.parametrize("mask", ["right", "left", "holes"])
@pytest.mark.parametrize("shape", [(3, 8), (1, 7), (2, LIMIT)], ids=str)
def test_every_shape_of_batch_agrees(shape, mask, tmp_path, factors, padded_like_hf):
    model = theirs(seed=1)
    compare(model, random_inputs(model.config, shape, mask), tmp_path, factors, f"{shape} {mask}")


@pytest.mark.parametrize("shape", [(3, 8), (1, 7), (2, 1), (1, 1), (2, LIMIT)], ids=str)
def test_where_nothing_is_padded_nothing_has_to_be_said(shape, tmp_path, factors):
    model = theirs(seed=2)
    compare(model, random_inputs(model.config, shape, pairs=True), tmp_path, factors, str(shape))


def test_a_wide_model_with_long_sequences_agrees(tmp_path, factors, padded_like_hf):
    """Where float32 sums are long."""
    model = theirs(std=0.05, vocab_size=2000, hidden_size=256, intra_bottleneck_size=64,
                   embedding_size=64, num_hidden_layers=4, num_attention_heads=4,
                   intermediate_size=256, num_feedforward_networks=4,
                   max_position_embeddings=160)
    compare(model, random_inputs(model.config, (3, 160), "right", True), tmp_path, factors, "wide")


def test_hidden_states_as_large_as_the_published_ones_agree(tmp_path, factors):
    """Ten million between layers, and inside them as ever: what enters a layer is made small by its
    bottlenecks."""
    model, much = theirs("masked", classifier_activation=False), 1e7
    larger = (r"embeddings.LayerNorm.(weight|bias)", r"layer.\d.output.bottleneck.LayerNorm.bias",
              r"layer.\d.output.bottleneck.dense.(weight|bias)")
    smaller = (r"layer.\d.bottleneck.(input|attention).dense.weight",
               r"layer.\d.attention.self.value.weight", r"predictions.transform.dense.weight")
    small = random_inputs(model.config, (3, 11))
    before = run_theirs(model, small)[0]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if re.search("|".join(larger), name):
                p.mul_(much)
            if re.search("|".join(smaller), name):
                p.div_(much)
    after = run_theirs(model, small)[0]
    assert abs(after["last_hidden_state"]).max() > 1e7
    close({"logits": after["logits"]}, {"logits": before["logits"]})
    compare(model, small, tmp_path, factors, "large")


# ---- padding

def test_padding_is_seen_by_the_words_beside_it_alone(tmp_path):
    """In transformers, and by us when asked. What is not padded has the same embedding anyway."""
    model = theirs("bare")
    mine = ours(model, tmp_path)
    ids = np.random.default_rng(0).integers(1, 61, (3, 9))
    lengths = np.array([9, 4, 8])
    mask = (np.arange(9) < lengths[:, None]).astype(int)
    ids *= mask
    expected = model.embeddings(torch.as_tensor(ids)).detach().numpy()
    found = {}
    for asked in False, True:
        inputs, states = mine.pack(ids, mask, None, pad_like_hf=asked), []
        mine.encode(inputs, states=states)
        found[asked] = abs(inputs.unpack(states[0]).numpy() - expected).max(-1) * mask
    assert found[True].max() < 1e-14
    edges = [(row, n - 1) for row, n in enumerate(lengths) if n < 9]
    for place in edges:
        assert found[False][place] > 0.01
        found[False][place] = 0
    assert found[False].max() < 1e-14


def test_if_the_pad_token_meant_nothing_padding_would_change_nothing(tmp_path):
    model = theirs("bare")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[0] = 0
    inputs = random_inputs(model.config, (4, 9), "right", pairs=True)
    inputs["input_ids"] = (inputs["input_ids"] % 60 + 1) * inputs["attention_mask"]
    truth = comparable(run_theirs(model, inputs)[0], inputs)
    out = ours(model, tmp_path)(**inputs)
    close(comparable({name: getattr(out, name).numpy() for name in truth}, inputs), truth)


# ---- files

@pytest.mark.parametrize("kind, pooled", POOLED)
def test_files_come_and_go(kind, pooled, tmp_path):
    inputs = random_inputs(theirs("bare").config, batch_for(kind))
    there_and_back(CLASSES[kind], tmp_path, inputs, **SMALL, classifier_activation=pooled)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_switch_is_written_as_it_was_read(config, tmp_path):
    there_and_back(CLASSES["pretraining"], tmp_path, **{**SMALL, **CONFIGS[config]})


@pytest.mark.parametrize("kind, pooled", POOLED)
def test_a_model_of_our_own_opens_in_transformers(kind, pooled, tmp_path):
    c = mobilebert.Config(vocab=61, layers=3, heads=2, width=20, hidden=28, inner=12, embedding=8,
                          mlps=2, positions=30, seq=30, types=3, norm="layer_norm", eps=1e-3,
                          activation="gelu_new", dropout=0.2, attention_dropout=0.3, init=0.0,
                          pooled=pooled)
    mine = mobilebert.Model(c, Init(3, 0.5), mobilebert.HF_CLASSES[CLASSES[kind]])
    inputs = random_inputs(theirs("bare").config, batch_for(kind))
    again = peers.opens_in_transformers(mine, CLASSES[kind], tmp_path, inputs)
    assert type(again).__name__ == CLASSES[kind]
    assert (again.config.hidden_dropout_prob, again.config.true_hidden_size) == (0.2, 12)


def test_what_config_json_leaves_out_has_the_published_default():
    peers.defaults_agree(mobilebert, transformers.MobileBertConfig)


@pytest.mark.parametrize("size, kind", [("base", "pretraining"), ("base", "masked"),
                                        ("published-tiny", "bare")])
def test_the_published_sizes_count_as_many_parameters_as_in_transformers(size, kind):
    c = mobilebert.SIZES[size]
    config = transformers.MobileBertConfig(
        num_feedforward_networks=c.mlps, key_query_shared_bottleneck=c.shared,
        use_bottleneck_attention=c.bottleneck_attention, classifier_activation=False)
    with torch.device("meta"):
        model = getattr(transformers, CLASSES[kind])(config)
    mine = mobilebert.Model(c, Init(), mobilebert.HF_CLASSES[CLASSES[kind]])
    count = sum(t.size for t in mine.named().values())
    assert count == sum(p.numel() for p in model.parameters())


def test_transformers_cannot_run_the_teacher():
    """Why test_mobilebert.py writes it out. Should this fail one day, compare with theirs."""
    model = theirs("bare", key_query_shared_bottleneck=False, intra_bottleneck_size=48)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones((1, 5), dtype=torch.long))
