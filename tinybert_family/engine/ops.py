"""The primitives: each a pair of formulas, forward and backward, on arrays of any library.

    y, saved = forward(xp, *arrays, **static)       all that is kept for backward is in saved
    grads    = backward(xp, saved, dy, **static)    one gradient per array, None where there is none

A backward never writes into dy, and a forward never into its inputs: others may hold them.
"""
from .autograd import Part, Tensor, op
from .backend import sum_rows


def unbroadcast(g, shape):
    """Sum g down to `shape`: what was repeated forward adds up backward."""
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1)
    return g.sum(axes, keepdims=True).reshape(shape) if axes else g


def shape_of(x):
    return getattr(x, "shape", ())


# ---- arithmetic, broadcasting as NumPy does

@op
def add(xp, a, b):
    return a + b, (shape_of(a), shape_of(b))


@add.grad
def _(xp, shapes, dy):
    return unbroadcast(dy, shapes[0]), unbroadcast(dy, shapes[1])


@op
def sub(xp, a, b):
    return a - b, (shape_of(a), shape_of(b))


@sub.grad
def _(xp, shapes, dy):
    return unbroadcast(dy, shapes[0]), unbroadcast(-dy, shapes[1])


@op
def mul(xp, a, b):
    return a * b, (a, b)


@mul.grad
def _(xp, saved, dy):
    a, b = saved
    return unbroadcast(dy * b, shape_of(a)), unbroadcast(dy * a, shape_of(b))


@op
def div(xp, a, b):
    y = a / b
    return y, (shape_of(a), b, y)


@div.grad
def _(xp, saved, dy):
    a_shape, b, y = saved
    da = dy / b
    return unbroadcast(da, a_shape), unbroadcast(-da * y, shape_of(b))     # d(a/b)/db = -(a/b)/b


@op
def neg(xp, x):
    return -x, None


@neg.grad
def _(xp, saved, dy):
    return -dy,


@op
def matmul(xp, a, b):
    """a @ b over the last two axes; leading axes broadcast."""
    return a @ b, (a, b)


@matmul.grad
def _(xp, saved, dy):
    a, b = saved
    da, db = dy @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ dy
    return unbroadcast(da, a.shape), unbroadcast(db, b.shape)


# ---- functions of one number

@op
def exp(xp, x):
    y = xp.exp(x)
    return y, y


@exp.grad
def _(xp, y, dy):
    return dy * y,


@op
def log(xp, x):
    return xp.log(x), x


@log.grad
def _(xp, x, dy):
    return dy / x,


@op
def sqrt(xp, x):
    y = xp.sqrt(x)
    return y, y


@sqrt.grad
def _(xp, y, dy):
    return dy / (2 * y),


@op
def square(xp, x):
    return x * x, x


@square.grad
def _(xp, x, dy):
    return 2 * dy * x,


@op
def tanh(xp, x):
    y = xp.tanh(x)
    return y, y


@tanh.grad
def _(xp, y, dy):
    return dy * (1 - y * y),


@op
def sigmoid(xp, x):
    y = 0.5 * xp.tanh(0.5 * x) + 0.5         # never overflows, unlike 1 / (1 + exp(-x))
    return y, y


@sigmoid.grad
def _(xp, y, dy):
    return dy * y * (1 - y),


# ---- sums

def spread(g, shape, axis, keepdims):
    """Undo a reduction's loss of axes, so that g broadcasts against `shape` again."""
    if axis is None:
        return g.reshape((1,) * len(shape))
    if keepdims:
        return g
    axes = axis if isinstance(axis, tuple) else (axis,)
    axes = {a % len(shape) for a in axes}
    return g.reshape(tuple(1 if i in axes else n for i, n in enumerate(shape)))


@op
def sum(xp, x, axis=None, keepdims=False):
    return x.sum(axis, keepdims=keepdims), x.shape


@sum.grad
def _(xp, shape, dy, axis=None, keepdims=False):
    return xp.broadcast_to(spread(dy, shape, axis, keepdims), shape),


