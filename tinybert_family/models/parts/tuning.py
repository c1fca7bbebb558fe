"""What a teacher does before a task is taught: it learns the task itself, and says what could stand
in place of a word."""
import weakref
from dataclasses import replace

import numpy as np

from ...engine import ops, philox
from ...engine.nn import Init
from ...engine.optim import AdamW, Arena, clip, linear
from ...error import Error
from ...text import augment, labelled, segments
from ...text.batches import pack, ragged
from . import distil, padded

HEADS = "pooler", "sequence"
ASKED = 4096                    # tokens that the teacher reads at a time
_lessons = weakref.WeakKeyDictionary()      # teacher -> {settings: what was made for a task}


class Lesson:
    """`task`, with more examples to learn from, and `teacher`, which knows it.

    note(line) is told what was done.
    """

    def __init__(self, teacher, c, corpus, tokenizer, knowledge, seed, note):
        self.c, self.corpus, self.tokenizer, self.seed = c, corpus, tokenizer, seed
        if c.task:
            self.task = labelled.read(c.task, tokenizer, corpus, c.labels, c.seq)
        else:
            self.task = labelled.of_corpus(corpus, tokenizer, c.labels, c.seq)
        note(f"task   {self.task.about}")
        self.teacher, said = teacher, "knows"
        if getattr(teacher, "sequence", None) is None:
            self.teacher, said = self.tune(teacher), "has learnt"
        elif teacher.config.labels != c.labels:
            raise Error(f"--teacher: it tells {teacher.config.labels} labels apart, the student "
                        f"{c.labels}; use --labels {teacher.config.labels}, or a teacher without "
                        "a classifier, which then learns the task first")
        note(f"       the teacher {said} it: {self.accuracy():.1%} of what is held out")
        if c.augmented:
            before = len(self.task.of(corpus.train))
            self.task = self.widened(teacher, knowledge)
            after = len(self.task.of(corpus.train))
            note(f"       {before:,} examples have become {after:,}")

    def widened(self, teacher, knowledge):
        """The task with up to c.augmented copies of each example that is learnt from."""
        c, task = self.c, self.task
        if getattr(teacher, "mlm", None) is None:
            raise Error("--teacher: it has no mlm head to find other words with; give one that "
                        "has, or leave the examples as they are with --augmented 0")
        near = None
        if knowledge and knowledge.similar:
            near = knowledge.similar.neighbours
        helper = augment.Augmenter(self.tokenizer, guesser(teacher, self.tokenizer), near)
        rows = augment.augmented(task.of(self.corpus.train), helper, c.augmented,
                                 (self.seed, 1), c.seq, labelled.shortened)
        rows += task.of(self.corpus.held)
        return labelled.Task(rows, task.labels, task.about)

    # ---- fine-tuning

    def batches(self, documents, tokens, rng=None):
        """[Sequences] of the rows of these documents."""
        plan = self.task.plan(documents, self.tokenizer)
        if rng:
            plan = plan[rng.permutation(len(plan))]
        packs = pack(plan.lengths(), tokens)
        return [segments.lay_out(self.task, plan[rows]) for rows in packs]

    def tune(self, teacher):
        """A copy of it with a classifier, trained on the task: c.tuning passes over it."""
        c, model = self.c, with_classifier(teacher, self.c.labels, self.seed)
        arena = Arena(model.named().items())
        optimizer = AdamW(arena, decay=0.01)
        rng, todo = np.random.default_rng([self.seed, 2]), []
        for _ in range(c.tuning):
            todo += self.batches(self.corpus.train, c.tokens, rng)
        for step, s in enumerate(todo):
            weights = np.full(len(s.labels), 1 / len(s.labels), arena.data.dtype)
            Arena.forget(arena.tensors)
            with philox.at(self.seed, step):
                model.sequence.loss(firsts(model, s), s.labels, weights).backward()
            Arena.settle(arena.tensors)
            clip(arena.grad, 1.0)
            rate = linear(step, len(todo), len(todo) // 10)
            optimizer.step(c.tuning_lr * rate)
        return model

    def accuracy(self):
        """Of the teacher, on what is held out."""
        right = total = 0
        with distil.still():
            for s in self.batches(self.corpus.held, ASKED):
                answers = self.teacher.sequence(firsts(self.teacher, s)).data
                right += (answers.argmax(1) == s.labels).sum()
                total += len(s.labels)
        return right / max(1, total)


def lesson(teacher, c, corpus, tokenizer, knowledge, seed, note):
    """Stages that follow each other share one; a run that is gone on with makes the same again."""
    known = _lessons.setdefault(teacher, {})
    settings = replace(c, phase="intermediate", lr=1.0, schedule="constant", warmup=0,
                       steps=1)
    if (settings, seed) not in known:
        known[settings, seed] = Lesson(teacher, c, corpus, tokenizer, knowledge, seed, note)
    return known[settings, seed]


def with_classifier(teacher, labels, seed):
    """A copy with new heads; a summary that the teacher has is kept."""
    arrays = teacher.named()
    kind = next(iter(arrays.values())).dtype
    settled = replace(teacher.config, labels=labels)
    model = type(teacher)(settled, Init(seed, settled.init, kind), HEADS)
    for name, tensor in model.named().items():
        if name in arrays:
            tensor.data[...] = arrays[name].data
    return model


def firsts(model, s):
    """The last state of each sequence's first token.  [S, H]"""
    inputs = padded.Packed(s.ids, s.types, s.positions, s.cuts)
    return model.encode(inputs, s.cuts[:-1])


# ---- what could stand there

def guesser(model, tokenizer):
    """The function that an Augmenter asks: [CLS] masked text [SEP] the text itself [SEP]."""
    cls, sep, most = [tokenizer.cls], [tokenizer.sep], model.config.positions

    def frame(hidden, ids, place):
        first, second = [cls, hidden, sep], [ids, sep]
        if len(hidden) + len(ids) + 3 > most:           # then without the second
            second = []
        row = np.concatenate(first + second)[:most]
        types = np.arange(len(row)) >= len(hidden) + 2
        return row.astype(np.int64), types.astype(np.int64), min(place + 1, most - 1)

    def asked(frames):
        """Scores of all words at the places that are asked for.  [n, V]"""
        rows, types, places = zip(*frames)
        ids, cuts = ragged(rows)
        types, _ = ragged(types)
        positions, _ = ragged([np.arange(len(row)) for row in rows])
        with distil.still():
            states = model.encode(padded.Packed(ids, types, positions, cuts))
            return model.mlm(ops.take(states, index=cuts[:-1] + places)).data

    def guess(queries, count):
        frames = [frame(*query) for query in queries]
        lengths = np.array([len(row) for row, *_ in frames])
        order = np.argsort(-lengths, kind="stable")
        found = np.zeros((len(frames), count), np.int64)
        for some in pack(lengths[order], max(ASKED, most)):
            chosen = order[np.sort(some)]
            scores = asked([frames[i] for i in chosen])
            found[chosen] = best_of(scores, count)
        return found
    return guess


def best_of(scores, count):
    """The places of the highest in each row, from the highest down.  [n, V] -> [n, count]"""
    some = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    height = np.take_along_axis(scores, some, 1)
    rank = np.argsort(-height, axis=1, kind="stable")
    return np.take_along_axis(some, rank, 1)
