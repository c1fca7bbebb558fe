"""Word vectors against the plain matrix, and replacements piece for piece."""
import numpy as np
import pytest
from texts import Letters, Text

from tinybert_family.text import similar, toy, vectors
from tinybert_family.text.bytebpe import ByteBPE
from tinybert_family.text.similar import Similar
from tinybert_family.text.unigram import Unigram
from tinybert_family.text.wordpiece import WordPiece

RNG = np.random.default_rng(0)


def counted(text, number, size):
    """How often words stand within WINDOW of each other, the plain way."""
    table = np.zeros((size, size))
    for lo, hi in zip(text.cuts, text.cuts[1:]):
        row = number[text.words[lo:hi].astype(int)]
        for i, x in enumerate(row):
            for y in row[i + 1:i + 1 + vectors.WINDOW]:
                if x >= 0 and y >= 0:
                    table[x, y] += 1
                    table[y, x] += x != y
    return table


def ppmi(table):
    smooth = table.sum(0) ** vectors.SMOOTH
    with np.errstate(divide="ignore"):
        value = np.log(table / np.outer(table.sum(1), smooth / smooth.sum()))
    return np.maximum(value, 0)


@pytest.fixture(scope="module")
def counts():
    text = Text(*(d.sentences for d in toy.documents(60)))
    number, words = similar.chosen(text.lexicon, text, Letters())
    return text, number, words, counted(text, number, len(words))


def test_the_commonest_words_are_chosen_in_small_letters(counts):
    text, number, words, _ = counts
    every = [w.lower() for w in text.lexicon.words]
    uses = np.bincount(text.words, minlength=len(every))
    totals = [sum(uses[i] for i, e in enumerate(every) if e == word) for word in words]
    assert totals == sorted(totals, reverse=True) and min(totals) >= similar.COUNT
    assert "the" in words and "." not in words and "Anna" not in words
    assert all(words[number[i]] == every[i] for i in np.flatnonzero(number >= 0))
    assert "Anna" in similar.chosen(text.lexicon, text, Letters(lower=False))[1]


def test_ppmi_is_what_the_counts_say_beyond_chance(counts):
    *_, table = counts
    x, y = np.nonzero(np.triu(table))
    matrix = vectors.Matrix(x, y, table[x, y].astype(np.int64), len(table))
    whole = np.concatenate([block for _, block in matrix.blocks()])
    assert np.allclose(whole, ppmi(table), atol=1e-5)
    z = RNG.standard_normal((len(table), 3))
    assert np.allclose(matrix.times(z), whole @ z, atol=1e-4)
    assert np.allclose(matrix.transposed_times(z), whole.T @ z, atol=1e-4)


def test_randomised_factors_are_those_of_the_whole_decomposition(counts, monkeypatch):
    """With more powers they come ever closer; two are enough for neighbours to be the same."""
    *_, table = counts
    x, y = np.nonzero(np.triu(table))
    matrix = vectors.Matrix(x, y, table[x, y].astype(np.int64), len(table))
    u, s, _ = np.linalg.svd(ppmi(table))
    true = vectors.unit(u[:, :10] * np.sqrt(s[:10]))

    def apart():
        """Directions may be turned over; what counts is how near the words are to each other."""
        found = vectors.factors(matrix, 10)
        return np.abs(found @ found.T - true @ true.T).max()
    few = apart()
    monkeypatch.setattr(vectors, "POWERS", 30)
    assert apart() < 1e-4 < few < 0.1


def test_words_that_keep_the_same_company_are_near(counts):
    text, number, words, _ = counts
    rows = vectors.from_text(text, number)
    known = Similar(words, rows, [], [])
    names = {n.lower() for n in toy.WOMEN + toy.MEN}
    for word in ("anna", "boris"):
        assert sum(near in names for near, _ in known.neighbours(word, 5)) >= 4
    found = known.neighbours("Monday", 3)
    assert [cosine for _, cosine in found] == sorted((c for _, c in found), reverse=True)
    assert all(word != "monday" for word, _ in found) and known.neighbours("nobody", 3) == []
    assert len(known.neighbours("anna", 10**6)) == len(words) - 1


def test_a_matrix_smaller_than_the_rank():
    matrix = vectors.Matrix(np.array([0]), np.array([1]), np.array([3]), 2)
    assert vectors.factors(matrix, 100).shape == (2, 2)


# ------------------------------------------------------------------------------------ replacing

def by_hand():
    """cat -> dog, cow; dog -> cat; a word of two pieces -> another; one without any near it."""
    pieces = [[5], [6], [7], [8, 9], [10, 11], [12, 13]]
    nearest = [[1, 2], [0], [1], [4], [3], []]
    return Similar(["cat", "dog", "cow", "predict", "compute", "zebra"], np.eye(6), pieces, nearest)


def test_a_word_becomes_a_similar_word_of_as_many_pieces():
    ids = [1, 5, 8, 9, 12, 13, 2, 6, 99, 8, 10, 11]
    unit = [-1, 0, 1, 1, 2, 2, -1, 3, 4, 5, 6, 6]
    low, high = np.zeros(12, np.uint32), np.full(12, 2**32 - 1, np.uint32)
    assert by_hand().replace(ids, unit, low).tolist() == [
        -1, 6, 10, 11, -1, -1, -1, 5, -1, -1, 8, 9]
    assert by_hand().replace(ids, unit, high)[1] == 7


