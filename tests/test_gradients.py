"""Every op of the engine: its gradient against differences, its value against plain formulas.

One row of CASES per op draws its inputs; an op without a row fails the suite. A gradient is tried
along one random direction d through all inputs at once: with f(h) = <dy, op(inputs + h d)>, the
slope f'(0) must be <gradients, d>.

The slope comes from the four-point central difference, (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h.
Its own error is h^4 f'''''/30 from the series cut short and 1.5 eps f / h from rounding; at
h = 1e-3 the first is 3e-14 of a fifth derivative, the second 3e-13 of the sum of all terms, so that
1e-9 of the terms leaves room for fifth derivatives of ten thousands, and is still a millionth of
what a wrong factor or a lost term would show."""
import contextlib
import math
from functools import partial
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinybert_family.engine import attention as attention_file
from tinybert_family.engine import backend, distances, fused, ops, philox, tiles
from tinybert_family.engine.autograd import OPS, Part, Tensor, no_grad, parameter
from tinybert_family.models.parts import distil  # noqa: F401  it has an op of its own

STEP, TOLERANCE = 1e-3, 1e-9
KEY = philox.Key(seed=3, step=5, part=1, site=7)
many = settings(max_examples=100, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))


def strided(x):
    wide = np.full([2 * n for n in x.shape], np.nan, x.dtype)
    view = wide[(..., *[slice(None, None, 2)] * x.ndim)]
    view[...] = x
    return view


def backwards(x):
    turn = (..., *[slice(None, None, -1)] * x.ndim)
    return x[turn].copy()[turn]


