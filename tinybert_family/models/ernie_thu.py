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
on the graph, frozen, an input).

A third task: which entity is this word's? Of the mentions, 5 % come with the vector of another
entity and 15 % with none; the answer is the right one, among the entities of the batch and the zero
vector, which belongs to none and is there to mislead.
"""
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..engine import autograd, fused, ops
from ..engine.nn import Linear, Norm
from ..error import Error
from ..text import corrupt, segments
from . import bert
from .parts import heads, padded


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are the published model and its recipe."""
    kinds: str = "sim sim sim sim sim mix norm norm norm norm norm norm"    # of the layers
    entity_width: int = 100         # He, of the entities' vectors and states
    entity_heads: int = 4
    from_bert: bool = True          # the stream of words begins as a trained BERT (--teacher)
    mentions: int = 3               # a sequence with fewer is left out
    strange: float = 0.05           # share of the mentions that come with another's vector,
    unlinked: float = 0.15          # and of those that come with none
    seq: int = 256
    predictions: int = 40
    copies: int = 1                 # the text is read once
    last_share: float = 0.0
    tokens: int = 8192
    accumulate: int = 16            # 512 sequences of 256 tokens
    steps: int = 34_000             # one pass over 4,500 million tokens
    warmup: int = 3400
    lr: float = 5e-5
    schedule: str = "constant"      # as the code has it; the paper's falls to zero

    LIMITS = dict(bert.Config.LIMITS, entity_width=(1, 10**5), entity_heads=(1, 10**4),
                  mentions=(0, 10**6), strange=(0, 1), unlinked=(0, 1))

    def __post_init__(self):
        super().__post_init__()
        kinds = self.kinds.split()
        if len(kinds) != self.layers or set(kinds) - {"sim", "mix", "norm"}:
            raise Error(f"kinds: {self.kinds!r}, but for {self.layers} layers so many words are "
                        "wanted, each of them sim, mix or norm")
        if self.entity_width % self.entity_heads:
            raise Error(f"entity_width: {self.entity_width} is not divisible by "
                        f"{self.entity_heads} heads (entity_heads)")
        if self.strange + self.unlinked > 1:
            raise Error(f"unlinked: {self.unlinked} of the mentions and {self.strange} of them "
                        "(strange) are more than all")


class Mentions(NamedTuple):
    """The second stream: E tokens that have an entity, and the first of every sequence."""
    at: np.ndarray          # [E] which tokens they are
    cuts: np.ndarray        # [S+1] which are whose
    vectors: np.ndarray     # [E, He] of their entities; zeros where there is none
    asked_at: np.ndarray = None     # [E] where they stand among the rows of the last layer


def mentions_of(entity_ids, vectors, firsts, cuts):
    """entity_ids [T]: at the first token of a mention the row of `vectors` [N, He] that is its
    entity's, -1 elsewhere."""
    at = np.union1d(firsts, np.flatnonzero(entity_ids >= 0))
    table = np.concatenate([vectors, np.zeros((1, vectors.shape[1]), vectors.dtype)])
    return Mentions(at, np.searchsorted(at, cuts), table[entity_ids[at]])


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
        """Both streams, one layer on. e [E, He]: the states of the mentions, a batch of their
        own."""
        if self.kind == "sim":
            return super().forward(x, b, rows), e
        x, at = self.attention(x, b, rows), mentions.at
        if self.kind == "norm":
            e = self.entities(e, mentions)
        if rows is not None and mentions.asked_at is not None:
            at = mentions.asked_at
        elif rows is not None:
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


class Among:
    """The head, asked about the candidates of a batch."""

    def __init__(self, head, candidates):
        self.head, self.candidates = head, candidates

    def __call__(self, x):
        return self.head.scores(x, self.candidates)

    def loss(self, x, labels, weights):
        return fused.cross_entropy(self(x), labels=labels, weights=weights)


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
        mentions = b.more.get("mentions")
        if mentions is None:                    # a user's batch: vectors stand beside the tokens
            at = np.arange(len(b.ids))
            ids = np.where(b.more["entity_ids"] >= 0, at, -1)
            mentions = mentions_of(ids, b.more["entity_vectors"], b.firsts(), b.cuts)
        e = autograd.Tensor(mentions.vectors.astype(x.dtype))               # [E, He]
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


# ---- the objective

