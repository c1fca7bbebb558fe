"""What a student learns from a teacher: its answers, the directions of its states, the states
themselves, or where it looks. Beside them, what every student needs: a teacher that stands still,
and plain words where the two do not fit.

A teacher's answer says more than the right word does: which others it thought of. Softened by a
temperature ("heat") of 2, these show more clearly (Hinton, Vinyals and Dean, 2015). In

    KL(teacher || student) = sum over words of q log(q / p)

the teacher stands first, so the student pays for every word that it forgets.
"""
import contextlib
import copy
from dataclasses import fields, replace

import numpy as np

from ...engine import autograd, fused, ops, philox
from ...engine.autograd import op
from ...engine.backend import row_blocks
from ...error import Error
from .. import bert

NOBODY = -1e30              # the score of a key that is not there: its share is exactly 0
EPS = 1e-12                 # below the lengths of states, as in torch's CosineEmbeddingLoss


# ---- the teacher

@contextlib.contextmanager
def still():
    """Nothing is recorded and nothing dropped: how a teacher is asked."""
    with autograd.no_grad(), philox.replay(None):
        yield


def fits(teacher, c, tokenizer, **wanted):
    """Refuse a teacher that this student cannot learn from.

    wanted: a field of the Config that must be equal in both, and why.
    """
    if teacher is None:
        raise Error("this model learns from a teacher and has none; give one with --teacher "
                    "FOLDER, or let train.py train one first")
    t, own = teacher.config, hasattr(teacher.embeddings, "position")
    if not own or hasattr(t, "pad"):
        raise Error("--teacher: its positions are not counted as BERT's and the student's are; "
                    "give a teacher of BERT's kind")
    if t.vocab != tokenizer.size:
        raise Error(f"--teacher: it knows {t.vocab:,} word pieces, but the tokenizer here has "
                    f"{tokenizer.size:,}; give the teacher's own: --tokenizer with its folder")
    for field, why in wanted.items():
        own, its = getattr(c, field), getattr(t, field)
        if own != its:
            raise Error(f"--teacher: its {field} is {its}, but the student's is {own} ({why}); "
                        f"use --{field.replace('_', '-')} {its}, or another teacher")
    if t.positions < c.seq:
        raise Error(f"--teacher: it has {t.positions} positions, too few for sequences of "
                    f"{c.seq} tokens; use --seq {t.positions}")


def needs_heads(teacher, *heads):
    for head in heads:
        if getattr(teacher, head, None) is None:
            raise Error(f"--teacher: it has no {head} head, whose answers the student is to learn; "
                        "give a folder that was pre-trained with one")


def through(model, inputs, deep, rows=None):
    """What enters each of the first `deep` layers, and what leaves the last."""
    shallow, states = copy.copy(model), []
    shallow.layers = model.layers[:deep]
    last = shallow.encode(inputs, rows, states)
    return [*states, last]


ARCHITECTURE = "vocab heads width hidden positions activation".split()


def teacher_like(c, **own):
    """The Config of a BERT to learn from: the student's shape; of narrow models also its recipe."""
    shared = [f.name for f in fields(bert.Config)] if c.near else ARCHITECTURE
    given = {name: getattr(c, name) for name in shared}
    return replace(bert.Config(), **{**given, **own})


# ---- the four losses

@op
def soft_loss(xp, x, w, b, teacher=None, weights=None, heat=1.0, labels=None, gold=0.0,
              saving=True):
    """sum of weights * KL(q || softmax(z / heat)) with z = x w^T + b, q the teacher's softmax.

    teacher: its own (x, w, b). With labels, a share `gold` of the target is the right word:
    gold * cross-entropy + (1 - gold) * KL. As in vocabulary_loss the logits become their own
    gradient, (p - target) * weight / heat; the teacher's are there for some rows at a time only.
    """
    others, table, shift = teacher
    z = x @ w.T                                                     # [K, V]
    loss = xp.zeros((), x.dtype)
    for r in row_blocks(z, size=512 * 1024):
        p, t = z[r], others[r] @ table.T
        for scores, bias in (p, b), (t, shift):
            scores += bias
            scores *= 1 / heat
            scores -= scores.max(-1, keepdims=True)
        q = xp.exp(t)
        t -= p
        total = q @ xp.ones(q.shape[1], q.dtype)
        along = xp.einsum("kv,kv->k", q, t) / total                 # sum of q (t - z)
        here = xp.arange(len(p))
        right = None if labels is None else p[here, labels[r]]
        xp.exp(p, out=p)
        own = p @ xp.ones(p.shape[1], p.dtype)
        each = (1 - gold) * (along - xp.log(total) + xp.log(own))
        if labels is not None:
            each += gold * (xp.log(own) - right)
        loss += (each * weights[r]).sum()
        if saving:
            p /= own[:, None]
            q *= ((1 - gold) / total)[:, None]
            p -= q
            if labels is not None:
                p[here, labels[r]] -= gold
            p *= (weights[r] / heat)[:, None]
    return loss, (x, w, z)


@soft_loss.grad
def _(xp, saved, dy, **static):
    x, w, dz = saved
    return dz @ w * dy, dz.T @ (x * dy), fused.column_sums(xp, dz) * dy


def answers_of(head, states):
    """(x, w, b) of a head for words, whose product is its logits."""
    return head.features(states), head.word, head.bias


