"""SpanBERT (Joshi, Chen, Liu, Weld, Zettlemoyer, Levy, 2019) hides whole stretches of text and asks
the two tokens just outside a stretch for every word of it. So what a stretch says is gathered at
its borders, where a task that is about stretches (answers, mentions) can find it.

Unlike BERT: a second head, of the span boundary objective (SBO); one passage per sequence, so no
sentence task and no pooler; words with their capitals. The encoder is BERT's, and transformers
takes it for one; the new head lies in a file of its own.
"""
from dataclasses import dataclass

import numpy as np

from ..engine import fused, ops
from ..engine.nn import Linear, Norm
from ..error import Error
from . import bert
from .parts import heads


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are SpanBERT base, and the recipe of both sizes."""
    vocab: int = 28996
    span_places: int = 15           # of a longer span so many words are asked of its borders
    place_width: int = 200          # of the embedding of a word's place in its span
    seq: int = 512
    predictions: int = 77
    short: float = 0.0
    tokens: int = 8192
    accumulate: int = 16            # 256 sequences of 512 tokens
    steps: int = 2_400_000
    adam_eps: float = 1e-8

    LIMITS = dict(bert.Config.LIMITS, span_places=(1, 10**4), place_width=(1, 10**5))


def asked_of_borders(first, last, most):
    """What the SBO head is given for spans of the tokens first..last [N], both included.

    Returns the row of each token that is asked for, of its left and of its right border, and its
    place in the span, [K] each; of a span no more than `most` tokens. Rows count the tokens of all
    sequences, and a border must stand in the span's own sequence: [CLS] and [SEP] may be one.
    """
    lengths = np.minimum(last - first + 1, most)                        # [N]
    span = np.repeat(np.arange(len(first)), lengths)                    # [K]
    begins = np.cumsum(lengths) - lengths
    place = np.arange(len(span)) - begins[span]
    return first[span] + place, first[span] - 1, last[span] + 1, place


class Borders(heads.Head):
    """From the states of a span's two borders, and a place in it, to a score for every word:

        h = LayerNorm(GELU(W1 [left; right; place]))        y = LayerNorm(GELU(W2 h))

    and y is compared with the word table. left and right are rows of x [T, H], [K] each.
    """

    def __init__(self, c, init, model):
        self.config = c
        self.word = model.embeddings.word                   # shared, so counted once
        self.place = init.normal((c.span_places, c.place_width))
        self.one = Linear(init, 2 * c.width + c.place_width, c.width)
        self.one_norm = Norm(init, c.width, c.eps)
        self.two = Linear(init, c.width, c.width)
        self.two_norm = Norm(init, c.width, c.eps)
        self.bias = init.constant((c.vocab,), 0)

    def features(self, x, left, right, place):
        parts = ops.take(x, index=left), ops.take(x, index=right), ops.take(self.place, index=place)
        h = ops.concat(*parts, axis=1)                                  # [K, 2H + P]
        h = fused.linear(h, self.one.weight)
        h = self.one_norm(bert.activate(self.config, h, self.one.bias))
        y = fused.linear(h, self.two.weight)
        return self.two_norm(bert.activate(self.config, y, self.two.bias))      # [K, H]

    def forward(self, x, left, right, place):
        y = self.features(x, left, right, place)
        return fused.linear(y, self.word, self.bias)                    # [K, H] -> [K, V]

    def loss(self, x, left, right, place, labels, weights):
        y = self.features(x, left, right, place)
        return fused.vocabulary_loss(y, self.word, self.bias, labels=labels, weights=weights)

    def select(self, x, inputs):
        raise Error("sbo: this head has no answer for a text alone, it wants spans; call "
                    "model.sbo(states, left, right, place)")


class Model(bert.Model):
    HEADS = dict(bert.Model.HEADS, sbo=Borders)
    PRETRAINING = "mlm", "sbo"
    NAMES = {
        **bert.Model.NAMES,
        "sbo.place": "cls.pair_target_predictions.position_embeddings.weight",
        "sbo.one.*": "cls.pair_target_predictions.mlp_layer_norm.linear1.*",
        "sbo.one_norm.*": "cls.pair_target_predictions.mlp_layer_norm.layer_norm1.*",
        "sbo.two.*": "cls.pair_target_predictions.mlp_layer_norm.linear2.*",
        "sbo.two_norm.*": "cls.pair_target_predictions.mlp_layer_norm.layer_norm2.*",
        "sbo.bias": "cls.pair_target_predictions.bias",
    }


# ---- the published file's config.json: BERT's, with our signature beside it

HF_TYPES = bert.HF_TYPES
HF_CONFIG = dict(bert.HF_CONFIG, span_places="max_pair_targets",
                 place_width="pair_positional_embedding_size")
HF_DEFAULTS = dict(vocab=30522)     # BertConfig()'s
HF_CLASSES, HF_REFUSED, HF_IGNORED = bert.HF_CLASSES, bert.HF_REFUSED, bert.HF_IGNORED
HF_TIED = {**bert.HF_TIED, "cls.pair_target_predictions.decoder.weight":
           "bert.embeddings.word_embeddings.weight"}
# The one published file with heads says `decoder.` before every name, and gamma and beta.
HF_SPELLINGS = {r"^decoder\.": "", r"(layer_norm\d)\.gamma$": r"\1.weight",
                r"(layer_norm\d)\.beta$": r"\1.bias"}


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128, span_places=5,
                 place_width=16, steps=2500, warmup=200, lr=5e-3,
                 **bert.SMALL),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096),
)
