"""What models/modernbert.py promises beyond transformers' numbers: the published sizes, the
formulas written out token by token, what a local layer sees, and long texts in little memory."""
import json
import math
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family import checkpoint
from tinybert_family.engine import philox
from tinybert_family.engine.nn import Init
from tinybert_family.files import safetensors_header
from tinybert_family.models import modernbert
from tinybert_family.models.parts import padded
from tinybert_family.models.modernbert import HF_CLASSES, SIZES, Config, Model

# Local layers see 3 tokens to each side.
TINY = Config(vocab=50, layers=4, heads=2, width=16, hidden=12, positions=300, seq=30, window=6,
              global_theta=40.0, local_theta=15.0, dropout=0.0)
# ModernBertModel, ModernBertForMaskedLM
PUBLISHED = {"base": (149_014_272, 149_655_232), "large": (394_781_696, 395_881_664)}


def a_model(c=TINY, heads=("head", "mlm"), std=0.5, seed=0, dtype=np.float64):
    """Gains are drawn too: at 1 a norm in the wrong place may hide."""
    model, rng = Model(c, Init(seed, std, dtype), heads), np.random.default_rng(seed)
    for name, tensor in model.named().items():
        if tensor.ndim == 1:
            tensor.data = (name.endswith("weight") + 0.3 * rng.standard_normal(tensor.shape)
                           ).astype(dtype)
    return model


def some_ids(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 50, shape)


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size):
    c = SIZES[size]
    settings = dict(model_type="modernbert", hidden_size=c.width, intermediate_size=c.hidden,
                    num_hidden_layers=c.layers, num_attention_heads=c.heads)
    names = ["ModernBertModel"], ["ModernBertForMaskedLM"]
    counts = [tbf.count_parameters(dict(settings, architectures=name)) for name in names]
    assert tuple(counts) == PUBLISHED[size]
    L, H, I, V = c.layers, c.width, c.hidden, c.vocab
    assert counts[0] == V * H + H + L * (4 * H * H + 3 * H * I) + (2 * L - 1) * H + H
    assert counts[1] - counts[0] == H * H + H + V
    heads = (), ("head", "mlm")
    mine = [sum(t.size for t in Model(c, Init(), has).named().values()) for has in heads]
    assert mine == counts


def test_every_third_layer_of_base_is_global():
    kinds = SIZES["base"].kinds
    assert [i for i, kind in enumerate(kinds) if kind == "g"] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert kinds.count("l") == 14


# ---- the formulas, token by token

def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def normed(x, gain):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * gain


def turned(x, place, theta):
    """One head's vector, number m paired with number m + D/2."""
    half = len(x) // 2
    angle = place * theta ** (-2 * np.arange(half) / len(x))
    a, b = x[:half], x[half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                           b * np.cos(angle) + a * np.sin(angle)])


