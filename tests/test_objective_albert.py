"""What models/albert.py learns from: n-grams of whole words, hidden piece by piece, and two
passages in a row, of which it says whether they were swapped."""
from collections import Counter
from types import SimpleNamespace

import masks
import numpy as np
import pytest

from tinybert_family.models import albert
from tinybert_family.models.albert import Config, Objective
from tinybert_family.text import corrupt, segments
from tinybert_family.text.unigram import Unigram
from tinybert_family.text.wordpiece import WordPiece

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] red green blue ##ish grey".split()
PAD, UNK, CLS, SEP, MASK, RED, GREEN, BLUE, ISH, GREY = range(10)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("albert"), Config.vocabulary)


@pytest.fixture
def made(language):
    return masks.objective(albert, language)


def by_hand(ids, a, b, **changes):
    """One sequence of the tokens ids[a] and ids[b], and the objective that hides some of it."""
    corpus = SimpleNamespace(ids=np.array(ids, np.uint16))
    c = Config(vocab=10, layers=1, heads=1, width=8, hidden=8, positions=64, seq=64, **changes)
    objective = Objective(c, corpus, WordPiece(PIECES))
    table = np.array([[*a, *b, 0, 0, 0]])
    return objective, segments.lay_out(corpus, segments.framed(table, objective.tokenizer))


# ---- n-grams

def test_a_worked_example():
    """red greenish blue | grey red: with a budget of four tokens, n-grams of one to three words
    that never reach over [SEP]."""
    objective, s = by_hand([RED, GREEN, ISH, BLUE, GREY, RED], (0, 4), (4, 6), masked=0.45)
    assert s.ids.tolist() == [CLS, RED, GREEN, ISH, BLUE, SEP, GREY, RED, SEP]
    assert objective.words(s).tolist() == [-1, 0, 1, 1, 2, -1, 3, 4, -1]
    assert objective.budget(s).tolist() == [4]
    found = {tuple(objective.chosen(s, copy).tolist()) for copy in range(200)}
    assert all(len(hidden) in (3, 4) and not {0, 5, 8} & set(hidden) for hidden in found)
    assert all((2 in hidden) == (3 in hidden) for hidden in found)          # a word is whole
    # three words at once; two and two; two words on one side and one on the other
    assert {(1, 2, 3, 4), (1, 4, 6, 7), (2, 3, 6, 7)} <= found


def test_lengths_are_in_proportion_to_one_over_n(made):
    """Where nothing stands in the way: of the first n-gram that is tried in each sequence."""
    count, more = Counter(), 0
    for copy in range(5):
        s = masks.laid_out(made, copy)
        unit = made.words(s)
        order, size, _, _ = made.draws(s, copy)
        hidden = set(made.chosen(s, copy).tolist())
        room = np.bincount(s.sequence) >= 50                # a budget that no n-gram exceeds
        for i in np.flatnonzero(room):
            mine = np.flatnonzero((s.sequence == i) & (unit >= 0))
            heads = mine[np.diff(unit[mine], prepend=-2) != 0]
            first = heads[np.argmin(order[heads])]
            after = [t for t in heads if t > first and s.types[t] == s.types[first]]
            if len(after) < 3 or after[2] - first > made.budget(s)[i]:
                continue
            # the draw says how many; and so many words at least are hidden there
            drawn = 1 + np.searchsorted(np.array([6, 9, 11]) / 11, size[first] / 2**32, "right")
            assert all(t in hidden for t in range(first, after[drawn - 1]))
            # and no more, unless another n-gram begins just there
            count[int(drawn)] += 1
            more += after[drawn - 1] in hidden
    n = count.total()
    assert more < 0.3 * n
    assert n > 500
    for size, share in (1, 6 / 11), (2, 3 / 11), (3, 2 / 11):
        assert masks.far_from(count[size] / n, share, n) < 4


def test_hidden_are_words_within_the_budget_and_in_one_passage(made):
    s = masks.laid_out(made)
    noisy, hidden = made.noise(s, 0)
    unit = made.words(s)
    assert masks.restored(s, noisy, hidden)
    assert np.array_equal(np.flatnonzero(np.isin(unit, unit[hidden])), hidden)
    assert (s.places[hidden] >= 0).all() and np.bincount(unit[unit >= 0]).max() >= 4
    count = np.bincount(s.sequence[hidden], minlength=len(s.keys))
    assert (count <= made.budget(s)).all() and count.sum() > 0.95 * made.budget(s).sum()
    # neighbours are hidden together more often than where words are chosen one by one
    order, _, _, _ = made.draws(s, 0)
    alone = corrupt.whole_units(order, unit, s.sequence, made.budget(s))
    assert (np.diff(unit[hidden]) == 1).mean() > 1.7 * (np.diff(unit[alone]) == 1).mean()