def frozen(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def by_columns(x):
    return x.copy(order="F")


LAYOUTS = [np.copy, by_columns, strided, backwards, frozen]


class Draw:
    """Hypothesis chooses shapes, layouts and a seed; the numbers come from the seed."""

    def __init__(self, data):
        self.draw = data.draw
        self.rng = np.random.default_rng(self.int(0, 2**32))

    def int(self, lo, hi):
        return self.draw(st.integers(lo, hi))

    def of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def shape(self, least=0, most=3, low=0):
        return tuple(self.draw(st.lists(st.integers(low, 4), min_size=least, max_size=most)))

    def array(self, shape=None, away=None):
        """Normal numbers; with `away`, so far from zero, and positive if it is negative."""
        x = self.rng.standard_normal(self.shape() if shape is None else shape)
        if away is not None:
            x = np.sign(x) * (abs(x) + abs(away)) if away > 0 else abs(x) - away
        return self.of(*LAYOUTS)(np.asarray(x))

    def broadcasting(self, shape):
        """A shape that NumPy stretches to this one."""
        dropped = self.int(0, len(shape))
        return tuple(1 if self.of(0, 0, 1) else n for n in shape[dropped:])

    def pair(self, away=None):
        shape = self.shape()
        a, b = self.array(shape), self.array(self.broadcasting(shape), away)
        return [b, a] if away is None and self.of(0, 1) else [a, b]

    def some(self, x):
        return x if self.of(0, 1) else None

    def axis(self, shape):
        return self.int(-len(shape), len(shape) - 1)

    def ids(self, shape, n):
        return self.rng.integers(0, n, shape)

    def dropout(self):
        return self.of({}, dict(p=0.1, key=KEY), dict(p=0.5, key=KEY))


# ---- one row per op: the arrays it is given, and its static arguments

def matmul(d):
    lead = d.shape(0, 2)
    n, k, m = d.int(0, 4), d.int(0, 4), d.int(0, 4)
    return [d.array((*lead, n, k)), d.array((*d.broadcasting(lead), k, m))], {}


def reduced(d, low):
    shape = d.shape(low=low)
    axes = d.draw(st.sets(st.integers(0, len(shape) - 1)) if shape else st.just(()))
    axis = d.of(None, tuple(axes) or None, d.axis(shape) if shape else None)
    return [d.array(shape)], dict(axis=axis, keepdims=d.of(True, False))


def along(d):
    shape = d.shape(1, low=1)
    return [d.array(shape)], dict(axis=d.axis(shape))


def reshape(d):
    shape = d.shape(low=1)
    return [d.array(shape)], dict(shape=d.of((-1,), shape[::-1], (1, *shape)))


def transpose(d):
    shape = d.shape()
    axes = tuple(d.rng.permutation(len(shape)).tolist())
    return [d.array(shape)], dict(axes=d.of(None, axes, tuple(a - len(shape) for a in axes)))


def concat(d):
    shape = d.shape(1)
    axis = d.axis(shape)
    sizes = d.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    shapes = [tuple(n if i == axis % len(shape) else m for i, m in enumerate(shape)) for n in sizes]
    return [d.array(s) for s in shapes], dict(axis=axis)


def where(d):
    shape = d.shape()
    return [d.array(shape), d.array(shape)], dict(mask=d.rng.random(shape) < 0.5)


def part(d):
    shape = d.shape(1)
    lo = d.int(0, shape[0])
    return [d.array(shape)], dict(lo=lo, hi=d.of(None, d.int(lo, shape[0])))


def take(d):
    shape = d.shape(1, low=1)
    return [d.array(shape)], dict(index=d.ids(d.shape(1, 2), shape[0]))


def put(d):
    rows = d.int(1, 6)
    index = d.rng.permutation(rows)[:d.int(0, rows)]
    return [d.array((len(index), *d.shape(0, 2)))], dict(index=index, rows=rows)


def linear(d):
    t, n, m = d.int(0, 5), d.int(1, 4), d.int(1, 4)
    return [d.array((t, n)), d.array((m, n)), d.some(d.array((m,)))], {}


def gelu(d):
    shape = d.shape(2, 2)
    x, bias = d.of([d.array(d.shape(1)), None], [d.array(shape), d.array(shape[1:])])
    return [x * d.of(1, 3), bias], dict(form=d.of("erf", "tanh"))


def geglu(d):
    t, f = d.int(0, 5), d.int(1, 4)
    return [d.array((t, 2 * f)) * d.of(1, 3)], dict(form=d.of("erf", "tanh"))


def relu(d):
    """Off the kink, where there is no slope: x + bias is at least 0.1 away from zero."""
    shape = d.shape(2, 2)
    y, bias = d.array(shape, away=0.1), d.some(d.array(shape[1:]))
    return [y if bias is None else y - bias, bias], {}


def affine(d):
    t, h = d.int(0, 6), d.int(1, 5)
    gain, shift, bias = (d.array((h,)) for _ in range(3))
    return [d.array((t, h)), gain, shift, d.some(d.array((t, h))), d.some(bias)], {}


def rope(d):
    t, heads, half = d.int(0, 5), d.int(1, 3), d.int(1, 3)
    h, blocks = 2 * half * heads, d.int(1, 3)
    angle = d.rng.standard_normal((t, half))
    columns = d.of(None, *(h * n for n in range(1, blocks + 1)))
    static = dict(cos=np.cos(angle), sin=np.sin(angle), heads=heads, columns=columns)
    return [d.array((t, blocks * h))], static


def norm(d):
    t, h = d.int(0, 6), d.int(1, 5)
    # No row is nearly flat, whatever is dropped: there the curve is steeper than the step is small.
    ramp = 10 * np.arange(1, h + 1)
    x, residual = d.array((t, h)) + ramp, d.some(d.array((t, h)) + 12 * ramp)
    bias = d.some(d.array((h,)))
    static = dict(eps=d.of(1e-12, 1e-5, 0.1), **d.dropout())
    return [x, d.array((h,)), d.some(d.array((h,))), residual, bias], static


def dropout(d):
    return [d.array(d.shape(2, 2))], dict(p=d.of(0.1, 0.5, 0.9), key=KEY)


def embed(d):
    t, h = d.int(0, 6), d.int(1, 3)
    sizes = d.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    return [d.array((n, h)) for n in sizes], dict(ids=[d.ids(t, n) for n in sizes])


def scores(d):
    heads, size = d.int(1, 3), d.int(1, 3)
    lengths = d.draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 3, 5, 40]), max_size=5))
    cuts = np.cumsum([0, *lengths])
    t, h = cuts[-1], heads * size
    rows = d.some(np.flatnonzero(d.rng.random(t) < 0.4))
    q = None if rows is None else d.array((len(rows), h))
    kind = d.of(None, "keys", "queries", "both")
    table_size = d.int(1, 9)
    tables = [d.array((table_size, h)) if kind in (name, "both") else None
              for name in ("keys", "queries")]
    longest = max(lengths, default=0) + d.int(1, 3)
    buckets = np.sort(d.ids(2 * longest - 1, table_size))       # neighbours share a row
    static = dict(cuts=cuts, heads=heads, rows=rows, buckets=buckets if kind else None)
    static.update(reach=d.of(None, 0, 1, 3, 36), scale=d.of(None, 0.7))
    return [d.array((t, 3 * h if q is None else 2 * h)), q, *tables], static


