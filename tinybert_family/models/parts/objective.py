"""What all objectives share: from a plan to a batch, and from a batch to losses and scores.

An objective is noise on the host and loss on the device. The noise is NumPy alone and a function of
counters: the same seed, copy and sequence give the same batch. The loss is a sum over tasks. A task
is a head of the model, the tokens whose states it reads, and the right answers.
"""
import numpy as np

from ...engine import ops, philox
from ...error import Error
from ...text import segments
from . import padded


OWN = 1 << 31                   # sites of our own, beside those of dropout (engine/philox.py)


class Objective:
    """What a model is to learn from a corpus.

    A variant says which passages stand together (`plan`), what is hidden of them and how (`noise`),
    and which heads answer for what (TASKS).
    """
    TASKS = dict(mlm="mlm", nsp="nsp")      # a task, and the head that answers it
    WORDS = "mlm",                          # tasks whose answers are words
    WEIGHTS = {}                            # of a task's loss in the sum, where it is not 1
    NEEDS = ()                              # of what text/knowledge.py knows

    def __init__(self, c, corpus, tokenizer, seed=0, knowledge=None, teacher=None):
        self.config, self.corpus, self.tokenizer, self.seed = c, corpus, tokenizer, seed
        self.knowledge, self.teacher = knowledge, teacher
        if c.seq < 8:
            raise Error(f"seq: {c.seq}, but two passages and three special tokens need at least 8; "
                        "use --seq 8 or more")

    @classmethod
    def needs(cls, c, given):
        """What to ask of text/knowledge.py. given: the user's own files, by their options."""
        return set(cls.NEEDS)

    @staticmethod
    def teacher_of(c):
        """(model, Config) of a teacher to train where none is given; None: it needs none."""

    def begin(self, learner):
        """Once, before the first step."""

    def filler(self, learner):
        """The model that fills in hidden words, if there is one."""
        return learner

    def veil(self, ids, place):
        """A sentence with one word hidden, as the learner knows it."""
        return np.where(np.arange(len(ids)) == place, self.tokenizer.mask, ids)

    # ---- the data

    def plans(self, documents, copy):
        """The sequences of one masked copy of these documents: a plan for each kind of them."""
        return [self.plan(documents, copy)]

    def batch(self, plan, copy):
        """A dict of arrays. The answer to the sentence task is read from each first token."""
        s = segments.lay_out(self.corpus, plan)
        noisy, hidden = self.noise(s, copy)
        tasks = dict(mlm=(hidden, s.ids[hidden]))
        if "nsp" in self.TASKS:
            tasks["nsp"] = s.cuts[:-1], s.labels
        return self.arrays(s, noisy, **tasks)

    def noise(self, s, copy):
        """s: segments.Sequences -> (what the model sees [T], the tokens it is asked for [K])"""
        raise NotImplementedError

    def draws(self, s, copy, lane=0):
        """Four random words for every token, uint32 [T] each: functions of the seed, the copy, the
        sequence and the place in it, whoever else is in the batch. A lane has draws of its own."""
        document, number = s.keys[s.sequence].T.astype(np.uint64)                       # [T]
        counter = s.positions.astype(np.uint64), number, document, lane + OWN
        words = philox.philox(np, counter, (self.seed, copy))
        return [w.astype(np.uint32) for w in words]

    def arrays(self, s, ids, **tasks):
        """A batch. tasks: name=(the tokens that are asked [K], the answers [K]).

        Only the tokens that some task asks need a last hidden state: `asked`. Where among these
        the tokens of a task stand is `<task>_at`.
        """
        asked = np.unique(np.concatenate([places for places, _ in tasks.values()]))
        batch = dict(ids=ids, types=s.types, positions=s.positions, cuts=s.cuts, asked=asked)
        for task, (places, labels) in tasks.items():
            batch[f"{task}_at"] = np.searchsorted(asked, places)
            batch[f"{task}_labels"] = labels
        return batch

    # ---- what is computed from it

    def counts(self, b):
        """What the losses are averaged over; summed over the micro-batches of a step."""
        return np.array([len(b.get(f"{task}_labels", ())) for task in self.TASKS])

    def inputs(self, b):
        return padded.Packed(b["ids"], b["types"], b["positions"], b["cuts"])

    def answers(self, model, b):
        """(task, its head, the states it reads, the labels) for every task of a batch."""
        x = model.encode(self.inputs(b), b["asked"])                                    # [R, H]
        for task, head in self.TASKS.items():
            if f"{task}_at" in b:
                states = ops.take(x, index=b[f"{task}_at"])                             # [K, H]
                yield task, getattr(model, head), states, b[f"{task}_labels"]

    def loss(self, model, b, counts):
        """This micro-batch's share of each task's mean over a step: {"mlm_loss", "nsp_loss"}."""
        counts, losses = dict(zip(self.TASKS, counts)), {}
        for task, head, states, labels in self.answers(model, b):
            weights = np.full(len(labels), 1 / max(1, counts[task]), states.dtype)
            losses[f"{task}_loss"] = head.loss(states, labels, weights)
        return losses

    def total(self, losses):
        """What is minimised; for held-out text, what the curve shows."""
        parts = {name.removesuffix("_loss"): x for name, x in losses.items() if "_loss" in name}
        return sum(x * self.WEIGHTS[task] if task in self.WEIGHTS else x
                   for task, x in parts.items())

    def scores(self, model, b):
        """Sums over a held-out batch, by name, and what to divide them by."""
        scores = {}
        for task, head, states, labels in self.answers(model, b):
            logits, n = head(states).numpy(), len(labels)                               # [K, C]
            right = logits.argmax(1) == labels
            scores[f"{task}_loss"] = surprise(logits, labels).sum(), n
            scores[f"{task}_accuracy"] = right.sum(), n
        return scores

    def chance(self, batches, frequency):
        """The scores of knowing nothing but how often each answer occurs, and of always giving the
        commonest. frequency [V]: of the words, in the text trained on."""
        found = {}
        for task in self.TASKS:
            labels = [b[f"{task}_labels"] for b in batches if f"{task}_labels" in b]
            labels = np.concatenate(labels or [np.zeros(0, np.int64)])
            if len(labels):
                words = task in self.WORDS
                found |= chance_of(task, labels, frequency if words else np.bincount(labels))
        return found


def chance_of(task, labels, frequency):
    p = np.maximum(frequency, 1e-9) / np.sum(frequency)
    surprise, commonest = -np.log(p[labels]).mean(), int(np.argmax(frequency))
    return {f"{task}_loss": float(surprise),
            f"{task}_accuracy": float((labels == commonest).mean())}


def surprise(logits, labels):
    """-log probability of the labels, in float64."""
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    total = np.log(np.exp(z).sum(1))
    return total - z[np.arange(len(z)), labels]
