"""ALBERT (Lan, Chen, Goodman, Gimpel, Sharma, Soricut, 2020) spends parameters where they are
needed: one layer does the work of twelve, and words are looked up in a narrow table.

Unlike BERT: the tables are E = 128 wide and a matrix widens what comes out of them to H, so a large
vocabulary costs V * E instead of V * H; all layers of a group are one and the same layer, whose
gradient is the sum over its uses, so depth costs time but no memory; and the second task is not
which passage follows, which topics give away, but which of two passages came first.
"""
from dataclasses import dataclass

from ..engine.nn import Linear, Module
from . import bert
from .parts import heads
from .parts.names import tasks_of


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are ALBERT-base, version 2. (Version 1 has dropout 0.1; its files say gelu.)"""
    vocab: int = 30000
    embedding: int = 128            # E, of the tables
    groups: int = 1                 # kinds of layers; the layers of a group are one
    inner: int = 1                  # layers that a group runs one after another at each step
    activation: str = "gelu_new"
    dropout: float = 0.0            # so many words cannot be learnt by heart with so few weights
    attention_dropout: float = 0.0
    seq: int = 512
    predictions: int = 77
    copies: int = 40
    tokens: int = 8192
    accumulate: int = 256           # 4,096 sequences of 512 tokens
    steps: int = 125_000
    warmup: int = 3125
    lr: float = 0.00176
    optimizer: str = "lamb"

    LIMITS = dict(bert.Config.LIMITS, embedding=(1, 10**5), groups=(1, 1000), inner=(1, 1000))


class Embeddings(bert.Embeddings):
    """Words are looked up, summed and normed E wide, and only then widened.  [T, E] -> [T, H]"""

    def __init__(self, c, init):
        super().__init__(c, init, c.embedding)
        self.project = Linear(init, c.embedding, c.width)

    def forward(self, b):
        return self.project(super().forward(b))


class Group(Module):
    """Layers that belong together: where one of them runs, all of them run, in order."""

    def __init__(self, c, init):
        self.layers = [bert.Layer(c, init) for _ in range(c.inner)]


class SentenceOrder(heads.Sequence):
    """0: the two passages stand in their order. 1: they were swapped. (As many rows as a task has
    labels, in transformers: two, unless config.json says otherwise.)"""
    NEEDS = "pooler",


class Output(heads.Output):
    sop_logits = property(lambda self: self._of("sop"))                     # [B, 2]


class Model(bert.Model):
    Embeddings, Output = Embeddings, Output
    HEADS = dict(pooler=heads.Pooler, mlm=bert.MaskedHead, sop=SentenceOrder, **heads.TASKS)
    PRETRAINING = "pooler", "mlm", "sop"
    PREFIX = "albert."
    LAYER = "albert.encoder.albert_layer_groups.#.albert_layers.#."
    NAMES = {
        "embeddings.word": "albert.embeddings.word_embeddings.weight",
        "embeddings.position": "albert.embeddings.position_embeddings.weight",
        "embeddings.type": "albert.embeddings.token_type_embeddings.weight",
        "embeddings.norm.*": "albert.embeddings.LayerNorm.*",
        "embeddings.project.*": "albert.encoder.embedding_hidden_mapping_in.*",
        "groups.#.layers.#.attention.qkv.*": [LAYER + "attention.query.*",
                                              LAYER + "attention.key.*",
                                              LAYER + "attention.value.*"],
        "groups.#.layers.#.attention.out.*": LAYER + "attention.dense.*",
        "groups.#.layers.#.attention.norm.*": LAYER + "attention.LayerNorm.*",
        "groups.#.layers.#.mlp.up.*": LAYER + "ffn.*",
        "groups.#.layers.#.mlp.down.*": LAYER + "ffn_output.*",
        "groups.#.layers.#.mlp.norm.*": LAYER + "full_layer_layer_norm.*",
        "pooler.dense.*": "albert.pooler.*",
        "mlm.transform.*": "predictions.dense.*",
        "mlm.norm.*": "predictions.LayerNorm.*",
        "mlm.bias": "predictions.bias",
        "sop.classifier.*": "sop_classifier.classifier.*",
        "sequence.classifier.*": "classifier.*",
        "choice.classifier.*": "classifier.*",
        "token.classifier.*": "classifier.*",
        "question.classifier.*": "qa_outputs.*",
    }

    def make_layers(self, c, init):
        """The layers in the order in which they run, each of them several times.

        The groups come first in the tree: a parameter has the first name under which it is met.
        """
        self.groups = [Group(c, init) for _ in range(c.groups)]
        # The quotient first: in another order some are rounded into another group.
        turns = [int(i / (c.layers / c.groups)) for i in range(c.layers)]
        return [layer for turn in turns for layer in self.groups[turn].layers]


# ---- the published file's config.json

HF_TYPES = "albert",
HF_CONFIG = dict(bert.HF_CONFIG, embedding="embedding_size", groups="num_hidden_groups",
                 inner="inner_group_num", head_dropout="classifier_dropout_prob")
# AlbertConfig() is the largest.
HF_DEFAULTS = dict(width=4096, heads=64, hidden=16384, head_dropout=0.1)
HF_CLASSES = {"AlbertModel": ("pooler",), "AlbertForMaskedLM": ("mlm",),
              "AlbertForPreTraining": ("pooler", "mlm", "sop"), **tasks_of("Albert")}
HF_REFUSED = dict(position_embedding_type="absolute", tie_word_embeddings=True)
HF_TIED = {"predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
           "predictions.decoder.bias": "predictions.bias"}
HF_IGNORED = r"albert\.embeddings\.position_ids"


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, embedding=32, positions=128,
                 steps=2500, warmup=200, lr=5e-3, optimizer="adamw", **bert.SMALL),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096),
    xlarge=Config(layers=24, heads=16, width=2048, hidden=8192),
    xxlarge=Config(heads=64, width=4096, hidden=16384),
)
