"""MobileBERT's layer: wide outside, narrow inside, and cheap in every part.

    r = narrow(x)     s = shared(x)                                         [T, 512] -> [T, 128]
    a = norm(out(attention(q(s), k(s), v(x))) + r), then four times a = norm(mlp(a) + a)
    y = norm(widen(a) + x)                                                  [T, 128] -> [T, 512]

Wide states carry what is known from layer to layer, and a layer's matrices are a sixteenth of what
they would be at that width. The teacher has the same parts, but is wider inside than outside.
"""
from dataclasses import replace

from ...engine import fused, ops
from ...engine.nn import Linear, Module, NoNorm, Norm
from .. import bert


def inside(c):
    """The Config as the parts between two bottlenecks see it."""
    if not c.bottleneck:
        return c
    return replace(c, width=c.inner, dropout=0.0)


# That of the embeddings' norm and the last MLP's: transformers leaves it to torch in these two.
EPS = 1e-5


def norm_of(c, init, width, eps=None):
    if c.norm == "no_norm":
        return NoNorm(init, width)
    return Norm(init, width, eps or c.eps)


def at(x, rows):
    return x if rows is None else ops.take(x, index=rows)


class Bottleneck(Module):
    """A change of width."""

    def __init__(self, c, init, width_in, width_out):
        self.dense = Linear(init, width_in, width_out)
        self.norm = norm_of(c, init, width_out)

    def forward(self, x, **more):
        y = fused.linear(x, self.dense.weight)
        return self.norm(y, bias=self.dense.bias, **more)


class Attention(bert.Attention):
    """Queries and keys come from s, values from x; or all from r; or (the teacher) all from x."""

    def __init__(self, c, init):
        self.config = inside(c)
        width, inner = c.width, self.config.width
        self.narrow = self.shared = None
        if c.bottleneck:
            self.narrow = Bottleneck(c, init, width, inner)
            self.shared = Bottleneck(c, init, width, inner) if c.shared else None
        self.from_r = c.bottleneck and c.bottleneck_attention       # then `shared` is idle
        values = inner if self.from_r else width
        asking = inner if self.shared else values
        self.qk = Linear(init, asking, 2 * inner)
        if c.near and init.rng:
            self.qk.weight.data[inner:] = self.qk.weight.data[:inner]
        self.value = Linear(init, values, inner)
        self.out = Linear(init, inner, inner)
        self.norm = norm_of(c, init, inner)

    def ask(self, x, b, rows=None):
        c = self.config
        how = dict(cuts=b.cuts, heads=c.heads, rows=rows)
        s = self.shared(x) if self.shared and not self.from_r else x
        v = self.value(x)
        if rows is None:
            return [ops.concat(self.qk(s), v, axis=1)], how         # [T, 3 inner]
        q = self.qk.rows(ops.take(s, index=rows), 0, c.width)       # [R, inner]
        k = self.qk.rows(s, c.width, None)
        return [ops.concat(k, v, axis=1), q], how

    def scores(self, x, b, fill=None):
        if self.from_r:
            x = self.narrow(x)
        tensors, how = self.ask(x, b)
        return fused.scores(*tensors, **how, fill=fill)

    def forward(self, x, b, rows=None):
        if self.from_r:
            x = self.narrow(x)
        y = fused.linear(self.mix(x, b, rows), self.out.weight)
        r = at(x, rows)
        if self.narrow and not self.from_r:
            r = self.narrow(r)
        return self.norm(y, residual=r, bias=self.out.bias, p=self.config.dropout)


class MLP(bert.MLP):
    def __init__(self, c, init, last):
        within = inside(c)
        super().__init__(within if last else replace(within, dropout=0.0), init)
        self.norm = norm_of(c, init, within.width, EPS if last else None)


class Layer(Module):
    def __init__(self, c, init):
        self.config = c
        self.attention = Attention(c, init)
        self.mlps = [MLP(c, init, last=False) for _ in range(c.mlps - 1)]
        self.mlp = MLP(c, init, last=True)
        self.widen = Bottleneck(c, init, c.inner, c.width) if c.bottleneck else None

    def forward(self, x, b, rows=None):
        y = self.attention(x, b, rows)                              # [T, H] -> [R, inner]
        for mlp in *self.mlps, self.mlp:
            y = mlp(y)
        if not self.widen:
            return y
        return self.widen(y, residual=at(x, rows), p=self.config.dropout)
