"""ERNIE 2.0 (Sun, Wang, Li, Feng, Tian, Wu, Wang; Baidu, 2019) learns one task after the other and
forgets none: whenever a new one comes, all the old ones are trained along with it.

Unlike BERT: seven tasks instead of two, each with a head of its own and a number that is embedded
like a token's type, so that the one encoder knows what it is being asked; and four types, because
a text may be given in more than two pieces. The rest is ERNIE 1.0 (ernie.py), in English with
BERT's words, GELU and 512 positions.

    mlm         which word was hidden (knowledge masking: whole phrases and names)      every token
    capital     was this word written with a capital?                                   every token
    recurs      does this token of one part of a document stand in other parts, too?    every token
    order       in which order did these pieces of a paragraph stand?                   the sequence
    distance    0 side by side, 1 in the same document, 2 in different ones             the sequence
    discourse   which connective stood between the two sentences?                       the sequence
    relevance   of a title for a query: 0 strong, 1 weak, 2 none                        the sequence

English models were trained on mlm, capital, recurs, order and discourse; Chinese ones on mlm,
order, distance, discourse and relevance. A batch is of one task. Every task has the same number of
steps in all; how they lie is the point. Of four tasks with 50 steps each:

    continual    20            sequential  50            together  50
                 10 30                        50                   50
                 10 10 40                        50                50
                 10 10 10 50                        50             50
"""
import itertools
from dataclasses import dataclass, replace
from math import factorial

import numpy as np

from ..engine.nn import Linear
from ..error import Error
from ..text import clues, corrupt, passages, segments
from . import bert, ernie
from .parts import heads
from .parts.stages import Stage, shares_of


@dataclass(frozen=True)
class Config(ernie.Config):
    """The defaults are ERNIE 2.0 base (English) and its recipe. Its stages are those of the tasks;
    words, phrases and names are hidden from the first one on."""
    vocab: int = 30522
    positions: int = 512
    types: int = 4
    activation: str = "gelu"
    use_tasks: bool = True
    task_types: int = 16
    pieces: int = 3                 # of a paragraph, at most: sum of n! orders (3 gives 9)
    connectives: int = 64           # that the two sentences of `discourse` may be joined by
    tasks: str = "mlm capital recurs order discourse"       # in the order in which they come
    learning: str = "continual"     # or sequential, or together: the paper's two controls
    allocation: str = ""            # steps of each task in this stage; "": of all alike
    accumulate: int = 48            # 393,216 tokens
    warmup: int = 4000              # of each stage, which begins with a new task
    lr: float = 5e-5
    schedule: str = "inverse_sqrt"
    beta2: float = 0.98

    LIMITS = dict(ernie.Config.LIMITS, pieces=(1, 8), connectives=(1, 10**6))

    def __post_init__(self):
        super().__post_init__()
        names = self.tasks.split()
        if not names or len(set(names)) < len(names) or set(names) - set(TASKS):
            raise Error(f"tasks: {self.tasks!r}, but some of these are wanted, each once, with "
                        f"spaces between: {' '.join(TASKS)}")
        if self.learning not in LEARNING:
            raise Error(f"learning: {self.learning!r}, but it must be one of "
                        f"{', '.join(LEARNING)}")

    def stages(self):
        """A stage for every task that comes, or one for all; each warms up afresh."""
        names, found = self.tasks.split(), []
        for i, row in enumerate(LEARNING[self.learning](self.steps, len(names))):
            name = names[i] if self.learning != "together" else "all tasks"
            stage = replace(self, allocation=" ".join(map(str, row)))
            found.append(Stage(stage, sum(row), name))
        return found


# ---- how many steps of each task in each stage: [[task 0, task 1, ...] of stage 0, ...]

def together(steps, tasks):
    """Plain multi-task learning: all from the first step."""
    return [shares_of(steps, [1] * tasks)]


def sequential(steps, tasks):
    """One after another; nothing stops the model from forgetting."""
    row = shares_of(steps, [1] * tasks)
    return np.diag(row).tolist()


def continual(steps, tasks):
    """A task comes with most of its steps, and keeps 1 / (tasks + 1) of them for each later
    stage."""
    table = np.zeros((tasks, tasks), int)
    for task, whole in enumerate(shares_of(steps, [1] * tasks)):
        table[task + 1:, task] = whole // (tasks + 1)
        table[task, task] = whole - table[:, task].sum()
    return table.tolist()


LEARNING = dict(continual=continual, sequential=sequential, together=together)
# The number that is embedded for each task; fine-tuning has the first.
TASKS = dict(mlm=0, capital=1, recurs=2, order=3, distance=4, discourse=5, relevance=6)
ENGLISH = "mlm", "capital", "recurs", "order", "discourse"
CHINESE = "mlm", "order", "distance", "discourse", "relevance"


class OfTokens(heads.Head):
    """Yes or no, for every token.  [T, H] -> [T, 2]"""

    def __init__(self, c, init, model):
        self.classifier = Linear(init, c.width, 2)

    def forward(self, x):
        return self.classifier(x)


