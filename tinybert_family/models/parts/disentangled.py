"""What DeBERTa's layers are made of: attention that knows distances, in the first version's form
and in the second's, and the decoder that adds positions where words are guessed.

A score is a sum of up to three products, of which c2p is the second and p2c the third,

    score_ij = (q_i . k_j  +  q_i . K[i-j]  +  Q[i-j] . k_j) / sqrt(3 D)

and each Attention says where q, k, K and Q come from; the engine's attention op does the rest.
"""
from functools import cached_property

import numpy as np

from ...engine import autograd, fused, ops
from ...engine.nn import Linear, Module, Norm, dropout, dropout_key
from ...error import Error
from .. import bert
from . import heads


# ---- distances

class Relative(Module):
    """A row for every distance from one token to another; the far ones share the last."""

    def __init__(self, c, init):
        self.config = c
        self.table = init.normal((2 * c.span, c.width))

    def bucket(self, distance):
        return distance

    def forward(self, b):
        """The rows that are needed [O, H]; and which of them is that of each distance from 1 - P to
        P - 1 [2P - 1], where P is the length of the longest sequence."""
        longest = int(np.diff(b.cuts).max())
        distance = np.arange(1 - longest, longest)
        middle = self.config.span
        rows = middle + self.bucket(distance)
        rows = np.clip(rows, 0, 2 * middle - 1)                         # they ascend
        lo, hi = int(rows[0]), int(rows[-1])
        return ops.part(self.table, lo=lo, hi=hi + 1), rows - lo


def bucket(distance, buckets, furthest):
    """Half of the buckets hold one distance each; the others hold ever more, their edges evenly
    spaced logarithms up to that of furthest - 1.

    In float32, as transformers has it: which side of an edge a distance falls on, where one lies
    exactly there, is a matter of rounding. (Not so with the published 256 and 512.)
    """
    half = buckets // 2
    if half < 1 or abs(distance).max(initial=0) <= half:
        return distance
    if furthest - 1 <= half:
        raise Error(f"input_ids: {abs(distance).max() + 1} tokens, but with position_buckets "
                    f"{buckets} and max_relative_positions {furthest} distances above {half} have "
                    "no bucket; give the model shorter sequences")
    far = np.maximum(abs(distance), half).astype(np.float32)
    last = np.log(np.float32((furthest - 1) / half))
    share = np.log(far / np.float32(half)) / last                       # 0 to 1
    number = half + np.ceil(share * np.float32(half - 1))
    number = np.sign(distance) * number.astype(int)
    return np.where(abs(distance) > half, number, distance)


class Buckets(Relative):
    """The second version's: far distances share rows, and the table is normalised."""

    def __init__(self, c, init):
        super().__init__(c, init)
        self.norm = Norm(init, c.width, c.eps) if c.norm_relative else None

    def bucket(self, distance):
        c = self.config
        return bucket(distance, c.buckets, c.furthest)

    def forward(self, b):
        rows, which = super().forward(b)
        return rows if self.norm is None else self.norm(rows), which


# ---- attention

class Interleaved(Module):
    """A Linear from x to [q|k|v], published head by head: [q|k|v] of the first head, then those of
    the second. Keys have no bias: it would add the same to all scores of a query.

    The attention op wants all q before all k before all v, so something is rearranged each time.
    """

    def __init__(self, c, init):
        self.apart = c.heads, 3, c.width // c.heads                     # A, 3, D
        self.in_proj = Linear(init, c.width, 3 * c.width, bias=False)   # [A*3*D, H]
        self.q_bias = init.constant((c.width,), 0)
        self.v_bias = init.constant((c.width,), 0)

    def forward(self, x):
        each = self.apart[0], 1, self.apart[2]
        q, v = self.q_bias.reshape(*each), self.v_bias.reshape(*each)
        none = 0 * q.data
        bias = ops.concat(q, none, v, axis=1).reshape(-1)               # [A, 3, D]
        y = fused.linear(x, self.in_proj.weight, bias)                  # [T, A*3*D]
        y = y.reshape(len(x), *self.apart)
        y = ops.transpose(y, axes=(0, 2, 1, 3))
        return y.reshape(len(x), 3 * x.shape[1])                        # [T, 3*A*D]

    def rows(self, x, lo, hi):
        """The outputs lo:hi alone, by number as forward has them."""
        weight = self.in_proj.weight.reshape(*self.apart, -1)           # [A, 3, D, H]
        weight = ops.transpose(weight, axes=(1, 0, 2, 3))
        weight = weight.reshape(-1, x.shape[1])                         # [3*A*D, H]
        none = 0 * self.q_bias.data
        bias = ops.concat(self.q_bias, none, self.v_bias)
        weight = ops.part(weight, lo=lo, hi=hi)
        return fused.linear(x, weight, ops.part(bias, lo=lo, hi=hi))


