"""From documents to training sequences.

A plan says for each sequence which pieces of the corpus it is made of; no token is copied until a
batch is laid out. So what a paper does with passages (which stand together, in which order, with
which question about them) is a function that makes a plan, and the rest is the same for all.

  pairs of passages    next_sentence_pairs (BERT), order_pairs (ALBERT, MacBERT), three_way_pairs
                       (StructBERT), electra_pairs
  sentences in a row   full_sentences, doc_sentences (RoBERTa), single_blocks (SpanBERT, DeBERTa,
                       DistilBERT)

All take (corpus, documents, length, ...): the numbers of some documents, among which partners are
found too, and how many tokens a sequence may have, special ones included.
"""
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Sequences that are not made yet."""
    pieces: np.ndarray      # [P, 3] lo, hi, type: ids[lo:hi] of the corpus, or a special token
    cuts: np.ndarray        # [N+1] which pieces are whose
    labels: np.ndarray      # [N] what is asked about the sequence as a whole
    keys: np.ndarray        # [N, 2] document, and number in it: random draws are functions of both
    kind: str = ""          # plans of different kinds are never mixed in a batch

    def __len__(self):
        return len(self.cuts) - 1

    def __getitem__(self, rows):
        """The same for some of the sequences, by numbers, a mask or a slice."""
        rows = np.arange(len(self))[rows]
        counts = np.diff(self.cuts)[rows]
        pieces = self.pieces[ranges(self.cuts[rows], counts)]
        return replace(self, pieces=pieces, cuts=ends_of(counts), labels=self.labels[rows],
                       keys=self.keys[rows])

    def lengths(self):
        """[N] in tokens."""
        tokens = ends_of(self.pieces[:, 1] - self.pieces[:, 0])
        return np.diff(tokens[self.cuts])


class Sequences(NamedTuple):
    """A plan laid out: all tokens in one row, the longest sequence first."""
    ids: np.ndarray         # [T]
    types: np.ndarray       # [T]
    positions: np.ndarray   # [T] 0, 1, 2, ... in every sequence
    places: np.ndarray      # [T] where in the corpus a token stands; -1 for a special one
    sequence: np.ndarray    # [T] which one it belongs to
    cuts: np.ndarray        # [S+1]
    labels: np.ndarray      # [S]
    keys: np.ndarray        # [S, 2]
    kind: str = ""


def ends_of(counts):
    """[0, c0, c0 + c1, ...]"""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ranges(starts, counts):
    """starts[0], starts[0] + 1, ... (counts[0] of them), then those from starts[1] on, ..."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


def special(token):
    """lo and hi of a piece that is one special token."""
    return -1 - token, -token


def lay_out(corpus, plan):
    """Sequences: the tokens that a plan speaks of."""
    plan = plan[np.argsort(-plan.lengths(), kind="stable")]
    lo, hi, types = plan.pieces.T
    t = ranges(lo, hi - lo)                                             # [T]
    is_special = t < 0
    places = np.where(is_special, -1, t)
    ids = corpus.ids[np.maximum(places, 0)].astype(np.int64)
    ids[is_special] = -1 - t[is_special]
    cuts = ends_of(hi - lo)[plan.cuts]                                  # [S+1]
    lengths = np.diff(cuts)
    sequence = np.repeat(np.arange(len(plan)), lengths)
    positions = np.arange(len(ids)) - cuts[sequence]
    return Sequences(ids, np.repeat(types, hi - lo), positions, places, sequence, cuts,
                     plan.labels, plan.keys, plan.kind)


# ---- pairs of passages: tables [N, 7] of these columns, and the plans made of them

# A = ids[a:a_end], B = ids[b:b_end], the answer to what is asked about them, and the keys.
A, A_END, B, B_END, LABEL, DOCUMENT, NUMBER = range(7)


def framed(table, marks, kind=""):
    """[CLS] A [SEP] B [SEP], or [CLS] A [SEP] where B is empty.  [N, 7] -> Plan

    marks: whose cls and sep are the ids of these tokens. A and what frames it is of type 0, B and
    the last [SEP] of type 1.
    """
    pieces = np.zeros((len(table), 5, 3), np.int64)
    pieces[:, 0, :2] = special(marks.cls)
    pieces[:, 1, :2] = table[:, [A, A_END]]
    pieces[:, 2, :2] = special(marks.sep)
    pieces[:, 3, :2] = table[:, [B, B_END]]
    pieces[:, 4, :2] = special(marks.sep)
    pieces[:, 3:, 2] = 1
    pair = table[:, B_END] > table[:, B]
    wanted = np.ones((len(table), 5), bool)
    wanted[~pair, 3:] = False
    return Plan(pieces[wanted], ends_of(wanted.sum(1)), table[:, LABEL],
                table[:, [DOCUMENT, NUMBER]], kind)


