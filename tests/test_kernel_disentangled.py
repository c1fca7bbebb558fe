"""The kernels of disentangled.cu and disentangled_backward.cu against engine/attention.py, in
float64 on what they read."""
import functools

import emulated
import numpy as np
import pytest
from emulated import MEETINGS, ROUNDING, guarded, numbers, poisoned, stored

from tinybert_family.engine import fused, philox
from tinybert_family.models.parts import disentangled

FORWARD, BACKWARD = "disentangled.cu", "disentangled_backward.cu"
KEY = philox.Key(seed=12, step=34, part=2, site=5)
TILE, SKEW = 64, 88


# ---- launching

def arrangement(cuts, spare=0):
    """work [W, 2]: the tiles of 64 rows there are, those of the longest sequences first. spare:
    items that stand for nothing."""
    lengths = np.diff(cuts)
    longest_first = np.argsort(-lengths, kind="stable")
    rows = [(s, first) for s in longest_first for first in range(0, lengths[s], TILE)]
    rows += [(-1, 0)] * spare
    return guarded(np.array(rows, np.int32).reshape(-1, 2))


def ends(buckets):
    """(furthest, below, above): the distances up to `below` share a row, and those from `above`."""
    furthest = len(buckets) // 2
    first_run = int((np.cumsum(buckets != buckets[0]) == 0).sum())
    last_run = int((np.cumsum(buckets[::-1] != buckets[-1]) == 0).sum())
    return [np.int32(x) for x in (furthest, first_run - 1 - furthest, furthest + 1 - last_run)]


def tables(keys_at, queries_at):
    if keys_at is None:
        return "QUERIES_AT"
    return "KEYS_AT" if queries_at is None else "BOTH"


def where(qkv, heads):
    """The arguments of a kernel that say where in [q|k|v] to look."""
    width = qkv.shape[1] // 3
    return [np.int32(x) for x in (len(qkv), heads, 3 * width, 3 * width, width, 2 * width)]


def draws(key, threshold):
    run = guarded(np.array([key.seed, key.step], np.uint32))
    return run, [np.uint32(x) for x in (key.part, key.site, threshold)]


def forward(kind, qkv, keys_at, queries_at, out, lse, cuts, buckets, heads, scale, threshold=0,
            key=KEY, meeting=MEETINGS[0], spare=0):
    size, work = out.shape[1] // heads, arrangement(cuts, spare)
    run, random = draws(key, threshold)
    of = f"forward<{kind},{size},{tables(keys_at, queries_at)}>"
    plain, shared = [], 2 * (6 * TILE * size + 16 * size + 2 * TILE * SKEW)
    if kind == "float":
        of, plain, shared = "plain_forward<float>", [np.int32(size)], 0
    call = emulated.kernel(FORWARD, f"disentangled_{of}", meeting)
    call((len(work) * heads,), (128,), (
        qkv.reshape(-1), qkv.reshape(-1), keys_at, queries_at, out, lse, guarded(buckets), work,
        guarded(cuts.astype(np.int32)), run, *plain, *where(qkv, heads), *ends(buckets),
        np.float32(scale), *random), shared=shared)


