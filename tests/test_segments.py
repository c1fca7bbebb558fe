"""From documents to sequences: each paper's passages by hand, and what always holds of them.

BERT's own pairs are in test_objective.py.
"""
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objective import Coins

from tinybert_family.text import segments
from tinybert_family.text.segments import NEXT, PREVIOUS, STRANGER

CLS, SEP = 1, 2
MARKS = SimpleNamespace(pad=0, unk=4, cls=CLS, sep=SEP, mask=3)


def a_corpus(sizes):
    """sizes: for every document the lengths of its sentences. Token t of the corpus is 10 + t."""
    cuts = np.concatenate([[0], np.cumsum([n for document in sizes for n in document])])
    documents = np.concatenate([[0], np.cumsum([len(document) for document in sizes])])
    return SimpleNamespace(ids=np.arange(10, 10 + cuts[-1]), sentences=cuts.astype(np.int64),
                           documents=documents.astype(np.int64))


def random_sizes(documents, seed=0, longest=30, most=12):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, longest, rng.integers(1, most)).tolist() for _ in range(documents)]


def told(plan):
    """[["[CLS]", (0, 3), "[SEP]"], ...]: special tokens, and which tokens of the corpus"""
    names = {CLS: "[CLS]", SEP: "[SEP]"}
    found = []
    for i in range(len(plan)):
        pieces = plan.pieces[plan.cuts[i]:plan.cuts[i + 1]].tolist()
        found.append([names[-1 - lo] if lo < 0 else (lo, hi) for lo, hi, _ in pieces])
    return found


def texts(plan):
    """Of each sequence the (lo, hi) of its texts"""
    return [[piece for piece in row if not isinstance(piece, str)] for row in told(plan)]


ALL = dict(order=lambda c, d, n, seed: segments.order_pairs(c, d, n, 0.1, seed, MARKS),
           strangers=lambda c, d, n, seed: segments.order_pairs(c, d, n, 0.1, seed, MARKS, True),
           three=lambda c, d, n, seed: segments.three_way_pairs(c, d, n, 0.1, seed, MARKS),
           pairs=lambda c, d, n, seed: segments.next_sentence_pairs(c, d, n, 0.1, seed, MARKS),
           electra=lambda c, d, n, seed: segments.electra_pairs(c, d, n, seed, MARKS),
           full=lambda c, d, n, seed: segments.full_sentences(c, d, n, seed, MARKS),
           doc=lambda c, d, n, seed: segments.doc_sentences(c, d, n, seed, MARKS),
           blocks=lambda c, d, n, seed: segments.single_blocks(c, d, n, seed, MARKS),
           slices=lambda c, d, n, seed: segments.single_blocks(c, d, n, seed, MARKS, whole=False))


# ---- plans and how they are laid out

def test_laying_out_by_hand():
    corpus = a_corpus([[3, 4], [5]])
    table = np.array([[0, 3, 3, 7, 1, 0, 0], [7, 12, 7, 7, 0, 1, 0]])
    plan = segments.framed(table, MARKS, kind="pairs")
    assert len(plan) == 2 and plan.lengths().tolist() == [10, 7]
    s = segments.lay_out(corpus, plan[[1, 0]])                          # the longest comes first
    assert s.ids.tolist() == [1, 10, 11, 12, 2, 13, 14, 15, 16, 2, 1, 17, 18, 19, 20, 21, 2]
    assert s.types.tolist() == [0] * 5 + [1] * 5 + [0] * 7
    assert s.positions.tolist() == [*range(10), *range(7)]
    assert s.places.tolist() == [-1, 0, 1, 2, -1, 3, 4, 5, 6, -1, -1, 7, 8, 9, 10, 11, -1]
    assert s.sequence.tolist() == [0] * 10 + [1] * 7 and s.cuts.tolist() == [0, 10, 17]
    assert s.labels.tolist() == [1, 0] and s.keys.tolist() == [[0, 0], [1, 0]]
    assert s.kind == "pairs" and plan[1:].kind == "pairs"


def test_some_of_a_plan():
    plan = ALL["pairs"](a_corpus(random_sizes(20)), np.arange(20), 40, (1, 0))
    rows = np.array([5, 2, 9])
    assert told(plan[rows]) == [told(plan)[i] for i in rows]
    assert np.array_equal(plan[rows].keys, plan.keys[rows])
    assert len(plan[plan.labels == 1]) == (plan.labels == 1).sum()
    assert told(plan[3:6]) == told(plan)[3:6] and len(plan[:0]) == 0


# ---- pairs by hand

#     document 0: sentences [0:3] [3:7] [7:9] [9:14]; document 1: [14:17] [17:21] [21:23]
TWO = [[3, 4, 2, 5], [3, 4, 2]]