def table_of(pairs, documents, seed):
    """The rows of all documents. pairs(document, rng) gives those of one, without its keys."""
    found = []
    for document in documents:
        rng = np.random.default_rng([*seed, int(document)])
        rows = pairs(int(document), rng)
        found += [(*row, document, number) for number, row in enumerate(rows)]
    return np.array(found, np.int64).reshape(-1, 7)


def next_sentence_pairs(corpus, documents, length, short, seed, marks):
    """BERT's pairs of passages, as create_pretraining_data.py makes them. -> Plan

    Sentences are collected until they fill a sequence; a random cut divides them into A and B. Half
    of the time, and always when there is a single sentence, B is taken from another document
    instead, and the sentences that were to be B are put back to start the next sequence. So at
    least half of the pairs are random (label 1), and no sentence is lost. The wanted length is
    drawn for each sequence; the released code draws it once for a document.
    """
    def pairs(document, rng):
        return pairs_of(corpus, documents, document, length, short, rng)
    return framed(table_of(pairs, documents, seed), marks)


def order_pairs(corpus, documents, length, short, seed, marks, stranger=False):
    """ALBERT's and MacBERT's pairs: two passages in a row, swapped half of the time (label 1).

    A sentence that fills a sequence alone is cut in two. With `stranger` its partner is a passage
    of another document instead, with label 1, as in ALBERT's released code.
    """
    def relate(single, rng):
        if single and stranger:
            return STRANGER
        return PREVIOUS if rng.random() < 0.5 else NEXT

    def pairs(document, rng):
        return pairs_of(corpus, documents, document, length, short, rng, relate)
    table = table_of(pairs, documents, seed)
    table[:, LABEL] = table[:, LABEL] != NEXT
    return framed(table, marks)


def three_way_pairs(corpus, documents, length, short, seed, marks):
    """StructBERT's pairs: B is from another document (label 0), what follows A (label 1) or what
    stands before it (label 2), each a third of the time; of another document, too, where there is
    a single sentence.
    """
    alone = len(documents) < 2

    def relate(single, rng):
        if not alone and (single or rng.random() < 1 / 3):
            return STRANGER
        return PREVIOUS if rng.random() < 0.5 else NEXT

    def pairs(document, rng):
        return pairs_of(corpus, documents, document, length, short, rng, relate)
    table = table_of(pairs, documents, seed)
    # Ten tries may all have hit the document itself.
    ends = corpus.sentences[corpus.documents]
    of_b = np.searchsorted(ends, table[:, B], side="right") - 1
    is_stranger = of_b != table[:, DOCUMENT]
    table = table[is_stranger | (table[:, LABEL] != STRANGER)]
    labels = np.array([1, 0, 2])                        # of NEXT, STRANGER, PREVIOUS
    table[:, LABEL] = labels[table[:, LABEL]]
    return framed(table, marks)


# How B was come by.
NEXT, STRANGER, PREVIOUS = range(3)


def next_or_stranger(single, rng):
    """BERT's choice, for a chunk of a single sentence or of several"""
    return STRANGER if single or rng.random() < 0.5 else NEXT


def pairs_of(corpus, documents, document, length, short, rng, relate=next_or_stranger):
    """[(a, a_end, b, b_end, how B was come by), ...] of one document"""
    first, last = corpus.documents[document:document + 2].tolist()
    cuts = corpus.sentences[first:last + 1].tolist()    # sentence s is ids[cuts[s]:cuts[s + 1]]
    count = len(cuts) - 1
    room = length - 3                                   # [CLS] A [SEP] B [SEP]

    def new_target():
        return room if rng.random() >= short else int(rng.integers(2, room + 1))

    target = new_target()
    s, pairs = 0, []
    while s < count:
        e = min(bisect_left(cuts, cuts[s] + target, s + 1), count)
        single = e - s == 1
        middle = e if single else int(rng.integers(s + 1, e))
        how = relate(single, rng)
        a, a_end = cuts[s], cuts[middle]
        if how == STRANGER:
            b, b_end = elsewhere(corpus, documents, document, target - (a_end - a), rng)
            e = middle                                  # the unused sentences go back
        else:
            b, b_end = a_end, cuts[e]
            if single and b_end - a > 1:
                b = a_end = int(rng.integers(a + 1, b_end))
        if a_end > a and b_end > b:
            cut = shorten(a, a_end, b, b_end, room, rng)
            if how == PREVIOUS:                         # shortened first: both orders lose the same
                cut = cut[2:] + cut[:2]
            pairs.append((*cut, how))
        s = e
        target = new_target()
    return pairs


