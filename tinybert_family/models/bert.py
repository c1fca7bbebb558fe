"""BERT (Devlin, Chang, Lee, Toutanova, 2018): a stack of Transformer layers that reads a text
from both sides at once, trained to guess words that were hidden from it and to tell whether
one passage follows another.

Every other file of this folder is read against this one. Tokens of all sequences stand in one row
[T, H]; `cuts` tells them apart. Letters: T tokens, S sequences, H width, A heads, F hidden, V
vocabulary, K masked tokens.
"""
from dataclasses import dataclass

import numpy as np

from ..engine import autograd, fused, ops
from ..engine.nn import Linear, Module, Norm, dropout, dropout_key
from ..engine.optim import OPTIMIZERS, SCHEDULES
from ..error import Error
from ..text import corrupt, segments
from ..text.wordpiece import WordPiece
from .parts import heads, objective, padded
from .parts.heads import Head
from .parts.names import in_its_file, tasks_of
from .parts.stages import lengthening


@dataclass(frozen=True)
class Config:
    """Architecture and recipe, from the paper and its released code; the defaults are BERT-base."""
    # the network
    vocab: int = 30522              # word pieces
    layers: int = 12
    heads: int = 12
    width: int = 768                # H, of the hidden states
    hidden: int = 3072              # F, inside a layer's MLP
    positions: int = 512            # the longest sequence
    types: int = 2                  # segments: the first passage and the second
    eps: float = 1e-12              # in LayerNorm
    activation: str = "gelu"        # gelu (exact), gelu_new (tanh form), relu
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1       # before the classifier of a task
    labels: int = 2                 # classes of a task
    init: float = 0.02              # standard deviation of new weights; 0 means 1 / sqrt(fan-in)
    near: bool = False              # begin by looking at neighbours; see Attention
    recompute: bool = False         # keep nothing inside layers: less memory, a third more work
    # the data
    seq: int = 128                  # tokens in a training sequence
    masked: float = 0.15            # share of the tokens to guess
    predictions: int = 20           # at most so many in a sequence
    short: float = 0.1              # share of sequences cut shorter: short inputs come too
    copies: int = 10                # of the corpus, masked once each; 0: masked anew in every pass
    last_seq: int = 512             # the length of the last sequences (no more than positions),
    last_share: float = 0.1         # and their share of the steps
    # the optimisation
    tokens: int = 2048              # in a micro-batch
    accumulate: int = 16            # micro-batches in a step: 256 sequences of 128 tokens
    steps: int = 1_000_000
    warmup: int = 10_000
    lr: float = 1e-4
    schedule: str = "linear"
    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-6
    correct: bool = False           # BERT's Adam does not divide its moments by 1 - beta^t
    decay: float = 0.01             # of weight matrices; never of biases and norms
    clip: float = 1.0               # longest gradient

    LIMITS = dict(vocab=(1, 10**7), layers=(1, 1000), heads=(1, 10**4), width=(1, 10**5),
                  hidden=(1, 10**6), positions=(1, 10**7), types=(1, 1000), labels=(1, 10**6),
                  seq=(1, 10**7), predictions=(1, 10**7), copies=(0, 10**6), tokens=(1, 10**8),
                  last_seq=(1, 10**7), accumulate=(1, 10**6), steps=(1, 10**9), warmup=(0, 10**9))

    def __post_init__(self):
        for name, (least, most) in self.LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise Error(f"{name}: {getattr(self, name)}, but it must be at least {least} "
                            f"and at most {most:,}")
        if self.width % self.heads:
            below = self.width // self.heads * self.heads
            near = [str(n) for n in (below, below + self.heads) if n]
            raise Error(f"width: {self.width} is not divisible by {self.heads} heads; "
                        f"nearest are {' and '.join(near)}")
        if self.activation not in ACTIVATIONS:
            raise Error(f"activation: {self.activation!r}, but this model knows "
                        f"{', '.join(ACTIVATIONS)}")
        for name in ("dropout", "attention_dropout", "head_dropout", "masked", "short",
                     "last_share"):
            if not 0 <= getattr(self, name) < 1:
                raise Error(f"{name}: {getattr(self, name)}, but it must be at least 0 and below 1")
        for name, known in dict(optimizer=OPTIMIZERS, schedule=SCHEDULES).items():
            if getattr(self, name) not in known:
                raise Error(f"{name}: {getattr(self, name)!r}, but these are known: "
                            f"{', '.join(known)}")
        if self.seq > self.positions:
            raise Error(f"seq: {self.seq} tokens, but the model has {self.positions} positions; "
                        f"use --seq {self.positions} or --positions {self.seq}")
        if self.seq > self.tokens:
            raise Error(f"tokens: {self.tokens} in a micro-batch, fewer than the {self.seq} "
                        "of one sequence (seq)")

    @staticmethod
    def decays(name, tensor):
        """Does weight decay pull at this parameter?"""
        return tensor.ndim > 1

    @staticmethod
    def vocabulary(texts, size, progress=None):
        """The tokenizer that a new model learns from its text."""
        return WordPiece.train(texts, size, progress=progress)

    def stages(self):
        """What the run goes through: nine tenths with short sequences, the rest with long ones."""
        return lengthening(self)


