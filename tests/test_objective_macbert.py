"""What models/macbert.py learns from: other words in the place of hidden ones, similar ones for the
most part and never a [MASK]; and two passages in a row, of which it says which came first."""
from collections import Counter
from types import SimpleNamespace

import masks
import numpy as np
import pytest

from tinybert_family.models import macbert
from tinybert_family.models.macbert import SIZES, Config, Objective
from tinybert_family.text import corrupt, segments
from tinybert_family.text.knowledge import Knowledge, flags
from tinybert_family.text.wordpiece import WordPiece

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] pre ##di ##ct ca ##lc ##ulate we red blue you".split()
PRE, DI, CT, CA, LC, ULATE, WE, RED, BLUE, YOU = range(5, 15)


class Table:
    """Similar words, by hand: {pieces: pieces}. What is not in it has none."""

    def __init__(self, pairs):
        self.pairs = pairs

    def replace(self, ids, unit, draws):
        y = np.full(len(ids), -1)
        for word in np.unique(unit[unit >= 0]):
            mine = np.flatnonzero(unit == word)
            y[mine] = self.pairs.get(tuple(ids[mine].tolist()), -1)
        return y


class Twins:
    """To a word of even pieces the one of the next pieces is similar; to others none is."""

    def replace(self, ids, unit, draws):
        odd = np.bincount(np.maximum(unit, 0), ids % 2 * (unit >= 0), len(ids)) > 0
        return np.where(odd[np.maximum(unit, 0)] | (unit < 0) | (ids < 5), -1, ids + 1)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("macbert"), WordPiece.train)


@pytest.fixture
def made(language):
    return masks.objective(macbert, language, Knowledge(similar=Twins()))


def by_hand(ids, a, b, pairs, known=None, **changes):
    """One sequence of the tokens ids[a] and ids[b], and the objective that spoils some of it."""
    corpus = SimpleNamespace(ids=np.array(ids, np.uint16))
    c = Config(vocab=15, layers=1, heads=1, width=8, hidden=8, positions=64, seq=64, **changes)
    knowledge = Knowledge(flags=known, similar=Table(pairs))
    objective = Objective(c, corpus, WordPiece(PIECES), 0, knowledge)
    table = np.array([[*a, *b, 0, 0, 0]])
    return objective, segments.lay_out(corpus, segments.framed(table, objective.tokenizer))


# ---- what stands in for a word

def test_a_worked_example():
    """The paper's: predict, of three pieces, becomes calculate, of as many."""
    pairs = {(PRE, DI, CT): (CA, LC, ULATE), (RED,): BLUE}
    objective, s = by_hand([WE, PRE, DI, CT, RED, YOU], (0, 4), (4, 6), pairs, masked=0.4)
    assert objective.budget(s).tolist() == [3]                  # 0.4 * 9 = 3.6, rounded down
    found = Counter()
    for copy in range(400):
        noisy, hidden = objective.noise(s, copy)
        assert masks.restored(s, noisy, hidden) and objective.tokenizer.mask not in noisy
        if 2 in hidden:
            assert hidden.tolist() == [2, 3, 4]
            found[tuple(noisy[2:5].tolist())] += 1
        if 6 in hidden:
            found["red", int(noisy[6])] += 1
    n = sum(count for word, count in found.items() if word[0] != "red")
    # 80 % calculate, 10 % predict, 10 % any head with any two tails
    assert masks.far_from(found[CA, LC, ULATE] / n, 0.8 + 0.1 / 96, n) < 4 and n > 50
    assert masks.far_from(found[PRE, DI, CT] / n, 0.1 + 0.1 / 96, n) < 4
    assert all(word[0] == "red" or word[0] in (PRE, CA, WE, RED, BLUE, YOU)
               and set(word[1:]) <= {DI, CT, LC, ULATE} for word in found)
    n = sum(count for word, count in found.items() if word[0] == "red")
    assert masks.far_from(found["red", BLUE] / n, 0.8 + 0.1 / 6, n) < 4 and n > 50


def test_no_sequence_has_a_mask_nor_another_special_token_of_noise(made):
    total = 0
    for copy in range(6):
        s = masks.laid_out(made, copy)
        noisy, _ = made.noise(s, copy)
        total += len(s.keys)
        assert not (noisy == made.tokenizer.mask).any()
        assert np.array_equal(noisy < 5, s.ids < 5)
    assert total > 3000


def kinds(objective, copy):
    """Of each hidden word: what became of it, by its draw, and was there a similar one?"""
    s = masks.laid_out(objective, copy)
    noisy, hidden = objective.noise(s, copy)
    assert masks.restored(s, noisy, hidden)
    unit = objective.words(s)
    similar = objective.knowledge.similar.replace(s.ids, unit, None)
    heads = hidden[corrupt.first_of(unit)[hidden] == hidden]
    sizes = np.bincount(unit[unit >= 0])
    for t in heads:
        word = slice(t, t + sizes[unit[t]])
        same = np.array_equal(noisy[word], s.ids[word])
        twin = np.array_equal(noisy[word], similar[word])
        kind = "kept" if same else "similar" if twin else "random"
        yield kind, similar[t] >= 0, len(s.ids[word])


def test_eighty_ten_ten_for_words_that_have_a_similar_one(made):
    found = Counter(kind for copy in range(6) for kind, known, _ in kinds(made, copy) if known)
    n = found.total()
    assert n > 2000
    for kind, share in ("similar", 0.8), ("kept", 0.1), ("random", 0.1):
        # a random word may be the right one, or the similar one
        assert abs(found[kind] / n - share) < 4 * np.sqrt(share * (1 - share) / n) + 0.1 / 60