@op
def mean(xp, x, axis=None, keepdims=False):
    y = x.mean(axis, keepdims=keepdims)
    return y, (x.shape, x.size // max(1, y.size))


@mean.grad
def _(xp, saved, dy, axis=None, keepdims=False):
    shape, count = saved
    return xp.broadcast_to(spread(dy / count, shape, axis, keepdims), shape),


@op
def softmax(xp, x, axis=-1):
    """y = exp(x) / sum exp(x), shifted by the maximum so that nothing overflows."""
    e = xp.exp(x - x.max(axis, keepdims=True))
    y = e / e.sum(axis, keepdims=True)
    return y, y                                  # the output is all that backward needs


@softmax.grad
def _(xp, y, dy, axis=-1):
    # J = diag(y) - y y^T, so J^T dy = y * (dy - <y, dy>)
    return y * (dy - (y * dy).sum(axis, keepdims=True)),


@op
def log_softmax(xp, x, axis=-1):
    z = x - x.max(axis, keepdims=True)
    y = z - xp.log(xp.exp(z).sum(axis, keepdims=True))
    return y, y


@log_softmax.grad
def _(xp, y, dy, axis=-1):
    return dy - xp.exp(y) * dy.sum(axis, keepdims=True),


# ---- shapes and places

@op
def reshape(xp, x, shape=()):
    return x.reshape(shape), x.shape


@reshape.grad
def _(xp, before, dy, shape=()):
    return dy.reshape(before),


@op
def transpose(xp, x, axes=None):
    return x.transpose(axes), None


@transpose.grad
def _(xp, saved, dy, axes=None):
    if axes is None:
        return dy.transpose(),
    back = [0] * len(axes)
    for i, a in enumerate(axes):
        back[a] = i
    return dy.transpose(back),


@op
def concat(xp, *xs, axis=0):
    return xp.concatenate(xs, axis), [x.shape[axis] for x in xs]


@concat.grad
def _(xp, sizes, dy, axis=0):
    grads, lo = [], 0
    for n in sizes:
        grads.append(dy[(slice(None),) * (axis % dy.ndim) + (slice(lo, lo + n),)])
        lo += n
    return grads


@op
def where(xp, a, b, mask=None):
    """a where mask holds, b elsewhere; all of one shape."""
    return xp.where(mask, a, b), None


@where.grad
def _(xp, saved, dy, mask=None):
    return dy * mask, dy * ~mask


@op
def part(xp, x, lo=0, hi=None):
    """The rows lo:hi of x."""
    return x[lo:hi], x.shape


@part.grad
def _(xp, shape, dy, lo=0, hi=None):
    return Part(slice(lo, hi), dy, shape),


@op
def take(xp, x, index=None):
    """The rows of x at `index`, which may repeat."""
    return x[index], x.shape


@take.grad
def _(xp, shape, dy, index=None):
    index = index.reshape(-1) % shape[0]            # -1 is another name of the last row
    distinct, rows = sum_rows(xp, dy.reshape(index.size, *shape[1:]), index)
    return Part(distinct, rows, shape),


@op
def put(xp, x, index=None, rows=0):
    """The rows of x, written at `index` of an array of `rows` rows of zeros: take, turned round."""
    y = xp.zeros((rows, *x.shape[1:]), x.dtype)
    y[index] = x
    return y, None


@put.grad
def _(xp, saved, dy, index=None, rows=0):
    return dy[index],


# ---- Python's operators on Tensors

def _right(f):
    return lambda self, other: f(other, self)


for _name, _f in dict(add=add, sub=sub, mul=mul, truediv=div, matmul=matmul).items():
    setattr(Tensor, f"__{_name}__", lambda self, other, f=_f: f(self, other))
    setattr(Tensor, f"__r{_name}__", _right(_f))
Tensor.__neg__ = lambda self: neg(self)
Tensor.reshape = lambda self, *shape: reshape(self, shape=shape)
Tensor.sum = lambda self, axis=None, keepdims=False: sum(self, axis=axis, keepdims=keepdims)
Tensor.mean = lambda self, axis=None, keepdims=False: mean(self, axis=axis, keepdims=keepdims)