def attention(d):
    inputs, static = scores(d)
    return inputs, dict(static, **d.dropout())


def filled_scores(d):
    """With zeros where nobody looks: minus infinity has no slope."""
    inputs, static = scores(d)
    return inputs, dict(static, fill=0)


def vocabulary_loss(d):
    k, h, v = d.int(0, 4), d.int(1, 3), d.int(1, 6)
    static = dict(labels=d.ids(k, v), weights=d.rng.random(k))
    return [d.array((k, h)), d.array((v, h)), d.array((v,))], static


def cross_entropy(d):
    n, c = d.int(0, 4), d.int(1, 5)
    return [d.array((n, c))], dict(labels=d.ids(n, c), weights=d.rng.random(n))


def binary_loss(d):
    shape = d.shape()
    return [d.array(shape)], dict(labels=d.rng.random(shape), weights=d.rng.random(shape))


def soft_loss(d):
    k, h, v, other = d.int(0, 4), d.int(1, 3), d.int(1, 6), d.int(1, 3)
    teacher = [d.rng.standard_normal(s) for s in ((k, other), (v, other), (v,))]
    static = dict(teacher=teacher, weights=d.rng.random(k), heat=d.of(1.0, 2.0),
                  gold=d.of(0.0, 0.4), labels=d.of(None, d.ids(k, v)))
    if static["labels"] is None:
        static["gold"] = 0.0
    return [d.array((k, h)), d.array((v, h)), d.array((v,))], static


CASES = dict(
    soft_loss=soft_loss,
    add=lambda d: (d.pair(), {}), sub=lambda d: (d.pair(), {}), mul=lambda d: (d.pair(), {}),
    div=lambda d: (d.pair(away=1), {}), neg=lambda d: ([d.array()], {}), matmul=matmul,
    exp=lambda d: ([d.array()], {}), log=lambda d: ([d.array(away=-1)], {}),
    sqrt=lambda d: ([d.array(away=-1)], {}), square=lambda d: ([d.array()], {}),
    tanh=lambda d: ([d.array()], {}), sigmoid=lambda d: ([d.array()], {}),
    sum=partial(reduced, low=0), mean=partial(reduced, low=1), softmax=along, log_softmax=along,
    reshape=reshape, transpose=transpose, concat=concat, where=where, part=part, take=take, put=put,
    linear=linear, gelu=gelu, geglu=geglu, relu=relu, norm=norm, affine=affine, dropout=dropout,
    rope=rope, embed=embed, attention=attention, scores=filled_scores,
    vocabulary_loss=vocabulary_loss, cross_entropy=cross_entropy, binary_loss=binary_loss)


def test_every_op_has_a_row_of_inputs():
    assert set(CASES) == set(OPS)


def dense(g):
    """A gradient as a whole array."""
    if type(g) is not Part:
        return g
    if not isinstance(g.index, slice):
        assert len(np.unique(g.index)) == len(g.index), "a Part's rows must be distinct"
    whole = np.zeros(g.shape, g.rows.dtype)
    whole[g.index] += g.rows
    return whole


def forward(name, inputs, static):
    return OPS[name].text.forward(np, *inputs, **static)


def slope(f, h=STEP):
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def small_blocks():
    """Blocks of a row or two, so that small arrays have several."""
    return mock.patch.object(fused, "row_blocks", partial(backend.row_blocks, size=64))


@contextlib.contextmanager
def small_tiles():
    """Small sequences are treated as long ones are: cut into queries, rows computed again, and
    tables met by a few tokens at a time."""
    with mock.patch.object(tiles, "LARGEST", 40), mock.patch.object(distances, "BLOCK", 2), \
            mock.patch.object(attention_file, "KEPT", 2):
        yield


