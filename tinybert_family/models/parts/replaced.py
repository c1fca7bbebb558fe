"""Replaced-token detection: ELECTRA's objective, and DeBERTa v3's.

A generator guesses hidden words. Its guesses, drawn at random as likely as it thinks them, are
written into the text, and a discriminator says of every token whether it is the text's or the
generator's:

    text            the  chef  cooked  the  meal
    hidden          the  chef  [MASK]  the  [MASK]
    guessed         the  chef  ate     the  meal
    right answers   0    0     1       0    0           a lucky guess is no replacement

The generator learns to guess, not to deceive: nothing flows back through what it draws. Both are
trained at once, each by its own loss.
"""
import copy
import math

import numpy as np

from ...engine import autograd, fused, optim
from ...engine.autograd import Tensor
from ...engine.backend import module_of
from ...engine.nn import Linear, Module
from ...text import segments
from .. import bert
from . import heads
from .objective import surprise


class Replaced(heads.Head):
    """Did the generator put this token there? One number each, above 0 for yes.  [T, H] -> [T]"""

    def __init__(self, c, init, model):
        self.config = c
        self.dense = Linear(init, c.width, c.width)
        self.classifier = Linear(init, c.width, 1)

    def forward(self, x):
        y = fused.linear(x, self.dense.weight)
        y = bert.activate(self.config, y, self.dense.bias)              # [T, H]
        return self.classifier(y).reshape(len(x))

    def loss(self, x, labels, weights):
        """Over all tokens, not only those that were hidden: that is the point."""
        return fused.binary_loss(self(x), labels=labels, weights=weights)


class Pair(Module):
    """What is trained: a discriminator, and the generator beside it that is thrown away."""

    def __init__(self, c, discriminator, generator):
        self.config, self.discriminator, self.generator = c, discriminator, generator

    def clip(self, arena, limit):
        """Shorten the gradient to the limit; how long it was. Decoupled networks are measured and
        shortened each for itself, as if each had an optimiser of its own."""
        if not getattr(self.config, "decoupled", False):
            return optim.clip(arena.grad, limit)
        parts = dict(discriminator=[], generator=[])
        for name, piece in zip(arena.names, arena.views(arena.grad)):
            owner = name.split(".")[0]
            parts[owner].append(piece)
        lengths = [clip_together(part, limit) for part in parts.values()]
        return math.hypot(*lengths)

    def parts(self):
        return {"": self.discriminator, "generator": self.generator}

    def published(self):
        """Both, in folders of their own, over the same arrays."""
        return {name: copy.copy(model) for name, model in self.parts().items()}

    def settle(self):
        """What they share, they share already."""


def clip_together(pieces, limit):
    lengths = [optim.global_norm(piece.reshape(-1)) for piece in pieces]
    length = math.hypot(*lengths)
    if limit and length > limit and math.isfinite(length):
        for piece in pieces:
            piece *= limit / length
    return length


# ---- what the generator says

CHUNK = 64                      # words whose probabilities are summed first
BLOCK = 1 << 20                 # scores that exist at a time