class OfThree(heads.NextSentence):
    """One of three classes, for the sequence.  [S, H] -> [S, 3]"""
    CLASSES = 3


class Order(heads.NextSentence):
    """A class for every order of one piece, of two, and so on.  [S, H] -> [S, 1! + 2! + ...]"""

    def __init__(self, c, init, model):
        self.CLASSES = sum(factorial(n + 1) for n in range(c.pieces))
        super().__init__(c, init, model)


class Discourse(heads.NextSentence):
    def __init__(self, c, init, model):
        self.CLASSES = c.connectives
        super().__init__(c, init, model)


class Output(heads.Output):
    capital_logits = property(lambda self: self._of("capital"))             # [B, S, 2]
    recurs_logits = property(lambda self: self._of("recurs"))               # [B, S, 2]
    order_logits = property(lambda self: self._of("order"))                 # [B, 9]
    distance_logits = property(lambda self: self._of("distance"))           # [B, 3]
    discourse_logits = property(lambda self: self._of("discourse"))         # [B, connectives]
    relevance_logits = property(lambda self: self._of("relevance"))         # [B, 3]


class Model(ernie.Model):
    Output = Output
    HEADS = dict(bert.Model.HEADS, nsp=ernie.Follows, capital=OfTokens, recurs=OfTokens,
                 order=Order, distance=OfThree, discourse=Discourse, relevance=OfThree)
    PRETRAINING = "pooler", *ENGLISH
    # No published file has these heads, so the names are ours.
    NAMES = {**ernie.Model.NAMES, **{f"{task}.classifier.*": f"cls.tasks.{task}.*"
                                     for task in TASKS if task != "mlm"}}


class Learner(Model):
    """What is trained has the heads of its tasks."""

    def __init__(self, c, init):
        super().__init__(c, init, ("pooler", *c.tasks.split()))


# ---- the objective

class Objective(ernie.Objective):
    """One task for each batch, as often as its stage says."""

    @classmethod
    def needs(cls, c, given):
        tasks = c.tasks.split()
        units = super().needs(c, ()) if "mlm" in tasks else set()
        return units | ({"capitals"} if "capital" in tasks else set())

    def __init__(self, c, *given, **more):
        names = c.tasks.split()
        self.TASKS = dict(zip(names, names))
        super().__init__(c, *given, **more)
        tok = self.tokenizer
        self.shares = [int(n) for n in c.allocation.split()] or [1] * len(names)
        self.letters, self.known = clues.letters(tok), None             # [V]
        self.connectives = clues.Connectives(tok, self.begins, c.connectives)
        for task, lacking in self.lacking(names):
            rest = " ".join(name for name in names if name != task)
            raise Error(f"{task}: {lacking}; or leave this task out: --tasks {rest!r}")

    def lacking(self, names):
        """What tasks miss in this corpus: pairs of a task and words about it."""
        c, tok, corpus = self.config, self.tokenizer, self.corpus
        lonely = len(corpus.train) < 2
        for task in "distance", "relevance":
            if task in names and lonely:
                yield task, "the text is one document; separate several by blank lines"
        if "capital" in names:
            if tok.encode("The Cat") != tok.encode("the cat"):
                yield "capital", ("this vocabulary tells capitals apart, so the answer could be "
                                  "read off; use one in lower case")
            if not self.ever(self.knowledge.capital):
                yield "capital", "no word of the text has a capital; give the text as it is written"
        longest = np.diff(corpus.sentences[corpus.documents]).max()
        if "recurs" in names and longest <= c.seq - 2:
            yield "recurs", ("every document fits one sequence, so nothing stands in other parts; "
                             f"use a shorter --seq than {c.seq}")
        if "order" in names:
            if c.pieces > c.types:
                yield "order", (f"pieces is {c.pieces}, but there are {c.types} types for them; "
                                f"use --types {c.pieces}")
            if np.diff(corpus.documents).max() < 2:
                yield "order", "no document has two sentences; put them in one paragraph or block"
        if "discourse" in names:
            inside = np.setdiff1d(np.arange(len(corpus.sentences) - 1), corpus.documents)
            if self.connectives.found(corpus, inside)[0].max(initial=-1) < 0:
                yield "discourse", ("no sentence that follows another begins with a connective "
                                    f"such as {', '.join(clues.CONNECTIVES[:3])}; give more text")

    # ---- the data

    def plan(self, task, documents, seed):
        """The sequences of a task."""
        c, tok, corpus = self.config, self.tokenizer, self.corpus
        common = seed, tok, task
        if task == "order":
            return passages.reordered(corpus, documents, c.seq, c.pieces, *common)
        if task == "distance":
            return passages.distances(corpus, documents, c.seq, *common)
        if task == "discourse":
            return clues.discourse(corpus, documents, self.connectives, c.seq, *common)
        if task == "relevance":
            return clues.relevance(self.sections(documents), c.seq, *common)
        return passages.blocks(corpus, documents, c.seq, *common)

    def sections(self, documents):
        """Those of the last documents asked for are kept: many rounds are made of them."""
        if self.known is None or not np.array_equal(self.known[0], documents):
            found = clues.Sections(self.corpus, documents, self.begins, self.letters)
            self.known = documents, found
        return self.known[1]

    def plans(self, documents, copy):
        """A plan for each task of the stage, with tokens in proportion to its steps. Held-out text
        asks all tasks alike, learnt or not yet, so that it shows what is forgotten."""
        held = np.isin(documents, self.corpus.held).all()
        shares = [1] * len(self.shares) if held else self.shares
        cuts = self.corpus.sentences[self.corpus.documents]
        tokens, found = np.diff(cuts)[documents].sum(), []
        for task, share in zip(self.TASKS, shares):
            seed = self.seed, copy, TASKS[task]
            rounds = (self.plan(task, documents, (*seed, n)) for n in itertools.count())
            wanted = tokens * share // max(shares)
            found.append(passages.filled(rounds, wanted, np.random.default_rng(seed)))
        return [plan for plan in found if plan]

    def batch(self, plan, copy):
        """All tokens of it are told the task's number."""
        s, task = segments.lay_out(self.corpus, plan), plan.kind
        ids, inside = s.ids, np.flatnonzero(s.places >= 0)
        if task == "mlm":
            ids, hidden = self.noise(s, copy)
            asked = hidden, s.ids[hidden]
        elif task == "capital":
            asked = inside, self.knowledge.capital(s.places)[inside].astype(int)
        elif task == "recurs":
            word = corrupt.units(self.begins[s.ids], s.places < 0, s.sequence)
            recurs = clues.recurring(self.corpus, s, word, self.config.vocab)
            asked = inside, recurs[inside].astype(int)
        else:
            asked = s.cuts[:-1], s.labels
        number = np.full(len(ids), TASKS[task])
        return dict(self.arrays(s, ids, **{task: asked}), task_type_ids=number)

    def filler(self, learner):
        return learner if "mlm" in self.TASKS else None

    def inputs(self, b):
        return super().inputs(b)._replace(more=dict(task_type_ids=b["task_type_ids"]))

    # ---- what is computed from it

    def counts(self, b):
        """Batches in the step: each counts alike, so a task weighs as much as it has batches."""
        return np.array([1])

    def loss(self, model, b, counts):
        """A task's part of the step's mean over its batches."""
        return super().loss(model, b, counts[0] * super().counts(b))

    def chance(self, batches, frequency):
        """How many pieces a sequence has is seen at once, so only their order is to be guessed."""
        found = super().chance(batches, frequency)
        labels = [b["order_labels"] for b in batches if "order_labels" in b]
        if labels:
            found |= chance_of_orders(np.concatenate(labels), self.config.pieces)
        return found


