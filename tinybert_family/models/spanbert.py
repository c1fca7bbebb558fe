"""SpanBERT (Joshi, Chen, Liu, Weld, Zettlemoyer, Levy, 2019) hides whole stretches of text and asks
the two tokens just outside a stretch for every word of it. So what a stretch says is gathered at
its borders, where a task that is about stretches (answers, mentions) can find it.

Unlike BERT: a second head, of the span boundary objective (SBO); one passage per sequence, so no
sentence task and no pooler; masks are drawn anew each time a text is seen; words with their
capitals. The encoder is BERT's, and transformers
takes it for one; the new head lies in a file of its own.
"""
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..engine import fused, ops
from ..engine.nn import Linear, Norm
from ..error import Error
from ..text import corrupt, segments
from ..text.wordpiece import WordPiece
from . import bert, bert_wwm
from .parts import heads


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are SpanBERT base, and the recipe of both sizes."""
    vocab: int = 28996
    span_places: int = 15           # of a longer span so many words are asked of its borders
    place_width: int = 200          # of the embedding of a word's place in its span
    longest: int = 10               # words in a span; of n words it is as frequent as
    shrink: float = 0.2             # 0.8^(n-1): with one word more it is by a fifth rarer
    whole: bool = False             # the last span ends with a word; else with the budget
    seq: int = 512                  # from the first step to the last
    last_share: float = 0.0
    copies: int = 0                 # masks are dynamic
    tokens: int = 8192
    accumulate: int = 16            # 256 sequences of 512 tokens
    steps: int = 2_400_000
    adam_eps: float = 1e-8          # and decay 0.01, as in the authors' command; the paper says 0.1

    LIMITS = dict(bert.Config.LIMITS, span_places=(1, 10**4), place_width=(1, 10**5),
                  longest=(1, 1000), shrink=(0, 1))

    @staticmethod
    def vocabulary(texts, size, progress=None):
        return WordPiece.train(texts, size, lower=False, progress=progress)


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

    def at(self, left, right, place):
        return Between(self, (left, right, place))


class Between(NamedTuple):
    """The head and the places that it reads: it answers and has a loss like any other head."""
    head: Borders
    where: tuple

    def __call__(self, x):
        return self.head(x, *self.where)

    def loss(self, x, labels, weights):
        return self.head.loss(x, *self.where, labels, weights)


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


# ---- the objective

class Objective(bert_wwm.Objective):
    """Spans of words, hidden together, and asked for twice: of the tokens themselves, as always,
    and of the two tokens beside the span.

        [CLS] the old [MASK] [MASK] [MASK] lake [SEP]       old, lake, third word -> the

    A span at either end of its text has no word on one side, and is not asked of its borders.
    """
    TASKS = dict(mlm="mlm", sbo="sbo")
    WORDS = "mlm", "sbo"

    def plan(self, documents, copy):
        seed = self.seed, copy
        return segments.single_blocks(self.corpus, documents, self.config.seq, seed, self.tokenizer)

    def batch(self, plan, copy):
        s = segments.lay_out(self.corpus, plan)
        hidden, span = self.spans(s, copy)
        noisy = self.replaced(s, hidden, span, copy)
        # A span is a run of hidden tokens; these are ascending, so it ends where the next begins.
        begins = np.flatnonzero(np.diff(span, prepend=-1))
        ends = np.append(begins[1:], len(span)) - 1
        first, last = hidden[begins], hidden[ends]
        within = (s.places[first - 1] >= 0) & (s.places[last + 1] >= 0)
        tokens, left, right, place = asked_of_borders(first[within], last[within],
                                                      self.config.span_places)
        # Both borders are asked for one word; with each goes the word's place in its span.
        batch = self.arrays(s, noisy, mlm=(hidden, s.ids[hidden]), left=(left, place),
                            right=(right, place))
        return batch | dict(sbo_labels=s.ids[tokens])

    def spans(self, s, copy):
        """The hidden tokens, and the number of each one's span [K]; spans that touch are one."""
        c = self.config
        where, size, _, _ = self.draws(s, copy)
        text = np.bincount(s.sequence[s.places >= 0], minlength=len(s.keys))            # [S]
        budget = np.ceil(c.masked * text).astype(np.int64)
        return corrupt.spans(where, size, self.words(s), s.sequence, budget, c.shrink, c.longest,
                             c.whole)

    def replaced(self, s, hidden, span, copy):
        """All tokens of a span become [MASK], or all random words of the corpus, or all stay."""
        _, _, kind, other = self.draws(s, copy)
        first = hidden[np.searchsorted(span, span)]             # of each hidden token's span [K]
        shares = np.zeros_like(kind)
        shares[hidden] = kind[first]
        random = s.ids.copy()
        random[hidden] = self.corpus.ids[self.anywhere(other[hidden])]
        return corrupt.replace(s.ids, hidden, shares, random, self.tokenizer.mask)

    def anywhere(self, draws):
        """Places in the text that is trained on, all alike: [K] draws, [K] places."""
        begins, ends = self.text
        t = corrupt.below(draws, ends[-1])
        which = np.searchsorted(ends, t, side="right")
        return begins[which] + t

    @cached_property
    def text(self):
        """Documents in a row: where token 0 of the row would be for each, and where it ends."""
        cuts = self.corpus.sentences[self.corpus.documents]
        first, last = cuts[self.corpus.train], cuts[self.corpus.train + 1]
        ends = np.cumsum(last - first)
        return last - ends, ends

    def answers(self, model, b):
        x = model.encode(self.inputs(b), b["asked"])                                    # [R, H]
        hidden = ops.take(x, index=b["mlm_at"])                                         # [K, H]
        yield "mlm", model.mlm, hidden, b["mlm_labels"]
        between = model.sbo.at(b["left_at"], b["right_at"], b["left_labels"])
        yield "sbo", between, x, b["sbo_labels"]


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128, span_places=5,
                 place_width=16, steps=800, warmup=80, lr=5e-3, **bert.SMALL),
    tiny=Config(layers=2, heads=2, width=128, hidden=512, span_places=10, place_width=32,
                steps=2200, warmup=200, lr=3e-3, **dict(bert.SMALL, seq=64)),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096),
)
