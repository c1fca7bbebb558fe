"""Where attention finds its work: the dense pieces of a matrix of scores that is mostly empty.

The T tokens of all sequences stand one after another, and `cuts` [S+1] says where one sequence ends
and the next begins. A token attends to its own sequence only, so of the [T, T] matrix of all scores
just blocks along the diagonal are wanted. `tiles` lists these blocks. Nothing is padded, so no
padding has to be masked.

    short sequences      neighbours of one shape share a tile: fewer, larger matrix products
    long sequences       are cut into some heads each, then some queries, lest a tile grow too large
    a reach              some queries each, and just the keys between the first and last they reach
"""
from bisect import bisect_left
from typing import NamedTuple

from . import philox

TOGETHER = 96 * 1024                        # scores of a shared tile: so many stay in the cache
LARGEST = 1024 * 1024                       # scores of any tile, unless a single row is longer


class Tile(NamedTuple):
    """A dense piece of the scores: some queries and some keys of n sequences of equal shape."""
    q: slice                                # rows of the queries, n * r of them
    k: slice                                # rows of the keys and the values, n * c of them
    n: int
    r: int
    c: int
    heads: slice                            # of these heads
    start: int                              # the token that its (first) sequence begins with
    alone: bool                             # nobody else looks at its keys


def tiles(cuts, heads, rows=None, reach=None, share=True):
    """Cut the scores that anybody looks at into tiles.

    rows: the tokens that ask, ascending (None: all of them). reach: how far a query looks to either
    side. share: may sequences of one shape have a tile together?
    """
    rows = None if rows is None else rows.tolist()
    made = []
    tokens = cuts.tolist()
    for lo, hi in zip(tokens, tokens[1:]):
        for tile in tiles_of_one(lo, hi, heads, rows, reach):
            if share and made and fit_together(made[-1], tile, TOGETHER // heads):
                before = made.pop()
                q, k = slice(before.q.start, tile.q.stop), slice(before.k.start, tile.k.stop)
                tile = before._replace(q=q, k=k, n=before.n + 1)
            made.append(tile)
    return made


def fit_together(before, tile, limit):
    """Are these neighbours of one shape (batches are sorted by length), and not too large?"""
    if before.q.stop != tile.q.start or before.k.stop != tile.k.start:
        return False
    alike = before[3:6] == tile[3:6] and before.alone and tile.alone    # r, c, heads
    return alike and (before.n + 1) * tile.r * tile.c <= limit


def tiles_of_one(lo, hi, heads, rows, reach):
    """The tiles of the sequence of tokens lo to hi: a stretch of it asks, all within reach answer.

    With a reach of 64 a stretch of 64 tokens looks at 192 of which every token wants 129: longer
    stretches waste more, and shorter ones make small products, which are slow.
    """
    length = stretch = keys = hi - lo
    if reach is not None and length > 2 * max(reach, 32):
        stretch = max(reach, 32)
        keys = min(length, stretch + 2 * reach)
    asked = length if rows is None else bisect_left(rows, hi) - bisect_left(rows, lo)
    queries = min(stretch, asked)                                   # of a tile, at most
    if not queries:
        return
    # Few heads and many queries make larger products than many heads and few queries.
    group = share_of(heads, LARGEST // (queries * keys))
    if group * queries * keys > LARGEST:
        stretch = LARGEST // (group * keys)
    stretch = share_of(length, stretch)
    for head in range(0, heads, group):
        some = slice(head, min(head + group, heads))
        for first in range(lo, hi, stretch):
            last = min(first + stretch, hi) - 1
            a, b = first, last + 1                                  # the queries' rows
            if rows is not None:
                a, b = bisect_left(rows, a), bisect_left(rows, b)
                if a == b:
                    continue
                first, last = rows[a], rows[b - 1]
            low, high = lo, hi
            if reach is not None:
                low, high = max(lo, first - reach), min(hi, last + reach + 1)
            q, k = slice(a, b), slice(low, high)
            yield Tile(q, k, 1, b - a, high - low, some, lo, stretch >= length)


def share_of(count, most):
    """How many at a time, if that are at most so many (and one) and nearly the same each time."""
    times = -(-count // max(1, most))
    return -(-count // times)


# ---- what a tile sees of the arrays

def by_head(tile, rows, heads, *arrays):
    """A tile's heads of these rows of the arrays: [n*S, H] -> [n, A, S, D], views all of them."""
    size = arrays[0].shape[1] // heads
    apart = [x[rows].reshape(tile.n, -1, heads, size) for x in arrays]
    return [x.swapaxes(1, 2)[:, tile.heads] for x in apart]


def turned(x):
    return x.swapaxes(-1, -2)


class Places(NamedTuple):
    """Where the queries or the keys of a tile stand in their sequence."""
    first: int
    last: int
    each: object = None                     # an array; None: first, first + 1, ..., last

    def array(self, xp):
        return xp.arange(self.first, self.last + 1) if self.each is None else self.each


def places(tile, rows=None):
    """The Places of a tile's queries and of its keys; they are those of each of its sequences."""
    low = tile.k.start - tile.start
    keys = Places(low, low + tile.c - 1)
    if rows is None:
        low = tile.q.start - tile.start
        return Places(low, low + tile.r - 1), keys
    each = rows[tile.q] - tile.start
    return Places(int(each[0]), int(each[-1]), each), keys


def out_of_reach(xp, tile, rows, reach):
    """Which pairs of a tile [r, c] are too far apart; None where no pair is."""
    if reach is None or tile.c <= reach + 1:
        return None
    queries, keys = places(tile, rows)
    return abs(queries.array(xp)[:, None] - keys.array(xp)) > reach


def dropout_mask(xp, tile, heads, p, key):
    """(what dropout leaves of the probabilities, the factor that keeps their mean), or (None, 1).

    A draw is numbered by query and head, and by the key's place in its sequence. So the tiles
    decide nothing, and a kernel may cut otherwise.
    """
    threshold = philox.threshold(p)
    if key is None or not threshold:
        return None, 1.0
    first = tile.k.start - tile.start
    numbers = xp.arange(tile.q.start * heads, tile.q.stop * heads).reshape(-1, heads)
    numbers = numbers[:, tile.heads].reshape(-1)                    # [n*r*A]
    keep = philox.draw(xp, key, numbers, tile.c, first) >= threshold    # [n*r*A, c]
    keep = keep.reshape(tile.n, tile.r, -1, tile.c)
    return keep.swapaxes(1, 2), philox.scale(p)                     # [n, A, r, c]
