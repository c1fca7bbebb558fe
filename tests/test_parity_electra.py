"""ELECTRA, discriminator and generator: the same numbers as transformers, outputs, every
parameter's gradient, files in both directions. peers.py tells how it is compared."""
import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine.nn import Init
from tinybert_family.models import electra

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import peers  # noqa: E402
from peers import LIMIT, compare, random_inputs, run_theirs  # noqa: E402

SMALL = dict(peers.SMALL, embedding_size=12)
CLASSES = ["Electra" + task for task in (
    "Model", "ForPreTraining", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice",
    "ForTokenClassification", "ForQuestionAnswering")]
CONFIGS = {
    "nothing to project": dict(embedding_size=32),
    "E above H": dict(embedding_size=40),
    # The discriminator's head has the layers' activation, the generator's its own.
    "relu": dict(hidden_act="relu"),
    "odd": dict(vocab_size=71, hidden_size=35, num_attention_heads=5, intermediate_size=37,
                embedding_size=7, num_hidden_layers=3),
    "eps and types": dict(layer_norm_eps=1e-2, type_vocab_size=7),
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
    compare(model, random_inputs(model.config, shape_for(name), "right", pairs=True), tmp_path)


@pytest.mark.parametrize("name", ["ElectraForPreTraining", "ElectraForMaskedLM"])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_agrees(config, name, tmp_path):
    model = theirs(name, **CONFIGS[config])
    compare(model, random_inputs(model.config, (3, 13), "right", pairs=True), tmp_path)


@pytest.mark.parametrize("mask", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("shape", [(3, 8), (1, 9), (2, LIMIT)], ids=str)
def test_every_shape_of_batch_agrees(shape, mask, tmp_path):
    model = theirs("ElectraForPreTraining", seed=1)
    compare(model, random_inputs(model.config, shape, mask, pairs=True), tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 5)], ids=str)
def test_short_sequences_agree(shape, tmp_path):
    model = theirs("ElectraForPreTraining", seed=2)
    compare(model, random_inputs(model.config, shape, pairs=True), tmp_path)


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_saved_comes_back_through_us_to_the_bit(name, tmp_path):
    more = dict(num_labels=3) if "Classification" in name else {}
    more |= dict(summary_last_dropout=0.25)
    model = theirs(name, **more)
    inputs = random_inputs(model.config, shape_for(name), "right")
    peers.there_and_back(name, tmp_path, inputs, **SMALL, **more)


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_of_our_own_opens_in_transformers(name, tmp_path):
    c = electra.Config(vocab=61, layers=3, heads=2, width=20, hidden=28, embedding=9, positions=30,
                       seq=30, types=3, eps=1e-3, activation="gelu_new", choice_dropout=0.4)
    mine = electra.Model(c, Init(3, 0.5), electra.HF_CLASSES[name])
    inputs = dict(input_ids=np.random.default_rng(4).integers(0, 61, shape_for(name, 2, 30)))
    config = peers.opens_in_transformers(mine, name, tmp_path, inputs).config
    assert config.embedding_size == 9 and config.summary_last_dropout == 0.4


def test_what_a_config_leaves_out_has_the_published_default():
    peers.defaults_agree(electra, transformers.ElectraConfig)


def test_a_trained_pair_opens_as_two_models_of_transformers(tmp_path):
    """The shared tables go into both files, as they do in the published ones."""
    c = electra.Config(vocab=61, layers=4, heads=2, width=24, hidden=28, embedding=16, positions=30,
                       seq=30, generator_size=0.5, generator_depth=0.75)
    pair = electra.Pair(c, Init(5, 0.5))
    inputs = dict(input_ids=np.random.default_rng(4).integers(0, 61, (2, 9)))
    a = peers.opens_in_transformers(pair.discriminator, "ElectraForPreTraining", tmp_path / "d",
                                    inputs)
    b = peers.opens_in_transformers(pair.generator, "ElectraForMaskedLM", tmp_path / "g", inputs)
    assert (b.config.hidden_size, b.config.num_hidden_layers) == (12, 3)
    ours, theirs = a.electra.embeddings.state_dict(), b.electra.embeddings.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


@pytest.mark.parametrize("name", ["ElectraForPreTraining", "ElectraModel"])
def test_a_published_file_may_hold_a_projection_that_nothing_reads(name, tmp_path):
    from safetensors.torch import load_file, save_file
    model = theirs(name, embedding_size=32).float()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    prefix = "" if name == "ElectraModel" else "electra."
    tensors[prefix + "embeddings_project.weight"] = torch.randn(32, 32)
    tensors[prefix + "embeddings_project.bias"] = torch.randn(32)
    tensors[prefix + "embeddings.position_ids"] = torch.arange(LIMIT)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    inputs = random_inputs(model.config, (2, 8))
    found = tbf.load(tmp_path)(**inputs).last_hidden_state.numpy()
    expected = run_theirs(model, inputs)[0]["last_hidden_state"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())
    tbf.save(tbf.load(tmp_path), tmp_path / "b")
    peers.loads_without_a_word(type(model), tmp_path / "b")
