"""What models/deberta.py and models/deberta_v2.py promise beyond transformers' numbers: scores term
by term, the enhanced mask decoder and v3's head against references written out in plain loops, the
published sizes, files as the authors publish them, and plain words for what they cannot do."""
import json
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family import checkpoint, files
from tinybert_family.engine import philox
from tinybert_family.engine.nn import Init
from tinybert_family.models import deberta, deberta_v2
from tinybert_family.models.parts import disentangled

SMALL = dict(vocab=40, layers=3, heads=3, width=12, hidden=20, positions=16, seq=16)
V1 = deberta.Config(**SMALL)
V2 = deberta_v2.Config(**SMALL, buckets=6)
WIDER = replace(V2, conv=3, share=False, norm_relative=False, conv_activation="tanh")
CONFIGS = dict(v1=V1, v2=V2, conv=WIDER)
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 40, (3, 9))
MASK = (np.arange(9) < np.array([[9], [4], [7]])).astype(int)


def made(c, heads=("mlm", "emd"), seed=0):
    """A model of this config in float64; all of its numbers are random, biases and gains too."""
    module = deberta_v2 if isinstance(c, deberta_v2.Config) else deberta
    model, rng = module.Model(c, Init(seed, 0.5, np.float64), heads), np.random.default_rng(seed)
    for t in model.named().values():
        if t.ndim == 1:
            t.data += 0.3 * rng.standard_normal(t.shape)
    return model


def packed(model, ids=IDS, mask=MASK):
    return model.pack(ids, mask, None)


# ---- references, from the arrays by their published names

def normed(x, w, name, eps=1e-7):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * w[name + ".weight"] + w[name + ".bias"]


def dense(x, w, name):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)


def gelu(x):
    from math import erf
    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def row_of(c, distance):
    """Which row of the table a distance has."""
    k = c.span
    if isinstance(c, deberta_v2.Config):
        mid, sign = c.buckets // 2, 1 if distance > 0 else -1
        if abs(distance) > mid:
            share = np.log(abs(distance) / mid) / np.log((c.positions - 1) / mid)
            distance = sign * int(mid + np.ceil(share * (mid - 1)))
    return min(max(distance + k, 0), 2 * k - 1)


