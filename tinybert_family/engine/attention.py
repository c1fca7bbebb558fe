"""Attention, the one op that looks at more than one token at a time.

The T tokens of all sequences stand one after another, and `cuts` [S+1] says where one sequence ends
and the next begins. A token attends to its own sequence only, so of the [T, T] matrix of all scores
just blocks along the diagonal are wanted. `tiles` lists these blocks, and the op computes one after
the other, each as dense matrix products. Nothing is padded, so no padding has to be masked.

In the comments a tile has n sequences of equal shape, in each of which r queries look at c keys, by
A heads of size D. Read `attention` and its gradient first; what they call stands above them.
"""
from typing import NamedTuple

from . import philox
from .autograd import op

TOGETHER = 96 * 1024                        # scores of a shared tile: so many stay in the cache


# ---- tiles

class Tile(NamedTuple):
    """A dense piece of the scores: some queries and some keys of n sequences of equal shape."""
    q: slice                                # rows of the queries, n * r of them
    k: slice                                # rows of the keys and the values, n * c of them
    n: int
    r: int
    c: int
    start: int                              # the token that its (first) sequence begins with


def tiles(cuts, rows, reach, limit):
    """Cut the scores that anybody looks at into tiles.

    rows: the tokens that ask, ascending (None: all of them). reach: how far a query looks to either
    side. limit: as many scores as neighbouring sequences may have together, to share a tile.
    """
    tokens = cuts.tolist()
    asked = tokens if rows is None else rows.searchsorted(cuts).tolist()
    made = []
    # A sequence is the tokens lo to hi, and the queries a to b are its own.
    for lo, hi, a, b in zip(tokens, tokens[1:], asked, asked[1:]):
        if reach is not None:
            made += band(lo, hi, a, b, rows, reach)
        elif a < b:
            tile = Tile(slice(a, b), slice(lo, hi), 1, b - a, hi - lo, lo)
            if made and fit_together(made[-1], tile, limit):
                before = made.pop()
                q, k = slice(before.q.start, b), slice(before.k.start, hi)
                tile = before._replace(q=q, k=k, n=before.n + 1)
            made.append(tile)
    return made


def fit_together(before, tile, limit):
    """Are these neighbours of one shape (batches are sorted by length), and not too large?"""
    if before.q.stop != tile.q.start or before.k.stop != tile.k.start:
        return False
    alike = before.r == tile.r and before.c == tile.c
    return alike and (before.n + 1) * tile.r * tile.c <= limit


def band(lo, hi, a, b, rows, reach):
    """Tiles along the diagonal of one sequence: some queries, and the keys that they reach."""
    step = max(reach, 32)
    for i in range(a, b, step):
        j = min(i + step, b)
        first, last = i, j - 1
        if rows is not None:
            first, last = int(rows[first]), int(rows[last])
        low, high = max(lo, first - reach), min(hi, last + reach + 1)
        yield Tile(slice(i, j), slice(low, high), 1, j - i, high - low, lo)


# ---- what a tile sees

def inputs(qkv, q):
    """Queries, keys and values as columns: of [q|k|v] in one, or q apart and of [k|v]."""
    if q is None:
        h = qkv.shape[1] // 3
        q, qkv = qkv[:, :h], qkv[:, h:]
    h = qkv.shape[1] // 2
    return q, qkv[:, :h], qkv[:, h:]


def by_head(tile, rows, heads, *arrays):
    """These rows of the arrays, head by head: [n*S, A*D] -> [n, A, S, D], views all of them."""
    size = arrays[0].shape[1] // heads
    apart = [x[rows].reshape(tile.n, -1, heads, size) for x in arrays]
    return [x.swapaxes(1, 2) for x in apart]


def turned(x):
    return x.swapaxes(-1, -2)


def positions(xp, tile, rows):
    """Where the queries [r, 1] and the keys [c] of a tile of one sequence stand in it."""
    q, k = tile.q, tile.k
    queries = xp.arange(q.start, q.stop) if rows is None else rows[q]
    keys = xp.arange(k.start, k.stop)
    return (queries - tile.start)[:, None], keys - tile.start


def dropout_mask(xp, tile, heads, p, key):
    """(what dropout leaves of the probabilities, the factor that keeps their mean), or (None, 1).

    A draw is numbered by query and head, and by the key's place in its sequence. So the tiles
    decide nothing, and a kernel may cut otherwise.
    """
    threshold = philox.threshold(p)
    if key is None or not threshold:
        return None, 1.0
    first = tile.k.start - tile.start
    numbers = xp.arange(tile.q.start * heads, tile.q.stop * heads)
    draws = philox.draw(xp, key, numbers, first + tile.c)
    keep = draws[:, first:] >= threshold                            # [n*r*A, c]
    keep = keep.reshape(tile.n, tile.r, heads, tile.c)
    return keep.swapaxes(1, 2), philox.scale(p)                     # [n, A, r, c]


