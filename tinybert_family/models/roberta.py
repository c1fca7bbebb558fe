"""RoBERTa (Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer, Stoyanov, 2019) showed that
BERT had been trained too little: the same network with ten times the text and far larger batches.

Unlike BERT: positions are counted from the pad token's id, over tokens that are no padding; there
is no next-sentence task, so no segments and no pooler in pre-training; sequences are as full of
sentences as they can be; masks are drawn anew each time a text is seen; a classifier reads the
state of <s> through a layer of its own; and the recipe is another one.

XLM-RoBERTa (Conneau and others, 2020) is this network over a hundred languages' words; its files
have the same names inside, and one that was loaded is saved as what it was.
"""
from dataclasses import dataclass, replace

import numpy as np

from ..engine import ops
from ..engine.nn import Linear, dropout
from ..error import Error
from ..text import corrupt, segments
from ..text.bytebpe import ByteBPE
from . import bert
from .parts import heads, padded
from .parts.names import renamed, tasks_of


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are RoBERTa-base and its recipe."""
    vocab: int = 50265
    types: int = 1                  # the original has none; in files of today a row of zeros
    eps: float = 1e-5
    pad: int = 1                    # the pad token's id; the first token stands at pad + 1
    seq: int = 512                  # from the first step to the last
    last_share: float = 0.0
    crossing: bool = True           # FULL-SENTENCES: into the next document; else DOC-SENTENCES
    copies: int = 0                 # masks are dynamic
    tokens: int = 8192
    accumulate: int = 512           # 8,192 sequences of 512 tokens; a bigger batch, not more steps
    steps: int = 500_000
    warmup: int = 24_000
    lr: float = 6e-4
    schedule: str = "descending"
    beta2: float = 0.98             # a shorter memory of gradients keeps large batches stable
    correct: bool = True            # Adam as it was published
    clip: float = 0.0               # none

    LIMITS = dict(bert.Config.LIMITS, pad=(0, 10**6))

    @staticmethod
    def decays(name, tensor):
        """The released code lets weight decay pull at biases and norms, too."""
        return True

    @staticmethod
    def vocabulary(texts, size, progress=None):
        """Pieces of bytes: no text has a word that is unknown."""
        return ByteBPE.train(texts, size, progress=progress)


def counted(ids, pad):
    """1, 2, 3, ... over the tokens of a row that are no padding, and after pad; pad for padding.

    It asks what the token is, not what the mask says.  [B, S] -> [B, S]
    """
    real = ids != pad
    return np.cumsum(real, axis=1) * real + pad


class Embeddings(bert.Embeddings):
    """As BERT's, but the table of positions has pad + 1 rows before that of the first token."""

    def __init__(self, c, init):
        super().__init__(replace(c, positions=c.positions + c.pad + 1), init)
        self.config = c


class MaskedHead(bert.MaskedHead):
    """As BERT's, but its activation is the exact GELU whatever the layers have."""

    def __init__(self, c, init, model):
        super().__init__(replace(c, activation="gelu"), init, model)


class Sequence(heads.Summary):
    """In place of a pooler from pre-training, a layer that is learnt with the task.  [S, H] ->
    [S, labels]"""
    activation = ops.tanh

    def __init__(self, c, init, model):
        self.config = c
        self.dense = Linear(init, c.width, c.width)
        self.classifier = Linear(init, c.width, c.labels)

    def forward(self, first):
        p = self.config.head_dropout
        y = self.activation(self.dense(dropout(first, p)))              # [S, H]
        return self.classifier(dropout(y, p))


class Model(bert.Model):
    Embeddings = Embeddings
    HEADS = dict(pooler=heads.Pooler, mlm=MaskedHead, **{**heads.TASKS, "sequence": Sequence})
    PRETRAINING = "mlm",
    PREFIX = "roberta."
    NAMES = {
        **renamed(bert.Model.NAMES, bert.Model.PREFIX, "roberta."),
        "mlm.transform.*": "lm_head.dense.*",
        "mlm.norm.*": "lm_head.layer_norm.*",
        "mlm.bias": "lm_head.bias",
        "sequence.dense.*": "classifier.dense.*",
        "sequence.classifier.*": "classifier.out_proj.*",
        "choice.classifier.*": "classifier.*",
        "token.classifier.*": "classifier.*",
        "question.classifier.*": "qa_outputs.*",
    }

    def pack(self, input_ids, attention_mask, token_type_ids):
        return padded.pack(self.config, input_ids, attention_mask, token_type_ids,
                           places=lambda ids: counted(ids, self.config.pad))


