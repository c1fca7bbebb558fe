"""ModernBERT (Warner, Chaffin, Clavié, Weller, Hallström and others, 2024): what six years of
language models taught, brought back to an encoder that reads 8,192 tokens.

Unlike BERT: no position is added to the words; queries and keys are turned by an angle that grows
with the token's place, so scores depend on distances (RoPE). Every third layer is global; in the
others a token sees 64 neighbours to each side, and work grows with the length, not its square.
Norms stand before attention and MLP, so a path of plain sums leads from the words to the last norm.
An MLP's activation is a gate (GeGLU). There are no segments, no biases but those of the decoder and
classifiers, and no shifts in norms. There is no next-sentence task, and twice as much is hidden.
parts/growing.py has how it was trained: batches that grow, and long texts at the end.
"""
from dataclasses import dataclass, replace

import numpy as np

from ..engine import fused, ops
from ..engine.nn import Linear, Module, Norm, dropout
from ..text import corrupt, segments
from ..text.bytebpe import ByteBPE
from . import bert
from .parts import growing, heads, padded
from .parts.layer_kinds import check, from_published, to_published  # noqa: F401
from .parts.names import tasks_of
from .parts.rotary import Layer, turns


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are ModernBERT-base and its recipe."""
    vocab: int = 50368
    layers: int = 22
    hidden: int = 1152              # behind the gate; before it there are twice as many
    positions: int = 8192           # no table: just as far as it was trained
    types: int = 0                  # no segments
    eps: float = 1e-5
    dropout: float = 0.1            # of what attention adds to the hidden states
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    mlp_dropout: float = 0.0        # behind the gate
    head_dropout: float = 0.0
    pattern: str = "gll"            # global and local layers, repeated as often as needed
    window: int = 128               # local layers see half of it to each side
    global_theta: float = 160_000.0     # base of the angles in global layers: larger turns slower
    local_theta: float = 10_000.0   # in local ones
    pooling: str = "cls"            # a sequence's classifier reads its first token; mean: all
    # the data
    seq: int = 1024
    masked: float = 0.3
    held_masked: float = 0.15       # of held-out text, so that models can be compared
    copies: int = 0                 # masked anew in every pass
    tokens: int = 8192              # in a micro-batch, filled with sequences to the brim
    # the optimisation; shares are of the steps, behind them the paper's tokens
    first_accumulate: int = 96      # 768 sequences in the first steps,
    growth: float = 0.04177         # more and more for so long: 50 billion tokens,
    accumulate: int = 576           # and 4,608 of them, or as many tokens, from then on
    steps: int = 435_480            # 2 trillion
    warmup: int = 2_764             # 3 billion, in batches that are still small
    lr: float = 8e-4                # for 1.7 trillion
    again_lr: float = 5e-5          # the rate of a second part of that time,
    again_share: float = 0.0        # if there is one
    last_seq: int = 8192            # long texts at the end,
    last_share: float = 0.146       # 300 billion,
    last_lr: float = 3e-4           # at a lower rate,
    ending: float = 0.02433         # which in the last 50 billion falls to 0 as 1 - sqrt does
    first_theta: float = 10_000.0   # global_theta while texts are short
    schedule: str = "trapezoidal"
    optimizer: str = "stableadamw"
    beta2: float = 0.98
    correct: bool = True
    decay: float = 1e-5
    clip: float = 0.0               # none: the optimiser itself shortens steps

    LIMITS = dict(bert.Config.LIMITS, types=(0, 0), window=(1, 10**7), global_theta=(1, 10**9),
                  local_theta=(1, 10**9), embedding_dropout=(0, 0.999), mlp_dropout=(0, 0.999),
                  first_theta=(1, 10**9), first_accumulate=(1, 10**6), held_masked=(0, 0.999),
                  growth=(0, 1), again_share=(0, 0.999), ending=(0, 1))

    def __post_init__(self):
        super().__post_init__()
        check(self)
        growing.check(self)

    @staticmethod
    def vocabulary(texts, size, progress=None):
        """Pieces of bytes, with BERT's names of special tokens."""
        return ByteBPE.train(texts, size, SPECIAL, progress=progress)

    def stages(self):
        return growing.stages(self)

    size = property(lambda self: self.width // self.heads)              # D
    kinds = property(lambda self: [self.pattern[i % len(self.pattern)] for i in range(self.layers)])


SPECIAL = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


class Embeddings(Module):                    # LayerNorm(word)
    def __init__(self, c, init):
        self.config = c
        self.word = init.normal((c.vocab, c.width))
        self.norm = Norm(init, c.width, c.eps, shift=False)

    def forward(self, b):
        x = self.norm(fused.embed(self.word, ids=[b.ids]))              # [T, H]
        return dropout(x, self.config.embedding_dropout)


class Dense(heads.Head):
    """Stands before the decoder; a task's classifier that takes the decoder's place keeps it."""

    def __init__(self, c, init, model):
        self.dense = Linear(init, c.width, c.width, bias=False)
        self.norm = Norm(init, c.width, c.eps, shift=False)

    def forward(self, x):
        return self.norm(fused.gelu(self.dense(x)))


class Masked(bert.MaskedHead):
    def __init__(self, c, init, model):
        self.word, self.features = model.embeddings.word, model.head    # shared, so counted once
        self.bias = init.constant((c.vocab,), 0)


class Sequence(heads.Sequence):
    def __init__(self, c, init, model):
        self.config, self.pooler = c, model.head
        self.classifier = Linear(init, c.width, self.labels(c))

    def select(self, x, inputs):
        """The first token's state, or the mean of all: to the first, local layers are blind."""
        if self.config.pooling == "cls":
            return super().select(x, inputs)
        cuts = inputs.cuts.tolist()
        parts = [ops.part(x, lo=lo, hi=hi) for lo, hi in zip(cuts, cuts[1:]) if lo < hi]
        return ops.concat(*[part.mean(0, keepdims=True) for part in parts] or [x])


class Choice(Sequence):
    labels = staticmethod(heads.Choice.labels)


class Token(heads.Token):
    def __init__(self, c, init, model):
        super().__init__(c, init, model)
        self.head = model.head

    def forward(self, x):
        return super().forward(self.head(x))


class Question(Token):
    def __init__(self, c, init, model):
        super().__init__(replace(c, labels=2), init, model)


class Model(bert.Model):
    Embeddings = Embeddings
    HEADS = dict(head=Dense, mlm=Masked, sequence=Sequence, choice=Choice, token=Token,
                 question=Question)
    PRETRAINING = "head", "mlm"
    PREFIX = "model."
    NAMES = {
        "embeddings.word": "model.embeddings.tok_embeddings.weight",
        "embeddings.norm.*": "model.embeddings.norm.*",
        "layers.#.attention.norm.*": "model.layers.#.attn_norm.*",
        "layers.#.attention.qkv.*": "model.layers.#.attn.Wqkv.*",
        "layers.#.attention.out.*": "model.layers.#.attn.Wo.*",
        "layers.#.mlp.norm.*": "model.layers.#.mlp_norm.*",
        "layers.#.mlp.up.*": "model.layers.#.mlp.Wi.*",
        "layers.#.mlp.down.*": "model.layers.#.mlp.Wo.*",
        "norm.*": "model.final_norm.*",
        "head.dense.*": "head.dense.*",
        "head.norm.*": "head.norm.*",
        "mlm.bias": "decoder.bias",
        **{f"{task}.classifier.*": "classifier.*" for task in heads.TASKS},
    }

    def __init__(self, c, init, heads=None):
        super().__init__(c, init, heads)
        self.norm = Norm(init, c.width, c.eps, shift=False)

    def make_layers(self, c, init):
        return [Layer(c, init, number) for number in range(c.layers)]

    def encode(self, b, rows=None, states=None):
        known = turns(self.config, b, self.embeddings.word.dtype)       # once for all layers
        b = b._replace(more=dict(b.more, turns=known))
        return self.norm(super().encode(b, rows, states))

    def pack(self, input_ids, attention_mask, token_type_ids):
        return padded.pack(self.config, input_ids, attention_mask, token_type_ids, holes=False)


# ---- the published file's config.json

HF_TYPES = "modernbert",
HF_CONFIG = dict(vocab="vocab_size", layers="num_hidden_layers", heads="num_attention_heads",
                 width="hidden_size", hidden="intermediate_size",
                 positions="max_position_embeddings", eps="norm_eps",
                 activation="hidden_activation", dropout="attn_out_dropout_prob",
                 attention_dropout="attention_dropout", embedding_dropout="embedding_dropout",
                 mlp_dropout="mlp_dropout", head_dropout="classifier_dropout",
                 init="initializer_range", pattern="layer_types", window="local_attention",
                 global_theta="global_rope_theta", local_theta="local_rope_theta",
                 pooling="classifier_pooling")
HF_DEFAULTS = dict(head_dropout=0.0)
HF_CLASSES = {"ModernBertModel": (), "ModernBertForMaskedLM": ("head", "mlm"),
              **{name: ("head", *has) for name, has in tasks_of("ModernBert", pooler=()).items()}}
HF_REFUSED = dict(tie_word_embeddings=True, decoder_bias=True, attention_bias=False, mlp_bias=False,
                  norm_bias=False, classifier_bias=False, classifier_activation="gelu",
                  rope_scaling=None)
HF_TIED = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}
HF_IGNORED = "(?!)"                 # nothing
# Of a new model: transformers' defaults lie beyond a small vocabulary.
HF_NEW = dict(pad_token_id=0, **dict.fromkeys(["bos_token_id", "eos_token_id", "cls_token_id",
                                               "sep_token_id"]))


