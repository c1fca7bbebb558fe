"""The ops where the time goes. Each could be written with ops.py alone, and a test holds it to that; fused, it makes
fewer passes over memory here, and has room for a kernel of its own on a GPU.

T tokens of all sequences stand one after another in [T, H]; `cuts` [S+1] says where one sequence ends and the next
begins. Only attention looks at the cuts. There is no padding and so there is never a mask.
"""
import math
from typing import NamedTuple

from . import philox
from .autograd import Part, op
from .backend import row_blocks, sum_rows


def column_sums(xp, x):
    """x.sum(0), left to the matrix product, which is faster at it."""
    return xp.ones(len(x), x.dtype) @ x


# ---- linear

@op
def linear(xp, x, w, b=None):
    """y = x w^T + b, with w stored [out, in] as published files do."""
    y = x @ w.T                                                     # [T, in] -> [T, out]
    if b is not None:
        y += b
    return y, (x, w, b is not None)


@linear.grad
def _(xp, saved, dy):
    x, w, biased = saved
    return dy @ w, dy.T @ x, column_sums(xp, dy) if biased else None


# ---- GELU

# float32: Phi(x) = 1/2 + t Q(t^2) with t = tanh(x (a + b x^2)). Fitted by us to x Phi(x) over [0, 14], largest error
# 5.1e-8, so the rounding of float32 is what remains. Both a and b are positive: no |x| is too large.
TANH_ARGUMENT = 0.4207247976801182, 0.006513786601362347
TANH_SERIES = (0.9482272164657992, -0.6596982622732142, 0.22658241411015143, -0.016974899350059077,
               0.0018635274067962094)

# float64: the upper tail 1 - Phi(a) = exp(-a^2/2) g((a-4)/(a+4)) for a >= 0, g a Chebyshev series computed by us with
# 40 digits; largest error 1.7e-16.
TAIL_SERIES = (
    0.1682882016232327, -0.22915709990540908, 0.07778835509065742, -0.020384686418274105, 0.003918137045458075,
    -0.0004666606283379171, 6.287520132139339e-06, 8.58398579912788e-06, -1.0167576108636199e-06,
    -1.397526759521329e-07, 3.669280791486882e-08, 2.8041788924924713e-09, -1.2584224132220847e-09,
    -8.950222407260244e-11, 4.536086530984231e-11, 4.474287656506267e-12, -1.671687905185684e-12,
    -2.683781469553837e-13, 5.721760333130976e-14, 1.621048267715444e-14, -1.3744940820337785e-15,
    -9.10143893328047e-16, -2.2734886306808515e-17, 4.421463813334421e-17)


def horner(x, coefficients):
    """c0 + c1 x + c2 x^2 + ..., in place from the highest power down."""
    y = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        y += c
        y *= x
    y += coefficients[0]
    return y


def normal_cdf(xp, x, square):
    """Phi(x), the normal distribution's probability of less than x; `square` is x*x, which callers have."""
    if x.dtype != xp.float64:
        t = horner(square, TANH_ARGUMENT)
        t *= x
        xp.tanh(t, out=t)
        y = horner(t * t, TANH_SERIES)
        y *= t
        y += 0.5
        return y
    a = xp.abs(x)
    t = (a - 4) / (a + 4)
    b1 = b2 = 0 * a
    for c in TAIL_SERIES[:0:-1]:                                    # Clenshaw's recurrence
        b1, b2 = 2 * t * b1 - b2 + c, b1
    tail = xp.exp(-0.5 * square) * (t * b1 - b2 + TAIL_SERIES[0])
    return xp.where(x > 0, 1 - tail, tail)


def gelu_erf(xp, z, slope):
    """z Phi(z), and its derivative Phi(z) + z phi(z) where asked."""
    square = z * z
    cdf = normal_cdf(xp, z, square)
    if slope is not None:
        square *= -0.5
        xp.exp(square, out=slope)
        slope *= 1 / math.sqrt(2 * math.pi)
        slope *= z
        slope += cdf
    return xp.multiply(z, cdf, out=cdf)


