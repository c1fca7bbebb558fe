"""ERNIE 1.0's data: units that are hidden whole, three stages with rehearsal, the next passage as
label 1, and dialogues of three turns."""
from dataclasses import replace
from types import SimpleNamespace

import knowing
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybert_family.error import Error
from tinybert_family.models import ernie
from tinybert_family.text import corrupt, passages, segments
from tinybert_family.text.knowledge import Knowledge, flags

MARKS = knowing.MARKS


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return knowing.the_toy(tmp_path_factory.mktemp("toy") / "corpus")


def an_objective(language, seed=0, talk=None, **changes):
    corpus, tokenizer, known = language
    c = replace(ernie.SIZES["smoke"], vocab=tokenizer.size, seq=64, tokens=4096, **changes)
    known = Knowledge(known.flags, known.entities, known.vectors, known.names, dialogues=talk)
    return ernie.Objective(c, corpus, tokenizer, seed, known)


def by_units(phrase, entity, level=2, **changes):
    """An objective on random words of one long document; bool [tokens]: where units begin."""
    corpus = knowing.a_corpus([[10] * (len(phrase) // 10)])
    known = Knowledge(flags(phrase=phrase, entity=entity))
    tokenizer = SimpleNamespace(**vars(MARKS), KIND="WordPiece", vocab=["a"] * 1000,
                                own=["a"] * 1000, special=set())
    c = replace(ernie.SIZES["smoke"], vocab=1000, level=level, seq=128, **changes)
    return ernie.Objective(c, corpus, tokenizer, 0, known)


def whole(corpus, length=100):
    """The corpus in sequences [CLS] length tokens [SEP]."""
    lo = np.arange(0, len(corpus.ids), length)[:, None]
    keys = np.column_stack([0 * lo, lo])
    plan = passages.framed(lo, lo + length, 0 * lo, lo[:, 0], keys, MARKS, "")
    return segments.lay_out(corpus, plan)


# ---- units

def test_a_worked_example():
    """[CLS] He went to New York City [SEP], by what begins at each level.

        words       He | went | to | New | York | City      he 10, went 11, ... city 15
        phrases     He | went | to | New York | City
        names       He | went | to | New York City
    """
    corpus = knowing.a_corpus([[6, 4]])
    corpus.ids[:6] = 10, 11, 12, 13, 14, 15
    rest = [1] * 4
    known = Knowledge(flags(word=[1] * 10, phrase=[1, 1, 1, 1, 0, 1, *rest],
                            entity=[1, 1, 1, 1, 0, 0, *rest]))
    objective = by_units([1, 0] * 5, [1, 0, 0, 0, 0] * 2)
    objective.corpus, objective.knowledge = corpus, known
    lo = np.array([[0]])
    plan = passages.framed(lo, lo + 6, 0 * lo, [0], [[0, 0]], MARKS, "")
    s = segments.lay_out(corpus, plan)
    units = [objective.units(s, np.full(8, level)).tolist() for level in range(3)]
    assert units == [[-1, 0, 1, 2, 3, 4, 5, -1], [-1, 0, 1, 2, 3, 3, 4, -1],
                     [-1, 0, 1, 2, 3, 3, 3, -1]]

    # Only the draw at the head of the name is low, so it is hidden, all of it, and nothing else.
    at = lambda share: int(share * 2 ** 32)
    which = np.array([at(x) for x in (0, .5, .5, .5, .1, .5, .5, 0)], np.uint32)
    kind = np.array([at(x) for x in (0, 0, 0, 0, .79, .95, .85, 0)], np.uint32)     # M, other, same
    other = np.full(8, at(.5), np.uint32)
    objective.draws = lambda s, copy: (which, kind, other, np.full(8, at(.9), np.uint32))
    noisy, hidden = objective.noise(s, 0)
    assert hidden.tolist() == [4, 5, 6]
    assert noisy.tolist() == [1, 10, 11, 12, MARKS.mask, 1 + 999 // 2, 15, 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10 ** 6), st.floats(0.05, 1))
def test_a_unit_is_hidden_whole_or_not_at_all(seed, share):
    rng = np.random.default_rng(seed)
    objective = by_units(*rng.random((2, 1000)) < share, level=2 if share < 0.9 else 0)
    s = whole(objective.corpus)
    noisy, hidden = objective.noise(s, 1)
    level = corrupt.below(objective.draws(s, 1)[3][s.cuts[:-1]], objective.config.level + 1)
    unit = objective.units(s, level[s.sequence])
    labelled = np.isin(np.arange(len(unit)), hidden)
    for u in range(unit.max() + 1):
        assert labelled[unit == u].all() or not labelled[unit == u].any()
    assert not labelled[s.places < 0].any()
    noisy[hidden] = s.ids[hidden]
    assert np.array_equal(noisy, s.ids)                     # and only what is labelled was touched


def test_the_rates_are_those_of_the_code():
    """15 % of the units and so of the tokens; 80/10/10 token by token, by chi squared."""
    rng = np.random.default_rng(2)
    objective = by_units(*rng.random((2, 400_000)) < [[0.4], [0.3]])
    s = whole(objective.corpus)
    noisy, hidden = objective.noise(s, 0)
    inside = (s.places >= 0).sum()
    assert abs(len(hidden) / inside - 0.15) < 0.005
    masked = noisy[hidden] == MARKS.mask
    kept = noisy[hidden] == s.ids[hidden]
    counts = np.array([masked.sum(), (~masked & ~kept).sum(), kept.sum()])
    # a random word is the right one, or [MASK], one time in 999
    expected = len(hidden) * np.array([0.8, 0.1, 0.1])
    assert ((counts - expected) ** 2 / expected).sum() < 13.8       # p = 0.001
    others = noisy[hidden][~masked & ~kept]
    assert others.min() == 1 and others.max() == 999        # specials too, but never [PAD]
    # within a unit tokens are decided one by one: of pairs hidden together .8 * .2 * 2 differ
    pair = hidden[1:][(np.diff(hidden) == 1)]
    assert 0.28 < ((noisy[pair] == 3) != (noisy[pair - 1] == 3)).mean() < 0.36


@pytest.mark.parametrize("level", [0, 1, 2])
def test_earlier_levels_are_rehearsed(level):
    """Words are single tokens, phrases pairs, names fours: the hidden runs tell a sequence's
    level."""
    at = np.arange(200_000)
    objective = by_units(at % 2 == 0, at % 4 == 0, level)
    s = whole(objective.corpus)
    _, hidden = objective.noise(s, 0)
    labelled = np.isin(np.arange(len(s.ids)), hidden)[s.places >= 0].reshape(-1, 25, 4)
    fours = (labelled.all(2) | ~labelled.any(2)).all(1)
    pairs = labelled.reshape(-1, 50, 2)
    pairs = (pairs.all(2) | ~pairs.any(2)).all(1)
    share = [1 - pairs.mean(), (pairs & ~fours).mean(), fours.mean()][:level + 1]
    assert max(abs(np.array(share) - 1 / (level + 1))) < 0.04


def test_a_batch_is_a_function_of_seed_and_copy_whoever_is_in_it(language):
    objective = an_objective(language)
    plan = objective.plan(objective.corpus.train, 0)[:30]
    one, again, other = (objective.batch(plan, copy) for copy in (3, 3, 4))
    assert all(np.array_equal(one[key], again[key]) for key in one)
    assert not np.array_equal(one["ids"], other["ids"])
    rows = [one["ids"][lo:hi].tolist() for lo, hi in zip(one["cuts"], one["cuts"][1:])]
    alone = [objective.batch(plan[[i]], 3)["ids"].tolist() for i in range(30)]
    assert sorted(rows) == sorted(alone)


# ---- the next passage

def test_label_1_says_that_b_is_next(language):
    objective = an_objective(language, short=0.0)
    plan = objective.plan(objective.corpus.train, 0)
    ends = objective.corpus.sentences[objective.corpus.documents]
    seen = set()
    for i in range(len(plan)):
        (a, a_end, _), (b, _, _) = plan[[i]].pieces[[1, 3]]
        same = np.searchsorted(ends, a, "right") == np.searchsorted(ends, b, "right")
        if plan.labels[i]:
            assert same and b >= a_end
        seen.add((int(plan.labels[i]), bool(same)))
    assert {(1, True), (0, False)} <= seen
    batch = objective.batch(plan[:20], 0)
    assert set(batch["nsp_labels"].tolist()) == {0, 1}


# ---- dialogues

def a_talk(sizes, seed=0):
    """Dialogues of these numbers of turns; token t of turn n is 10 + n, so it tells its turn."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, sum(sizes))
    ids = np.repeat(10 + np.arange(sum(sizes)), lengths)
    return ids, np.cumsum([0, *lengths]), np.cumsum([0, *sizes])


def test_three_turns_by_hand():
    """One dialogue of exactly three turns: asked, answered, asked."""
    talk = a_talk([3, 3])
    for seed in range(20):
        plan = passages.triples(talk, [0, 1], 40, (seed,), MARKS, "dialogue")
        assert len(plan) == 2
        s = segments.lay_out(SimpleNamespace(ids=talk[0]), plan)
        if plan.labels.all():
            break
    first = s.keys[:, 0].tolist().index(0)
    t = slice(*s.cuts[first:first + 2])
    turns = [talk[0][lo:hi].tolist() for lo, hi in zip(talk[1][:3], talk[1][1:])]
    expected = [1, *turns[0], 2, *turns[1], 2, *turns[2], 2]
    assert s.ids[t].tolist() == expected
    n0, n1, n2 = map(len, turns)
    assert s.types[t].tolist() == [0] * (n0 + 2) + [1] * (n1 + 1) + [0] * (n2 + 1)


def test_real_turns_are_real_and_of_a_fake_one_is_strange():
    sizes = np.random.default_rng(1).integers(2, 8, 600).tolist()
    talk = a_talk(sizes)
    owner = np.repeat(np.arange(600), sizes)                # of every turn
    plan = passages.triples(talk, np.arange(600), 60, (5,), MARKS, "dialogue")
    shown = talk[0][plan.pieces[:, 0]].reshape(-1, 7)[:, 1::2] - 10     # turns [N, 3]
    roles = plan.pieces[:, 2].reshape(-1, 7)[:, 1::2]
    own = owner[shown] == plan.keys[:, :1]                  # of the dialogue it is keyed by
    real = plan.labels == 1
    assert own[real].all() and ((~own[~real]).sum(1) == 1).all()
    assert abs(real.mean() - 0.5) < 0.05
    place = np.bincount(np.argmin(own[~real], 1), minlength=3)
    assert abs(place / place.sum() - 1 / 3).max() < 0.06
    # QRQ side by side; QRR and QQR leave out whoever spoke between
    steps = {tuple(map(int, r)): set() for r in roles}
    for r, row in zip(roles[real], shown[real]):
        steps[tuple(map(int, r))].add(tuple(np.diff(row).tolist()))
    assert steps == {(0, 1, 0): {(1, 1)}, (0, 1, 1): {(1, 2)}, (0, 0, 1): {(2, 1)}}
    # no dialogue of fewer than three turns, and every turn begins one where it can
    expected = sum(max(0, n - 2) for n in sizes)
    assert len(plan) == expected


def test_a_long_turn_is_cut_and_short_ones_are_not():
    talk = np.arange(10, 130), np.array([0, 5, 105, 120]), np.array([0, 3])
    plan = passages.triples(talk, [0], 44, (0,), MARKS, "dialogue")
    sizes = np.diff(plan.pieces[1::2, :2], axis=1)[:, 0]
    assert sizes.tolist() == [5, 20, 15] and plan.lengths().tolist() == [44]
    assert plan.labels.tolist() == [1]                      # alone there is no strange turn


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=5),
       st.integers(0, 80))
def test_fit_shortens_the_longest_and_fills_the_room(sizes, room):
    sizes = np.array(sizes)
    fitted = passages.fit(sizes, room)
    assert (fitted <= sizes).all() and (fitted >= 0).all()
    assert np.array_equal(fitted.sum(1), np.minimum(sizes.sum(1), room))
    for before, after in zip(sizes, fitted):                # what is kept whole is no longer
        cut = before > after
        assert after[cut].max(initial=0) - after[cut].min(initial=room) <= 1
        assert (after[~cut] <= after[cut].min(initial=room) + 1).all()


def test_dialogues_alternate_with_pairs_and_some_are_held_out(language):
    talk = knowing.talk(language[1])
    objective = an_objective(language, talk=talk)
    pairs, found = objective.plans(objective.corpus.train, 0)
    assert (pairs.kind, found.kind) == ("", "dialogue")
    assert abs(found.lengths().sum() / pairs.lengths().sum() - 1) < 0.01
    _, held = objective.plans(objective.corpus.held, 0)
    assert set(found.keys[:, 0]).isdisjoint(held.keys[:, 0])
    assert set(found.keys[:, 0]) | set(held.keys[:, 0]) <= set(range(40))
    # a round's draws are its own: nothing is the same sequence with the same noise
    assert len(np.unique(found.keys, axis=0)) == len(found)


def test_a_batch_of_dialogues_hides_words_and_asks_whether_it_is_real(language):
    objective = an_objective(language, talk=knowing.talk(language[1]))
    plan = objective.plans(objective.corpus.train, 0)[1][:40]
    batch = objective.batch(plan, 0)
    s = segments.lay_out(objective.talk, plan)
    assert "nsp_labels" not in batch
    assert np.array_equal(batch["dialogue_labels"], s.labels)
    assert np.array_equal(batch["asked"][batch["dialogue_at"]], s.cuts[:-1])
    at = batch["asked"][batch["mlm_at"]]
    assert np.array_equal(batch["mlm_labels"], s.ids[at]) and (s.places[at] >= 0).all()
    ids = batch["ids"].copy()
    ids[at] = s.ids[at]
    assert np.array_equal(ids, s.ids)
    # whole words: a ## piece is hidden just when what it continues is
    tail = np.flatnonzero(~objective.begins[s.ids] & (s.places >= 0))
    hidden = np.isin(np.arange(len(s.ids)), at)
    assert len(tail) and np.array_equal(hidden[tail], hidden[tail - 1])


def test_without_dialogues_there_are_pairs_alone(language):
    assert [plan.kind for plan in an_objective(language).plans(np.arange(3), 0)] == [""]
    one = tuple(x[:n] for x, n in zip(knowing.talk(language[1]), (40, 6, 2)))
    with pytest.raises(Error, match="dialogues: there is one alone.*--dialogues FILE"):
        an_objective(language, talk=one)                    # no turn would be strange in it


# ---- stages

def test_three_stages_under_one_schedule():
    c = replace(ernie.Config(), steps=1000, warmup=10, words_share=2.0)
    stages = list(c.stages())
    assert [(s.steps, s.config.level, s.before, s.whole) for s in stages] == [
        (500, 0, 0, 1000), (250, 1, 500, 1000), (250, 2, 750, 1000)]
    assert [s.name for s in stages] == ["word", "phrase", "entity"]
    last = stages[-1]
    assert last.rate(249) == pytest.approx(1e-4 / 1000)


def test_a_level_ends_the_stages_and_a_share_of_0_leaves_one_out():
    c = replace(ernie.Config(), steps=90, level=1)
    assert [s.steps for s in c.stages()] == [45, 45]
    c = replace(ernie.Config(), steps=90, phrases_share=0.0)
    assert [s.steps for s in c.stages()] == [45, 45]
    assert sum(s.steps for s in ernie.Config(steps=1001).stages()) == 1001
    with pytest.raises(Error, match="words_share.*--words-share 1"):
        ernie.Config(words_share=0.0, level=0)


def test_the_recipe_is_the_published_one():
    c = ernie.SIZES["base"]
    assert (c.tokens * c.accumulate, c.lr, c.warmup, c.schedule) == (8192, 1e-4, 5000, "linear")
    assert (c.steps, c.seq, c.decay, c.clip, c.masked) == (1_000_000, 512, 0.01, 1.0, 0.15)


# ---- what cannot be

@pytest.mark.parametrize("level, words", [(1, "phrases.*--phrases FILE.*--level 0"),
                                          (2, "entities.*--entities FILE.*--level 1")])
def test_a_text_without_units_of_its_stage_is_told(level, words):
    plain = np.ones(1000, bool)
    with pytest.raises(Error, match=words):
        by_units(plain, plain, level)
    by_units(plain, plain, level=0)


def test_it_asks_for_what_its_level_hides_and_for_dialogues_where_there_are_any():
    needs, c = ernie.Objective.needs, ernie.Config()
    assert needs(c, set()) == {"phrases", "entities"}
    assert needs(replace(c, level=1), {"phrases"}) == {"phrases"}
    assert needs(replace(c, level=0), set()) == set()
    for asked in needs(c, {"dialogues"}), needs(replace(c, talk=True), set()):
        assert asked == {"phrases", "entities", "dialogues"}


def test_what_is_said_in_a_held_out_document_is_held_out(language):
    talk = knowing.talk(language[1])
    owners = np.arange(len(talk[2]) - 1) % 7
    objective = an_objective(language, talk=(*talk, owners))
    found = [plan for plan in objective.plans(np.array([2, 5]), 0) if plan.kind == "dialogue"]
    lo = found[0].pieces[:, 0]
    turn = np.searchsorted(talk[1], lo[lo >= 0], side="right") - 1
    said = np.searchsorted(talk[2], turn, side="right") - 1
    real = np.bincount(owners[said], minlength=7)
    assert set(np.flatnonzero(real)) == {2, 5}