# ---- the objective

class Objective(bert.Objective):
    """Hidden words alone. Each token is hidden or not by a coin of its own, [CLS] and [SEP] too."""
    TASKS = dict(mlm="mlm")

    def plan(self, documents, copy):
        seed = self.seed, copy
        return segments.single_blocks(self.corpus, documents, self.config.seq, seed, self.tokenizer)

    def noise(self, s, copy):
        c, mask = self.config, self.tokenizer.mask
        coin, kind, other, _ = self.draws(s, copy)                                      # [T] each
        held = np.isin(s.keys[:, 0], self.corpus.held)                                  # [S]
        share = np.where(held, c.held_masked, c.masked)[s.sequence]                     # [T]
        hidden = np.flatnonzero(coin < share * 2.0 ** 32)                               # [K]
        if not len(hidden):                             # something is to be learnt
            hidden = np.array([np.argmin(coin)])
        return corrupt.eighty_ten_ten(s.ids, hidden, kind, other, mask, c.vocab), hidden


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=128, positions=128, window=16,
                 steps=700, warmup=70, lr=5e-3, last_lr=2e-3, ending=0.1, first_accumulate=1,
                 growth=0.1, **dict(bert.SMALL, near=False, last_seq=64, last_share=0.2)),
    tiny=Config(vocab=8192, layers=4, heads=2, width=128, hidden=256, window=32, steps=4000,
                warmup=200, lr=3e-3, last_lr=1e-3, ending=0.1, first_accumulate=1, growth=0.1,
                **dict(bert.SMALL, near=False, last_seq=128, last_share=0.2)),
    base=Config(),
    large=Config(layers=28, heads=16, width=1024, hidden=2624, first_accumulate=56, accumulate=616,
                 growth=0.00914, steps=397_990, warmup=1_454, lr=5e-4, again_share=0.39833,
                 last_share=0.14937, last_lr=5e-5, ending=0.0249),
)
