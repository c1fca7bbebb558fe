"""The noise: worked examples, the papers' rules as plain loops beside ours, and what chance has to
look like."""
from types import SimpleNamespace

import numpy as np
import pytest

from tinybert_family.text import corrupt

CLS, SEP, MASK = 1, 2, 3


def draw(rng, n):
    return rng.integers(0, 2 ** 32, n, dtype=np.uint32)


def fraction(share):
    """The draw that stands for a share of 0 to 1"""
    return np.uint32(int(share * 2 ** 32))


def a_row(rng, sequences=4, words=25, pieces=4, marks=True):
    """A micro-batch of sequences like [CLS] words [SEP] words [SEP]; some without any mark."""
    ids, begins, sequence = [], [], []
    for s in range(sequences):
        passages = int(rng.integers(1, 3))
        bare = not marks or rng.random() < 0.2
        tokens = [] if bare else [(CLS, False)]
        for _ in range(passages):
            for size in rng.integers(1, pieces + 1, rng.integers(1, words + 1)):
                word = [(int(i), False) for i in rng.integers(10, 100, size)]
                tokens += [(word[0][0], True)] + word[1:]
            tokens += [] if bare else [(SEP, False)]
        ids += [i for i, _ in tokens]
        begins += [b for _, b in tokens]
        sequence += [s] * len(tokens)
    ids, begins, sequence = np.array(ids), np.array(begins, bool), np.array(sequence)
    special = ids < 10
    begins &= rng.random(len(ids)) < 0.95           # a few words whose head was cut off
    lengths = np.bincount(sequence)
    return SimpleNamespace(ids=ids, special=special, sequence=sequence, lengths=lengths,
                           unit=corrupt.units(begins, special, sequence), begins=begins,
                           counts=corrupt.budget(lengths, float(rng.choice([.15, .4])), 50),
                           draws=[draw(rng, len(ids)) for _ in range(4)])


def rows(n=60, **how):
    for seed in range(n):
        yield a_row(np.random.default_rng(seed), **how)


def plain_words(length, sequences, rng=None):
    """Sequences of one-piece words without marks: (unit, sequence)"""
    sequence = np.repeat(np.arange(sequences), length)
    return np.arange(len(sequence)), sequence


def words_of(row, s):
    """Token numbers of each word of a sequence, in passages: [[[3, 4], [5]], [[7]]]"""
    passages, before = [], None
    for t in np.flatnonzero(row.sequence == s).tolist():
        if row.special[t]:
            before = None
        elif before is None:
            passages.append([[t]])
            before = t
        elif row.unit[t] == row.unit[before]:
            passages[-1][-1].append(t)
            before = t
        else:
            passages[-1].append([t])
            before = t
    return passages