LONG_AND_SHORT = pytest.mark.parametrize("pieces", [contextlib.nullcontext, small_tiles])


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@many
def test_the_gradient_is_the_slope_and_nothing_is_written_into(name, data):
    gradient_is_the_slope(name, data)


@pytest.mark.parametrize("name", ["attention", "scores"])
@LONG_AND_SHORT
@given(data=st.data())
@settings(many, max_examples=200)
def test_attention_needs_more_examples_than_that(name, pieces, data):
    with pieces():
        gradient_is_the_slope(name, data)


def gradient_is_the_slope(name, data):
    d = Draw(data)
    inputs, static = CASES[name](d)
    before = [None if x is None else x.copy() for x in inputs]
    y, saved = forward(name, inputs, static)
    dy = d.array(np.shape(y))
    dy_before = dy.copy()
    with small_blocks():
        grads = OPS[name].text.backward(np, saved, dy, **static)
    grads = [dense(g) for g, x in zip(grads, inputs, strict=False) if x is not None]
    for now, then in zip([*inputs, dy], [*before, dy_before]):
        assert now is None or np.array_equal(now, then), "written into"
    places = [i for i, x in enumerate(inputs) if x is not None]
    directions = [d.rng.standard_normal(inputs[i].shape) for i in places]
    for i, g in zip(places, grads, strict=True):
        assert np.shape(g) == inputs[i].shape

    def f(h):
        moved = list(before)
        for i, direction in zip(places, directions):
            moved[i] = before[i] + h * direction
        with small_blocks():
            return float((forward(name, moved, static)[0] * dy).sum())

    terms = [g * direction for g, direction in zip(grads, directions)]
    size = abs(y * dy).sum() + sum(abs(t).sum() for t in terms)
    assert abs(sum(t.sum() for t in terms) - slope(f)) <= TOLERANCE * size


def single(x):
    """Doubles, alone or in a list, as float32."""
    if isinstance(x, list):
        return [single(item) for item in x]
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(many, max_examples=25)
def test_float32_stays_float32_and_near_the_float64_result(name, data):
    inputs, static = CASES[name](Draw(data))
    exact = forward(name, inputs, static)[0]
    y, saved = forward(name, single(inputs), {k: single(v) for k, v in static.items()})
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact, rtol=1e-3, atol=1e-4)
    dy = np.ones(np.shape(y), np.float32)
    grads = OPS[name].text.backward(np, saved, dy, **{k: single(v) for k, v in static.items()})
    assert {dense(g).dtype for g in grads if g is not None} <= {np.dtype(np.float32)}


@pytest.mark.parametrize("name", [name for name in CASES if OPS[name].text.saving])
@given(data=st.data())
@settings(many, max_examples=25)
def test_a_forward_that_saves_nothing_gives_the_same_bits(name, data):
    inputs, static = CASES[name](Draw(data))
    kept, free = (forward(name, inputs, dict(static, saving=saving))[0] for saving in (True, False))
    assert np.array_equal(kept, free)


# ---- fused ops against the same thing written out

def loss_and_gradients(f, inputs, weight):
    leaves = [None if x is None else parameter(x.copy()) for x in inputs]
    y = f(*leaves)
    ops.sum(y * Tensor(weight)).backward()
    return [y.data, *(leaf.grad for leaf in leaves if leaf is not None)]


def agree(f, g, inputs, weight, tolerance=1e-12):
    for a, b in zip(*(loss_and_gradients(h, inputs, weight) for h in (f, g)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, abs(b).max(initial=0)))


@given(data=st.data())
@many
def test_linear_is_a_product_and_a_sum(data):
    inputs, _ = linear(d := Draw(data))

    def plain(x, w, b):
        y = ops.matmul(x, ops.transpose(w))
        return y if b is None else y + b

    agree(fused.linear, plain, inputs, d.rng.standard_normal((len(inputs[0]), len(inputs[1]))))


def kept(shape, p=0.0, key=None):
    """What dropout leaves, already scaled."""
    if key is None:
        return np.ones(shape)
    dropped = round(256 * p)
    return (philox.draw(np, key, *shape) >= dropped) * (256 / (256 - dropped))


