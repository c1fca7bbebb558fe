"""The kernels of embed.cu against embed, norm and dropout of engine/fused.py, in float64 on what
they read."""
import emulated
import numpy as np
import pytest
from emulated import MEETINGS, ROUNDING, guarded, numbers, poisoned, stored

from tinybert_family.engine import fused, philox

KINDS = ["float", "bf16", "f16"]
PIECE = 32                                          # tokens that a warp adds up


# ---- launching

def embed(kind, tables, ids, h, meeting=MEETINGS[0]):
    tokens, width = h.shape
    tables, ids = [*tables, None, None][:3], [*ids, None, None][:3]
    call = emulated.kernel("embed.cu", f"embed<{kind}>", meeting)
    call((-(-tokens // 8),), (256,), (*tables, *ids, h, np.int32(tokens), np.int32(width)))


def embed_norm(kind, tables, ids, gain, shift, h, y, measures, eps, p=0.0, key=None, run=None,
               meeting=MEETINGS[0]):
    tokens, width = y.shape
    tables, ids = [*tables, None, None][:3], [*ids, None, None][:3]
    eights = next(n for n in (1, 3, 4) if width <= 256 * n)
    part, site = (key.part, key.site) if key else (0, 0)
    call = emulated.kernel("embed.cu", f"embed_norm<{kind},{eights}>", meeting)
    call((-(-tokens // 8),), (256,), (
        *tables, *ids, gain, shift, h, y, measures, run, np.uint32(part), np.uint32(site),
        np.uint32(philox.threshold(p) if key else 0), np.float32(philox.scale(p)), np.float32(eps),
        np.int32(tokens), np.int32(width)))


def plan(ids):
    """What the host prepares of a batch's ids; kernels/embed.cu says what each array is."""
    order = np.argsort(ids, kind="stable")
    distinct, first = np.unique(ids[order], return_index=True)
    last = np.append(first[1:], len(ids))
    pieces = -(-(last - first) // PIECE)                        # of each distinct id
    owner = np.repeat(np.arange(len(distinct)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.append(first[owner] + PIECE * number, len(ids))
    cut = pieces > 1
    parts = cut[owner]                                          # the pieces that are partial sums
    places = np.where(parts, -np.cumsum(parts), distinct[owner])
    long_starts = np.append(0, np.cumsum(pieces[cut]))
    counts = [len(owner), cut.sum()]
    found = order, starts, places, long_starts, distinct[cut], counts
    return [guarded(np.asarray(x, np.int32)) for x in found], int(parts.sum())


def table_gradient(kind, dh, ids, table, meeting=MEETINGS[0], blocks=3):
    """table += the sums of dh's rows by id. blocks: any number; a GPU's worth of them is best."""
    width = dh.shape[1]
    (order, starts, places, long_starts, long_rows, counts), parts = plan(ids)
    partials, across = poisoned((parts, width), "f4"), -(-width // 256)
    emulated.kernel("embed.cu", f"add_pieces<{kind}>", meeting)((blocks, across), (256,), (
        dh, order, starts, places, counts, table, partials, np.int32(width)))
    emulated.kernel("embed.cu", "add_long", meeting)((blocks, across), (512,), (
        partials, long_starts, long_rows, counts, table, np.int32(width)), shared=16384)


# ---- forward

def case(kind, tokens, width, tables=3, seed=0):
    """Tables and ids as they lie in memory; the ends of every table are asked for."""
    rng = np.random.default_rng(seed)
    rows = 50, 12, 2
    found = [stored(rng.standard_normal((n, width)), kind) for n in rows[:tables]]
    ids = [rng.integers(0, n, tokens).astype(np.int32) for n in rows[:tables]]
    for i, n in zip(ids, rows):
        i[:2] = [0, n - 1][:tokens]
    return found, [guarded(i) for i in ids]


def summed(tables, ids):
    return fused.embed.text.forward(np, *(numbers(t) for t in tables), ids=ids)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_looked_up_and_added(kind):
    for tokens, width, tables in (0, 8, 3), (1, 8, 3), (9, 312, 1), (17, 128, 2), (11, 768, 3):
        given, ids = case(kind, tokens, width, tables)
        h, wanted = poisoned((tokens, width), given[0].dtype), summed(given, ids)
        embed(kind, given, ids, h)
        # two additions of floats near 1, then the type's own rounding
        assert (abs(numbers(h) - wanted) <= ROUNDING[kind] * abs(wanted) + 1e-6).all()
        assert tables > 1 or np.array_equal(numbers(h), wanted)


def test_a_type_may_come_without_a_position():
    (word, _, kind), (ids, _, types) = case("bf16", 5, 16)
    h = poisoned((5, 16), word.dtype)
    embed("bf16", [word, None, kind], [ids, None, types], h)
    wanted = summed([word, kind], [ids, types])
    assert (abs(numbers(h) - wanted) <= ROUNDING["bf16"] * abs(wanted)).all()


def check_norm(kind, tokens, width, tables=3, p=0.0, shifted=True, kept=True, seed=0,
               meeting=MEETINGS[0]):
    given, ids = case(kind, tokens, width, tables, seed)
    rng = np.random.default_rng(seed + 1)
    gain = stored(rng.uniform(0.5, 2, width), kind)
    shift = stored(rng.standard_normal(width), kind) if shifted else None
    h = poisoned((tokens, width), given[0].dtype) if kept else None
    measures = poisoned((tokens, 2), "f4") if kept else None
    y, sums = (poisoned((tokens, width), given[0].dtype) for _ in range(2))
    key = philox.Key(2 ** 32 - 5, 77, 1, 3) if p else None
    run = guarded(np.array([key.seed, key.step], np.uint32)) if p else None
    embed_norm(kind, given, ids, gain, shift, h, y, measures, 1e-6, p, key, run, meeting)
    embed(kind, given, ids, sums)
    x = numbers(sums)
    forward = fused.norm.text.forward
    plus = numbers(shift) if shifted else None
    wanted, (_, rstd, *_) = forward(np, x, numbers(gain), plus, eps=1e-6)
    keep, scale = fused.dropout_mask(np, y.shape, p, key)
    dropped = np.zeros(y.shape, bool) if keep is None else ~keep
    wanted = np.where(dropped, 0, wanted * scale)
    got = numbers(y)
    assert np.array_equal(got == 0, dropped)
    # xhat comes of float sums over a row, of which each addition may round; gain is at most 2
    assert (abs(got - wanted) <= ROUNDING[kind] * abs(wanted) + 1e-5).all()
    if kept:
        assert np.array_equal(h.view(np.uint8), sums.view(np.uint8))
        np.testing.assert_allclose(measures[:, 0], x.mean(1), rtol=0, atol=1e-6)
        np.testing.assert_allclose(measures[:, 1], rstd, rtol=1e-5)
    return y


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_and_the_dropout_come_at_once(kind):
    for tokens, width, tables in (0, 64, 3), (1, 8, 3), (9, 128, 2), (10, 312, 1), (9, 768, 3):
        for p in 0.0, 0.1:
            check_norm(kind, tokens, width, tables, p, seed=tokens)
    check_norm(kind, 3, 256, p=0.5, shifted=False, kept=False)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_a_row_of_1024_columns(kind):
    check_norm(kind, 3, 1024, p=0.1)
    check_norm(kind, 2, 776)


@pytest.mark.parametrize("meeting", MEETINGS)
def test_no_order_of_threads_changes_a_bit_of_a_row(meeting):
    wanted = check_norm("bf16", 9, 264, p=0.1)
    assert np.array_equal(wanted, check_norm("bf16", 9, 264, p=0.1, meeting=meeting))


# ---- backward

def check_gradient(kind, ids, rows, width, seed=0, **how):
    rng = np.random.default_rng(seed)
    ids = np.asarray(ids, np.int32)
    dh = stored(rng.standard_normal((len(ids), width)), kind)
    before = rng.standard_normal((rows, width)).astype("f4")
    table = guarded(before)
    table_gradient(kind, dh, ids, table, **how)
    _, static = fused.embed.text.forward(np, before, ids=(ids,))
    wanted, = fused.embed.text.backward(np, static, numbers(dh), ids=(ids,))
    if not isinstance(wanted, np.ndarray):
        part, wanted = wanted, np.zeros((rows, width))
        wanted[part.index] += part.rows
    # each addition rounds a sum that is as large as the root of its length
    count = np.bincount(ids, minlength=rows)[:, None]
    assert (abs(table - before - wanted) <= 2.0 ** -23 * (3 + count) * 2).all()
    assert np.array_equal(table[count[:, 0] == 0], before[count[:, 0] == 0])
    return table


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_a_table_gets_the_sum_of_its_tokens(kind):
    rng = np.random.default_rng(0)
    check_gradient(kind, [], 5, 8)
    check_gradient(kind, [4], 5, 8)
    check_gradient(kind, [2, 0, 2, 2, 4], 5, 264)
    check_gradient(kind, rng.integers(0, 400, 300), 400, 128)
    check_gradient(kind, rng.zipf(1.3, 600) % 97, 97, 312)          # a few words are frequent


def test_one_id_of_all_tokens_or_of_nearly_a_whole_piece():
    for tokens in 31, 32, 33, 64, 65, 1100:
        check_gradient("bf16", np.zeros(tokens), 2, 40, seed=tokens)
    check_gradient("bf16", np.arange(1500) >= 700, 2, 16)           # types
    check_gradient("bf16", np.tile(np.arange(40), 40), 64, 16)      # positions


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("blocks", [1, 4])
def test_no_order_of_threads_nor_size_of_grid_changes_a_bit_of_a_table(meeting, blocks):
    ids = np.random.default_rng(5).zipf(1.3, 500) % 30
    wanted = check_gradient("bf16", ids, 30, 264)
    again = check_gradient("bf16", ids, 30, 264, meeting=meeting, blocks=blocks)
    assert np.array_equal(wanted, again)


def test_the_plan_of_a_batch_is_the_one_described(monkeypatch):
    monkeypatch.setitem(globals(), "PIECE", 2)
    found, parts = plan(np.array([7, 5, 7, 7]))
    wanted = [1, 0, 2, 3], [0, 1, 3, 4], [5, -1, -2], [0, 2], [7], [3, 1]
    assert [x.tolist() for x in found] == list(wanted) and parts == 2
