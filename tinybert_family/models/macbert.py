"""MacBERT (Cui, Che, Liu, Qin, Wang, Hu, 2020) never shows its model a [MASK]: a hidden word is
replaced by a similar one, and the model has to notice and to correct it. No text that the model is
later used on has a [MASK] in it either.

Unlike BERT: what stands in for a hidden word, which is the objective's business, and the sentence
task: the two passages always follow each other, and the question is which comes first. (Asked
whether one follows the other, BERT could look at the topic alone.) The network is BERT's to the
last number, which is why this file is short; transformers takes it for one.

The words hidden are n-grams of one to four words. To fill a [MASK] is the one thing that a model
trained so cannot do.
"""
from dataclasses import dataclass

from . import bert
from .parts import heads


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are the Chinese base model, which began with the weights of BERT."""
    vocab: int = 21128
    seq: int = 512
    predictions: int = 77
    tokens: int = 8192
    accumulate: int = 32            # 512 sequences of 512 tokens
    optimizer: str = "lamb"


class WhichFirst(heads.NextSentence):
    """0: the passages stand in the text's order. 1: they were swapped."""


class Model(bert.Model):
    HEADS = dict(bert.Model.HEADS, nsp=WhichFirst)


# ---- the published file's config.json: BERT's, with our signature beside it

HF_TYPES, HF_CONFIG, HF_CLASSES = bert.HF_TYPES, bert.HF_CONFIG, bert.HF_CLASSES
HF_DEFAULTS = dict(vocab=30522)     # BertConfig()'s
HF_REFUSED, HF_TIED, HF_IGNORED = bert.HF_REFUSED, bert.HF_TIED, bert.HF_IGNORED


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                 steps=2500, warmup=200, lr=5e-3, optimizer="adamw", **bert.SMALL),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096, steps=2_000_000),
)
