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
order, distance, discourse and relevance.
"""
from dataclasses import dataclass, replace
from math import factorial

from ..engine.nn import Linear
from . import bert, ernie
from .parts import heads


@dataclass(frozen=True)
class Config(ernie.Config):
    """The defaults are ERNIE 2.0 base (English) and its recipe."""
    vocab: int = 30522
    positions: int = 512
    types: int = 4
    activation: str = "gelu"
    use_tasks: bool = True
    task_types: int = 16
    pieces: int = 3                 # of a paragraph, at most: sum of n! orders (3 gives 9)
    connectives: int = 64           # that the two sentences of `discourse` may be joined by
    accumulate: int = 48            # 393,216 tokens
    warmup: int = 4000              # of each task
    lr: float = 5e-5
    schedule: str = "inverse_sqrt"
    beta2: float = 0.98

    LIMITS = dict(ernie.Config.LIMITS, pieces=(1, 8), connectives=(1, 10**6))


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
                 steps=2500, warmup=200, lr=5e-3, **bert.SMALL),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096),
    # Chinese, with ReLU and 513 positions as ERNIE 1.0
    chinese=Config(vocab=18000, positions=513, activation="relu", lr=1.28e-4),
)
