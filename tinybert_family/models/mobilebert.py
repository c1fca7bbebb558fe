"""MobileBERT (Sun, Yu, Song, Liu, Yang, Zhou, 2020): 24 layers that fit into a telephone, taught
one by one by a teacher of the same shape (parts/transfer.py). Unlike BERT: hidden states are 512
wide between layers but 128 inside them; words are 128 wide, and each is read together with its
neighbours; a layer has four MLPs; and what stands in the norms' place only scales and shifts
(NoNorm).

The layer is in parts/bottleneck.py; here is what stands around it.

The teacher, IB-BERT (size `teacher`), is wide where the student is narrow: 1024 inside layers whose
inputs and outputs are 512, too, and can be compared. transformers has no class that can run it.

Nothing is padded here: before the first word of a sequence and after the last stand zeros.
transformers lets the last one see the embedding of [PAD] where a batch was padded, so a sentence
changes with its company; model(ids, mask, types, pad_like_hf=True) gives these numbers.
Nothing keeps hidden states near one, either: in published weights they reach 10^7.
"""
from dataclasses import dataclass, replace

import numpy as np

from ..engine import fused, ops
from ..engine.nn import Linear, Module, Norm, dropout
from ..error import Error
from . import bert
from .parts import heads, padded, transfer
from .parts.names import renamed, tasks_of
from .parts.bottleneck import EPS, Layer, norm_of


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are mobilebert-uncased and its recipe."""
    layers: int = 24
    heads: int = 4
    width: int = 512
    hidden: int = 512
    activation: str = "relu"
    dropout: float = 0.0
    head_dropout: float = 0.0
    embedding: int = 128            # E, of the words
    trigram: bool = True            # words are read with their neighbours
    bottleneck: bool = True         # layers have a width of their own inside
    inner: int = 128                # which is this
    shared: bool = True             # a bottleneck of their own for queries and keys
    bottleneck_attention: bool = False  # queries, keys and values come from the residual's
    mlps: int = 4                   # in a layer
    norm: str = "no_norm"           # no_norm, layer_norm
    pooled: bool = False            # a task reads tanh(dense(first state)), not the state itself
    seq: int = 512
    accumulate: int = 512           # 2,048 sequences of 512 tokens
    last_share: float = 0.0         # one length throughout
    steps: int = 740_000
    lr: float = 1.5e-3
    optimizer: str = "lamb"
    transfer: str = "progressive"   # progressive, joint, auxiliary, answers, alone
    transfer_share: float = 24 / 74     # of the steps: 24 layers, 10,000 each
    phase: int = 0                  # the layer in hand; stages set it
    pull: float = 3.0               # multiple of the rate by which this layer moves
    decomposed: bool = False        # compare states as the released code does, not as the paper
    gold: float = 0.5               # share of the right word in what the student is to answer
    teacher_steps: int = 500_000    # of a teacher that is trained first

    LIMITS = dict(bert.Config.LIMITS, embedding=(1, 10**5), inner=(1, 10**5), mlps=(1, 1000),
                  transfer_share=(0, 1), gold=(0, 1), pull=(0, 100), teacher_steps=(1, 10**9))

    def __post_init__(self):
        super().__post_init__()
        if self.bottleneck and self.inner % self.heads:
            raise Error(f"inner: {self.inner} is not divisible by {self.heads} heads")
        if self.norm not in ("no_norm", "layer_norm"):
            raise Error(f"norm: {self.norm!r}, but this model knows no_norm, layer_norm")
        if self.transfer not in transfer.TRANSFERS:
            raise Error(f"transfer: {self.transfer!r}, but these are known: "
                        f"{', '.join(transfer.TRANSFERS)}")

    def stages(self):
        return transfer.stages(self)


class Embeddings(Module):
    """Three words wide, then as wide as the hidden states.  [T, 3E] -> [T, H]"""

    def __init__(self, c, init):
        self.config = c
        self.word = init.normal((c.vocab, c.embedding))
        new = init.waves if c.near else init.normal
        self.position = new((c.positions, c.width))
        self.type = init.normal((c.types, c.width))
        words = 3 if c.trigram else 1
        self.transform = Linear(init, words * c.embedding, c.width)
        self.norm = norm_of(c, init, c.width, EPS)

    def forward(self, b):
        c = self.config
        if c.trigram:
            x = self.transform(self.trigrams(b))
        else:
            x = fused.embed(self.word, ids=(b.ids,))
            if c.embedding != c.width:              # else the matrix is there, but idle
                x = self.transform(x)
        where = fused.embed(self.position, self.type, ids=(b.positions, b.types))
        return dropout(self.norm(x, residual=where), c.dropout)

    def trigrams(self, b):
        """The next word, the word itself and the one before, side by side."""
        ids = b.ids.astype(np.int64).repeat(3).reshape(-1, 3)
        if "next" in b.more:
            ids[:, 0], ids[:, 2] = b.more["next"], b.more["previous"]
        else:
            firsts = b.firsts()
            ids[:-1, 0], ids[1:, 2] = b.ids[1:], b.ids[:-1]
            # Before a sequence's first word stands another's last, or that of all (row -1).
            ids[firsts - 1, 0] = ids[firsts, 2] = -1
        ids = ids.reshape(-1)
        x = fused.embed(self.word, ids=(ids.clip(0),))                          # [3T, E]
        x = x * (ids >= 0)[:, None]
        return x.reshape(len(b.ids), 3 * self.config.embedding)


class Pooler(heads.Pooler):
    """BERT's, or the state of the first token as it is."""

    def __init__(self, c, init, model):
        self.dense = Linear(init, c.width, c.width) if c.pooled else None

    def forward(self, first):
        return super().forward(first) if self.dense else first