def test_relations_by_hand():
    """Length 13: ten tokens beside [CLS] A [SEP] B [SEP]."""
    corpus = a_corpus(TWO)
    relations = [PREVIOUS, STRANGER, NEXT]
    coins = Coins(0.5, 2,           # ten tokens: four sentences; A is the first two
                  # B is [7:14]: fourteen tokens, four too many, off the longer one's end. Of two
                  # equally long passages the second is shortened.
                  0.9, 0.9, 0.9, 0.9,
                  0.5)
    pairs = segments.pairs_of(corpus, np.arange(2), 0, 13, 0.1, coins,
                              lambda single, rng: relations.pop(0))
    # shortened while it stood in order, and swapped then
    assert pairs == [(7, 12, 0, 5, PREVIOUS)] and not coins.draws
    relations = [STRANGER, NEXT, NEXT]
    coins = Coins(0.5, 1, 1, 5,     # A is [0:3]; document 1 from its second sentence
                  0.5,              # the others were put back: [3:14]
                  2, 0.9,           # A is [3:7], B [7:14]; eleven tokens, one off the end of B
                  0.5)
    pairs = segments.pairs_of(corpus, np.arange(2), 0, 13, 0.1, coins,
                              lambda single, rng: relations.pop(0))
    assert pairs == [(0, 3, 17, 23, STRANGER), (3, 7, 7, 13, NEXT)] and not coins.draws


def test_a_sentence_alone_is_cut_in_two_where_no_stranger_may_come():
    corpus = a_corpus([[9]])
    coins = Coins(0.5, 4,           # of nine tokens the first four are A
                  0.9, 0.9,         # seven have room: B loses two off its end
                  0.5)
    pairs = segments.pairs_of(corpus, np.arange(1), 0, 10, 0.1, coins, lambda single, rng: PREVIOUS)
    assert pairs == [(4, 7, 0, 4, PREVIOUS)] and not coins.draws


def test_electra_by_hand(monkeypatch):
    """Length 13: about half of 13 - 3 for the first passage."""
    corpus = a_corpus(TWO)

    def plan(*coins, length=13):
        coins = Coins(*coins)
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "default_rng", lambda seed: coins)
            found = segments.electra_pairs(corpus, np.arange(1), length, (0, 0), MARKS)
        assert not coins.draws
        return texts(found)
    # not short; four sentences of 14 tokens; not single; [0:3] is below 5, the next would not be:
    # tails, so it begins the second, which has room for 13 - 3 - 3 = 7 tokens
    assert plan(0.5, 0.5, 0.7) == [[(0, 3), (3, 10)]]
    # heads: it belongs to the first, and all others to the second
    assert plan(0.5, 0.5, 0.2) == [[(0, 7), (7, 10)]]
    # half of 17 - 3 is 7, which [0:3] [3:7] reach
    assert plan(0.5, 0.5, 0.7, length=17) == [[(0, 3), (3, 14)]]
    # a single one, cut off at 13 - 2
    assert plan(0.5, 0.05) == [[(0, 11)]]
    # a short one: six tokens, so [0:3] [3:7]; half of 6 - 3 is 1, which the first sentence exceeds
    # alone. Then a full one: 2 + 5 tokens are left; [7:9] is below 5, [9:14] would not be: tails.
    assert plan(0.01, 6, 0.5, 0.5, 0.5, 0.7) == [[(0, 3), (3, 7)], [(7, 9), (9, 14)]]


# ---- sentences in a row by hand

def test_full_and_doc_sentences_by_hand():
    corpus, both = a_corpus(TWO), np.arange(2)
    full = told(segments.full_sentences(corpus, both, 13, None, MARKS))
    end = "[SEP]"
    assert full == [["[CLS]", (0, 3), end, (3, 7), end, (7, 9), end],
                    ["[CLS]", (9, 14), end, end, (14, 17), end],
                    ["[CLS]", (17, 21), end, (21, 23), end]]
    plan = segments.doc_sentences(corpus, both, 13, None, MARKS)
    assert told(plan) == [full[0], ["[CLS]", (9, 14), end],
                          ["[CLS]", (14, 17), end, (17, 21), end, (21, 23), end]]
    assert plan.keys.tolist() == [[0, 0], [0, 1], [1, 0]] and not plan.pieces[:, 2].any()


