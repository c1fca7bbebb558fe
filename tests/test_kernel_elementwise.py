"""rope.cu and elementwise.cu: rotary positions, dropout, casts, sums and scaling, against NumPy."""
import emulated
import numpy as np
import pytest
from emulated import MEETINGS, ROUNDING, TYPES, guarded, numbers, poisoned, stored

from tinybert_family.engine import fused, philox

RNG = np.random.default_rng
KINDS = ["float", "bf16", "f16"]


# ---- launches

def launch(file, name, meeting, blocks, arguments):
    if blocks:
        emulated.kernel(file, name, meeting)((blocks,), (256,), arguments)


def upwards(n, step):
    return -(-n // step)


def rope(kind, x, cos, sin, size, columns, direction=1, places=None, meeting=MEETINGS[0]):
    tokens, stride = x.shape
    arguments = x, cos, sin, places, *map(np.int32, (tokens, stride, columns, size))
    launch("rope.cu", f"rope<{kind},{direction}>", meeting, upwards(tokens, 8), arguments)


def dropout(kind, x, y, run, part, site, p, meeting=MEETINGS[0]):
    rows, width = x.shape
    place = np.uint32(part), np.uint32(site)
    rate = np.uint32(philox.threshold(p)), np.float32(philox.scale(p))
    arguments = x, y, run, *place, *rate, np.int32(rows), np.int32(width)
    blocks = upwards(rows * upwards(width, 16), 256)
    launch("elementwise.cu", f"dropout<{kind}>", meeting, blocks, arguments)


def flat(name, *arrays, meeting=MEETINGS[0]):
    """cast(from, to), add(out, x), scale_by(x, factor): of as many numbers as the first has."""
    n = arrays[0].size
    launch("elementwise.cu", name, meeting, upwards(n, 4096), (*arrays, np.int32(n)))


# ---- how nearly

# Half a unit in the last place, relative to the number, and half the smallest number there is.
SMALLEST = dict(float=1e-37, bf16=1e-37, f16=2.0 ** -25)


def near(got, right, scale, kind):
    """Rounded once to its type, after a step or two in float on numbers of the size of `scale`."""
    error = abs(numbers(got) - right)
    allowed = ROUNDING[kind] * abs(right) + 3 * 2.0 ** -24 * scale + SMALLEST[kind]
    assert (error <= allowed).all()


# ---- rotary positions

def rotary(kind, tokens, heads, size, values=True, places=None, meeting=MEETINGS[0]):
    """Turn queries and keys (and, with them, values that stay), there and back, as NumPy does."""
    rng = RNG(tokens)
    columns = 2 * heads * size
    stride = columns + heads * size * values
    table = tokens if places is None else 50
    angles = rng.uniform(-9, 9, (table, size // 2))
    cos, sin = (stored(f(angles), "float") for f in (np.cos, np.sin))
    given = stored(rng.standard_normal((tokens, stride)), kind)
    chosen = slice(None) if places is None else places
    known = dict(cos=numbers(cos)[chosen], sin=numbers(sin)[chosen])
    settings = dict(known, heads=heads, columns=columns)
    forward = fused.rope.text.forward(np, numbers(given), **settings)[0]
    backward, = fused.rope.text.backward(np, None, numbers(given), **settings)
    found = []
    for right, direction in (forward, 1), (backward, -1):
        x = guarded(given)
        rope(kind, x, cos, sin, size, columns, direction, places, meeting)
        near(x, right, 2 * abs(numbers(given)).max(initial=0), kind)
        assert np.array_equal(x[:, columns:], given[:, columns:])
        found.append(x)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 32, 48, 64, 96, 128, 512])
def test_queries_and_keys_are_turned_as_numpy_turns_them(size, kind):
    for tokens, heads in (0, 1), (1, 1), (9, 3), (17, 2):
        rotary(kind, tokens, heads, size, values=tokens % 2)


def test_angles_may_be_looked_up_in_a_table_of_places():
    places = guarded(RNG(4).integers(0, 50, 13, dtype=np.int32))
    rotary("bf16", 13, 12, 64, places=places)


def test_turning_under_any_order_of_threads():
    found = [rotary("bf16", 11, 5, 64, meeting=meeting) for meeting in MEETINGS]
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other))


# ---- dropout

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [8, 16, 24, 72, 768])
def test_dropout_drops_what_numpy_drops(width, kind):
    run = guarded(np.array([2 ** 32 - 5, 77], np.uint32))
    for rows, p in (0, 0.1), (1, 0.5), (7, 0.1), (33, 0.9):
        rng = RNG(rows)
        x, dy = (stored(rng.uniform(0.5, 2, (rows, width)), kind) for _ in range(2))
        key = philox.Key(2 ** 32 - 5, 77, 2, 9)
        right, keep = fused.dropout.text.forward(np, numbers(x), p=p, key=key)
        wanted, = fused.dropout.text.backward(np, keep, numbers(dy), p=p, key=key)
        for given, right in (x, right), (dy, wanted):
            y = poisoned(x.shape, x.dtype)
            dropout(kind, given, y, run, 2, 9, p)
            assert np.array_equal(numbers(y) != 0, keep)
            near(y, right, abs(right), kind)


def test_dropout_in_place_and_under_any_order_of_threads():
    given = stored(RNG(5).standard_normal((37, 136)), "bf16")
    run = guarded(np.array([1, 2], np.uint32))
    y = poisoned(given.shape, given.dtype)
    dropout("bf16", given, y, run, 0, 0, 0.1)
    for meeting in MEETINGS:
        x = guarded(given)
        dropout("bf16", x, x, run, 0, 0, 0.1, meeting)
        assert np.array_equal(x, y)


# ---- flat arrays

SIZES = [0, 1, 7, 4090, 4096, 4104, 9001]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_casts_round_to_the_nearest_and_widen_exactly(kind, n):
    x = stored(RNG(n).standard_normal(n), "float")
    narrow, wide = poisoned(n, TYPES[kind]), poisoned(n, np.float32)
    flat(f"cast<float,{kind}>", x, narrow)
    assert np.array_equal(narrow, stored(x, kind))
    flat(f"cast<{kind},float>", narrow, wide)
    assert np.array_equal(wide, numbers(narrow))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_scaling_are_rounded_once(kind, n):
    rng = RNG(n)
    out, x = (stored(rng.standard_normal(n), kind) for _ in range(2))
    right = numbers(out) + numbers(x)
    flat(f"add<{kind}>", out, x)
    near(out, right, abs(right), kind)
    factor = stored([0.37], "float")
    right = numbers(x) * np.float64(factor[0])
    flat(f"scale_by<{kind}>", x, factor)
    near(x, right, abs(right), kind)


@pytest.mark.parametrize("meeting", MEETINGS[1:])
def test_flat_arrays_under_any_order_of_threads(meeting):
    given = stored(RNG(6).standard_normal(5000), "bf16")
    factor = stored([0.37], "float")
    found = []
    for order in MEETINGS[0], meeting:
        x, wide = guarded(given), poisoned(5000, np.float32)
        flat("add<bf16>", x, given, meeting=order)
        flat("scale_by<bf16>", x, factor, meeting=order)
        flat("cast<bf16,float>", x, wide, meeting=order)
        found.append(wide)
    assert np.array_equal(*found)
