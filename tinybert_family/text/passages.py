"""Passages for questions about a whole sequence: in which order, how far apart, who spoke?

Every function makes a Plan (segments.py) out of some documents, with the right answers as labels.
A sequence is [CLS] text [SEP] text [SEP] ..., as many texts as the question wants:

  blocks       one text: consecutive sentences
  reordered    a paragraph in pieces, shuffled: in which order do they stand?
  distances    two texts: side by side, in one document, or in two?
  triples      three turns of a dialogue: are they real?
"""
import itertools
from dataclasses import replace

import numpy as np

from tinybert_family.text import segments
from tinybert_family.text.segments import Plan, ends_of, special

ROUND = 1 << 20             # sequences are numbered; rounds are told apart by so much


# --------------------------------------------------------------------------------- laying texts out
def framed(lo, hi, types, labels, keys, marks, kind="",
           closed=None):
    """[CLS] text [SEP] text [SEP] ...: ids[lo[n, i]:hi[n, i]] is text i of sequence n. -> Plan

    lo, hi, types: [N, k]. An empty text is left out with its [SEP]. closed: bool [N, k], does a
    [SEP] follow? A text that is not closed goes on in the next. [CLS] has the type of the first
    text, [SEP] that of the text before it.
    """
    n, k = lo.shape
    pieces = np.zeros((n, 1 + 2 * k, 3), np.int64)
    wanted = np.ones((n, 1 + 2 * k), bool)
    pieces[:, 0, :2] = special(marks.cls)
    pieces[:, 0, 2] = types[:, 0]
    texts = pieces[:, 1::2]
    texts[..., 0] = lo
    texts[..., 1] = hi
    texts[..., 2] = types
    closing = pieces[:, 2::2]
    closing[..., :2] = special(marks.sep)
    closing[..., 2] = types
    there = hi > lo
    wanted[:, 1::2] = there
    wanted[:, 2::2] = there if closed is None else closed
    cuts = ends_of(wanted.sum(1))
    labels = np.asarray(labels, np.int64)
    keys = np.asarray(keys, np.int64)
    return Plan(pieces[wanted], cuts, labels, keys, kind)


def fit(lengths, room):
    """Shorten the longest until all fit: lengths [N, k] -> [N, k], no row's sum above `room`.

    From the shortest to the longest, each may have its share of what is left, so that what a short
    one does not need goes to the longer.
    """
    k = lengths.shape[1]
    order = np.argsort(lengths, axis=1, kind="stable")
    ascending = np.take_along_axis(lengths, order, 1)
    given = np.zeros_like(lengths)
    left = np.full(len(lengths), room)
    for j in range(k):
        share = left // (k - j)
        given[:, j] = np.minimum(ascending[:, j], share)
        left -= given[:, j]
    fitted = np.zeros_like(lengths)
    np.put_along_axis(fitted, order, given, 1)
    return fitted


def pairs(table, length, marks, kind):
    """[CLS] A [SEP] B [SEP] from a table as segments.framed has it, made to fit: where both are too
    long together, the front of A and the end of B go, and what stands at the seam stays."""
    table = table_of(table, 7)
    lo, hi = table[:, 0:4:2], table[:, 1:4:2]
    size = fit(hi - lo, length - 3)
    lo[:, 0] = hi[:, 0] - size[:, 0]
    hi[:, 1] = lo[:, 1] + size[:, 1]
    return segments.framed(table, marks, kind)


def table_of(rows, columns):
    """A list of tuples, perhaps an empty one, as int64 [N, columns]"""
    table = np.array(rows, np.int64)
    return table.reshape(-1, columns)


def rngs(documents, seed):
    """(document, random numbers of its own) for each."""
    for document in map(int, documents):
        yield document, np.random.default_rng([*seed, document])


def below(rng, n):
    """0 .. n - 1, evenly; a few times as fast as rng.integers."""
    return int(rng.random() * n)


def pick(rng, some):
    return some[below(rng, len(some))]


# -------------------------------------------------------------------------------- runs of sentences
def sentences_of(corpus, document):
    """(its first sentence, cuts into ids): sentence i is ids[cuts[i]:cuts[i + 1]]"""
    first = int(corpus.documents[document])
    last = int(corpus.documents[document + 1])
    return first, corpus.sentences[first:last + 1]


def reaches(cuts, room):
    """For each sentence: up to which are there `room` tokens at most?"""
    limits = cuts[:-1] + room
    ends = np.searchsorted(cuts, limits, side="right")
    return (ends - 1).tolist()