def written_out(w, c, ids):
    """Last hidden states and the words' scores of one sequence, from the published arrays."""
    size = c.width // c.heads
    x = normed(w["model.embeddings.tok_embeddings.weight"][ids], w["model.embeddings.norm.weight"])
    for i in range(c.layers):
        name = f"model.layers.{i}."
        local = i % 3 > 0
        theta = c.local_theta if local else c.global_theta
        h = normed(x, w[name + "attn_norm.weight"]) if i else x
        q, k, v = (h @ w[name + "attn.Wqkv.weight"].T).reshape(len(x), 3, c.heads, size).swapaxes(
            0, 1)
        mixed = np.zeros((len(x), c.heads, size))
        for t in range(len(x)):
            seen = [u for u in range(len(x)) if not local or abs(t - u) <= c.window // 2]
            for a in range(c.heads):
                scores = np.array([turned(q[t, a], t, theta) @ turned(k[u, a], u, theta)
                                   for u in seen]) / math.sqrt(size)
                p = np.exp(scores - scores.max())
                mixed[t, a] = p / p.sum() @ v[seen, a]
        x = x + mixed.reshape(x.shape) @ w[name + "attn.Wo.weight"].T
        gate = normed(x, w[name + "mlp_norm.weight"]) @ w[name + "mlp.Wi.weight"].T
        # the first half goes through the activation, the second is the factor
        h = erf_gelu(gate[:, :c.hidden]) * gate[:, c.hidden:]
        x = x + h @ w[name + "mlp.Wo.weight"].T
    x = normed(x, w["model.final_norm.weight"])
    y = normed(erf_gelu(x @ w["head.dense.weight"].T), w["head.norm.weight"])
    return x, y @ w["model.embeddings.tok_embeddings.weight"].T + w["decoder.bias"]


def test_the_network_is_what_its_formulas_say():
    model = a_model()
    ids = some_ids(13)
    states, scores = written_out(checkpoint.published_arrays(model), TINY, ids)
    out = model(ids[None])
    np.testing.assert_allclose(out.last_hidden_state.numpy()[0], states, rtol=0, atol=1e-12)
    np.testing.assert_allclose(out.logits.numpy()[0], scores, rtol=0, atol=1e-11)


def test_the_gradient_is_the_slope_along_random_directions():
    model, ids, rng = a_model(), some_ids(2, 11), np.random.default_rng(3)
    tensors = list(model.named().values())
    ways = [rng.standard_normal(t.shape) for t in tensors]
    seeds = rng.standard_normal((2, 11, 50))

    def loss():
        return (model(ids).logits * seeds).sum()

    loss().backward()
    slope = sum((t.grad * way).sum() for t, way in zip(tensors, ways))
    found = []
    for step in 1e-7, -2e-7:                # the way is about 90 long
        for t, way in zip(tensors, ways):
            t.data = t.data + step * way
        found.append(loss().item())
    assert abs((found[0] - found[1]) / 2e-7 - slope) < 1e-6 * abs(slope)


# ---- packing and padding

def test_a_batch_is_a_loop_over_its_sequences():
    """Lengths on both sides of where local attention begins to work stretch by stretch."""
    model = a_model()
    lengths = np.array([5, 150, 1, 64, 65, 0, 97])
    ids = some_ids(7, 150)
    mask = (np.arange(150) < lengths[:, None]).astype(int)
    out = model(ids, mask)
    together, words = out.last_hidden_state.numpy(), out.logits.numpy()
    for row, n in enumerate(lengths):
        assert not together[row, n:].any()
        if n:
            alone = model(ids[row:row + 1, :n])
            np.testing.assert_allclose(together[row, :n], alone.last_hidden_state.numpy()[0],
                                       rtol=0, atol=1e-12)
            np.testing.assert_allclose(words[row, :n], alone.logits.numpy()[0], rtol=0, atol=1e-11)


def test_padding_may_stand_left_or_right_but_not_between():
    model, ids = a_model(), some_ids(2, 20)
    mask = np.ones((2, 20), int)
    mask[:, 15:] = 0
    right = model(ids, mask).last_hidden_state.numpy()[:, :15]
    left = model(np.roll(ids, 5, 1), np.roll(mask, 5, 1)).last_hidden_state.numpy()[:, 5:]
    np.testing.assert_allclose(right, left, rtol=0, atol=1e-11)
    mask[1, 7] = 0
    with pytest.raises(tbf.Error, match="attention_mask: row 1 .* distances"):
        model(ids, mask)


def test_the_last_layer_for_some_tokens_is_that_of_all():
    for layers in 1, 2, 4:                  # the last one is global, local, global
        model = a_model(replace(TINY, layers=layers))
        packed = model.pack(some_ids(2, 90), None, None)
        rows = np.array([0, 1, 40, 89, 90, 133, 179])
        np.testing.assert_allclose(model.encode(packed, rows).numpy(),
                                   model.encode(packed).numpy()[rows], rtol=0, atol=1e-12)


def test_batches_of_nothing_and_of_single_tokens():
    for heads in ("head", "mlm"), ("head", "sequence"):
        for pooling in "cls", "mean":
            model = a_model(replace(TINY, pooling=pooling), heads)
            assert model(np.zeros((0, 5), int)).logits.shape[0] == 0
            assert model(np.zeros((2, 0), int)).logits.shape[0] == 2
            nobody = model([[3, 4], [5, 6]], [[0, 0], [0, 0]])
            assert not nobody.logits.numpy().any()
            assert np.isfinite(model([[3]]).logits.numpy()).all()


# ---- distances

@pytest.mark.parametrize("window, length", [(6, 40), (128, 330), (128, 100), (1, 80)])
def test_a_local_layer_sees_half_a_window_to_each_side_and_no_further(window, length):
    c = replace(TINY, layers=1, pattern="l", window=window, positions=400)
    model, reach = a_model(c, ()), window // 2
    ids = some_ids(1, length)
    before = model(ids).last_hidden_state.numpy()[0]
    for j in 0, length // 2, length - 1:
        other = ids.copy()
        other[0, j] = (ids[0, j] + 1) % 50
        moved = (model(other).last_hidden_state.numpy()[0] != before).any(1)
        assert np.array_equal(moved, abs(np.arange(length) - j) <= reach)


def test_a_global_layer_sees_everything():
    model, ids = a_model(replace(TINY, layers=1), ()), some_ids(1, 120)
    before = model(ids).last_hidden_state.numpy()[0]
    ids[0, 119] += 1 if ids[0, 119] < 49 else -1
    assert (model(ids).last_hidden_state.numpy()[0] != before).any(1).all()


@pytest.mark.parametrize("number", [0, 1])
def test_scores_depend_on_distances_alone(number):
    """All places shifted by as much: the same scores. Some shifted: others."""
    model, states = a_model(), []
    packed = model.pack(some_ids(2, 12), None, None)
    model.encode(packed, states=states)
    ask = model.layers[number].attention.scores
    here = ask(states[number], packed).numpy()
    far = ask(states[number], packed._replace(positions=packed.positions + 5000)).numpy()
    np.testing.assert_allclose(far, here, rtol=0, atol=1e-10)
    apart = ask(states[number], packed._replace(positions=packed.positions * 2)).numpy()
    finite = np.isfinite(here)
    assert finite.all() == (number == 0) and abs(apart[finite] - here[finite]).max() > 0.01


def test_angles_are_computed_once_for_all_layers_and_exactly(monkeypatch):
    calls, turns = [], modernbert.turns
    monkeypatch.setattr(modernbert, "turns", lambda *args: calls.append(1) or turns(*args))
    a_model(dtype=np.float32)(some_ids(2, 10))
    assert len(calls) == 1
    # float32 of the true value, not a float32 angle: at place 8,000 that would be 2e-4 off
    b = padded.Packed(None, None, np.array([0, 1, 8000]), np.array([0, 3]))
    cos, sin = turns(SIZES["base"], b, np.float32)["l"]
    assert cos.dtype == np.float32 and cos.shape == (3, 32)
    for m in 0, 1, 31:
        angle = 8000 * 10_000.0 ** (-2 * m / 64)
        assert cos[2, m] == np.float32(math.cos(angle)) and sin[2, m] == np.float32(math.sin(angle))


# ---- training

def test_what_writes_into_the_sum_of_all_layers_starts_small():
    c = replace(TINY, layers=8, width=64, hidden=128)
    model = Model(c, Init(0, 0.02, np.float64), ())
    wide = np.std([layer.attention.qkv.weight.data for layer in model.layers])
    for part in "attention.out", "mlp.down":
        outer, inner = part.split(".")
        x = np.std([getattr(getattr(layer, outer), inner).weight.data for layer in model.layers])
        assert abs(x / wide * math.sqrt(2 * c.layers) - 1) < 0.03


@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "embedding_dropout",
                                   "mlp_dropout"])
