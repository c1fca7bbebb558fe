"""ERNIE 1.0 (Sun, Wang, Li, Feng, Chen, Zhang, Tian, Zhu, Tian, Wu; Baidu, 2019) hides what belongs
together together: whole phrases and names instead of single characters, so that the model has to
know the world, and not only how a word goes on.

Unlike BERT: the MLPs and the masked-word head have ReLU; the norms' eps is 1e-5; there are 513
positions and 18,000 Chinese words; label 1 of the sentence task means that the second passage does
follow, where BERT's means that it does not; and further training on dialogues asks whether the
three turns of one are real.

    He      went   to    New     York     City   .
    M       went   to    New     York     City   .      words: every one a unit
    He      went   to    M       M        City   .      phrases: words that often go together
    He      went   to    M       M        M      .      names, too

Every unit is hidden by a draw of its own, with all its tokens; each of these then becomes [MASK],
another word or stays by a draw of its own. Training has three stages, one for each kind of unit. In
a later one sequences of the earlier kinds are among the others, so that nothing is unlearnt.

Published files of every ERNIE by Baidu say model_type "ernie". Those of later ones may bring a
table of tasks, added to the embeddings as the table of types is: `use_tasks`.
"""
import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..engine import fused
from ..engine.nn import dropout
from ..error import Error
from ..text import corrupt, passages, segments, words
from . import bert
from .parts import heads, padded
from .parts.names import renamed, tasks_of
from .parts.stages import Stage, shares_of


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are ERNIE 1.0 and its recipe."""
    vocab: int = 18000
    positions: int = 513
    eps: float = 1e-5
    activation: str = "relu"
    use_tasks: bool = False         # add an embedding of the task, as ERNIE 2.0 and 3.0 do?
    task_types: int = 3             # rows of its table
    level: int = 2                  # of what is hidden: 0 words, 1 phrases, too, 2 names, too
    words_share: float = 1.0        # the three stages' shares of the steps, in proportion; the
    phrases_share: float = 1.0      # authors do not tell them
    names_share: float = 1.0
    talk: bool = False              # look for dialogues in the text, where no file of them is given
    seq: int = 512
    predictions: int = 512          # as many as there are: each unit is hidden by a draw of its own
    copies: int = 0                 # hidden anew in every pass
    last_share: float = 0.0
    tokens: int = 8192
    accumulate: int = 1             # a batch is 8,192 tokens, however many sequences that is
    warmup: int = 5000
    adam_eps: float = 1e-8          # Paddle's Adam, with its own settings
    correct: bool = True

    LIMITS = dict(bert.Config.LIMITS, task_types=(1, 1000), level=(0, 2),
                  words_share=(0, 10**6), phrases_share=(0, 10**6), names_share=(0, 10**6))

    def shares(self):
        return (self.words_share, self.phrases_share, self.names_share)[:self.level + 1]

    def __post_init__(self):
        super().__post_init__()
        if not any(self.shares()):
            raise Error("words_share: no stage is left, for all shares up to this level are 0; "
                        "give one of them, as in --words-share 1")

    def stages(self):
        """Words, then phrases, then names, under one schedule of the learning rate."""
        found, before = [], 0
        for level, steps in enumerate(shares_of(self.steps, self.shares())):
            if not steps:
                continue
            stage = replace(self, level=level)
            found.append(Stage(stage, steps, UNITS[level], before, self.steps))
            before += steps
        return found


# By their level, as text/knowledge.py calls them, and where they are known from.
UNITS, KNOWN = ("word", "phrase", "entity"), ("words", "phrases", "entities")


class Embeddings(bert.Embeddings):
    """LayerNorm(word + position + type), or LayerNorm(word + position + type + task)"""

    def __init__(self, c, init):
        super().__init__(c, init)
        self.task = init.normal((c.task_types, c.width)) if c.use_tasks else None

    def forward(self, b):
        if self.task is None:
            return super().forward(b)
        tasks = b.more.get("task_type_ids", 0 * b.types)        # task 0 unless told otherwise
        ids = b.ids, b.positions, b.types, tasks                # [T] each
        x = fused.embed(self.word, self.position, self.type, self.task, ids=ids)
        return dropout(self.norm(x), self.config.dropout)       # [T, H]


class Follows(heads.NextSentence):
    """1: the second passage follows the first. 0: it does not. (BERT's labels, turned round.)"""


class Dialogue(heads.NextSentence):
    """1: the turns of this dialogue are real. 0: one of them was exchanged for another."""


class Output(heads.Output):
    dialogue_logits = property(lambda self: self._of("dialogue"))           # [B, 2]


class Model(bert.Model):
    Embeddings, Output = Embeddings, Output
    HEADS = dict(bert.Model.HEADS, nsp=Follows, dialogue=Dialogue)
    PREFIX = "ernie."
    NAMES = {**bert.Model.NAMES, **renamed(bert.Model.NAMES, bert.Model.PREFIX, "ernie."),
             "embeddings.task": "ernie.embeddings.task_type_embeddings.weight",
             "dialogue.classifier.*": "cls.dialogue.*"}

    def pack(self, input_ids, attention_mask, token_type_ids, task_type_ids=None):
        """task_type_ids: the task that each token is read for, [B, S]; 0 unless given."""
        tasks, limit = task_type_ids, self.config.task_types
        if tasks is not None:
            if self.embeddings.task is None:
                raise Error("task_type_ids: this model has no table of tasks (use_task_id is false "
                            "in its config.json); call it without them")
            tasks = padded.integers("task_type_ids", tasks)
            padded.within("task_type_ids", tasks, limit, "the number of tasks")
        return padded.pack(self.config, input_ids, attention_mask, token_type_ids,
                           more=dict(task_type_ids=tasks))


class Learner(Model):
    """What is trained can judge dialogues, too."""
    PRETRAINING = *Model.PRETRAINING, "dialogue"


# ---- the objective

class Talk(NamedTuple):
    """Dialogues, laid out like a corpus."""
    ids: np.ndarray                 # [n]
    turns: np.ndarray               # cuts into ids
    dialogues: np.ndarray           # cuts into turns
    documents: np.ndarray = ()      # of the corpus, that each is from; -1 where from none


class Objective(bert.Objective):
    """Hidden units and next sentences; where there are dialogues, in every other batch hidden words
    of three turns, and whether these are real."""
    TASKS = dict(mlm="mlm", nsp="nsp", dialogue="dialogue")

    @classmethod
    def needs(cls, c, given):
        talk = {"dialogues"} if c.talk or "dialogues" in given else set()
        return {"phrases", "entities"} & {*KNOWN[:c.level + 1]} | talk

    def __init__(self, c, *given, **more):
        super().__init__(c, *given, **more)
        self.begins = words.begins_word(self.tokenizer)                 # [V]
        talk = getattr(self.knowledge, "dialogues", None)
        if talk is not None and len(talk[2]) < 3:
            raise Error("dialogues: there is one alone, so no turn can be strange in it; give two "
                        "or more with --dialogues FILE")
        self.talk = Talk(*talk) if talk is not None else None
        if c.level and "mlm" in self.TASKS and not self.ever(self.differs):
            known = KNOWN[c.level]
            raise Error(f"no {known} of two words are known in this text, so a stage for them "
                        f"would hide words alone; give a list with --{known} FILE, or leave the "
                        f"stage out: --level {c.level - 1}")

    def ever(self, told):
        """Is it True anywhere in the corpus? told: places [T] -> bool [T]"""
        total = len(self.corpus.ids)
        parts = (np.arange(lo, min(lo + 2**20, total)) for lo in range(0, total, 2**20))
        return any(told(part).any() for part in parts)

    def differs(self, places):
        """Do units of the stage's level begin elsewhere than words?"""
        words = self.begins[self.corpus.ids[places]]
        return self.knowledge.starts(places, UNITS[self.config.level]) < words

    def plan(self, documents, copy):
        plan = super().plan(documents, copy)
        return replace(plan, labels=1 - plan.labels)                    # 1: it is the next

    def plans(self, documents, copy):
        """Pairs, and as many tokens of dialogues. A dialogue goes with the document it is from, or,
        if it is from the user's file, with any one: so some are held out."""
        c, pairs = self.config, self.plan(documents, copy)
        if self.talk is None:
            return [pairs]
        count, several = len(self.talk.dialogues) - 1, len(self.corpus.documents) - 1
        owner = np.arange(count) * several // count
        if len(self.talk.documents):
            owner = np.where(self.talk.documents < 0, owner, self.talk.documents)
        mine, seed = np.flatnonzero(np.isin(owner, documents)), (self.seed, copy)
        rounds = (passages.triples(self.talk, mine, c.seq, (*seed, n), self.tokenizer, "dialogue")
                  for n in itertools.count())
        rng = np.random.default_rng((*seed, 10**6))
        found = passages.filled(rounds, pairs.lengths().sum(), rng)
        return [plan for plan in (pairs, found) if plan]

    def batch(self, plan, copy):
        if plan.kind != "dialogue":
            return super().batch(plan, copy)
        s = segments.lay_out(self.talk, plan)
        noisy, hidden = self.noise(s, copy)
        return self.arrays(s, noisy, mlm=(hidden, s.ids[hidden]), dialogue=(s.cuts[:-1], s.labels))

    def units(self, s, level):
        """Which unit every token belongs to. level [T]: of its sequence."""
        begins = self.begins[s.ids]
        if self.config.level and s.kind != "dialogue":
            longer = [self.knowledge.starts(s.places, unit) for unit in UNITS[1:]]
            begins = np.choose(level, [begins, *longer])
        return corrupt.units(begins, s.places < 0, s.sequence)

    def noise(self, s, copy):
        c, (which, kind, other, more) = self.config, self.draws(s, copy)
        # A sequence's level is any up to the stage's.
        level = corrupt.below(more[s.cuts[:-1]], c.level + 1)           # [S]
        unit = self.units(s, level[s.sequence])
        hidden = corrupt.bernoulli(which, unit, c.masked)
        strange = corrupt.uniform(other, 1, c.vocab)                    # any word but the first
        return corrupt.replace(s.ids, hidden, kind, strange, self.tokenizer.mask), hidden


# ---- the published file's config.json

HF_TYPES = "ernie",
HF_CONFIG = dict(bert.HF_CONFIG, use_tasks="use_task_id", task_types="task_type_vocab_size")
# ErnieConfig() is BERT-base with a table of three tasks that is not used.
HF_DEFAULTS = dict(vocab=30522, positions=512, eps=1e-12, activation="gelu")
HF_CLASSES = {"ErnieModel": ("pooler",), "ErnieForMaskedLM": ("mlm",),
              "ErnieForPreTraining": ("pooler", "mlm", "nsp"),
              "ErnieForNextSentencePrediction": ("pooler", "nsp"), **tasks_of("Ernie")}
HF_REFUSED = bert.HF_REFUSED
HF_TIED = {"cls.predictions.decoder.weight": "ernie.embeddings.word_embeddings.weight",
           "cls.predictions.decoder.bias": "cls.predictions.bias"}
HF_IGNORED = r"ernie\.embeddings\.position_ids"
HF_PREFIXES = "bert.",              # of early conversions, whose config.json says ernie


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                 steps=650, warmup=60, lr=5e-3, **bert.SMALL),
    tiny=Config(layers=2, heads=2, width=128, hidden=512, steps=4000, warmup=400, lr=3e-3,
                **dict(bert.SMALL, seq=64)),
    base=Config(),
)