def runs(corpus, document, room, rng=None, least=1):
    """A document's sentences in runs that fill `room` tokens, one after another: [(first, end)].

    A run has at least `least` sentences, even if they are longer, or those that are left. With an
    rng the first run is shorter, by chance, so that another time the cuts fall elsewhere.
    """
    begin, cuts = sentences_of(corpus, document)
    reach, count = reaches(cuts, room), len(cuts) - 1
    s, found = 0, []
    while s < count:
        e = max(reach[s], s + least)
        e = min(e, count)
        if rng is not None and not s and e > least:
            e = least + below(rng, e + 1 - least)
        found.append((begin + s, begin + e))
        s = e
    return found


def blocks(corpus, documents, length, seed, marks, kind):
    """[CLS] consecutive sentences of one document [SEP]; one that is too long loses its end."""
    rows = []
    room = length - 2
    for document, rng in rngs(documents, seed):
        found = runs(corpus, document, room, rng)
        rows += [(*run, document, i) for i, run in enumerate(found)]
    table = table_of(rows, 4)
    cuts = corpus.sentences[table[:, :2]]
    lo, hi = cuts[:, :1], cuts[:, 1:]
    hi = np.minimum(hi, lo + room)
    labels, keys = np.zeros(len(table)), table[:, 2:]
    return framed(lo, hi, 0 * lo, labels, keys, marks, kind)


# -------------------------------------------------------------------------------------------- order
def orders(most):
    """All orders of one piece, of two, ... in the row of their classes.

    orders(2) = [(0,), (0, 1), (1, 0)]; orders(3) has 1 + 2 + 6 = 9. (1, 2, 0) says that the second
    piece is shown first, then the third, then the first.
    """
    found = []
    for n in range(1, most + 1):
        found += itertools.permutations(range(n))
    return found


def seams(rng, count, n):
    """`count` sentences in n pieces: [0, ..., count], no piece empty. Numbers that may be equal
    become different ones when 1, 2, 3, ... is added in their order."""
    rest = count - n + 1
    drawn = sorted(below(rng, rest) for _ in range(n - 1))
    inner = [place + i for i, place in enumerate(drawn, 1)]
    return [0, *inner, count]


def reordered(corpus, documents, length, pieces, seed, marks, kind):
    """A paragraph in 1 to `pieces` pieces, each number as often where there are sentences enough,
    and in any order, which the label tells: its place in orders(). Pieces are whole sentences but
    for what is too long."""
    known = orders(pieces)
    classes = dict(zip(known, itertools.count()))
    rows = []
    for document, rng in rngs(documents, seed):
        begin, cuts = sentences_of(corpus, document)
        reach, count = reaches(cuts, length - 2), len(cuts) - 1
        s = number = 0
        while s < count:
            n = 1 + below(rng, pieces)
            e = max(reach[s], s + n)
            if e > count:                   # too few sentences are left for so many pieces
                break
            ends = seams(rng, e - s, n)
            ends = [begin + s + seam for seam in ends]
            order = tuple(rng.permutation(n).tolist())
            shown = []
            for i in order:
                shown += ends[i], ends[i + 1]
            shown += [0, 0] * (pieces - n)
            rows.append((document, number, classes[order], n, *shown))
            s, number = e, number + 1
    table = table_of(rows, 4 + 2 * pieces)
    keys, label, n = table[:, :2], table[:, 2], table[:, 3]
    cuts = corpus.sentences[table[:, 4:]]
    lo, hi = cuts[:, ::2], cuts[:, 1::2]
    for several in range(1, pieces + 1):    # each piece costs a [SEP]
        mine = n == several
        size = (hi - lo)[mine]
        hi[mine] = lo[mine] + fit(size, length - 1 - several)
    types = np.broadcast_to(np.arange(pieces), lo.shape)
    return framed(lo, hi, types, label, keys, marks, kind)


# ----------------------------------------------------------------------------------------- distance
def distances(corpus, documents, length, seed, marks, kind):
    """Two passages of half a sequence each. 0: B follows A. 1: B stands elsewhere in A's document,
    not beside it. 2: B is of another document. Each as often as the others, where there is any.
    """
    half = (length - 3) // 2
    own = list(rngs(documents, seed))
    found = [runs(corpus, document, half, rng) for document, rng in own]
    rows = []
    for at, (document, rng) in enumerate(own):
        mine = found[at]
        for i, a in enumerate(mine):
            b = {}                          # label: a passage that it would be true of
            if i + 1 < len(mine):
                b[0] = mine[i + 1]
            far = not_beside(rng, len(mine), i)
            if far is not None:
                b[1] = mine[far]
            if len(found) > 1:              # any document but this one
                step = 1 + below(rng, len(found) - 1)
                other = found[(at + step) % len(found)]
                b[2] = pick(rng, other)
            if b:
                label = pick(rng, list(b))
                rows.append((*a, *b[label], label, document, i))
    table = table_of(rows, 7)
    table[:, :4] = corpus.sentences[table[:, :4]]
    a, a_end = table.T[:2]
    a[:] = np.maximum(a, a_end - half)                  # its end stays: B may begin there
    return pairs(table, length, marks, kind)