def chance_of_orders(labels, pieces):
    known = passages.orders(pieces)
    counts = np.bincount(labels, minlength=len(known))
    size = np.array([len(order) for order in known])
    whole = np.bincount(size, counts)[size]                             # of as many pieces
    best = sum(counts[size == n].max() for n in range(1, pieces + 1))
    surprise = -np.log(counts[labels] / whole[labels]).mean()
    return dict(order_loss=float(surprise), order_accuracy=float(best / len(labels)))


def without_tasks(model, task=0):
    """The same model, if asked for this task alone, without a table of tasks: the published ones
    have none. What is added to every token alike may as well be added to every type.
    """
    table = model.embeddings.task.data                      # [tasks, H]
    config = replace(model.config, use_tasks=False)
    model.embeddings.type.data = model.embeddings.type.data + table[task]
    model.embeddings.task, model.config = None, config
    return model


# ---- the published file's config.json

HF_TYPES = ernie.HF_TYPES
HF_CONFIG = dict(ernie.HF_CONFIG, pieces="reordered_pieces", connectives="connectives")
HF_DEFAULTS = dict(ernie.HF_DEFAULTS, types=2, use_tasks=False, task_types=3)
HF_CLASSES, HF_REFUSED = ernie.HF_CLASSES, ernie.HF_REFUSED
HF_TIED, HF_IGNORED, HF_PREFIXES = ernie.HF_TIED, ernie.HF_IGNORED, ernie.HF_PREFIXES


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                 steps=560, warmup=20, lr=5e-3, **bert.SMALL),
    tiny=Config(layers=2, heads=2, width=128, hidden=512, steps=6000, warmup=100, lr=3e-3,
                tasks=" ".join(TASKS), **dict(bert.SMALL, seq=64)),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096),
    # Chinese, with ReLU and 513 positions as ERNIE 1.0
    chinese=Config(vocab=18000, positions=513, activation="relu", lr=1.28e-4,
                   tasks=" ".join(CHINESE)),
)
