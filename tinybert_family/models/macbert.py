"""MacBERT (Cui, Che, Liu, Qin, Wang, Hu, 2020) never shows its model a [MASK]: a hidden word is
replaced by a similar one, and the model has to notice and to correct it. No text that the model is
later used on has a [MASK] in it either.

Unlike BERT: what stands in for a hidden word, and the sentence task: the two passages always follow
each other, and the question is which comes first. (Asked whether one follows the other, BERT could
look at the topic alone.) The network is BERT's to the last number; transformers takes it for one.

The words hidden are n-grams of one to four words. To fill a [MASK] is the one thing that a model
trained so cannot do. Which words are similar, the text itself says (text/similar.py), or a file of
word vectors (--vectors).
"""
from dataclasses import dataclass

import numpy as np

from ..text import corrupt, words
from . import albert, bert
from .parts import heads


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are the Chinese base model, which began with the weights of BERT."""
    vocab: int = 21128
    forced: float = 0.1             # of what is chosen, at most so much random for want of better
    stranger: bool = False          # see albert.py
    seq: int = 512                  # from the first step to the last
    last_share: float = 0.0
    predictions: int = 77
    tokens: int = 8192
    accumulate: int = 32            # 512 sequences of 512 tokens
    optimizer: str = "lamb"         # for 1,000,000 steps from a rate of 1e-4, as BERT

    LIMITS = dict(bert.Config.LIMITS, forced=(0, 1))


class WhichFirst(heads.NextSentence):
    """0: the passages stand in the text's order. 1: they were swapped."""


class Model(bert.Model):
    HEADS = dict(bert.Model.HEADS, nsp=WhichFirst)


# ---- the published file's config.json: BERT's, with our signature beside it

HF_TYPES, HF_CONFIG, HF_CLASSES = bert.HF_TYPES, bert.HF_CONFIG, bert.HF_CLASSES
HF_DEFAULTS = dict(vocab=30522)     # BertConfig()'s
HF_REFUSED, HF_TIED, HF_IGNORED = bert.HF_REFUSED, bert.HF_TIED, bert.HF_IGNORED


# ---- the objective

class Objective(albert.Objective):
    """ALBERT's passages and n-grams; but another word stands in for a hidden one.

    80 % of the words become a similar word of as many pieces, 10 % a random one, 10 % stay. Where
    none is similar, a random word is taken, for at most a tenth of the hidden tokens; others stay.
    """
    TASKS = dict(mlm="mlm", sop="nsp")
    NEEDS = "similar",
    GRAMS = 4, 3, 2, 1              # one word to four

    def __init__(self, c, corpus, tokenizer, *args, **kwargs):
        super().__init__(c, corpus, tokenizer, *args, **kwargs)
        self.begins = words.begins_word(tokenizer)      # whole words in every script
        ordinary = np.ones(len(self.begins), bool)
        for role in "pad", "unk", "cls", "sep", "mask":
            special = getattr(tokenizer, role)
            ordinary[special] = False
        # of what random words are made: pieces that begin a word, and pieces that go on with one
        self.heads = np.flatnonzero(ordinary & self.begins)
        self.tails = np.flatnonzero(ordinary & ~self.begins)

    def budget(self, s):
        """15 %, rounded down [S]"""
        c = self.config
        lengths = np.diff(s.cuts)
        wanted = (c.masked * lengths).astype(np.int64)
        return np.clip(wanted, 1, c.predictions)

    def random(self, ids, draws):
        """Random pieces, for the head of a word a head and for its tail tails [T]"""
        def one_of(kind):
            which = corrupt.below(draws, len(kind))
            return kind[which] if len(kind) else ids
        heads, tails = one_of(self.heads), one_of(self.tails)
        return np.where(self.begins[ids], heads, tails)

    def forced(self, s, hidden, lacking, copy):
        """Of the words to which none is similar, those that become random ones (places)."""
        c, (order, coin, _, _) = self.config, self.draws(s, copy, lane=2)
        count = np.bincount(s.sequence[hidden], minlength=len(s.keys))                  # [S]
        most = corrupt.rounded_up_or_down(coin[s.cuts[:-1]], c.forced, count)
        unit = np.where(lacking, self.words(s), -1)
        return corrupt.whole_units(order, unit, s.sequence, most)

    def noise(self, s, copy):
        hidden, unit = self.chosen(s, copy), self.words(s)
        kind, other, which, _ = self.draws(s, copy, lane=1)
        similar = self.knowledge.similar.replace(s.ids, unit, which)
        share = kind[corrupt.first_of(unit)] / 2.0 ** 32            # one draw for all of a word
        is_hidden = np.zeros(len(unit), bool)
        is_hidden[hidden] = True
        wanted = is_hidden & (share < 0.8)
        lacking = wanted & (similar < 0)
        forced = self.forced(s, hidden, lacking, copy)
        at_random = is_hidden & (share >= 0.8)
        at_random &= share < 0.9
        at_random[forced] = True
        random = self.random(s.ids, other)
        noisy = np.where(wanted & ~lacking, similar, s.ids)
        return np.where(at_random, random, noisy), hidden

    def chance(self, batches, frequency):
        """Who leaves all words as they are is right where they were left."""
        found = super().chance(batches, frequency)
        seen, words = [], []
        for b in batches:
            places = b["asked"][b["mlm_at"]]
            seen.append(b["ids"][places])
            words.append(b["mlm_labels"])
        words = np.concatenate(words)
        right = np.concatenate(seen) == words
        left = right.mean()
        p = frequency / frequency.sum()
        p = left * right + (1 - left) * p[words]
        found["mlm_loss"] = float(-np.log(p).mean())
        found["mlm_accuracy"] = float(left)
        return found

    def veil(self, ids, place):
        """To be asked for a word, the model must see another: a similar one, or any."""
        special = np.isin(ids, [self.tokenizer.cls, self.tokenizer.sep])
        unit = corrupt.units(self.begins[ids], special, np.zeros_like(ids))
        draws = np.full(len(ids), place << 24, np.uint32)
        known = self.knowledge.similar
        similar = known.replace(ids, unit, draws)
        random = self.random(ids, draws)
        word = similar[place] if similar[place] >= 0 else random[place]
        seen = ids.copy()
        seen[place] = word
        return seen


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                 steps=800, warmup=80, lr=5e-3, optimizer="adamw", **bert.SMALL),
    tiny=Config(layers=2, heads=2, width=128, hidden=512, steps=3500, warmup=300, lr=3e-3,
                optimizer="adamw", **dict(bert.SMALL, seq=64, predictions=10)),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096, steps=2_000_000),
)