def gelu_tanh(xp, z, slope):
    """z (1 + tanh u) / 2 with u = sqrt(2/pi) (z + 0.044715 z^3): what some published models were trained with."""
    k = math.sqrt(2 / math.pi)
    square = z * z
    t = xp.tanh(horner(square, (k, 0.044715 * k)) * z)
    half = 0.5 * t + 0.5
    if slope is not None:
        slope[...] = half + 0.5 * z * (1 - t * t) * horner(square, (k, 3 * 0.044715 * k))
    return z * half


@op
def gelu(xp, x, bias=None, form="erf", saving=True):
    """GELU of x + bias. The slope is computed beside the value, while both are in the cache."""
    curve = gelu_erf if form == "erf" else gelu_tanh
    y = xp.empty_like(x)
    slope = xp.empty_like(x) if saving else None
    for r in row_blocks(x):
        z = x[r] if bias is None else x[r] + bias
        y[r] = curve(xp, z, slope[r] if saving else None)
    return y, (slope, bias is not None)


@gelu.grad
def _(xp, saved, dy, form="erf"):
    slope, biased = saved
    dx = dy * slope
    return dx, column_sums(xp, dx) if biased else None


# ---- norm

@op
def norm(xp, x, gain, shift, residual=None, bias=None, eps=1e-12, p=0.0, key=None, saving=True):
    """LayerNorm over the last axis of  residual + dropout(x + bias):  gain * (h - mean) / sqrt(var + eps) + shift."""
    y, xhat = xp.empty_like(x), xp.empty_like(x)                    # [T, H]
    rstd = xp.empty(len(x), x.dtype)
    keep, scale = dropout_mask(xp, x.shape, p, key)
    average = xp.full(x.shape[1], 1 / x.shape[1], x.dtype)
    for r in row_blocks(x):
        h = xhat[r]
        h[...] = x[r]
        if bias is not None:
            h += bias
        if keep is not None:
            h *= keep[r]
            h *= scale
        if residual is not None:
            h += residual[r]
        h -= (h @ average)[:, None]
        rstd[r] = 1 / xp.sqrt((h * h) @ average + eps)
        h *= rstd[r, None]
        xp.multiply(h, gain, out=y[r])
        y[r] += shift
    return y, (xhat, rstd, gain, keep, residual is not None, bias is not None)


@norm.grad
def _(xp, saved, dy, eps=1e-12, p=0.0, key=None):
    # With d = dy * gain:  dh = rstd * (d - mean(d) - xhat * mean(d * xhat)), the means over a row.
    xhat, rstd, gain, keep, has_residual, has_bias = saved
    dh = xp.empty_like(dy)
    dx = dh if keep is None else xp.empty_like(dy)
    average = xp.full(dy.shape[1], 1 / dy.shape[1], dy.dtype)
    dgain, dshift = xp.zeros_like(gain), xp.zeros_like(gain)
    scale = dropout_scale(p)
    for r in row_blocks(dy):
        d, h = dy[r], xhat[r]
        ones = xp.ones(len(d), d.dtype)
        product = d * h
        dgain += ones @ product
        dshift += ones @ d
        product *= gain
        along = product @ average
        g = xp.multiply(d, gain, out=dh[r])
        g -= (g @ average)[:, None]
        xp.multiply(h, along[:, None], out=product)
        g -= product
        g *= rstd[r, None]
        if keep is not None:
            xp.multiply(g, keep[r], out=dx[r])
            dx[r] *= scale
    return dx, dgain, dshift, dh if has_residual else None, column_sums(xp, dx) if has_bias else None


# ---- dropout

def dropout_scale(p):
    return 256 / (256 - philox.threshold(p))