def test_blocks_by_hand():
    corpus, both = a_corpus(TWO), np.arange(2)
    plan = segments.single_blocks(corpus, both, 13, None, MARKS)
    assert told(plan) == [["[CLS]", (0, 3), (3, 7), (7, 9), "[SEP]"], ["[CLS]", (9, 14), "[SEP]"],
                          ["[CLS]", (14, 17), (17, 21), (21, 23), "[SEP]"]]
    assert plan.keys.tolist() == [[0, 0], [0, 1], [1, 0]]
    plan = segments.single_blocks(corpus, both, 13, None, MARKS, whole=False)
    assert told(plan) == [["[CLS]", (0, 11), "[SEP]"], ["[CLS]", (11, 14), (14, 22), "[SEP]"],
                          ["[CLS]", (22, 23), "[SEP]"]]
    assert plan.keys.tolist() == [[0, 0], [0, 1], [1, 0]]
    # documents in another order
    plan = segments.single_blocks(corpus, both[::-1], 13, None, MARKS, whole=False)
    assert texts(plan) == [[(14, 23), (0, 2)], [(2, 13)], [(13, 14)]]


def test_short_blocks_and_unknown_ones_are_dropped():
    corpus = a_corpus(TWO)
    corpus.ids[14:19] = MARKS.unk                       # five of the eleven of the last block
    assert texts(segments.single_blocks(corpus, np.arange(2), 13, None, MARKS, least=8)) == [
        [(0, 3), (3, 7), (7, 9)], [(14, 17), (17, 21), (21, 23)]]
    for share, kept in (0.5, 3), (5 / 11, 2), (0.4, 2):
        plan = segments.single_blocks(corpus, np.arange(2), 13, None, MARKS, unknown=share)
        assert len(plan) == kept


def test_a_sentence_that_is_too_long_comes_in_parts():
    corpus = a_corpus([[25, 2]])
    assert texts(segments.full_sentences(corpus, [0], 12, None, MARKS)) == [
        [(0, 10)], [(10, 20)], [(20, 25), (25, 27)]]
    assert texts(segments.single_blocks(corpus, [0], 12, None, MARKS)) == [
        [(0, 10)], [(10, 20)], [(20, 25), (25, 27)]]


# ---- what always holds

SIZES = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(8, 70), st.integers(0, 3))
@pytest.mark.parametrize("name", ALL)
def test_every_plan_is_sound(name, sizes, length, copy):
    """Sequences fit, are framed, and hold text of known documents; keys tell them apart."""
    corpus = a_corpus(sizes)
    documents = np.arange(len(sizes))
    plan = ALL[name](corpus, documents, length, (7, copy))
    assert np.all(plan.lengths() <= length) and plan.lengths().sum() == (
        plan.pieces[:, 1] - plan.pieces[:, 0]).sum()
    assert len(set(map(tuple, plan.keys.tolist()))) == len(plan) == len(plan.labels)
    ends = corpus.sentences[corpus.documents]
    for row, key in zip(told(plan), plan.keys):
        assert row[0] == "[CLS]" and row[-1] == "[SEP]" and row.count("[CLS]") == 1
        spans = [piece for piece in row if not isinstance(piece, str)]
        assert spans and all(hi > lo for lo, hi in spans)
        owners = {int(np.searchsorted(ends, lo, side="right")) - 1 for lo, _ in spans}
        owners |= {int(np.searchsorted(ends, hi, side="left")) - 1 for _, hi in spans}
        if name in ("order", "electra", "doc", "blocks"):
            assert owners == {key[0]}
        else:
            assert key[0] in owners
    again = ALL[name](corpus, documents, length, (7, copy))
    assert told(again) == told(plan) and np.array_equal(again.labels, plan.labels)
    segments.lay_out(corpus, plan)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(8, 70))
@pytest.mark.parametrize("name", ["full", "doc", "blocks", "slices"])
def test_nothing_is_lost_and_blocks_are_as_full_as_may_be(name, sizes, length):
    corpus = a_corpus(sizes)
    plan = ALL[name](corpus, np.arange(len(sizes)), length, None)
    spans = [span for row in texts(plan) for span in row]
    tokens = [t for lo, hi in spans for t in range(lo, hi)]
    assert tokens == list(range(len(corpus.ids)))                       # all, in order, once
    borders = set(corpus.sentences.tolist())
    longest = length - 2
    if name != "slices":
        for lo, hi in spans:                    # no sentence is cut that is not too long
            assert {lo, hi} <= borders or hi - lo == longest or (
                hi in borders and any((lo - b) % longest == 0 for b in borders if b < lo))
    ends = corpus.sentences[corpus.documents].tolist()
    for one, two in zip(texts(plan), texts(plan)[1:]):
        (lo, hi), size = two[0], sum(hi - lo for lo, hi in one)
        marks = {"full": len(one) + 1, "doc": len(one) + 1}.get(name, 1)
        crosses = lo in ends
        if name == "slices":
            assert size == longest
        elif name == "full":
            assert size + marks + (hi - lo) + 1 + crosses > length - 1 or crosses
        elif not crosses:
            assert size + marks + hi - lo > length - 1


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(8, 70), st.integers(0, 3))
@pytest.mark.parametrize("name", ["order", "three", "strangers"])
def test_labels_say_how_the_passages_stand(name, sizes, length, copy):
    corpus = a_corpus(sizes)
    plan = ALL[name](corpus, np.arange(len(sizes)), length, (3, copy))
    ends = corpus.sentences[corpus.documents]
    for spans, label in zip(texts(plan), plan.labels):
        if len(spans) == 1:                     # a passage of which nothing but a token is there
            assert name != "three" or label == 1
            continue
        (a, a_end), (b, b_end) = spans
        first, second = np.searchsorted(ends, [a, b], side="right")
        relation = STRANGER if first != second else NEXT if a_end <= b else PREVIOUS
        if name == "three":
            assert label == {STRANGER: 0, NEXT: 1, PREVIOUS: 2}[relation]
        elif name == "order":
            assert label == (relation == PREVIOUS) and first == second
        elif len(sizes) > 5:                    # ten tries, as in the released code
            assert label == (relation != NEXT)