def test_every_dropout_drops_where_training_switches_it_on(field):
    plain, dropped = a_model(), a_model(replace(TINY, **{field: 0.5}))
    ids = some_ids(2, 9)
    before = plain(ids).last_hidden_state.numpy()
    assert np.array_equal(before, dropped(ids).last_hidden_state.numpy())
    with philox.at(7, 1):
        assert np.array_equal(before, plain(ids).last_hidden_state.numpy())
        assert abs(before - dropped(ids).last_hidden_state.numpy()).max() > 0.01


# ---- heads

def test_a_sequence_is_read_from_its_first_token_or_from_all():
    lengths, ids = np.array([3, 8, 5]), some_ids(3, 8)
    mask = (np.arange(8) < lengths[:, None]).astype(int)
    for pooling in "cls", "mean":
        model = a_model(replace(TINY, pooling=pooling, labels=3), ("head", "sequence"))
        w = checkpoint.published_arrays(model)
        out = model(ids, mask)
        x = out.last_hidden_state.numpy()
        read = x[:, 0] if pooling == "cls" else x.sum(1) / lengths[:, None]
        y = normed(erf_gelu(read @ w["head.dense.weight"].T), w["head.norm.weight"])
        y = y @ w["classifier.weight"].T + w["classifier.bias"]
        np.testing.assert_allclose(out.logits.numpy(), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("task", ["sequence", "token", "question", "choice"])
def test_a_tasks_classifier_takes_the_decoders_place_and_keeps_the_layer_before(task, tmp_path):
    model = a_model()
    tbf.save(model, tmp_path)
    with pytest.warns(UserWarning, match=f"holds no {task} head; freshly"):
        tuned = tbf.load(tmp_path, head=task, dtype=np.float64)
    assert np.array_equal(tuned.head.dense.weight.data, model.head.dense.weight.data)
    assert tuned.mlm is None
    tbf.save(tuned, tmp_path / "tuned")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = tbf.load(tmp_path / "tuned", dtype=np.float64)
    ids = some_ids(2, 3, 9) if task == "choice" else some_ids(2, 9)
    name = "start_logits" if task == "question" else "logits"
    found, wanted = (getattr(m(ids), name).numpy() for m in (again, tuned))
    assert np.array_equal(found, wanted)


# ---- files

def test_the_bare_models_file_leaves_out_the_prefix_and_layer_0_has_no_norm(tmp_path):
    model = a_model(heads=())
    tbf.save(model, tmp_path)
    names = set(safetensors_header(tmp_path / "model.safetensors"))
    assert names == {
        "embeddings.tok_embeddings.weight", "embeddings.norm.weight", "final_norm.weight",
        *(f"layers.{i}.{part}.weight" for i in range(4)
          for part in ("attn_norm", "attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo")
          if i or part != "attn_norm")}
    again = tbf.load(tmp_path, dtype=np.float64)
    ids = some_ids(1, 9)
    assert np.array_equal(again(ids).last_hidden_state.numpy(),
                          model(ids).last_hidden_state.numpy())


def test_old_and_new_spellings_of_the_layers_are_both_written(tmp_path):
    tbf.save(a_model(), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    full, local = "full_attention", "sliding_attention"
    assert said["layer_types"] == [full, local, local, full]
    assert (said["global_attn_every_n_layers"], said["local_attention"]) == (3, 6)
    assert (said["global_rope_theta"], said["local_rope_theta"]) == (40.0, 15.0)
    assert said["rope_parameters"] == {full: dict(rope_type="default", rope_theta=40.0),
                                       local: dict(rope_type="default", rope_theta=15.0)}
    for pattern, layers in ("llg", [local, local, full, local]), ("gg", [full] * 4):
        tbf.save(a_model(replace(TINY, pattern=pattern)), tmp_path)
        said = json.loads((tmp_path / "config.json").read_text())
        assert said["layer_types"] == layers and "global_attn_every_n_layers" not in said
        assert tbf.load(tmp_path).config.pattern == dict(llg="llg", gg="g")[pattern]


@pytest.mark.parametrize("out, inside", [(0.1, 0.0), (0.2, 0.2), (0.0, 0.3)])
def test_both_dropouts_of_attention_come_back(out, inside, tmp_path):
    tbf.save(a_model(replace(TINY, dropout=out, attention_dropout=inside)), tmp_path)
    again = tbf.load(tmp_path).config
    assert (again.dropout, again.attention_dropout) == (out, inside)
    said = json.loads((tmp_path / "config.json").read_text())
    assert ("attn_out_dropout_prob" in said) == (out != inside)
    # where a file has but one number, it is both
    settings = dict(model_type="modernbert", attention_dropout=0.25)
    read = checkpoint.read_config(modernbert, settings, "config")
    assert (read.dropout, read.attention_dropout) == (0.25, 0.25)


FULL, LOCAL = "full_attention", "sliding_attention"


@pytest.mark.parametrize("settings, words", [
    (dict(attention_bias=True), "attention_bias is True; only False"),
    (dict(mlp_bias=True), "mlp_bias is True; only False"),
    (dict(norm_bias=True), "norm_bias is True; only False"),
    (dict(classifier_bias=True), "classifier_bias is True; only False"),
    (dict(decoder_bias=False), "decoder_bias is False; only True"),
    (dict(tie_word_embeddings=False), "tie_word_embeddings is False; only True"),
    (dict(classifier_activation="silu"), "classifier_activation is 'silu'; only 'gelu'"),
    (dict(hidden_activation="silu"), "hidden_activation: 'silu', .* gelu"),
    (dict(hidden_activation="relu"), "hidden_activation: 'relu', .* gelu"),
    (dict(classifier_pooling="max"), "classifier_pooling: 'max', .* cls or mean"),
    (dict(rope_scaling=dict(factor=2)), "rope_scaling is .*; only None"),
    (dict(rope_parameters={FULL: dict(rope_type="yarn", factor=4.0)}),
     "rope_parameters.full_attention is .*yarn.*; only rope_type 'default'"),
    (dict(rope_parameters=dict(rope_type="default")), "rope_parameters must hold objects"),
    (dict(rope_parameters=[1]), "rope_parameters must hold objects"),
    (dict(rope_parameters={LOCAL: 3}), "rope_parameters must hold objects"),
    (dict(rope_parameters={LOCAL: dict(rope_theta="x")}), "local_rope_theta is 'x'"),
    (dict(rope_parameters={LOCAL: dict(rope_theta=0)}), "local_rope_theta: 0"),
    (dict(rope_parameters={LOCAL: dict(rope_theta=5.0)}, local_rope_theta=6.0),
     "local_rope_theta is 6.0, but rope_parameters.sliding_attention.rope_theta is 5.0; remove"),
    (dict(layer_types=[FULL, LOCAL, FULL], num_hidden_layers=3, global_attn_every_n_layers=3),
     "global_attn_every_n_layers is 3, but layer_types says otherwise; remove"),
    (dict(layer_types=[FULL, LOCAL]), "layer_types must .* 22 layers"),
    (dict(layer_types=[FULL, "chunked"], num_hidden_layers=2), "layer_types must be a list"),
    (dict(layer_types=FULL), "layer_types must be a list"),
    (dict(layer_types=[[]], num_hidden_layers=1), "layer_types must be a list"),
    (dict(layer_types=[], num_hidden_layers=0), "num_hidden_layers: 0"),
    (dict(global_attn_every_n_layers=0), "global_attn_every_n_layers is 0"),
    (dict(global_attn_every_n_layers="3"), "global_attn_every_n_layers is '3'"),
    (dict(local_attention=0), "local_attention: 0"),
    (dict(global_rope_theta=None), "global_rope_theta is"),
    (dict(hidden_size=36, num_attention_heads=12), "hidden_size: 36 with 12 heads makes 3 .* even"),
    (dict(mlp_dropout=1.0), "mlp_dropout: 1.0")])
def test_what_this_model_cannot_do_is_told_by_name(settings, words):
    with pytest.raises(tbf.Error, match=f"^config: {words}"):
        checkpoint.read_config(modernbert, dict(model_type="modernbert", **settings), "config")


@pytest.mark.parametrize("changes, words", [
    (dict(pattern=""), "pattern: ''"), (dict(pattern="gx"), "pattern: 'gx', .* such as gll"),
    (dict(near=True), "near: .* leave it out"), (dict(types=2), "types: 2")])
def test_a_wrong_config_is_told_by_name(changes, words):
    with pytest.raises(tbf.Error, match=words):
        replace(TINY, **changes)


def test_a_text_too_long_is_told_with_the_limit():
    with pytest.raises(tbf.Error, match="8193 tokens, but .* 8192 positions.*max_length=8192"):
        Model(replace(SIZES["smoke"], positions=8192), Init(), ())(np.zeros((1, 8193), int))


def test_a_file_with_a_norm_in_layer_0_is_not_ours(tmp_path):
    model = a_model(heads=())
    tbf.save(model, tmp_path)
    arrays = dict(checkpoint.published_arrays(model))
    arrays["layers.0.attn_norm.weight"] = np.ones(16)
    checkpoint.write_safetensors(tmp_path / "model.safetensors", arrays)
    with pytest.raises(tbf.Error, match="also holds .*layers.0.attn_norm.weight"):
        tbf.load(tmp_path)


def test_every_class_has_the_layer_before_its_classifier_but_the_bare_one():
    has = dict(HF_CLASSES)
    assert has.pop("ModernBertModel") == () and {heads[0] for heads in has.values()} == {"head"}


# ---- long texts

@pytest.mark.parametrize("pattern, most", [("l", 16), ("gll", 32)])
def test_8192_tokens_need_no_square_of_memory(pattern, most):
    """All scores of a layer would be 512 MiB here, and a mask of all pairs 64."""
    c = Config(vocab=64, layers=3, heads=2, width=32, hidden=32, seq=64, pattern=pattern)
    model, ids = a_model(c, (), dtype=np.float32), some_ids(1, 8192)
    tracemalloc.start()
    try:
        with tbf.no_grad():
            x = model(ids).last_hidden_state.numpy()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.isfinite(x).all() and 2 ** 20 < peak < most * 2 ** 20