@given(data=st.data())
@many
def test_norm_is_its_formula(data):
    inputs, static = norm(d := Draw(data))

    def plain(x, gain, shift, residual, bias):
        shift = shift or 0.0
        h = x if bias is None else x + bias
        h = h * Tensor(kept(x.shape, static.get("p"), static.get("key")))
        h = h if residual is None else h + residual
        h = h - ops.mean(h, axis=1, keepdims=True)
        deviation = ops.sqrt(ops.mean(ops.square(h), axis=1, keepdims=True) + static["eps"])
        return gain * h / deviation + shift

    # Where dropout leaves a row flat, 1 / deviation is 1e6 and takes the rounding with it.
    weight = d.rng.standard_normal(inputs[0].shape)
    agree(partial(fused.norm, **static), plain, inputs, weight, 1e-9)


@given(data=st.data())
@many
def test_embed_is_the_sum_of_rows(data):
    tables, static = embed(d := Draw(data))

    def plain(*tables):
        y = ops.take(tables[0], index=static["ids"][0])
        for table, ids in zip(tables[1:], static["ids"][1:]):
            y = y + ops.take(table, index=ids)
        return y

    weight = d.rng.standard_normal((len(static["ids"][0]), tables[0].shape[1]))
    agree(partial(fused.embed, **static), plain, tables, weight)


