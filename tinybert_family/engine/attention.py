"""Attention, the one op that looks at more than one token at a time.

tiles.py says which queries look at which keys, as a list of dense pieces; the ops of this file
compute one piece after the other by matrix products. In the comments a tile has n sequences of
equal shape, in each of which r queries look at c keys, by A heads of size D (all
heads, or a part of them).

Two ops share one way to the scores and one way back, `Scores`: `attention` goes on to the softmax
and the values, `scores` stops there. Read `attention` and its gradient first.

A score may also depend on how far apart query and key stand (DeBERTa: He et al., 2021):

    score_ij = scale (q_i k_j + q_i keys_at[b(i-j)] + queries_at[b(i-j)] k_j)

where b, the static array `buckets`, maps distances to rows of two tables. Written out for every
pair that would be [r, c, D] numbers; distances.py does with [r, r+c].
"""
from . import philox
from .autograd import op
from .distances import Distances
from .tiles import by_head, dropout_mask, out_of_reach, places, tiles, turned

KEPT = 1024                                 # longer rows of scores are computed again by backward


# ---- scores

def inputs(qkv, q):
    """Queries, keys and values as columns: of [q|k|v] in one, or q apart and of [k|v]."""
    if q is None:
        h = qkv.shape[1] // 3
        q, qkv = qkv[:, :h], qkv[:, h:]
    h = qkv.shape[1] // 2
    return q, qkv[:, :h], qkv[:, h:]


class Scores:
    """The way from queries, keys and tables to the scores of a tile, and the way back."""

    def __init__(self, xp, arrays, cuts, heads=1, rows=None,
                 reach=None, scale=None, buckets=None):
        self.xp, self.heads, self.rows, self.reach = xp, heads, rows, reach
        self.qkv, self.q, keys_at, queries_at = arrays
        self.queries, self.keys, self.values = inputs(self.qkv, self.q)     # [R, H], [T, H], [T, H]
        self.scale = scale or (heads / self.keys.shape[1]) ** 0.5
        lengths = cuts[1:] - cuts[:-1]
        self.longest = int(lengths.max()) if len(lengths) else 0
        self.keys_at = self.queries_at = None
        if keys_at is not None:
            # From the query on, the distance i - j falls as the key's place j grows.
            falling = buckets[::-1]
            self.keys_at = Distances(xp, keys_at, falling, self.longest, heads)
        if queries_at is not None:
            self.queries_at = Distances(xp, queries_at, buckets, self.longest, heads, True)
        # Sequences of equal shape share a tile where also their distances are equal.
        share = rows is None or buckets is None and reach is None
        self.tiles = tiles(cuts, heads, rows, reach, share)

    def of(self, tile, beyond):
        """The scores of a tile [n, A, r, c]; `beyond` where the key is out of reach."""
        xp = self.xp
        Q, = by_head(tile, tile.q, self.heads, self.queries)                # [n, A, r, D]
        K, = by_head(tile, tile.k, self.heads, self.keys)                   # [n, A, c, D]
        Q = Q * self.scale
        s = xp.matmul(Q, turned(K))
        for table, X, a, b in self.meetings(tile, Q, K):
            if X is K:
                X = K * self.scale                                          # Q has been scaled
            table.add(s, X, a, b, tile.heads)
        far = out_of_reach(xp, tile, self.rows, self.reach)
        if far is not None:
            xp.copyto(s, beyond, where=far)
        return s

    def meetings(self, tile, Q, K):
        """Queries meet keys_at, and keys queries_at: (the table, what meets it, the places of that,
        the places of the others)."""
        if self.keys_at or self.queries_at:
            i, j = places(tile, self.rows)
        if self.keys_at:
            yield self.keys_at, Q, i, j
        if self.queries_at:
            yield self.queries_at, K, j, i

    def start_back(self, dtype):
        """Arrays for the gradients, and their columns."""
        # Where every token asks and is seen by just one tile, all of dqkv is written below.
        # Otherwise tiles add to it, or leave parts of it zero.
        whole = self.rows is None and all(tile.alone for tile in self.tiles)
        new = self.xp.empty if whole else self.xp.zeros
        self.dqkv = new(self.qkv.shape, dtype)
        self.dq = None if self.q is None else self.xp.empty_like(self.q, order="C")
        self.dqueries, self.dkeys, self.dvalues = inputs(self.dqkv, self.dq)    # views
        for table in self.keys_at, self.queries_at:
            if table:
                table.start_back(dtype)

    def back(self, tile, ds):
        """Pass on ds [n, A, r, c], the gradient of the scores before they were scaled.

        From s = q k^T follow dq = ds k and dk = ds^T q.
        """
        Q, dQ = by_head(tile, tile.q, self.heads, self.queries, self.dqueries)
        K, dK = by_head(tile, tile.k, self.heads, self.keys, self.dkeys)
        self.xp.matmul(ds, K, out=dQ)
        accumulate(self.xp, tile, turned(ds), Q, dK)
        for table, (X, dX), a, b in self.meetings(tile, (Q, dQ), (K, dK)):
            table.back(ds, X, dX, a, b, tile.heads)

    def gradients(self):
        """Of qkv, q, keys_at and queries_at."""
        tables = [t and t.gradient() for t in (self.keys_at, self.queries_at)]
        return self.dqkv, self.dq, *tables


def accumulate(xp, tile, a, b, out):
    """The product a b, for the keys of a tile: neighbouring tiles may share them."""
    if tile.alone:
        xp.matmul(a, b, out=out)
    else:
        out += a @ b


