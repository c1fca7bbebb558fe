"""ERNIE (Zhang, Han, Liu, Jiang, Sun, Liu; Tsinghua, 2019) reads a text together with what a graph
of knowledge knows of the things named in it. (Baidu's ERNIE of the same spring is another model.)

Unlike BERT: beside the words' states runs a narrow second stream, one state for each mention of an
entity. Layers are of three kinds: `sim` is BERT's own, and entities wait; in `mix` the two streams
meet in the MLP; in `norm` the entities look at each other first. Where the streams meet, let w be
the state of a mention's first word and e that of its entity:

    h = GELU(Wt w + We e + b)       w' = LayerNorm(w + Vt h)        e' = LayerNorm(e + Ve h)

All other words have no e. So the entities of a batch stand in a row of their own [E, He] with cuts
of their own, the same op serves their attention, and nothing has to be masked. The first token of a
sequence has a place among them, which starts with zeros. What an entity is, its vector says (TransE
on the graph, frozen, an input). A third task: which of some candidates is this word's entity?
"""
from dataclasses import dataclass, replace

import numpy as np

from ..engine import autograd, fused, ops
from ..engine.nn import Linear, Norm
from ..error import Error
from . import bert
from .parts import heads, padded


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are the published model and its recipe."""
    kinds: str = "sim sim sim sim sim mix norm norm norm norm norm norm"    # of the layers
    entity_width: int = 100         # He, of the entities' vectors and states
    entity_heads: int = 4
    seq: int = 256
    predictions: int = 40
    tokens: int = 8192
    accumulate: int = 16            # 512 sequences of 256 tokens
    lr: float = 5e-5

    LIMITS = dict(bert.Config.LIMITS, entity_width=(1, 10**5), entity_heads=(1, 10**4))

    def __post_init__(self):
        super().__post_init__()
        kinds = self.kinds.split()
        if len(kinds) != self.layers or set(kinds) - {"sim", "mix", "norm"}:
            raise Error(f"kinds: {self.kinds!r}, but for {self.layers} layers so many words are "
                        "wanted, each of them sim, mix or norm")
        if self.entity_width % self.entity_heads:
            raise Error(f"entity_width: {self.entity_width} is not divisible by "
                        f"{self.entity_heads} heads (entity_heads)")


class Meeting(bert.MLP):
    """The MLP where words and entities learn from each other."""

    def __init__(self, c, init):
        super().__init__(c, init)
        self.up_entity = Linear(init, c.entity_width, c.hidden)
        self.down_entity = Linear(init, c.hidden, c.entity_width)
        self.norm_entity = Norm(init, c.entity_width, c.eps)

    def forward(self, x, e, at):
        """w' and e'. x [R, H]; e [N, He], of the rows `at` of x."""
        p = self.config.dropout
        more = fused.linear(e, self.up_entity.weight)                   # [N, He] -> [N, F]
        h = fused.linear(x, self.up.weight) + ops.put(more, index=at, rows=len(x))
        # As the authors' code has it, words without an entity get the bias of its part, too.
        h = bert.activate(self.config, h, self.up.bias + self.up_entity.bias)
        y = fused.linear(h, self.down.weight)                           # [R, F] -> [R, H]
        y = self.norm(y, residual=x, bias=self.down.bias, p=p)
        h = ops.take(h, index=at)
        d = fused.linear(h, self.down_entity.weight)                    # [N, F] -> [N, He]
        return y, self.norm_entity(d, residual=e, bias=self.down_entity.bias, p=p)


class Layer(bert.Layer):
    def __init__(self, c, init, kind):
        self.kind, self.attention = kind, bert.Attention(c, init)
        self.mlp = bert.MLP(c, init) if kind == "sim" else Meeting(c, init)
        narrow = replace(c, width=c.entity_width, heads=c.entity_heads, near=False)
        self.entities = bert.Attention(narrow, init) if kind == "norm" else None

    def forward(self, x, e, b, mentions, rows=None):
        """Both streams, one layer on. mentions: a batch of their own, whose ids are the tokens [E]
        that have an entity."""
        if self.kind == "sim":
            return super().forward(x, b, rows), e
        x, at = self.attention(x, b, rows), mentions.ids
        if self.kind == "norm":
            e = self.entities(e, mentions)
        if rows is not None:
            chosen = np.flatnonzero(np.isin(at, rows))
            e, at = ops.take(e, index=chosen), np.searchsorted(rows, at[chosen])
        return self.mlp(x, e, at)


def again(layer, x, e, *more):
    """The layer, computed again by backward: one Tensor there, so the streams lie end to end."""
    def both(x, e):
        return ops.concat(*[y.reshape(-1) for y in layer(x, e, *more)])
    y = autograd.recompute(both, x, e)
    entities = ops.part(y, lo=x.size).reshape(*e.shape)
    return ops.part(y, hi=x.size).reshape(*x.shape), entities


class Entities(heads.Head):
    """What is held against the candidates' vectors.  [K, H] -> [K, He]"""
    forward = bert.MaskedHead.features

    def __init__(self, c, init, model):
        self.config = c
        self.transform = Linear(init, c.width, c.entity_width)
        self.norm = Norm(init, c.entity_width, c.eps)

    def scores(self, x, candidates):
        """[K, H], [N, He] -> [K, N+1]. Column 0 is the zero vector's: none of them."""
        none = 0 * candidates.sum(0, keepdims=True)
        candidates = np.concatenate([none, candidates]).astype(x.dtype)
        return fused.linear(self(x), candidates)