class Attention(bert.Attention):
    """The first version's."""
    QKV = Interleaved

    def __init__(self, c, init):
        self.config = c
        self.relative = None                        # the model's, see make_layers
        self.qkv = self.QKV(c, init)
        self.out = Linear(init, c.width, c.width)
        self.norm = Norm(init, c.width, c.eps)
        terms = c.products if c.relative else []
        # what makes keys and queries of distances
        self.key_at = self.projection(c, init, bias=False) if "c2p" in terms else None
        self.query_at = self.projection(c, init, bias=True) if "p2c" in terms else None

    def projection(self, c, init, bias):
        return Linear(init, c.width, c.width, bias)

    def project(self, table):
        """Keys and queries of distances [O, H]; None where the model does without."""
        both = self.key_at, self.query_at
        return [f and f(table) for f in both]

    def distances(self, b):
        """Tables and settings for the attention op."""
        c = self.config
        size = c.width // c.heads
        terms = 1 + len(c.products)
        how = dict(scale=(size * terms) ** -0.5)
        if self.relative is None or not len(b.ids):
            return [None, None], how
        table, how["buckets"] = self.relative(b)
        table = dropout(table, c.dropout)
        return self.project(table), how

    def ask(self, x, b, rows=None):
        (qkv, *q), how = super().ask(x, b, rows)
        q = q[0] if q else None
        tables, more = self.distances(b)
        return [qkv, q, *tables], how | more

    def again(self, kv, asking, b, rows):
        """As forward, but those that ask [R, H] are not those that answered to kv [T, 2H]."""
        c = self.config
        q = self.qkv.rows(asking, 0, c.width)
        tables, how = self.distances(b)
        how |= dict(cuts=b.cuts, heads=c.heads, rows=rows)
        p = c.attention_dropout
        y = fused.attention(kv, q, *tables, **how, p=p, key=dropout_key(p))     # [R, H]
        y = fused.linear(y, self.out.weight)
        p = c.dropout
        return self.norm(y, residual=asking, bias=self.out.bias, p=p)


class SharedAttention(Attention):
    """The second version's: the matrices for words may be those for distances too."""

    @staticmethod
    def QKV(c, init):
        return Linear(init, c.width, 3 * c.width)

    def projection(self, c, init, bias):
        return None if c.share else Linear(init, c.width, c.width)

    def project(self, table):
        c = self.config
        if not c.share:
            return super().project(table)
        keys = queries = None
        if "c2p" in c.products:
            keys = self.qkv.rows(table, c.width, 2 * c.width)
        if "p2c" in c.products:
            queries = self.qkv.rows(table, 0, c.width)
        return [keys, queries]


# ---- heads

class Pooler(heads.Pooler):
    """Not pre-trained: new for every task."""

    def __init__(self, c, init, model):
        super().__init__(c, init, model)
        self.config = c

    def forward(self, first):
        first = dropout(first, self.config.pooler_dropout)
        return fused.gelu(self.dense(first))


class Enhanced(Module):
    """The enhanced mask decoder (EMD): what the masked-word head reads in pre-training.

    The hidden states that go into the last layer, with absolute positions added, ask that layer,
    and what they get asks it once more. Keys and values are those without positions. (So the
    released code; in the paper positions alone ask.) As just the hidden words ask, both passes cost
    less than the one that they replace.
    """

    def __init__(self, c, init, model):
        self.position = None                # nothing to decode: positions are in the words
        if c.position_biased:
            return
        if c.layers < 2:
            raise Error(f"layers: {c.layers}, but an enhanced mask decoder needs at least 2")
        self.position = init.normal((c.positions, c.width))

    def forward(self, layer, x, b, rows=None):
        longest = b.shape[1] if b.shape else np.diff(b.cuts).max()
        places = len(self.position)
        if longest > places:
            raise Error(f"input_ids: {longest} tokens, but the mask decoder has {places} positions")
        kv = layer.attention.qkv.rows(x, x.shape[1], None)              # [T, H] -> [T, 2H]
        here, asking = b.positions, x
        if rows is not None:
            here, asking = here[rows], ops.take(x, index=rows)
        asking = asking + fused.embed(self.position, ids=[here])        # [R, H]
        for _ in range(2):
            asking = layer.attention.again(kv, asking, b, rows)
            asking = layer.mlp(asking)
        return asking


class Output(heads.Output):
    """Of a model with an enhanced mask decoder. The last layer's ordinary states are computed when
    they are looked at; to guess words they are not needed."""

    def __init__(self, model, below, inputs, choices):
        super().__init__(model, None, inputs, choices)
        self.below = below                                  # [T, H], what goes into the last layer
        del self.x

    @cached_property
    def x(self):
        with autograd.recorded(self.recording):
            return self.model.layers[-1](self.below, self.inputs)

    def _of(self, name):
        model, b = self.model, self.inputs
        if name == "mlm" and model.mlm and name not in self.known:
            with autograd.recorded(self.recording):
                x = model.emd(model.layers[-1], self.below, b)
                y = model.mlm(x)
                self.known[name] = b.unpack(y)
        return super()._of(name)
