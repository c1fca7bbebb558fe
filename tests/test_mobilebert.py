"""What models/mobilebert.py promises, without torch: the published sizes; the formulas of student
and teacher (which transformers cannot run) written out in NumPy; exact gradients; what happens at
the edges of a sequence; plain words for bad settings; and that it learns."""
import json
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine import philox
from tinybert_family.engine.nn import Init
from tinybert_family.engine.optim import AdamW, Arena, clip
from tinybert_family.models import bert
from tinybert_family.models.mobilebert import HF_CLASSES, SIZES, Config, Model

SMALL = Config(vocab=31, layers=2, heads=2, width=10, hidden=14, embedding=6, inner=8, mlps=3,
               positions=16, seq=16, dropout=0.0, attention_dropout=0.0)
CONFIGS = {
    "student": SMALL,
    "attention from the residual": replace(SMALL, bottleneck_attention=True, shared=False, mlps=1),
    "teacher": replace(SIZES["teacher"], vocab=31, layers=2, heads=2, width=10, inner=24,
                       hidden=30, embedding=6, positions=16, seq=16),
    "no bottleneck": replace(SMALL, bottleneck=False, norm="layer_norm"),
}


def a_model(c=SMALL, heads=None, seed=0, dtype=np.float64):
    """Weights, gains and biases all random: zeros and ones would hide mistakes."""
    model = Model(c, Init(seed, 0.4, dtype), heads)
    rng = np.random.default_rng(seed + 1)
    for tensor in model.named().values():
        if tensor.ndim == 1:
            tensor.data += (0.3 * rng.standard_normal(tensor.shape)).astype(dtype)
    return model


def some_ids(shape, seed=0, vocab=31):
    return np.random.default_rng(seed).integers(1, vocab, shape)


# ---- sizes

# size: the bare model without and with a pooler's weights, ForMaskedLM, ForPreTraining
COUNTS = {"base": (24_581_888, 24_844_544, 36_596_538, 36_597_564),
          "published-tiny": (15_485_696, 15_748_352, 27_500_346, 27_501_372),
          "teacher": (294_205_184, 294_205_184 + 262_656, 306_219_834, 306_483_516)}


@pytest.mark.parametrize("size", COUNTS)
def test_sizes_have_the_published_numbers_of_parameters(size):
    bare, pooled, masked, pretraining = COUNTS[size]

    def count(heads, **more):
        model = Model(replace(SIZES[size], **more), Init(), heads)
        return sum(t.size for t in model.named().values())

    assert count(()) == bare and count(("pooler",), pooled=True) == pooled
    assert count(("mlm",)) == masked and count(None) == pretraining


def test_a_config_json_is_counted_as_its_class_says():
    settings = dict(model_type="mobilebert", classifier_activation=False)
    for name, count in dict(MobileBertModel=24_581_888, MobileBertForMaskedLM=36_596_538,
                            MobileBertForPreTraining=36_597_564).items():
        assert tbf.count_parameters(dict(settings, architectures=[name])) == count
    del settings["classifier_activation"]                       # then there is a matrix
    assert tbf.count_parameters(settings) == 24_844_544


# ---- the formulas, one sequence and one number at a time where that is clearer