def elsewhere(corpus, documents, document, wanted, rng):
    """Sentences of another document, from a random one on, until there are `wanted` tokens."""
    for _ in range(10):
        other = int(documents[rng.integers(len(documents))])
        if other != document:
            break
    first, last = corpus.documents[other:other + 2].tolist()
    start = int(rng.integers(first, last)) if last > first else first
    lo = int(corpus.sentences[start])
    ends = corpus.sentences[start + 1:last + 1]
    if not len(ends):
        return lo, lo
    stop = int(np.searchsorted(ends, lo + max(1, wanted)))
    return lo, int(ends[min(stop, len(ends) - 1)])


def shorten(a, a_end, b, b_end, room, rng):
    """Take tokens from the longer passage, front or back as a coin falls, until both fit."""
    while (a_end - a) + (b_end - b) > room:
        front = rng.random() < 0.5
        if a_end - a > b_end - b:
            a, a_end = a + front, a_end - (not front)
        else:
            b, b_end = b + front, b_end - (not front)
    return a, a_end, b, b_end


ENDLESS = 1 << 62


def electra_pairs(corpus, documents, length, seed, marks, single=0.1, short=0.05):
    """ELECTRA's sequences: two passages in a row, or (`single` of them) one. No question, label 0.

    The first has about half of the tokens: a sentence that would make it longer belongs to either,
    as a coin falls. What is too long is cut off. `short` of the sequences have a random length.
    """
    def pairs(document, rng):
        first, last = corpus.documents[document:document + 2].tolist()
        cuts = corpus.sentences[first:last + 1].tolist()
        count, s, found = last - first, 0, []
        while s < count:
            target = length
            if rng.random() < short:
                target = int(rng.integers(5, length + 1))
            a = cuts[s]
            e = min(bisect_left(cuts, a + target, s + 1), count)
            half = (target - 3) // 2
            if rng.random() < single:
                half = ENDLESS
            # The sentences of the first passage: at least one, then all that leave it below half.
            middle = bisect_left(cuts, a + half, s, e + 1) - 1
            middle = max(s + 1, middle)
            if middle < e and cuts[middle] - a < half and rng.random() < 0.5:
                middle += 1
            b = cuts[middle]
            a_end = min(b, a + length - 2)
            room = max(0, length - 3 - (a_end - a))
            if a_end > a:
                found.append((a, a_end, b, min(cuts[e], b + room), 0))
            s = e
        return found
    return framed(table_of(pairs, documents, seed), marks)


# ---- sentences in a row

def full_sentences(corpus, documents, length, seed, marks):
    """RoBERTa's FULL-SENTENCES: as many as fit, across documents. -> Plan

    <s> sentence </s> sentence </s> </s> the next document's sentence </s>: every sentence has its
    end, and between documents stands one more. Nothing is left to chance, so `seed` is not used.
    """
    lo, hi, owner = sentences_of(corpus, documents, length - 2)
    between = 1 + np.flatnonzero(np.diff(owner))
    hi = np.insert(hi, between, lo[between])                            # a sentence without tokens
    lo = np.insert(lo, between, lo[between])
    owner = np.insert(owner, between, owner[between])
    all_of_them = np.ones(len(lo), bool)
    blocks = filled(hi - lo + 1, length - 1, ~all_of_them)
    return lined_up(lo, hi, owner, blocks, all_of_them, marks)


def doc_sentences(corpus, documents, length, seed, marks):
    """RoBERTa's DOC-SENTENCES: the same within one document, so the last sequence is shorter."""
    lo, hi, owner = sentences_of(corpus, documents, length - 2)
    others = np.diff(owner, prepend=-1) != 0
    blocks = filled(hi - lo + 1, length - 1, others)
    all_of_them = np.ones(len(lo), bool)
    return lined_up(lo, hi, owner, blocks, all_of_them, marks)


