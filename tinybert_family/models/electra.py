"""ELECTRA (Clark, Luong, Le, Manning, 2020) learns from every token instead of from the hidden ones
alone: a small generator guesses hidden words, and the discriminator says of each token whether it
is the generator's or the text's. The generator is then thrown away.

Unlike BERT: there are two networks in training, both from this file, that share the tables of the
embeddings; the tables may be narrower than the hidden states, with a matrix between (small); and
there is no pooler, so heads of sequences have a layer of their own.
"""
from dataclasses import dataclass, replace

import numpy as np

from ..engine import fused
from ..engine.nn import Linear, dropout
from ..error import Error
from ..text import corrupt, segments
from . import bert, roberta
from .parts import heads, replaced
from .parts.names import renamed, tasks_of


@dataclass(frozen=True)
class Config(bert.Config):
    """A discriminator or a generator; the defaults are the discriminator of ELECTRA-base."""
    embedding: int = 768            # E, of the tables; a matrix widens them where E is not width
    choice_dropout: float = 0.1     # before the classifier of a model that chooses
    generator_size: float = 0.25    # how wide the generator is, in widths of the discriminator
    generator_depth: float = 1.0    # and how deep; too strong a generator leaves nothing to learn
    veiled: float = 0.85            # of the words to guess; the others are seen. The paper: 1
    goal: str = "all"               # of the discriminator, see GOALS
    rtd_weight: float = 50.0        # of its loss, which is so much smaller than the generator's
    seq: int = 512
    last_share: float = 0.0
    predictions: int = 79
    short: float = 0.05
    copies: int = 0                 # words are hidden anew in every pass
    tokens: int = 4096
    accumulate: int = 32            # 256 sequences of 512 tokens
    steps: int = 766_000
    lr: float = 2e-4

    LIMITS = dict(bert.Config.LIMITS, embedding=(1, 10**5), generator_size=(0.001, 10),
                  generator_depth=(0.001, 10), choice_dropout=(0, 0.999), veiled=(0, 1),
                  rtd_weight=(0, 10**6))

    def __post_init__(self):
        super().__post_init__()
        if self.goal not in GOALS:
            raise Error(f"goal: {self.goal!r}, but these are known: {', '.join(GOALS)}")


# What the discriminator learns, and the head that does: to judge all tokens; or, the paper's
# controls, those alone that were hidden ("ELECTRA 15%"), or to guess these ("Replace MLM").
GOALS = dict(all="rtd", hidden="rtd", words="mlm")


class Embeddings(bert.Embeddings):
    def __init__(self, c, init):
        super().__init__(c, init, c.embedding)
        same = c.embedding == c.width
        self.project = None if same else Linear(init, c.embedding, c.width)

    def forward(self, b):
        x = super().forward(b)
        return x if self.project is None else self.project(x)           # [T, E] -> [T, H]


class Sequence(roberta.Sequence):
    activation = fused.gelu


class Choice(heads.Summary):
    """[S, H] -> [S, 1]"""

    def __init__(self, c, init, model):
        self.config = c
        self.dense = Linear(init, c.width, c.width)
        self.classifier = Linear(init, c.width, 1)

    def forward(self, first):
        y = fused.gelu(self.dense(first))
        return self.classifier(dropout(y, self.config.choice_dropout))


class Model(bert.Model):
    """The discriminator, or with the head `mlm` instead of `rtd` the generator."""
    Embeddings = Embeddings
    HEADS = dict(rtd=replaced.Replaced, mlm=roberta.MaskedHead, sequence=Sequence, choice=Choice,
                 token=heads.Token, question=heads.Question)
    PRETRAINING = "rtd",
    PREFIX = "electra."
    NAMES = {
        **renamed(bert.Model.NAMES, bert.Model.PREFIX, "electra."),
        "embeddings.project.*": "electra.embeddings_project.*",
        "rtd.dense.*": "discriminator_predictions.dense.*",
        "rtd.classifier.*": "discriminator_predictions.dense_prediction.*",
        "mlm.transform.*": "generator_predictions.dense.*",
        "mlm.norm.*": "generator_predictions.LayerNorm.*",
        "mlm.bias": "generator_lm_head.bias",
        "sequence.dense.*": "classifier.dense.*",
        "sequence.classifier.*": "classifier.out_proj.*",
        "choice.dense.*": "sequence_summary.summary.*",
        "choice.classifier.*": "classifier.*",
        "token.classifier.*": "classifier.*",
        "question.classifier.*": "qa_outputs.*",
    }


# ---- two networks in one training

