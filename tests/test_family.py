"""One class of every published family against stored numbers of transformers: outputs and the
gradient of every parameter. (make parity compares all classes live.) And what holds for each model
of the family alike."""
import json

import numpy as np
import pytest
import stored_family as stored

import tinybert_family as tbf
from tinybert_family import checkpoint, files
from tinybert_family.engine.nn import Init

TYPES = {"Bert": "bert", "Roberta": "roberta", "XLMRoberta": "xlm-roberta", "Albert": "albert",
         "DistilBert": "distilbert", "Electra": "electra", "Deberta": "deberta",
         "DebertaV2": "deberta-v2", "ModernBert": "modernbert", "MobileBert": "mobilebert",
         "Ernie": "ernie"}


@pytest.fixture(scope="module")
def kept():
    with np.load(stored.FILE) as file:
        return dict(file)


def settings_of(case):
    family = case.partition("For")[0].removesuffix("Model")
    return dict(stored.CASES[case], model_type=TYPES[family], architectures=[case])


def folder_of(case, folder):
    """As transformers saves it, with the formula's weights."""
    module = checkpoint.variant_of(settings_of(case), case)
    heads = module.HF_CLASSES[case]
    model = module.Model(checkpoint.read_config(module, settings_of(case), case), Init(), heads)
    shapes = {name: x.shape for name, x in checkpoint.published_arrays(model).items()}
    files.write_safetensors(folder / "model.safetensors", stored.weights(case, shapes))
    (folder / "config.json").write_text(json.dumps(settings_of(case)))
    return folder


def far(x, truth):
    return abs(x - truth).max() / max(abs(truth).max(), 1e-300)


@pytest.mark.parametrize("dtype, bar", [(np.float64, 1e-10), (np.float32, 2e-4)])
@pytest.mark.parametrize("case", stored.CASES)
def test_outputs_and_every_gradient_are_those_that_transformers_gave(case, dtype, bar, kept,
                                                                     tmp_path):
    model = tbf.load(folder_of(case, tmp_path), dtype=dtype)
    given = stored.inputs(case)
    out, mask = model(**given), given["attention_mask"]
    loss = 0
    for key, truth in kept.items():
        if not key.startswith(f"{case}/out/"):
            continue
        name = key.split("/")[-1]
        x = getattr(out, name)
        seed = stored.seeds(name, truth.shape, mask)
        if truth.shape[:2] == mask.shape:                   # it also computes states of padding
            truth = truth * mask.reshape(mask.shape + (1,) * (truth.ndim - 2))
        assert x.dtype == dtype and far(x.numpy(), truth) < bar, name
        loss = loss + (x * seed.astype(dtype)).sum()
    loss.backward()
    slopes = {key.split("/")[-1]: x for key, x in kept.items() if key.startswith(f"{case}/grad/")}
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(slopes) - set(grads) == {name for name, x in slopes.items() if not x[0]} - set(grads)
    whole = max(x[0] for x in slopes.values())
    for name, x in grads.items():
        truth, found = slopes.get(name, np.zeros(5)), stored.shadows(name, x)
        least = 1e-9 if dtype is np.float64 else 1e-3
        if truth[0] < least * whole:                        # rounding, as of the keys' biases
            assert abs(found[0] - truth[0]) < 10 * bar * whole, name
        else:
            assert far(found[0], truth[0]) < bar and abs(found - truth)[1:].max() < 10 * bar, name


def module(name):
    return checkpoint.variant(name, "test")


def smoke(name, heads=None, dtype=np.float64, seed=0):
    m = module(name)
    return m.Model(m.SIZES["smoke"], Init(seed, 0.3, dtype), heads)


@pytest.mark.parametrize("name", checkpoint.MODELS)
def test_every_model_has_a_smoke_and_a_base_size(name):
    sizes = module(name).SIZES
    assert {"smoke", "base"} <= set(sizes)
    count = sum(t.size for t in smoke(name).named().values())
    assert 10_000 < count < 1_000_000


@pytest.mark.parametrize("name", checkpoint.MODELS)
def test_every_model_comes_back_from_its_own_folder_to_the_bit(name, tmp_path):
    model = smoke(name)
    tbf.save(model, tmp_path)
    again = tbf.load(tmp_path, dtype=np.float64)
    assert type(again) is type(model)
    mine, theirs = (dict(m.named_parameters()) for m in (model, again))
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(x.data, theirs[key].data) for key, x in mine.items())
    recipe = set(vars(model.config)) - set(module(name).HF_CONFIG) | {"init"}
    assert differing(again.config, model.config) <= recipe
    ids = np.random.default_rng(0).integers(5, 100, (2, 9))
    np.testing.assert_array_equal(model(ids).last_hidden_state.numpy(),
                                  again(ids).last_hidden_state.numpy())


def differing(a, b):
    return {name for name in vars(a) if getattr(a, name) != getattr(b, name)}


@pytest.mark.parametrize("name", checkpoint.MODELS)
def test_a_batch_is_no_more_than_its_sequences(name):
    """Packed together or alone, in any order: the same states."""
    model, rng = smoke(name), np.random.default_rng(1)
    ids = rng.integers(5, 100, (4, 11))
    lengths = np.array([3, 11, 1, 7])
    mask = (np.arange(11) < lengths[:, None]).astype(int)
    together = model(ids, mask).last_hidden_state.numpy()
    assert np.isfinite(together).all()
    for row, n in enumerate(lengths):
        alone = model(ids[row:row + 1, :n]).last_hidden_state.numpy()[0]
        np.testing.assert_allclose(together[row, :n], alone, rtol=0,
                                   atol=1e-12 * abs(alone).max())
        assert not together[row, n:].any()


@pytest.mark.parametrize("name", checkpoint.MODELS)
def test_the_last_layer_may_be_computed_for_some_tokens_alone(name):
    """As training does; the other tokens are still looked at."""
    model, rng = smoke(name), np.random.default_rng(2)
    packed = model.pack(rng.integers(5, 100, (3, 8)), None, None)
    rows = np.array([0, 3, 8, 9, 15, 23])
    np.testing.assert_allclose(model.encode(packed, rows).numpy(),
                               model.encode(packed).numpy()[rows], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", checkpoint.MODELS)
def test_scores_are_there_for_whoever_distils(name):
    """Before the softmax, one row for every token and head, and with a gradient."""
    model, rng, states = smoke(name), np.random.default_rng(3), []
    packed = model.pack(rng.integers(5, 100, (2, 6)), None, None)
    model.encode(packed, states=states)
    scores = model.layers[0].attention.scores(states[0], packed)
    assert scores.shape == (12, model.config.heads, 6)
    scores.sum().backward()
    assert model.embeddings.word.grad.any()


@pytest.mark.parametrize("name", checkpoint.MODELS)
def test_recomputing_layers_changes_no_bit(name):
    from dataclasses import replace
    m, ids = module(name), np.random.default_rng(4).integers(5, 100, (2, 7))
    grads = []
    for again in False, True:
        c = replace(m.SIZES["smoke"], recompute=again)
        model = m.Model(c, Init(0, 0.3, np.float64))
        model(ids).last_hidden_state.sum().backward()
        grads.append({key: t.grad for key, t in model.named().items() if t.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(np.array_equal(x, grads[1][key]) for key, x in grads[0].items())
