"""gelu.cu and geglu.cu: the activations, against NumPy's pairs in float64."""
import math

import emulated
import numpy as np
import pytest
from emulated import MEETINGS, ROUNDING, guarded, numbers, poisoned, stored

from tinybert_family.engine import fused

RNG = np.random.default_rng


# ---- launches

def launch(file, name, meeting, grid, threads, arguments, shared=0):
    kernel = emulated.kernel(file, name, meeting)
    kernel(grid, (threads,), arguments, shared)


def upwards(n, step):
    return -(-n // step)


def activate(kind, form, x, bias, y, meeting=MEETINGS[0]):
    rows, width = x.shape
    if rows:
        grid = upwards(width, 256), upwards(rows, 64)
        sizes = np.int32(rows), np.int32(width)
        launch("gelu.cu", f"activate<{kind},{form}>", meeting, grid, 256, (x, bias, y, *sizes))


def activate_grad(kind, form, x, bias, dy, dx, dbias=None, adding=False, meeting=MEETINGS[0]):
    rows, width = x.shape
    count = upwards(rows, 64)
    partial = None if dbias is None else poisoned((count, width), np.float32)
    if rows:
        arguments = x, bias, dy, dx, partial, np.int32(rows), np.int32(width)
        grid = upwards(width, 256), count
        launch("gelu.cu", f"activate_grad<{kind},{form}>", meeting, grid, 256, arguments, 8192)
    if dbias is not None:
        arguments = partial, dbias, np.int32(count), np.int32(width), np.int32(adding)
        launch("gelu.cu", "sum_partials", meeting, (upwards(width, 32),), 1024, arguments, 4096)


def geglu(kind, form, x, y, meeting=MEETINGS[0]):
    if y.size:
        grid = (upwards(y.size // 8, 256),)
        arguments = x, y, *map(np.int32, y.shape)
        launch("geglu.cu", f"geglu<{kind},{form}>", meeting, grid, 256, arguments)


def geglu_grad(kind, form, x, dy, dx, meeting=MEETINGS[0]):
    if dy.size:
        grid = (upwards(dy.size // 8, 256),)
        arguments = x, dy, dx, *map(np.int32, dy.shape)
        launch("geglu.cu", f"geglu_grad<{kind},{form}>", meeting, grid, 256, arguments)


# ---- what is right, and how nearly

# Half a unit in the last place, relative to the number, and half the smallest number there is (for
# float and bf16, where a GPU takes less than 2^-126 for 0).
SMALLEST = dict(float=1e-37, bf16=1e-37, f16=2.0 ** -25)


def near(got, right, scale, kind, least=0.0):
    """Rounded once to its type, after arithmetic that may be off by `scale`."""
    error = abs(numbers(got) - right)
    allowed = scale + ROUNDING[kind] * (scale + abs(right)) + max(least, SMALLEST[kind])
    worst = np.argmax(error - allowed)
    assert (error <= allowed).all(), (got.flat[worst], right.flat[worst], scale.flat[worst])


def amplified(kind, form, z):
    """How far the arithmetic may be off, relative to the sum of a curve's two terms: some roundings
    of float and the series for 16 bits, and those of the exponent, which grow with it."""
    a = abs(np.clip(z, -14, 14))
    exponent = dict(erf=a ** 2, tanh=3.2 * a + 0.3 * a ** 3, relu=0)[form]
    series = 1.4e-5 if kind != "float" and form == "erf" else 0
    return 2.0 ** -24 * (12 + 4 * exponent) + series


def both_terms(form, z):
    """|share below z| + |z times its slope|: the slope is their sum, and may be far smaller."""
    op = fused.relu if form == "relu" else fused.gelu
    settings = {} if form == "relu" else dict(form=form)
    z = np.where(z == 0, 1e-30, z)
    y, saved = op.text.forward(np, z, **settings)
    slope = op.text.backward(np, saved, np.ones_like(z), **settings)[0]
    share = y / z
    return abs(share) + abs(slope - share)


def reference(form, x, bias, dy):
    op = fused.relu if form == "relu" else fused.gelu
    settings = {} if form == "relu" else dict(form=form)
    y, saved = op.text.forward(np, x, bias, **settings)
    dx, dbias = op.text.backward(np, saved, dy, **settings)
    return y, dx, dbias


# tanh of NumPy's comes to -1 and some 1e-16, and that is all it knows of the rest.
LEAST = dict(erf=0.0, tanh=1e-14, relu=0.0)
FORMS = ["erf", "tanh", "relu"]


def inputs(kind, rows, width, seed=0, wide=3.0):
    rng = RNG(seed)
    x, dy = (stored(scale * rng.standard_normal((rows, width)), kind) for scale in (wide, 1.0))
    return x, stored(rng.standard_normal(width), kind), dy


def compare(kind, form, rows, width, biased, meeting=MEETINGS[0], seed=0):
    x, bias, dy = inputs(kind, rows, width, seed)
    bias = bias if biased else None
    y, dx = (poisoned(x.shape, x.dtype) for _ in range(2))
    dbias = poisoned(width, np.float32)
    activate(kind, form.upper(), x, bias, y, meeting)
    # ReLU keeps y, in which the bias is already.
    asked = (y, None) if form == "relu" else (x, bias)
    activate_grad(kind, form.upper(), *asked, dy, dx, dbias, meeting=meeting)

    z = numbers(x) + (numbers(bias) if biased else 0)
    wanted = reference(form, numbers(x), numbers(bias) if biased else np.zeros(width), numbers(dy))
    least = LEAST[form]
    near(y, wanted[0], amplified(kind, form, z) * abs(wanted[0]), kind, least)
    if form == "relu":                      # of a sum that is rounded to 0 the slope is 0
        wanted = reference(form, numbers(y), np.zeros(width), numbers(dy))
    slack = amplified(kind, form, z) * both_terms(form, z) * abs(numbers(dy))
    near(dx, wanted[1], slack, kind, least)
    # Sums of float: each addition is off by 2^-24 of the sum so far.
    slack = slack.sum(0) + 2.0 ** -24 * math.sqrt(rows + 32) * abs(wanted[1]).sum(0)
    near(dbias, wanted[2], slack, "float", least)
    return y, dx, dbias


@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("form", FORMS)
def test_value_and_slope_and_bias_are_those_of_numpy(form, kind):
    for rows, width, biased in (1, 8, True), (3, 264, False), (65, 24, True), (150, 256, True):
        compare(kind, form, rows, width, biased, seed=rows)


@pytest.mark.parametrize("kind", ["float", "bf16"])
def test_any_order_of_threads_gives_the_same_bits(kind):
    for form in FORMS:
        found = [compare(kind, form, 67, 264, True, meeting) for meeting in MEETINGS]
        for other in found[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(found[0], other))


def test_no_rows_leave_nothing_but_a_sum_of_zero():
    x, bias, dy = inputs("bf16", 0, 40)
    dbias = poisoned(40, np.float32)
    activate("bf16", "ERF", x, bias, x)
    activate_grad("bf16", "ERF", x, bias, dy, dy, dbias)
    assert np.array_equal(dbias, np.zeros(40))


def test_the_bias_adds_to_what_came_before_or_does_not():
    x, bias, dy = inputs("float", 70, 40)
    first, dx = poisoned(40, np.float32), poisoned(x.shape, np.float32)
    activate_grad("float", "ERF", x, bias, dy, dx, first)
    before = RNG(1).standard_normal(40).astype("f4")
    more = guarded(before)
    activate_grad("float", "ERF", x, bias, dy, dx, more, adding=True)
    assert abs(more - (before + first)).max() < 1e-5
    again = poisoned(x.shape, np.float32)
    activate_grad("float", "ERF", x, bias, dy, again)                   # nobody wants the bias's
    assert np.array_equal(again, dx)


def test_many_partial_sums_are_added_up():
    partial = RNG(2).standard_normal((147, 72)).astype("f4")
    for meeting in MEETINGS:
        total = poisoned(72, np.float32)
        arguments = guarded(partial), total, np.int32(147), np.int32(72), np.int32(0)
        launch("gelu.cu", "sum_partials", meeting, (3,), 1024, arguments, 4096)
        assert abs(total - partial.astype("f8").sum(0)).max() < 1e-5


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_number_of_16_bits(form, kind):
    x = np.arange(2 ** 16, dtype=np.uint16).reshape(-1, 256)
    exponent = dict(bf16=0x7f80, f16=0x7c00)[kind]
    x = np.where(x & exponent == exponent, np.uint16(0), x)             # neither infinite nor NaN
    x = x if kind == "bf16" else x.view(np.float16)
    if form == "tanh":
        x = np.where(abs(numbers(x)) < 1e18, x, x.dtype.type(0))
    x = guarded(x)
    dy = stored(np.ones(x.shape), kind)
    y, dx = (poisoned(x.shape, x.dtype) for _ in range(2))
    activate(kind, form.upper(), x, None, y)
    activate_grad(kind, form.upper(), x, None, dy, dx)
    z = numbers(x)
    right, slope, _ = reference(form, z, np.zeros(256), np.ones(x.shape))
    near(y, right, amplified(kind, form, z) * abs(right), kind, LEAST[form])
    near(dx, slope, amplified(kind, form, z) * both_terms(form, z), kind, LEAST[form])


def test_floats_are_right_to_a_few_units_at_every_height():
    ends = [0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 3e38, -3e38]
    x = stored(np.concatenate([np.linspace(-13, 13, 8000), ends]).reshape(-1, 8), "float")
    y, dx = (poisoned(x.shape, x.dtype) for _ in range(2))
    activate("float", "ERF", x, None, y)
    activate_grad("float", "ERF", x, None, stored(np.ones(x.shape), "float"), dx)
    z = numbers(x)
    right, slope, _ = reference("erf", z, np.zeros(8), np.ones(x.shape))
    unit = 2.0 ** -23 * np.maximum(abs(right), 1e-37)
    assert (abs(y - right) / unit / (1 + np.clip(z, -14, 0) ** 2)).max() < 4
    assert abs(dx - slope).max() < 4 * 2.0 ** -23


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_number_stays_none(form):
    x = stored(np.array([[np.nan, 1, 2, 3, 4, 5, 6, 7]]), "f16")
    y = poisoned(x.shape, x.dtype)
    activate("f16", form.upper(), x, None, y)
    assert np.array_equal(np.isnan(y), np.isnan(x))


# ---- the gate

@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("form", ["erf", "tanh"])
def test_a_gate_and_its_two_gradients_are_those_of_numpy(form, kind):
    for rows, width in (0, 8), (1, 8), (5, 24), (33, 72), (9, 1152):
        rng = RNG(rows)
        x = stored(2 * rng.standard_normal((rows, 2 * width)), kind)
        dy = stored(rng.standard_normal((rows, width)), kind)
        y, dx = poisoned(dy.shape, x.dtype), poisoned(x.shape, x.dtype)
        geglu(kind, form.upper(), x, y)
        geglu_grad(kind, form.upper(), x, dy, dx)
        right, factors = fused.geglu.text.forward(np, numbers(x), form=form)
        wanted, = fused.geglu.text.backward(np, factors, numbers(dy), form=form)
        if not rows:
            continue
        a, b = np.split(numbers(x), 2, axis=1)
        off = amplified(kind, form, a)
        near(y, right, off * abs(right), kind, 1e-13)
        scale = [both_terms(form, a) * abs(b * numbers(dy)), abs(wanted[:, width:])]
        near(dx, wanted, np.concatenate([off * s for s in scale], axis=1), kind, 1e-13)


def test_a_gate_under_any_order_of_threads_and_on_top_of_its_input():
    rng = RNG(3)
    given = stored(rng.standard_normal((7, 80)), "bf16")
    dy = stored(rng.standard_normal((7, 40)), "bf16")
    found = []
    for meeting in MEETINGS:
        x, y, dx = guarded(given), poisoned(dy.shape, np.uint16), poisoned(given.shape, np.uint16)
        geglu("bf16", "ERF", x, y, meeting)
        geglu_grad("bf16", "ERF", x, dy, dx, meeting)
        geglu_grad("bf16", "ERF", x, dy, x, meeting)
        assert np.array_equal(x, dx)
        found.append((y, dx))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other))


def test_an_activation_on_top_of_what_it_reads():
    x, bias, dy = inputs("bf16", 67, 264)
    y, dx = (poisoned(x.shape, x.dtype) for _ in range(2))
    activate("bf16", "ERF", x, bias, y)
    activate_grad("bf16", "ERF", x, bias, dy, dx)
    activate_grad("bf16", "ERF", x, bias, dy, dy)
    activate("bf16", "ERF", x, bias, x)
    assert np.array_equal(dy, dx) and np.array_equal(x, y)
