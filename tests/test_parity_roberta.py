"""RoBERTa and XLM-RoBERTa, the same numbers as transformers: outputs, every parameter's gradient,
files in both directions. peers.py tells how it is compared."""
import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine.nn import Init
from tinybert_family.models import roberta

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import peers  # noqa: E402
from peers import LIMIT, compare, random_inputs, run_theirs  # noqa: E402

PAD = 1
SMALL = dict(peers.SMALL, pad_token_id=PAD, max_position_embeddings=LIMIT + PAD + 1,
             type_vocab_size=1, layer_norm_eps=1e-5)
TASKS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice",
         "ForTokenClassification", "ForQuestionAnswering")
CLASSES = [f"{family}{task}" for family in ("Roberta", "XLMRoberta") for task in TASKS]
CONFIGS = {
    "odd": dict(vocab_size=71, hidden_size=35, num_attention_heads=5, intermediate_size=37,
                num_hidden_layers=3),
    "the LM head's GELU is not the layers' activation": dict(hidden_act="relu"),
    "types and eps": dict(type_vocab_size=3, layer_norm_eps=1e-2),
    "pad 0": dict(pad_token_id=0, max_position_embeddings=LIMIT + 1),
    "pad 5": dict(pad_token_id=5, max_position_embeddings=LIMIT + 6),
}


@pytest.fixture(scope="module", autouse=True)
def a_shared_matrix_has_one_name():
    """torch names it after whoever was made first, which is the head in this one class alone."""
    torch.set_num_threads(1)
    cls = transformers.XLMRobertaForMaskedLM
    made = cls.__init__

    def and_the_head_last(model, config):
        made(model, config)
        model._modules["lm_head"] = model._modules.pop("lm_head")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "__init__", and_the_head_last)
        yield


def theirs(name, seed=0, **more):
    return peers.theirs(name, 0.5, seed, **{**SMALL, **more})


def shape_for(name, rows=2, columns=9):
    return (rows, 3, columns) if "Choice" in name else (rows, columns)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_and_every_gradient_are_those_of_transformers(name, tmp_path):
    model = theirs(name)
    compare(model, random_inputs(model.config, shape_for(name), "right"), tmp_path)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_agrees(config, tmp_path):
    model = theirs("RobertaForMaskedLM", **CONFIGS[config])
    compare(model, random_inputs(model.config, (3, 13), "right", pairs=True), tmp_path)


@pytest.mark.parametrize("mask", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("shape", [(3, 8), (1, 7), (1, 1), (2, LIMIT)], ids=str)
def test_every_shape_of_batch_agrees(shape, mask, tmp_path):
    """Pads stand among the tokens, too: positions are counted by ids, whatever the mask says."""
    model = theirs("RobertaModel", seed=1)
    inputs = random_inputs(model.config, shape, mask)
    inputs["input_ids"][:, ::3] = PAD
    compare(model, inputs, tmp_path)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_as_a_tokenizer_pads_them_agree(side, tmp_path):
    model = theirs("RobertaForSequenceClassification", seed=2, num_labels=3)
    inputs = random_inputs(model.config, (4, 10), side)
    if side == "left":                      # the classifier reads column 0 of what is padded
        inputs["attention_mask"][:, 0] = 1
    inputs["input_ids"] = np.where(inputs["attention_mask"], inputs["input_ids"], PAD)
    compare(model, inputs, tmp_path)


def test_positions_are_those_of_transformers():
    ids = np.random.default_rng(0).integers(0, 4, (20, 30))
    for pad in 0, 1, 3:
        expected = transformers.models.roberta.modeling_roberta.RobertaEmbeddings
        expected = expected.create_position_ids_from_input_ids(torch.as_tensor(ids), pad).numpy()
        assert np.array_equal(roberta.counted(ids, pad), expected)


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_saved_comes_back_through_us_to_the_bit(name, tmp_path):
    more = dict(num_labels=3) if "Classification" in name else {}
    model = theirs(name, **more)
    inputs = random_inputs(model.config, shape_for(name), "right")
    peers.there_and_back(name, tmp_path, inputs, **SMALL, **more)
    again = transformers.AutoConfig.from_pretrained(tmp_path / "b")
    assert type(again).__name__ == name.partition("For")[0].removesuffix("Model") + "Config"


@pytest.mark.parametrize("name", CLASSES[:len(TASKS)])
def test_a_model_of_our_own_opens_in_transformers(name, tmp_path):
    c = roberta.Config(vocab=61, layers=3, heads=2, width=20, hidden=28, positions=30, seq=30,
                       eps=1e-3, activation="gelu_new", pad=2)
    mine = roberta.Model(c, Init(3, 0.5), roberta.HF_CLASSES[name])
    inputs = dict(input_ids=np.random.default_rng(4).integers(0, 61, shape_for(name, 2, 30)))
    again = peers.opens_in_transformers(mine, name, tmp_path, inputs)
    assert again.config.max_position_embeddings == 33 and again.config.pad_token_id == 2


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta"])
def test_what_a_config_leaves_out_has_the_published_default(family):
    config = getattr(transformers, f"{family}Config")
    from tinybert_family.checkpoint import read_config
    empty, full = (read_config(roberta, d, "config") for d in
                   (dict(model_type=config.model_type), config().to_dict()))
    assert empty == full
    assert config is not transformers.RobertaConfig or empty == read_config(roberta, {}, "config")


@pytest.mark.parametrize("size", ["xlm-base", "xlm-large", "distil"])
def test_sizes_that_the_spec_is_silent_about_count_as_transformers_counts(size):
    c = roberta.SIZES[size]
    config = transformers.XLMRobertaConfig(
        vocab_size=c.vocab, hidden_size=c.width, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, intermediate_size=c.hidden, max_position_embeddings=514,
        type_vocab_size=1)
    with torch.device("meta"):
        model = transformers.XLMRobertaForMaskedLM(config)
    mine = roberta.Model(c, Init(), ("mlm",))
    assert sum(t.size for t in mine.named().values()) == sum(p.numel() for p in model.parameters())


def test_an_old_file_with_position_ids_and_a_decoder_of_the_same_numbers_loads(tmp_path):
    from safetensors.torch import load_file, save_file
    model = theirs("RobertaForMaskedLM").float()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["roberta.embeddings.position_ids"] = torch.arange(LIMIT + 2)[None]
    tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    inputs = random_inputs(model.config, (2, 8))
    found = tbf.load(tmp_path)(**inputs).logits.numpy()
    expected = run_theirs(model, inputs)[0]["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())
