"""The kernels of attention.cu and attention_backward.cu, on the emulator, against the pair of NumPy
functions in engine/attention.py in float64."""
import emulated
import numpy as np
import pytest
from emulated import MEETINGS, ROUNDING, numbers, poisoned, stored

from tinybert_family.engine import philox
from tinybert_family.engine.attention import attention, scores
from tinybert_family.engine.tiles import dropout_mask, tiles

STREAM, PLAIN, ANYWHERE = 64, 16, 1 << 30


# ---- launching

def instance(kind, size, own, *more):
    """(Part of) the name of an instance, and its padded head size."""
    if kind == "float":
        return "<float>", size
    padded = next(D for D in (32, 64, 128) if D >= size)
    return f"<{','.join(map(str, (kind, padded, own, *more)))}>", padded


def work(counts, own, sequences):
    """Pairs of a sequence and the first of at most `own` of its rows: of these sequences, those of
    most rows first."""
    sequences = sequences[np.argsort(-counts[sequences], kind="stable")]
    times = -(-counts[sequences] // own)
    before = np.repeat(np.cumsum(times) - times, times)
    first = (np.arange(times.sum()) - before) * own
    return np.stack([np.repeat(sequences, times), first], 1).astype(np.int32)


class Attention:
    """What both passes are told. columns: where k and v begin in a row of keys_values."""

    def __init__(self, kind, heads, size, cuts, query_cuts, rows, strides, columns, reach, scale, p,
                 run, key, meeting):
        self.kind, self.heads, self.size, self.meeting = kind, heads, size, meeting
        self.lengths, self.asked = np.diff(cuts), np.diff(query_cuts)
        self.most = max(self.lengths, default=0)
        threshold = philox.threshold(p) if key else 0
        i, f, u = np.int32, np.float32, np.uint32
        self.where = [emulated.guarded(np.asarray(x, i)) for x in (query_cuts, cuts)]
        self.where += [None if rows is None else emulated.guarded(rows.astype(i)), run]
        self.settings = [i(query_cuts[-1]), i(heads), i(size), *map(i, strides), *map(i, columns),
                         i(ANYWHERE if reach is None else reach), f(scale),
                         u(key.part if key else 0), u(key.site if key else 0), u(threshold),
                         f(256 / (256 - threshold))]

    def launch(self, file, name, arrays, counts, own, sequences, more, rows_of_tiles, extra=0):
        items = work(counts, own, sequences)
        if not len(items):
            return
        plain = self.kind == "float"
        which, padded = instance(self.kind, self.size, own, *more)
        name = (name.replace("attention_", "attention_plain_") if plain else name) + which
        shared = 0 if plain else rows_of_tiles * (padded + 8) * 2 + 2048 + extra
        kernel = emulated.kernel(file, name, self.meeting)
        arguments = (*arrays, emulated.guarded(items), *self.where, *self.settings)
        kernel((len(items) * self.heads,), (128,), arguments, shared)

    def own(self, wide):
        """How many rows a block owns: 128 where registers suffice and there are as many."""
        if self.kind == "float":
            return PLAIN
        return 128 if wide and 32 < self.size <= 64 and self.most > 64 else 64

    def forward(self, queries, keys_values, out, lse):
        own, every = self.own(True), np.arange(len(self.asked))
        self.launch("attention.cu", "attention_forward", (queries, keys_values, out, lse),
                    self.asked, own, every, (), own + 4 * STREAM)

    def backward(self, queries, keys_values, out, lse, dout, delta, dqueries, dkeys_values):
        file = "attention_backward.cu"
        given = queries, keys_values, out, lse, dout, delta, dqueries
        both = *given, dkeys_values
        wide = self.kind == "bf16"
        left = np.arange(len(self.lengths))
        if self.kind != "float":
            for own in (64, 128) if wide and 32 < self.size <= 64 else (64,) * (self.size <= 64):
                some, left = split(left, self.lengths[left] <= own)
                stages = 1 if own == 64 else 2
                self.launch(file, "attention_backward_keys", both, self.lengths, own, some, (1,),
                            2 * own + 2 * stages * STREAM,
                            stages * 2 * (STREAM + 4) * 4 + own * (STREAM + 8) * 2)
        own = self.own(wide)
        self.launch(file, "attention_backward_queries", given, self.asked, own, left, (),
                    2 * own + 4 * STREAM)
        self.launch(file, "attention_backward_keys", both, self.lengths, own, left, (0,),
                    2 * own + 4 * STREAM, 4 * (STREAM + 4) * 4)


def split(x, yes):
    return x[yes], x[~yes]


# ---- cases

MIXED = [1, 2, 130, 15, 16, 0, 17, 63, 64, 65, 127, 200]


class Case:
    """Random arrays of a type, and what the kernels and NumPy make of them."""

    def __init__(self, kind="bf16", size=64, heads=2, lengths=MIXED, reach=None, p=0.0, asked=False,
                 scale=None, meeting=MEETINGS[0], seed=0, sharp=1.0):
        rng = np.random.default_rng(seed)
        self.kind, self.heads, self.size, self.reach, self.p = kind, heads, size, reach, p
        H, T = heads * size, sum(lengths)
        self.cuts = self.query_cuts = np.cumsum([0, *lengths])
        self.rows = np.flatnonzero(rng.random(T) < asked) if asked else None
        self.key = philox.Key(12345, 67, 3, 5) if p else None
        self.scale = scale or size ** -0.5
        self.meeting = meeting
        x = sharp * rng.standard_normal((T, 3 * H))
        if asked:
            self.query_cuts = np.searchsorted(self.rows, self.cuts)
            self.queries, self.keys_values = stored(x[self.rows, :H], kind), stored(x[:, H:], kind)
        else:
            self.queries = self.keys_values = stored(x, kind)
        self.dout = stored(rng.standard_normal((self.query_cuts[-1], H)), kind)

    def run(self):
        """-> y, lse, and the gradients as the queries and the keys and values are."""
        R, H = self.dout.shape
        first = self.queries.shape[1] - H                               # 2H where q is part of them
        strides = self.queries.shape[1], self.keys_values.shape[1]
        run = emulated.guarded(np.array([12345, 67], np.uint32))
        a = Attention(self.kind, self.heads, self.size, self.cuts, self.query_cuts, self.rows,
                      strides, (first // 2, first // 2 + H), self.reach, self.scale, self.p, run,
                      self.key, self.meeting)
        self.out = poisoned((R, H), self.dout.dtype)
        self.lse, self.delta = (poisoned((self.heads, R), np.float32) for _ in range(2))
        dqueries = poisoned(self.queries.shape, self.dout.dtype)
        together = self.keys_values is self.queries
        dkeys_values = dqueries if together else poisoned(self.keys_values.shape, self.dout.dtype)
        a.forward(self.queries, self.keys_values, self.out, self.lse)
        a.backward(self.queries, self.keys_values, self.out, self.lse, self.dout, self.delta,
                   dqueries, dkeys_values)
        self.dqueries, self.dkeys_values = dqueries, dkeys_values
        return self

    def apart(self, queries, keys_values):
        """q, k and v [R or T, A, size] of such arrays, as numbers."""
        queries, keys_values = numbers(queries), numbers(keys_values)
        H = self.heads * self.size
        parts = queries[:, :H], keys_values[:, -2 * H:-H], keys_values[:, -H:]
        return [x.reshape(len(x), self.heads, self.size) for x in parts]

    def found(self):
        dq, dk, dv = self.apart(self.dqueries, self.dkeys_values)
        y, lse = numbers(self.out).reshape(dq.shape), self.lse.T.astype("f8")
        return dict(y=y, lse=lse, dq=dq, dk=dk, dv=dv)

    def told(self):
        return dict(cuts=self.cuts, heads=self.heads, rows=self.rows, reach=self.reach,
                    scale=self.scale)

    def expected(self):
        H = self.heads * self.size
        q, k, v = (x.reshape(len(x), H) for x in self.apart(self.queries, self.keys_values))
        both = np.concatenate([k, v], 1)
        arrays = (np.concatenate([q, both], 1), None) if self.rows is None else (both, q)
        drop = dict(p=self.p, key=self.key)
        y, saved = attention.text.forward(np, *arrays, None, None, **self.told(), **drop)
        dx, dq, *_ = attention.text.backward(np, saved, numbers(self.dout), **self.told(), **drop)
        dq = dx[:, :H] if dq is None else dq
        s, _ = scores.text.forward(np, *arrays, None, None, **self.told())
        peak = s.max(-1, initial=-1e300)
        lse = np.log(np.exp(s - peak[..., None]).sum(-1)) + peak
        parts = dict(y=y, dq=dq, dk=dx[:, -2 * H:-H], dv=dx[:, -H:])
        return dict({name: x.reshape(len(x), self.heads, self.size) for name, x in parts.items()},
                    lse=lse)


# What is rounded to the type, relative to the largest number of an array: the probabilities and the
# result itself (y, dv); beside these the y that delta is made of, and dS (dq, dk). Each may be off
# by one rounding, and they rarely add up. In float, sums of up to 200 numbers are off by a few.
# Where a query looks at one key alone, dq and dk are differences of equal numbers, as large as dv.
OFF = dict(y=2, dv=2, dq=3, dk=3)


def agree(case):
    case.run()
    found, expected = case.found(), case.expected()
    off = np.abs(found["lse"] - expected["lse"]) / (1 + np.abs(expected["lse"]))
    assert off.max(initial=0) <= 2e-6                       # one of a float's numbers in 500000
    for name, times in OFF.items():
        allowed = times * ROUNDING[case.kind] * (8 if case.kind == "float" else 1)
        size = np.abs(expected["dv" if case.reach == 0 else name]).max(initial=0)
        off = np.abs(found[name] - expected[name]).max(initial=0)       # NaN if never written
        assert off <= allowed * size + 1e-30, (name, off / allowed, size)


FEW = [1, 2, 33, 0, 17, 40]


@pytest.mark.parametrize("p", [0, 0.1])
@pytest.mark.parametrize("kind, size, lengths", [
    ("bf16", 64, MIXED), ("bf16", 32, MIXED), ("bf16", 128, MIXED), ("bf16", 26, MIXED),
    ("bf16", 25, FEW), ("f16", 64, MIXED), ("f16", 26, FEW), ("float", 26, FEW),
    ("float", 100, FEW)])
def test_forward_and_backward_are_those_of_numpy(kind, size, lengths, p):
    agree(Case(kind, size, lengths=lengths, p=p))


@pytest.mark.parametrize("reach", [0, 5, 16, 64])
@pytest.mark.parametrize("kind, lengths", [("bf16", [70, 3, 128, 333]), ("float", [20, 3, 70])])
def test_a_window(kind, lengths, reach):
    agree(Case(kind, 64, lengths=lengths, reach=reach, p=0.1))


@pytest.mark.parametrize("reach", [None, 5, 64])
@pytest.mark.parametrize("kind, size, lengths", [
    ("bf16", 64, [40, 3, 100, 250]), ("f16", 32, [5, 90]), ("float", 7, [5, 0, 40])])
def test_chosen_rows_ask(kind, size, lengths, reach):
    agree(Case(kind, size, lengths=lengths, reach=reach, p=0.1, asked=0.3))


@pytest.mark.parametrize("asked", [1e-9, 0.02])
def test_keys_that_nobody_looks_at_have_zero_gradients(asked):
    case = Case("bf16", 64, 1, [150, 60, 150], asked=asked, reach=3, seed=4)
    agree(case)
    far = np.abs(np.arange(360)[:, None] - case.rows).min(1, initial=999) > 3
    assert far.any() and not numbers(case.dkeys_values)[far].any()


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_and_a_scale_that_is_given(heads):
    agree(Case("bf16", 32, heads, [70, 20], scale=0.5, p=0.5))


def test_large_scores_overflow_nothing():
    agree(Case("bf16", 64, 1, [70, 150], sharp=12))


@pytest.mark.parametrize("kind, size, lengths, how", [
    ("bf16", 64, [17, 130], {}), ("bf16", 64, [66, 5], dict(reach=16)), ("bf16", 26, [3, 65], {}),
    ("bf16", 128, [65], {}), ("f16", 64, [40], {}), ("float", 26, [3, 18], {}),
    ("bf16", 32, [70, 1], dict(reach=9, asked=0.4))])
def test_every_order_of_threads_gives_the_same_bits(kind, size, lengths, how):
    bits = set()
    for meeting in MEETINGS:
        case = Case(kind, size, 1, lengths, p=0.1, meeting=meeting, **how).run()
        bits.add(b"".join(x.tobytes() for x in (case.out, case.lse, case.delta, case.dqueries,
                                                case.dkeys_values)))
    assert len(bits) == 1
    agree(case)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("first", [0, 64, 128])
def test_dropout_drops_what_numpy_drops(kind, first):
    # Values are rows of the unit matrix, so y is a piece of the probabilities; and as dy is so too,
    # dv is a piece of them turned.
    lengths, heads, size = [20, 64, 110, 150], 2, 64
    case = Case(kind, size, heads, lengths, p=0.1)
    unit = np.concatenate([np.eye(n, size, -first) for n in lengths])
    case.queries[:, -heads * size:] = stored(np.tile(unit, heads), kind)
    case.dout[...] = stored(np.tile(unit, heads), kind)
    found = case.run().found()
    for tile in tiles(case.cuts, heads):
        keep = dropout_mask(np, tile, heads, 0.1, case.key)[0][0]           # [A, r, c]
        piece, wide = slice(first, first + size), max(0, tile.c - first)
        y = found["y"][tile.q].swapaxes(0, 1)[..., :wide]                   # [A, r, some keys]
        dv = found["dv"][tile.k].swapaxes(0, 1)[..., :wide]                 # [A, c, some queries]
        assert np.array_equal(y != 0, keep[:, :, piece])
        assert np.array_equal(dv != 0, keep[:, piece].swapaxes(1, 2))


@pytest.mark.parametrize("p", [0.002, 0.5, 0.504, 0.75, 0.999])
def test_any_threshold(p):
    case = Case("bf16", 32, 1, [30], p=p)
    case.queries[:, -32:] = stored(np.eye(30, 32), "bf16")
    y = case.run().found()["y"]
    tile, = tiles(case.cuts, 1)
    assert np.array_equal(y[:, 0, :30] != 0, dropout_mask(np, tile, 1, p, case.key)[0][0, 0])


def test_items_that_fill_up_the_work_do_nothing(monkeypatch):
    case = Case("bf16", 64, 2, [70, 20, 140], p=0.1)
    before = case.run().found()
    listed = work
    fill = np.full((2, 2), -1, np.int32)
    monkeypatch.setitem(globals(), "work", lambda *a: np.concatenate([listed(*a), fill]))
    for name, x in case.run().found().items():
        assert np.array_equal(x, before[name])


def test_work_is_all_there_is_and_the_longest_comes_first():
    counts = np.array([5, 0, 130, 64, 65])
    assert work(counts, 64, np.arange(5)).tolist() == [
        [2, 0], [2, 64], [2, 128], [4, 0], [4, 64], [3, 0], [0, 0]]
    assert work(counts, 64, np.array([1])).shape == (0, 2)


def test_no_read_of_shared_memory_waits_for_a_bank():
    for file in "attention.cu", "attention_backward.cu":
        emulated.conflicts(file)
    for size in 32, 64, 128:
        Case("bf16", size, 1, [40, 100, 130], p=0.1).run()
    for file in "attention.cu", "attention_backward.cu":
        reads, waits = emulated.conflicts(file)
        assert reads and not waits