# ---- the published file's config.json

def classes(family):
    return {f"{family}Model": ("pooler",), f"{family}ForMaskedLM": ("mlm",), **tasks_of(family),
            f"{family}ForSequenceClassification": ("sequence",)}


HF_TYPES = "roberta", "xlm-roberta"
HF_CONFIG = dict(bert.HF_CONFIG, pad="pad_token_id")
# What RobertaConfig() means, which describes no published checkpoint.
HF_DEFAULTS = dict(eps=1e-12, types=2)
HF_CLASSES = {**classes("Roberta"), **classes("XLMRoberta")}
HF_REFUSED = bert.HF_REFUSED
HF_TIED = {"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
           "lm_head.decoder.bias": "lm_head.bias"}
HF_IGNORED = r"roberta\.embeddings\.position_ids"


def from_published(settings, where):
    """max_position_embeddings counts rows of the table: two more than the longest sequence."""
    vocab = 30522 if settings.get("model_type") == "xlm-roberta" else 50265
    found = {"vocab_size": vocab, "max_position_embeddings": 512, "pad_token_id": 1, **settings}
    rows, pad = found["max_position_embeddings"], found["pad_token_id"]
    if type(rows) is int and type(pad) is int:      # what is no number is told later
        found["max_position_embeddings"] = rows - pad - 1
    return found


def to_published(config, values):
    rows = config.positions + config.pad + 1
    return dict(values, max_position_embeddings=rows)


# ---- the objective

class Objective(bert.Objective):
    """Hidden words alone, in sequences full of sentences, and hidden anew in every pass.

        <s> sentence </s> sentence </s> </s> the next document's sentence </s>

    The released code hides <s> and </s> like any other token; we follow it.
    """
    TASKS = dict(mlm="mlm")
    SPECIAL = 4                     # <s> <pad> </s> <unk>, the first words, never replace another

    def __init__(self, c, corpus, tokenizer, *args, **kwargs):
        super().__init__(c, corpus, tokenizer, *args, **kwargs)
        if c.pad != tokenizer.pad:
            raise Error(f"pad: {c.pad}, but in this vocabulary the pad token is number "
                        f"{tokenizer.pad}; use --pad {tokenizer.pad}")

    def plan(self, documents, copy):
        c = self.config
        packed = segments.full_sentences if c.crossing else segments.doc_sentences
        return packed(self.corpus, documents, c.seq, (self.seed, copy), self.tokenizer)

    def noise(self, s, copy):
        c = self.config
        order, kind, other, coin = self.draws(s, copy)
        # 0.15 of 127 tokens are 19.05: 19 of them, and once in twenty times 20.
        budget = corrupt.rounded_up_or_down(coin[s.cuts[:-1]], c.masked, np.diff(s.cuts))
        hidden = corrupt.choose(order, np.ones(len(s.ids), bool), s.sequence, budget)   # [K]
        words = corrupt.uniform(other, self.SPECIAL, c.vocab)                          # [T]
        return corrupt.replace(s.ids, hidden, kind, words, self.tokenizer.mask), hidden

    def inputs(self, b):
        """No token of a batch is padding, so positions simply begin at pad + 1."""
        packed = super().inputs(b)
        return packed._replace(positions=packed.positions + self.config.pad + 1)


# ---- sizes

SIZES = {
    "smoke": Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                    steps=800, warmup=80, lr=5e-3, **bert.SMALL),
    "tiny": Config(layers=2, heads=2, width=128, hidden=512, steps=3000, warmup=300, lr=3e-3,
                   **dict(bert.SMALL, seq=64)),
    "base": Config(),
    "large": Config(layers=24, heads=16, width=1024, hidden=4096, warmup=30_000, lr=4e-4),
    "distil": Config(layers=6),                     # distilroberta-base
    "xlm-base": Config(vocab=250_002),
    "xlm-large": Config(vocab=250_002, layers=24, heads=16, width=1024, hidden=4096),
}