def formulas(c, p, sequence):
    """(scores of every layer, hidden states, scores for every word) of one sequence [n]."""
    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, x, eps=None, always=False):
        if c.norm == "layer_norm" or always:
            mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
            x = (x - mean) / np.sqrt(var + (eps or c.eps))
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def activation(x):
        if c.activation == "relu":
            return np.where(x > 0, x, 0)
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    n, word = len(sequence), p["embeddings.word_embeddings.weight"]
    rows = []
    for t in range(n):
        after = word[sequence[t + 1]] if t + 1 < n else np.zeros(c.embedding)
        before = word[sequence[t - 1]] if t > 0 else np.zeros(c.embedding)
        rows.append(np.concatenate([after, word[sequence[t]], before]))
    x = linear("embeddings.embedding_transformation", np.array(rows))
    x = x + p["embeddings.position_embeddings.weight"][:n]
    x = x + p["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x, 1e-5)
    all_scores = []
    for i in range(c.layers):
        at = f"encoder.layer.{i}."

        def bottleneck(name, x):
            return norm(at + name + ".LayerNorm", linear(at + name + ".dense", x))

        r = s = v = x
        if c.bottleneck:
            r = bottleneck("bottleneck.input", x)
            if c.bottleneck_attention:
                s = v = r
            elif c.shared:
                s = bottleneck("bottleneck.attention", x)
        q, k = (linear(at + f"attention.self.{name}", s) for name in ("query", "key"))
        v = linear(at + "attention.self.value", v)
        size = q.shape[1] // c.heads
        mixed, scores = np.zeros_like(q), np.zeros((n, c.heads, n))
        for head in range(c.heads):
            part = slice(head * size, (head + 1) * size)
            scores[:, head] = q[:, part] @ k[:, part].T / math.sqrt(size)
            e = np.exp(scores[:, head])
            mixed[:, part] = e / e.sum(-1, keepdims=True) @ v[:, part]
        all_scores.append(scores)
        y = linear(at + "attention.output.dense", mixed)
        a = norm(at + "attention.output.LayerNorm", y + r)
        for j in range(c.mlps - 1):
            y = activation(linear(at + f"ffn.{j}.intermediate.dense", a))
            y = linear(at + f"ffn.{j}.output.dense", y)
            a = norm(at + f"ffn.{j}.output.LayerNorm", y + a)
        y = linear(at + "output.dense", activation(linear(at + "intermediate.dense", a)))
        a = norm(at + "output.LayerNorm", y + a, 1e-5)
        if c.bottleneck:
            y = linear(at + "output.bottleneck.dense", a)
            a = norm(at + "output.bottleneck.LayerNorm", y + x)
        x = a
    t = activation(linear("cls.predictions.transform.dense", x))
    t = norm("cls.predictions.transform.LayerNorm", t, always=True)
    logits = t[:, :c.embedding] @ word.T + p["cls.predictions.bias"]
    logits = logits + t[:, c.embedding:] @ p["cls.predictions.dense.weight"]
    return all_scores, x, logits


def published(model):
    return {name.removeprefix("mobilebert."): p.data for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
def test_states_scores_and_words_are_those_of_the_formulas(name):
    c = CONFIGS[name]
    model = a_model(c)
    ids, lengths = some_ids((3, 9)), (9, 1, 6)
    mask = (np.arange(9) < np.array(lengths)[:, None]).astype(int)
    out = model(ids, mask)
    packed, states = model.pack(ids, mask, None), []
    model.encode(packed, states=states)
    for row, n in enumerate(lengths):
        scores, x, logits = formulas(c, published(model), ids[row, :n])
        found = out.last_hidden_state.numpy()[row, :n], out.logits.numpy()[row, :n]
        np.testing.assert_allclose(found[0], x, rtol=0, atol=1e-12 * abs(x).max())
        np.testing.assert_allclose(found[1], logits, rtol=0, atol=1e-12 * abs(logits).max())
        mine = np.flatnonzero(packed.index // 9 == row)
        for layer, state, expected in zip(model.layers, states, scores):
            y = layer.attention.scores(state, packed).numpy()[mine][:, :, :n]
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-11 * abs(expected).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_differences_of_the_formulas(name):
    """Along some random directions through all parameters at once."""
    c = CONFIGS[name]
    model = a_model(c, seed=3)
    ids, rng = some_ids(7, seed=3), np.random.default_rng(4)
    seed = rng.standard_normal((7, c.vocab))
    (model(ids[None]).logits * seed[None]).sum().backward()
    p = published(model)
    grads = {name.removeprefix("mobilebert."): t.grad for name, t in model.named_parameters()}
    assert all(grads[name].any() for name in p if not name.startswith(("pooler", "cls.seq")))

    def loss(step, direction):
        moved = {name: x + step * direction[name] for name, x in p.items()}
        return (formulas(c, moved, ids)[2] * seed).sum()

    for _ in range(3):
        direction = {name: rng.standard_normal(x.shape) for name, x in p.items()}
        slope = sum((grads[name] * direction[name]).sum() for name in p
                    if grads[name] is not None)
        h = 1e-5
        wide, near = ((loss(step, direction) - loss(-step, direction)) / (2 * step)
                      for step in (h, h / 2))
        estimate = (4 * near - wide) / 3
        assert abs(slope - estimate) < 1e-6 * abs(estimate)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_layer_can_be_computed_for_some_tokens(name):
    model = a_model(CONFIGS[name], ())
    packed = model.pack(some_ids((3, 8)), None, None)
    rows = np.array([0, 3, 8, 9, 15, 23])
    whole = model.encode(packed).numpy()
    np.testing.assert_allclose(model.encode(packed, rows).numpy(), whole[rows], rtol=0,
                               atol=1e-13 * abs(whole).max())


# ---- the edges of a sequence

def test_a_word_is_read_after_its_next_and_before_its_previous():
    """Three columns of the tables, so that every part can be told from the others."""
    model = a_model(replace(SMALL, width=18), ())
    e = model.embeddings
    e.transform.weight.data[...] = np.eye(18)
    for tensor in e.transform.bias, e.position, e.type, e.norm.bias:
        tensor.data[...] = 0
    e.norm.weight.data[...] = 1
    e.word.data[...] = np.arange(31)[:, None]
    x = e(model.pack([[7, 8, 9], [5, 0, 0]], [[1, 1, 1], [1, 0, 0]], None)).numpy()
    assert x[:, ::6].tolist() == [[8, 7, 0], [9, 8, 7], [0, 9, 8], [0, 5, 0]]
    x = e(model.pack([[7, 8, 9], [5, 2, 3]], [[1, 1, 1], [1, 0, 0]], None,
                     pad_like_hf=True)).numpy()
    assert x[:, ::6].tolist() == [[8, 7, 0], [9, 8, 7], [0, 9, 8], [2, 5, 0]]


def test_company_changes_nothing_unless_it_is_asked_to():
    model, ids = a_model(heads=()), some_ids((1, 5))
    alone = model(ids).last_hidden_state.numpy()
    padded = np.pad(ids, [(0, 0), (0, 3)])
    mask = (padded > 0).astype(int)
    for asked, same in (False, True), (True, False):
        x = model(padded, mask, pad_like_hf=asked).last_hidden_state.numpy()[:, :5]
        assert (abs(x - alone).max() < 1e-13 * abs(alone).max()) == same
    assert np.array_equal(model(ids, pad_like_hf=True).last_hidden_state.numpy(), alone)


def test_a_batch_may_hold_sequences_without_tokens():
    model, ids = a_model(), some_ids((3, 4))
    mask = np.array([[0] * 4, [1] * 4, [0] * 4])
    for asked in False, True:
        x = model(ids, mask, pad_like_hf=asked).last_hidden_state.numpy()
        assert not x[[0, 2]].any() and x[1].any()
        assert not model(ids, 0 * mask, pad_like_hf=asked).last_hidden_state.numpy().any()


def test_words_may_come_as_small_unsigned_numbers():
    """As a corpus keeps them; the mark of a missing neighbour is below zero."""
    model, ids = a_model(heads=()), some_ids((2, 5))
    packed = model.pack(ids, None, None)
    small = packed._replace(ids=packed.ids.astype(np.uint16))
    assert np.array_equal(model.encode(small).numpy(), model.encode(packed).numpy())


# ---- dropout

@pytest.mark.parametrize("more, sites", [
    (dict(dropout=0.5), 1 + 2), (dict(dropout=0.5, bottleneck=False), 1 + 2 * 2),
    (dict(attention_dropout=0.5), 2), (dict(dropout=0.5, norm="layer_norm"), 1 + 2)], ids=str)
def test_dropout_is_where_it_belongs(more, sites):
    """After the embeddings and where a layer widens; without a bottleneck after its attention and
    its last MLP. In two layers."""
    model = a_model(replace(SMALL, **more), ())
    packed = model.pack(some_ids((1, 5)), None, None)
    with philox.at(1, 1):
        before = philox.position().site
        x = model.encode(packed).numpy()
        assert philox.position().site - before == sites
    assert np.isfinite(x).all() and not np.allclose(x, model.encode(packed).numpy())


# ---- the summary without weights

@pytest.mark.parametrize("name", ["MobileBertModel", "MobileBertForPreTraining",
                                  "MobileBertForSequenceClassification"])
def test_the_first_state_is_the_summary_and_no_file_has_to_hold_it(name, tmp_path):
    model = a_model(heads=HF_CLASSES[name])
    tbf.save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = tbf.load(tmp_path, dtype=np.float64)
    ids = some_ids((2, 5))
    for m in model, again:
        out = m(ids)
        assert np.array_equal(out.pooler_output.numpy(), out.last_hidden_state.numpy()[:, 0])


def test_the_teacher_comes_back_from_its_file(tmp_path):
    model, ids = a_model(CONFIGS["teacher"]), some_ids((2, 5))
    tbf.save(model, tmp_path)
    again = tbf.load(tmp_path, dtype=np.float64)
    out, found = model(ids), again(ids)
    assert np.array_equal(found.prediction_logits.numpy(), out.prediction_logits.numpy())
    expected = np.tanh(model.pooler.dense(out.last_hidden_state).numpy()[:, 0])
    np.testing.assert_allclose(found.pooler_output.numpy(), expected, rtol=0, atol=1e-14)


# ---- bad settings

BAD = {
    "norm": (dict(norm="batch_norm"), "norm: 'batch_norm', but this model knows no_norm"),
    "inner": (dict(inner=7), "inner: 7 is not divisible by 2 heads"),
    "mlps": (dict(mlps=0), "mlps: 0, but it must be at least 1"),
    "embedding": (dict(embedding=0), "embedding: 0, but it must be at least 1"),
    "activation": (dict(activation="silu"), "activation: 'silu', but this model knows gelu"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_mean_nothing_are_refused(name):
    settings, message = BAD[name]
    with pytest.raises(tbf.Error, match=message):
        replace(SMALL, **settings)


def test_words_wider_than_states_can_be_read_but_not_guessed():
    c = replace(SMALL, embedding=12)
    assert np.isfinite(a_model(c, ())(some_ids((1, 4))).last_hidden_state.numpy()).all()
    with pytest.raises(tbf.Error, match="embedding: 12, but words to guess can be no wider"):
        Model(c, Init(0))


@pytest.mark.parametrize("settings, message", [
    (dict(normalization_type="rms"), "normalization_type: 'rms', but this model knows"),
    (dict(tie_word_embeddings=False), "tie_word_embeddings is False; only True is supported"),
    (dict(trigram_input="yes"), "trigram_input is 'yes', but true or false is wanted"),
], ids=str)
def test_a_config_json_that_we_cannot_follow_is_refused_by_name(settings, message, tmp_path):
    tbf.save(a_model(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(tbf.Error, match=message):
        tbf.load(tmp_path)


# ---- it learns

def test_it_starts_at_chance_and_learns_a_batch_by_heart():
    c = replace(SIZES["smoke"], vocab=200, seq=32, tokens=512)
    rng = np.random.default_rng(0)
    sentences = np.concatenate([[0], np.cumsum(rng.integers(3, 9, 60))])
    corpus = SimpleNamespace(ids=rng.integers(4, c.vocab, sentences[-1]).astype(np.uint16),
                             sentences=sentences, documents=np.arange(0, 61, 12))
    objective = bert.Objective(c, corpus, SimpleNamespace(cls=1, sep=2, mask=3), 0)
    batch = objective.batch(objective.plan(np.arange(5), 0)[:6], 0)
    model = Model(c, Init(0, c.init))
    arena = Arena(model.named().items())
    optimizer = AdamW(arena, (c.beta1, c.beta2), c.adam_eps, c.decay, c.correct)
    first = None
    for step in range(100):
        Arena.forget(arena.tensors)
        losses = objective.loss(model, batch, objective.counts(batch))
        first = first or {name: x.item() for name, x in losses.items()}
        sum(losses.values()).backward()
        Arena.settle(arena.tensors)
        clip(arena.grad, c.clip)
        optimizer.step(3e-3 * min(1, (step + 1) / 20))
    assert abs(first["mlm_loss"] - math.log(c.vocab)) < 0.6
    assert abs(first["nsp_loss"] - math.log(2)) < 0.6
    with tbf.no_grad():
        sums = objective.scores(model, batch)
    scores = {name: value / count for name, (value, count) in sums.items()}
    assert scores["mlm_accuracy"] >= 0.99 and scores["nsp_accuracy"] >= 0.99, scores
    assert scores["mlm_loss"] < 0.1, scores
