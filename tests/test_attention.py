"""Attention and its scores against their definition in three loops, however the work is cut; and
that long sequences need memory, and windows need work, in proportion to their length.

The gradients are tried in test_gradients.py.
"""
import gc
import tracemalloc

import numpy as np
import pytest
from test_gradients import LONG_AND_SHORT, small_tiles

from tinybert_family.engine import fused, philox, tiles
from tinybert_family.engine.autograd import Tensor, no_grad, parameter
from tinybert_family.error import Error

HEADS, SIZE = 2, 3
H = HEADS * SIZE
KEY = philox.Key(seed=3, step=5, part=1, site=7)


def definition(q, k, v, keys_at, queries_at, cuts, rows, reach, scale, buckets):
    """The scores [R, A, P] and the answers [R, H], pair after pair."""
    longest, middle = max(np.diff(cuts)), len(buckets) // 2
    scores = np.full((len(rows), HEADS, longest), -np.inf)
    answers = np.zeros((len(rows), H))
    for n, token in enumerate(rows):
        sequence = np.searchsorted(cuts, token, side="right") - 1
        lo, hi = cuts[sequence], cuts[sequence + 1]
        for a in range(HEADS):
            head = slice(a * SIZE, (a + 1) * SIZE)
            for j in range(hi - lo):
                distance = token - lo - j
                if reach is not None and abs(distance) > reach:
                    continue
                row = buckets[distance + middle]
                key = k[lo + j, head]
                score = q[n, head] @ key
                if keys_at is not None:
                    score += q[n, head] @ keys_at[row, head]
                if queries_at is not None:
                    score += queries_at[row, head] @ key
                scores[n, a, j] = scale * score
            e = np.exp(scores[n, a, :hi - lo] - scores[n, a].max())
            answers[n, head] = e / e.sum() @ v[lo:hi, head]
    return scores, answers


def case(lengths, tables="both", asked=False, seed=0, **how):
    """Arrays and settings for the ops; neighbouring distances share a row of the tables."""
    rng = np.random.default_rng(seed)
    cuts = np.cumsum([0, *lengths])
    qkv = rng.standard_normal((cuts[-1], 3 * H))
    rows = np.flatnonzero(rng.random(cuts[-1]) < 0.3) if asked else None
    arrays = [qkv, None] if rows is None else [qkv[:, H:], qkv[rows, :H]]
    buckets = np.sort(rng.integers(0, 7, 2 * max(lengths) + 3))
    for name in "keys", "queries":
        arrays.append(rng.standard_normal((7, H)) if tables in (name, "both") else None)
    return arrays, dict(dict(cuts=cuts, heads=HEADS, rows=rows, buckets=buckets), **how)


@LONG_AND_SHORT
@pytest.mark.parametrize("reach", [None, 0, 3, 40])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("tables", ["none", "keys", "queries", "both"])
def test_attention_and_scores_are_their_definition(tables, asked, reach, pieces):
    arrays, how = case([4, 4, 4, 9, 0, 1, 97], tables, asked, reach=reach, scale=0.6)
    qkv, q, keys_at, queries_at = arrays
    rows = np.arange(len(qkv)) if q is None else how["rows"]
    q, k, v = np.split(qkv, 3, 1) if q is None else [q, *np.split(qkv, 2, 1)]
    cuts, buckets = how["cuts"], how["buckets"]
    expected, answers = definition(
        q, k, v, keys_at, queries_at, cuts, rows, reach, 0.6, buckets)
    with pieces():
        found = fused.scores(*arrays, **how).data
        y = fused.attention(*arrays, **how).data
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)     # minus infinities alike
    np.testing.assert_allclose(y, answers, rtol=0, atol=1e-13)


def values_and_gradients(arrays, how, op=fused.attention):
    leaves = [None if x is None else parameter(x) for x in arrays]
    y = op(*leaves, **how)
    y.backward(np.random.default_rng(1).standard_normal(y.shape))
    return [y.data, *(leaf.grad for leaf in leaves if leaf is not None)]


@pytest.mark.parametrize("reach", [None, 5])
@pytest.mark.parametrize("asked", [False, True])
def test_however_the_work_is_cut_the_result_is_the_same_with_dropout_too(asked, reach):
    arrays, how = case([33, 33, 70], asked=asked, reach=reach, p=0.3, key=KEY)
    whole = values_and_gradients(arrays, how)
    with small_tiles():
        cut = values_and_gradients(arrays, how)
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_asking_for_some_rows_gives_these_rows():
    arrays, how = case([20, 31])
    qkv, _, *tables = arrays
    whole = fused.attention(*arrays, **how).data
    rows = np.array([0, 3, 4, 19, 20, 50])
    apart = [qkv[:, H:], qkv[rows, :H], *tables]
    some = fused.attention(*apart, **dict(how, rows=rows)).data
    np.testing.assert_allclose(some, whole[rows], rtol=0, atol=1e-14)


