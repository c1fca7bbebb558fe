"""What models/structbert.py learns from: words hidden as BERT's are, trigrams out of order beside
them, and where the second of two passages comes from."""
from collections import Counter
from types import SimpleNamespace

import masks
import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.models import bert, structbert
from tinybert_family.models.structbert import SIZES, Config, Objective
from tinybert_family.text import segments
from tinybert_family.text.wordpiece import WordPiece

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] the old mill by lake a".split()


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("structbert"), WordPiece.train)


@pytest.fixture
def made(language):
    return masks.objective(structbert, language, shuffled=0.05)


def by_hand(ids, a, b, **changes):
    """One sequence of the tokens ids[a] and ids[b], and the objective that shuffles some of it."""
    corpus = SimpleNamespace(ids=np.array(ids, np.uint16), documents=[0, 1, 2])
    c = Config(vocab=11, layers=1, heads=1, width=8, hidden=8, positions=64, seq=64, **changes)
    objective = Objective(c, corpus, WordPiece(PIECES))
    table = np.array([[*a, *b, 0, 0, 0]])
    return objective, segments.lay_out(corpus, segments.framed(table, objective.tokenizer))


def noise(objective, s, copy):
    """-> what the model sees, the hidden places, the places of shuffled words"""
    noisy, hidden = objective.noise(s, copy)
    noisy, moved = objective.shuffle(s, noisy, hidden, copy)
    return noisy, hidden, moved


# ---- words out of order

def test_a_worked_example():
    """the old mill by | a lake: one of six words is hidden; three others that stand together are
    shuffled, and never over [SEP]."""
    objective, s = by_hand([5, 6, 7, 8, 10, 9], (0, 4), (4, 6), shuffled=0.33, masked=0.1)
    assert s.ids.tolist() == [2, 5, 6, 7, 8, 3, 10, 9, 3]
    found, orders = Counter(), Counter()
    for copy in range(400):
        noisy, hidden, moved = noise(objective, s, copy)
        assert len(hidden) == 1 and hidden[0] not in moved
        found[tuple(moved.tolist())] += 1
        if len(moved):
            orders[tuple(np.argsort(s.ids[moved])[np.argsort(np.argsort(noisy[moved]))])] += 1
            assert sorted(noisy[moved].tolist()) == sorted(s.ids[moved].tolist())
            noisy[moved] = s.ids[moved]                 # what the model is asked for, put there
        noisy[hidden] = s.ids[hidden]
        assert np.array_equal(noisy, s.ids)
    assert set(found) == {(), (1, 2, 3), (2, 3, 4)}
    assert len(orders) == 6
    n = orders.total()
    assert all(masks.far_from(count / n, 1 / 6, n) < 4 for count in orders.values())


def test_undone_noise_is_the_text(made):
    s = masks.laid_out(made)
    noisy, hidden, moved = noise(made, s, 0)
    assert not set(hidden.tolist()) & set(moved.tolist())
    assert masks.restored(s, noisy, np.concatenate([hidden, moved]))
    assert (s.places[moved] >= 0).all()


def test_windows_are_three_in_a_row_in_one_passage_and_disjoint(made):
    s = masks.laid_out(made)
    noisy, _, moved = noise(made, s, 0)
    windows = moved.reshape(-1, 3)
    assert (np.diff(windows, axis=1) == 1).all() and len(np.unique(moved)) == len(moved)
    assert (np.ptp(s.sequence[windows], axis=1) == 0).all()
    assert (np.ptp(s.types[windows], axis=1) == 0).all()
    assert np.array_equal(np.sort(noisy[windows]), np.sort(s.ids[windows]))
    assert (np.ptp(s.ids[windows], axis=1) > 0).all()           # three equal words have no order


@pytest.mark.parametrize("rate", [0.05, 0.15])
def test_so_many_words_are_shuffled_and_a_sixth_of_the_windows_stay(language, rate):
    made = masks.objective(structbert, language, shuffled=rate)
    moved_words = words = kept = windows = 0
    for copy in range(4):
        s = masks.laid_out(made, copy)
        noisy, _, moved = noise(made, s, copy)
        distinct = np.array([len(set(w.tolist())) == 3 for w in s.ids[moved.reshape(-1, 3)]])
        same = (noisy[moved] == s.ids[moved]).reshape(-1, 3).all(1)
        moved_words, words = moved_words + len(moved), words + len(s.ids)
        kept, windows = kept + same[distinct].sum(), windows + distinct.sum()
    assert moved_words / words == pytest.approx(rate, rel=0.03)
    assert masks.far_from(kept / windows, 1 / 6, windows) < 4