def test_swapping_changes_nothing_but_the_order():
    """Neighbours as far as nothing was cut off: what stands between them is in no other pair."""
    corpus = a_corpus(random_sizes(200, 4))
    plan = ALL["order"](corpus, np.arange(200), 64, (0, 0))
    gaps = []
    for spans, label in zip(texts(plan), plan.labels):
        if len(spans) == 2:
            (_, a_end), (b, _) = spans[::-1] if label else spans
            gaps.append(b - a_end)
    assert min(gaps) == 0 and np.mean(np.array(gaps) == 0) > 0.5
    assert abs(plan.labels.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(plan))


def test_the_classes_are_balanced():
    corpus = a_corpus([[8] * 60] * 120)                 # chunks of several sentences throughout
    plans = [ALL["three"](corpus, np.arange(120), 64, (0, copy)) for copy in range(4)]
    shares = np.bincount(np.concatenate([plan.labels for plan in plans]), minlength=3)
    n = shares.sum()
    assert n > 4500 and np.abs(shares / n - 1 / 3).max() < 5 * np.sqrt(2 / 9 / n)
    plan = ALL["order"](corpus, np.arange(120), 64, (0, 0))
    assert abs(plan.labels.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(plan))


def test_a_stranger_is_never_of_the_same_document():
    """Of two documents one of 1024 draws would be; among one there is none to be drawn."""
    corpus = a_corpus([[6] * 400] * 2)
    ends = corpus.sentences[corpus.documents]
    for copy in range(30):
        plan = ALL["three"](corpus, np.arange(2), 40, (0, copy))
        spans = np.array([spans for spans in texts(plan)])
        owners = np.searchsorted(ends, spans[:, :, 0], side="right")
        assert np.array_equal(owners[:, 0] != owners[:, 1], plan.labels == 0)
    alone = ALL["three"](corpus, np.arange(1), 40, (0, 0))
    assert set(alone.labels) == {1, 2}


def test_electra_takes_two_passages_in_nine_of_ten():
    corpus = a_corpus([[9] * 80] * 60)
    plan = segments.electra_pairs(corpus, np.arange(60), 64, (0, 0), MARKS, short=0.0)
    spans = texts(plan)
    single = np.mean([len(row) == 1 for row in spans])
    assert abs(single - 0.1) < 5 * 0.3 / np.sqrt(len(plan))
    first = np.array([row[0][1] - row[0][0] for row in spans if len(row) == 2])
    # half of 64 - 3 is 30: three sentences are below it, a fourth joins as a coin falls
    assert set(first) == {27, 36} and abs(np.mean(first == 27) - 0.5) < 0.1
    for row in spans:
        assert len(row) == 1 or row[0][1] == row[1][0]
    short = segments.electra_pairs(corpus, np.arange(60), 64, (0, 0), MARKS, short=1.0)
    assert len(short) > 1.3 * len(plan)


def test_a_document_of_its_own_gives_the_same_sequences_in_any_group():
    """Where no partner is drawn, a document's sequences and keys are its own affair."""
    corpus = a_corpus(random_sizes(30, 2))
    for name in "order", "electra", "doc", "blocks":
        whole = ALL[name](corpus, np.arange(30), 40, (0, 1))
        some = ALL[name](corpus, np.array([17, 4]), 40, (0, 1))
        mine = [np.flatnonzero(whole.keys[:, 0] == d) for d in (17, 4)]
        assert told(some) == told(whole[np.concatenate(mine)])
        assert np.array_equal(some.keys, whole.keys[np.concatenate(mine)])


def test_no_documents_and_documents_without_a_word():
    for corpus in a_corpus([[0]]), a_corpus([[0, 0], [0]]):
        for name, plan_of in ALL.items():
            for documents in np.zeros(0, np.int64), np.arange(len(corpus.documents) - 1):
                plan = plan_of(corpus, documents, 16, (0, 0))
                assert len(plan) == 0 and len(segments.lay_out(corpus, plan).ids) == 0