ACTIVATIONS = dict(gelu=dict(form="erf"), gelu_new=dict(form="tanh"),
                   gelu_pytorch_tanh=dict(form="tanh"), relu=None)


def activate(c, x, bias):
    """The activation of x + bias."""
    form = ACTIVATIONS[c.activation]
    return fused.relu(x, bias) if form is None else fused.gelu(x, bias, **form)


class Embeddings(Module):
    """LayerNorm(word + position + type)"""

    def __init__(self, c, init, width=None):
        self.config = c
        width = width or c.width
        self.word = init.normal((c.vocab, width))
        new = init.waves if c.near else init.normal
        self.position = new((c.positions, width))
        self.type = init.normal((c.types, width))
        self.norm = Norm(init, width, c.eps)

    def forward(self, b):
        ids = b.ids, b.positions, b.types                               # [T] each
        x = fused.embed(self.word, self.position, self.type, ids=ids)   # [T, H]
        return dropout(self.norm(x), self.config.dropout)


class Attention(Module):
    """Every token asks (q) every token of its sequence (k) for what it holds (v).

    With learned positions a small model takes long to find out that neighbours matter most, and
    until then it can only guess by frequency. `near` (our recipe for narrow models, not the
    paper's) begins where that is known: positions are waves and keys equal queries, so a token is
    most like the tokens around it. All of it is then trained as usual.
    """

    def __init__(self, c, init):
        self.config = c
        self.qkv = Linear(init, c.width, 3 * c.width)
        if c.near and init.rng:
            self.qkv.weight.data[c.width:2 * c.width] = self.qkv.weight.data[:c.width]
        self.out = Linear(init, c.width, c.width)
        self.norm = Norm(init, c.width, c.eps)

    def ask(self, x, b, rows=None):
        """What the attention op is given: Tensors, and settings."""
        c = self.config
        how = dict(cuts=b.cuts, heads=c.heads, rows=rows)
        if rows is None:
            return [self.qkv(x)], how                               # [T, H] -> [T, 3H]
        q = self.qkv.rows(ops.take(x, index=rows), 0, c.width)      # [R, H]
        return [self.qkv.rows(x, c.width, None), q], how

    def mix(self, x, b, rows):
        tensors, how = self.ask(x, b, rows)
        p = self.config.attention_dropout
        return fused.attention(*tensors, **how, p=p, key=dropout_key(p))        # [R, H]

    def scores(self, x, b):
        """What each token thinks of each before the softmax: [T, A, P], P the longest sequence."""
        tensors, how = self.ask(x, b)
        return fused.scores(*tensors, **how)

    def forward(self, x, b, rows=None):
        y = fused.linear(self.mix(x, b, rows), self.out.weight)
        asking = x if rows is None else ops.take(x, index=rows)
        return self.norm(y, residual=asking, bias=self.out.bias, p=self.config.dropout)


class MLP(Module):
    def __init__(self, c, init):
        self.config = c
        self.up = Linear(init, c.width, c.hidden)
        self.down = Linear(init, c.hidden, c.width)
        self.norm = Norm(init, c.width, c.eps)

    def forward(self, x):
        h = fused.linear(x, self.up.weight)                 # [T, H] -> [T, F]
        h = activate(self.config, h, self.up.bias)
        y = fused.linear(h, self.down.weight)               # [T, F] -> [T, H]
        return self.norm(y, residual=x, bias=self.down.bias, p=self.config.dropout)


class Layer(Module):
    Attention, MLP = Attention, MLP

    def __init__(self, c, init):
        self.attention, self.mlp = self.Attention(c, init), self.MLP(c, init)

    def forward(self, x, b, rows=None):
        return self.mlp(self.attention(x, b, rows))


