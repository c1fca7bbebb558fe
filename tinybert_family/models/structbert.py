"""StructBERT (Wang, Bi, Yan, Wu, Bao, Xia, Peng, Si; Alibaba, 2019) is also asked about structure:
some words that are not hidden are shuffled, three at a time, and it has to put them back; and of
two passages it says whether the second follows, comes before, or is from elsewhere.

Unlike BERT: the sentence task has three classes, so its classifier has three rows. To put words
back is to predict, at each of the three places, the word that stood there: a task for the
masked-word head as it is. Everything else is BERT's to the last number.

As no class of transformers has such a head, a folder of ours opens there as what is left without
it (BertForMaskedLM, or BertModel); the head and the pooler under it lie in a file beside.
"""
from dataclasses import dataclass

import numpy as np

from ..error import Error
from ..text import corrupt, segments
from . import bert
from .parts import heads


@dataclass(frozen=True)
class Config(bert.Config):
    """BERT-base with the paper's recipe, as far as it was published: batch and steps were not, and
    are BERT's."""
    shuffled: float = 0.05          # share of the tokens that stand in shuffled trigrams; the paper
                                    # can also be read as 0.15, which small sizes learn more from
    seq: int = 512                  # from the first step to the last
    last_share: float = 0.0
    predictions: int = 77
    tokens: int = 8192
    warmup: int = 100_000           # a tenth of the steps

    LIMITS = dict(bert.Config.LIMITS, shuffled=(0, 1))


class WhichSide(heads.NextSentence):
    """Of the second passage: 0 it is from another document, 1 it follows, 2 it comes before."""
    CLASSES = 3


class Model(bert.Model):
    HEADS = dict(bert.Model.HEADS, nsp=WhichSide)


# ---- the published file's config.json: BERT's, with our signature beside it

HF_TYPES, HF_CONFIG = bert.HF_TYPES, bert.HF_CONFIG
HF_DEFAULTS = {}
# Those of BERT that do not expect a head of two rows.
HF_CLASSES = {name: has for name, has in bert.HF_CLASSES.items() if "nsp" not in has}
HF_REFUSED, HF_TIED, HF_IGNORED = bert.HF_REFUSED, bert.HF_TIED, bert.HF_IGNORED


# ---- the objective

class Objective(bert.Objective):
    """Hidden words, words out of order, and where the second passage comes from.

    Of "the old mill by the lake", shuffled at three places, the model reads "the by old mill the
    lake", and has to say "old", "mill", "by" there. The two means over words weigh the same,
    however many words each is of.
    """
    TASKS = dict(mlm="mlm", wso="mlm", nsp="nsp")   # hidden or displaced: the same head
    WORDS = "mlm", "wso"

    def __init__(self, c, corpus, *args, **kwargs):
        super().__init__(c, corpus, *args, **kwargs)
        if len(corpus.documents) < 3:
            raise Error("--data: the text is a single document, but a passage of another one is "
                        "wanted for every third pair; put blank lines between documents")

    def plan(self, documents, copy):
        c, seed = self.config, (self.seed, copy)
        return segments.three_way_pairs(self.corpus, documents, c.seq, c.short, seed,
                                        self.tokenizer)

    def batch(self, plan, copy):
        s = segments.lay_out(self.corpus, plan)
        noisy, hidden = self.noise(s, copy)
        noisy, moved = self.shuffle(s, noisy, hidden, copy)
        sentences = s.cuts[:-1], s.labels
        return self.arrays(s, noisy, mlm=(hidden, s.ids[hidden]), wso=(moved, s.ids[moved]),
                           nsp=sentences)

    def shuffle(self, s, noisy, hidden, copy):
        """Trigrams in which nothing is hidden, each in one of its six orders (the right one is
        among them).  -> what the model sees [T], the places of these words [3N]"""
        where, order, coin, _ = self.draws(s, copy, lane=1)
        free = s.places >= 0
        free[hidden] = False
        count = corrupt.rounded_up_or_down(coin[s.cuts[:-1]], self.config.shuffled / 3,
                                           np.diff(s.cuts))                             # [S]
        moved, source = corrupt.trigrams(where, order, s.ids, free, s.sequence, count)
        noisy[moved] = s.ids[source]
        return noisy, moved

    def chance(self, batches, frequency):
        """Who leaves all words in their places is right in a third of these. Two places farther to
        either side is as far as a word may have come."""
        found = super().chance(batches, frequency)
        seen, words = [], []
        for b in batches:
            at = b["asked"][b["wso_at"]] + np.arange(-2, 3)[:, None]
            seen.append(np.take(b["ids"], at, mode="clip"))                 # [5, N]
            words.append(b["wso_labels"])
        right = np.concatenate(seen, axis=1) == np.concatenate(words)
        if right.size:
            p = np.array([1, 2, 3, 2, 1]) / 9 @ right
            found["wso_loss"] = float(-np.log(p).mean())
            found["wso_accuracy"] = float(right[2].mean())
        return found


# ---- sizes

LARGE = dict(layers=24, heads=16, width=1024, hidden=4096)
SIZES = {
    "smoke": Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                    steps=800, warmup=80, lr=5e-3, shuffled=0.15, **bert.SMALL),
    "tiny": Config(layers=2, heads=2, width=128, hidden=512, steps=3000, warmup=300, lr=3e-3,
                   shuffled=0.15, **dict(bert.SMALL, seq=64, predictions=10)),
    "base": Config(),
    "large": Config(**LARGE),                           # structbert.en.large
    "large-chinese": Config(vocab=21128, **LARGE),      # structbert.ch.large
}
