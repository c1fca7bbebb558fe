"""DistilBERT, the same numbers as transformers: outputs, every parameter's gradient, files in both
directions. peers.py tells how it is compared."""
import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine.nn import Init
from tinybert_family.models import distilbert

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import peers  # noqa: E402
from peers import LIMIT, compare, random_inputs, run_theirs  # noqa: E402

SMALL = dict(vocab_size=61, dim=32, n_layers=2, n_heads=4, hidden_dim=48,
             max_position_embeddings=LIMIT, pad_token_id=0)
CLASSES = ["DistilBert" + task for task in (
    "Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice",
    "ForTokenClassification", "ForQuestionAnswering")]
CONFIGS = {
    "odd": dict(vocab_size=71, dim=35, n_heads=5, hidden_dim=37, n_layers=3),
    "gelu_new": dict(activation="gelu_new"),
    "relu": dict(activation="relu"),
    "one head": dict(n_heads=1, n_layers=1),
    "sines at the start": dict(sinusoidal_pos_embds=True),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
    model = theirs("DistilBertForMaskedLM", **CONFIGS[config])
    compare(model, random_inputs(model.config, (3, 13), "right"), tmp_path)


@pytest.mark.parametrize("mask", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("shape", [(3, 8), (1, 7), (1, 1), (2, LIMIT)], ids=str)
def test_every_shape_of_batch_agrees(shape, mask, tmp_path):
    model = theirs("DistilBertForMaskedLM", seed=1)
    compare(model, random_inputs(model.config, shape, mask), tmp_path)


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_saved_comes_back_through_us_to_the_bit(name, tmp_path):
    more = dict(num_labels=3) if "Classification" in name else {}
    more |= dict(qa_dropout=0.25, seq_classif_dropout=0.35, sinusoidal_pos_embds=True)
    model = theirs(name, **more)
    inputs = random_inputs(model.config, shape_for(name), "right")
    peers.there_and_back(name, tmp_path, inputs, **SMALL, **more)


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_of_our_own_opens_in_transformers(name, tmp_path):
    c = distilbert.Config(vocab=61, layers=3, heads=2, width=20, hidden=28, positions=30, seq=30,
                          activation="gelu_new", dropout=0.2, attention_dropout=0.3,
                          head_dropout=0.4, question_dropout=0.5)
    mine = distilbert.Model(c, Init(3, 0.5), distilbert.HF_CLASSES[name])
    inputs = dict(input_ids=np.random.default_rng(4).integers(0, 61, shape_for(name, 2, 30)))
    config = peers.opens_in_transformers(mine, name, tmp_path, inputs).config
    assert (config.dropout, config.attention_dropout) == (0.2, 0.3)
    assert (config.seq_classif_dropout, config.qa_dropout) == (0.4, 0.5)


def test_what_a_config_leaves_out_has_the_published_default():
    peers.defaults_agree(distilbert, transformers.DistilBertConfig)
    from tinybert_family.checkpoint import read_config
    assert read_config(distilbert, {}, "config") == distilbert.Config()


def test_sines_at_the_start_are_those_of_transformers():
    c = distilbert.Config(vocab=5, layers=1, heads=1, width=10, hidden=4, positions=40, seq=40,
                          sinusoidal=True)
    mine = distilbert.Model(c, Init(0), ()).embeddings.position.data
    config = transformers.DistilBertConfig(
        vocab_size=5, n_layers=1, n_heads=1, dim=10, hidden_dim=4, max_position_embeddings=40,
        sinusoidal_pos_embds=True)
    table = transformers.DistilBertModel(config).embeddings.position_embeddings.weight
    np.testing.assert_allclose(mine, table.detach().numpy(), rtol=0, atol=1e-6)


def test_an_old_file_with_a_projector_of_the_same_numbers_loads(tmp_path):
    from safetensors.torch import load_file, save_file
    model = theirs("DistilBertForMaskedLM").float()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    word = tensors["distilbert.embeddings.word_embeddings.weight"]
    tensors["vocab_projector.weight"] = word.clone()
    tensors["distilbert.embeddings.position_ids"] = torch.arange(LIMIT)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    inputs = random_inputs(model.config, (2, 8))
    found, expected = tbf.load(tmp_path)(**inputs).logits.numpy(), run_theirs(model, inputs)[0]
    np.testing.assert_allclose(found, expected["logits"], rtol=0,
                               atol=1e-5 * abs(expected["logits"]).max())
    tensors["vocab_projector.weight"][3, 3] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(tbf.Error, match="vocab_projector.weight differs from"):
        tbf.load(tmp_path)