class MaskedHead(bert.MaskedHead):
    """Words are narrower than the states that they are compared with: each has `more` numbers here.

    Here a norm is a norm, whatever stands in the layers.
    """

    def __init__(self, c, init, model):
        if c.embedding > c.width:
            raise Error(f"embedding: {c.embedding}, but words to guess can be no wider than the "
                        f"hidden states (width {c.width})")
        self.config, self.table = c, model.embeddings.word
        self.transform = Linear(init, c.width, c.width)
        self.norm = Norm(init, c.width, c.eps)
        self.more = init.normal((c.width - c.embedding, c.vocab))
        self.bias = init.constant((c.vocab,), 0)

    @property
    def word(self):
        """[V, H], put together as [H, V]: then only the smaller part has to be turned."""
        columns = ops.concat(ops.transpose(self.table), self.more)
        return ops.transpose(columns)


class Model(bert.Model):
    Embeddings, Layer = Embeddings, Layer
    HEADS = dict(bert.Model.HEADS, pooler=Pooler, mlm=MaskedHead)
    PREFIX = "mobilebert."
    LAYER = "mobilebert.encoder.layer.#."
    NAMES = {
        **bert.Model.NAMES, **renamed(bert.Model.NAMES, bert.Model.PREFIX, "mobilebert."),
        "embeddings.transform.*": "mobilebert.embeddings.embedding_transformation.*",
        "layers.#.attention.narrow.dense.*": LAYER + "bottleneck.input.dense.*",
        "layers.#.attention.narrow.norm.*": LAYER + "bottleneck.input.LayerNorm.*",
        "layers.#.attention.shared.dense.*": LAYER + "bottleneck.attention.dense.*",
        "layers.#.attention.shared.norm.*": LAYER + "bottleneck.attention.LayerNorm.*",
        "layers.#.attention.qk.*": [LAYER + "attention.self.query.*",
                                    LAYER + "attention.self.key.*"],
        "layers.#.attention.value.*": LAYER + "attention.self.value.*",
        "layers.#.mlps.#.up.*": LAYER + "ffn.#.intermediate.dense.*",
        "layers.#.mlps.#.down.*": LAYER + "ffn.#.output.dense.*",
        "layers.#.mlps.#.norm.*": LAYER + "ffn.#.output.LayerNorm.*",
        "layers.#.widen.dense.*": LAYER + "output.bottleneck.dense.*",
        "layers.#.widen.norm.*": LAYER + "output.bottleneck.LayerNorm.*",
        "mlm.more": "cls.predictions.dense.weight",
    }

    def __init__(self, c, init, heads=None):
        heads = self.PRETRAINING if heads is None else heads
        # A summary without weights is in no file, and there for whoever looks.
        super().__init__(c, init, heads if c.pooled else ("pooler", *heads))

    def pack(self, *given, pad_like_hf=False):
        """pad_like_hf: neighbours are those in the padded array, whatever the mask says."""
        if not pad_like_hf:
            return super().pack(*given)
        ids = padded.integers("input_ids", given[0])
        around = np.pad(ids, [(0, 0), (1, 1)], constant_values=-1)          # [B, S + 2]
        neighbours = dict(next=around[:, 2:], previous=around[:, :-2])
        return padded.pack(self.config, *given, more=neighbours)


