"""DeBERTa v2 and v3 (He, Gao, Chen, 2021): the same network, its distances in buckets, and in v3
trained as ELECTRA is.

Unlike BERT: scores depend on distances, as in deberta.py, which is to be read first. Here near
distances have a row of the table each, far ones share one by their logarithm; keys and queries of
distances are made by the layer's own matrices for words; the table is normalised. In the large
models of v2 a convolution beside the first layer reads each token's neighbours. And v3's head says
of every token whether a generator put it there.

Two networks that share a table of words pull it apart: the generator wants like words to be alike,
the discriminator to tell them from each other. So here (gradient-disentangled sharing, GDES)

    E_D = sg(E_G) + E_delta

the discriminator reads the generator's table, sg: without moving it, and adds what it learns.
"""
import copy
from dataclasses import dataclass, replace

import numpy as np

from ..engine import fused, ops
from ..engine.autograd import Tensor
from ..engine.nn import Norm, dropout
from ..error import Error
from ..text.unigram import Unigram
from . import bert, deberta
from .parts import disentangled, replaced
from .parts.convolution import CURVES, Convolution
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
    replaced: bool = True           # v3: detect replaced tokens; v2 guesses hidden ones, as v1
    sharing: str = "gdes"           # of the word table by v3's two networks, see SHARING
    rtd_weight: float = 50.0        # of the discriminator's loss
    decoupled: bool = False         # clip each network's gradient for itself, as released
    generator_depth: float = 0.5    # the generator is as wide, and half as deep
    gram: int = 1                   # words in a row that are hidden together, at most
    accumulate: int = 512           # 8192 sequences of 512 tokens in a step
    steps: int = 500_000
    lr: float = 5e-4
    beta2: float = 0.98

    LIMITS = dict(deberta.Config.LIMITS, buckets=(-1, 10**6), conv=(0, 999),
                  rtd_weight=(0, 10**6), generator_depth=(0.001, 10))

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
        if self.sharing not in SHARING:
            raise Error(f"sharing: {self.sharing!r}, but these are known: {', '.join(SHARING)}")

    @staticmethod
    def vocabulary(texts, size, progress=None):
        """Pieces of whole sentences, with BERT's names of special tokens; small and capital letters
        differ."""
        return Unigram.train(texts, size, lower=False, special=SPECIAL, progress=progress)

    # The distance that the last bucket is made for, and the rows of the table to either side.
    furthest = deberta.Config.span
    span = property(lambda self: self.buckets if self.buckets > 0 else self.furthest)


SPECIAL = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
# Gradient-disentangled; one table that both networks pull at; or a table each, nothing shared.
SHARING = "gdes", "es", "nes"


class Embeddings(deberta.Embeddings):
    """Under GDES the discriminator's own table holds E_delta; E_G is the generator's."""
    given = None                    # (E_G,): a tuple, as it is no parameter of this network

    def forward(self, b):
        if self.given is None:
            return super().forward(b)
        theirs, = self.given
        x = fused.embed(self.word, ids=[b.ids]) + ops.take(theirs.detach(), index=b.ids)
        return dropout(self.norm(x), self.config.dropout)               # [T, H]


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
    Embeddings, Layer, Relative = Embeddings, Layer, disentangled.Buckets
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


# ---- two networks in one training

def generator_of(c):
    """The Config of the generator that a discriminator is trained beside. (Its mask decoder needs
    two layers.)"""
    return replace(c, layers=max(2, round(c.layers * c.generator_depth)))


class Pair(replaced.Pair):
    """The generator guesses hidden words through the mask decoder, which the discriminator has no
    use for. But for the words, they share nothing."""

    def __init__(self, c, init):
        discriminator = Model(c, init, ("rtd",))
        generator = Model(generator_of(c), init, ("mlm", "emd"))
        super().__init__(c, discriminator, generator)
        own, theirs = discriminator.embeddings, generator.embeddings.word
        if c.sharing == "es":
            own.word = theirs
        if c.sharing == "gdes":
            if own.position or own.type:
                raise Error("sharing: gdes is for words alone; use --sharing es, or --types 0 and "
                            "--position-biased false")
            own.word = init.constant(theirs.shape, 0)
            own.given = theirs,

    def published(self):
        """A discriminator that stands alone has E_G + E_delta in one table."""
        both = super().published()
        alone = both[""]
        if alone.embeddings.given:
            theirs, = alone.embeddings.given
            alone.embeddings = copy.copy(alone.embeddings)
            alone.embeddings.given = None
            alone.embeddings.word = Tensor(theirs.data + alone.embeddings.word.data)
        return both

    def settle(self):
        """The other way round: E_delta is what the table has beyond E_G."""
        own = self.discriminator.embeddings
        if own.given:
            theirs, = own.given
            own.word.data -= theirs.data


def Learner(c, init):
    return Pair(c, init) if c.replaced else Model(c, init, ("mlm", "emd"))


class Objective(replaced.Detection, deberta.Objective):
    """v3's. Sequences, and which of their tokens are to be guessed, as in deberta.py; all of these
    are hidden."""

    def __new__(cls, c, *given, **named):
        """Of v2 deberta.py's."""
        if c.replaced:
            return super().__new__(cls)
        return deberta.Objective(c, *given, **named)

    def noise(self, s, copy):
        hidden = self.chosen(s, copy)
        noisy = s.ids.copy()
        noisy[hidden] = self.tokenizer.mask
        return noisy, hidden

    def states(self, generator, b):
        return generator.decode(self.inputs(b), b["asked"])


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

SMALL = dict(bert.SMALL, near=False, tokens=1024, lr=5e-4)
V2 = dict(width=1536, heads=24, hidden=6144, conv=3, replaced=False, gram=3, accumulate=128,
          steps=1_000_000, lr=1.5e-4, beta2=0.999)
SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128, buckets=32,
                 steps=400, warmup=40, **SMALL),
    tiny=Config(vocab=8192, layers=4, heads=2, width=128, hidden=512, buckets=32, steps=4000,
                warmup=200, **SMALL),
    xsmall=Config(layers=12, heads=6, width=384, hidden=1536),
    small=Config(layers=6),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096, lr=3e-4),
    mdeberta=Config(vocab=251000),                      # a hundred languages
    xlarge=Config(layers=24, **V2),                     # v2
    xxlarge=Config(layers=48, **V2),                    # v2
)
