"""DeBERTa v2 and v3 (He, Gao, Chen, 2021): the same network, its distances in buckets, and in v3
trained as ELECTRA is.

Unlike BERT: scores depend on distances, as in deberta.py, which is to be read first. Here near
distances have a row of the table each, far ones share one by their logarithm; keys and queries of
distances are made by the layer's own matrices for words; the table is normalised. In the large
models of v2 a convolution beside the first layer reads each token's neighbours. And v3's head says
of every token whether a generator put it there.
"""
from dataclasses import dataclass

import numpy as np

from ..engine import fused, ops
from ..engine.nn import Module, Norm, dropout
from ..error import Error
from . import bert, deberta
from .parts import disentangled, replaced
from .parts.names import tasks_of


@dataclass(frozen=True)
class Config(deberta.Config):
    """The defaults are DeBERTa-v3-base and its recipe."""
    vocab: int = 128100
    terms: str = "p2c|c2p"
    buckets: int = 256              # for distances each way; below 1: a row for each of them
    norm_relative: bool = True      # normalise the table of distances
    share: bool = True              # keys and queries of distances by the matrices for words
    conv: int = 0                   # neighbours that the convolution reads, an odd number; 0: none
    conv_activation: str = "gelu"
    accumulate: int = 512           # 8192 sequences of 512 tokens in a step
    steps: int = 500_000
    lr: float = 5e-4
    beta2: float = 0.98

    LIMITS = dict(deberta.Config.LIMITS, buckets=(-1, 10**6), conv=(0, 999))

    def __post_init__(self):
        super().__post_init__()
        if self.conv and self.conv % 2 == 0:
            raise Error(f"conv: {self.conv}, but it must be odd: the token itself, and as many "
                        "neighbours to the left as to the right")
        if self.conv_activation not in CURVES:
            raise Error(f"conv_activation: {self.conv_activation!r}, but this model knows "
                        f"{', '.join(CURVES)}")
        if self.norm_relative and not self.relative:
            raise Error("norm_relative: there are no distances where relative is false")

    # The distance that the last bucket is made for, and the rows of the table to either side.
    furthest = deberta.Config.span
    span = property(lambda self: self.buckets if self.buckets > 0 else self.furthest)


CURVES = dict(gelu=fused.gelu, tanh=ops.tanh)