# ---- the published file's config.json

HF_TYPES = "mobilebert",
HF_CONFIG = dict(bert.HF_CONFIG, embedding="embedding_size", trigram="trigram_input",
                 bottleneck="use_bottleneck", inner="intra_bottleneck_size",
                 shared="key_query_shared_bottleneck",
                 bottleneck_attention="use_bottleneck_attention", mlps="num_feedforward_networks",
                 norm="normalization_type", pooled="classifier_activation")
HF_DEFAULTS = dict(pooled=True)
HF_CLASSES = {"MobileBertModel": ("pooler",), "MobileBertForMaskedLM": ("mlm",),
              "MobileBertForPreTraining": ("pooler", "mlm", "nsp"),
              "MobileBertForNextSentencePrediction": ("pooler", "nsp"), **tasks_of("MobileBert")}
HF_REFUSED = dict(tie_word_embeddings=True)
HF_TIED = {"cls.predictions.decoder.weight": "mobilebert.embeddings.word_embeddings.weight",
           "cls.predictions.decoder.bias": "cls.predictions.bias"}
HF_IGNORED = r"mobilebert\.embeddings\.position_ids"

class Objective(transfer.Objective):
    @staticmethod
    def teacher_of(c):
        """IB-BERT: wider inside than outside, with true norms, and trained as BERT is."""
        if c.transfer == "alone":
            return None
        dropout = 0.0 if c.near else 0.1
        return "mobilebert", replace(
            c, inner=2 * c.width, hidden=8 * c.width, shared=False, bottleneck_attention=False,
            mlps=1, norm="layer_norm", pooled=True, activation="gelu_new", dropout=dropout,
            head_dropout=dropout, transfer="alone", steps=c.teacher_steps)


# Of narrow models: fewer steps for the layers, and smaller ones.
SMALL = dict(bert.SMALL, transfer_share=0.4, pull=1.0, optimizer="adamw", tokens=1024)
SIZES = {
    "smoke": Config(vocab=2048, layers=2, width=64, hidden=128, embedding=32, inner=32, mlps=2,
                    positions=128, steps=250, teacher_steps=350, warmup=25, lr=5e-3, **SMALL),
    "tiny": Config(vocab=4096, layers=4, width=128, hidden=256, embedding=64, inner=64, mlps=2,
                   positions=128, steps=800, teacher_steps=800, warmup=80, lr=3e-3, **SMALL),
    "base": Config(),
    "published-tiny": Config(shared=False, bottleneck_attention=True, mlps=2),
    "teacher": Config(hidden=4096, inner=1024, shared=False, mlps=1, norm="layer_norm", pooled=True,
                      activation="gelu_new", dropout=0.1, head_dropout=0.1,     # IB-BERT-large
                      transfer="alone", steps=500_000),
}