def generator_of(c):
    """The Config of the generator that a discriminator is trained beside."""
    width = round(c.width * c.generator_size)
    try:
        return replace(c, width=width, hidden=4 * width, heads=max(1, width // 64),
                       layers=round(c.layers * c.generator_depth))
    except Error as problem:
        raise Error(f"generator: {problem}; another --generator_size or --generator_depth "
                    "helps") from None


class Pair(replaced.Pair):
    """One table each of words, positions and types, and one norm over their sum, serve both and get
    the gradients of both. The matrix that widens them is each one's own.
    """
    SHARED = "word", "position", "type", "norm"

    def __init__(self, c, init):
        discriminator = Model(c, init, (GOALS[c.goal],))
        generator = Model(generator_of(c), init, ("mlm",))
        super().__init__(c, discriminator, generator)
        for name in self.SHARED:
            shared = getattr(discriminator.embeddings, name)
            setattr(generator.embeddings, name, shared)
        generator.mlm.word = discriminator.embeddings.word


Learner = Pair


class Objective(replaced.Detection):
    """Passages of one document, side by side. The generator guesses some of their words, of which
    it sees 15 % all the same. (So the released code, not the paper. The code may also choose a word
    twice; here that is a choice of fewer words.)
    """

    def __init__(self, c, *given, **named):
        super().__init__(c, *given, **named)
        if c.goal == "words":
            self.TASKS = dict(mlm="mlm", restored="mlm")
            self.WORDS = tuple(self.TASKS)

    def plan(self, documents, copy):
        c, seed = self.config, (self.seed, copy)
        return segments.electra_pairs(self.corpus, documents, c.seq, seed, self.tokenizer,
                                      short=c.short)

    def noise(self, s, copy):
        c, mask = self.config, self.tokenizer.mask
        order, kind, *_ = self.draws(s, copy)                                           # [T] each
        budget = corrupt.budget(np.diff(s.cuts), c.masked, c.predictions)               # [S]
        hidden = corrupt.choose(order, s.places >= 0, s.sequence, budget)               # [K]
        return corrupt.replace(s.ids, hidden, kind, s.ids, mask, (c.veiled, 0.0)), hidden

    def batch(self, plan, copy):
        b = super().batch(plan, copy)
        return dict(b, restored_labels=b["mlm_labels"]) if "restored" in self.TASKS else b

    def judged(self, b):
        return None if self.config.goal == "all" else b["asked"]

    def verdict(self, model, b, inputs, wrong, judged):
        if self.config.goal != "words":
            return super().verdict(model, b, inputs, wrong, judged)
        return "restored", model.mlm, model.encode(inputs, judged), b["mlm_labels"]


# ---- the published file's config.json

HF_TYPES = "electra",
HF_CONFIG = dict(bert.HF_CONFIG, embedding="embedding_size", choice_dropout="summary_last_dropout")
# ElectraConfig() is the small one.
HF_DEFAULTS = dict(embedding=128, width=256, heads=4, hidden=1024)
HF_CLASSES = {"ElectraModel": (), "ElectraForPreTraining": ("rtd",),
              "ElectraForMaskedLM": ("mlm",), **tasks_of("Electra", pooler=())}
HF_REFUSED = dict(bert.HF_REFUSED, summary_type="first", summary_use_proj=True,
                  summary_activation="gelu", summary_proj_to_labels=False,
                  summary_first_dropout=0)
HF_TIED = {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight",
           # No other name of anything: base and large files hold it, though nothing reads it there.
           "electra.embeddings_project.weight": None,
           "electra.embeddings_project.bias": None}
HF_IGNORED = r"electra\.embeddings\.position_ids"


# ---- sizes

# At the rate of bert.py's small models the generator is so soon ahead that the discriminator learns
# nothing; so both are slow, and it is small.
SMALL = dict(bert.SMALL, tokens=1024, lr=7e-4)
SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, embedding=32, positions=128,
                 generator_depth=0.5, steps=800, warmup=60, **SMALL),
    tiny=Config(layers=2, heads=2, width=128, hidden=512, embedding=64, generator_depth=0.5,
                steps=8000, warmup=400, **SMALL),
    # The small one that was published has a generator as wide as itself (generator_size 1).
    small=Config(embedding=128, width=256, heads=4, hidden=1024, seq=128, predictions=19,
                 tokens=2048, accumulate=8, steps=1_000_000, lr=5e-4),
    base=Config(generator_size=1 / 3),
    large=Config(embedding=1024, layers=24, heads=16, width=1024, hidden=4096, masked=0.25,
                 predictions=130, tokens=8192, accumulate=128, steps=400_000),
)