def test_sequences_of_one_shape_share_a_tile_and_give_what_they_give_alone():
    arrays, how = case([4, 4, 4, 2, 2, 7, 0, 7])
    cuts = how["cuts"]
    assert [tile.n for tile in tiles.tiles(cuts, HEADS)] == [3, 2, 2]
    whole = fused.attention(*arrays, **how).data
    for lo, hi in zip(cuts, cuts[1:]):
        one = dict(how, cuts=np.array([0, hi - lo]))
        alone = fused.attention(arrays[0][lo:hi], *arrays[1:], **one).data
        np.testing.assert_allclose(whole[lo:hi], alone, rtol=0, atol=1e-15)


def test_a_softmax_of_the_scores_and_the_values_is_attention():
    arrays, how = case([5, 8], reach=4)
    s = fused.scores(*arrays, **how).data                           # [T, A, P]
    e = np.exp(s - s.max(-1, keepdims=True))
    probability = e / e.sum(-1, keepdims=True)
    v = arrays[0][:, 2 * H:].reshape(-1, HEADS, SIZE)
    y = np.concatenate([np.einsum("iap,pad->iad", probability[lo:hi, :, :hi - lo], v[lo:hi])
                        for lo, hi in ((0, 5), (5, 13))])
    attended = fused.attention(*arrays, **how).data
    np.testing.assert_allclose(attended, y.reshape(-1, H), rtol=0, atol=1e-14)


def test_scores_where_nobody_looks_hold_the_fill_and_give_no_gradient():
    arrays, how = case([2, 5], tables="none", reach=1, fill=7.5)
    leaf = parameter(arrays[0])
    y = fused.scores(leaf, **how)
    place, lengths = np.array([0, 1, 0, 1, 2, 3, 4]), np.repeat([2, 5], [2, 5])
    near = abs(place[:, None] - np.arange(5)) <= 1
    looked_at = near & (np.arange(5) < lengths[:, None])
    assert np.array_equal((y.data != 7.5).all(1), looked_at)
    y.backward(np.broadcast_to(np.where(looked_at, 0.0, 1.0)[:, None], y.shape))
    assert not leaf.grad.any()


def test_too_few_buckets_are_refused():
    arrays, how = case([5])
    with pytest.raises(Error, match="a sequence has 5 tokens"):
        fused.attention(*arrays, **dict(how, buckets=np.arange(7)))


# ---- how much of it

def covered(length, **how):
    """Scores computed for one sequence, and the most in one tile."""
    sizes = [t.n * t.r * t.c * (t.heads.stop - t.heads.start)
             for t in tiles.tiles(np.array([0, length]), 12, **how)]
    return sum(sizes) / 12, max(sizes)


def test_no_tile_is_larger_than_agreed_and_none_is_left_out():
    for length in 8, 1000, 8192:
        total, most = covered(length)
        assert total == length ** 2 and most <= tiles.LARGEST


@pytest.mark.parametrize("asked", [None, np.arange(0, 8192, 7)])
def test_windows_need_work_in_proportion_to_the_length(asked):
    per_query = 64 + 2 * 64                     # a stretch of 64 sees the 64 on either side
    queries = 8192 if asked is None else len(asked)
    total, most = covered(8192, rows=asked, reach=64)
    assert total <= per_query * queries
    assert covered(100, reach=64)[0] == 100 ** 2        # cut in two it would be hardly less


def peak_memory(length, dropout):
    rng = np.random.default_rng(0)
    qkv = parameter(rng.standard_normal((length, 3 * 8)).astype(np.float32))
    tables = [parameter(rng.standard_normal((16, 8)).astype(np.float32)) for _ in range(2)]
    buckets = np.arange(2 * length - 1) * 16 // (2 * length - 1)
    gc.collect()
    tracemalloc.start()
    try:
        y = fused.attention(qkv, None, *tables, cuts=np.array([0, length]), heads=1,
                            buckets=buckets, **dropout)
        held = tracemalloc.get_traced_memory()[0]
        y.backward(np.ones(y.shape))
        return held, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dropout", [{}, dict(p=0.1, key=KEY)], ids=["plain", "dropout"])
def test_the_memory_of_long_sequences_grows_with_their_length_alone(dropout, monkeypatch):
    monkeypatch.setattr(tiles, "LARGEST", 512 * 1024)
    peak_memory(64, dropout)                            # what only the first call makes
    held, peak = peak_memory(4096, dropout)
    _, peak_of_half = peak_memory(2048, dropout)
    assert held < 100 * 4096                            # a query's scores would be 4 * 4096
    assert peak < 4096 ** 2 and peak < 2.2 * peak_of_half


def test_what_is_not_differentiated_is_not_kept():
    arrays, how = case([64] * 8)
    tracemalloc.start()
    try:
        with no_grad():
            y = fused.attention(*map(Tensor, arrays[:1]), cuts=how["cuts"], heads=HEADS)
        assert tracemalloc.get_traced_memory()[0] < 2 * y.data.nbytes
    finally:
        tracemalloc.stop()