@given(data=st.data())
@many
def test_geglu_gates_its_second_half_by_its_first(data):
    inputs, static = geglu(d := Draw(data))

    def plain(x):
        columns = ops.transpose(x)
        f = len(columns) // 2
        a, b = (ops.transpose(ops.part(columns, lo=lo, hi=lo + f)) for lo in (0, f))
        return fused.gelu(a, **static) * b

    t, width = inputs[0].shape
    with small_blocks():
        agree(partial(fused.geglu, **static), plain, inputs, d.rng.standard_normal((t, width // 2)))


@given(data=st.data())
@many
def test_affine_is_its_formula(data):
    inputs, _ = affine(d := Draw(data))

    def plain(x, gain, shift, residual, bias):
        h = x if bias is None else x + bias
        return gain * (h if residual is None else h + residual) + shift

    with small_blocks():
        agree(fused.affine, plain, inputs, d.rng.standard_normal(inputs[0].shape))


@given(data=st.data())
@many
def test_rope_turns_points_of_the_plane(data):
    """As a product of complex numbers, whose real parts are a head's first half."""
    (x,), static = rope(Draw(data))
    t, width = x.shape
    cos, sin = static["cos"], static["sin"]
    columns = width if static["columns"] is None else static["columns"]
    apart = x[:, :columns].reshape(t, columns // (2 * cos.shape[1]), 2, cos.shape[1])
    turned = (apart[:, :, 0] + 1j * apart[:, :, 1]) * (cos + 1j * sin)[:, None]
    expected = np.stack([turned.real, turned.imag], 2).reshape(t, columns)
    with small_blocks():
        y = fused.rope(Tensor(x), **static).data
    np.testing.assert_allclose(y[:, :columns], expected, rtol=0, atol=1e-14)
    assert np.array_equal(y[:, columns:], x[:, columns:])


def test_turned_queries_and_keys_meet_by_their_distance_alone():
    rng = np.random.default_rng(0)
    angle = np.arange(9)[:, None] * 0.1 ** np.arange(4)
    q, k = (np.tile(rng.standard_normal(8), (9, 1)) for _ in "qk")
    q, k = (fused.rope(Tensor(x), cos=np.cos(angle), sin=np.sin(angle)).data for x in (q, k))
    products = q @ k.T
    for distance in range(-8, 9):
        assert np.ptp(np.diagonal(products, distance)) < 1e-13


def by_pair(x, index):
    """x [A, N, M] -> x.reshape(A, N * M)[:, index], with index [R, T]"""
    flat = ops.transpose(x.reshape(x.shape[0], -1))
    return ops.transpose(ops.take(flat, index=index), axes=(2, 0, 1))           # [A, R, T]


def dense_scores(qkv, q, keys_at, queries_at, cuts, heads, rows, reach, scale, buckets):
    """The whole matrix of scores, and beside it minus infinity wherever nobody may look."""
    t, h = qkv.shape[0], qkv.shape[1] // (3 if q is None else 2)
    columns = ops.transpose(qkv)
    if q is None:
        q, rows = ops.transpose(ops.part(columns, hi=h)), np.arange(t)
        columns = ops.part(columns, lo=h)
    size = h // heads
    k = ops.part(columns, hi=h).reshape(heads, size, t)                         # [A, D, T]

    def by_head(x):
        return ops.transpose(x.reshape(x.shape[0], heads, size), axes=(1, 0, 2))

    s = by_head(q) @ k                                                          # [A, R, T]
    sequence = np.searchsorted(cuts, np.arange(t), side="right") - 1
    place = np.arange(t) - cuts[sequence]
    distance = place[rows][:, None] - place                                     # [R, T]
    same = sequence[rows][:, None] == sequence
    if buckets is not None:
        bucket = np.where(same, buckets[np.where(same, distance, 0) + len(buckets) // 2], 0)
    if keys_at is not None:
        products = by_head(q) @ ops.transpose(by_head(keys_at), axes=(0, 2, 1))     # [A, R, O]
        s = s + by_pair(products, np.arange(len(rows))[:, None] * len(keys_at) + bucket)
    if queries_at is not None:
        s = s + by_pair(by_head(queries_at) @ k, bucket * t + np.arange(t))         # of [A, O, T]
    s = s * (size ** -0.5 if scale is None else scale)
    return s, np.where(same & (abs(distance) <= (t if reach is None else reach)), 0, -np.inf), place


def dense_attention(*inputs, p=0.0, key=None, **static):
    s, mask, place = dense_scores(*inputs, **static)
    heads, r, t = s.shape
    v = ops.transpose(inputs[0])
    v = ops.part(v, lo=len(v) - inputs[0].shape[1] // (3 if inputs[1] is None else 2))
    probability = ops.softmax(s + Tensor(mask))
    # A draw's row is (query, head), its column the key's place in its own sequence.
    draws = kept((r * heads, 41), p, key).reshape(r, heads, 41).swapaxes(0, 1)[:, :, place]
    v = ops.transpose(v.reshape(heads, -1, t), axes=(0, 2, 1))
    y = probability * Tensor(draws) @ v                                         # [A, R, D]
    return ops.transpose(y, axes=(1, 0, 2)).reshape(r, -1)


def nothing_there(inputs):
    """A softmax has no answer where there is nothing to see."""
    qkv, q, *_ = inputs
    return not qkv.size or q is not None and not q.size


@LONG_AND_SHORT
@given(data=st.data())
@settings(many, max_examples=200)
def test_attention_is_a_dense_masked_softmax(pieces, data):
    inputs, static = attention(d := Draw(data))
    if nothing_there(inputs):
        return
    qkv, q, *_ = inputs
    shape = (len(qkv), qkv.shape[1] // 3) if q is None else q.shape
    plain = partial(dense_attention, **static)
    with pieces():
        agree(partial(fused.attention, **static), plain, inputs, d.rng.standard_normal(shape))


@LONG_AND_SHORT
@given(data=st.data())
@many
def test_scores_are_what_attention_takes_the_softmax_of(pieces, data):
    inputs, static = scores(d := Draw(data))
    if nothing_there(inputs):
        return
    heads, cuts = static["heads"], static["cuts"]
    longest = np.diff(cuts).max()
    rows = np.arange(cuts[-1]) if static["rows"] is None else static["rows"]
    begin = cuts[np.searchsorted(cuts, rows, side="right") - 1]

    def plain(*inputs):
        """Row for row the columns of the row's own sequence, zeros where nobody looks."""
        s, mask, _ = dense_scores(*inputs, **static)
        s = ops.where(s, Tensor(np.zeros(s.shape)), mask=np.broadcast_to(mask == 0, s.shape))
        s = ops.concat(s, Tensor(np.zeros((*s.shape[:2], longest))), axis=2)
        width = s.shape[2]
        flat = s.reshape(-1)
        index = np.arange(heads)[:, None] * len(rows) + np.arange(len(rows))[:, None, None]
        index = index * width + begin[:, None, None] + np.arange(longest)       # [R, A, P]
        s = ops.take(flat, index=index)
        beyond = np.arange(longest) < np.diff(cuts)[np.searchsorted(cuts, rows, side="right") - 1][
            :, None, None]
        return s * Tensor(beyond * np.ones((1, heads, 1)))

    weight = d.rng.standard_normal((len(rows), heads, longest))
    with pieces():
        agree(partial(fused.scores, **static, fill=0), plain, inputs, weight)


def test_attention_takes_q_apart_for_all_tokens_too():
    """Enhanced decoders ask with other vectors than the ones they look at, at every token."""
    rng = np.random.default_rng(0)
    kv, q, weight = (rng.standard_normal(shape) for shape in ((7, 8), (7, 4), (7, 4)))
    cuts = np.array([0, 3, 7])
    call = partial(fused.attention, cuts=cuts, heads=2)
    agree(call, partial(call, rows=np.arange(7)), [kv, q], weight)


# ---- GELU

def exact_gelu(x):
    """x Phi(x) by erfc, which keeps its relative precision in the tail, and its slope."""
    phi = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    cdf = math.erfc(-x / math.sqrt(2)) / 2
    return x * cdf, cdf + x * phi


def gelu_and_slope(x, form="erf"):
    leaf = parameter(x)
    y = fused.gelu(leaf, form=form)
    y.backward(np.ones_like(x))
    return y.data, leaf.grad


TINY = [0.0, 1e-300, -1e-300]
GRID = np.concatenate([np.linspace(-10, 10, 20001), np.linspace(-40, 40, 161), TINY])


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-15), (np.float32, 2e-7)])
def test_gelu_is_x_times_the_normal_distribution(dtype, tolerance):
    x = GRID.astype(dtype)
    exact = np.array([exact_gelu(float(value)) for value in x])
    y, slopes = gelu_and_slope(x)
    scale = np.maximum(1, abs(x))                   # Phi's own rounding comes times x
    assert y.dtype == slopes.dtype == dtype
    assert (abs(y - exact[:, 0]) / scale).max() <= tolerance
    assert abs(slopes - exact[:, 1]).max() <= 4 * tolerance     # two such terms, and the factor x


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-15), (np.float32, 4e-7)])
def test_gelu_of_form_tanh_is_its_formula(dtype, tolerance):
    x = GRID.astype(dtype)
    y, _ = gelu_and_slope(x, "tanh")
    wide = x.astype(np.float64)
    exact = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide ** 3)))
    assert (abs(y - exact) / np.maximum(1, abs(exact))).max() <= tolerance


