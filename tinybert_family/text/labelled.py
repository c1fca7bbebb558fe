"""Texts with labels, to learn a task from: the user's file, or a task that the corpus itself sets.

    label <tab> text                    a line each; a third column is a second text
    sentence <tab> label                or with a first line that names the columns, one of them
    ...                                 "label", and no more than two others

The corpus's own tasks have true answers without anybody's work: which package does a passage come
from (where documents have names such as email.header and asyncio.tasks), or, where they have not,
do two passages come from one document. As many examples of each answer, and documents that are held
out give none to learn from.
"""
from collections import Counter
from typing import NamedTuple

import numpy as np
import regex

from tinybert_family.error import Error
from tinybert_family.text import resources, segments
from tinybert_family.text.batches import ragged

SHARE_HELD = 10                 # of a file's lines every tenth is held out
LEAST = 12                      # tokens of a passage, with its frame
MOST = 400                      # examples of each answer
FEW = 20                        # examples altogether, which are no task


NOTHING = np.zeros(0, np.int64)


class Row(NamedTuple):
    a: np.ndarray               # the ids of a text
    b: np.ndarray               # of a second one, or of none
    label: int
    document: int               # of the corpus; held out if that is


class Task:
    """Rows as plans and batches want them: `ids` and `plan` as of a corpus."""

    def __init__(self, rows, labels, about):
        self.labels, self.about = labels, about
        self.rows = list(rows)
        parts = []
        for row in self.rows:
            parts += row.a, row.b
        self.ids, ends = ragged([*parts, np.zeros(1)])      # one more: places of -1 look there
        table = np.zeros((len(self.rows), 7), np.int64)
        table[:, segments.A] = ends[:-2:2]
        table[:, segments.A_END] = table[:, segments.B] = ends[1:-1:2]
        table[:, segments.B_END] = ends[2:-1:2]
        table[:, segments.LABEL] = [row.label for row in self.rows]
        table[:, segments.DOCUMENT] = [row.document for row in self.rows]
        table[:, segments.NUMBER] = np.arange(len(self.rows))
        self.table = table

    def plan(self, documents, marks):
        """[CLS] A [SEP], or [CLS] A [SEP] B [SEP], of the rows that belong to these documents."""
        mine = np.isin(self.table[:, segments.DOCUMENT], documents)
        return segments.framed(self.table[mine], marks)

    def of(self, documents):
        documents = set(np.asarray(documents).tolist())
        return [row for row in self.rows if row.document in documents]


def shortened(a, b, length):
    """Both texts, no longer than a sequence with its frame; the longer loses its end first."""
    room = length - 2
    if len(b):
        room -= 1
    while len(a) + len(b) > room:
        if len(a) >= len(b):
            a = a[:-1]
        else:
            b = b[:-1]
    return a, b


# ---- the user's file

def read(path, tokenizer, corpus, labels, length):
    """The Task of a file of `labels` different labels."""
    lines = cells_of(path)
    at = 0
    if lines and "label" in lines[0][1]:
        _, head = lines.pop(0)
        at = head.index("label")
    found = [split(path, n, cells, at) for n, cells in lines]
    names = sorted({label for label, *_ in found})
    if len(names) != labels:
        shown = ", ".join(names[:5])
        more = " ..." if len(names) > 5 else ""
        raise Error(f"--task {path}: {len(names)} different labels ({shown}{more}), but the model "
                    f"is to tell {labels} apart; use --labels {max(2, len(names))}")
    rows = []
    for i, (label, *both) in enumerate(found):
        a, b = [np.array(tokenizer.encode(text), np.int64) for text in both]
        a, b = shortened(a, b, length)
        rows.append(Row(a, b, names.index(label), side_of(corpus, i)))
    return Task(rows, names, f"{path}: {len(rows):,} examples, {labels} labels; always the "
                             f"commonest: {commonest(rows):.1%}")


def cells_of(path):
    """[(number, its cells)] of the lines that are not empty."""
    return [(n, line.split("\t")) for n, line in resources.lines_of(path, "task")]


def split(path, n, cells, at):
    """A line's label, its text, and the second or nothing."""
    others = cells[:at] + cells[at + 1:]
    if len(others) not in (1, 2) or not all(text.strip() for text in others):
        raise Error(f"--task {path} line {n}: {len(cells)} columns; write a label, a tab and a "
                    "text, and perhaps another tab and a second text")
    return cells[at], others[0], "".join(others[1:])