def not_beside(rng, count, i):
    """A number below `count`, but none of i - 1, i, i + 1; None where there is no other."""
    near = range(max(0, i - 1), min(count, i + 2))
    rest = count - len(near)
    if not rest:
        return None
    j = below(rng, rest)
    return j if j < near.start else j + len(near)


# ---------------------------------------------------------------------------------------- dialogues
# Who speaks: 0 asks, 1 answers. Speakers take turns; two of one role side by side (two answers to
# one question) leave out the turn that stood between them.
ROLES = np.array([
    [0, 1, 0],
    [0, 1, 1],
    [0, 0, 1]])
TURNS = np.array([
    [0, 1, 2],
    [0, 1, 3],
    [0, 2, 3]])


def triples(talk, chosen, length, seed, marks, kind):
    """Three turns of a dialogue, typed by who speaks. Label 1: as they were spoken. Label 0, half
    the time: one of them is from another dialogue.

    talk: (ids, turns: cuts into ids, dialogues: cuts into turns); chosen: numbers of dialogues.
    Every turn begins one triple, if enough follow.
    """
    _, turns, dialogues, *_ = talk
    chosen = np.asarray(chosen, np.int64)
    rng = np.random.default_rng([*seed, len(chosen)])
    first, size = dialogues[chosen], np.diff(dialogues)[chosen]
    turn = segments.ranges(first, size)
    own = np.repeat(np.arange(len(chosen)), size)           # which dialogue a turn is of
    left = (first + size)[own] - turn                       # turns from this one on
    kept = np.flatnonzero(left >= 3)
    own, heads, n = own[kept], turn[kept], len(kept)
    how = rng.integers(0, 3, n)
    how[left[kept] == 3] = 0
    shown = heads[:, None] + TURNS[how]                     # [N, 3]

    # A turn of any dialogue but this one: count on behind it.
    others = len(turn) - size[own]
    behind = ends_of(size)[own + 1]
    step = rng.random(n) * others
    strange = (behind + step.astype(np.int64)) % max(1, len(turn))
    fake = (rng.random(n) < 0.5) & (others > 0)
    row, place = np.flatnonzero(fake), rng.integers(0, 3, n)
    shown[row, place[row]] = turn[strange[row]]

    lo, hi = turns[shown], turns[shown + 1]
    hi = lo + fit(hi - lo, length - 4)
    keys = np.column_stack([chosen[own], heads])
    return framed(lo, hi, ROLES[how], ~fake, keys, marks, kind)


# ------------------------------------------------------------------------------- shares of the data
ROUNDS = 100                    # of a task that hardly ever occurs, no more


def filled(rounds, tokens, rng):
    """About so many tokens of a plan that is made anew, with other draws, round after round: of the
    last one random sequences are left out. -> Plan, or None where there is nothing."""
    found, size = [], 0
    for number, plan in enumerate(rounds):
        if size >= tokens or not len(plan) or number == ROUNDS:
            break
        # Every round has draws of its own. (A counter has 32 bits.)
        keys = plan.keys.copy()
        keys[:, 1] += number * ROUND
        keys %= 1 << 32
        found.append(replace(plan, keys=keys))
        size += plan.lengths().sum()
    if not found:
        return None
    last = found.pop()
    order = rng.permutation(len(last))
    ends = np.cumsum(last.lengths()[order])
    enough = np.searchsorted(ends, ends[-1] + tokens - size)
    kept = np.sort(order[:enough + 1])
    return joined([*found, last[kept]])


def joined(plans):
    """One after another, as one plan."""
    def all_of(name):
        return np.concatenate([getattr(plan, name) for plan in plans])
    counts = [np.diff(plan.cuts) for plan in plans]
    cuts = ends_of(np.concatenate(counts))
    parts = all_of("labels"), all_of("keys")
    return Plan(all_of("pieces"), cuts, *parts, plans[0].kind)