class Convolution(Module):
    """LayerNorm(y + f(W [x_t-1, x_t, x_t+1] + bias)), where y is what the first layer makes of x"""

    def __init__(self, c, init):
        self.config = c
        self.weight = init.normal((c.width, c.width * c.conv))
        self.weight.data = self.weight.data.reshape(c.width, c.width, c.conv)   # as published
        self.bias = init.constant((c.width,), 0)
        self.norm = Norm(init, c.width, c.eps)

    def forward(self, x, y, b, rows=None):
        c = self.config
        side = range(-(c.conv // 2), c.conv // 2 + 1)
        x = ops.concat(*[neighbours(x, b.cuts, by) for by in side], axis=1)     # [T, kH]
        weight = ops.transpose(self.weight, axes=(0, 2, 1))                     # [H, k, H]
        z = fused.linear(x, weight.reshape(c.width, -1), self.bias)             # [T, H]
        z = CURVES[c.conv_activation](dropout(z, c.dropout))
        return self.norm(z if rows is None else ops.take(z, index=rows), residual=y)


def neighbours(x, cuts, by):
    """In row t the row t + by of the same sequence; zeros beyond its ends."""
    if not by:
        return x
    lengths, t = np.diff(cuts), np.arange(len(x))
    lo, hi = np.repeat(cuts[:-1], lengths), np.repeat(cuts[1:], lengths)
    t = t[(lo <= t + by) & (t + by < hi)]
    return ops.put(ops.take(x, index=t + by), index=t, rows=len(x))


class Layer(deberta.Layer):
    Attention = disentangled.SharedAttention
    conv = None                                     # the first layer may have one

    def forward(self, x, b, rows=None):
        y = super().forward(x, b, rows)
        return y if self.conv is None else self.conv(x, y, b, rows)


class Replaced(replaced.Replaced):
    """It reads every token's state and, added to it, that of its sequence's first."""

    def __init__(self, c, init, model):
        super().__init__(c, init, model)
        self.norm = Norm(init, c.width, c.eps)

    def select(self, x, inputs):
        first = np.repeat(inputs.cuts[:-1], np.diff(inputs.cuts))
        return x + ops.take(x, index=first)

    def forward(self, x):
        return super().forward(self.norm(x))


class Model(deberta.Model):
    Layer, Relative = Layer, disentangled.Buckets
    HEADS = dict(deberta.Model.HEADS, rtd=Replaced)
    PRETRAINING = "rtd",
    NAMES = {
        **deberta.Model.NAMES,
        "layers.#.attention.qkv.*": ["deberta.encoder.layer.#.attention.self.query_proj.*",
                                     "deberta.encoder.layer.#.attention.self.key_proj.*",
                                     "deberta.encoder.layer.#.attention.self.value_proj.*"],
        "layers.#.attention.key_at.*": "deberta.encoder.layer.#.attention.self.pos_key_proj.*",
        "layers.#.attention.query_at.*": "deberta.encoder.layer.#.attention.self.pos_query_proj.*",
        "relative.norm.*": "deberta.encoder.LayerNorm.*",
        "layers.0.conv.norm.*": "deberta.encoder.conv.LayerNorm.*",
        "layers.0.conv.*": "deberta.encoder.conv.conv.*",
        "rtd.norm.*": "mask_predictions.LayerNorm.*",
        "rtd.dense.*": "mask_predictions.dense.*",
        "rtd.classifier.*": "mask_predictions.classifier.*",
    }

    def make_layers(self, c, init):
        layers = super().make_layers(c, init)
        if c.conv:
            layers[0].conv = Convolution(c, init)
        return layers


# ---- the published file's config.json

HF_TYPES = "deberta-v2",
HF_CONFIG = dict(deberta.HF_CONFIG, buckets="position_buckets", norm_relative="norm_rel_ebd",
                 share="share_att_key", conv="conv_kernel_size", conv_activation="conv_act")
HF_DEFAULTS = dict(deberta.HF_DEFAULTS, width=1536, layers=24, heads=24, hidden=6144, buckets=-1,
                   norm_relative=False, share=False, conv_activation="tanh")
HF_CLASSES = {"DebertaV2Model": (), "DebertaV2ForMaskedLM": ("mlm",), **tasks_of("DebertaV2")}
HF_REFUSED = dict(conv_groups=1, pooler_hidden_act="gelu", tie_word_embeddings=True)
HF_TIED = deberta.HF_TIED
# _weight: the part of a table that the discriminator alone learnt. It is in `weight` already.
HF_IGNORED = r"deberta\.embeddings\.(position_ids|(word|position)_embeddings\._weight)"


def from_published(settings, where):
    flat = deberta.from_published(dict(hidden_size=1536, num_attention_heads=24) | settings, where)
    norm = flat.pop("norm_rel_ebd", "none")
    if norm not in ("none", "layer_norm"):
        raise Error(f"{where}: norm_rel_ebd is {norm!r}; only none and layer_norm are supported")
    return flat | dict(norm_rel_ebd=norm == "layer_norm")


def to_published(config, values):
    norm = "layer_norm" if config.norm_relative else "none"
    return deberta.to_published(config, values) | dict(norm_rel_ebd=norm)


# ---- sizes: those without a remark are of v3

SMALL = dict(bert.SMALL, near=False)
V2 = dict(width=1536, heads=24, hidden=6144, conv=3, accumulate=128, steps=1_000_000, lr=1.5e-4,
          beta2=0.999)
SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128, buckets=32,
                 steps=2500, warmup=200, lr=5e-3, **SMALL),
    xsmall=Config(layers=12, heads=6, width=384, hidden=1536),
    small=Config(layers=6),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096, lr=3e-4),
    mdeberta=Config(vocab=251000),                      # a hundred languages
    xlarge=Config(layers=24, **V2),                     # v2
    xxlarge=Config(layers=48, **V2),                    # v2
)