class Model(bert.Model):
    HEADS = dict(bert.Model.HEADS, entity=Entities)
    PRETRAINING = "pooler", "mlm", "nsp", "entity"
    NAMES = {
        **bert.Model.NAMES,                                 # and the authors'
        "layers.#.entities.qkv.*": ["bert.encoder.layer.#.attention.self_ent.query.*",
                                    "bert.encoder.layer.#.attention.self_ent.key.*",
                                    "bert.encoder.layer.#.attention.self_ent.value.*"],
        "layers.#.entities.out.*": "bert.encoder.layer.#.attention.output_ent.dense.*",
        "layers.#.entities.norm.*": "bert.encoder.layer.#.attention.output_ent.LayerNorm.*",
        "layers.#.mlp.up_entity.*": "bert.encoder.layer.#.intermediate.dense_ent.*",
        "layers.#.mlp.down_entity.*": "bert.encoder.layer.#.output.dense_ent.*",
        "layers.#.mlp.norm_entity.*": "bert.encoder.layer.#.output.LayerNorm_ent.*",
        "entity.transform.*": "cls.predictions_ent.transform.dense.*",
        "entity.norm.*": "cls.predictions_ent.transform.LayerNorm.*"}

    def make_layers(self, c, init):
        return [Layer(c, init, kind) for kind in c.kinds.split()]

    def encode(self, b, rows=None, states=None):
        x = self.embeddings(b)                                              # [T, H]
        at = np.union1d(b.firsts(), np.flatnonzero(b.more["entity_ids"] >= 0))
        mentions = padded.Packed(at, None, None, np.searchsorted(at, b.cuts))
        e = autograd.Tensor(b.more["entity_vectors"][at])                   # [E, He]
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            if states is not None:
                states.append(x)
            # What the last layer keeps is used up at once: to compute it again would save nothing.
            run = again if self.config.recompute and not last else Layer.__call__
            x, e = run(layer, x, e, b, mentions, rows if last else None)
        return x

    def pack(self, input_ids, attention_mask, token_type_ids, entity_ids=None, entity_vectors=()):
        """entity_ids [B, S]: at the first word of a mention, which of entity_vectors [N, He] is its
        entity's; -1 elsewhere."""
        c, n = self.config, len(entity_vectors)
        shape = n, c.entity_width
        if n and np.shape(entity_vectors) != shape:
            raise Error(f"entity_vectors: shape {np.shape(entity_vectors)}, but {shape} is wanted")
        table = np.zeros((n + 1, c.entity_width), self.embeddings.word.dtype)
        table[:n] = np.reshape(entity_vectors, shape)       # row -1, of no entity, stays zero
        b = padded.pack(c, input_ids, attention_mask, token_type_ids,
                        more=dict(entity_ids=entity_ids))
        ids = b.more.get("entity_ids", np.full(len(b.ids), -1))             # [T]
        bad = (ids < -1) | (ids >= n)
        if bad.any():
            raise Error(f"entity_ids: {ids[bad][0]}, but entity_vectors has {n} rows, and a word "
                        "without an entity has -1")
        return b._replace(more=dict(entity_ids=ids, entity_vectors=table[ids]))


# ---- config.json: the authors' spelling; transformers has no class for it

HF_TYPES, HF_DEFAULTS = ("ernie_thu",), {}
HF_CONFIG = dict(bert.HF_CONFIG, kinds="layer_types", entity_width="entity_size",
                 entity_heads="num_attention_heads_ent")
HF_CLASSES = {name.replace("Bert", "ErnieThu"): has for name, has in bert.HF_CLASSES.items()}
HF_CLASSES["ErnieThuForPreTraining"] = Model.PRETRAINING
HF_REFUSED, HF_TIED, HF_IGNORED = bert.HF_REFUSED, bert.HF_TIED, bert.HF_IGNORED


def from_published(settings, where):
    """There layer_types is a list of words, here they stand in one text."""
    kinds = settings.get("layer_types")
    listed = isinstance(kinds, list)
    return dict(settings, layer_types=" ".join(map(str, kinds))) if listed else settings


def to_published(config, values):
    return dict(values, layer_types=config.kinds.split())


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=3, heads=4, width=64, hidden=256, positions=128,
                 kinds="sim mix norm", entity_width=16, steps=2500, warmup=200, lr=5e-3,
                 **bert.SMALL),
    base=Config())
