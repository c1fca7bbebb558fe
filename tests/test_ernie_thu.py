"""What models/ernie_thu.py promises: the numbers of its formulas, written out plainly below with
padding and masks, and their slopes; BERT where there are no entities; the authors' counts and
names; plain words for bad input."""
import json
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine import autograd, philox
from tinybert_family.engine.nn import Init
from tinybert_family.models import bert, ernie_thu
from tinybert_family.models.ernie_thu import SIZES, Config, Model

TINY = dict(vocab=50, layers=4, heads=3, width=24, hidden=20, positions=20, seq=20, dropout=0.0,
            attention_dropout=0.0, kinds="sim mix norm norm", entity_width=12, entity_heads=2,
            eps=1e-5)


def a_model(heads=None, seed=0, dtype=np.float64, **more):
    """Everything random, biases and gains too."""
    model = Model(Config(**{**TINY, **more}), Init(seed, 0.5, dtype), heads)
    rng = np.random.default_rng(seed + 1)
    for tensor in model.named().values():
        if tensor.ndim == 1:
            tensor.data += (0.3 * rng.standard_normal(tensor.shape)).astype(dtype)
    return model


def a_batch(seed=0, shape=(4, 11), mask=None):
    """Sequences with some entities, one with none, one whose first token has one."""
    rng = np.random.default_rng(seed)
    ids, types = rng.integers(0, 50, shape), rng.integers(0, 2, shape)
    lengths = np.array([7, shape[1], 1, 9])[:shape[0], None]
    mask = (np.arange(shape[1]) < lengths).astype(int) if mask is None else mask
    entities = np.where(rng.random(shape) < 0.4, rng.integers(0, 6, shape), -1)
    entities[0] = -1
    entities[1, 0], entities[1, 4] = 3, 3
    vectors = rng.standard_normal((6, 12))
    return dict(input_ids=ids, attention_mask=mask, token_type_ids=types, entity_ids=entities,
                entity_vectors=vectors)


# ---- the formulas once more, on padded arrays with masks, by the published names

def norm(x, p, name, eps):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * p[name + ".weight"] + p[name + ".bias"]


def linear(x, p, name):
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def gelu(x):
    """x Phi(x), with the error function of the standard library."""
    from math import erf, sqrt
    return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))