class Objective(bert.Objective):
    """Hidden words and next sentences as in BERT, and whose the mentions are."""
    TASKS = dict(bert.Objective.TASKS, entity="entity")
    NEEDS = "graph",

    def __init__(self, c, *given, **more):
        super().__init__(c, *given, **more)
        vectors = self.knowledge.vectors
        if vectors is None or not len(vectors):
            raise Error("no entities are known in this text; give them with --graph FILE and "
                        "--entities FILE")
        if vectors.shape[1] != c.entity_width:
            raise Error(f"entity_width: {c.entity_width}, but the entities' vectors have "
                        f"{vectors.shape[1]} numbers; use --entity-width {vectors.shape[1]}")

    @staticmethod
    def teacher_of(c):
        """A BERT of the same size, trained as long, if the stream of words is to begin as one."""
        if not c.from_bert:
            return None
        same = {name: getattr(c, name) for name in bert.Config.__dataclass_fields__}
        return "bert", bert.Config(**dict(same, schedule="linear"))

    def begin(self, learner):
        """What a BERT knows of words is copied; what is said to entities begins at random."""
        if self.teacher is None:
            return
        mine = learner.named()
        for name, tensor in self.teacher.named().items():
            if name in mine and mine[name].shape != tensor.shape:
                raise Error(f"--teacher: its {name} has the shape {tensor.shape}, but this model "
                            f"wants {mine[name].shape}; give a BERT of the same size")
            if name in mine:
                mine[name].data[...] = tensor.data

    def plan(self, documents, copy):
        """Passages that mention enough."""
        plan = super().plan(documents, copy)
        counts = [self.mentioned(plan[i:i + 4096]) for i in range(0, len(plan), 4096)]
        kept = np.concatenate([np.zeros(0), *counts]) >= self.config.mentions
        if len(plan) and not kept.any() and len(documents) == len(self.corpus.train):
            fewer = "--mentions 1, " if self.config.mentions > 1 else ""
            raise Error(f"mentions: not one sequence has {self.config.mentions} of them; use "
                        f"{fewer}a longer --seq, or give more names with --entities FILE")
        return plan[kept]

    def mentioned(self, plan):
        """How many mentions each sequence of a plan has. [N]"""
        lo, hi, _ = plan.pieces.T
        places = np.maximum(segments.ranges(lo, hi - lo), -1)           # -1: a special token
        ends = segments.ends_of(self.knowledge.mentions(places) >= 0)
        return np.diff(ends[segments.ends_of(hi - lo)[plan.cuts]])

    def batch(self, plan, copy):
        s = segments.lay_out(self.corpus, plan)
        noisy, hidden = self.noise(s, copy)
        found = self.knowledge.mentions(s.places)                       # [T]
        named = np.flatnonzero(found >= 0)                              # [K]
        # What is right is settled before anything is changed.
        candidates, labels = np.unique(found[named], return_inverse=True)
        seen = np.full(len(found), -1)
        seen[named] = self.disturbed(labels, len(candidates), named, self.draws(s, copy, lane=1))
        vectors = np.asarray(self.knowledge.vectors[candidates], np.float32)
        mentions = mentions_of(seen, vectors, s.cuts[:-1], s.cuts)
        tasks = dict(mlm=(hidden, s.ids[hidden]), nsp=(s.cuts[:-1], s.labels),
                     entity=(named, labels + 1))                        # 0 is the zero vector
        b = self.arrays(s, noisy, **tasks)
        return dict(b, candidates=vectors, entity_lost=seen[named] != labels,
                    mention_at=mentions.at, mention_cuts=mentions.cuts,
                    mention_vectors=mentions.vectors,
                    mention_asked_at=np.searchsorted(b["asked"], mentions.at))

    def disturbed(self, labels, count, at, draws):
        """Which entity each mention comes with: its own, any other of the batch, or none. [K]"""
        c, share = self.config, draws[0][at] / 2.0 ** 32
        other = (labels + 1 + corrupt.below(draws[1][at], max(1, count - 1))) % count
        wrong = np.where(share < c.strange, other, -1)
        return np.where(share < c.strange + c.unlinked, wrong, labels)

    def inputs(self, b):
        mentions = Mentions(*(b[f"mention_{name}"] for name in Mentions._fields))
        return super().inputs(b)._replace(more=dict(mentions=mentions))

    def answers(self, model, b):
        for task, head, states, labels in super().answers(model, b):
            yield task, Among(head, b["candidates"]) if task == "entity" else head, states, labels

    def scores(self, model, b):
        """Most mentions bring their answer with them; those that do not are told apart."""
        scores, lost = super().scores(model, b), b["entity_lost"]
        for task, head, states, labels in self.answers(model, b):
            if task == "entity" and lost.any():
                right = head(states).numpy().argmax(1) == labels
                scores["entity_lost_accuracy"] = right[lost].sum(), lost.sum()
        return scores

    def chance(self, batches, frequency):
        """Which candidate is meant can only be guessed batch by batch: the commonest of each."""
        found = super().chance(batches, frequency)
        share, right, lost = [], [], []
        for b in batches:
            counts = np.bincount(b["entity_labels"], minlength=1)
            share.append(counts[b["entity_labels"]] / max(1, counts.sum()))
            right.append(b["entity_labels"] == counts.argmax())
            lost.append(b["entity_lost"])
        share, right, lost = map(np.concatenate, (share, right, lost))
        if lost.any():
            found["entity_loss"] = float(-np.log(share).mean())
            found["entity_accuracy"] = float(right.mean())
            found["entity_lost_accuracy"] = float(right[lost].mean())
        return found


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

# A short sequence has hardly three mentions; and all begin at random, so the rate is to fall.
SMALL = dict(bert.SMALL, mentions=1, from_bert=False, schedule="linear")
SIZES = dict(
    smoke=Config(vocab=2048, layers=3, heads=4, width=64, hidden=256, positions=128,
                 kinds="sim mix norm", entity_width=16, steps=500, warmup=50, lr=5e-3, **SMALL),
    tiny=Config(layers=3, heads=2, width=128, hidden=512, kinds="sim mix norm", entity_width=32,
                steps=4000, warmup=400, lr=3e-3, **dict(SMALL, seq=64, predictions=10)),
    base=Config(),
)