def drawn(scores, draws):
    """One word of each row, as likely as softmax(scores) has it.  [K, V], uint32 [K] -> [K]

    The words' probabilities lie side by side on a line, and the draw is a place on it. Whose place
    it is, is looked up in two steps: among sums of 64 words, then among these. (The released code
    of ELECTRA adds Gumbel noise to all scores and takes the largest. The law is the same, but takes
    a random number for every word of the vocabulary.)
    """
    xp = module_of(scores)
    rows, words = scores.shape
    chunks = -(-words // CHUNK)
    p = xp.zeros((rows, chunks * CHUNK), scores.dtype)
    z = scores - scores.max(1, keepdims=True)
    xp.exp(z, out=p[:, :words])
    p = p.reshape(rows, chunks, CHUNK)
    sums = p.sum(2, dtype=xp.float64)                                   # [K, V / 64]
    ends = sums.cumsum(1)
    share = draws / 2.0 ** 32
    place = share * ends[:, -1]                                         # [K]
    chunk = whose(place, ends)
    here = xp.arange(rows)
    place -= ends[here, chunk] - sums[here, chunk]
    p = p[here, chunk].astype(xp.float64)                               # [K, 64]
    word = whose(place, p.cumsum(1))
    return xp.minimum(chunk * CHUNK + word, words - 1)


def whose(place, ends):
    """The number of the piece of a line that a place lies on; ends: of the pieces, row by row."""
    passed = ends[:, :-1] <= place[:, None]
    return passed.sum(1)


def guesses(head, x, draws):
    """What a head says of states x [K, H], drawn. -> [K]

    The scores are computed for this alone and some rows at a time: those that the loss is made of
    have become their own gradient by then.
    """
    found = []
    words = max(len(tensor) for tensor in head.named().values())
    step = max(1, BLOCK // words)
    with autograd.no_grad():
        for lo in range(0, max(1, len(x)), step):
            part = slice(lo, lo + step)
            scores = head(Tensor(x.data[part])).data                    # [step, V]
            found.append(drawn(scores, draws[part]))
    return module_of(x.data).concatenate(found)


# ---- the objective

class Detection(bert.Objective):
    """The generator's task is mlm, the discriminator's rtd. A variant says with `plan` and `noise`
    what the generator sees.
    """
    TASKS = dict(mlm="mlm", rtd="rtd")
    LUCK = 1                    # the lane of the draws that choose the generator's guesses

    def __init__(self, c, *given, **named):
        super().__init__(c, *given, **named)
        self.WEIGHTS = dict(rtd=c.rtd_weight)

    def filler(self, pair):
        return pair.generator

    def batch(self, plan, copy):
        s = segments.lay_out(self.corpus, plan)
        noisy, hidden = self.noise(s, copy)
        luck, *_ = self.draws(s, copy, self.LUCK)                       # [T]
        b = self.arrays(s, noisy, mlm=(hidden, s.ids[hidden]))
        return dict(b, luck=luck[hidden])

    def judged(self, b):
        """The tokens that the discriminator is asked about; None: all."""

    def counts(self, b):
        judged = self.judged(b)
        if judged is None:
            judged = b["ids"]
        return np.array([len(b["asked"]), len(judged)])

    def states(self, generator, b):
        """What the generator guesses hidden words from.  [K, H]"""
        return generator.encode(self.inputs(b), b["asked"])

    def filled(self, generator, x, b):
        """(the text with guesses for the hidden words, which of its tokens are wrong), [T] each"""
        places, right = b["asked"], b["mlm_labels"]
        words = guesses(generator.mlm, x, b["luck"])                    # [K]
        ids = b["ids"].copy()
        ids[places] = words
        wrong = module_of(ids).zeros(len(ids), bool)
        wrong[places] = words != right
        return ids, wrong

    def answers(self, pair, b):
        x = self.states(pair.generator, b)
        yield "mlm", pair.generator.mlm, x, b["mlm_labels"]
        ids, wrong = self.filled(pair.generator, x, b)
        inputs = self.inputs(dict(b, ids=ids))
        yield self.verdict(pair.discriminator, b, inputs, wrong, self.judged(b))

    def verdict(self, model, b, inputs, wrong, judged):
        x = model.encode(inputs, judged)                                # [T, H]
        if judged is not None:
            return "rtd", model.rtd, x, wrong[judged]
        return "rtd", model.rtd, model.rtd.select(x, inputs), wrong

    # ---- how well it does

    def scores(self, pair, b):
        """Nearly all tokens are the text's, so to call each of them that is a high accuracy. Hence
        also the share of either kind that is recognised, where a word is called replaced if that
        is likelier than it is on average, and the mean of the two. Of a guess it is 0.5."""
        scores = {}
        for task, head, states, labels in self.answers(pair, b):
            logits, n = head(states).numpy(), len(labels)
            if task == "rtd":           # of one number: softmax(0, z) is the sigmoid of z
                words = self.ordinary(b)
                scores |= recalls(logits[words], labels[words])
                logits = np.stack([0 * logits, logits], 1)              # [T, 2]
            right = logits.argmax(1) == labels
            scores[f"{task}_loss"] = surprise(logits, labels.astype(int)).sum(), n
            scores[f"{task}_accuracy"] = right.sum(), n
        return scores

    def ordinary(self, b):
        """Which of the judged tokens may be replaced at all: none that is special."""
        ids, judged, tok = b["ids"], self.judged(b), self.tokenizer
        if judged is not None:
            ids = ids[judged]
        return (ids != tok.cls) & (ids != tok.sep)

    def chance(self, batches, frequency):
        """Of the discriminator: to call all tokens the text's, beside a generator that knows how
        often words occur."""
        found = super().chance(batches, frequency)
        if "rtd" not in self.TASKS:
            return found
        p = frequency / np.sum(frequency)
        wrong = [1 - p[b["mlm_labels"]] for b in batches]
        wrong = np.concatenate(wrong).sum()
        _, judged = sum(self.counts(b) for b in batches)
        q = wrong / judged                          # share of the tokens that are replaced
        entropy = -q * np.log(q) - (1 - q) * np.log1p(-q)
        found["rtd_loss"] = float(entropy)
        found["rtd_accuracy"] = float(max(q, 1 - q))
        return found | dict.fromkeys(RECALLS, 0.5)


RECALLS = "rtd_recall_replaced", "rtd_recall_original", "rtd_balanced_accuracy"


def recalls(logits, replaced):
    """How many of either kind are recognised, of how many; and the mean of the two shares."""
    half = 0.5 * logits.astype(np.float64)
    p = np.tanh(half) / 2 + 0.5
    right = (p > p.mean()) == replaced
    found = {}
    for name, kind in zip(RECALLS, (replaced, ~replaced)):
        if kind.any():
            found[name] = right[kind].sum(), kind.sum()
    if len(found) == 2:
        shares = [hits / n for hits, n in found.values()]
        found[RECALLS[2]] = sum(shares) / 2, 1
    return found
