"""kernels/norm.cu against fused.norm and fused.affine: each part, each shape of team, any order."""
from typing import NamedTuple

import emulated
import numpy as np
import pytest
from emulated import MEETINGS, ROUNDING, guarded, numbers, poisoned, stored

from tinybert_family.engine import fused, philox

# ---- how the kernels are launched

SHIFT, RESIDUAL, BIAS, DROPOUT, RMS, AFFINE = (1 << i for i in range(6))
SUMMED = RESIDUAL | BIAS | DROPOUT          # with any of them h is another array than x
TEAMS = {256: (1, 1), 512: (2, 1), 768: (3, 1), 1024: (2, 2), 2048: (2, 4), 4096: (2, 8)}
DEPTH = {1: 4, 2: 3, 3: 2}


def team(width):
    """(N, G): the pieces of a warp, the warps of a row"""
    return next(TEAMS[limit] for limit in TEAMS if width <= limit)


def dropped(p, key):
    """The arguments of a dropout: seed and step on the device, part, site, threshold, scale"""
    key = key or philox.Key(0, 0)
    run = guarded(np.array([key.seed, key.step], np.uint32))
    return (run, np.uint32(key.part), np.uint32(key.site), np.uint32(philox.threshold(p)),
            np.float32(philox.scale(p)))


