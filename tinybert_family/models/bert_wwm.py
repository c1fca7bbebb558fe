"""Whole-word masking (Devlin and others' second release of BERT, May 2019; for Chinese: Cui, Che,
Liu, Qin, Yang, 2019): when one piece of a word is hidden, all of its pieces are. A piece alone is
too easy to guess from its neighbours: "phil ##am [MASK] ##on" needs no understanding.

Unlike BERT: only the choice of what to hide; the network is the same to the last number, which is
why this file is short. It names the published models and their recipe. Of a chosen word each piece
is still replaced by a draw of its own, so a word may be half hidden and half kept. In Chinese,
where every character is a piece, the words are a segmenter's; the vocabulary is still characters.

The published "RoBERTa-wwm-ext" models are this network, too, in spite of their name: trained longer
and without the next-sentence task, as RoBERTa was, but BERT in every layer and name.
"""
from dataclasses import dataclass, replace

import numpy as np

from ..text import corrupt, words
from . import bert
from .parts.stages import lengthening


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are the Chinese base model."""
    vocab: int = 21128
    follows: bool = True            # ask whether the second passage follows the first
    tokens: int = 8192
    accumulate: int = 40            # 2,560 sequences of 128 tokens,
    last_accumulate: int = 24       # then 384 of 512 tokens (0: as many tokens as before)
    last_share: float = 0.5         # for the second half of the steps
    steps: int = 200_000
    optimizer: str = "lamb"

    LIMITS = dict(bert.Config.LIMITS, last_accumulate=(0, 10**6))

    def stages(self):
        """Two runs, one after the other: each with a batch and a warm-up of its own. Or BERT's."""
        stages = lengthening(self)
        if len(stages) < 2 or not self.last_accumulate:
            return stages
        first, last = stages
        longer = replace(last.config, accumulate=self.last_accumulate)
        return [replace(first, whole=0),
                replace(last, whole=0, before=0, config=longer)]


class Model(bert.Model):
    """BERT's."""


# ---- the published file's config.json: BERT's, with our signature beside it

HF_TYPES, HF_CONFIG, HF_CLASSES = bert.HF_TYPES, bert.HF_CONFIG, bert.HF_CLASSES
HF_DEFAULTS = dict(vocab=30522)     # BertConfig()'s
HF_REFUSED, HF_TIED, HF_IGNORED = bert.HF_REFUSED, bert.HF_TIED, bert.HF_IGNORED


# ---- the objective

class Objective(bert.Objective):
    """Hidden words and next sentences; but words are hidden whole.

    A variant with other ideas of what to hide overrides `chosen`.
    """

    def __init__(self, c, corpus, tokenizer, *args, **kwargs):
        super().__init__(c, corpus, tokenizer, *args, **kwargs)
        self.begins = words.begins_word(tokenizer)              # [V] does a word begin so?
        if "nsp" in self.TASKS and not c.follows:
            self.TASKS = dict(mlm="mlm")

    @classmethod
    def needs(cls, c, given):
        """Of a language that does not show its words, the user gives them (--phrases)."""
        return set(cls.NEEDS) | given & {"phrases"}

    def words(self, s):
        """The number of the word that each token is a piece of [T], -1 for a special token."""
        known = self.knowledge
        if known is None or known.flags is None:
            begins = self.begins[s.ids]
        else:
            begins = known.starts(s.places, "phrase")
        return corrupt.units(begins, s.places < 0, s.sequence)

    def budget(self, s):
        """How many tokens of each sequence to hide [S]"""
        c = self.config
        return corrupt.budget(np.diff(s.cuts), c.masked, c.predictions)

    def chosen(self, s, copy):
        """The hidden tokens [K]. A word that would exceed the budget is passed over; shorter ones
        that come after it may still fit."""
        order, _, _, _ = self.draws(s, copy)                                            # [T]
        return corrupt.whole_units(order, self.words(s), s.sequence, self.budget(s))

    def noise(self, s, copy):
        hidden, mask = self.chosen(s, copy), self.tokenizer.mask
        # a draw for each piece: of one word some may become [MASK] and some stay
        kind, other, _, _ = self.draws(s, copy, lane=1)
        return corrupt.eighty_ten_ten(s.ids, hidden, kind, other, mask, self.config.vocab), hidden


# ---- sizes

LARGE = dict(layers=24, heads=16, width=1024, hidden=4096)
# As BERT was: one schedule, by Adam.
ENGLISH = dict(tokens=2048, accumulate=16, last_accumulate=0, last_share=0.1, steps=1_000_000,
               optimizer="adamw")
# Trained in one go on full sequences, by Adam.
LONG = dict(seq=512, last_share=0.0, predictions=77, accumulate=24,        # 384 sequences
            optimizer="adamw", follows=False)
SIZES = {
    "smoke": Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                    steps=800, warmup=80, lr=5e-3, optimizer="adamw", **bert.SMALL),
    "tiny": Config(layers=2, heads=2, width=128, hidden=512, steps=3500, warmup=300, lr=3e-3,
                   optimizer="adamw", **dict(bert.SMALL, seq=64, predictions=10)),
    "base": Config(),                                   # chinese-bert-wwm
    # chinese-bert-wwm-ext: 1,000,000 steps of short sequences, 400,000 of long ones
    "ext": Config(steps=1_400_000, last_share=2 / 7, warmup=100_000),
    "roberta": Config(**{**LONG, "steps": 1_000_000}),  # chinese-roberta-wwm-ext
    "roberta-large": Config(**LARGE, **{**LONG, "accumulate": 32, "steps": 2_000_000}),
    # The first layers of these two, trained on: few layers, as wide as their parents.
    "rbt3": Config(layers=3),
    "rbtl3": Config(**{**LARGE, "layers": 3}),
    # bert-large-uncased-whole-word-masking, bert-large-cased-whole-word-masking
    "large-uncased": Config(vocab=30522, **LARGE, **ENGLISH),
    "large-cased": Config(vocab=28996, **LARGE, **ENGLISH),
}
