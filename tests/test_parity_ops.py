"""Ops against PyTorch in float64: values and all gradients within 1e-9 of theirs."""
from functools import partial

import numpy as np
import pytest

from tinybert_family.engine import fused, ops
from tinybert_family.engine.autograd import parameter

torch = pytest.importorskip("torch", reason="torch, the other implementation, is not installed")
F = torch.nn.functional
rng = np.random.default_rng


def same(ours, theirs, *arrays, tolerance=1e-9):
    """ours(*Tensors) and theirs(*torch tensors): one value, and one gradient for each array."""
    mine = [parameter(a.copy()) for a in arrays]
    other = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = ours(*mine), theirs(*other)
    seed = rng(9).standard_normal(y.shape)
    y.backward(seed)
    z.backward(torch.tensor(seed))
    for a, b in zip([y.data, *(t.grad for t in mine)], [z.detach(), *(t.grad for t in other)]):
        assert np.shape(a) == tuple(b.shape)
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=tolerance)


def normal(*shape, seed=0):
    return 2 * rng(seed).standard_normal(shape)


ONE = dict(
    neg=(ops.neg, torch.neg),
    exp=(ops.exp, torch.exp),
    square=(ops.square, torch.square),
    tanh=(ops.tanh, torch.tanh),
    sigmoid=(ops.sigmoid, torch.sigmoid),
    relu=(fused.relu, torch.relu),
    log=(lambda x: ops.log(ops.square(x)), lambda x: torch.log(x * x)),
    sqrt=(lambda x: ops.sqrt(ops.square(x)), lambda x: torch.sqrt(x * x)),
    gelu=(fused.gelu, F.gelu),
    gelu_tanh=(partial(fused.gelu, form="tanh"), partial(F.gelu, approximate="tanh")),
    softmax=(ops.softmax, partial(F.softmax, dim=-1)),
    softmax_0=(partial(ops.softmax, axis=0), partial(F.softmax, dim=0)),
    log_softmax=(ops.log_softmax, partial(F.log_softmax, dim=-1)),
    log_softmax_1=(partial(ops.log_softmax, axis=1), partial(F.log_softmax, dim=1)),
    sum=(ops.sum, torch.sum),
    sum_axes=(partial(ops.sum, axis=(0, -1)), partial(torch.sum, dim=(0, -1))),
    mean=(ops.mean, torch.mean),
    mean_kept=(partial(ops.mean, axis=1, keepdims=True), partial(torch.mean, dim=1, keepdim=True)),
    reshape=(partial(ops.reshape, shape=(4, -1)), lambda x: x.reshape(4, -1)),
    transpose=(partial(ops.transpose, axes=(2, 0, 1)), lambda x: x.permute(2, 0, 1)),
    part=(partial(ops.part, lo=1, hi=2), lambda x: x[1:2]))


@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_array(name):
    same(*ONE[name], normal(3, 4, 5))


TWO = dict(
    add=(ops.add, torch.add),
    sub=(ops.sub, torch.sub),
    mul=(ops.mul, torch.mul),
    div=(ops.div, torch.div))


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("shapes", [
    ((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 2)), ((5, 0), (1,))])
def test_arithmetic_broadcasts_alike(name, shapes):
    a, b = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    same(*TWO[name], a, b + np.where(b < 0, -1, 1))


@pytest.mark.parametrize("shapes", [
    ((3, 4), (4, 2)), ((5, 3, 4), (4, 2)), ((1, 2, 3, 4), (5, 1, 4, 6)), ((3, 0), (0, 2))])
def test_matmul(shapes):
    same(ops.matmul, torch.matmul, *(normal(*shape, seed=i) for i, shape in enumerate(shapes)))


def test_concat_and_where():
    a, b = normal(3, 2), normal(3, 4, seed=1)
    same(lambda *xs: ops.concat(*xs, axis=1), lambda *xs: torch.cat(xs, 1), a, b)
    mask = a > 0
    theirs = partial(torch.where, torch.tensor(mask))
    same(partial(ops.where, mask=mask), theirs, a, normal(3, 2, seed=2))


def test_take_and_put():
    index = np.array([[4, 0], [0, 2]])
    same(partial(ops.take, index=index), lambda x: x[torch.tensor(index)], normal(5, 3))
    places, zeros = np.array([4, 1, 5]), torch.zeros(7, 2, dtype=torch.float64)
    theirs = partial(zeros.index_add, 0, torch.tensor(places))
    same(partial(ops.put, index=places, rows=7), theirs, normal(3, 2))


@pytest.mark.parametrize("biased", [True, False])
def test_linear(biased):
    same(fused.linear, F.linear, normal(6, 3), normal(4, 3, seed=1), *[normal(4, seed=2)] * biased)


def test_gelu_of_a_sum():
    for form, name in ("erf", "none"), ("tanh", "tanh"):
        def theirs(x, b, name=name):
            return F.gelu(x + b, approximate=name)

        same(partial(fused.gelu, form=form), theirs, 3 * normal(50, 7), normal(7))


def test_relu_of_a_sum():
    same(fused.relu, lambda x, b: torch.relu(x + b), normal(50, 7), normal(7))


@pytest.mark.parametrize("form, name", [("erf", "none"), ("tanh", "tanh")])
def test_geglu(form, name):
    def theirs(x):
        a, b = x.chunk(2, 1)
        return F.gelu(a, approximate=name) * b

    same(partial(fused.geglu, form=form), theirs, normal(50, 14))