def matrices(w, c, i):
    """Query, key and value of layer i, and how keys and queries of distances are made."""
    at = f"deberta.encoder.layer.{i}.attention.self."
    if isinstance(c, deberta_v2.Config):
        q, k, v = ((lambda x, n=n: dense(x, w, f"{at}{n}_proj")) for n in ("query", "key", "value"))
        if c.share:
            return q, k, v, k, q
        return q, k, v, *(lambda x, n=n: dense(x, w, f"{at}pos_{n}_proj") for n in ("key", "query"))
    # [A, 3, D, H]: of every head its queries, keys and values
    parts = w[at + "in_proj.weight"].reshape(c.heads, 3, c.width // c.heads, c.width)
    q, k, v = (parts[:, n].reshape(c.width, c.width) for n in range(3))
    return (lambda x: x @ q.T + w[at + "q_bias"], lambda x: x @ k.T,
            lambda x: x @ v.T + w[at + "v_bias"], lambda x: dense(x, w, at + "pos_proj"),
            lambda x: dense(x, w, at + "pos_q_proj"))


def reference_scores(w, c, i, x, asking):
    """A_ij, number by number.  [A, S, S]"""
    q_of, k_of, _, key_at, query_at = matrices(w, c, i)
    table = w["deberta.encoder.rel_embeddings.weight"]
    if isinstance(c, deberta_v2.Config) and c.norm_relative:
        table = normed(table, w, "deberta.encoder.LayerNorm")
    q, k, K, Q = q_of(asking), k_of(x), key_at(table), query_at(table)
    size = c.width // c.heads
    scores = np.zeros((c.heads, len(x), len(x)))
    for a in range(c.heads):
        for m in range(len(x)):
            for n in range(len(x)):
                r = row_of(c, m - n)
                for d in range(a * size, (a + 1) * size):
                    scores[a, m, n] += q[m, d] * k[n, d] + q[m, d] * K[r, d] + Q[r, d] * k[n, d]
    return scores / np.sqrt(3 * size)


def reference_layer(w, c, i, x, asking):
    """One layer, of one sequence: those that ask may be others than those that answer."""
    at, size = f"deberta.encoder.layer.{i}.", c.width // c.heads
    e = np.exp(reference_scores(w, c, i, x, asking))
    p, v = e / e.sum(-1, keepdims=True), matrices(w, c, i)[2](x)
    heads = [p[a] @ v[:, a * size:(a + 1) * size] for a in range(c.heads)]
    y = dense(np.concatenate(heads, 1), w, at + "attention.output.dense")
    y = normed(y + asking, w, at + "attention.output.LayerNorm")
    h = dense(gelu(dense(y, w, at + "intermediate.dense")), w, at + "output.dense")
    return normed(h + y, w, at + "output.LayerNorm")


def reference_states(w, c, ids):
    """What comes out of the embeddings and of every layer."""
    first = w["deberta.embeddings.word_embeddings.weight"][ids]
    states = [normed(first, w, "deberta.embeddings.LayerNorm")]
    for i in range(c.layers):
        y = reference_layer(w, c, i, states[-1], states[-1])
        if i == 0 and getattr(c, "conv", 0):
            kernel, z = w["deberta.encoder.conv.conv.weight"], np.zeros_like(y)
            for t in range(len(ids)):
                for o in range(c.conv):
                    if 0 <= t + o - c.conv // 2 < len(ids):
                        z[t] += kernel[:, :, o] @ states[0][t + o - c.conv // 2]
            z = np.tanh(z + w["deberta.encoder.conv.conv.bias"])
            y = normed(y + z, w, "deberta.encoder.conv.LayerNorm")
        states.append(y)
    return states


def equal(x, y, bar=1e-11):
    np.testing.assert_allclose(x, y, rtol=0, atol=bar * abs(y).max())


# ---- the network

@pytest.mark.parametrize("which", CONFIGS)
def test_scores_are_the_sum_of_three_products(which):
    c = CONFIGS[which]
    model = made(c)
    x = RNG.standard_normal((6, c.width))
    b = packed(model, IDS[:1, :6], None)
    w = checkpoint.published_arrays(model)
    found = model.layers[1].attention.scores(tbf.Tensor(x), b).numpy()
    equal(found.swapaxes(0, 1), reference_scores(w, c, 1, x, x))


@pytest.mark.parametrize("which", CONFIGS)
def test_every_layer_is_the_reference(which):
    c = CONFIGS[which]
    model = made(c)
    w, out = checkpoint.published_arrays(model), model(IDS, MASK).last_hidden_state.numpy()
    for row in range(3):
        ids = IDS[row, MASK[row] > 0]
        equal(out[row, :len(ids)], reference_states(w, c, ids)[-1])


@pytest.mark.parametrize("which", CONFIGS)
def test_a_text_means_the_same_wherever_it_stands(which):
    """No number tells where a sequence begins: padding on the left or on the right, the states are
    equal to the bit. Only the mask decoder knows."""
    model = made(CONFIGS[which])
    states, logits = [], []
    for here in slice(0, 7), slice(5, 12):
        ids, mask = np.zeros((2, 12), int), np.zeros((2, 12), int)
        ids[:, here], mask[:, here] = IDS[:2, :7], 1
        out = model(ids, mask)
        states.append(out.last_hidden_state.numpy()[:, here])
        logits.append(out.logits.numpy()[:, here])
    assert np.array_equal(*states)
    assert abs(logits[0] - logits[1]).max() > 0.1


def test_buckets_are_those_of_the_released_code():
    known = {0: 0, 1: 1, 127: 127, 128: 128, 129: 129, 131: 131, 132: 131, 200: 169, 255: 192,
             256: 192, 300: 207, 400: 233, 500: 254, 510: 255, 511: 255}
    far = np.array(list(known))
    assert disentangled.bucket(far, 256, 512).tolist() == list(known.values())
    assert disentangled.bucket(-far, 256, 512).tolist() == [-x for x in known.values()]
    everything = disentangled.bucket(np.arange(-511, 512), 256, 512)
    assert (np.diff(everything) >= 0).all() and set(everything) == set(range(-255, 256))


def test_no_more_of_the_table_is_used_than_the_longest_sequence_needs():
    model = made(V1)
    rows, which = model.relative(packed(model, IDS[:, :5], None))
    assert rows.shape == (9, 12) and which.tolist() == list(range(9))
    rows, which = made(V2).relative(packed(model))
    # up to 3 each has its own; 2 ln(r / 3) / ln(15 / 3) is up to 1 for 4 to 6, up to 2 for 7 and 8
    assert rows.shape == (11, 12)
    assert which.tolist() == [0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 10, 10]
    model(IDS[:, :5]).last_hidden_state.sum().backward()
    used = np.flatnonzero(abs(model.relative.table.grad).sum(1))
    assert used.min() == 16 - 4 and used.max() == 16 + 4


def test_distances_beyond_the_table_are_alike():
    c = replace(V1, distances=2)
    rows, which = made(c).relative(packed(made(c)))
    assert rows.shape == (4, 12) and which.tolist() == [0] * 7 + [1, 2] + [3] * 8


@pytest.mark.parametrize("which", CONFIGS)
def test_distances_are_dropped_out_anew_in_every_layer(which):
    """As the released code does; the other dropouts are BERT's."""
    c = replace(CONFIGS[which], dropout=0.5, attention_dropout=0.0)
    model = made(c)
    b = packed(model)
    with philox.at(0, 1):
        tables = [model.layers[i].attention.distances(b)[0][0].numpy() for i in (0, 0)]
    assert abs(tables[0] - tables[1]).max() > 0.1
    with philox.at(0, 1):
        again = model.layers[0].attention.distances(b)[0][0].numpy()
    assert np.array_equal(again, tables[0])


# ---- the enhanced mask decoder

@pytest.mark.parametrize("which", CONFIGS)
def test_the_mask_decoder_is_the_reference(which):
    c = CONFIGS[which]
    model = made(c)
    w, out = checkpoint.published_arrays(model), model(IDS, MASK)
    for row in range(3):
        ids = IDS[row, MASK[row] > 0]
        h = reference_states(w, c, ids)[-2]
        asking = h + w["deberta.embeddings.position_embeddings.weight"][:len(ids)]
        for _ in range(2):
            asking = reference_layer(w, c, c.layers - 1, h, asking)
        y = gelu(dense(asking, w, "lm_predictions.lm_head.dense"))
        y = normed(y, w, "lm_predictions.lm_head.LayerNorm")
        y = y @ w["deberta.embeddings.word_embeddings.weight"].T + w["lm_predictions.lm_head.bias"]
        equal(out.logits.numpy()[row, :len(ids)], y)
    assert np.array_equal(out.logits.numpy(), out.prediction_logits.numpy())


@pytest.mark.parametrize("which", CONFIGS)
def test_without_positions_its_first_pass_is_the_last_layer(which):
    """Those that ask are then those that answer."""
    model = made(CONFIGS[which])
    model.emd.position.data[...] = 0
    b, states, last = packed(model), [], model.layers[-1]
    x = model.encode(b, states=states).numpy()
    kv = last.attention.qkv.rows(states[-1], 12, None)
    first = last.mlp(last.attention.again(kv, states[-1], b, None))
    equal(first.numpy(), x, 1e-14)
    second = last.mlp(last.attention.again(kv, first, b, None))
    equal(model.decode(b).numpy(), second.numpy(), 1e-14)
    assert abs(second.numpy() - x).max() > 0.1


@pytest.mark.parametrize("which", CONFIGS)
def test_only_the_hidden_words_need_to_ask(which):
    model = made(CONFIGS[which])
    b, rows = packed(model), np.array([0, 3, 8, 9, 15, 19])
    equal(model.decode(b, rows).numpy(), model.decode(b).numpy()[rows])
    plain = made(CONFIGS[which], ("mlm",))
    equal(plain.decode(b, rows).numpy(), plain.encode(b).numpy()[rows])


@pytest.mark.parametrize("which", CONFIGS)
def test_the_mask_decoders_gradient_is_its_slope(which):
    """The loss of some hidden words along one direction through all parameters."""
    model = made(CONFIGS[which])
    b, rows, labels = packed(model), np.array([1, 4, 10, 17]), np.array([3, 0, 39, 7])

    def loss():
        return model.mlm.loss(model.decode(b, rows), labels, np.full(4, 0.25))

    loss().backward()
    tensors = model.named()
    rng = np.random.default_rng(2)
    way = {name: rng.standard_normal(t.shape) for name, t in tensors.items()}
    slope = sum((way[name] * t.grad).sum() for name, t in tensors.items())
    values, step = [], 1e-5
    for sign in 1, -2, 1:                               # there, to the other side, and back
        for name, t in tensors.items():
            t.data += sign * step * way[name]
        values.append(loss().item())
    assert abs((values[0] - values[1]) / (2 * step) - slope) < 1e-6 * abs(slope)


def test_it_trains_with_dropout_and_layers_computed_again():
    """The same masks, so the same gradients to the bit."""
    found = []
    for again in False, True:
        model = made(replace(WIDER, dropout=0.2, attention_dropout=0.1, recompute=again))
        with philox.at(3, 1):
            x = model.decode(packed(model), np.array([2, 5, 11]))
            model.mlm.loss(x, np.array([1, 2, 3]), np.full(3, 1 / 3)).backward()
        found.append({name: t.grad for name, t in model.named().items()})
    assert all(np.array_equal(x, found[1][name]) for name, x in found[0].items())
    assert all(x.any() for x in found[0].values())


def test_it_is_computed_when_it_is_looked_at():
    model = made(V1)
    with tbf.no_grad():
        out = model(IDS, MASK)
        assert set(vars(out)).isdisjoint({"x", "last_hidden_state"}) and not out.known
        plain = made(V1, ())(IDS, MASK)
        assert out.last_hidden_state.node is None
        assert np.array_equal(out.last_hidden_state.numpy(), plain.last_hidden_state.numpy())
        assert np.array_equal(out.logits.numpy(), model(IDS, MASK).logits.numpy())


def test_it_counts_positions_where_the_network_does_not():
    model, ids = made(V1), np.zeros((1, 17), int)
    assert model(ids).last_hidden_state.shape == (1, 17, 12)
    with pytest.raises(tbf.Error, match="input_ids: 17 tokens, but the mask decoder has 16"):
        model(ids).logits
    with pytest.raises(tbf.Error, match="at least 2"):
        made(replace(V1, layers=1))


def test_positions_that_are_in_the_words_leave_nothing_to_decode():
    model = made(replace(V1, position_biased=True))
    assert not model.decoding
    b = packed(model)
    equal(model(IDS, MASK).logits.numpy()[MASK > 0][:9], model.mlm(model.encode(b)).numpy()[:9])
    with pytest.raises(tbf.Error, match="17 tokens, but this model was built for 16 positions"):
        model(np.zeros((1, 17), int))


# ---- the head of v3

def test_the_head_for_replaced_tokens_is_the_reference():
    model = made(V2, ("rtd",))
    w, logits = checkpoint.published_arrays(model), model(IDS, MASK).logits.numpy()
    assert logits.shape == (3, 9) and not logits[MASK == 0].any()
    for row in range(3):
        x = reference_states(w, V2, IDS[row, MASK[row] > 0])[-1]
        y = normed(x + x[0], w, "mask_predictions.LayerNorm")
        y = gelu(dense(y, w, "mask_predictions.dense"))
        equal(logits[row, :len(x)], dense(y, w, "mask_predictions.classifier")[:, 0])


def test_its_loss_is_the_mean_surprise_about_every_token():
    model = made(V2, ("rtd",))
    b, labels = packed(model), RNG.integers(0, 2, 20)
    x = model.encode(b)
    chosen = model.rtd.select(x, b)
    z = model.rtd(chosen).numpy()
    p = 1 / (1 + np.exp(-z))
    expected = -np.log(np.where(labels, p, 1 - p)).mean()
    loss = model.rtd.loss(chosen, labels, np.full(20, 1 / 20))
    equal(loss.numpy(), expected)
    loss.backward()
    assert abs(model.embeddings.word.grad).max() > 0


# ---- sizes

def size(c, heads):
    module = deberta_v2 if isinstance(c, deberta_v2.Config) else deberta
    return sum(t.size for t in module.Model(c, Init(), heads).named().values())


# the bare model, with the masked-word head, with the mask decoder too or (v3) its own head alone
PUBLISHED = {
    ("v1", "base"): (138_601_728, 139_244_121, 139_637_337),
    ("v1", "large"): (405_163_008, 406_264_921, 406_789_209),
    ("v1", "xlarge"): (757_804_032, 758_905_945, 759_430_233),
    ("v2", "xlarge"): (884_593_152, 887_085_156, 887_871_588),
    ("v2", "xxlarge"): (1_564_549_632, 1_567_041_636, 1_567_828_068),
    ("v3", "xsmall"): (70_682_112, 70_958_820, 70_831_105),
    ("v3", "small"): (141_304_320, 142_024_548, 141_897_217),
    ("v3", "base"): (183_831_552, 184_551_780, 184_424_449),
    ("v3", "large"): (434_012_160, 435_191_908, 435_064_833),
    ("v3", "mdeberta"): (278_218_752, 279_061_880, 278_811_649),
}


@pytest.mark.parametrize("kind, name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(kind, name):
    c = (deberta if kind == "v1" else deberta_v2).SIZES[name]
    third = ("rtd",) if kind == "v3" else ("mlm", "emd")
    assert tuple(size(c, heads) for heads in ((), ("mlm",), third)) == PUBLISHED[kind, name]


@pytest.mark.parametrize("name, layers, count", [
    ("xsmall", 6, 60_035_328), ("small", 3, 120_040_704), ("base", 6, 141_304_320),
    ("large", 12, 282_857_472)])
def test_the_generators_of_v3_are_half_as_deep(name, layers, count):
    assert size(replace(deberta_v2.SIZES[name], layers=layers), ()) == count


# ---- files

def published_folder(folder, model, more=(), **settings):
    """As the authors publish: no class, no word about the head, all heads in one file."""
    arrays = checkpoint.published_arrays(model) | dict(more)
    files.write_safetensors(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(dict(
        vocab_size=40, num_hidden_layers=3, num_attention_heads=3, hidden_size=12,
        intermediate_size=20, max_position_embeddings=16, relative_attention=True,
        max_relative_positions=-1, position_biased_input=False, layer_norm_eps=1e-7,
        type_vocab_size=0, **settings)))
    return folder


def test_the_authors_files_open_with_their_mask_decoder(tmp_path):
    model = made(V1)
    published_folder(tmp_path, model, model_type="deberta", pos_att_type="c2p|p2c")
    again = tbf.load(tmp_path, np.float64)
    assert again.emd is not None and not again.config.legacy
    assert np.array_equal(again(IDS, MASK).logits.numpy(), model(IDS, MASK).logits.numpy())


def test_the_authors_files_of_v3_open_with_all_their_heads(tmp_path):
    """Also where they hold what the discriminator learnt beside the generator's tables."""
    model = made(V2, ("mlm", "emd", "rtd"))
    more = {f"deberta.embeddings.{kind}_embeddings._weight": np.ones((n, 12))
            for kind, n in (("word", 40), ("position", 16))}
    published_folder(tmp_path, model, more, model_type="deberta-v2", pos_att_type="p2c|c2p",
                     position_buckets=6, norm_rel_ebd="layer_norm", share_att_key=True)
    again = tbf.load(tmp_path, np.float64)
    for name, x in model.named_parameters():
        assert np.array_equal(dict(again.named_parameters())[name].data, x.data), name
    for head in "mlm", "rtd":
        x, y = (m(IDS, MASK)._of(head).numpy() for m in (again, model))
        assert np.array_equal(x, y)
    with pytest.warns(UserWarning, match="no pooler and no sequence head"):
        task = tbf.load(tmp_path, np.float64, head="sequence", labels=5)
    assert task(IDS, MASK).logits.shape == (3, 5) and task.emd is None


# ---- what they cannot do

def test_holes_are_refused_since_distances_count():
    with pytest.raises(tbf.Error, match="attention_mask: row 1 leaves out tokens between others"):
        made(V1)([[1, 2, 3], [4, 5, 6]], [[1, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize("settings, message", [
    (dict(talking_head=True), "talking_head is True; only False is supported"),
    (dict(tie_word_embeddings=False), "tie_word_embeddings is False; only True"),
    (dict(pooler_hidden_act="tanh"), "pooler_hidden_act is 'tanh'; only 'gelu'"),
    (dict(embedding_size=128), "embedding_size is 128; only 768 is supported"),
    (dict(pooler_hidden_size=12), "pooler_hidden_size is 12; only 768"),
    (dict(pos_att_type=["c2p", "p2p"]), "pos_att_type: 'c2p|p2p', but these are known"),
    (dict(pos_att_type=3), "pos_att_type is 3, but a word is wanted"),
    (dict(relative_attention="yes"), "relative_attention is 'yes', but true or false is wanted"),
    (dict(hidden_act="swish"), "hidden_act: 'swish', but this model knows"),
])
def test_what_config_json_asks_for_in_vain_is_named(settings, message):
    with pytest.raises(tbf.Error) as caught:
        tbf.count_parameters(dict(settings, model_type="deberta"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("settings, message", [
    (dict(conv_groups=2), "conv_groups is 2; only 1 is supported"),
    (dict(conv_kernel_size=4), "conv_kernel_size: 4, but it must be odd"),
    (dict(conv_act="swish"), "conv_act: 'swish', but this model knows gelu, tanh"),
    (dict(norm_rel_ebd="layer_norm"), "norm_rel_ebd: there are no distances"),
    (dict(norm_rel_ebd="batch_norm"), "norm_rel_ebd is 'batch_norm'; only none and layer_norm"),
    (dict(attention_head_size=32), "attention_head_size is 32; only 64 is supported"),
    (dict(num_attention_heads="3"), "num_attention_heads is '3', but a number is wanted"),
])
def test_and_of_v2(settings, message):
    with pytest.raises(tbf.Error) as caught:
        tbf.count_parameters(dict(settings, model_type="deberta-v2"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_that_distances_make_needless_is_refused():
    with pytest.raises(tbf.Error, match="near: "):
        deberta.Config(near=True)


def test_a_distance_without_a_bucket_is_told():
    """transformers computes on, with buckets of no meaning."""
    c = replace(deberta_v2.SIZES["smoke"], buckets=8, distances=4)
    model = deberta_v2.Model(c, Init(0, 0.3))
    assert np.isfinite(model([[1, 2, 3, 4, 5]]).last_hidden_state.numpy()).all()
    with pytest.raises(tbf.Error, match="6 tokens, but with position_buckets 8 and .*ons 4 .*above 4"):
        model([[1, 2, 3, 4, 5, 6]])


def test_positions_in_the_embeddings_are_no_decoder(tmp_path):
    """A bare model's file has no prefix, though both tables of positions have one name."""
    c = replace(deberta.SIZES["smoke"], position_biased=True)
    tbf.save(deberta.Model(c, Init(0), ()), tmp_path)
    names = [name for name, _ in tbf.load(tmp_path).named_parameters()]
    assert "embeddings.position_embeddings.weight" in names
