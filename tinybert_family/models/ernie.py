"""ERNIE 1.0 (Sun, Wang, Li, Feng, Chen, Zhang, Tian, Zhu, Tian, Wu; Baidu, 2019) hides what belongs
together together: whole phrases and names instead of single characters, so that the model has to
know the world, and not only how a word goes on.

Unlike BERT: the MLPs and the masked-word head have ReLU; the norms' eps is 1e-5; there are 513
positions and 18,000 Chinese words; label 1 of the sentence task means that the second passage does
follow, where BERT's means that it does not; and further training on dialogues asks whether the
three turns of one are real. What is hidden is the objective's business, not the network's.

Published files of every ERNIE by Baidu say model_type "ernie". Those of later ones may bring a
table of tasks, added to the embeddings as the table of types is: `use_tasks`.
"""
from dataclasses import dataclass

from ..engine import fused
from ..engine.nn import dropout
from ..error import Error
from . import bert
from .parts import heads, padded
from .parts.names import renamed, tasks_of


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are ERNIE 1.0 and its recipe."""
    vocab: int = 18000
    positions: int = 513
    eps: float = 1e-5
    activation: str = "relu"
    use_tasks: bool = False         # add an embedding of the task, as ERNIE 2.0 and 3.0 do?
    task_types: int = 3             # rows of its table
    seq: int = 512
    predictions: int = 512          # as many as there are: each unit is hidden by a draw of its own
    tokens: int = 8192
    accumulate: int = 1             # a batch is 8,192 tokens, however many sequences that is
    warmup: int = 5000

    LIMITS = dict(bert.Config.LIMITS, task_types=(1, 1000))


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
                 steps=2500, warmup=200, lr=5e-3, **bert.SMALL),
    base=Config(),
)