class MaskedHead(Head):
    """From a hidden state to a score for every word: the decoder is the word table itself."""

    def __init__(self, c, init, model):
        self.config = c
        self.word = model.embeddings.word                   # shared, so counted once
        width = self.word.shape[1]
        self.transform = Linear(init, c.width, width)
        self.norm = Norm(init, width, c.eps)
        self.bias = init.constant((c.vocab,), 0)

    def features(self, x):
        y = fused.linear(x, self.transform.weight)
        return self.norm(activate(self.config, y, self.transform.bias))     # [K, H]

    def forward(self, x):
        return fused.linear(self.features(x), self.word, self.bias)         # [K, H] -> [K, V]

    def loss(self, x, labels, weights):
        return fused.vocabulary_loss(self.features(x), self.word, self.bias, labels=labels,
                                     weights=weights)


class Model(Module):
    Embeddings, Layer, Output = Embeddings, Layer, heads.Output     # what a variant may replace
    HEADS = dict(pooler=heads.Pooler, mlm=MaskedHead, nsp=heads.NextSentence, **heads.TASKS)
    PRETRAINING = "pooler", "mlm", "nsp"
    PREFIX = "bert."                # of the published names, in a file that holds heads too
    NAMES = {
        "embeddings.word": "bert.embeddings.word_embeddings.weight",
        "embeddings.position": "bert.embeddings.position_embeddings.weight",
        "embeddings.type": "bert.embeddings.token_type_embeddings.weight",
        "embeddings.norm.*": "bert.embeddings.LayerNorm.*",
        "layers.#.attention.qkv.*": ["bert.encoder.layer.#.attention.self.query.*",
                                     "bert.encoder.layer.#.attention.self.key.*",
                                     "bert.encoder.layer.#.attention.self.value.*"],
        "layers.#.attention.out.*": "bert.encoder.layer.#.attention.output.dense.*",
        "layers.#.attention.norm.*": "bert.encoder.layer.#.attention.output.LayerNorm.*",
        "layers.#.mlp.up.*": "bert.encoder.layer.#.intermediate.dense.*",
        "layers.#.mlp.down.*": "bert.encoder.layer.#.output.dense.*",
        "layers.#.mlp.norm.*": "bert.encoder.layer.#.output.LayerNorm.*",
        "pooler.dense.*": "bert.pooler.dense.*",
        "mlm.transform.*": "cls.predictions.transform.dense.*",
        "mlm.norm.*": "cls.predictions.transform.LayerNorm.*",
        "mlm.bias": "cls.predictions.bias",
        "nsp.classifier.*": "cls.seq_relationship.*",
        "sequence.classifier.*": "classifier.*",
        "choice.classifier.*": "classifier.*",
        "token.classifier.*": "classifier.*",
        "question.classifier.*": "qa_outputs.*",
    }

    def __init__(self, c, init, heads=None):
        self.config = c
        self.embeddings = self.Embeddings(c, init)
        self.layers = self.make_layers(c, init)
        for name in self.HEADS:
            wanted = name in (self.PRETRAINING if heads is None else heads)
            setattr(self, name, self.HEADS[name](c, init, self) if wanted else None)

    def make_layers(self, c, init):
        return [self.Layer(c, init) for _ in range(c.layers)]

    def encode(self, b, rows=None, states=None):
        """Hidden states of all tokens [T, H], or of the tokens `rows` alone [R, H].

        The last layer is then computed only where it is asked for; keys and values still come
        from every token. b: a padded.Packed. states: a list to which what goes into each layer is
        added.
        """
        x = self.embeddings(b)
        run = autograd.recompute if self.config.recompute else lambda layer, x: layer(x)
        for i, layer in enumerate(self.layers):
            asked = rows if i == len(self.layers) - 1 else None
            if states is not None:
                states.append(x)
            x = run(lambda x, layer=layer, asked=asked: layer(x, b, asked), x)
        return x

    def pack(self, input_ids, attention_mask, token_type_ids):
        """Padded arrays as packed ones, checked."""
        return padded.pack(self.config, input_ids, attention_mask, token_type_ids)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, **more):
        """Padded int arrays [B, S] or lists of lists in, an Output with Tensors out.

        The names are those of transformers. A model that chooses takes [B, C, S]: C candidates.
        """
        given = [input_ids, attention_mask, token_type_ids]
        choices = None
        if self.choice is not None:
            *given, choices = padded.side_by_side(*given)
            more = {name: padded.flat(name, x) for name, x in more.items()}
        inputs = self.pack(*given, **more)
        parts = [inputs] if autograd.recording() else inputs.pieces()
        x = ops.concat(*[self.encode(part) for part in parts])          # [T, H]
        return self.Output(self, x, inputs, choices)

    def parts(self):
        """The networks that are trained, by the folder of a run that each is kept in."""
        return {"": self}

    def published(self):
        """The same as they are published."""
        return self.parts()

    def settle(self):
        """The parts have weights as they are published: now they may depend on each other."""

    def bare(self):
        """Is there no head for pre-training?"""
        heads = [getattr(self, name) for name in self.HEADS if name != "pooler"]
        return not any(head and head.named() for head in heads)

    def named_parameters(self):
        """(name in the published file, Tensor with .grad) for every parameter.

        A fused matrix comes as the parts it is published in.
        """
        for name, tensor, rows in in_its_file(self):
            if rows is not None:
                whole, tensor = tensor, autograd.parameter(tensor.data[rows])
                tensor.node.grad = None if whole.grad is None else whole.grad[rows]
            yield name, tensor


