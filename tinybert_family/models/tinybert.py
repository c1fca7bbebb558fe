"""TinyBERT (Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, 2019): a small BERT that learns from a
large one, layer by layer: its embeddings, its hidden states, and the scores of its attention.

Unlike BERT: it is smaller; it has a projection (`fit`) that widens its states to the teacher's, so
that the two can be compared; its layers know which of the teacher's they follow; and the authors'
classifier reads relu(pooled) where that of transformers reads the pooled state itself, with dropout
(`classifier_relu`, for files trained with the authors' code).

Student and teacher must have equally many heads, as their scores are compared head by head: twelve
heads of 26 numbers each where the width is 312. Scores come from Attention.scores, before the
softmax and without any mask: there is no padding here whose minus infinities would have to be
cleared first. Only the student is built here; the teacher is any BERT, its dropout off.
"""
import sys
from dataclasses import dataclass, replace

import numpy as np

from ..engine import fused
from ..engine.nn import Linear
from ..error import Error
from ..text import segments
from . import bert
from .parts import distil, heads, tuning
from .parts.stages import Stage, shares_of


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are TinyBERT with four layers, and general distillation."""
    layers: int = 4
    width: int = 312
    hidden: int = 1200
    teacher_width: int = 768        # what fit widens to
    fit_shared: bool = True         # one fit for all states; False: the embeddings have their own
    follow: str = "uniform"         # which layers of the teacher: uniform, top, bottom
    classifier_relu: bool = False   # see above; transformers does not know this setting
    masked: float = 0.0             # no word is hidden: the student sees what the teacher sees
    head_dropout: float = 0.0
    last_share: float = 0.0         # one length throughout
    phase: str = "general"          # general, intermediate, prediction; stages set it
    task: str = ""                  # a file of labelled texts; none: a task that the corpus sets
    intermediate: float = 0.3       # share of the steps for states and scores on the task's texts,
    intermediate_lr: float = 5e-5
    prediction: float = 0.1         # and for its answers
    prediction_lr: float = 3e-5
    on_states: float = 1.0          # weights of the losses
    on_scores: float = 1.0
    heat: float = 1.0               # the temperature of answers
    augmented: int = 20             # copies of a labelled text, with other words
    tuning: int = 3                 # passes over the task in which the teacher learns it
    tuning_lr: float = 3e-5
    teacher_steps: int = 1_000_000  # of a teacher that is trained first

    LIMITS = dict(bert.Config.LIMITS, teacher_width=(1, 10**5), intermediate=(0, 1),
                  prediction=(0, 1), augmented=(0, 1000), tuning=(1, 1000), heat=(0.01, 1000),
                  teacher_steps=(1, 10**9))

    def __post_init__(self):
        super().__post_init__()
        if self.phase not in PHASES:
            raise Error(f"phase: {self.phase!r}, but these are known: {', '.join(PHASES)}")
        if self.intermediate + self.prediction > 1:
            raise Error(f"intermediate and prediction: {self.intermediate} and {self.prediction} "
                        "of the steps are more than all; choose smaller shares")
        if self.follow not in FOLLOW:
            raise Error(f"follow: {self.follow!r}, but these are known: {', '.join(FOLLOW)}")

    def stages(self):
        """First the language, then the task: how to read its texts, then what to answer."""
        rest = 1 - self.intermediate - self.prediction
        counts = shares_of(self.steps, [rest, self.intermediate, self.prediction])
        # 32 texts in a step, where general distillation has 256.
        level = dict(schedule="constant", warmup=0, accumulate=max(1, self.accumulate // 8))
        reading = replace(self, phase="intermediate", lr=self.intermediate_lr, **level)
        answering = replace(self, phase="prediction", lr=self.prediction_lr, **level)
        return [Stage(c, steps, c.phase)
                for c, steps in zip((self, reading, answering), counts)]


PHASES = "general", "intermediate", "prediction"
FOLLOW = dict(uniform=lambda m, student, teacher: m * teacher // student,
              top=lambda m, student, teacher: m + teacher - student,
              bottom=lambda m, student, teacher: m)


def followed(student, teacher, follow="uniform"):
    """[g(0), ..., g(student)]: state m of the student is held against state g(m) of the teacher.

    State 0 is what the embeddings give, state m what layer m - 1 gives (they are counted from 0);
    so the scores of layer m - 1 are held against those of the teacher's layer g(m) - 1.
    """
    if teacher < student or follow == "uniform" and teacher % student:
        raise Error(f"layers: a student of {student} cannot follow a teacher of {teacher} "
                    f"({follow}); the teacher's must be " +
                    ("a multiple of its own" if follow == "uniform" else "as many or more"))
    found = [FOLLOW[follow](m, student, teacher) for m in range(1, student + 1)]
    return [0, *found]


class Fit(heads.Head):
    """The student's states, as wide as the teacher's.  [T, H] -> [T, teacher's H]

    The paper has a matrix for the embeddings and one for the hidden states, the authors' code one
    for both, with a bias, even where the widths are equal; we follow the code unless told.
    """

    def __init__(self, c, init, model):
        self.hidden = Linear(init, c.width, c.teacher_width)
        self.embedding = None if c.fit_shared else Linear(init, c.width, c.teacher_width)

    def forward(self, x, state=1):
        """state: 0 for what the embeddings gave, otherwise the number of the layer, from 1."""
        own = self.embedding is not None and state == 0
        return self.embedding(x) if own else self.hidden(x)


class Sequence(heads.Sequence):
    def forward(self, first):
        if not self.config.classifier_relu:
            return super().forward(first)
        return self.classifier(fused.relu(self.pooler(first)))


class Model(bert.Model):
    HEADS = dict(bert.Model.HEADS, fit=Fit, sequence=Sequence)
    PRETRAINING = "pooler", "fit", "sequence"
    NAMES = {**bert.Model.NAMES, "fit.hidden.*": "fit_dense.*",
             "fit.embedding.*": "fit_dense_embedding.*"}


# ---- the published file's config.json: BERT's, with our signature beside it

HF_TYPES = bert.HF_TYPES
HF_CONFIG = dict(bert.HF_CONFIG, teacher_width="teacher_hidden_size", fit_shared="fit_shared",
                 follow="teacher_layers", classifier_relu="classifier_relu")
HF_DEFAULTS = dict(layers=12, width=768, hidden=3072)       # BertConfig()'s
HF_CLASSES, HF_REFUSED = bert.HF_CLASSES, bert.HF_REFUSED
HF_TIED, HF_IGNORED = bert.HF_TIED, r"bert\.embeddings\.position_ids"


# ---- the objective

class Objective(bert.Objective):
    """General: embeddings, states and scores of a pre-trained teacher, on BERT's pairs of passages
    without any mask. Intermediate: the same of a teacher that knows the task, on its texts.
    Prediction: its answers."""
    TASKS = {}                      # nobody is asked for right answers

    def __init__(self, c, corpus, tokenizer, seed=0, knowledge=None, teacher=None):
        super().__init__(c, corpus, tokenizer, seed, knowledge, teacher)
        distil.fits(teacher, c, tokenizer, heads="scores are compared head by head")
        if teacher.config.width != c.teacher_width:
            width = teacher.config.width
            raise Error(f"--teacher: its states are {width} wide, but fit widens the student's to "
                        f"{c.teacher_width}; use --teacher-width {width}")
        self.followed = followed(c.layers, teacher.config.layers, c.follow)
        self.source = corpus
        if c.phase != "general":
            lesson = tuning.lesson(teacher, c, corpus, tokenizer, knowledge, seed, self.note)
            self.source, self.teacher = lesson.task, lesson.teacher
        self.WEIGHTS = dict(states=c.on_states, scores=c.on_scores)

    @classmethod
    def needs(cls, c, given):
        return {"similar"} if c.augmented and c.intermediate + c.prediction else set()

    @staticmethod
    def teacher_of(c):
        """Twice as deep as a narrow student, three times as a published one."""
        layers = c.layers * (2 if c.near or c.layers > 4 else 3)
        hidden = 4 * c.teacher_width
        return "bert", distil.teacher_like(c, layers=layers, width=c.teacher_width, hidden=hidden,
                                           masked=0.15, steps=c.teacher_steps)

    @staticmethod
    def note(line):
        print(line, file=sys.stderr)

    def filler(self, learner):
        return None                 # it never learns to fill in words

    def plan(self, documents, copy):
        if self.config.phase == "general":
            return super().plan(documents, copy)
        return self.source.plan(documents, self.tokenizer)

    def batch(self, plan, copy):
        s = segments.lay_out(self.source, plan)
        return self.arrays(s, s.ids, task=(s.cuts[:-1], s.labels))

    def counts(self, b):
        """Tokens, pairs of tokens that look at each other, sequences."""
        lengths = np.diff(b["cuts"])
        return np.array([len(b["ids"]), (lengths ** 2).sum(), len(lengths)])

    def loss(self, model, b, counts):
        tokens, pairs, sequences = (1 / max(1, int(n)) for n in counts)
        if self.config.phase == "prediction":
            theirs, mine = self.told(b), self.answer(model, b)
            return dict(task_loss=distil.looking(mine, theirs, sequences))
        inputs, c = self.inputs(b), self.config
        with distil.still():
            theirs = distil.through(self.teacher, inputs, len(self.teacher.layers))
        mine = distil.through(model, inputs, c.layers)
        states = scores = 0
        for m, g in enumerate(self.followed):
            square = distil.squares(model.fit(mine[m], m), theirs[g].data, tokens / c.teacher_width)
            if not m:
                embedding = square
                continue
            states = square + states
            with distil.still():
                target = scores_of(self.teacher.layers[g - 1], theirs[g - 1], inputs).data
            own = scores_of(model.layers[m - 1], mine[m - 1], inputs)               # [T, A, P]
            scores = distil.squares(own, target, pairs / c.heads) + scores
        return dict(embedding_loss=embedding, states_loss=states, scores_loss=scores)

    def answer(self, model, b):
        """What it says to each text, as hot as the answers are compared.  [S, labels]"""
        states = model.encode(self.inputs(b), b["asked"])
        return model.sequence(states) * (1 / self.config.heat)

    def told(self, b):
        with distil.still():
            return self.answer(self.teacher, b).data

    def scores(self, model, b):
        counts = self.counts(b)
        tokens, pairs, sequences = counts.tolist()
        over = dict(scores_loss=pairs, task_loss=sequences)
        found = {}
        for name, value in self.loss(model, b, counts).items():
            n = over.get(name, tokens)
            found[name] = value.item() * n, n
        if self.config.phase == "prediction":
            right = self.answer(model, b).data.argmax(1) == b["task_labels"]
            found["task_accuracy"] = right.sum(), sequences
        return found

    def chance(self, batches, frequency):
        """Of states and scores: always their mean. Of answers: always the teacher's mean."""
        if self.config.phase != "prediction":
            return self.spread(batches)
        labels = np.concatenate([b["task_labels"] for b in batches])
        theirs = np.concatenate([self.told(b) for b in batches]).astype(np.float64)
        q = np.exp(theirs - theirs.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        surprise = (q * np.log(q / q.mean(0))).sum(1).mean()
        often = np.bincount(labels).max() / len(labels)
        return dict(task_loss=float(surprise), task_accuracy=float(often))

    def spread(self, batches):
        """The variances of what is to be learnt."""
        deep, states, scores = len(self.teacher.layers), {}, {}
        for b in batches:
            inputs = self.inputs(b)
            with distil.still():
                theirs = distil.through(self.teacher, inputs, deep)
                for g in self.followed:
                    add(states, g, theirs[g].data, len(b["ids"]))
                for g in self.followed[1:]:
                    seen = scores_of(self.teacher.layers[g - 1], theirs[g - 1], inputs).data
                    add(scores, g, seen.transpose(0, 2, 1).reshape(-1, seen.shape[1]),
                        self.counts(b)[1])
        found = {g: variance(*sums) for g, sums in states.items()}
        return dict(embedding_loss=found.pop(0), states_loss=sum(found.values()),
                    scores_loss=sum(variance(*sums) for sums in scores.values()))


def scores_of(layer, x, inputs):
    """Before the softmax, and 0 where a sequence has no key.  [T, A, P]"""
    tensors, how = layer.attention.ask(x, inputs)
    return fused.scores(*tensors, **how, fill=0.0)


def add(sums, key, x, count):
    x = x.astype(np.float64)
    total, square, n = sums.get(key, (0, 0, 0))
    sums[key] = total + x.sum(0), square + (x * x).sum(0), n + count


def variance(total, square, n):
    return float((square / n - (total / n) ** 2).mean())


# ---- sizes

# Of narrow models: rates as high as theirs are, and fewer examples.
SMALL = dict(bert.SMALL, intermediate=0.25, intermediate_lr=2e-3, prediction=0.25,
             prediction_lr=1e-3, tuning=12, tuning_lr=2e-3, augmented=2, labels=4, tokens=1024)
SIZES = {
    "smoke": Config(vocab=2048, layers=1, heads=4, width=48, hidden=192, positions=128,
                    teacher_width=64, steps=300, teacher_steps=700, warmup=30, lr=5e-3, **SMALL),
    "tiny": Config(vocab=4096, layers=1, heads=4, width=96, hidden=384, positions=128,
                   teacher_width=128, steps=1500, teacher_steps=2500, warmup=150, lr=4e-3, **SMALL),
    "base": Config(),                                       # TinyBERT_General_4L_312D
    "six": Config(layers=6, width=768, hidden=3072),        # TinyBERT_General_6L_768D
    "chinese": Config(vocab=21128),
}
