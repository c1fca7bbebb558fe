"""What stands on an encoder: heads that read a whole sequence or every token of it, and the Output
of a call, which computes them when they are looked at.

`select` says which hidden states a head reads, `unpack` how its answers go back to the padded
batch. A head is given the model that it stands on, to share what both need.
"""
from functools import cached_property

from ...engine import autograd, fused, ops
from ...engine.nn import Linear, Module, dropout
from ...error import Error


class Head(Module):
    """One answer for every token.  [T, H] -> [T, labels]"""
    NEEDS = ()                                              # heads that it stands on

    def select(self, x, inputs):
        return x

    def unpack(self, y, inputs):
        return inputs.unpack(y)                             # [B, S, labels]

    def loss(self, x, labels, weights):
        """sum of weights * cross-entropy.  x [K, H], labels [K], weights [K]"""
        return fused.cross_entropy(self(x), labels=labels, weights=weights)


class Summary(Head):
    """One answer for every sequence, read from its first token.  [S, H] -> [S, labels]"""

    def select(self, x, inputs):
        return ops.take(x, index=inputs.firsts())

    def unpack(self, y, inputs):
        return inputs.unpack_first(y)                       # [B, labels]


class Pooler(Summary):
    """A summary of the sequence, as wide as the hidden states."""

    def __init__(self, c, init, model):
        self.dense = Linear(init, c.width, c.width)

    def forward(self, first):
        return ops.tanh(self.dense(first))


class NextSentence(Summary):
    """0: the second passage follows the first. 1: it does not."""
    NEEDS = "pooler",
    CLASSES = 2

    def __init__(self, c, init, model):
        self.pooler = model.pooler                          # shared, so counted once
        self.classifier = Linear(init, c.width, self.CLASSES)

    def forward(self, first):
        return self.classifier(self.pooler(first))


class Sequence(Summary):
    """Which of the labels the whole sequence has, or one number about it."""

    def __init__(self, c, init, model):
        self.config, self.pooler = c, model.pooler
        self.classifier = Linear(init, c.width, self.labels(c))

    @staticmethod
    def labels(c):
        return c.labels

    def forward(self, first):
        y = dropout(self.pooler(first), self.config.head_dropout)
        return self.classifier(y)


class Choice(Sequence):
    """How well a sequence answers; the candidates of a question are compared.  [S, H] -> [S, 1]"""

    @staticmethod
    def labels(c):
        return 1


class Token(Head):
    """Which of the labels every token has."""

    def __init__(self, c, init, model):
        self.config = c
        self.classifier = Linear(init, c.width, c.labels)

    def forward(self, x):
        return self.classifier(dropout(x, self.config.head_dropout))


class Question(Head):
    """Where in the text an answer begins and where it ends: two scores for every token."""

    def __init__(self, c, init, model):
        self.classifier = Linear(init, c.width, 2)

    def forward(self, x):
        return self.classifier(x)


# Every model has these; a file that says nothing of its own may inherit them.
TASKS = dict(sequence=Sequence, choice=Choice, token=Token, question=Question)
# `logits` are those of the first head in this row that a model has.
LOGITS = "sequence", "choice", "token", "mlm", "rtd", "nsp"


class Output:
    """What a call gives, by the names that transformers uses.

    Heads are computed when first looked at: scores for the whole vocabulary are large.
    """

    def __init__(self, model, x, inputs, choices=None):
        self.model, self.x, self.inputs, self.choices = model, x, inputs, choices
        self.recording = autograd.recording()
        self.known = {}                                     # head -> what it said

    def _of(self, name):
        """The answers of one head, padded as the batch was."""
        if getattr(self.model, name, None) is None:
            raise Error(f"this model was loaded from a file without the {name} head; "
                        "it has no such output")
        if name not in self.known:
            head = getattr(self.model, name)
            with autograd.recorded(self.recording):
                y = head(head.select(self.x, self.inputs))
                self.known[name] = head.unpack(y, self.inputs)
        return self.known[name]

    @cached_property
    def last_hidden_state(self):
        with autograd.recorded(self.recording):
            return self.inputs.unpack(self.x)               # [B, S, H]

    @cached_property
    def logits(self):
        has = [name for name in LOGITS if getattr(self.model, name, None) is not None]
        y = self._of(has[0] if has else "mlm")
        if self.choices is None:
            return y
        with autograd.recorded(self.recording):
            return y.reshape(-1, self.choices)              # [B * C, 1] -> [B, C]

    pooler_output = property(lambda self: self._of("pooler"))               # [B, H]
    prediction_logits = property(lambda self: self._of("mlm"))              # [B, S, V]
    seq_relationship_logits = property(lambda self: self._of("nsp"))        # [B, 2]
    start_logits = cached_property(lambda self: self._column(0))            # [B, S]
    end_logits = cached_property(lambda self: self._column(1))              # [B, S]

    def _column(self, i):
        ends = self._of("question")                         # [B, S, 2]
        with autograd.recorded(self.recording):
            columns = ops.transpose(ends, axes=(2, 0, 1))
            return ops.part(columns, lo=i, hi=i + 1).reshape(*ends.shape[:2])
