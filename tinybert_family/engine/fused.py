"""The ops where the time goes. Each could be written with ops.py alone, and a test holds it to
that; fused, it makes fewer passes over memory, and has room for a kernel of its own on a GPU.

The T tokens of all sequences stand one after another in [T, H], without padding. The ops of this
file treat every token alike and never ask where a sequence ends. Only attention does; it is one of
these ops too, in a file of its own.
"""
import math

from . import philox
from .attention import attention, scores    # so that they are there with the others
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

# float32: Phi(x) = 1/2 + t Q(t^2) with t = tanh(x (a + b x^2)). Fitted by us to x Phi(x) over
# [0, 14] with a largest error of 5.1e-8, so the rounding of float32 is what remains. Both a and b
# are positive: no |x| is too large.
TANH_ARGUMENT = 0.4207247976801182, 0.006513786601362347
TANH_SERIES = (
    0.9482272164657992, -0.6596982622732142, 0.22658241411015143, -0.016974899350059077,
    0.0018635274067962094)

# float64: for a >= 0 the upper tail is 1 - Phi(a) = exp(-a^2/2) g((a-4)/(a+4)), with g a Chebyshev
# series that we computed with 40 digits; largest error 1.7e-16.
TAIL_SERIES = (
    0.1682882016232327, -0.22915709990540908, 0.07778835509065742, -0.020384686418274105,
    0.003918137045458075, -0.0004666606283379171, 6.287520132139339e-06, 8.58398579912788e-06,
    -1.0167576108636199e-06, -1.397526759521329e-07, 3.669280791486882e-08, 2.8041788924924713e-09,
    -1.2584224132220847e-09, -8.950222407260244e-11, 4.536086530984231e-11, 4.474287656506267e-12,
    -1.671687905185684e-12, -2.683781469553837e-13, 5.721760333130976e-14, 1.621048267715444e-14,
    -1.3744940820337785e-15, -9.10143893328047e-16, -2.2734886306808515e-17, 4.421463813334421e-17)


def horner(x, coefficients):
    """c0 + c1 x + c2 x^2 + ..., in place from the highest power down."""
    y = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        y += c
        y *= x
    y += coefficients[0]
    return y


def normal_cdf(xp, x, square):
    """Phi(x), the probability of less than x under the normal distribution. `square` is x * x,
    which the callers have already."""
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
    for c in TAIL_SERIES[:0:-1]:            # Clenshaw's recurrence: Horner's, for Chebyshev series
        b1, b2 = 2 * t * b1 - b2 + c, b1
    tail = xp.exp(-0.5 * square) * (t * b1 - b2 + TAIL_SERIES[0])
    return xp.where(x > 0, 1 - tail, tail)


def gelu_erf(xp, z, y, slope):
    """y = z Phi(z), and the derivative Phi(z) + z phi(z) where asked."""
    square = z * z
    cdf = normal_cdf(xp, z, square)
    if slope is not None:
        square *= -0.5
        xp.exp(square, out=slope)
        slope *= 1 / math.sqrt(2 * math.pi)
        slope *= z
        slope += cdf
    xp.multiply(z, cdf, out=y)


def gelu_tanh(xp, z, y, slope):
    """y = z (1 + tanh u) / 2 with u = sqrt(2/pi) (z + 0.044715 z^3), the approximation that some
    published models were trained with; and its derivative where asked."""
    k = math.sqrt(2 / math.pi)
    square = z * z
    t = xp.tanh(horner(square, (k, 0.044715 * k)) * z)
    half = 0.5 * t + 0.5
    if slope is not None:
        # The product rule: half + z dhalf/dz, where d tanh(u)/dz = (1 - tanh(u)^2) du/dz.
        slope[...] = half + 0.5 * z * (1 - t * t) * horner(square, (k, 3 * 0.044715 * k))
    xp.multiply(z, half, out=y)


@op
def gelu(xp, x, bias=None, form="erf", saving=True):
    """GELU of x + bias. The slope, which is all that backward needs, is computed beside the value:
    the two share their hardest part, and both are in the cache."""
    curve = gelu_erf if form == "erf" else gelu_tanh
    y = xp.empty_like(x)
    slope = xp.empty_like(x) if saving else None
    for r in row_blocks(x):
        z = x[r] if bias is None else x[r] + bias
        curve(xp, z, y[r], slope[r] if saving else None)
    return y, (slope, bias is not None)


@gelu.grad
def _(xp, saved, dy, form="erf"):
    slope, biased = saved
    dx = dy * slope
    return dx, column_sums(xp, dx) if biased else None