def attend(x, seen, p, name, out, heads, eps):
    """LN(x + W MHA(x)); keys that are not seen are masked, as the authors do."""
    b, s, h = x.shape

    def split(y):
        return y.reshape(b, s, heads, h // heads).transpose(0, 2, 1, 3)

    q, k, v = (split(linear(x, p, f"{name}.{part}")) for part in ("query", "key", "value"))
    a = q @ k.transpose(0, 1, 3, 2) / np.sqrt(h // heads) + (1 - seen[:, None, None, :]) * -1e9
    a = np.exp(a - a.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    y = (a @ v).transpose(0, 2, 1, 3).reshape(b, s, h)
    return norm(x + linear(y, p, out + ".dense"), p, out + ".LayerNorm", eps)


def reference(p, c, input_ids, attention_mask, token_type_ids, entity_ids, entity_vectors):
    """The last hidden states [B, S, H]."""
    emb = "bert.embeddings."
    w = p[emb + "word_embeddings.weight"][input_ids]
    w = w + p[emb + "position_embeddings.weight"][np.arange(input_ids.shape[1])]
    w = w + p[emb + "token_type_embeddings.weight"][token_type_ids]
    w = norm(w, p, emb + "LayerNorm", c.eps)
    table = np.concatenate([np.zeros((1, c.entity_width)), entity_vectors])
    e = table[entity_ids + 1]                               # row 0 is nothing
    m = (entity_ids >= 0) & (attention_mask > 0)
    m[:, 0] = True                                          # [CLS] is always seen
    for i, kind in enumerate(c.kinds.split()):
        at = f"bert.encoder.layer.{i}."
        w = attend(w, attention_mask, p, at + "attention.self", at + "attention.output", c.heads,
                   c.eps)
        h = linear(w, p, at + "intermediate.dense")
        if kind == "norm":
            e = attend(e, m, p, at + "attention.self_ent", at + "attention.output_ent",
                       c.entity_heads, c.eps)
        if kind != "sim":
            e = e * m[..., None]
            h = h + linear(e, p, at + "intermediate.dense_ent")
        h = gelu(h)
        w = norm(w + linear(h, p, at + "output.dense"), p, at + "output.LayerNorm", c.eps)
        if kind != "sim":
            e = norm(e + linear(h, p, at + "output.dense_ent"), p, at + "output.LayerNorm_ent",
                     c.eps)
    return w


def published(model):
    return {name: tensor.data for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("kinds", ["sim mix norm norm", "norm norm mix sim", "mix mix sim norm"])
def test_the_last_states_are_those_of_the_formulas(kinds):
    model, batch = a_model(kinds=kinds), a_batch()
    truth = reference(published(model), model.config, **batch)
    inside = batch["attention_mask"][..., None]
    for out in model(**batch), silent(model, batch):
        np.testing.assert_allclose(out.last_hidden_state.numpy(), truth * inside, rtol=0,
                                   atol=1e-11)
    other = model(**dict(batch, entity_ids=None)).last_hidden_state.numpy()
    assert abs((other - truth) * inside).max() > 0.01       # the entities do say something


def silent(model, batch):
    with tbf.no_grad():
        return model(**batch)


def loss_of(model, batch):
    """A number that every head of pre-training has a part in."""
    rng = np.random.default_rng(5)
    out = model(**batch)
    states = out.last_hidden_state.reshape(-1, model.config.width)
    scores = model.entity.scores(states, batch["entity_vectors"])
    parts = out.prediction_logits, out.seq_relationship_logits, scores
    return sum((y * rng.standard_normal(y.shape)).sum() for y in parts)


def test_every_gradient_is_the_slope():
    """Differences, parameter by parameter along a random direction; what the last layer would
    tell the entities is read by nobody, so that has none."""
    model, batch, rng = a_model(), a_batch(), np.random.default_rng(3)
    loss_of(model, batch).backward()
    without = {name for name, t in model.named().items() if t.grad is None}
    assert without == {f"layers.3.mlp.{part}_entity.{last}" for part in ("down", "norm")
                       for last in ("weight", "bias")}
    whole = max(abs(t.grad).max() for name, t in model.named().items() if name not in without)
    for name, t in model.named().items():
        kept, step = t.data, rng.standard_normal(t.shape)
        step /= np.linalg.norm(step)
        values = {}
        for h in -2e-4, -1e-4, 1e-4, 2e-4:
            t.data = kept + h * step
            values[h] = loss_of(model, batch).item()
        t.data = kept
        # five points: exact for polynomials of the fourth degree
        near, far = (values[h] - values[-h] for h in (1e-4, 2e-4))
        slope = 0 if name in without else (t.grad * step).sum()
        assert abs((8 * near - far) / 12e-4 - slope) < 1e-9 * whole, name


def test_in_float32_it_is_as_near_as_float32_can_be(tmp_path):
    model, batch = a_model(), a_batch()
    for t in model.named().values():
        t.data = t.data.astype(np.float32).astype(np.float64)
    tbf.save(model, tmp_path)
    truth = model(**batch).last_hidden_state.numpy()
    single = tbf.load(tmp_path)(**batch).last_hidden_state.numpy()
    assert single.dtype == np.float32
    assert abs(single - truth).max() < 2e-6 * abs(truth).max()


def test_without_entities_it_is_bert_to_the_bit():
    """With the first token alone among the entities, and nothing said by them."""
    model = a_model(heads=("pooler",))
    for layer in model.layers[1:]:
        for tensor in layer.mlp.up_entity.named().values():
            tensor.data = 0 * tensor.data
    plain = {name: getattr(model.config, name) for name in bert.Config.__dataclass_fields__}
    twin = bert.Model(bert.Config(**plain), Init(0, 0.5, np.float64), ("pooler",))
    mine = model.named()
    for name, tensor in twin.named().items():
        tensor.data = mine[name].data
    batch = a_batch()
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    for name in "last_hidden_state", "pooler_output":
        assert np.array_equal(getattr(model(**given), name).numpy(),
                              getattr(twin(**given), name).numpy())


@pytest.mark.parametrize("side", ["right", "left", "holes"])
def test_a_batch_is_no_more_than_its_sequences(side):
    """Entities are packed with their words: alone and together the states are the same."""
    mask = (np.arange(11) < np.array([[7], [11], [1], [9]])).astype(int)
    if side == "left":
        mask = mask[:, ::-1]
    if side == "holes":
        mask = np.random.default_rng(8).integers(0, 2, (4, 11))
    batch, model = a_batch(1, mask=mask), a_model()
    model.embeddings.position.data[...] = 0                 # as columns differ alone
    out = model(**batch).last_hidden_state.numpy()
    for row in range(4):
        kept = mask[row] > 0
        alone = {name: x if name == "entity_vectors" else x[row:row + 1, kept]
                 for name, x in batch.items()}
        np.testing.assert_allclose(out[row, kept], model(**alone).last_hidden_state.numpy()[0],
                                   rtol=0, atol=1e-11)
        assert not out[row, ~kept].any()


@pytest.mark.parametrize("rows", [[0, 3, 11, 12, 20], [1, 2], [0], list(range(28))], ids=str)
@pytest.mark.parametrize("last", ["norm", "mix", "sim"])
def test_the_last_layer_for_some_rows(rows, last):
    model, batch = a_model(kinds=f"sim mix norm {last}"), a_batch()
    given = [batch.pop(name) for name in ("input_ids", "attention_mask", "token_type_ids")]
    packed, rows = model.pack(*given, **batch), np.array(rows)
    np.testing.assert_allclose(model.encode(packed, rows).numpy(),
                               model.encode(packed).numpy()[rows], rtol=0, atol=1e-12)


def test_recomputing_changes_no_bit_dropout_included():
    grads = []
    for again in False, True:
        model = a_model(recompute=again, dropout=0.2, attention_dropout=0.1)
        with philox.replay(philox.Key(3, 7)):
            loss_of(model, a_batch()).backward()
        grads.append({name: t.grad for name, t in model.named().items() if t.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(np.array_equal(x, grads[1][name]) for name, x in grads[0].items())


# ---- the head

def test_the_zero_vector_stands_before_the_candidates():
    model, rng = a_model(), np.random.default_rng(6)
    x, candidates = autograd.Tensor(rng.standard_normal((5, 24))), rng.standard_normal((3, 12))
    scores = model.entity.scores(x, candidates).numpy()
    assert scores.shape == (5, 4) and not scores[:, 0].any()
    np.testing.assert_allclose(scores[:, 1:], model.entity(x).numpy() @ candidates.T, rtol=0,
                               atol=1e-12)
    assert model.entity.scores(x, candidates[:0]).shape == (5, 1)


def test_whoever_is_meant_wins_where_the_state_is_its_vector():
    """Columns of a Hadamard matrix are their own LayerNorm, and orthogonal."""
    model = a_model(entity_width=4, entity_heads=1)
    vectors = np.array([[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float64)
    model.entity.norm.weight.data[...] = 1
    model.entity.norm.bias.data[...] = 0
    model.entity.transform.weight.data[...] = 0
    for i, vector in enumerate(vectors):
        model.entity.transform.bias.data = 3 * vector
        scores = model.entity.scores(autograd.Tensor(np.zeros((1, 24))), vectors).numpy()
        assert scores.argmax() == i + 1


# ---- sizes and files

def count(c, heads):
    return sum(t.size for t in Model(c, Init(), heads).named().values())


def test_parameter_counts_are_those_of_the_authors_code():
    c = SIZES["base"]
    assert count(c, Model.PRETRAINING) == 114_751_532
    assert count(c, ("pooler",)) == 114_050_244
    six = replace(c, kinds="sim " * 6 + "norm " * 6)
    assert count(six, Model.PRETRAINING) == 114_133_760
    settings = dict(model_type="ernie_thu", architectures=["ErnieThuForPreTraining"],
                    layer_types=["sim"] * 6 + ["norm"] * 6)
    assert tbf.count_parameters(settings) == 114_133_760
    assert tbf.count_parameters(dict(model_type="ernie_thu")) == 114_050_244


@pytest.mark.parametrize("name", ernie_thu.HF_CLASSES)
def test_a_folder_comes_back_to_the_bit(name, tmp_path):
    model = a_model(ernie_thu.HF_CLASSES[name], dtype=np.float32)
    tbf.save(model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["model_type"] == "ernie_thu" and settings["architectures"] == [name]
    assert settings["layer_types"] == ["sim", "mix", "norm", "norm"]
    assert not (tmp_path / "heads.safetensors").exists()
    again, batch = tbf.load(tmp_path), a_batch()
    mine, theirs = published(model), published(again)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(x, theirs[key]) for key, x in mine.items())
    if "choice" not in ernie_thu.HF_CLASSES[name]:
        a, b = (m(**batch).last_hidden_state.numpy() for m in (model, again))
        assert np.array_equal(a, b)


def test_the_names_are_the_authors():
    of_layer = {name.removeprefix("bert.encoder.layer.2.") for name in published(a_model())
                if name.startswith("bert.encoder.layer.2.")}
    parts = ["attention.self.query", "attention.self.key", "attention.self.value",
             "attention.self_ent.query", "attention.self_ent.key", "attention.self_ent.value",
             "attention.output.dense", "attention.output.LayerNorm", "attention.output_ent.dense",
             "attention.output_ent.LayerNorm", "intermediate.dense", "intermediate.dense_ent",
             "output.dense", "output.dense_ent", "output.LayerNorm", "output.LayerNorm_ent"]
    assert of_layer == {f"{part}.{last}" for part in parts for last in ("weight", "bias")}


# ---- plain words

def test_entities_that_cannot_be():
    model, ids = a_model(), [[1, 2, 3]]
    with pytest.raises(tbf.Error, match="entity_ids: 0, but entity_vectors has 0 rows"):
        model(ids, entity_ids=[[-1, 0, -1]])
    with pytest.raises(tbf.Error, match="entity_ids: -2, but entity_vectors has 6 rows"):
        model(ids, entity_ids=[[-2, 0, -1]], entity_vectors=np.zeros((6, 12)))
    with pytest.raises(tbf.Error, match=r"entity_vectors: shape \(6, 11\).*\(6, 12\)"):
        model(ids, entity_ids=[[-1, 0, -1]], entity_vectors=np.zeros((6, 11)))
    with pytest.raises(tbf.Error, match=r"entity_vectors: shape \(12,\)"):
        model(ids, entity_ids=[[-1, 0, -1]], entity_vectors=np.zeros(12))
    with pytest.raises(tbf.Error, match="entity_ids: shape"):
        model(ids, entity_ids=[[0, 0]], entity_vectors=np.zeros((6, 12)))


@pytest.mark.parametrize("change, message", [
    (dict(layer_types=["sim"] * 3), "layer_types: 'sim sim sim', but for 4 layers"),
    (dict(layer_types=["sim", "mix", "norm", "odd"]), "each of them sim, mix or norm"),
    (dict(layer_types=7), "layer_types is 7"),
    (dict(num_attention_heads_ent=5), "entity_size: 12 is not divisible by 5 heads"),
    (dict(is_decoder=True), "is_decoder is True; only False")], ids=lambda x: str(x)[:30])
def test_settings_that_cannot_be(change, message, tmp_path):
    tbf.save(a_model(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(tbf.Error, match=message):
        tbf.load(tmp_path)