# ---- attention

@op
def attention(xp, qkv, q=None, keys_at=None, queries_at=None,
              p=0.0, key=None, saving=True, **how):
    """softmax(scores) v within each sequence, dropout on the probabilities.

    qkv [T, 3H]; or [k|v] alone in qkv [T, 2H], and q [R, H] for the tokens `rows`. keys_at and
    queries_at [O, H]: see above. `how` are the settings of Scores. cuts [S+1], heads. reach: keys
    further away than this are not looked at. scale: 1 / sqrt(D) unless given.
    """
    scores = Scores(xp, (qkv, q, keys_at, queries_at), **how)
    y = xp.empty_like(scores.queries, order="C")                            # [R, H]
    kept = []
    for tile in scores.tiles:
        e, peak = exponentials(xp, scores, tile)                            # [n, A, r, c]
        # The probabilities are P = e / total, but e stays as it is: to divide the D columns of the
        # result is cheaper than to divide the c columns of e.
        total = e @ xp.ones(tile.c, e.dtype)                                # [n, A, r]
        keep, factor = dropout_mask(xp, tile, scores.heads, p, key)
        V, = by_head(tile, tile.k, scores.heads, scores.values)             # [n, A, c, D]
        Y, = by_head(tile, tile.q, scores.heads, y)                         # [n, A, r, D]
        dropped = e if keep is None else e * keep
        mixed = dropped @ V
        xp.divide(mixed, (total / factor)[..., None], out=Y)
        if saving:
            # Of long rows their peaks and totals are kept: two numbers instead of c.
            if tile.c > KEPT:
                e = keep = None
            kept.append((tile, peak, total, e, keep))
    return y, (qkv, q, keys_at, queries_at, y, kept)


def exponentials(xp, scores, tile, peak=None):
    """e = exp(score - the largest of its row), which never overflows, and these largest."""
    e = scores.of(tile, -xp.inf)
    if peak is None:
        peak = e.max(-1, keepdims=True)                                     # [n, A, r, 1]
    e -= peak
    xp.exp(e, out=e)
    return e, peak


@attention.grad
def _(xp, saved, dy, p=0.0, key=None, **how):
    # From Y = P V with P = softmax(scale S) follow
    #     dV = P^T dY          dP = dY V^T          dS = scale P (dP - <dP, P>)
    # where <dP, P> sums the products along a row. It equals <dY, Y> of that row, which needs D
    # products instead of c. And as P = e / total, g = dY / total spares us the division of e:
    #     dV = e^T g           dS = e (scale g V^T - scale <g, Y>)
    # Dropout multiplies P by keep and by a factor. The factor goes into g, once <g, Y> is taken;
    # keep goes into e for dV, and into g V^T for dS.
    *arrays, y, kept = saved
    scores = Scores(xp, arrays, **how)
    scores.start_back(dy.dtype)
    heads = scores.heads
    for tile, peak, total, e, keep in kept:
        if e is None:
            e, _ = exponentials(xp, scores, tile, peak)
            keep, _ = dropout_mask(xp, tile, heads, p, key)
        Y, dY = by_head(tile, tile.q, heads, y, dy)                         # [n, A, r, D]
        V, dV = by_head(tile, tile.k, heads, scores.values, scores.dvalues)     # [n, A, c, D]

        g = dY / total[..., None]                                           # [n, A, r, D]
        along = (g * Y).sum(-1, keepdims=True)                              # <g, Y>: [n, A, r, 1]
        if keep is not None:
            g *= philox.scale(p)
        dropped = e if keep is None else e * keep
        accumulate(xp, tile, turned(dropped), g, dV)
        g *= scores.scale
        ds = g @ turned(V)                                                  # [n, A, r, c]
        if keep is not None:
            ds *= keep
        ds -= along * scores.scale
        ds *= e
        scores.back(tile, ds)
    return scores.gradients()


# ---- scores alone

@op
def scores(xp, qkv, q=None, keys_at=None, queries_at=None, fill=None, **how):
    """The scores that attention takes the softmax of [R, A, P], P the length of the longest
    sequence. `fill`, minus infinity unless given, stands where a query's sequence has no key, or
    has one out of reach. For losses that compare a student's attention with its teacher's, and for
    pictures of it.
    """
    arrays = qkv, q, keys_at, queries_at
    found = Scores(xp, arrays, **how)
    fill = -xp.inf if fill is None else fill
    shape = len(found.queries), found.heads, found.longest
    y = xp.full(shape, fill, qkv.dtype)
    for tile in found.tiles:
        columns(y, tile)[...] = found.of(tile, fill)
    return y, arrays


@scores.grad
def _(xp, arrays, dy, fill=None, **how):
    found = Scores(xp, arrays, **how)
    found.start_back(dy.dtype)
    found.dvalues[...] = 0
    for tile in found.tiles:
        ds = columns(dy, tile) * found.scale
        far = out_of_reach(xp, tile, found.rows, found.reach)
        if far is not None:
            xp.copyto(ds, 0, where=far)
        found.back(tile, ds)
    return found.gradients()


def columns(y, tile):
    """A tile's part of y [R, A, P], as [n, A, r, c]."""
    first = tile.k.start - tile.start
    part = y[tile.q, tile.heads, first:first + tile.c]
    return part.reshape(tile.n, tile.r, *part.shape[1:]).swapaxes(1, 2)
