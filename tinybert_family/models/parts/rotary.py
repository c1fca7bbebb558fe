"""ModernBERT's layer: queries and keys turned by their place (RoPE: Su and others, 2021), a gate
for an activation, norms before instead of after.

Two numbers of a head are a point in the plane, and the place of a token says how far the point is
turned. A product of two points depends on the angle between them alone, so a score knows how far
apart two tokens stand, not where.
"""
from ...engine import fused, ops
from ...engine.backend import module_of
from ...engine.nn import Linear, Module, Norm, dropout
from .. import bert


def turns(c, b, dtype):
    """{kind of layer: (cos, sin)} of the angles that turn each token's queries and keys, [T, D/2].

    The first point of a head turns fastest, a round in 6 tokens; the last slowest.
    """
    xp = module_of(b.positions)
    place = b.positions[:, None]                                        # [T, 1]
    found = {}
    for kind, theta in dict(g=c.global_theta, l=c.local_theta).items():
        power = xp.arange(0, c.size, 2) / c.size                        # [D/2]
        angle = place / theta ** power                                  # [T, D/2], in float64
        cos, sin = xp.cos(angle), xp.sin(angle)
        found[kind] = cos.astype(dtype), sin.astype(dtype)
    return found


def norm_of(c, init):
    return Norm(init, c.width, c.eps, shift=False)


def last_matrix(c, init, width_in):
    """Of attention or MLP. 2L of them write into one sum, and at the start (Megatron's) each as
    much less that the sum is no larger for it."""
    linear = Linear(init, width_in, c.width, bias=False)
    if init.rng:
        linear.weight.data *= (2 * c.layers) ** -0.5
    return linear


class Attention(bert.Attention):
    def __init__(self, c, init, number):
        self.config = c
        self.kind = c.kinds[number]
        # What comes to the first layer has just been through the embeddings' norm.
        self.norm = norm_of(c, init) if number else None
        self.qkv = Linear(init, c.width, 3 * c.width, bias=False)
        self.out = last_matrix(c, init, c.width)

    def ask(self, x, b, rows=None):
        c = self.config
        known = b.more.get("turns") or turns(c, b, x.dtype)
        cos, sin = known[self.kind]
        if self.norm is not None:
            x = self.norm(x)
        (qkv, *q), how = super().ask(x, b, rows)
        # The values, H columns at the end, stay as they are.
        columns = qkv.shape[1] - c.width
        tensors = [fused.rope(qkv, cos=cos, sin=sin, heads=c.heads, columns=columns)]
        if q:
            cos, sin = cos[rows], sin[rows]
            tensors.append(fused.rope(*q, cos=cos, sin=sin, heads=c.heads))
        if self.kind == "l":
            how["reach"] = c.window // 2
        return tensors, how

    def forward(self, x, b, rows=None):
        y = self.out(self.mix(x, b, rows))                              # [R, H]
        y = dropout(y, self.config.dropout)
        asking = x if rows is None else ops.take(x, index=rows)
        return asking + y


class MLP(Module):
    def __init__(self, c, init):
        self.config = c
        self.norm = norm_of(c, init)
        self.up = Linear(init, c.width, 2 * c.hidden, bias=False)
        self.down = last_matrix(c, init, c.hidden)

    def forward(self, x):
        c = self.config
        h = self.up(self.norm(x))                                       # [T, H] -> [T, 2F]
        h = fused.geglu(h, **bert.ACTIVATIONS[c.activation])            # [T, 2F] -> [T, F]
        h = dropout(h, c.mlp_dropout)
        return x + self.down(h)                                         # [T, F] -> [T, H]


class Layer(bert.Layer):
    def __init__(self, c, init, number):
        self.attention = Attention(c, init, number)
        self.mlp = MLP(c, init)