# ---- attention

@op
def attention(xp, qkv, q=None, bias=None,
              cuts=None, heads=1, rows=None, reach=None, scale=None,
              p=0.0, key=None, saving=True):
    """softmax(scale q k^T + bias) v within each sequence, dropout on the probabilities.

    qkv [T, 3H]; or [k|v] alone in qkv [T, 2H], and q [R, H] for the tokens `rows`. bias [A, P, P]
    adds bias[:, i, j] to the score of query i and key j of a sequence (relative positions). reach:
    keys further away than this are not looked at. scale: 1 / sqrt(D) unless given.
    """
    queries, keys, values = inputs(qkv, q)                          # [R, H], [T, H], [T, H]
    y = xp.empty_like(queries, order="C")                           # [R, H]
    scale = scale or (heads / y.shape[1]) ** 0.5
    limit = 0 if bias is not None else TOGETHER // heads
    kept = []
    for tile in tiles(cuts, rows, reach, limit):
        Q, Y = by_head(tile, tile.q, heads, queries, y)             # [n, A, r, D]
        K, V = by_head(tile, tile.k, heads, keys, values)           # [n, A, c, D]

        # The scores; then e = exp(score - the largest of its row), which never overflows.
        e = xp.matmul(Q * scale, turned(K))                         # [n, A, r, c]
        if bias is not None or reach is not None:
            i, j = positions(xp, tile, rows)                        # [r, 1], [c]
            if bias is not None:
                e += bias[:, i, j]
            if reach is not None:
                e[:, :, abs(i - j) > reach] = -xp.inf
        e -= e.max(-1, keepdims=True)
        xp.exp(e, out=e)

        # The probabilities are P = e / total, but e stays as it is: to divide the D columns of the
        # result is cheaper than to divide the c columns of e.
        total = e @ xp.ones(tile.c, e.dtype)                        # [n, A, r]
        keep, factor = dropout_mask(xp, tile, heads, p, key)
        mixed = (e if keep is None else e * keep) @ V               # [n, A, r, D]
        xp.divide(mixed, (total / factor)[..., None], out=Y)
        if saving:
            kept.append((tile, e, total, keep))
    return y, (qkv, q, y, bias, kept)


@attention.grad
def _(xp, saved, dy,
      cuts=None, heads=1, rows=None, reach=None, scale=None,
      p=0.0, key=None):
    # From Y = P V with P = softmax(scale Q K^T) follow
    #     dV = P^T dY          dP = dY V^T          dS = P (dP - <dP, P>)
    #     dQ = scale dS K      dK = scale dS^T Q
    # where <dP, P> sums the products along a row. It equals <dY, Y> of that row, which needs D
    # products instead of c. And as P = e / total, g = dY / total spares us the division of e:
    #     dV = e^T g           dS = e (g V^T - <g, Y>)
    # Dropout multiplies P by keep and by a factor. The factor goes into g, once <g, Y> is taken;
    # keep goes into e for dV, and into g V^T for dS.
    qkv, q, y, bias, kept = saved
    queries, keys, values = inputs(qkv, q)
    scale = scale or (heads / y.shape[1]) ** 0.5

    # Where every token asks and is seen by just one tile, all of dqkv is written below. Otherwise
    # tiles add to it, or leave parts of it zero.
    new = xp.empty if rows is None and reach is None else xp.zeros
    dqkv = new(qkv.shape, dy.dtype)
    dq = None if q is None else xp.empty_like(q, order="C")
    dqueries, dkeys, dvalues = inputs(dqkv, dq)                     # columns again: views
    dbias = None if bias is None else xp.zeros_like(bias)
    for tile, e, total, keep in kept:
        Q, Y, dY, dQ = by_head(tile, tile.q, heads, queries, y, dy, dqueries)       # [n, A, r, D]
        K, V, dK, dV = by_head(tile, tile.k, heads, keys, values, dkeys, dvalues)   # [n, A, c, D]

        g = dY / total[..., None]                                   # [n, A, r, D]
        along = (g * Y).sum(-1, keepdims=True)                      # <g, Y>: [n, A, r, 1]
        if keep is not None:
            g *= philox.scale(p)
        ds = g @ turned(V)                                          # [n, A, r, c]
        if keep is not None:
            ds *= keep
        ds -= along
        ds *= e

        xp.matmul(ds, K, out=dQ)
        dQ *= scale
        dropped = e if keep is None else e * keep
        if reach is None:
            xp.matmul(turned(dropped), g, out=dV)
            xp.matmul(turned(ds), Q * scale, out=dK)
        else:                               # neighbouring tiles share keys
            dV += turned(dropped) @ g
            dK += turned(ds) @ (Q * scale)
        if dbias is not None:
            i, j = positions(xp, tile, rows)
            dbias[:, i, j] += ds[0]
    return dqkv, dq, dbias