def side_of(corpus, i):
    """A file's texts belong to no document, so each is given one: held out or not."""
    number, last = divmod(i, SHARE_HELD)
    side = corpus.held if last == SHARE_HELD - 1 else corpus.train
    return int(side[number % len(side)])


def commonest(rows):
    """How often he is right who always gives the commonest answer."""
    counts = np.bincount([row.label for row in rows])
    return counts.max() / counts.sum()


# ---- tasks that a corpus sets

FIRST = regex.compile(r"[^./#: ]*").match


def package(name):
    """email.mime.text -> email; notes.txt#12 -> notes"""
    return FIRST(name.strip()).group()


def of_corpus(corpus, tokenizer, labels, length):
    """Packages, if there are enough of them; else pairs."""
    return packages(corpus, tokenizer, labels, length) or pairs(corpus, tokenizer, length)


def passages(corpus, tokenizer, length):
    """[(ids, document)]: sentences that stand together, as many as fit."""
    documents = np.concatenate([corpus.train, corpus.held])
    plan = segments.single_blocks(corpus, documents, length, (0, 0), tokenizer, least=LEAST)
    first, last = plan.cuts[:-1] + 1, plan.cuts[1:] - 2         # between [CLS] and [SEP]
    lo, hi = plan.pieces[first, 0], plan.pieces[last, 1]
    found = []
    for a, b, document in zip(lo, hi, plan.keys[:, 0]):
        found.append((corpus.ids[a:b].astype(np.int64), int(document)))
    return found


def packages(corpus, tokenizer, labels, length):
    """Which package does a passage come from? None if fewer than `labels` have two documents to
    learn from and one that is held out."""
    held = set(np.asarray(corpus.held).tolist())
    owner = [package(name) for name in corpus.names]
    counts = [Counter(owner[d] for d in side) for side in (corpus.train, corpus.held)]
    found = {name: ([], []) for name in counts[0] if counts[0][name] > 1 and counts[1][name]}
    for ids, document in passages(corpus, tokenizer, length):
        sides = found.get(owner[document])
        if sides:
            sides[document in held].append((ids, document))
    most = Counter({name: min(map(len, sides)) for name, sides in found.items()})
    names = sorted(name for name, count in most.most_common(labels) if count)
    if len(names) < labels:
        return None
    rows = []
    for side in 0, 1:
        least = min(len(found[name][side]) for name in names)
        for label, name in enumerate(names):
            hidden = tokenizer.encode(name)
            for ids, document in spaced(found[name][side], min(MOST, least)):
                text = without(ids, hidden, tokenizer.unk)
                rows.append(Row(text, NOTHING, label, document))
    return Task(rows, names, f"which package a passage comes from ({', '.join(names)}): "
                             f"{len(rows):,} examples, balanced; always the same: {1 / labels:.1%}")


def spaced(items, count):
    """So many of them, from the whole list."""
    step = len(items) / count
    return [items[int(i * step)] for i in range(count)]


def without(ids, name, unknown):
    """The text with every mention of its own answer made unreadable."""
    ids, n = ids.copy(), len(name)
    for i in range(len(ids) - n + 1):
        if ids[i:i + n].tolist() == list(name):
            ids[i:i + n] = unknown
    return ids


def pairs(corpus, tokenizer, length):
    """Do two passages come from one document? Half of them do."""
    room = (length - 3) // 2
    parts = {}
    for ids, document in passages(corpus, tokenizer, max(LEAST, room + 2)):
        parts.setdefault(document, []).append(ids)
    rows = []
    for side in corpus.train, corpus.held:
        several = [int(d) for d in side if len(parts.get(int(d), "")) > 1]
        if len(several) > 1:
            others = several[1:] + several[:1]
            for turn, (document, other) in enumerate(zip(several, others)):
                rows += beside(parts[document], parts[other], document, length, turn)
    if len(rows) < FEW:
        raise Error("the corpus sets no task: it needs documents of several passages, or names "
                    "with packages; give a file of labelled texts with --task FILE")
    return Task(rows, ["one document", "two"], "whether two passages come from one document: "
                f"{len(rows):,} examples; always the same: {commonest(rows):.1%}")


def beside(own, other, document, length, turn):
    """Each passage with the next one, or with one of another document, by turns."""
    for i, a in enumerate(own[:-1]):
        strange = (i + turn) % 2
        b = other[i % len(other)] if strange else own[i + 1]
        a, b = shortened(a, b, length)
        yield Row(a, b, strange, document)