@pytest.mark.parametrize("columns", [None, 8, 16])
def test_rotary_positions(columns):
    """As in Hugging Face's rotate_half: x cos + (-second half, first half) sin."""
    angle = normal(6, 2)

    def theirs(x):
        cos, sin = (torch.tensor(f(angle)).tile(2)[:, None] for f in (np.cos, np.sin))
        turned, rest = x[:, :columns].reshape(6, -1, 4), x[:, columns or 24:]
        a, b = turned.chunk(2, 2)
        turned = turned * cos + torch.cat([-b, a], 2) * sin
        return torch.cat([turned.flatten(1), rest], 1)

    ours = partial(fused.rope, cos=np.cos(angle), sin=np.sin(angle), heads=2, columns=columns)
    same(ours, theirs, normal(6, 24))


def test_affine():
    def theirs(x, gain, shift, residual, bias):
        return gain * (residual + x + bias) + shift

    same(fused.affine, theirs, *(normal(*shape) for shape in ((6, 8), (8,), (8,), (6, 8), (8,))))


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_layer_norm(eps):
    def theirs(x, gain, shift, residual=0, bias=0):
        return F.layer_norm(x + bias + residual, (8,), gain, shift, eps)

    shapes = (6, 8), (8,), (8,), (6, 8), (8,)       # x, gain, shift, residual, bias
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    same(partial(fused.norm, eps=eps), theirs, *arrays[:3])
    unshifted = partial(F.layer_norm, normalized_shape=(8,), bias=None, eps=eps)
    same(partial(fused.norm, eps=eps), lambda x, gain: unshifted(x, weight=gain), *arrays[:2])
    same(partial(fused.norm, eps=eps), theirs, *arrays)


@pytest.mark.parametrize("tables", [1, 2, 3])
def test_embedding(tables):
    weights = [normal(n, 4, seed=n) for n in (11, 6, 2)[:tables]]
    ids = [rng(i).integers(0, len(w), 9) for i, w in enumerate(weights)]

    def theirs(*weights):
        return sum(F.embedding(torch.tensor(i), w) for i, w in zip(ids, weights))

    same(partial(fused.embed, ids=ids), theirs, *weights)


def their_attention(qkv, q=None, cuts=None, heads=1, rows=None, reach=None, scale=None):
    """torch's attention, sequence after sequence; windows go into its mask."""
    if q is None:
        q, k, v = qkv.chunk(3, 1)
        rows = np.arange(len(qkv))
    else:
        k, v = qkv.chunk(2, 1)
    outputs, size = [], q.shape[1] // heads
    for lo, hi in zip(cuts, cuts[1:]):
        asking = (rows >= lo) & (rows < hi)
        i, j = torch.tensor(rows[asking] - lo), torch.arange(hi - lo)
        mask = torch.zeros(heads, len(i), hi - lo, dtype=q.dtype)
        if reach is not None:
            mask = mask.masked_fill((i[:, None] - j).abs() > reach, -torch.inf)
        here = q[torch.tensor(asking)], k[lo:hi], v[lo:hi]
        Q, K, V = (x.reshape(len(x), heads, size).transpose(0, 1) for x in here)
        y = F.scaled_dot_product_attention(Q, K, V, mask, scale=scale)
        outputs.append(y.transpose(0, 1).reshape(len(i), heads * size))
    return torch.cat(outputs)


CUTS = np.cumsum([0, 3, 3, 1, 0, 50, 5])
ROWS = np.array([0, 2, 3, 6, 7, 8, 30, 56, 57])
HOWS = [dict(), dict(scale=0.3), dict(reach=2), dict(reach=0)]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("rows", [None, ROWS])
def test_scaled_dot_product_attention_of_each_sequence(how, rows):
    how = dict(how, cuts=CUTS, heads=3, rows=rows)
    arrays = [normal(CUTS[-1], 18 if rows is None else 12)]
    if rows is not None:
        arrays.append(normal(len(rows), 6, seed=1))

    def call(f):
        return lambda qkv, *more: f(qkv, *([None] if rows is None else []), *more, **how)

    same(call(fused.attention), call(their_attention), *arrays)


def test_cross_entropy():
    z, labels, weights = normal(7, 5), rng(1).integers(0, 5, 7), rng(2).random(7)

    def theirs(z):
        losses = F.cross_entropy(z, torch.tensor(labels), reduction="none")
        return (losses * torch.tensor(weights)).sum()

    same(partial(fused.cross_entropy, labels=labels, weights=weights), theirs, z)


def test_vocabulary_loss_is_cross_entropy_of_a_linear():
    x, w, b = normal(6, 4), normal(300, 4, seed=1), normal(300, seed=2)
    labels, weights = rng(1).integers(0, 300, 6), np.array([1, 1, 0, 0.5, 1, 0])

    def theirs(x, w, b):
        losses = F.cross_entropy(F.linear(x, w, b), torch.tensor(labels), reduction="none")
        return (losses * torch.tensor(weights)).sum()

    same(partial(fused.vocabulary_loss, labels=labels, weights=weights), theirs, x, w, b)


def test_binary_cross_entropy_with_logits():
    z, labels, weights = 10 * normal(6, 3), rng(1).random((6, 3)), rng(2).random((6, 3))

    def theirs(z):
        given = torch.tensor(labels), torch.tensor(weights)
        return F.binary_cross_entropy_with_logits(z, *given, reduction="sum")

    same(partial(fused.binary_loss, labels=labels, weights=weights), theirs, z)
