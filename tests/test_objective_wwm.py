"""What models/bert_wwm.py hides: whole words, as many as fit, and each piece of them by a draw of
its own; words of the user's file where a language shows none."""
from collections import Counter
from types import SimpleNamespace

import masks
import numpy as np
import pytest

from tinybert_family.models import bert_wwm
from tinybert_family.models.bert_wwm import Config, Objective
from tinybert_family.text import segments
from tinybert_family.text.knowledge import Knowledge, flags
from tinybert_family.text.wordpiece import WordPiece

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] phil ##am ##mon sings a ##loud".split()
PAD, UNK, CLS, SEP, MASK, PHIL, AM, MON, SINGS, A, LOUD = range(11)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("wwm"), WordPiece.train)


@pytest.fixture
def made(language):
    return masks.objective(bert_wwm, language)


def by_hand(ids, a, b, knowledge=None, **changes):
    """One sequence of the tokens ids[a] and ids[b], and the objective that hides some of it."""
    corpus = SimpleNamespace(ids=np.array(ids, np.uint16))
    c = Config(vocab=11, layers=1, heads=1, width=8, hidden=8, positions=64, seq=64, last_share=0.0,
               **changes)
    objective = Objective(c, corpus, WordPiece(PIECES), 0, knowledge)
    table = np.array([[*a, *b, 0, 0, 0]])
    return objective, segments.lay_out(corpus, segments.framed(table, objective.tokenizer))


# ---- words

def test_a_worked_example():
    """philammon sings aloud: three words of 3, 1 and 2 pieces; a passage may begin with a rest."""
    objective, s = by_hand([PHIL, AM, MON, SINGS, A, LOUD], (0, 4), (5, 6))
    assert s.ids.tolist() == [CLS, PHIL, AM, MON, SINGS, SEP, LOUD, SEP]
    assert objective.words(s).tolist() == [-1, 0, 0, 0, 1, -1, 2, -1]
    # 15 % of 8 tokens, special ones among them, are one: a word of three does not fit
    found = set()
    for copy in range(30):
        found.add(tuple(objective.noise(s, copy)[1].tolist()))
    assert found == {(4,), (6,)}


@pytest.mark.parametrize("share, sizes", [(0.4, {2, 3}), (0.5, {3, 4})])
def test_what_exceeds_the_budget_is_passed_over_and_not_cut(share, sizes):
    """Of 8 tokens 3 (or 4) may be hidden: the long word with nothing (or one) beside it, or both of
    the short ones."""
    objective, s = by_hand([PHIL, AM, MON, SINGS, A, LOUD], (0, 4), (5, 6), masked=share)
    found = Counter(tuple(objective.noise(s, copy)[1].tolist()) for copy in range(60))
    assert {len(hidden) for hidden in found} <= sizes | {2}
    assert all(hidden[:3] == (1, 2, 3) or 1 not in hidden for hidden in found) and len(found) >= 2


def test_hidden_are_words_and_they_fill_the_budget(made):
    s = masks.laid_out(made)
    noisy, hidden = made.noise(s, 0)
    unit, n = made.words(s), len(s.keys)
    assert masks.restored(s, noisy, hidden) and (s.places[hidden] >= 0).all()
    whole = np.isin(unit, unit[hidden])
    assert np.array_equal(np.flatnonzero(whole), hidden)
    budget, count = made.budget(s), np.bincount(s.sequence[hidden], minlength=n)
    assert np.array_equal(budget, np.rint(0.15 * np.diff(s.cuts)))
    size = np.bincount(unit[unit >= 0])
    shortest = np.full(n, 99)
    np.minimum.at(shortest, s.sequence[~whole & (unit >= 0)], size[unit[~whole & (unit >= 0)]])
    assert (count <= budget).all() and (count + shortest > budget).all()
    assert count.sum() > 0.97 * budget.sum() and size.max() >= 5


def goggles(order, sizes, budget):
    """The released code's rule for one sequence, word by word."""
    chosen, used = [], 0
    for word in order:
        if used >= budget:
            break
        if used + sizes[word] <= budget:
            chosen.append(word)
            used += sizes[word]
    return sorted(chosen)