def test_pieces_of_a_word_alone_are_no_word():
    known = by_hand()
    for ids, unit in (([8], [0]), ([8, 9, 9], [0, 0, 0]), ([9, 8], [0, 0]), ([8, 9], [0, 1]),
                      ([5] * 20, [0] * 20), ([5], [-1])):
        assert (known.replace(ids, unit, np.zeros(len(ids), np.uint32)) == -1).all()
    assert known.replace([], [], np.zeros(0, np.uint32)).tolist() == []


def test_the_draw_of_a_words_first_token_chooses_evenly():
    n = 20_000
    draws = RNG.integers(0, 2**32, 2 * n, dtype=np.uint32)
    draws[1::2] = 0                                             # of the words between
    found = by_hand().replace([5, 99] * n, np.arange(2 * n), draws)[::2]
    assert set(found.tolist()) == {6, 7}
    assert abs((found == 6).mean() - 0.5) < 4 * 0.5 / np.sqrt(n)


def test_two_words_with_the_same_key_are_told_apart(monkeypatch):
    monkeypatch.setattr(similar, "hashed", lambda ids, at: np.where(ids + at * 0 < 0, 0, 1).astype(
        np.uint64))
    known = Similar(["a", "b"], np.eye(2), [[5], [6, 7]], [[0], [1]])
    found = known.replace([9, 5, 8, 8], [0, 1, 2, 2], np.zeros(4, np.uint32))
    assert found.tolist() == [-1, 5, -1, -1]


def test_replacements_have_equal_lengths_and_are_near_and_never_the_word_itself(counts):
    text, number, words, _ = counts
    rows = vectors.from_text(text, number)
    pieces, nearest = similar.table(words, rows, words, Letters())
    spelt = ["".join(map(chr, row)) for row in pieces]
    assert set(spelt) <= set(words) and len(spelt) > 100
    assert (nearest[spelt.index("the")] == -1).all()
    assert not (nearest == spelt.index("the")).any()
    for i, row in enumerate(nearest):
        others = row[row >= 0]
        cosines = rows[[words.index(spelt[j]) for j in others]] @ rows[words.index(spelt[i])]
        assert i not in others and all(len(spelt[j]) == len(spelt[i]) for j in others)
        assert (cosines >= similar.COSINE - 1e-6).all() and (np.diff(cosines) <= 1e-6).all()
    assert (nearest >= 0).any()


TEXTS = ["a cat (dog) saw the horse and the mouse.", "cat and dog (mouse) horse"] * 20


@pytest.mark.parametrize("kind", [WordPiece, ByteBPE, Unigram])
def test_a_word_is_replaced_by_one_that_is_cut_as_words_are_there(kind):
    tokenizer = kind.train(TEXTS, 330 if kind is ByteBPE else 60)
    words = ["cat", "dog", "horse", "mouse"]
    x = vectors.unit(np.array([[1, 0], [1, .1], [0, 1], [.1, 1]]))
    known = Similar(words, x, *similar.table(words, x, words, tokenizer))
    for head, text, other in (("", "cat", "dog"), ("a", " cat", " dog"), ("(", "dog", "cat"),
                              ("the", " horse", " mouse"), ("(", "mouse", "horse")):
        size = len(tokenizer.encode(head)) if head else 0
        ids, wanted = (tokenizer.encode(head + t)[size:] for t in (text, other))
        found = known.replace(ids, [0] * len(ids), np.zeros(len(ids), np.uint32))
        assert found.tolist() == (wanted if len(ids) == len(wanted) else [-1] * len(ids))


def test_what_is_cut_like_a_stop_word_is_left_alone():
    tokenizer = WordPiece.train(["a cat á dog the"] * 9, 40)
    words = ["a", "cat", "á", "dog"]
    x = np.ones((4, 1), np.float32)
    known = Similar(words, x, *similar.table(words, x, words, tokenizer))
    for word in words:
        ids = tokenizer.encode(word)
        found = known.replace(ids, [0] * len(ids), np.zeros(len(ids), np.uint32))
        assert (found >= 0).all() == (word in ("cat", "dog"))


def test_speed_of_replacing():
    """Half a million tokens a second is what training asks of all it does to a batch."""
    import time
    pieces = [[i] for i in range(10, 5000)]
    known = Similar(list(map(str, pieces)), np.zeros((len(pieces), 1)), pieces,
                    [[(i + 1) % len(pieces)] for i in range(len(pieces))])
    ids, draws = RNG.integers(0, 6000, 8192), np.zeros(8192, np.uint32)
    known.replace(ids, np.arange(8192), draws)
    best = min(timed(known, ids, draws, time.process_time) for _ in range(5))
    assert 8192 / best > 1e6


def timed(known, ids, draws, clock):
    begun = clock()
    for _ in range(10):
        known.replace(ids, np.arange(8192), draws)
    return (clock() - begun) / 10
