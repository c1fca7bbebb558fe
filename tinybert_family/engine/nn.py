"""Modules: plain objects whose attributes are parameters, other modules, or lists of them.

The tree is vars(self).
"""
import copy

import numpy as np

from . import fused, philox
from .autograd import Tensor, parameter
from .ops import part


DRAWS = 1 << 20                     # at a time


class Init:
    """Where new parameters come from: a generator, and how wide their values are spread.

    std 0 means 1 / sqrt(fan-in), which narrow models need to leave the plateau of the unigram
    distribution; the papers use 0.02 at every width, cut off at two deviations. Without a seed
    the arrays have shapes but no memory behind them: enough to count parameters, or to be
    filled from a file.
    """

    def __init__(self, seed=None, std=0.02, dtype=np.float32):
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.std, self.dtype = std, dtype

    def normal(self, shape):
        if self.rng is None:
            return self.constant(shape, 0)
        std = self.std or shape[-1] ** -0.5
        y = np.empty(shape, self.dtype)
        flat, far = y.reshape(-1), []
        for lo in range(0, y.size, DRAWS):          # a large table in float64 would be twice itself
            x = self.rng.standard_normal(min(DRAWS, y.size - lo))
            far.append(lo + np.flatnonzero(abs(x) > 2))
            flat[lo:lo + len(x)] = x * std
        far = np.concatenate(far) if far else []
        while len(far):                             # draw again what lies beyond two deviations
            x = self.rng.standard_normal(len(far))
            flat[far] = x * std
            far = far[abs(x) > 2]
        return parameter(y)

    def waves(self, shape, height=0.25):
        """Sines and cosines of the row number, the slowest 10,000 times slower than the fastest.

        Rows that stand near each other are alike, more so the nearer (Vaswani et al., 2017).
        """
        if self.rng is None:
            return self.constant(shape, 0)
        row = np.arange(shape[0])[:, None]
        column = np.arange(shape[1])
        slowness = 10_000.0 ** (column // 2 * 2 / shape[1])
        angle = row / slowness
        waves = np.where(column % 2, np.cos(angle), np.sin(angle))
        return parameter((height * waves).astype(self.dtype))

    def constant(self, shape, value):
        if self.rng is None:
            return parameter(np.broadcast_to(np.zeros((), self.dtype), shape))
        return parameter(np.full(shape, value, self.dtype))


class Module:
    def named(self):
        """{dotted path: Tensor} in the order of construction.

        A shared parameter comes once, under its first name.
        """
        first = {}
        for name, tensor in self._walk():
            first.setdefault(id(tensor), (name, tensor))
        return dict(first.values())

    def _walk(self, prefix=""):
        for key, value in vars(self).items():
            for i, x in enumerate(value) if isinstance(value, list) else [(None, value)]:
                name = prefix + key + ("" if i is None else f".{i}")
                if isinstance(x, Tensor):
                    yield name, x
                elif isinstance(x, Module):
                    yield from x._walk(name + ".")

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)


def replica(module, seen=None):
    """A second tree over the same values, whose gradients are its own, as each worker needs it."""
    seen = {} if seen is None else seen

    def of(x):
        if isinstance(x, list):
            return [of(item) for item in x]
        if isinstance(x, (Tensor, Module)) and id(x) not in seen:
            seen[id(x)] = parameter(x.data) if isinstance(x, Tensor) else replica(x, seen)
        return seen.get(id(x), x)

    twin = copy.copy(module)
    vars(twin).update({key: of(value) for key, value in vars(module).items()})
    return twin


class Linear(Module):
    def __init__(self, init, width_in, width_out, bias=True):
        self.weight = init.normal((width_out, width_in))
        self.bias = init.constant((width_out,), 0) if bias else None

    def forward(self, x):
        return fused.linear(x, self.weight, self.bias)          # [T, in] -> [T, out]

    def rows(self, x, lo, hi):
        """The outputs lo:hi alone."""
        weight = part(self.weight, lo=lo, hi=hi)
        bias = None if self.bias is None else part(self.bias, lo=lo, hi=hi)
        return fused.linear(x, weight, bias)                    # [T, in] -> [T, hi - lo]


class Norm(Module):
    def __init__(self, init, width, eps, shift=True):
        self.weight = init.constant((width,), 1)
        self.bias = init.constant((width,), 0) if shift else None
        self.eps = eps

    def forward(self, x, residual=None, bias=None, p=0.0):
        """LayerNorm of residual + dropout(x + bias)."""
        key = dropout_key(p)
        return fused.norm(x, self.weight, self.bias, residual, bias, eps=self.eps, p=p, key=key)


class NoNorm(Module):
    """What stands in a norm's place and called like it, but only scales and shifts each column."""

    def __init__(self, init, width):
        self.weight = init.constant((width,), 1)
        self.bias = init.constant((width,), 0)

    def forward(self, x, residual=None, bias=None, p=0.0):
        """weight * (residual + dropout(x + bias)) + bias of our own"""
        key = dropout_key(p)
        if key is not None:
            x = fused.dropout(x if bias is None else x + bias, p=p, key=key)
            bias = None
        return fused.affine(x, self.weight, self.bias, residual, bias)


def dropout_key(p):
    """The next place in the stream of random numbers, if there is one and something to drop."""
    return philox.next_key() if p else None


def dropout(x, p):
    key = dropout_key(p)
    return x if key is None else fused.dropout(x, p=p, key=key)
