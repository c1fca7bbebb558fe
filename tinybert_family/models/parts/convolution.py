"""The convolution of the large models of DeBERTa v2: beside the first layer, it reads each token's
neighbours as such, which attention has to learn to find.
"""
import numpy as np

from ...engine import fused, ops
from ...engine.nn import Module, Norm, dropout

CURVES = dict(gelu=fused.gelu, tanh=ops.tanh)


class Convolution(Module):
    """LayerNorm(y + f(W [x_t-1, x_t, x_t+1] + bias)), where y is what the first layer makes of x"""

    def __init__(self, c, init):
        self.config = c
        published = c.width, c.width, c.conv
        weight = init.normal((c.width, c.width * c.conv))
        weight.data = weight.data.reshape(published)
        self.weight = weight
        self.bias = init.constant((c.width,), 0)
        self.norm = Norm(init, c.width, c.eps)

    def forward(self, x, y, b, rows=None):
        c = self.config
        half = c.conv // 2
        sides = [neighbours(x, b.cuts, by) for by in range(-half, half + 1)]
        x = ops.concat(*sides, axis=1)                                  # [T, kH]
        weight = ops.transpose(self.weight, axes=(0, 2, 1))             # [H, k, H]
        weight = weight.reshape(c.width, -1)
        z = fused.linear(x, weight, self.bias)                          # [T, H]
        curve = CURVES[c.conv_activation]
        z = curve(dropout(z, c.dropout))
        if rows is not None:
            z = ops.take(z, index=rows)
        return self.norm(z, residual=y)


def neighbours(x, cuts, by):
    """In row t the row t + by of the same sequence; zeros beyond its ends."""
    if not by:
        return x
    lengths = np.diff(cuts)
    lo = np.repeat(cuts[:-1], lengths)
    hi = np.repeat(cuts[1:], lengths)
    t = np.arange(len(x))
    inside = (lo <= t + by) & (t + by < hi)
    t = t[inside]
    there = ops.take(x, index=t + by)
    return ops.put(there, index=t, rows=len(x))