@op
def geglu(xp, x, form="erf", saving=True):
    """GELU(a) * b, where a is the first half of x's columns and b the second: a gate that b opens
    and closes, number by number.

    By the product rule dy goes to a times GELU'(a) b, and to b times GELU(a). These two factors are
    all that is kept: side by side they are as large as x, which nobody needs any more.
    """
    curve = gelu_erf if form == "erf" else gelu_tanh
    f = x.shape[1] // 2
    y = xp.empty((len(x), f), x.dtype)                              # [T, 2F] -> [T, F]
    factors = xp.empty_like(x, order="C") if saving else None
    for r in row_blocks(x):
        a, b, out = x[r, :f], x[r, f:], y[r]
        if saving:
            slope, value = factors[r, :f], factors[r, f:]
            curve(xp, a, value, slope)
            slope *= b
            xp.multiply(value, b, out=out)
        else:
            curve(xp, a, out, None)
            out *= b
    return y, factors


@geglu.grad
def _(xp, factors, dy, form="erf"):
    dx = xp.empty_like(factors)
    f = dy.shape[1]
    xp.multiply(factors[:, :f], dy, out=dx[:, :f])
    xp.multiply(factors[:, f:], dy, out=dx[:, f:])
    return dx,


# ---- ReLU

@op
def relu(xp, x, bias=None):
    """max(x + bias, 0). Where y is positive the slope is 1, elsewhere 0: y itself says which."""
    if bias is None:
        y = xp.maximum(x, 0)
    else:
        y = xp.maximum(x, -bias)            # the same, and faster than a maximum with one number
        y += bias
    return y, (y, bias is not None)


@relu.grad
def _(xp, saved, dy):
    y, biased = saved
    dx = dy * (y > 0)
    return dx, column_sums(xp, dx) if biased else None


# ---- norm

@op
def norm(xp, x, gain, shift=None, residual=None, bias=None, eps=1e-12, p=0.0, key=None,
         saving=True):
    """LayerNorm of h = residual + dropout(x + bias) over the last axis.

    y = gain * xhat + shift, where xhat = (h - mean) / sqrt(var + eps); some models have no shift
    """
    y = xp.empty_like(x)                                            # [T, H]
    xhat = xp.empty_like(x) if saving else y
    rstd = xp.empty(len(x), x.dtype)
    keep, scale = dropout_mask(xp, x.shape, p, key)
    average = xp.full(x.shape[1], 1 / x.shape[1], x.dtype)
    for r in row_blocks(x):
        h = xhat[r]
        if bias is None:
            h[...] = x[r]
        else:
            xp.add(x[r], bias, out=h)
        if keep is not None:
            h *= keep[r]
            h *= scale
        if residual is not None:
            h += residual[r]
        h -= (h @ average)[:, None]         # means are matrix products too: faster than sums
        rstd[r] = 1 / xp.sqrt((h * h) @ average + eps)
        h *= rstd[r, None]
        xp.multiply(h, gain, out=y[r])
        if shift is not None:
            y[r] += shift
    given = [part is not None for part in (shift, residual, bias)]
    return y, (xhat, rstd, gain, keep, given)


@norm.grad
def _(xp, saved, dy, eps=1e-12, p=0.0, key=None):
    # With d = dy * gain, and means over a row:
    #     dh = rstd * (d - mean(d) - xhat * mean(d * xhat))
    # The two parts subtracted would move xhat's mean and its length, and those are fixed.
    xhat, rstd, gain, keep, (has_shift, has_residual, has_bias) = saved
    dh = xp.empty_like(dy)
    dx = dh if keep is None else xp.empty_like(dy)
    average = xp.full(dy.shape[1], 1 / dy.shape[1], dy.dtype)
    dgain = xp.zeros_like(gain)
    dshift = xp.zeros_like(gain) if has_shift else None
    scale = philox.scale(p)
    for r in row_blocks(dy):
        d, h = dy[r], xhat[r]
        ones = xp.ones(len(d), d.dtype)
        product = d * h                     # dy * xhat
        dgain += ones @ product
        if has_shift:
            dshift += ones @ d
        product *= gain
        along = product @ average           # mean(d * xhat)
        g = xp.multiply(d, gain, out=dh[r])
        g -= (g @ average)[:, None]
        xp.multiply(h, along[:, None], out=product)
        g -= product
        g *= rstd[r, None]
        if keep is not None:
            xp.multiply(g, keep[r], out=dx[r])
            dx[r] *= scale
    dresidual = dh if has_residual else None
    dbias = column_sums(xp, dx) if has_bias else None
    return dx, dgain, dshift, dresidual, dbias


@op
def affine(xp, x, gain, shift, residual=None, bias=None, saving=True):
    """gain * h + shift with h = residual + x + bias: a norm that does not look at its rows.

    MobileBERT calls it NoNorm: to measure every row costs a phone more time than it can spare.
    """
    y = xp.empty_like(x, order="C")                                 # [T, H]
    sums = xp.empty_like(y) if saving else y
    for r in row_blocks(x):
        h = sums[r]
        if residual is None:
            h[...] = x[r]
        else:
            xp.add(x[r], residual[r], out=h)
        if bias is not None:
            h += bias
        xp.multiply(h, gain, out=y[r])
        y[r] += shift
    return y, (sums, gain, residual is not None, bias is not None)