def forward(kind, flags, x, gain, shift=None, residual=None, bias=None, eps=1e-12, p=0.0, key=None,
            saving=True, meeting=MEETINGS[0]):
    """(y, h, measures); h is x where it can be"""
    tokens, width = x.shape
    n, g = team(width)
    y = poisoned(x.shape, x.dtype)
    h = poisoned(x.shape, x.dtype) if saving and flags & SUMMED else None
    measures = poisoned((tokens, 2), "f4") if saving and not flags & AFFINE else None
    launch = emulated.kernel("norm.cu", f"norm_forward<{kind},{n},{g},{flags}>", meeting)
    launch((max(1, -(-tokens * g // 8)),), (256,),
           (x, residual, bias, gain, shift, y, h, measures, np.int32(tokens), np.int32(width),
            np.float32(eps), *dropped(p, key)), 8 * 2 * n * 256 * x.itemsize + 64)
    return y, x if h is None and saving else h, measures


def backward(kind, flags, dy, h, measures, gain, p=0.0, key=None, blocks=3, warps=8, onto=None,
             meeting=MEETINGS[0]):
    """(dx, dresidual, dgain, dshift, dbias); the last three are added to `onto` where given"""
    tokens, width = dy.shape
    n, g = team(width)
    dx = poisoned(dy.shape, dy.dtype)
    apart = flags & DROPOUT and flags & RESIDUAL
    dresidual = poisoned(dy.shape, dy.dtype) if apart else None
    partials = poisoned((blocks, 3, width), "f4")
    launch = emulated.kernel("norm.cu", f"norm_backward<{kind},{n},{g},{flags}>", meeting)
    launch((blocks,), (32 * warps,),
           (dy, h, measures, gain, dx, dresidual, partials, np.int32(tokens), np.int32(width),
            *dropped(p, key)), warps * ((2 * DEPTH[n] + 1) * n * 256 * dy.itemsize + 8 * DEPTH[n]))
    wanted = True, flags & SHIFT, flags & BIAS
    sums = [poisoned(width, "f4") if want else None for want in wanted] if onto is None else onto
    launch = emulated.kernel("norm.cu", "norm_gradients", meeting)
    launch((-(-3 * width // 32),), (256,),
           (partials, *sums, np.int32(blocks), np.int32(width), np.int32(onto is not None)), 4096)
    return dx, dx if flags & RESIDUAL and not apart else dresidual, *sums


# ---- cases, and their answers in float64

class Case(NamedTuple):
    kind: str
    flags: int
    x: np.ndarray
    gain: np.ndarray
    shift: object
    residual: object
    bias: object
    dy: np.ndarray
    drop: dict

    @property
    def wide(self):
        """What the kernel reads, as float64"""
        given = self.x, self.gain, self.shift, self.residual, self.bias
        return [None if array is None else numbers(array) for array in given]


# Half the distance between neighbours, relative to a number: bf16 has 8 digits, f16 11, float 24.
KEY = philox.Key(seed=2 ** 32 - 5, step=77, part=2, site=9)
EPS = 1e-3


def case(kind, flags, tokens, width, seed=0, middle=0.5):
    rng = np.random.default_rng(seed)

    def some(shape, wanted=True, at=0.0):
        return stored(rng.standard_normal(shape) + at, kind) if wanted else None
    rows = tokens, width
    return Case(kind, flags, some(rows, at=middle), some(width, at=1), some(width, flags & SHIFT),
                some(rows, flags & RESIDUAL), some(width, flags & BIAS), some(rows),
                dict(p=0.2, key=KEY) if flags & DROPOUT else {})


def rms_norm(x, gain, shift, residual, bias, p=0.0, key=None):
    """As fused.norm.text.forward, for the norm that it does not have"""
    h = x if bias is None else x + bias
    keep, scale = fused.dropout_mask(np, x.shape, p, key)
    h = h if keep is None else h * keep * scale
    h = h if residual is None else h + residual
    rstd = 1 / np.sqrt((h * h).mean(1) + EPS)
    xhat = h * rstd[:, None]
    y = gain * xhat if shift is None else gain * xhat + shift
    return y, (xhat, rstd, gain, keep, [part is not None for part in (shift, residual, bias)])


def rms_grad(saved, dy, p=0.0, key=None):
    xhat, rstd, gain, keep, given = saved
    d = dy * gain
    dh = rstd[:, None] * (d - xhat * (d * xhat).mean(1, keepdims=True))
    dx = dh if keep is None else dh * keep * philox.scale(p)
    parts = (dy * xhat).sum(0), dy.sum(0), dh, dx.sum(0)
    return dx, parts[0], *[part if there else None for part, there in zip(parts[1:], given)]


def text_forward(c):
    if c.flags & RMS:
        return rms_norm(*c.wide, **c.drop)
    if c.flags & AFFINE:
        x, gain, shift, residual, bias = c.wide
        keep, scale = fused.dropout_mask(np, x.shape, **(c.drop or dict(p=0, key=None)))
        if keep is not None:                    # as nn.NoNorm does it
            x, bias = (x + bias) * keep * scale, None
        return fused.affine.text.forward(np, x, gain, shift, residual, bias)
    return fused.norm.text.forward(np, *c.wide, eps=EPS, **c.drop)


def text_backward(c, saved, dy):
    """dx, dgain, dshift, dresidual, dbias"""
    if c.flags & RMS:
        return rms_grad(saved, dy, **c.drop)
    if c.flags & AFFINE:
        dx, dgain, dshift, dresidual, dbias = fused.affine.text.backward(np, saved, dy)
        if c.drop:
            keep, scale = fused.dropout_mask(np, dy.shape, **c.drop)
            dx, dresidual = dx * keep * scale, dx if c.flags & RESIDUAL else None
            dbias = dx.sum(0) if c.flags & BIAS else None
        return dx, dgain, dshift, dresidual, dbias
    return fused.norm.text.backward(np, saved, dy, eps=EPS, **c.drop)


def kernel_forward(c, **how):
    return forward(c.kind, c.flags, *c[2:7], eps=EPS, **c.drop, **how)


def kernel_backward(c, h, measures, **how):
    return backward(c.kind, c.flags, c.dy, h, measures, c.gain, **c.drop, **how)


def close(got, expected, kind, scale):
    """One rounding to the type of storage, and some of float: those of a sum grow with its terms,
    of which `scale` is the size."""
    bound = ROUNDING[kind] * np.abs(expected) + 32 * ROUNDING["float"] * scale + 1e-30
    if kind == "f16":
        bound += 2.0 ** -25                     # subnormal numbers
    wrong = np.abs(numbers(got) - expected) / bound
    assert got.shape == expected.shape
    assert not np.isnan(wrong).any() and wrong.max(initial=0) <= 1, wrong.max()


def check_forward(c, **how):
    y, h, measures = kernel_forward(c, **how)
    expected, saved = text_forward(c)
    close(y, expected, c.kind, 8 + np.abs(expected) + 8 * np.abs(c.wide[1]))
    if not c.flags & AFFINE:
        close(measures[:, 1], saved[1], "float", saved[1])
        expected_h = saved[0] / saved[1][:, None]
        if c.flags & RMS:
            assert not measures[:, 0].any()
        else:
            expected_h = expected_h + numbers(measures[:, :1])
    else:
        expected_h = saved[0]
    close(h, expected_h, c.kind, 4 + np.abs(expected_h))
    if c.flags & DROPOUT and not c.flags & RESIDUAL:
        keep, _ = fused.dropout_mask(np, c.x.shape, **c.drop)
        assert np.array_equal(numbers(h) == 0, ~keep)
    return h, measures


def check_backward(c, h, measures, **how):
    """The same h and measures for both, so only backward's own rounding is between them."""
    dx, dresidual, *sums = kernel_backward(c, h, measures, **how)
    wide, dy = numbers(h), numbers(c.dy)
    keep, _ = fused.dropout_mask(np, dy.shape, **(c.drop or dict(p=0, key=None)))
    if c.flags & AFFINE:
        xhat, rstd = wide, np.ones(len(wide))
        saved = wide, c.wide[1], bool(c.flags & RESIDUAL), bool(c.flags & BIAS)
    else:
        mean, rstd = numbers(measures).T
        xhat = (wide - mean[:, None]) * rstd[:, None]
        saved = xhat, rstd, c.wide[1], keep, [c.flags & part for part in (SHIFT, RESIDUAL, BIAS)]
    expected = text_backward(c, saved, dy)
    d = np.abs(dy * c.wide[1])
    along = (d * np.abs(xhat)).mean(1, keepdims=True)
    terms = 4 * rstd[:, None] * (d + d.mean(1, keepdims=True) + np.abs(xhat) * along)
    close(dx, expected[0], c.kind, terms)
    if c.flags & RESIDUAL:
        close(dresidual, expected[3], c.kind, terms)
    if c.flags & DROPOUT:
        assert (numbers(dx)[~keep] == 0).all()
        assert (numbers(dx)[keep] != 0).all()
    scales = (np.abs(dy * xhat) + np.abs(dy)).sum(0), np.abs(dy).sum(0), terms.sum(0)
    for got, right, scale in zip(sums, (expected[1], expected[2], expected[4]), scales):
        assert (got is None) == (right is None)
        if got is not None:
            close(got, right, "float", scale)


# ---- tests

SMALL = [("bf16", 0), ("bf16", 1), ("bf16", 7), ("bf16", 15), ("bf16", 39), ("f16", 15),
         ("float", 1), ("float", 10), ("float", 12), ("float", 15), ("float", 26), ("float", 47)]


@pytest.mark.parametrize("kind, flags", SMALL)
def test_narrow_rows_with_each_part_in_any_order(kind, flags):
    for meeting, (tokens, width) in zip(MEETINGS, [(37, 72), (1, 8), (50, 256), (9, 136)]):
        c = case(kind, flags, tokens, width, seed=tokens)
        h, measures = check_forward(c, meeting=meeting)
        check_backward(c, h, measures, meeting=meeting, blocks=2, warps=4)


@pytest.mark.parametrize("kind, flags", [("bf16", 0), ("bf16", 1), ("bf16", 7), ("bf16", 15),
                                         ("f16", 1), ("f16", 7), ("f16", 15)])
def test_rows_of_768(kind, flags):
    c = case(kind, flags, 27, 768, seed=flags)
    check_backward(c, *check_forward(c), blocks=2, warps=12)


@pytest.mark.parametrize("kind, flags, tokens, width", [
    ("bf16", 1, 5, 312), ("bf16", 35, 5, 512), ("bf16", 39, 20, 264), ("bf16", 7, 9, 512),
    ("bf16", 15, 9, 384), ("bf16", 0, 5, 1024), ("bf16", 1, 5, 1024), ("bf16", 7, 5, 776),
    ("bf16", 15, 33, 1024), ("float", 26, 21, 1000), ("bf16", 1, 4, 2048), ("bf16", 7, 4, 1536),
    ("bf16", 15, 14, 2000), ("bf16", 1, 3, 4096), ("bf16", 7, 3, 4096), ("bf16", 15, 9, 2056)])
def test_wide_rows_of_one_warp_and_of_many(kind, flags, tokens, width):
    c = case(kind, flags, tokens, width, seed=width)
    check_backward(c, *check_forward(c, meeting=MEETINGS[2]), blocks=2, meeting=MEETINGS[3])


@pytest.mark.parametrize("meeting", MEETINGS)
def test_teams_of_many_warps_in_any_order(meeting):
    for kind, flags, tokens, width in ("bf16", 15, 7, 800), ("float", 26, 11, 800):
        c = case(kind, flags, tokens, width)
        h, measures = check_forward(c, meeting=meeting)
        check_backward(c, h, measures, meeting=meeting, blocks=1, warps=4)


@pytest.mark.parametrize("flags", [0, 15, 39])
def test_no_rows_give_no_gradient(flags):
    c = case("bf16", flags, 0, 64)
    h, measures = check_forward(c)
    check_backward(c, h, measures, blocks=1)


def test_the_bits_are_the_same_whoever_comes_first():
    for c in case("bf16", 15, 40, 128), case("bf16", 15, 10, 1024):
        told = []
        for meeting in MEETINGS[1], MEETINGS[3]:
            y, h, measures = kernel_forward(c, meeting=meeting)
            told.append((y, h, measures, *kernel_backward(c, h, measures, meeting=meeting)))
        assert all(np.array_equal(one, other) for one, other in zip(*told))


def test_without_saving_only_y_is_written():
    for flags in 1, 15:
        c = case("bf16", flags, 11, 72)
        y, h, measures = kernel_forward(c, saving=False)
        assert h is None and measures is None
        assert np.array_equal(y, kernel_forward(c)[0])


def test_gradients_of_parameters_are_added_where_asked():
    c = case("bf16", 15, 21, 72)
    _, h, measures = kernel_forward(c)
    once = kernel_backward(c, h, measures)[2:]
    onto = [stored(np.arange(72.0) * (i + 1), "float") for i in range(3)]
    twice = kernel_backward(c, h, measures, onto=onto)[2:]
    for i, (a, b) in enumerate(zip(once, twice)):
        assert np.array_equal(b, np.arange(72, dtype="f4") * np.float32(i + 1) + a)


def test_parameters_gradients_from_more_blocks_than_strips():
    rng = np.random.default_rng(0)
    partials = rng.integers(-99, 99, (77, 3, 104)).astype("f4")
    sums = [poisoned(104, "f4") for _ in range(3)]
    launch = emulated.kernel("norm.cu", "norm_gradients", MEETINGS[2])
    launch((10,), (256,), (guarded(partials), *sums, np.int32(77), np.int32(104), np.int32(0)),
           4096)
    assert np.array_equal(sums, partials.sum(0))


def test_rows_far_from_zero_keep_their_digits():
    """Their mean is 1000 times their spread: float has 4 of its 7 digits left, and no fewer."""
    c = case("float", 1, 12, 256, middle=1000.0)
    y, _, measures = kernel_forward(c)
    expected, saved = text_forward(c)
    assert np.abs(y - expected).max() < 2e-3 * np.abs(c.wide[1]).max()
    assert np.abs(measures[:, 1] / saved[1] - 1).max() < 1e-5


@pytest.mark.parametrize("kind", ["bf16", "f16", "float"])
def test_a_whole_pass_is_as_good_as_its_storage(kind):
    """Forward and backward against float64 from the same x. Between lies the rounding of h: it
    moves xhat by ROUNDING times |h| rstd at most, and dx by what backward's formula makes of it."""
    c = case(kind, 15, 64, 200)
    _, h, measures = kernel_forward(c)
    dx, dresidual, dgain, dshift, dbias = kernel_backward(c, h, measures)
    _, saved = text_forward(c)
    dy = numbers(c.dy)
    expected = text_backward(c, saved, dy)
    xhat, rstd = saved[:2]
    lost = (ROUNDING[kind] + 8 * ROUNDING["float"]) * np.abs(numbers(h)) * rstd[:, None]
    d = np.abs(dy * c.wide[1])
    along = np.abs((dy * c.wide[1] * xhat).mean(1, keepdims=True))
    bound = rstd[:, None] * (lost * along + np.abs(xhat) * (d * lost).mean(1, keepdims=True))
    bound += ROUNDING[kind] * np.abs(expected[3]) + 1e-5 * rstd[:, None]
    assert (np.abs(numbers(dresidual) - expected[3]) <= 1.1 * bound).all()
    assert (np.abs(numbers(dx) - expected[0]) <= 1.1 * bound * philox.scale(0.2)).all()
    assert (np.abs(dgain - expected[1]) <= (np.abs(dy) * lost).sum(0) + 1e-4).all()
    assert np.allclose(dshift, expected[2], atol=1e-4)
    assert (np.abs(dbias - expected[4]) <= (bound * philox.scale(0.2)).sum(0) + 1e-4).all()
