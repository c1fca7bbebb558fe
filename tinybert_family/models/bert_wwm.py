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
from dataclasses import dataclass

from . import bert


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are the Chinese base model, and the first half of its training."""
    vocab: int = 21128
    tokens: int = 8192
    accumulate: int = 40            # 2,560 sequences of 128 tokens
    steps: int = 100_000            # then as many with --seq 512, 384 sequences each
    optimizer: str = "lamb"


class Model(bert.Model):
    """BERT's."""


# ---- the published file's config.json: BERT's, with our signature beside it

HF_TYPES, HF_CONFIG, HF_CLASSES = bert.HF_TYPES, bert.HF_CONFIG, bert.HF_CLASSES
HF_DEFAULTS = dict(vocab=30522)     # BertConfig()'s
HF_REFUSED, HF_TIED, HF_IGNORED = bert.HF_REFUSED, bert.HF_TIED, bert.HF_IGNORED


# ---- sizes

LARGE = dict(layers=24, heads=16, width=1024, hidden=4096)
# Trained in one go on full sequences, by Adam.
LONG = dict(seq=512, predictions=77, accumulate=24, optimizer="adamw")     # 384 sequences
SIZES = {
    "smoke": Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                    steps=2500, warmup=200, lr=5e-3, optimizer="adamw", **bert.SMALL),
    "base": Config(),                                   # chinese-bert-wwm, -wwm-ext
    "roberta": Config(**{**LONG, "steps": 1_000_000}),  # chinese-roberta-wwm-ext
    "roberta-large": Config(**LARGE, **{**LONG, "accumulate": 32, "steps": 2_000_000}),
    # The first layers of these two, trained on: few layers, as wide as their parents.
    "rbt3": Config(layers=3),
    "rbtl3": Config(**{**LARGE, "layers": 3}),
    "large-uncased": Config(vocab=30522, **LARGE),      # bert-large-uncased-whole-word-masking
    "large-cased": Config(vocab=28996, **LARGE),
}