def test_a_decision_for_each_piece_and_not_for_each_word(made):
    s, kinds, mixed = masks.laid_out(made), Counter(), 0
    for copy in range(8):
        noisy, hidden = made.noise(s, copy)
        unit, seen = made.words(s)[hidden], noisy[hidden]
        masked, kept = seen == made.tokenizer.mask, seen == s.ids[hidden]
        kinds += Counter(mask=int(masked.sum()), kept=int(kept.sum()), all=len(hidden))
        mixed += len(np.intersect1d(unit[masked], unit[~masked]))
    n, size = kinds["all"], made.config.vocab
    assert n > 15_000 and mixed > 500
    assert masks.far_from(kinds["mask"] / n, 0.8 + 0.1 / size, n) < 4
    assert masks.far_from(kinds["kept"] / n, 0.1 + 0.1 / size, n) < 4


def test_masks_are_functions_of_seed_copy_and_sequence(made):
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:30])


# ---- which passage comes first

def test_swapped_passages_put_back_are_a_text_in_a_row(made):
    s = masks.laid_out(made)
    swapped, gaps = s.labels == 1, []
    for i in range(len(s.keys)):
        mine = np.flatnonzero((s.sequence == i) & (s.places >= 0))
        a, b = (s.places[mine[s.types[mine] == kind]] for kind in (0, 1))
        assert len(a) and len(b)
        text = np.concatenate([b, a] if swapped[i] else [a, b])
        # what was too long has lost tokens at its ends and where it was cut in two
        assert (np.diff(text) >= 1).all()
        gaps.append((np.diff(text) > 1).sum())
        assert not gaps[-1] or len(mine) == made.config.seq - 3
        document = np.searchsorted(made.corpus.sentences[made.corpus.documents], text, "right")
        assert len(set(document.tolist())) == 1
    assert max(gaps) == 1 and min(gaps) == 0


def test_half_of_the_passages_are_swapped(made):
    labels = np.concatenate([made.plan(made.corpus.train, copy).labels for copy in range(12)])
    assert set(labels.tolist()) == {0, 1}
    assert masks.far_from(labels.mean(), 0.5, len(labels)) < 4


def test_swapping_changes_nothing_but_the_order(made):
    """By the words alone it cannot be seen: swapped passages are as long and as old as others."""
    s = masks.laid_out(made)
    front = np.array([((s.sequence == i) & (s.types == 0)).sum() for i in range(len(s.keys))])
    length = np.diff(s.cuts)
    for x in front, length:
        a, b = x[s.labels == 0], x[s.labels == 1]
        assert abs(a.mean() - b.mean()) < 4 * x.std() * np.sqrt(1 / len(a) + 1 / len(b))


def test_the_released_codes_strangers_are_a_switch(language):
    """A lone sentence beside another document's passage; labelled as if it were swapped."""
    made = masks.objective(albert, language, stranger=True)
    s = masks.laid_out(made)
    borders = made.corpus.sentences[made.corpus.documents]
    strangers = 0
    for i in range(len(s.keys)):
        mine = np.flatnonzero((s.sequence == i) & (s.places >= 0))
        if len(set(np.searchsorted(borders, s.places[mine], "right").tolist())) > 1:
            assert s.labels[i] == 1
            strangers += 1
    assert strangers > 0


def test_the_answers_are_asked_of_the_heads_that_know_them(made):
    s, b = masks.batch(made)
    assert np.array_equal(b["asked"][b["sop_at"]], s.cuts[:-1])
    assert np.array_equal(b["sop_labels"], s.labels)
    assert np.array_equal(b["mlm_labels"], s.ids[b["asked"][b["mlm_at"]]])
    model = masks.a_model(albert, made)
    losses = made.loss(model, b, made.counts(b))
    losses["sop_loss"].backward()
    assert abs(model.sop.classifier.weight.grad).max() > 0
    assert model.mlm.bias.grad is None and set(losses) == {"mlm_loss", "sop_loss"}


# ---- the recipe

def test_the_recipe_is_the_published_one():
    c = Config()
    assert c.tokens * c.accumulate // c.seq == 4096 and len(c.stages()) == 1
    assert (c.steps, c.warmup, c.lr, c.optimizer) == (125_000, 3125, 0.00176, "lamb")
    assert (c.copies, c.predictions, c.short) == (40, 77, 0.1)
    assert isinstance(Config.vocabulary(["a text of some words"] * 9, 30), Unigram)