def even(count, total, kind):
    """The weights of `count` of the `total` answers that a step is a mean of."""
    return np.full(count, 1 / max(1, int(total)), kind)


def squares(x, target, weight):
    """weight * sum of (x - target)^2"""
    d = x - target
    return ops.square(d).sum() * weight


def turning(x, target, weight):
    """weight * sum of 1 - cos(angle between a state and the teacher's).  [T, H] both"""
    product = (x * target).sum(axis=1)
    own = ops.square(x).sum(axis=1) + EPS
    its = (target * target).sum(axis=1) + EPS
    cosine = product / ops.sqrt(own * its)
    return (1 - cosine).sum() * weight


def looking(scores, target, weight):
    """weight * sum over queries and heads of KL(teacher's attention || student's).  [T, A, P]"""
    theirs = ops.log_softmax(target).data
    q = ops.exp(theirs).data
    return ((theirs - ops.log_softmax(scores)) * (q * weight)).sum()


# ---- an objective of answers and directions

class Answers(bert.Objective):
    """Hidden words, the teacher's answer at every token, and the direction of its last states."""
    TASKS = dict(mlm="mlm")

    def __init__(self, c, corpus, tokenizer, seed=0, knowledge=None, teacher=None):
        super().__init__(c, corpus, tokenizer, seed, knowledge, teacher)
        fits(teacher, c, tokenizer, width="its states and layers are taken over as they are")
        needs_heads(teacher, "mlm")
        self.WEIGHTS = dict(soft=c.soft, mlm=c.hard, turned=c.turned)

    def counts(self, b):
        return np.array([len(b["mlm_labels"]), len(b["ids"])])

    def asked(self, b):
        """The teacher's last states [T, H], and (x, w, b) of its answers. It sees what the student
        sees: the same words are hidden from both."""
        with still():
            states = self.teacher.encode(self.inputs(b))
            return states.data, [t.data for t in answers_of(self.teacher.mlm, states)]

    def loss(self, model, b, counts):
        c, labels, hidden = self.config, b["mlm_labels"], b["asked"][b["mlm_at"]]
        theirs, answers = self.asked(b)
        mine = model.encode(self.inputs(b))                                             # [T, H]
        features, word, bias = answers_of(model.mlm, mine)
        weights = even(len(labels), counts[0], theirs.dtype)
        right = fused.vocabulary_loss(ops.take(features, index=hidden), word, bias, labels=labels,
                                      weights=weights)
        # Softer answers have gradients smaller by heat^2, which is given back.
        weights = even(len(theirs), counts[1], theirs.dtype) * c.heat ** 2
        soft = soft_loss(features, word, bias, teacher=answers, weights=weights, heat=c.heat)
        turned = turning(mine, theirs, 1 / int(counts[1]))
        return dict(soft_loss=soft, mlm_loss=right, turned_loss=turned)

    def scores(self, model, b):
        n = self.counts(b)
        losses = self.loss(model, b, n)
        scores = {name: (value.item() * n[1], n[1]) for name, value in losses.items()}
        return scores | super().scores(model, b)

    def chance(self, batches, frequency):
        """What is known of a teacher by who only knows how often each word occurs, and what its
        states have in common."""
        c, total, units, tokens = self.config, 0.0, 0.0, 0
        bias = np.log(frequency / frequency.sum())
        for b in batches:
            states, answers = self.asked(b)
            n = len(states)
            nothing = np.zeros((n, 1)), np.zeros((c.vocab, 1)), bias
            total += soft_loss(*nothing, teacher=answers, weights=np.ones(n), heat=c.heat).item()
            units += (states / np.linalg.norm(states, axis=1, keepdims=True)).sum(0)
            tokens += n
        return dict(super().chance(batches, frequency),
                    soft_loss=c.heat ** 2 * total / tokens,
                    turned_loss=float(1 - np.linalg.norm(units) / tokens))


def kept(student, teacher):
    """The teacher's layers that a student begins with: 0, 2, 4, 7, 9, 11 for six of twelve."""
    if student == 1:
        return [0]
    return [int(i * (teacher - 1) / (student - 1) + 0.5) for i in range(student)]


def take_over(student, teacher):
    """Begin with the teacher's words, positions and head, and some of its layers.

    What is added to every word of the first segment is not; the code of the paper has it so, too.
    """
    of_teacher = teacher.named()
    layers = kept(len(student.layers), len(teacher.layers))
    for name, tensor in student.named().items():
        where, _, rest = name.partition(".")
        if where == "layers":
            number, _, rest = rest.partition(".")
            name = f"layers.{layers[int(number)]}.{rest}"
        source = of_teacher[name].data
        if source.shape[1:] != tensor.shape[1:] or len(source) < len(tensor.data):
            raise Error(f"--teacher: its {name} has shape {source.shape}, but the student's "
                        f"{tensor.shape}; give both one width and one hidden, or --begun false")
        tensor.data[...] = source[:len(tensor.data)]


# ---- the noise that goes with it

def counts_of(corpus, size):
    """How often each word occurs in the text trained on, at least once.  [V]"""
    counts = np.zeros(size)
    for document in corpus.train:
        first, last = corpus.sentences[corpus.documents[document:document + 2]]
        counts += np.bincount(corpus.ids[first:last], minlength=size)
    return np.maximum(counts, 1)