def dropout_mask(xp, shape, p, key):
    """(what stays, the factor that keeps the mean), or (None, 1) where nothing is dropped."""
    if key is None or not philox.threshold(p):
        return None, 1.0
    return philox.draw(xp, key, *shape) >= philox.threshold(p), dropout_scale(p)


@op
def dropout(xp, x, p=0.0, key=None):
    keep, scale = dropout_mask(xp, x.shape, p, key)
    return x if keep is None else x * keep * scale, keep


@dropout.grad
def _(xp, keep, dy, p=0.0, key=None):
    return dy if keep is None else dy * keep * dropout_scale(p),


# ---- embedding

@op
def embed(xp, *tables, ids=()):
    """The sum over tables of table[ids]: word + position + type, each ids an int array [T]."""
    y = tables[0][ids[0]]                                           # [T, H]
    for table, i in zip(tables[1:], ids[1:]):
        y += table[i]
    return y, [t.shape for t in tables]


@embed.grad
def _(xp, shapes, dy, ids=()):
    return [table_grad(xp, dy, i, shape) for i, shape in zip(ids, shapes)]


def table_grad(xp, dy, ids, shape):
    if shape[0] <= 4:                                               # a few rows: one small matrix product
        return (ids == xp.arange(shape[0])[:, None]).astype(dy.dtype) @ dy
    return Part(*sum_rows(xp, dy, ids), shape)


# ---- attention

class Tile(NamedTuple):
    """A dense piece of the scores: n sequences of equal shape, r queries of each against c of its keys."""
    q: slice                # rows of q, n * r of them
    k: slice                # rows of k and v, n * c of them
    n: int
    start: int              # the token its (first) sequence begins with


def tiles(cuts, rows, reach, limit):
    """Cut the block-diagonal matrix of all scores into tiles, and leave out what nobody looks at.

    rows: the tokens that ask, ascending (None: all of them). reach: how far a query looks to either side. limit: as many
    scores as neighbouring sequences of one shape may have together, to share a tile.
    """
    tokens = cuts.tolist()
    queries = tokens if rows is None else rows.searchsorted(cuts).tolist()
    made = []
    for lo, hi, a, b in zip(tokens, tokens[1:], queries, queries[1:]):
        if reach is not None:
            step = max(reach, 32)
            for i in range(a, b, step):
                j = min(i + step, b)
                first, last = (i, j - 1) if rows is None else (int(rows[i]), int(rows[j - 1]))
                made.append(Tile(slice(i, j), slice(max(lo, first - reach), min(hi, last + reach + 1)), 1, lo))
        elif a < b:
            made.append(Tile(slice(a, b), slice(lo, hi), 1, lo))
            if len(made) > 1 and fit_together(*made[-2:], limit):
                tile, before = made.pop(), made.pop()
                made.append(Tile(slice(before.q.start, tile.q.stop), slice(before.k.start, tile.k.stop),
                                 before.n + 1, before.start))
    return made


def fit_together(before, tile, limit):
    """Are these neighbours of one shape (batches are sorted by length), and not too large together?"""
    r, c = (s.stop - s.start for s in (tile.q, tile.k))
    return (before.q.stop == tile.q.start and before.k.stop == tile.k.start
            and before.q.stop - before.q.start == before.n * r and before.k.stop - before.k.start == before.n * c
            and (before.n + 1) * r * c <= limit)