def diagonals(longest, below, above):
    """(the first, how many): of the diagonals of tiles, those on which distances differ."""
    tiles = -(-longest // TILE)
    near = [d for d in range(1 - tiles, tiles) if below < d * TILE + 63 and d * TILE - 63 < above]
    return (near[0], len(near)) if near else (0, 0)


def backward(kind, qkv, keys_at, queries_at, out, dout, lse, cuts, buckets, heads, scale,
             threshold=0, key=KEY, meeting=MEETINGS[0], parts=2, spare=0):
    """-> dqkv, and the tables' gradients."""
    tokens, width = out.shape
    size, work = width // heads, arrangement(cuts, spare)
    of = f"{kind},{size},{tables(keys_at, queries_at)}"
    run, random = draws(key, threshold)
    limits, static = ends(buckets), guarded(buckets)
    starting = guarded(cuts.astype(np.int32))
    delta, dqkv = poisoned((heads, tokens), "f4"), poisoned(qkv.shape, emulated.TYPES[kind])
    first, count = diagonals(max(np.diff(cuts), default=0), *limits[1:])
    far = [poisoned((len(work), 2, width), "f4") for _ in range(2)]
    near = poisoned((parts, 2, count, 2 * TILE, width), "f4")
    flat = qkv.reshape(-1)
    into = dqkv.reshape(-1)
    settings = [*where(qkv, heads), *limits, np.float32(scale), *random]
    for side, sums in zip(["QUERIES", "KEYS"], far):
        call = emulated.kernel(BACKWARD, f"disentangled_side<{of},{side}>", meeting)
        call((len(work) * heads,), (128,), (
            flat, flat, keys_at, queries_at, out, dout, lse, delta, into, into, sums, static, work,
            starting, run, *settings),
            shared=2 * (10 * TILE * size + 16 * size + 2 * TILE * SKEW) + 2 * TILE * 8)
    if count:
        call = emulated.kernel(BACKWARD, f"disentangled_distances<{of}>", meeting)
        call((count, heads, parts), (128,), (
            flat, flat, keys_at, queries_at, dout, lse, delta, near, static, work, starting, run,
            np.int32(len(work)), np.int32(first), *settings),
            shared=2 * (10 * TILE * size + 2 * TILE * SKEW))
    gradients = [dqkv]
    for i, table in enumerate([keys_at, queries_at]):
        if table is None:
            gradients.append(None)
            continue
        gradient = poisoned(table.shape, "f4")
        starts = np.searchsorted(buckets, np.arange(len(table) + 1)).astype(np.int32)
        call = emulated.kernel(BACKWARD, "disentangled_tables", meeting)
        call((len(table), -(-width // 128)), (256,), (
            near.reshape(-1)[i * count * 2 * TILE * width:], far[i], static, guarded(starts), work,
            gradient, np.int32(width), np.int32(parts), np.int32(2 * count * 2 * TILE * width),
            np.int32(count), np.int32(first), np.int32(len(work)), limits[0]), shared=4096)
        gradients.append(gradient)
    return gradients


# ---- cases

def v1(longest, span):
    """The first version's buckets: distances end at span."""
    return np.clip(np.arange(1 - longest, longest) + span, 0, 2 * span - 1).astype(np.int32)


def v3(longest, span, furthest):
    """The third version's: far distances share rows, the further the more."""
    rows = disentangled.bucket(np.arange(1 - longest, longest), 2 * span, furthest)
    return np.clip(rows + span, 0, 2 * span - 1).astype(np.int32)


class Case:
    """Arrays as the kernels read them, and what the op says of them in float64."""

    def __init__(self, kind, lengths, buckets, heads=2, size=64, terms=3, p=0.0, seed=0, wide=1.0):
        rng = np.random.default_rng(seed)
        width, rows = heads * size, int(max(buckets)) + 1
        self.kind, self.heads, self.p, self.key = kind, heads, p, KEY
        self.threshold, self.buckets = philox.threshold(p), buckets
        self.cuts = np.cumsum([0, *lengths])
        self.scale = (3 * size) ** -0.5
        self.qkv = stored(wide * rng.standard_normal((self.cuts[-1], 3 * width)), kind)
        both = [stored(wide * rng.standard_normal((rows, width)), kind) for _ in range(2)]
        self.keys_at = both[0] if terms & 1 else None
        self.queries_at = both[1] if terms & 2 else None
        self.dout = stored(rng.standard_normal((self.cuts[-1], width)), kind)

    def arrays(self):
        given = self.qkv, None, self.keys_at, self.queries_at
        return [None if x is None else numbers(x) for x in given]

    def how(self):
        return dict(cuts=self.cuts, heads=self.heads, scale=self.scale, buckets=self.buckets)

    @functools.cached_property
    def expected(self):
        how = dict(self.how(), p=self.p, key=self.key)
        return fused.attention.text.forward(np, *self.arrays(), **how)

    @functools.cached_property
    def lse(self):
        """[A, T], -inf where there is no key."""
        s, _ = fused.scores.text.forward(np, *self.arrays(), **self.how())      # [T, A, P]
        top = s.max(-1)
        return (top + np.log(np.exp(s - top[..., None]).sum(-1))).T

    def forward(self, **more):
        tokens, width = self.dout.shape
        out = poisoned((tokens, width), emulated.TYPES[self.kind])
        lse = poisoned((self.heads, tokens), "f4")
        forward(self.kind, self.qkv, self.keys_at, self.queries_at, out, lse, self.cuts,
                self.buckets, self.heads, self.scale, self.threshold, self.key, **more)
        return out, lse

    def expected_gradients(self):
        """Of qkv and the tables there are, as dense arrays."""
        how = dict(self.how(), p=self.p, key=self.key)
        found = fused.attention.text.backward(np, self.expected[1], numbers(self.dout), **how)
        dense = [found[0]]
        for part in found[2:]:
            if part is not None:
                dense.append(np.zeros(part.shape))
                dense[-1][part.index] = part.rows
        return dense

    def backward(self, **more):
        """dqkv, and the gradients of the tables there are."""
        out, lse = self.forward()
        found = backward(self.kind, self.qkv, self.keys_at, self.queries_at, out, self.dout, lse,
                         self.cuts, self.buckets, self.heads, self.scale, self.threshold, self.key,
                         **more)
        return [x for x in found if x is not None]


def close(found, expected, kind, times, size=0):
    """Each summand has been rounded to the type, so errors are of that order relative to the
    largest numbers about; `times` is some four times what is found."""
    allowed = times * ROUNDING[kind] * max(size, abs(expected).max())
    worst = abs(numbers(found) - expected).max()
    assert worst <= allowed, f"{worst:.3g}, but {allowed:.3g} is allowed"


def forward_is_right(case, times=6):
    out, lse = case.forward()
    close(out, case.expected[0], case.kind, times)
    np.testing.assert_allclose(lse, case.lse, rtol=0, atol=2 * times * ROUNDING[case.kind])


def backward_is_right(case, times=12, **more):
    dqkv, *dtables = case.backward(**more)
    expected, *expected_tables = case.expected_gradients()
    for found, right in zip(np.split(dqkv, 3, 1), np.split(expected, 3, 1), strict=True):
        close(found, right, case.kind, times)
    # A table of one row adds the same to all scores of a query: its gradient is 0.
    size = max(abs(x).max() for x in expected_tables)
    for found, right in zip(dtables, expected_tables, strict=True):
        close(found, right, case.kind, times, size)


# ---- forward

MIXED = [1, 2, 17, 63, 64, 65, 130, 200]
CASES = dict(
    v1=dict(lengths=MIXED, buckets=v1(200, 100)),
    v1_far=dict(lengths=MIXED, buckets=v1(200, 20)),
    v3=dict(lengths=[0, *MIXED], buckets=v3(200, 16, 64)),
    v3_far=dict(lengths=[330, 5], buckets=v3(330, 16, 64), heads=1),
    more_buckets_than_needed=dict(lengths=[65, 3], buckets=v3(300, 16, 64)),
    all_rows_apart=dict(lengths=[130, 3], buckets=v1(130, 130), heads=1),
    one_row=dict(lengths=[130, 1], buckets=np.zeros(259, np.int32), heads=1),
)


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("name", CASES)
def test_forward(name, p):
    forward_is_right(Case("bf16", **CASES[name], p=p))


VARIANTS = dict(
    f16=dict(kind="f16"), queries_alone=dict(terms=2), keys_alone=dict(terms=1),
    narrow_heads=dict(size=32, heads=3))
SMALL = dict(kind="bf16", lengths=[130, 0, 7], buckets=v3(130, 8, 30), heads=1, p=0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_of_other_kinds(name):
    mixed = dict(lengths=MIXED[1:], buckets=v3(200, 16, 64))
    forward_is_right(Case(**SMALL | mixed | VARIANTS[name]))


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_forward_in_float(terms):
    case = Case("float", [1, 34, 17], v3(34, 4, 16), size=26, terms=terms, p=0.4)
    forward_is_right(case, 40)                      # sums of 78 products, one after the other


def test_forward_where_few_keys_get_everything():
    forward_is_right(Case("f16", [130, 70], v1(130, 20), wide=2.5, heads=1), 30)


# ---- backward

@pytest.mark.parametrize("name,p", [("v1", 0.1), ("v3_far", 0.0), ("v3_far", 0.1), ("one_row", 0.0),
                                    ("more_buckets_than_needed", 0.0), ("all_rows_apart", 0.0)])
def test_backward(name, p):
    backward_is_right(Case("bf16", **dict(CASES[name], heads=1), p=p))


@pytest.mark.parametrize("name", VARIANTS)
def test_backward_of_other_kinds(name):
    backward_is_right(Case(**SMALL | VARIANTS[name]), parts=1)


# ---- both ways

@pytest.mark.parametrize("meeting", MEETINGS)
def test_threads_may_run_and_copies_land_in_any_order(meeting):
    case = Case(**SMALL)
    forward_is_right(case)
    for a, b in zip(case.forward(meeting=meeting), first_forward()):
        assert np.array_equal(a.view("u1"), b.view("u1"))
    for a, b in zip(case.backward(meeting=meeting), first_backward(), strict=True):
        assert np.array_equal(a.view("u1"), b.view("u1"))


@functools.lru_cache(None)
def first_forward():
    return Case(**SMALL).forward()


@functools.lru_cache(None)
def first_backward():
    return Case(**SMALL).backward()


def test_work_that_stands_for_nothing_changes_nothing():
    case = Case(**SMALL)
    for a, b in zip(case.forward(spare=3), first_forward()):
        assert np.array_equal(a.view("u1"), b.view("u1"))
    for a, b in zip(case.backward(spare=2), first_backward(), strict=True):
        close(a, numbers(b), case.kind, 1e-3)       # the tables' sums have other parts
    assert np.array_equal(case.backward(spare=2)[0].view("u1"), first_backward()[0].view("u1"))


@pytest.mark.parametrize("edge", [64, 65, 66])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_tile_is_far_only_if_all_its_distances_are(side, edge):
    """The tiles two off the diagonal have distances 65 to 191; the row changes at the edge. One
    pair of tokens is 65 apart, and the one asks for all that is not beyond the edge."""
    distance = np.arange(-190, 191)
    buckets = (distance >= edge if side > 0 else distance > -edge).astype(np.int32)
    case = Case("bf16", [191], buckets, heads=1, size=32)
    token, near = (128, 0) if side > 0 else (63, 1)
    case.keys_at[near] = stored(3 * numbers(case.qkv[token, :32]), case.kind)
    _, below, above = ends(buckets)
    assert (above if side > 0 else -below) == edge
    first, count = diagonals(191, below, above)
    assert (first + count - 1 if side > 0 else -first) == (1 if edge <= 65 else 2)
    forward_is_right(case)
    close(case.forward()[0][token], case.expected[0][token], case.kind, 6)
    backward_is_right(case, parts=1)


@pytest.mark.parametrize("token", [0, 129])
def test_the_longest_distance_has_its_own_row(token):
    case = Case("bf16", [130], v1(130, 130), heads=1, size=32)
    row = case.buckets[0 if token == 0 else -1]
    case.keys_at[row] = stored(3 * numbers(case.qkv[token, :32]), case.kind)
    close(case.forward()[0][token], case.expected[0][token], case.kind, 6)


@pytest.mark.parametrize("p", [0.4, 0.9])
def test_dropout_drops_what_numpy_drops(p):
    """Where values are the rows of a unit matrix, the answers are the probabilities; and so are
    the values' gradients where the answers' are."""
    case = Case(**dict(SMALL, p=p))
    width, tokens = 64, len(case.qkv)
    place = np.concatenate([np.arange(130), np.arange(7)])
    keep = philox.draw(np, KEY, tokens, 130) >= case.threshold      # [T, places]
    one = stored(np.eye(64), case.kind)
    for first in 0, 64:
        here = (place >= first) & (place < first + 64)
        unit = np.where(here[:, None], one[place % 64], one.dtype.type(0))
        case.qkv[:, 2 * width:], case.dout[...] = unit, unit
        out = numbers(case.forward()[0])
        dv = numbers(case.backward()[0][:, 2 * width:])
        for lo, hi in (0, 130), (130, 137):
            n = min(64, hi - lo - first)
            if n <= 0:
                continue
            seen = keep[lo:hi, first:first + n]
            assert np.array_equal(out[lo:hi, :n] > 0, seen)
            asked = keep[lo + first:lo + first + n, :hi - lo]       # by these queries
            assert np.array_equal(dv[lo:hi, :n].T > 0, asked)


def test_no_two_rows_of_a_read_lie_in_one_bank():
    for file in FORWARD, BACKWARD:
        emulated.conflicts(file)
    for size in 32, 64:
        Case(**dict(SMALL, size=size)).backward()
    for file in FORWARD, BACKWARD:
        reads, waits = emulated.conflicts(file)
        assert reads > 1000 and waits == 0