def chi_square(found, expected):
    """How far counts are from what was expected, in standard deviations of that distance"""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    expected = expected * found.sum() / expected.sum()
    free = len(found) - 1
    return (((found - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free)


# ---- units

def test_units_by_hand():
    #        [CLS] un ##happ ##y [SEP] ##ly so [SEP] | a ##b
    begins = np.array([0, 1, 0, 0, 1, 0, 1, 1, 0, 0], bool)
    special = np.array([1, 0, 0, 0, 1, 0, 0, 1, 0, 0], bool)
    sequence = np.array([0] * 8 + [1] * 2)
    unit = corrupt.units(begins, special, sequence)
    # "##ly" lost its head and is a word; so is the second sequence's "a", whatever `begins` says.
    assert unit.tolist() == [-1, 0, 0, 0, -1, 1, 2, -1, 3, 3]
    assert corrupt.first_of(unit).tolist() == [0, 1, 1, 1, 4, 5, 6, 7, 8, 8]
    # without any mark a border parts words too; marks side by side are no unit
    sequence = np.array([0, 0, 1, 1])
    assert corrupt.units(sequence > 5, sequence > 5, sequence).tolist() == [0, 0, 1, 1]
    assert corrupt.first_of(np.array([-1, -1, 0, -1, -1])).tolist() == [0, 1, 2, 3, 4]


def test_a_word_never_reaches_over_a_mark_or_a_border():
    for row in rows():
        first = corrupt.first_of(row.unit)
        for t in np.flatnonzero(row.unit >= 0):
            between = np.arange(first[t], t + 1)
            assert not row.special[between].any()
            assert len(set(row.sequence[between])) == 1 and len(set(row.unit[between])) == 1
        assert np.all(row.unit[row.special] == -1)
        known = row.unit[row.unit >= 0]
        assert np.all(np.diff(known) >= 0) and len(set(known)) == known.max() + 1


def test_an_empty_row_and_a_row_of_marks():
    nothing, no_counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    marks, one = np.array([-1, -1]), np.array([1])
    for unit, counts in (nothing, no_counts), (marks, one):
        sequence, d = np.zeros(len(unit), np.int64), np.zeros(len(unit), np.uint32)
        free = np.zeros(len(unit), bool)
        assert len(corrupt.units(free, ~free, sequence)) == len(unit)
        assert not len(corrupt.whole_units(d, unit, sequence, counts))
        assert not len(corrupt.ngrams(d, d, unit, sequence, counts)[0])
        assert not len(corrupt.spans(d, d, unit, sequence, counts)[1])
        assert not len(corrupt.windows(d, d, d, unit, sequence, counts))
        assert not len(corrupt.trigrams(d, d, sequence, free, sequence, counts)[0])
        assert not len(corrupt.bernoulli(d, unit, 0.5))
        assert not len(corrupt.choose(d, free, sequence, counts))


# ---- which: by hand

HAND = SimpleNamespace(
    #         [CLS]  A  A  B  C  C  C [SEP] D  D  E [SEP]
    unit=np.array([-1, 0, 0, 1, 2, 2, 2, -1, 3, 3, 4, -1]), sequence=np.zeros(12, np.int64))


def at(heads, rest=0.99):
    """Draws [12] that are shares at the first tokens of A, B, C, D, E."""
    found = np.full(12, fraction(rest))
    found[[1, 3, 4, 8, 10]] = [fraction(share) for share in heads]
    return found


def test_whole_words_by_hand():
    """Order C, D, A, E, B; four tokens: C takes three, D and A exceed the one left, E takes it."""
    order = at([0.5, 0.9, 0.1, 0.2, 0.6])
    places = corrupt.whole_units(order, HAND.unit, HAND.sequence, np.array([4]))
    assert places.tolist() == [4, 5, 6, 10]


def test_ngrams_by_hand():
    """Order C, B, D, A, E; seven tokens; 6 : 3 : 2, so up to 6/11 is one word, up to 9/11 two."""
    order = at([0.5, 0.2, 0.1, 0.3, 0.6])
    size = at([0.6, 0.9, 0.9, 0.7, 0.1])
    places, number = corrupt.ngrams(order, size, HAND.unit, HAND.sequence, np.array([7]))
    # C is the last of its passage: one word, three tokens. B wants two, but the second is C. D
    # wants two, three tokens, and four are left. A wants two; one token is left, and A alone has
    # two.
    assert places.tolist() == [4, 5, 6, 8, 9, 10]
    assert number.tolist() == [0, 0, 0, 1, 1, 1]
    # with eight there is room for A alone
    places, number = corrupt.ngrams(order, size, HAND.unit, HAND.sequence, np.array([8]))
    assert places.tolist() == [1, 2, 4, 5, 6, 8, 9, 10]
    assert number.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


def test_spans_by_hand():
    """Where: tokens 5, 2, 10, 1 ... ; how many words: at that token. Four tokens in all."""
    where = np.full(12, fraction(0.9))
    where[[5, 2, 10]] = [fraction(x) for x in (0.1, 0.2, 0.3)]
    one, two = fraction(0.1), fraction(0.3)                 # .2 / (1 - .8^10) = .224 is one word
    size = np.full(12, one)
    size[2] = two
    places, number = corrupt.spans(where, size, HAND.unit, HAND.sequence, np.array([5]))
    # token 5 is inside C: all of C; token 2 is inside A: two words, A and B, but two tokens are
    # left, so A alone.
    assert places.tolist() == [1, 2, 4, 5, 6] and number.tolist() == [0, 0, 1, 1, 1]
    # with one more, B joins A to C: one span
    places, number = corrupt.spans(where, size, HAND.unit, HAND.sequence, np.array([6]))
    assert places.tolist() == [1, 2, 3, 4, 5, 6] and set(number) == {0}
    # the last one is cut inside the word; or, where whole words are wanted, the next is tried
    places, _ = corrupt.spans(where, size, HAND.unit, HAND.sequence, np.array([4]))
    assert places.tolist() == [1, 4, 5, 6]
    places, _ = corrupt.spans(where, size, HAND.unit, HAND.sequence, np.array([4]), whole=True)
    assert places.tolist() == [4, 5, 6, 10]


def test_windows_by_hand():
    """Eight words, windows of three: one word of 0-2, one of 3-5, one of 6-7."""
    unit, sequence = plain_words(8, 1)
    any_ = np.zeros(8, np.uint32)
    where = any_.copy()
    where[[0, 3, 6]] = [fraction(x) for x in (0.7, 0.1, 0.4)]           # the third, first, second
    order = any_.copy()
    order[[2, 3, 7]] = [5, 9, 1]
    hidden = corrupt.windows(any_, where, order, unit, sequence, np.array([3]), 1, 3)
    assert hidden.tolist() == [2, 3, 7]
    hidden = corrupt.windows(any_, where, order, unit, sequence, np.array([2]), 1, 3)
    assert hidden.tolist() == [2, 7]                                    # the order's first two
    hidden = corrupt.windows(any_, where, order, unit, sequence, np.array([2]), 1, 3, True)
    assert hidden.tolist() == [2, 3]                                    # the leftmost two
    where[6] = fraction(0.7)                                            # a third, which is not there
    hidden = corrupt.windows(any_, where, order, unit, sequence, np.array([3]), 1, 3)
    assert hidden.tolist() == [2, 3]


def test_trigrams_by_hand():
    ids = np.array([11, 12, 13, 14, 15, 16, 17, 17, 17, 18])
    free = np.array([1, 1, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    sequence = np.zeros(10, np.int64)
    order = np.full(10, 99, np.uint32)
    order[[6, 1, 0, 7]] = [0, 1, 2, 3]
    turn = np.zeros(10, np.uint32)
    turn[1], turn[7] = fraction(4.5 / 6), fraction(5.5 / 6)
    # 6: three times the same, out. 1: taken. 0: overlaps with it. 7: 17 17 18.
    places, sources = corrupt.trigrams(order, turn, ids, free, sequence, np.array([2]))
    assert places.tolist() == [1, 2, 3, 7, 8, 9]
    assert sources.tolist() == [3, 1, 2, 9, 8, 7]
    noisy = ids.copy()
    noisy[places] = ids[sources]
    assert noisy.tolist() == [11, 14, 12, 13, 15, 16, 17, 18, 17, 17]
    places, _ = corrupt.trigrams(order, turn, ids, free, sequence, np.array([1]))
    assert places.tolist() == [1, 2, 3]


def test_replace_by_hand():
    ids, words = np.arange(10, 16), np.arange(50, 56)
    shares = np.array([fraction(x) for x in (0.1, 0.79, 0.81, 0.89, 0.91, 0.5)])
    noisy = corrupt.replace(ids, np.array([0, 1, 2, 3, 4]), shares, words, MASK)
    assert noisy.tolist() == [3, 3, 12, 13, 54, 15]
    noisy = corrupt.replace(ids, np.array([1, 4]), shares, words, np.arange(90, 96), (0.8, 0.0))
    assert noisy.tolist() == [10, 91, 12, 13, 14, 15]
    assert ids.tolist() == list(range(10, 16))                          # the given ids are kept


# ---- which: the papers' rules as plain loops

def reference_whole_words(row, s):
    """create_masked_lm_predictions of the BERT repository with do_whole_word_mask"""
    words = [word for passage in words_of(row, s) for word in passage]
    words.sort(key=lambda word: row.draws[0][word[0]])
    hidden = []
    for word in words:
        if len(hidden) >= row.counts[s]:
            break
        if len(hidden) + len(word) > row.counts[s]:
            continue
        hidden += word
    return sorted(hidden)


def test_whole_words_are_the_released_loop():
    for row in rows():
        found = corrupt.whole_units(row.draws[0], row.unit, row.sequence, row.counts)
        wanted = [t for s in range(len(row.counts)) for t in reference_whole_words(row, s)]
        assert found.tolist() == wanted


def reference_ngrams(row, s, weights):
    """create_masked_lm_predictions of the ALBERT repository; n-grams that straddle a mark are not
    among the candidates"""
    candidates = []
    for passage in words_of(row, s):
        for i in range(len(passage)):
            grams = [passage[i:i + n] for n in range(1, len(weights) + 1)]
            candidates.append([g for n, g in enumerate(grams) if len(g) == n + 1])
    candidates.sort(key=lambda grams: row.draws[0][grams[0][0][0]])
    hidden, found = set(), []
    for grams in candidates:
        if len(hidden) >= row.counts[s]:
            break
        p = np.array(weights[:len(grams)]) / sum(weights[:len(grams)])
        share = row.draws[1][grams[0][0][0]] / 2 ** 32
        n = int((share >= np.cumsum(p)[:-1]).sum())
        while n >= 0:
            tokens = [t for word in grams[n] for t in word]
            if len(hidden) + len(tokens) <= row.counts[s]:
                break
            n -= 1
        if n < 0 or hidden & set(tokens):
            continue
        hidden |= set(tokens)
        found.append(tokens)
    return sorted(found)


@pytest.mark.parametrize("weights", [(6, 3, 2), (4, 3, 2, 1), (1,)])
def test_ngrams_are_the_released_loop(weights):
    for row in rows(40):
        places, number = corrupt.ngrams(*row.draws[:2], row.unit, row.sequence, row.counts, weights)
        wanted = [g for s in range(len(row.counts)) for g in reference_ngrams(row, s, weights)]
        found = [places[number == n].tolist() for n in range(len(wanted))]
        assert found == wanted and len(places) == sum(map(len, wanted))


def reference_spans(row, s, whole):
    """PairWithSpanMaskingScheme.mask of the SpanBERT repository, where "any token, and another if
    it is hidden already" is read off a random order of the tokens"""
    passages = words_of(row, s)
    place = {t: (p, w) for p, words in enumerate(passages) for w, word in enumerate(words)
             for t in word}
    p = 0.8 ** np.arange(10)
    bounds = np.cumsum(p / p.sum())
    hidden = set()
    for anchor in sorted(place, key=lambda t: row.draws[0][t]):
        if len(hidden) >= row.counts[s]:
            break
        if anchor in hidden:
            continue
        length = 1 + int((row.draws[1][anchor] / 2 ** 32 >= bounds[:-1]).sum())
        passage, w = place[anchor]
        for word in passages[passage][w:w + length]:
            new = [t for t in word if t not in hidden]
            if whole and len(hidden) + len(new) > row.counts[s]:
                break
            for t in word:
                if len(hidden) < row.counts[s]:
                    hidden.add(t)
    return sorted(hidden)


@pytest.mark.parametrize("whole", [False, True])
def test_spans_are_the_released_loop(whole):
    for row in rows(40):
        places, number = corrupt.spans(*row.draws[:2], row.unit, row.sequence, row.counts,
                                       whole=whole)
        wanted = [t for s in range(len(row.counts)) for t in reference_spans(row, s, whole)]
        assert places.tolist() == wanted
        for i in range(1, len(places)):
            a, b = places[i - 1], places[i]
            touch = b == a + 1 and row.sequence[a] == row.sequence[b]
            assert number[i] - number[i - 1] == (0 if touch else 1)


def reference_windows(row, s, longest, window, tail_bias):
    """mask_tokens of DeBERTa's NGramMaskGenerator"""
    passages = words_of(row, s)
    words = [word for passage in passages for word in passage]
    last = [words.index(passage[-1]) + 1 for passage in passages for _ in passage]
    p = 1 / np.arange(1, longest + 1)
    bounds = np.cumsum(p / p.sum())
    grams, offset = {}, 0
    while offset < len(words):
        t = words[offset][0]
        n = 1 + int((row.draws[0][t] / 2 ** 32 >= bounds[:-1]).sum())
        room = n * window
        if tail_bias or not offset:
            room = min(room, len(words) - offset)
        begin = end = offset + int(row.draws[1][t]) * room // 2 ** 32
        if begin < len(words):
            end = min(begin + n, last[begin])
            grams[begin] = words[begin:end]
        offset = max(offset + room, end)
    by_chance = sorted(grams, key=lambda begin: row.draws[2][words[begin][0]])
    hidden = []
    for begin in sorted(grams) if tail_bias else by_chance:
        for word in grams[begin]:
            if len(hidden) < row.counts[s]:
                hidden += word
    return sorted(hidden)


@pytest.mark.parametrize("longest, window, tail_bias", [(1, 6, False), (3, 6, False), (3, 2, True),
                                                        (1, 2, True)])
def test_windows_are_the_released_loop(longest, window, tail_bias):
    for row in rows(40):
        found = corrupt.windows(*row.draws[:3], row.unit, row.sequence, row.counts, longest, window,
                                tail_bias)
        wanted = [t for s in range(len(row.counts))
                  for t in reference_windows(row, s, longest, window, tail_bias)]
        assert found.tolist() == wanted


def reference_trigrams(row, s, free, count):
    starts = [t for t in range(len(row.ids) - 2)
              if set(row.sequence[t:t + 3]) == {s} and all(free[t:t + 3])
              and len(set(row.ids[t:t + 3])) > 1]
    taken = []
    for t in sorted(starts, key=lambda t: row.draws[0][t]):
        if len(taken) < count and all(abs(t - other) > 2 for other in taken):
            taken.append(t)
    return sorted(taken)


def test_trigrams_are_a_plain_loop_and_can_be_undone():
    for row in rows(40):
        row.ids[np.random.default_rng(1).random(len(row.ids)) < 0.5] = 50       # some equal triples
        row.ids[row.special] = SEP
        free = ~row.special
        free[corrupt.choose(row.draws[3], free, row.sequence, row.counts)] = False
        counts = np.arange(len(row.counts)) + 1
        places, sources = corrupt.trigrams(*row.draws[:2], row.ids, free, row.sequence, counts)
        wanted = [t for s, n in enumerate(counts) for t in reference_trigrams(row, s, free, n)]
        assert places.reshape(-1, 3)[:, 0].tolist() == wanted
        assert np.all(np.diff(places.reshape(-1, 3)) == 1) and free[places].all()
        assert np.array_equal(np.sort(sources), places)
        noisy = row.ids.copy()
        noisy[places] = row.ids[sources]
        noisy[sources] = noisy[places]              # each token goes back where it came from
        assert np.array_equal(noisy, row.ids)


# ---- which: what always holds

def test_budgets_are_kept_and_marks_are_left_alone():
    for row in rows():
        order, more, third, _ = row.draws
        given = row.unit, row.sequence, row.counts
        words = np.bincount(corrupt.Table(row.unit, row.sequence).which[row.unit >= 0])
        able = np.bincount(row.sequence[~row.special], minlength=len(row.counts))
        wanted = np.minimum(row.counts, able)

        def spent(places):
            assert not row.special[places].any() and np.all(np.diff(places) > 0)
            return np.bincount(row.sequence[places], minlength=len(row.counts))
        assert np.array_equal(spent(corrupt.choose(order, ~row.special, row.sequence, row.counts)),
                              wanted)
        assert np.array_equal(spent(corrupt.spans(order, more, *given)[0]), wanted)
        for places in (corrupt.whole_units(order, *given), corrupt.ngrams(order, more, *given)[0],
                       corrupt.spans(order, more, *given, whole=True)[0]):
            assert np.all(spent(places) <= wanted)
            assert np.all(spent(places) > wanted - words.max())
            # unions of words
            assert set(places) == set(np.flatnonzero(np.isin(row.unit, row.unit[places])))
        windows = corrupt.windows(order, more, third, *given, 3, 2)
        assert np.all(spent(windows) < row.counts + words.max())
        hidden = corrupt.bernoulli(order, row.unit, 0.3)
        assert set(hidden) == set(np.flatnonzero(np.isin(row.unit, row.unit[hidden])))
        spent(hidden)


def test_noise_is_the_same_whoever_else_is_in_the_batch():
    """A sequence alone, and among others: the same draws hide the same tokens."""
    for row in rows(20):
        order, more, third, _ = row.draws
        rules = [lambda o, m, x, *given: corrupt.whole_units(o, *given),
                 lambda o, m, x, *given: corrupt.ngrams(o, m, *given)[0],
                 lambda o, m, x, *given: corrupt.spans(o, m, *given)[0],
                 lambda o, m, x, *given: corrupt.windows(o, m, x, *given)]
        for rule in rules:
            together = rule(order, more, third, row.unit, row.sequence, row.counts)
            for s, count in enumerate(row.counts):
                own = np.flatnonzero(row.sequence == s)
                alone = rule(order[own], more[own], third[own], row.unit[own],
                             np.zeros(len(own), np.int64), np.array([count]))
                assert np.array_equal(own[alone], together[row.sequence[together] == s])


def test_units_need_neither_be_numbered_in_one_go_nor_stand_side_by_side():
    """Some words left out and numbers with gaps, as where only words that lack something count."""
    for row in rows(20):
        order, more, third, _ = row.draws
        kept = np.where(row.unit % 4 == 1, -1, row.unit)
        sparse = np.where(kept < 0, -1, 3 * kept + 7)
        given, counts = (row.sequence, row.counts), row.counts.astype(np.int32)
        for rule in corrupt.ngrams, corrupt.spans:
            places, number = rule(order, more, kept, *given)
            again = rule(order, more, sparse, row.sequence, counts)
            assert np.array_equal(again, [places, number]) and np.all(kept[places] >= 0)
            for a, b in zip(range(len(places)), range(1, len(places))):
                assert number[a] != number[b] or places[b] == places[a] + 1
        assert np.array_equal(corrupt.whole_units(order, kept, *given),
                              corrupt.whole_units(order, sparse, row.sequence, counts))
        assert np.array_equal(corrupt.windows(order, more, third, kept, *given, 3, 2),
                              corrupt.windows(order, more, third, sparse, *given, 3, 2))


# ---- chance

def test_draws_become_choices_evenly():
    rng = np.random.default_rng(0)
    d = draw(rng, 200_000)
    assert chi_square(np.bincount(corrupt.pick(d, (6, 3, 2)), minlength=3), (6, 3, 2)) < 5
    words = corrupt.uniform(d, 4, 24)
    assert words.min() == 4 and words.max() == 23
    assert chi_square(np.bincount(words)[4:], np.ones(20)) < 5
    ids = np.array([7] * 60 + [8] * 30 + [9] * 10, np.uint16)
    assert chi_square(np.bincount(corrupt.from_corpus(d, ids))[7:], (60, 30, 10)) < 5
    ends = np.array([0, 2 ** 32 - 1], np.uint32)
    assert corrupt.pick(ends, (1, 1, 1)).tolist() == [0, 2]
    assert corrupt.from_corpus(ends, ids).tolist() == [7, 9]


def test_no_corpus_is_too_long_to_draw_from():
    class Long:
        def __len__(self):
            return 2 ** 40

        def __getitem__(self, places):
            return places
    last = corrupt.from_corpus(np.array([2 ** 32 - 1], np.uint32), Long())
    assert 2 ** 40 - 2 ** 10 < last[0] < 2 ** 40


def test_roberta_rounds_up_as_often_as_the_rest_says():
    rng = np.random.default_rng(1)
    lengths = np.full(100_000, 128)                                     # 19.2
    found = corrupt.rounded_up_or_down(draw(rng, len(lengths)), 0.15, lengths)
    assert set(found) == {19, 20}
    assert abs(found.mean() - 19.2) < 5 * 0.4 / np.sqrt(len(lengths))


def test_heavy_tokens_come_first():
    """DistilBERT's draw without replacement: the first by weight, the second among the others."""
    rng = np.random.default_rng(2)
    weights, n = np.array([5.0, 3.0, 2.0, 0.0]), 20_000
    draws = draw(rng, (n, 4))
    first = np.array([corrupt.weighted(d, weights, 1)[0] for d in draws])
    assert chi_square(np.bincount(first, minlength=3), weights[:3]) < 5
    pairs = [corrupt.weighted(d, weights, 2) for d in draws]
    second = np.array([pair.sum() for pair in pairs]) - first           # the other of the two
    second = second[first == 0]
    assert chi_square(np.bincount(second, minlength=3)[1:], weights[1:3]) < 5
    assert np.all(np.diff(pairs) > 0)
    assert corrupt.weighted(draws[0], weights, 9).tolist() == [0, 1, 2]
    ends = np.array([0, 2 ** 32 - 1], np.uint32)
    assert corrupt.weighted(ends, np.ones(2), 1).tolist() == [1]
    assert not len(corrupt.weighted(ends, np.zeros(2), 1))
    assert not len(corrupt.weighted(ends[:0], np.zeros(0), 1))


def test_ngrams_are_as_long_as_their_weights_say():
    """The first n-gram of each sequence is cut by nothing: twelve words, a budget of four."""
    rng = np.random.default_rng(3)
    unit, sequence = plain_words(12, 12_000)
    counts = np.full(12_000, 4)
    for weights in (6, 3, 2), (4, 3, 2, 1):
        order, size = draw(rng, len(unit)), draw(rng, len(unit))
        places, number = corrupt.ngrams(order, size, unit, sequence, counts, weights)
        label = np.full(len(unit), -1)
        label[places] = number
        head = order.reshape(-1, 12).argmin(1) + 12 * np.arange(12_000)
        head = head[head % 12 <= 12 - len(weights)]
        lengths = np.bincount(number)[label[head]]
        # nothing was put directly before it, as part of it
        assert np.all(label[head] != np.where(head % 12, label[head - 1], -2))
        assert chi_square(np.bincount(lengths, minlength=len(weights) + 1)[1:], weights) < 5
        assert np.all(np.bincount(sequence[places]) == 4)               # one-piece words fill it


def test_the_lengths_of_spans_are_geometric():
    """.2 * .8^(n - 1), cut off behind ten and brought to one again: 3.797 words on average."""
    rng, n = np.random.default_rng(4), 15_000
    unit, sequence = plain_words(24, n)
    law = 0.8 ** np.arange(10)
    law /= law.sum()
    assert abs((law * np.arange(1, 11)).sum() - 3.797) < 0.001
    # The first span begins at word 0, so it may reach word 9. Words 1-11 come last in the order,
    # and eleven words are hidden: the other spans begin at words 12-23, none reaches words 1-10.
    order = draw(rng, len(unit)).reshape(n, 24) >> 1
    order[:, 0] = 0
    order[:, 1:12] |= 1 << 31
    places, _ = corrupt.spans(order.ravel(), draw(rng, len(unit)), unit, sequence, np.full(n, 11))
    hidden = np.zeros((n, 24), bool)
    hidden.ravel()[places] = True
    lengths = hidden[:, :11].argmin(1)
    assert chi_square(np.bincount(lengths, minlength=11)[1:], law) < 5


def drawn_again(rng, words, count):
    """SpanBERT's loop with real draws: anchors are redrawn until one is not hidden."""
    law = 0.8 ** np.arange(10)
    hidden = set()
    while len(hidden) < count:
        length = rng.choice(10, p=law / law.sum()) + 1
        anchor = rng.integers(words)
        if anchor in hidden:
            continue
        for t in range(anchor, min(anchor + length, words)):
            if len(hidden) < count:
                hidden.add(t)
    return hidden


def test_spans_from_a_random_order_are_spans_from_draws_again_and_again():
    """Number of spans, and how often each place is hidden, as with the loop that redraws."""
    rng, words, count, n = np.random.default_rng(5), 60, 20, 1500
    theirs = np.zeros((n, words), bool)
    for i in range(n):
        theirs[i, list(drawn_again(rng, words, count))] = True
    unit, sequence = plain_words(words, n)
    places, _ = corrupt.spans(draw(rng, len(unit)), draw(rng, len(unit)), unit, sequence,
                              np.full(n, count))
    ours = np.zeros((n, words), bool)
    ours.ravel()[places] = True

    def spans(hidden):
        return (np.diff(hidden.astype(int), axis=1, prepend=0) == 1).sum(1)
    a, b = spans(ours), spans(theirs)
    assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var()) / n)
    difference = (ours.mean(0) - theirs.mean(0)) / np.sqrt(2 * (1 / 3) * (2 / 3) / n)
    assert np.abs(difference).max() < 5


def test_tokens_and_words_are_hidden_evenly():
    rng = np.random.default_rng(6)
    n, words = 20_000, 30
    unit, sequence = plain_words(words, n)
    counts = np.full(n, 5)
    chosen = corrupt.choose(draw(rng, len(unit)), unit >= 0, sequence, counts)
    whole = corrupt.whole_units(draw(rng, len(unit)), unit, sequence, counts)
    alone = corrupt.bernoulli(draw(rng, len(unit)), unit, 1 / 6)
    for places in chosen, whole, alone:
        assert chi_square(np.bincount(places % words), np.ones(words)) < 5
    assert abs(len(alone) / len(unit) - 1 / 6) < 5 * np.sqrt(5 / 36 / len(unit))


def test_long_words_are_hidden_more_seldom_for_they_are_skipped():
    """As simulated for the spec: one-piece words 16.1 %, six-piece words 11.8 % of the time."""
    rng = np.random.default_rng(7)
    n, law = 1000, (0.62, 0.2, 0.1, 0.05, 0.02, 0.01)
    sizes = 1 + rng.choice(6, (n, 60), p=law)
    size = sizes.ravel()
    unit = np.repeat(np.arange(size.size), size)
    sequence = np.repeat(np.arange(n), sizes.sum(1))
    counts = corrupt.budget(np.bincount(sequence), 0.15, 99)
    places = corrupt.whole_units(draw(rng, len(unit)), unit, sequence, counts)
    assert np.array_equal(np.bincount(sequence[places]), counts)        # short words fill it up
    hidden = np.zeros(size.size, bool)
    hidden[unit[places]] = True
    assert 0.155 < hidden[size == 1].mean() < 0.17
    assert hidden[size == 1].mean() > hidden[size == 3].mean() > hidden[size == 6].mean()


def test_windows_hide_all_parts_of_a_text_and_the_released_code_does_not():
    rng = np.random.default_rng(8)
    n, words = 600, 510
    unit, sequence = plain_words(words, n)
    counts = np.full(n, round(0.15 * 512))
    given = [draw(rng, len(unit)) for _ in range(3)]

    def shares(tail_bias):
        places = corrupt.windows(*given, unit, sequence, counts, tail_bias=tail_bias)
        assert np.all(np.bincount(sequence[places]) <= 77)
        return np.bincount(places % words, minlength=words) / n
    even, biased = shares(False), shares(True)
    assert np.all(np.abs(even.reshape(10, -1).mean(1) - 77 / 510) < 0.015)
    # 1/6 where it begins; next to nothing at the end
    assert abs(biased[:255].mean() - 1 / 6) < 0.005 and biased[-26:].mean() < 0.001
    assert biased[-51:].mean() < 0.03


@pytest.mark.parametrize("longest", [1, 3])
def test_a_window_that_the_text_cuts_hides_no_more_than_others(longest):
    rng = np.random.default_rng(11)
    n, words = 6000, 62                                     # ten windows of six, and two words
    unit, sequence = plain_words(words, n)
    given = [draw(rng, len(unit)) for _ in range(3)]
    places = corrupt.windows(*given, unit, sequence, np.full(n, words), longest)
    share = np.bincount(places % words, minlength=words) / n
    assert abs(share[-2:].mean() - 1 / 6) < 0.02 and abs(share.mean() - 1 / 6) < 0.01


def test_shuffled_triples_take_every_order_and_stand_everywhere():
    rng = np.random.default_rng(9)
    n, words = 20_000, 20
    ids = np.tile(np.arange(words), n)
    sequence = np.repeat(np.arange(n), words)
    free = np.ones(len(ids), bool)
    places, sources = corrupt.trigrams(draw(rng, len(ids)), draw(rng, len(ids)), ids, free,
                                       sequence, np.ones(n, np.int64))
    starts = places.reshape(-1, 3)[:, 0] % words
    assert chi_square(np.bincount(starts), np.ones(words - 2)) < 5
    order = (sources - places[::3].repeat(3)).reshape(-1, 3)
    code = np.unique(order @ [9, 3, 1], return_counts=True)[1]
    assert len(code) == 6 and chi_square(code, np.ones(6)) < 5


def test_eighty_ten_ten_for_tokens_and_for_words():
    rng = np.random.default_rng(10)
    ids = rng.integers(10, 1000, 300_000)
    unit = np.repeat(np.arange(100_000), 3)
    chosen, words = np.arange(len(ids)), np.full(len(ids), 5)
    shares = draw(rng, len(ids))

    def parts(noisy):
        return [(noisy == MASK).sum(), (noisy == 5).sum(), (noisy == ids).sum()]
    noisy = corrupt.replace(ids, chosen, shares, words, MASK)
    assert sum(parts(noisy)) == len(ids) and chi_square(parts(noisy), (8, 1, 1)) < 5
    noisy = corrupt.replace(ids, chosen, shares[corrupt.first_of(unit)], words, MASK)
    masked, other, kept = ((noisy == x).reshape(-1, 3) for x in (MASK, 5, ids))
    assert np.all(masked.all(1) | other.all(1) | kept.all(1))
    assert chi_square([x[:, 0].sum() for x in (masked, other, kept)], (8, 1, 1)) < 5