def test_the_choice_is_that_of_the_released_code(made):
    """Given the order in which words are tried."""
    s = masks.laid_out(made, most=200)
    order, _, _, _ = made.draws(s, 5)
    unit, hidden = made.words(s), made.chosen(s, 5)
    for i in range(len(s.keys)):
        mine = slice(*s.cuts[i:i + 2])
        numbers, first, sizes = np.unique(unit[mine], return_index=True, return_counts=True)
        numbers, first, sizes = (x[numbers >= 0] for x in (numbers, first, sizes))
        tried = np.argsort(order[mine][first])
        expected = goggles(tried.tolist(), sizes.tolist(), made.budget(s)[i])
        found = np.unique(unit[hidden[s.sequence[hidden] == i]])
        assert numbers[expected].tolist() == found.tolist()


def test_pieces_of_a_word_become_mask_or_stay_each_by_itself(made):
    s, kinds, mixed = masks.laid_out(made), Counter(), 0
    for copy in range(8):
        noisy, hidden = made.noise(s, copy)
        unit, seen = made.words(s)[hidden], noisy[hidden]
        masked, kept = seen == made.tokenizer.mask, seen == s.ids[hidden]
        kinds += Counter(mask=int(masked.sum()), kept=int(kept.sum()), all=len(hidden))
        some = np.intersect1d(unit[masked], unit[~masked])
        mixed += len(some)
    n, size = kinds["all"], made.config.vocab
    assert n > 20_000 and mixed > 500
    # a random word is the right one, or [MASK], once in `size` times
    assert masks.far_from(kinds["mask"] / n, 0.8 + 0.1 / size, n) < 4
    assert masks.far_from(kinds["kept"] / n, 0.1 + 0.1 / size, n) < 4


def test_the_sentence_task_can_be_left_out_and_passages_stay_pairs(language):
    """As for the models that are called RoBERTa-wwm-ext."""
    made = masks.objective(bert_wwm, language, follows=False)
    s, b = masks.batch(made)
    assert s.types.any() and list(made.TASKS) == ["mlm"] and "nsp_labels" not in b
    assert np.array_equal(s.ids[b["asked"]], b["mlm_labels"])
    assert not bert_wwm.SIZES["roberta"].follows and bert_wwm.SIZES["base"].follows
    assert list(Objective.TASKS) == ["mlm", "nsp"]


def test_masks_are_functions_of_seed_copy_and_sequence(made):
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:30])


# ---- the user's words

def test_words_of_the_users_file_are_hidden_whole():
    """Where every character is a piece and begins a word as far as its writing tells."""
    known = Knowledge(flags(phrase=[1, 0, 0, 1, 1, 0]))
    ids = [PHIL, SINGS, A, SINGS, PHIL, A]
    objective, s = by_hand(ids, (0, 4), (4, 6), known, masked=0.4)
    assert objective.words(s).tolist() == [-1, 0, 0, 0, 1, -1, 2, 2, -1]
    plain, s = by_hand(ids, (0, 4), (4, 6), masked=0.4)
    assert plain.words(s).tolist() == [-1, 0, 1, 2, 3, -1, 4, 5, -1]
    for copy in range(20):
        hidden = set(objective.noise(s, copy)[1].tolist())
        assert hidden & {1, 2, 3} in (set(), {1, 2, 3}) and hidden & {6, 7} in (set(), {6, 7})


def test_knowledge_is_asked_for_where_the_user_gives_words_and_not_else():
    c = bert_wwm.SIZES["smoke"]
    assert Objective.needs(c, set()) == set()
    assert Objective.needs(c, {"phrases"}) == {"phrases"}
    assert Objective.needs(c, {"graph"}) == set()


# ---- the recipe

def test_two_stages_each_with_a_batch_and_a_warm_up_of_its_own():
    short, long = Config().stages()
    assert (short.steps, long.steps) == (100_000, 100_000)
    assert [s.config.seq for s in (short, long)] == [128, 512]
    assert [s.config.tokens * s.config.accumulate // s.config.seq for s in (short, long)] \
        == [2560, 384]
    assert long.config.predictions == 80 and long.config.last_share == 0
    for stage in short, long:
        assert stage.rate(0) == pytest.approx(1e-4 / 10_000)
        assert stage.rate(50_000) == pytest.approx(1e-4 / 2)
        assert stage.rate(99_999) < 1e-8
    ext = bert_wwm.SIZES["ext"].stages()
    assert [stage.steps for stage in ext] == [1_000_000, 400_000]
    english = bert_wwm.SIZES["large-uncased"].stages()
    assert [stage.steps for stage in english] == [900_000, 100_000]
    assert english[1].rate(0) < english[0].rate(10_000) and english[1].rate(99_999) < 1e-9
    assert len(bert_wwm.SIZES["roberta"].stages()) == len(bert_wwm.SIZES["smoke"].stages()) == 1