def by_head(x, n, heads):
    """[n*S, A*D] -> [n, A, S, D], a view"""
    return x.reshape(n, -1, heads, x.shape[-1] // heads).swapaxes(1, 2)


def attention_inputs(qkv, q):
    """q, k and v as columns of the arrays given: [q|k|v] in one, or q apart and [k|v]."""
    if q is None:
        h = qkv.shape[1] // 3
        return qkv[:, :h], qkv[:, h:2 * h], qkv[:, 2 * h:]
    h = qkv.shape[1] // 2
    return q, qkv[:, :h], qkv[:, h:]


def positions(xp, tile, rows):
    """Where the queries and the keys of a tile of one sequence stand in it."""
    q, k, _, start = tile
    at = xp.arange(q.start, q.stop) if rows is None else rows[q]
    return at - start, xp.arange(k.start, k.stop) - start


@op
def attention(xp, qkv, q=None, bias=None, cuts=None, heads=1, rows=None, reach=None, scale=None, p=0.0, key=None,
              saving=True):
    """softmax(scale q k^T + bias) v within each sequence, dropout on the probabilities.

    qkv [T, 3H]; or q [R, H] for the tokens `rows` alone and qkv [T, 2H]. bias [A, P, P] adds bias[:, i, j] to the score
    of query i and key j of a sequence (relative positions). reach: keys further away than this are not looked at.
    """
    packed = q is None
    q, k, v = attention_inputs(qkv, q)                              # [R, H], [T, H], [T, H]
    scale = scale or (heads / q.shape[1]) ** 0.5                    # 1 / sqrt(D)
    y = xp.empty_like(q, order="C")                                 # [R, H]
    kept = []
    together = 0 if bias is not None else 96 * 1024 // heads        # the scores of a tile stay in the cache
    for tile in tiles(cuts, rows, reach, together):
        Q, K, V, Y = (by_head(x[part], tile.n, heads) for x, part in
                      ((q, tile.q), (k, tile.k), (v, tile.k), (y, tile.q)))
        e = xp.matmul(Q * scale, K.swapaxes(-1, -2))                # [n, A, r, c]
        if bias is not None or reach is not None:
            i, j = positions(xp, tile, rows)
            if bias is not None:
                e += bias[:, i[:, None], j]
            if reach is not None:
                e[:, :, abs(i[:, None] - j) > reach] = -xp.inf
        e -= e.max(-1, keepdims=True)
        xp.exp(e, out=e)
        # e is left unnormalised: dividing the D columns of the result is cheaper than the c columns of e.
        total = e @ xp.ones(e.shape[-1], e.dtype)                   # [n, A, r]
        keep, factor = attention_mask(xp, tile, heads, p, key)
        xp.divide((e if keep is None else e * keep) @ V, (total / factor)[..., None], out=Y)
        if saving:
            kept.append((tile, e, total, keep))
    return y, (packed, q, k, v, y, bias, kept)


def attention_mask(xp, tile, heads, p, key):
    """Draws are numbered by (query, head) and by the key's place, whatever the tiles: a kernel may cut otherwise."""
    if key is None or not philox.threshold(p):
        return None, 1.0
    r, c = tile.q.stop - tile.q.start, (tile.k.stop - tile.k.start) // tile.n
    first = tile.k.start - tile.start
    numbers = xp.arange(tile.q.start * heads, tile.q.stop * heads)
    draws = philox.draw(xp, key, numbers, first + c)[:, first:]     # [n*r*A, c]
    keep = (draws >= philox.threshold(p)).reshape(tile.n, r // tile.n, heads, c).swapaxes(1, 2)
    return keep, dropout_scale(p)


@attention.grad
def _(xp, saved, dy, cuts=None, heads=1, rows=None, reach=None, scale=None, p=0.0, key=None):
    # With P = e / total:  dV = P^T dY,  dP = dY V^T,  dS = P (dP - <dP, P>),  dQ = scale dS K,  dK = scale dS^T Q.
    # <dP, P> is <dY, Y> of the row, which needs D products instead of c; and 1 / total goes into dY once, not into P.
    packed, q, k, v, y, bias, kept = saved
    scale = scale or (heads / q.shape[1]) ** 0.5
    everything_written = rows is None and reach is None
    new = xp.empty if everything_written else xp.zeros
    dqkv = new((len(k), (3 if packed else 2) * q.shape[1]), dy.dtype)
    dq, dk, dv = attention_inputs(dqkv, None if packed else xp.empty_like(q, order="C"))
    dbias = None if bias is None else xp.zeros_like(bias)
    for tile, e, total, keep in kept:
        Q, K, V, Y, dY, dQ, dK, dV = (by_head(x[part], tile.n, heads) for x, part in (
            (q, tile.q), (k, tile.k), (v, tile.k), (y, tile.q), (dy, tile.q), (dq, tile.q), (dk, tile.k), (dv, tile.k)))
        g = dY / total[..., None]                                   # [n, A, r, D]
        along = (g * Y).sum(-1, keepdims=True)                      # [n, A, r, 1]
        if keep is not None:
            g *= dropout_scale(p)
        ds = g @ V.swapaxes(-1, -2)                                 # [n, A, r, c]
        if keep is not None:
            ds *= keep
        ds -= along
        ds *= e
        xp.matmul(ds, K, out=dQ)
        dQ *= scale
        dropped = e if keep is None else e * keep
        if reach is None:
            xp.matmul(dropped.swapaxes(-1, -2), g, out=dV)
            xp.matmul(ds.swapaxes(-1, -2), Q * scale, out=dK)
        else:                                                       # neighbouring tiles share keys
            dV += dropped.swapaxes(-1, -2) @ g
            dK += ds.swapaxes(-1, -2) @ (Q * scale)
        if dbias is not None:
            i, j = positions(xp, tile, rows)
            dbias[:, i[:, None], j] += ds[0]
    return dqkv, None if packed else dq, dbias


# ---- losses

@op
def vocabulary_loss(xp, x, w, b, labels=None, weights=None, saving=True):
    """sum of weights * cross-entropy of softmax(x w^T + b) against labels.   x [K, H], w [V, H] -> a number

    The logits are ours alone, so they become their own gradient in place: probability minus one-hot, times weight.
    """
    z = x @ w.T                                                     # [K, V]
    loss = xp.zeros((), x.dtype)
    for r in row_blocks(z):
        p, here = z[r], xp.arange(len(z[r]))
        p += b
        p -= p.max(-1, keepdims=True)
        right = p[here, labels[r]]
        xp.exp(p, out=p)
        total = p @ xp.ones(p.shape[1], p.dtype)
        loss += ((xp.log(total) - right) * weights[r]).sum()
        if saving:
            p *= (weights[r] / total)[:, None]
            p[here, labels[r]] -= weights[r]
    return loss, (x, w, z)


@vocabulary_loss.grad
def _(xp, saved, dy, labels=None, weights=None):
    x, w, dz = saved
    dx, dw, db = dz @ w, dz.T @ x, column_sums(xp, dz)
    return dx * dy, dw * dy, db * dy


@op
def cross_entropy(xp, logits, labels=None, weights=None):
    """sum of weights * (log sum exp(logits) - logits[label])"""
    z = logits - logits.max(-1, keepdims=True)                      # [N, C]
    e = xp.exp(z)
    total = e.sum(-1, keepdims=True)
    here = xp.arange(len(z))
    loss = ((xp.log(total[:, 0]) - z[here, labels]) * weights).sum()
    return loss, e / total


@cross_entropy.grad
def _(xp, probability, dy, labels=None, weights=None):
    dz = probability.copy()
    dz[xp.arange(len(dz)), labels] -= 1
    return dz * (weights * dy)[:, None],


@op
def binary_loss(xp, logits, labels=None, weights=None):
    """sum of weights * (log(1 + exp(z)) - label z), with the logarithm written so that no z overflows"""
    softplus = xp.maximum(logits, 0) + xp.log1p(xp.exp(-abs(logits)))
    return ((softplus - labels * logits) * weights).sum(), logits


@binary_loss.grad
def _(xp, z, dy, labels=None, weights=None):
    return (0.5 * xp.tanh(0.5 * z) + 0.5 - labels) * (weights * dy),
