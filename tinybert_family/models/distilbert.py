"""DistilBERT (Sanh, Debut, Chaumond, Wolf, 2019): half of BERT's layers, taught by the whole of it,
keep nearly all of what it knows.

Unlike BERT: six layers instead of twelve; no segments and no pooler; every LayerNorm has eps 1e-12,
whatever a config.json says; and a classifier reads [CLS] through a layer of its own with a ReLU,
where BERT has the pooler's tanh. Beside hidden words it learns what its teacher would answer at
every token, and to let its last states point where the teacher's do (parts/distil.py).
"""
from dataclasses import dataclass

import numpy as np

from ..engine import fused
from ..engine.nn import Linear, Norm, dropout
from ..error import Error
from ..text import corrupt, segments
from . import bert
from .parts import distil, heads
from .parts.names import tasks_of

EPS = 1e-12


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are distilbert-base-uncased and its recipe."""
    layers: int = 6
    types: int = 0                  # no segments
    head_dropout: float = 0.2       # before the classifier of a sequence; of tokens: dropout
    question_dropout: float = 0.1   # before the two scores of question answering
    sinusoidal: bool = False        # begin with positions that are sines and cosines
    seq: int = 512
    predictions: int = 77
    tokens: int = 8192
    accumulate: int = 250           # 4,000 sequences of 512 tokens
    steps: int = 6000               # three times BERT's text
    warmup: int = 300               # a twentieth of the steps
    schedule: str = "descending"
    lr: float = 5e-4
    beta2: float = 0.98
    correct: bool = True
    decay: float = 0.0
    clip: float = 5.0
    copies: int = 0                 # words are masked anew in every pass
    last_share: float = 0.0         # one length throughout
    short: float = 0.0
    rarer: float = 0.7              # a word seen n times is hidden in proportion to n^-0.7
    heat: float = 2.0               # the temperature of answers
    soft: float = 5.0               # weight of the teacher's answers,
    hard: float = 2.0               # of the right ones,
    turned: float = 1.0             # and of 1 - cosine of the last states
    begun: bool = True              # with every other of the teacher's layers
    teacher_steps: int = 1_000_000  # of a teacher that is trained first

    LIMITS = dict(bert.Config.LIMITS, types=(0, 0), question_dropout=(0, 0.999), heat=(0.01, 1000),
                  teacher_steps=(1, 10**9))

    def __post_init__(self):
        super().__post_init__()
        if self.eps != EPS:
            raise Error(f"eps: {self.eps}, but this model's is {EPS} and its config.json has no "
                        "place for another")


class Embeddings(bert.Embeddings):
    """LayerNorm(word + position)"""

    def __init__(self, c, init):
        self.config = c
        self.word = init.normal((c.vocab, c.width))
        shape = c.positions, c.width
        new = init.waves if c.near else init.normal
        self.position = init.waves(shape, height=1.0) if c.sinusoidal else new(shape)
        self.norm = Norm(init, c.width, c.eps)

    def forward(self, b):
        x = fused.embed(self.word, self.position, ids=(b.ids, b.positions))     # [T, H]
        return dropout(self.norm(x), self.config.dropout)


class Sequence(heads.Sequence):
    """In place of a pooler, a layer that is learnt with the task.  [S, H] -> [S, labels]"""

    def __init__(self, c, init, model):
        self.config = c
        self.dense = Linear(init, c.width, c.width)
        self.classifier = Linear(init, c.width, self.labels(c))

    def forward(self, first):
        y = fused.relu(fused.linear(first, self.dense.weight), self.dense.bias)
        return self.classifier(dropout(y, self.config.head_dropout))


class Choice(Sequence):
    """[S, H] -> [S, 1]"""

    @staticmethod
    def labels(c):
        return 1


class Token(heads.Token):
    """Its dropout is that of the hidden states."""

    def forward(self, x):
        return self.classifier(dropout(x, self.config.dropout))


class Question(heads.Question):
    """The only model of the family with dropout before these two scores."""

    def __init__(self, c, init, model):
        super().__init__(c, init, model)
        self.config = c

    def forward(self, x):
        return self.classifier(dropout(x, self.config.question_dropout))


class Model(bert.Model):
    Embeddings = Embeddings
    HEADS = dict(mlm=bert.MaskedHead, sequence=Sequence, choice=Choice, token=Token,
                 question=Question)
    PRETRAINING = "mlm",
    PREFIX = "distilbert."
    NAMES = {
        "embeddings.word": "distilbert.embeddings.word_embeddings.weight",
        "embeddings.position": "distilbert.embeddings.position_embeddings.weight",
        "embeddings.norm.*": "distilbert.embeddings.LayerNorm.*",
        "layers.#.attention.qkv.*": ["distilbert.transformer.layer.#.attention.q_lin.*",
                                     "distilbert.transformer.layer.#.attention.k_lin.*",
                                     "distilbert.transformer.layer.#.attention.v_lin.*"],
        "layers.#.attention.out.*": "distilbert.transformer.layer.#.attention.out_lin.*",
        "layers.#.attention.norm.*": "distilbert.transformer.layer.#.sa_layer_norm.*",
        "layers.#.mlp.up.*": "distilbert.transformer.layer.#.ffn.lin1.*",
        "layers.#.mlp.down.*": "distilbert.transformer.layer.#.ffn.lin2.*",
        "layers.#.mlp.norm.*": "distilbert.transformer.layer.#.output_layer_norm.*",
        "mlm.transform.*": "vocab_transform.*",
        "mlm.norm.*": "vocab_layer_norm.*",
        "mlm.bias": "vocab_projector.bias",
        "sequence.dense.*": "pre_classifier.*",
        "sequence.classifier.*": "classifier.*",
        "choice.dense.*": "pre_classifier.*",
        "choice.classifier.*": "classifier.*",
        "token.classifier.*": "classifier.*",
        "question.classifier.*": "qa_outputs.*",
    }


# ---- the published file's config.json

HF_TYPES = "distilbert",
HF_CONFIG = dict(vocab="vocab_size", layers="n_layers", heads="n_heads", width="dim",
                 hidden="hidden_dim", positions="max_position_embeddings", activation="activation",
                 dropout="dropout", attention_dropout="attention_dropout",
                 head_dropout="seq_classif_dropout", question_dropout="qa_dropout",
                 sinusoidal="sinusoidal_pos_embds", init="initializer_range")
HF_DEFAULTS = dict(head_dropout=0.2)
HF_CLASSES = {"DistilBertModel": (), "DistilBertForMaskedLM": ("mlm",),
              **tasks_of("DistilBert", pooler=())}
HF_REFUSED = dict(tie_word_embeddings=True, tie_weights_=True)
HF_TIED = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}
HF_IGNORED = r"distilbert\.embeddings\.position_ids"


# ---- the objective

class Objective(distil.Answers):
    """The teacher's answers, the right ones, and the direction of the last states."""

    def __init__(self, c, corpus, *given, **more):
        super().__init__(c, corpus, *given, **more)
        self.rarity = distil.counts_of(corpus, self.tokenizer.size) ** -c.rarer         # [V]
        self.rarity[self.tokenizer.unk] = 0

    @staticmethod
    def teacher_of(c):
        return "bert", distil.teacher_like(c, types=2, layers=2 * c.layers, steps=c.teacher_steps)

    def begin(self, learner):
        if self.config.begun:
            distil.take_over(learner, self.teacher)

    def plan(self, documents, copy):
        length, seed = self.config.seq, (self.seed, copy)
        return segments.single_blocks(self.corpus, documents, length, seed, self.tokenizer,
                                      least=12, unknown=0.5)

    def noise(self, s, copy):
        """A share of the whole batch is hidden: the rarer a word, the sooner."""
        c = self.config
        order, kind, other, _ = self.draws(s, copy)                                     # [T] each
        rarity = self.rarity[s.ids] * (s.places >= 0)
        hidden = corrupt.weighted(order, rarity, int(np.ceil(c.masked * len(s.ids))))    # [K]
        mask = self.tokenizer.mask
        return corrupt.eighty_ten_ten(s.ids, hidden, kind, other, mask, c.vocab), hidden


# ---- sizes

SIZES = {
    "smoke": Config(vocab=2048, layers=1, heads=4, width=64, hidden=256, positions=128, steps=250,
                    teacher_steps=700, warmup=40, lr=5e-3, **dict(bert.SMALL, tokens=1024)),
    "tiny": Config(vocab=4096, layers=1, heads=4, width=128, hidden=512, steps=600,
                   teacher_steps=2000, warmup=60, lr=3e-3, **bert.SMALL),
    "base": Config(),
    "base-cased": Config(vocab=28996),
    "multilingual": Config(vocab=119_547),
}