# ---- dropout

def test_dropout_drops_its_share_and_keeps_the_mean():
    x = np.ones((1000, 96))
    for p in 0.1, 0.25, 0.5:
        y = fused.dropout(Tensor(x), p=p, key=KEY).data
        share = round(256 * p) / 256                # what 8 bits can say of p
        assert set(np.unique(y)) == {0.0, 1 / (1 - share)}
        deviation = math.sqrt(share * (1 - share) / x.size)
        assert abs((y == 0).mean() - share) < 4 * deviation
        assert abs(y.mean() - 1) < 4 * deviation / (1 - share)


def test_dropout_in_attention_keeps_the_mean():
    """With every value 1 a query's answer is the sum of its probabilities, dropped or scaled."""
    t, heads = 64, 4
    qkv = np.concatenate([np.zeros((t, 16)), np.ones((t, 8))], 1)
    y = fused.attention(Tensor(qkv), cuts=np.array([0, t]), heads=heads, p=0.25, key=KEY).data
    deviation = math.sqrt(0.25 / 0.75 / (t * t * heads))
    assert abs(y.mean() - 1) < 4 * deviation
    assert 0.5 < y.reshape(t, heads, 2)[:, :, 0].std() / math.sqrt(0.25 / 0.75 / t) < 1.5


@pytest.mark.parametrize("p", [0.001, 0.999])
def test_any_p_below_one_can_be_asked_for(p):
    """Eight bits cannot tell 0.001 from 0, nor 0.999 from 1; what comes must yet be finite."""
    x = np.ones((40, 30))
    y = fused.dropout(Tensor(x), p=p, key=KEY).data
    assert np.isfinite(y).all()
    assert (y == 0).mean() == pytest.approx(p, abs=0.01)
    plain = fused.norm(Tensor(x), Tensor(x[0]), Tensor(x[0]), p=p, key=KEY).data
    assert np.isfinite(plain).all()


# ---- losses