def test_hidden_words_are_those_of_bert(made, language):
    """The shuffling draws numbers of its own, so it changes nothing about the rest."""
    s = masks.laid_out(made)
    plain = masks.objective(bert, language)
    for mine, theirs in zip(made.noise(s, 1), plain.noise(s, 1)):
        assert np.array_equal(mine, theirs)
    kinds = Counter()
    for copy in range(6):
        noisy, hidden, _ = noise(made, s, copy)
        seen = noisy[hidden]
        kinds += Counter(mask=int((seen == made.tokenizer.mask).sum()),
                         kept=int((seen == s.ids[hidden]).sum()), all=len(hidden))
    n, size = kinds["all"], made.config.vocab
    assert masks.far_from(kinds["mask"] / n, 0.8 + 0.1 / size, n) < 4
    assert masks.far_from(kinds["kept"] / n, 0.1 + 0.1 / size, n) < 4


def test_noise_is_a_function_of_seed_copy_and_sequence(made):
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:30])


# ---- where the second passage comes from

def test_each_of_three_answers_is_true(made):
    """0: another document; 1: it follows; 2: it stands before. Segments go by position."""
    s = masks.laid_out(made)
    borders = made.corpus.sentences[made.corpus.documents]
    for i in range(len(s.keys)):
        mine = np.flatnonzero((s.sequence == i) & (s.places >= 0))
        a, b = (s.places[mine[s.types[mine] == kind]] for kind in (0, 1))
        assert s.types[s.cuts[i]] == 0 and mine[s.types[mine] == 0].max() < mine.max()
        of_a, of_b = (np.searchsorted(borders, x[0], "right") for x in (a, b))
        if s.labels[i] == 0:
            assert of_a != of_b
        else:
            first, second = (a, b) if s.labels[i] == 1 else (b, a)
            assert of_a == of_b and first[-1] < second[0]
            longest = len(mine) == made.config.seq - 3          # cut off where they met, perhaps
            assert longest or first[-1] + 1 == second[0]


def test_each_answer_is_true_a_third_of_the_time(language):
    """But for lone sentences, whose partner is always another document's."""
    made = masks.objective(structbert, language)
    made.config = masks.replace(made.config, seq=128, positions=128, short=0.0)
    labels = np.concatenate([made.plan(made.corpus.train, copy).labels for copy in range(25)])
    n, shares = len(labels), np.bincount(labels) / len(labels)
    assert len(shares) == 3 and n > 5000
    assert masks.far_from(shares[1] / (shares[1] + shares[2]), 0.5, n * 2 / 3) < 4
    assert abs(shares - 1 / 3).max() < 0.04


def test_one_document_has_no_strangers():
    corpus = SimpleNamespace(ids=np.arange(9), sentences=[0, 4, 9], documents=[0, 2])
    with pytest.raises(tbf.Error, match="single document.*; put blank lines between documents"):
        Objective(SIZES["smoke"], corpus, WordPiece(PIECES))


# ---- losses

def test_means_are_apart_and_one_head_answers_for_both_kinds_of_words(made):
    """However few words are shuffled, they weigh as much as the hidden ones."""
    s, b = masks.batch(made)
    model = masks.a_model(structbert, made)
    n = made.counts(b)
    assert n.tolist() == [len(b["mlm_labels"]), len(b["wso_labels"]), 40] and n[0] > 2 * n[1] > 0
    losses = {name: x.item() for name, x in made.loss(model, b, n).items()}
    x = model.encode(made.inputs(b), b["asked"]).numpy()
    for task in "mlm", "wso":
        y = model.mlm(x[b[f"{task}_at"]]).numpy()
        y = y - np.log(np.exp(y).sum(1, keepdims=True))
        labels = b[f"{task}_labels"]
        assert losses[f"{task}_loss"] == pytest.approx(-y[np.arange(len(y)), labels].mean())
    assert made.total(losses) == pytest.approx(sum(losses.values()))
    assert np.array_equal(b["wso_labels"], s.ids[b["asked"][b["wso_at"]]])


def test_a_batch_without_a_trigram_is_no_hindrance(language):
    made = masks.objective(structbert, language, shuffled=0.0)
    b = masks.batch(made)[1]
    model = masks.a_model(structbert, made)
    assert len(b["wso_labels"]) == 0
    assert made.loss(model, b, made.counts(b))["wso_loss"].item() == 0
    assert "wso_loss" not in made.chance([b], np.ones(made.config.vocab))


def test_chance_is_to_leave_words_in_their_places(language):
    made = masks.objective(structbert, language, shuffled=0.15)
    b = masks.batch(made, most=400)[1]
    chance = made.chance([b], np.bincount(made.corpus.ids, minlength=made.config.vocab) + 1.0)
    n = len(b["wso_labels"])
    # equal words make it a little easier than for three different ones
    assert n > 2000 and 1 / 3 - 0.03 < chance["wso_accuracy"] < 1 / 3 + 0.06
    entropy = np.log(3) / 3 + 2 * (2 / 9 * np.log(9 / 2) + 1 / 9 * np.log(9))
    assert entropy - 0.15 < chance["wso_loss"] < entropy + 0.03


def test_the_recipe_is_the_published_one_as_far_as_there_is_one():
    c = Config()
    assert (c.lr, c.optimizer, c.warmup / c.steps, c.seq) == (1e-4, "adamw", 0.1, 512)
    assert c.shuffled == 0.05 and len(c.stages()) == 1