# ---- the published file's config.json

HF_TYPES = "bert",                  # model_type; the first is the one that is written
HF_CONFIG = dict(vocab="vocab_size", layers="num_hidden_layers", heads="num_attention_heads",
                 width="hidden_size", hidden="intermediate_size",
                 positions="max_position_embeddings", types="type_vocab_size",
                 eps="layer_norm_eps", activation="hidden_act", dropout="hidden_dropout_prob",
                 attention_dropout="attention_probs_dropout_prob",
                 head_dropout="classifier_dropout", init="initializer_range")
HF_DEFAULTS = {}                    # where a file that is silent means other than our defaults
HF_CLASSES = {"BertModel": ("pooler",), "BertForMaskedLM": ("mlm",),
              "BertForPreTraining": ("pooler", "mlm", "nsp"),
              "BertForNextSentencePrediction": ("pooler", "nsp"), **tasks_of("Bert")}
HF_REFUSED = dict(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute",
                  tie_word_embeddings=True)
# One array each, under two names.
HF_TIED = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
           "cls.predictions.decoder.bias": "cls.predictions.bias"}
# 0, 1, 2, ... in old files; what TinyBERT was distilled through (tinybert.py has it).
HF_IGNORED = r"bert\.embeddings\.position_ids|(bert\.)?fit_dense\..*"


# ---- the objective

class Objective(objective.Objective):
    """Hidden words and next sentences, with BERT's own data construction.

    A variant overrides `plan` (which passages), `noise` (what is hidden, and how) or TASKS.
    """

    def plan(self, documents, copy):
        c, seed = self.config, (self.seed, copy)
        return segments.next_sentence_pairs(self.corpus, documents, c.seq, c.short, seed,
                                            self.tokenizer)

    def noise(self, s, copy):
        c, tok = self.config, self.tokenizer
        order, kind, other, _ = self.draws(s, copy)                                     # [T] each
        budget = corrupt.budget(np.diff(s.cuts), c.masked, c.predictions)               # [S]
        hidden = corrupt.choose(order, s.places >= 0, s.sequence, budget)               # [K]
        return corrupt.eighty_ten_ten(s.ids, hidden, kind, other, tok.mask, c.vocab), hidden


# ---- sizes: the published ones, and one for the first three minutes

# The recipe of narrow models.
SMALL = dict(init=0.0, near=True, dropout=0.0, attention_dropout=0.0, correct=True, beta2=0.98,
             seq=32, predictions=5, tokens=2048, accumulate=2, last_share=0.0)
SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                 steps=1600, warmup=120, lr=4e-3, **dict(SMALL, tokens=1024)),
    tiny=Config(layers=2, heads=2, width=128, hidden=512, steps=1500, warmup=150, lr=4e-3,
                **SMALL),
    mini=Config(layers=4, heads=4, width=256, hidden=1024, tokens=2048, accumulate=4,
                steps=20_000, warmup=1000, lr=1e-3),
    small=Config(layers=4, heads=8, width=512, hidden=2048, tokens=2048, accumulate=8,
                 steps=50_000, warmup=2000, lr=5e-4),
    medium=Config(layers=8, heads=8, width=512, hidden=2048),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096),
)