def single_blocks(corpus, documents, length, seed, marks, whole=True, least=3, unknown=1.0):
    """[CLS] sentences of one document [SEP], as many as fit (SpanBERT). -> Plan

    whole=False: tokens regardless of sentences and documents, all but the last sequence full
    (DeBERTa). Dropped are sequences of fewer than `least` tokens, [CLS] and [SEP] included, and
    those of which a share of `unknown` or more is [UNK] (DistilBERT: 12 and half). Nothing is left
    to chance, so `seed` is not used.
    """
    room = length - 2
    if whole:
        lo, hi, owner = sentences_of(corpus, documents, room)
        others = np.diff(owner, prepend=-1) != 0
        blocks = filled(hi - lo, room, others)
    else:
        lo, hi, owner, blocks = slices_of(corpus, documents, room)
    closes = np.diff(blocks, append=-1) != 0
    plan = lined_up(lo, hi, owner, blocks, closes, marks)
    lengths = plan.lengths()
    keep = lengths >= least
    if unknown < 1:
        tokens = corpus.ids[ranges(lo, hi - lo)]
        block = np.repeat(blocks, hi - lo)
        strange = np.bincount(block, tokens == marks.unk, len(plan))
        keep &= strange < unknown * lengths
    return plan[keep]


def sentences_of(corpus, documents, longest):
    """lo, hi, document of every sentence [N]; one of more than `longest` tokens comes in parts."""
    documents = np.asarray(documents, np.int64)
    first = corpus.documents[documents]
    counts = corpus.documents[documents + 1] - first
    s, owner = ranges(first, counts), np.repeat(documents, counts)
    lo, hi = corpus.sentences[s], corpus.sentences[s + 1]
    parts = -(-(hi - lo) // longest)                                    # rounded up
    part = ranges(np.zeros_like(parts), parts)
    lo, hi, owner = (np.repeat(x, parts) for x in (lo, hi, owner))
    lo = lo + part * longest
    return lo, np.minimum(lo + longest, hi), owner


def slices_of(corpus, documents, room):
    """lo, hi, document, block: the documents one after another, cut after every `room` tokens."""
    documents = np.asarray(documents, np.int64)
    begins, ends = (corpus.sentences[corpus.documents[d]] for d in (documents, documents + 1))
    row = ends_of(ends - begins)                        # where they begin, one after another
    cuts = np.union1d(row, np.arange(0, row[-1], room))
    sizes, cuts = np.diff(cuts), cuts[:-1]
    which = np.searchsorted(row, cuts, side="right") - 1
    lo = begins[which] + cuts - row[which]
    return lo, lo + sizes, documents[which], cuts // room


def filled(sizes, room, apart):
    """The number of the block that each goes into: as long as there is room, but a new one where
    `apart`. -> [N]"""
    ends = np.cumsum(sizes)
    limits = np.append(np.flatnonzero(apart), len(sizes))
    starts, i = [], 0
    while i < len(sizes):
        starts.append(i)
        most = ends[i] - sizes[i] + room
        fits = np.searchsorted(ends, most, side="right")
        limit = limits[np.searchsorted(limits, i, side="right")]
        i = int(min(fits, limit))
    begins = np.zeros(len(sizes), np.int64)
    begins[starts] = 1
    return np.cumsum(begins) - 1


def lined_up(lo, hi, owner, blocks, closes, marks):
    """[CLS], then the pieces lo:hi of a block, and a [SEP] behind those that `closes`. -> Plan

    A block's key is the document that it begins in, and how many of its blocks came before.
    """
    opens = np.diff(blocks, prepend=-1) != 0
    pieces = np.zeros((len(lo), 3, 3), np.int64)
    pieces[:, 0, :2] = special(marks.cls)
    pieces[:, 1, 0] = lo
    pieces[:, 1, 1] = hi
    pieces[:, 2, :2] = special(marks.sep)
    wanted = np.column_stack([opens, hi > lo, closes])
    counts = np.bincount(blocks, wanted.sum(1)).astype(np.int64)
    document = owner[opens]
    number = np.arange(len(document))
    others = np.diff(document, prepend=-1) != 0
    number -= np.maximum.accumulate(np.where(others, number, 0))
    plan = Plan(pieces[wanted], ends_of(counts), np.zeros_like(document),
                np.column_stack([document, number]))
    with_text = np.bincount(blocks, hi - lo) > 0
    return plan[with_text]