def test_words_without_a_similar_one_become_random_for_a_tenth_at_most(made):
    found, tokens = Counter(), Counter()
    for copy in range(6):
        for kind, known, size in kinds(made, copy):
            tokens["all"] += size
            if not known:
                found[kind] += 1
                tokens[kind] += size
    n, lacking = tokens["all"], found.total()
    assert lacking > 2000 and not found["similar"]
    # a tenth by their draw, and of all hidden tokens a tenth for want of a similar word
    forced = tokens["random"] - 0.1 * (tokens["random"] + tokens["kept"])
    assert 0.07 * n < forced < 0.105 * n


def test_forced_is_a_setting(language):
    made = masks.objective(macbert, language, Knowledge(similar=Twins()), forced=0.0)
    found = Counter(kind for kind, known, _ in kinds(made, 0) if not known)
    n = found.total()
    assert masks.far_from(found["random"] / n, 0.1, n) < 4
    made = masks.objective(macbert, language, Knowledge(similar=Twins()), forced=1.0)
    found = Counter(kind for kind, known, _ in kinds(made, 0) if not known)
    assert found["random"] > 0.85 * n


def test_hidden_are_words_and_15_percent_rounded_down(made):
    s = masks.laid_out(made)
    hidden, unit = made.chosen(s, 0), made.words(s)
    assert np.array_equal(np.flatnonzero(np.isin(unit, unit[hidden])), hidden)
    budget = made.budget(s)
    assert np.array_equal(budget, np.maximum(1, np.floor(0.15 * np.diff(s.cuts))))
    count = np.bincount(s.sequence[hidden], minlength=len(s.keys))
    assert (count <= budget).all() and count.sum() > 0.95 * budget.sum()
    assert made.GRAMS == (4, 3, 2, 1)


def test_grams_of_up_to_four_words_in_one_passage():
    ids = [WE, RED, YOU, BLUE, WE, RED, YOU, BLUE]
    objective, s = by_hand(ids, (0, 5), (5, 8), {}, masked=0.4)
    assert objective.budget(s).tolist() == [4]
    found = Counter(tuple(objective.chosen(s, copy).tolist()) for copy in range(300))
    assert {(1, 2, 3, 4), (2, 3, 4, 5)} <= set(found)                   # four at once
    assert not any(set(hidden) & {0, 6, 10} for hidden in found)


def test_words_of_the_users_file_are_exchanged_whole():
    known = flags(phrase=[1, 0, 1, 1])
    pairs = {(RED, BLUE): (YOU, WE)}
    objective, s = by_hand([RED, BLUE, YOU, WE], (0, 2), (2, 4), pairs, known, masked=0.3)
    assert objective.words(s).tolist() == [-1, 0, 0, -1, 1, 2, -1]
    seen = {tuple(objective.noise(s, copy)[0][1:3].tolist()) for copy in range(60)}
    assert (YOU, WE) in seen and (RED, WE) not in seen
    assert Objective.needs(objective.config, {"phrases"}) == {"similar", "phrases"}
    assert Objective.needs(objective.config, {"vectors"}) == {"similar"}


def test_noise_is_a_function_of_seed_copy_and_sequence(made):
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:30])


# ---- the rest of the objective

def test_both_orders_have_the_same_words(made):
    """Sequences are shortened before they are swapped."""
    labels = np.concatenate([made.plan(made.corpus.train, copy).labels for copy in range(12)])
    assert set(labels.tolist()) == {0, 1} and masks.far_from(labels.mean(), 0.5, len(labels)) < 4
    s = masks.laid_out(made)
    for i in range(len(s.keys)):
        mine = np.flatnonzero((s.sequence == i) & (s.places >= 0))
        a, b = (s.places[mine[s.types[mine] == kind]] for kind in (0, 1))
        first, second = (b, a) if s.labels[i] else (a, b)
        assert first[-1] < second[0]
    b = masks.batch(made)[1]
    model = masks.a_model(macbert, made)
    made.loss(model, b, made.counts(b))["sop_loss"].backward()
    assert model.nsp.classifier.weight.grad.any()


def test_chance_is_to_leave_every_word_as_it_is(made):
    b = masks.batch(made)[1]
    frequency = np.bincount(made.corpus.ids, minlength=made.config.vocab) + 1.0
    chance = made.chance([b], frequency)
    seen = b["ids"][b["asked"][b["mlm_at"]]]
    left = np.mean(seen == b["mlm_labels"])
    assert chance["mlm_accuracy"] == pytest.approx(left) and 0.2 < left < 0.7
    p = (1 - left) * frequency / frequency.sum()
    by_hand = [-np.log(p[word] + left * (word == x)) for word, x in zip(b["mlm_labels"], seen)]
    assert chance["mlm_loss"] == pytest.approx(np.mean(by_hand))
    assert 0.6 < chance["sop_loss"] <= np.log(2) + 1e-9


def test_a_word_to_guess_is_veiled_by_another(made):
    ids = np.array([2, *made.heads[:6], 3])
    twin = Twins().replace(ids, np.array([-1, 0, 1, 2, 3, 4, 5, -1]), None)
    for place in range(1, 7):
        seen = made.veil(ids, place)
        assert np.array_equal(np.delete(seen, place), np.delete(ids, place))
        assert seen[place] >= 5 and (twin[place] < 0 or seen[place] == twin[place])


def test_the_recipe_is_the_published_one():
    for size, steps in ("base", 1_000_000), ("large", 2_000_000):
        c = SIZES[size]
        assert c.tokens * c.accumulate // c.seq == 512 and len(c.stages()) == 1
        assert (c.steps, c.lr, c.optimizer, c.masked) == (steps, 1e-4, "lamb", 0.15)
