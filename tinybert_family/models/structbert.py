"""StructBERT (Wang, Bi, Yan, Wu, Bao, Xia, Peng, Si; Alibaba, 2019) is also asked about structure:
some words that are not hidden are shuffled, three at a time, and it has to put them back; and of
two passages it says which came first.

Unlike BERT: the sentence task has three classes, so its classifier has three rows. To put words
back is to predict, at each of the three places, the word that stood there: a task for the
masked-word head as it is. Everything else is BERT's to the last number.

As no class of transformers has such a head, a folder of ours opens there as what is left without
it (BertForMaskedLM, or BertModel); the head and the pooler under it lie in a file beside.
"""
from dataclasses import dataclass

from . import bert
from .parts import heads


@dataclass(frozen=True)
class Config(bert.Config):
    """BERT-base with the paper's recipe, as far as it was published."""
    seq: int = 512
    predictions: int = 77
    tokens: int = 8192
    warmup: int = 100_000           # a tenth of the steps


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


# ---- sizes

LARGE = dict(layers=24, heads=16, width=1024, hidden=4096)
SIZES = {
    "smoke": Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                    steps=2500, warmup=200, lr=5e-3, **bert.SMALL),
    "base": Config(),
    "large": Config(**LARGE),                           # structbert.en.large
    "large-chinese": Config(vocab=21128, **LARGE),      # structbert.ch.large
}