@given(data=st.data())
@many
def test_vocabulary_loss_is_log_softmax_of_the_logits(data):
    inputs, static = vocabulary_loss(Draw(data))
    labels, weights = static["labels"], static["weights"]
    chosen = np.zeros((len(labels), len(inputs[1])))
    chosen[np.arange(len(labels)), labels] = weights

    def plain(x, w, b):
        return ops.sum(ops.log_softmax(x @ ops.transpose(w) + b) * Tensor(-chosen))

    with small_blocks():
        agree(partial(fused.vocabulary_loss, **static), plain, inputs, np.array(1.5))


@given(data=st.data())
@many
def test_cross_entropy_is_log_softmax(data):
    inputs, static = cross_entropy(Draw(data))
    labels, weights = static["labels"], static["weights"]
    chosen = np.zeros(inputs[0].shape)
    chosen[np.arange(len(labels)), labels] = weights
    plain = lambda z: ops.sum(ops.log_softmax(z) * Tensor(-chosen))  # noqa: E731
    agree(partial(fused.cross_entropy, **static), plain, inputs, np.array(1.5))


@given(data=st.data())
@many
def test_binary_loss_is_the_logarithm_of_a_sigmoid(data):
    inputs, static = binary_loss(Draw(data))
    labels, weights = static["labels"], static["weights"]

    def plain(z):
        right, wrong = ops.log(ops.sigmoid(z)), ops.log(ops.sigmoid(-z))
        return ops.sum((right * Tensor(labels) + wrong * Tensor(1 - labels)) * Tensor(-weights))

    agree(partial(fused.binary_loss, **static), plain, inputs, np.array(1.5))


# ---- far out, where formulas overflow

EXTREME = np.array([[1e4, -1e4, 0, 1], [-1e4, -1e4, -1e4, -1e4], [1e4, 1e4, 1e4, -1e4]])
HALF, WHOLE, LABELS = np.full((3, 4), 0.5), np.ones((3, 4)), np.array([1, 2, 3])
FAR = dict(
    softmax=ops.softmax, log_softmax=ops.log_softmax, sigmoid=ops.sigmoid, tanh=ops.tanh,
    gelu=fused.gelu, gelu_tanh=partial(fused.gelu, form="tanh"), geglu=fused.geglu,
    relu=fused.relu, affine=lambda x: fused.affine(x, parameter(WHOLE[0]), parameter(WHOLE[0])),
    scores=lambda x: fused.scores(
        ops.concat(x, x, x, axis=1), cuts=np.array([0, 3]), heads=2),
    cross_entropy=partial(fused.cross_entropy, labels=LABELS, weights=np.ones(3)),
    binary_loss=partial(fused.binary_loss, labels=HALF, weights=WHOLE),
    attention=lambda x: fused.attention(
        ops.concat(x, x, x, axis=1), cuts=np.array([0, 3]), heads=2),
    norm=lambda x: fused.norm(x, parameter(WHOLE[0]), parameter(WHOLE[0])),
    vocabulary_loss=lambda x: fused.vocabulary_loss(
        x, parameter(np.eye(4)), parameter(WHOLE[0]), labels=LABELS, weights=np.ones(3)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FAR)
def test_far_from_zero_values_and_gradients_stay_finite_without_a_warning(name, dtype):
    x = parameter(EXTREME.astype(dtype))
    y = FAR[name](x)
    y.backward(np.ones(y.shape))
    assert np.isfinite(y.data).all() and np.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype, far", [(np.float32, 1e30), (np.float64, 1e200)])
def test_no_number_is_too_large_for_gelu(dtype, far):
    with np.errstate(over="ignore"):
        y, slopes = gelu_and_slope(np.array([far, -far], dtype))
    assert y.tolist() == [dtype(far), 0] and slopes.tolist() == [1, 0]


@pytest.mark.filterwarnings("error")
def test_minus_infinity_masks_a_softmax_without_a_warning():
    x = np.array([[0.0, -np.inf, 0.0], [-np.inf, 1.0, -np.inf]])
    leaf = parameter(x)
    y = ops.softmax(leaf)
    y.backward(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(y.data, [[0.5, 0, 0.5], [0, 1, 0]])
    assert np.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", FAR)
def test_what_is_not_a_number_stays_so(name):
    with no_grad(), np.errstate(invalid="ignore"):
        y = FAR[name](Tensor(np.full((3, 4), np.nan)))
    assert np.isnan(y.data).any()
