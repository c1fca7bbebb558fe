"""What models/spanbert.py promises: the published sizes, a span boundary objective that is the
formula written out plainly below, that reads nothing but a span's borders, and that comes back from
files, the published spelling included."""
import json
import re
from math import erf, sqrt

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine import autograd
from tinybert_family.engine.nn import Init
from tinybert_family.files import read_safetensors, write_safetensors
from tinybert_family.models.spanbert import SIZES, Config, Model, asked_of_borders

TINY = Config(vocab=50, layers=2, heads=2, width=16, hidden=24, positions=30, seq=30,
              span_places=4, place_width=6)
# of three sequences with cuts 0, 12, 20, 30: the first and last token of each span
FIRST, LAST = np.array([2, 8, 14, 22]), np.array([4, 8, 17, 28])
MLP = "cls.pair_target_predictions.mlp_layer_norm."


def a_model(heads=None, dtype=np.float64, seed=0, c=TINY):
    model = Model(c, Init(seed, 0.5, dtype), heads)
    rng = np.random.default_rng(seed + 1)
    for tensor in model.named().values():
        if tensor.ndim == 1:
            tensor.data += (0.3 * rng.standard_normal(tensor.shape)).astype(dtype)
    return model


def states(dtype=np.float64):
    return np.random.default_rng(2).standard_normal((30, 16)).astype(dtype)


def asked(c=TINY):
    return asked_of_borders(FIRST, LAST, c.span_places)


def norm(x, p, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
    return x * p[name + ".weight"] + p[name + ".bias"]


def reference(p, x):
    """Scores for every asked word, span by span and place by place."""
    rows = []
    gelu = np.vectorize(lambda z: z * 0.5 * (1 + erf(z / sqrt(2))))
    table = p["cls.pair_target_predictions.position_embeddings.weight"]
    for s, e in zip(FIRST, LAST):
        for i in range(s, min(e + 1, s + len(table))):
            h = np.concatenate([x[s - 1], x[e + 1], table[i - s]])
            h = gelu(p[MLP + "linear1.weight"] @ h + p[MLP + "linear1.bias"])
            h = norm(h, p, MLP + "layer_norm1")
            h = gelu(p[MLP + "linear2.weight"] @ h + p[MLP + "linear2.bias"])
            y = norm(h, p, MLP + "layer_norm2")
            words = p["bert.embeddings.word_embeddings.weight"]
            rows.append(words @ y + p["cls.pair_target_predictions.bias"])
    return np.array(rows)


def published(model):
    return {name: tensor.data for name, tensor in model.named_parameters()}


def test_which_words_are_asked_of_which_borders():
    tokens, left, right, place = asked()
    assert tokens.tolist() == [2, 3, 4, 8, 14, 15, 16, 17, 22, 23, 24, 25]
    assert left.tolist() == [1] * 3 + [7] + [13] * 4 + [21] * 4
    assert right.tolist() == [5] * 3 + [9] + [18] * 4 + [29] * 4
    assert place.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 0, 1, 2, 3]
    assert all(len(x) == 0 for x in asked_of_borders(FIRST[:0], LAST[:0], 4))


def test_the_scores_are_those_of_the_formula():
    model, x = a_model(), states()
    y = model.sbo(autograd.Tensor(x), *asked()[1:]).numpy()
    truth = reference(published(model), x)
    assert y.shape == (12, 50)
    np.testing.assert_allclose(y, truth, rtol=0, atol=1e-11 * abs(truth).max())


def test_the_loss_is_the_mean_surprise_and_its_gradients_are_the_slopes():
    model, x, rng = a_model(), autograd.parameter(states()), np.random.default_rng(3)
    _, *where = asked()
    labels, weights = rng.integers(0, 50, 12), np.full(12, 1 / 12)

    def loss():
        return model.sbo.loss(x, *where, labels, weights)

    y = reference(published(model), x.data)
    y = y - np.log(np.exp(y - y.max()).sum(1, keepdims=True)) - y.max()
    assert abs(loss().item() + y[np.arange(12), labels].mean()) < 1e-12 * abs(y).max()
    loss().backward()
    tensors = {name: t for name, t in model.named().items() if t.grad is not None}
    assert set(tensors) == {"embeddings.word", *(name for name in model.named()
                                                 if name.startswith("sbo."))}
    for name, t in {**tensors, "x": x}.items():
        kept, step = t.data, rng.standard_normal(t.shape)
        step /= np.linalg.norm(step)
        values = []
        for h in 1e-5, -1e-5:
            t.data = kept + h * step
            values.append(loss().item())
        t.data = kept
        assert abs((values[0] - values[1]) / 2e-5 - (t.grad * step).sum()) < 1e-7, name


