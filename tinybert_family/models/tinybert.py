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
from dataclasses import dataclass

from ..engine import fused
from ..engine.nn import Linear
from ..error import Error
from . import bert
from .parts import heads


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

    LIMITS = dict(bert.Config.LIMITS, teacher_width=(1, 10**5))

    def __post_init__(self):
        super().__post_init__()
        if self.follow not in FOLLOW:
            raise Error(f"follow: {self.follow!r}, but these are known: {', '.join(FOLLOW)}")


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
    PRETRAINING = "pooler", "fit"
    NAMES = {**bert.Model.NAMES, "fit.hidden.*": "fit_dense.*",
             "fit.embedding.*": "fit_dense_embedding.*"}


# ---- the published file's config.json: BERT's, with our signature beside it

HF_TYPES = bert.HF_TYPES
HF_CONFIG = dict(bert.HF_CONFIG, teacher_width="teacher_hidden_size", fit_shared="fit_shared",
                 follow="teacher_layers", classifier_relu="classifier_relu")
HF_DEFAULTS = dict(layers=12, width=768, hidden=3072)       # BertConfig()'s
HF_CLASSES, HF_REFUSED = bert.HF_CLASSES, bert.HF_REFUSED
HF_TIED, HF_IGNORED = bert.HF_TIED, r"bert\.embeddings\.position_ids"


# ---- sizes

SIZES = {
    "smoke": Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                    teacher_width=128, steps=2500, warmup=200, lr=5e-3, **bert.SMALL),
    "base": Config(),                                       # TinyBERT_General_4L_312D
    "six": Config(layers=6, width=768, hidden=3072),        # TinyBERT_General_6L_768D
    "chinese": Config(vocab=21128),
}