@affine.grad
def _(xp, saved, dy):
    sums, gain, has_residual, has_bias = saved
    dx = xp.empty_like(sums)
    dgain, dshift = xp.zeros_like(gain), xp.zeros_like(gain)
    for r in row_blocks(dy):
        d = dy[r]
        ones = xp.ones(len(d), d.dtype)
        dgain += ones @ (d * sums[r])
        dshift += ones @ d
        xp.multiply(d, gain, out=dx[r])
    # The sum's three parts move y alike; of the bias there is one for all rows.
    dbias = dshift * gain if has_bias else None
    return dx, dgain, dshift, dx if has_residual else None, dbias


# ---- dropout

def dropout_mask(xp, shape, p, key):
    """(what stays, the factor that keeps the mean), or (None, 1) where nothing is dropped."""
    if key is None or not philox.threshold(p):
        return None, 1.0
    return philox.draw(xp, key, *shape) >= philox.threshold(p), philox.scale(p)


@op
def dropout(xp, x, p=0.0, key=None):
    keep, scale = dropout_mask(xp, x.shape, p, key)
    return x if keep is None else x * keep * scale, keep


@dropout.grad
def _(xp, keep, dy, p=0.0, key=None):
    return dy if keep is None else dy * keep * philox.scale(p),


# ---- rotary positions

def halves(x, columns, heads, size):
    """The first and the second half of every head, [T, columns/D, D/2] twice, views of x."""
    apart = x[:, :columns].reshape(len(x), -1, heads, 2, size)
    return apart[:, :, :, 0], apart[:, :, :, 1]


def rotated(xp, x, cos, sin, heads, columns):
    """A new array: the first columns of x turned by the angles, the others as they are."""
    y = xp.empty_like(x, order="C")
    columns = x.shape[1] if columns is None else columns
    size = cos.shape[1]                                             # D/2
    for r in row_blocks(x):
        c, s = cos[r, None, None], sin[r, None, None]               # [t, 1, 1, D/2]
        y[r, columns:] = x[r, columns:]
        a, b = halves(x[r], columns, heads, size)
        first, second = halves(y[r], columns, heads, size)
        xp.multiply(a, c, out=first)
        first -= b * s
        xp.multiply(b, c, out=second)
        second += a * s
    return y


@op
def rope(xp, x, cos=None, sin=None, heads=1, columns=None):
    """Rotary positions (Su et al., 2021) on the first `columns` columns of x [T, n*A*D].

    Numbers m and m + D/2 of a head are a point in the plane; here it is turned by the angle that
    cos and sin [T, D/2] hold for its token: (a, b) -> (a cos - b sin, b cos + a sin). When angles
    grow in proportion to the token's place, the product of a query and a key, both turned, depends
    on the distance between their places alone.
    """
    return rotated(xp, x, cos, sin, heads, columns), None


@rope.grad
def _(xp, saved, dy, cos=None, sin=None, heads=1, columns=None):
    # A rotation's transpose is its inverse: the same angle, the other way round.
    return rotated(xp, dy, cos, -sin, heads, columns),


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
    """A row of the table gets the sum of dy over the tokens that it was taken for."""
    if shape[0] <= 4:                       # a few rows: one small matrix product
        chosen = ids == xp.arange(shape[0])[:, None]                # [rows, T]
        return chosen.astype(dy.dtype) @ dy
    return Part(*sum_rows(xp, dy, ids), shape)


# ---- losses

@op
def vocabulary_loss(xp, x, w, b, labels=None, weights=None, saving=True):
    """sum of weights * cross-entropy of softmax(x w^T + b) against labels, with x [K, H], w [V, H]

    The logits are the largest array of a step. They are ours alone, so they become their own
    gradient in place: (probability - one-hot) * weight.
    """
    z = x @ w.T                                                     # [K, V]
    loss = xp.zeros((), x.dtype)
    for r in row_blocks(z, size=512 * 1024):                        # a row is long
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
    # dy is one number; it goes where it meets the fewest.
    return dz @ w * dy, dz.T @ (x * dy), column_sums(xp, dz) * dy


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
    """sum of weights * (log(1 + exp(z)) - label z), the logarithm written so that no z overflows"""
    softplus = xp.maximum(logits, 0) + xp.log1p(xp.exp(-abs(logits)))
    return ((softplus - labels * logits) * weights).sum(), logits


@binary_loss.grad
def _(xp, z, dy, labels=None, weights=None):
    return (0.5 * xp.tanh(0.5 * z) + 0.5 - labels) * (weights * dy),