def test_it_reads_the_borders_of_a_span_and_nothing_else():
    """The gradient with respect to the last states is exactly 0 inside, and is not 0 outside."""
    model, x = a_model(), autograd.parameter(states())
    _, *where = asked()
    model.sbo.loss(x, *where, np.arange(12), np.ones(12)).backward()
    borders = {1, 5, 7, 9, 13, 18, 21, 29}
    told = {row for row in range(30) if x.grad[row].any()}
    assert told == borders


def test_it_stands_on_the_encoder_too():
    """From ids to the loss: every word of the text has a part in it, through the attention."""
    model = a_model()
    ids = np.random.default_rng(4).integers(0, 50, (3, 10))
    out = model(ids)
    _, *where = asked()
    model.sbo.loss(out.last_hidden_state.reshape(-1, 16), *where, np.arange(12),
                   np.ones(12)).backward()
    assert all(model.embeddings.word.grad[i].any() for i in np.unique(ids))


# ---- sizes and files

def count(c, heads):
    return sum(t.size for t in Model(c, Init(), heads).named().values())


@pytest.mark.parametrize("size, encoder, head", [("base", 107_719_680, 1_959_676),
                                                 ("large", 332_529_664, 3_388_668)])
def test_parameter_counts_are_the_published_ones(size, encoder, head):
    c = SIZES[size]
    assert count(c, ()) == encoder
    assert count(c, ("sbo",)) == encoder + head
    settings = dict(model_type="bert", vocab_size=28996, num_hidden_layers=c.layers,
                    hidden_size=c.width, num_attention_heads=c.heads, intermediate_size=c.hidden)
    pooler = c.width * c.width + c.width
    assert tbf.count_parameters(settings) == encoder + pooler       # transformers adds one


def test_a_folder_comes_back_and_the_new_head_lies_beside(tmp_path):
    model = a_model(dtype=np.float32)
    tbf.save(model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"] == ["BertForMaskedLM"] and settings["max_pair_targets"] == 4
    beside = read_safetensors(tmp_path / "heads.safetensors")
    assert len(beside) == 10 and all("pair_target" in name for name in beside)
    again = tbf.load(tmp_path)
    assert type(again) is Model and again.pooler is None and again.nsp is None
    mine, theirs = published(model), published(again)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(x, theirs[key]) for key, x in mine.items())


def test_the_published_file_with_heads_is_read(tmp_path):
    """All names begin with decoder., norms have gamma and beta, and the word table comes thrice."""
    model = a_model(dtype=np.float32)
    tbf.save(model, tmp_path)
    old = {}
    for name, x in published(model).items():
        name = re.sub(r"((?:LayerNorm|layer_norm\d)\.)weight$", r"\1gamma", name)
        old["decoder." + re.sub(r"((?:LayerNorm|layer_norm\d)\.)bias$", r"\1beta", name)] = x
    assert any(name.endswith("layer_norm2.beta") for name in old)
    for head in "predictions", "pair_target_predictions":
        old[f"decoder.cls.{head}.decoder.weight"] = model.embeddings.word.data
    (tmp_path / "heads.safetensors").unlink()
    write_safetensors(tmp_path / "model.safetensors", old)
    again = tbf.load(tmp_path, model="spanbert")
    theirs = published(again)
    assert all(np.array_equal(x, theirs[key]) for key, x in published(model).items())
    old["decoder.cls.pair_target_predictions.decoder.weight"] = model.embeddings.word.data + 1
    write_safetensors(tmp_path / "model.safetensors", old)
    with pytest.raises(tbf.Error, match="pair_target_predictions.decoder.weight differs"):
        tbf.load(tmp_path)


def test_a_published_encoder_without_heads_is_read_with_a_new_one(tmp_path):
    model = a_model((), np.float32)
    tbf.save(model, tmp_path)
    with pytest.warns(UserWarning, match="holds no sbo head"):
        again = tbf.load(tmp_path, model="spanbert", head="sbo")
    assert again.sbo(autograd.Tensor(states(np.float32)), *asked()[1:]).shape == (12, 50)


# ---- plain words

def test_without_spans_it_has_no_answer():
    model = a_model()
    with pytest.raises(tbf.Error, match="sbo: this head has no answer for a text alone"):
        model.sbo.select(None, None)
    with pytest.raises(tbf.Error, match="span_places: 0"):
        Config(span_places=0)
