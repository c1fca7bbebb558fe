"""What models/spanbert.py learns from: spans of words that are hidden alike, and asked a second time
of the two tokens beside them."""
from collections import Counter
from types import SimpleNamespace

import masks
import numpy as np
import pytest
from objectives import chi_square

from tinybert_family.engine import autograd, fused
from tinybert_family.models import spanbert
from tinybert_family.models.spanbert import SIZES, Config, Objective
from tinybert_family.text import segments
from tinybert_family.text.wordpiece import WordPiece

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] the old mill ##er by lake".split()
CLS, SEP, MASK, THE, OLD, MILL, ER, BY, LAKE = range(2, 11)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("spanbert"), Config.vocabulary, size=200)


@pytest.fixture
def made(language):
    return masks.objective(spanbert, language)


def by_hand(ids, spans):
    """One sequence of these tokens, of which the spans (places in the text) are hidden."""
    corpus = SimpleNamespace(ids=np.array(ids, np.uint16), sentences=np.array([0, len(ids)]),
                             documents=np.array([0, 1]), train=np.array([0]))
    c = Config(vocab=11, layers=1, heads=1, width=8, hidden=8, positions=64, seq=64, span_places=3)
    objective = Objective(c, corpus, WordPiece(PIECES))
    places = [np.arange(lo, hi) + 1 for lo, hi in spans]        # [CLS] stands before them
    number = np.repeat(np.arange(len(spans)), [len(p) for p in places])
    objective.spans = lambda s, copy: (np.concatenate(places), number)
    table = np.array([[0, len(ids), 0, 0, 0, 0, 0]])
    return objective, segments.framed(table, objective.tokenizer)


# ---- the two tokens beside a span

def test_a_worked_example():
    """the [old miller] by [lake] by the [old mill]: the last span has no word on its right."""
    ids = [THE, OLD, MILL, ER, BY, LAKE, BY, THE, OLD, MILL]
    objective, plan = by_hand(ids, [(1, 4), (5, 6), (8, 10)])
    b = objective.batch(plan, 0)
    at = b["asked"]
    assert at[b["mlm_at"]].tolist() == [2, 3, 4, 6, 9, 10]
    assert b["mlm_labels"].tolist() == [OLD, MILL, ER, LAKE, OLD, MILL]
    assert b["sbo_labels"].tolist() == [OLD, MILL, ER, LAKE]
    assert at[b["left_at"]].tolist() == [1, 1, 1, 5]            # [CLS] is 0: borders count it too
    assert at[b["right_at"]].tolist() == [5, 5, 5, 7]
    assert b["left_labels"].tolist() == [0, 1, 2, 0]            # the place in the span
    assert objective.counts(b).tolist() == [6, 4]


def test_a_long_span_is_asked_of_its_borders_in_part():
    """Three places in this model: of the fourth word on nobody asks."""
    objective, plan = by_hand([THE, OLD, MILL, ER, BY, LAKE], [(1, 5)])
    b = objective.batch(plan, 0)
    assert b["sbo_labels"].tolist() == [OLD, MILL, ER] and len(b["mlm_labels"]) == 4


@pytest.mark.parametrize("span", [(0, 2), (4, 6)])
def test_a_span_at_the_end_of_a_text_has_no_borders(span):
    """Although [CLS] or [SEP] stands there."""
    objective, plan = by_hand([THE, OLD, MILL, ER, BY, LAKE], [span])
    b = objective.batch(plan, 0)
    assert len(b["sbo_labels"]) == 0 and len(b["mlm_labels"]) == 2
    model = spanbert.Model(objective.config, masks.Init(0, 0.3, np.float64))
    losses = objective.loss(model, b, objective.counts(b))
    assert losses["sbo_loss"].item() == 0 and losses["mlm_loss"].item() > 0


def test_borders_are_the_nearest_tokens_that_are_not_hidden(made):
    s, b = masks.batch(made, most=200)
    at, hidden = b["asked"], b["asked"][b["mlm_at"]]
    left, right, place = at[b["left_at"]], at[b["right_at"]], b["left_labels"]
    asked = left + 1 + place
    assert np.array_equal(s.ids[asked], b["sbo_labels"]) and np.isin(asked, hidden).all()
    assert (s.places[left] >= 0).all() and (s.places[right] >= 0).all()
    assert not np.isin(left, hidden).any() and not np.isin(right, hidden).any()
    assert np.array_equal(s.sequence[left], s.sequence[right])
    for lo, hi in set(zip(left.tolist(), right.tolist())):
        assert np.isin(np.arange(lo + 1, hi), hidden).all()
    assert len(asked) > 0.7 * len(hidden) and place.max() == made.config.span_places - 1


def test_what_stands_inside_a_span_is_no_help_to_its_borders(made):
    """The gradient of the second loss is zero at all states but those of the borders."""
    s, b = masks.batch(made)
    model = masks.a_model(spanbert, made)
    x = autograd.parameter(np.random.default_rng(0).standard_normal((len(b["asked"]), 64)))
    model.encode = lambda inputs, rows: x
    _, (_, head, states, labels) = made.answers(model, b)
    head.loss(states, labels, np.ones(len(labels))).backward()
    moved = np.flatnonzero(abs(x.grad).max(1))
    assert np.array_equal(moved, np.union1d(b["left_at"], b["right_at"]))
    inside = np.setdiff1d(b["mlm_at"], moved)
    assert np.array_equal(inside, b["mlm_at"]) and len(inside) > 100


def test_both_losses_are_means_and_weigh_the_same(made):
    s, b = masks.batch(made)
    model = masks.a_model(spanbert, made)
    n = made.counts(b)
    losses = made.loss(model, b, n)
    x = model.encode(made.inputs(b), b["asked"])
    y = model.sbo(x, b["left_at"], b["right_at"], b["left_labels"])
    mean = fused.cross_entropy(y, labels=b["sbo_labels"], weights=np.full(n[1], 1 / n[1]))
    assert losses["sbo_loss"].item() == pytest.approx(mean.item(), rel=1e-12)
    assert made.total(losses).item() == pytest.approx(sum(x.item() for x in losses.values()))
    scores = made.scores(model, b)
    assert scores["sbo_loss"][0] / scores["sbo_loss"][1] == pytest.approx(mean.item(), rel=1e-10)


# ---- spans

def test_lengths_are_geometric_cut_off_at_ten_and_made_whole_again(language):
    """Of the first span of each sequence, where there is room: 0.2 * 0.8^(n-1) / (1 - 0.8^10)."""
    made = masks.objective(spanbert, language, masked=0.6, positions=128)
    made.config = masks.replace(made.config, seq=128)
    counts, unclear = np.zeros(11), 0
    for copy in range(8):
        s = masks.laid_out(made, copy)
        where, size, _, _ = made.draws(s, copy)
        unit, (hidden, _) = made.words(s), made.spans(s, copy)
        for i in np.flatnonzero(np.diff(s.cuts) > 90):
            mine = np.flatnonzero((s.sequence == i) & (unit >= 0))
            anchor = mine[np.argmin(where[mine])]
            last = unit[mine].max()
            if last - unit[anchor] < 10:
                continue
            share = (1 - 0.8 ** np.arange(1, 11)) / (1 - 0.8 ** 10)
            n = 1 + np.searchsorted(share, size[anchor] / 2**32, "right")
            words = np.isin(unit[mine], unit[anchor] + np.arange(n))
            assert np.isin(mine[words], hidden).all()
            counts[n] += 1
    law = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8 ** 10)
    assert counts.sum() > 400 and abs(law.sum() - 1) < 1e-12
    assert chi_square(counts[1:], law * counts.sum()) < 3.1
    assert (law @ np.arange(1, 11)) == pytest.approx(3.797, abs=0.001)


def test_the_budget_is_met_exactly(made):
    """15 % of the text, rounded up; [CLS] and [SEP] are no text. The last may end in a word."""
    s = masks.laid_out(made)
    hidden, span = made.spans(s, 0)
    count = np.bincount(s.sequence[hidden], minlength=len(s.keys))
    assert np.array_equal(count, np.ceil(0.15 * (np.diff(s.cuts) - 2)))
    assert (s.places[hidden] >= 0).all()
    unit = made.words(s)
    whole = np.isin(unit, unit[hidden])
    assert 0 < whole.sum() - len(hidden) < len(s.keys) * np.bincount(unit[unit >= 0]).max()


def test_whole_words_alone_are_a_switch(language):
    made = masks.objective(spanbert, language, whole=True)
    s = masks.laid_out(made)
    hidden, _ = made.spans(s, 0)
    unit = made.words(s)
    assert np.array_equal(np.flatnonzero(np.isin(unit, unit[hidden])), hidden)
    count = np.bincount(s.sequence[hidden], minlength=len(s.keys))
    assert (count <= np.ceil(0.15 * (np.diff(s.cuts) - 2))).all()


def test_a_span_is_all_mask_or_all_random_or_all_as_it_was(made):
    fates, tokens, strangers = Counter(), Counter(), Counter()
    for copy in range(8):
        s = masks.laid_out(made, copy)
        hidden, span = made.spans(s, copy)
        noisy = made.replaced(s, hidden, span, copy)
        assert masks.restored(s, noisy, hidden)
        assert np.array_equal(np.diff(span) == 0, np.diff(hidden) == 1)         # touching is one
        for n in np.unique(span):
            seen, truth = noisy[hidden[span == n]], s.ids[hidden[span == n]]
            masked, same = seen == made.tokenizer.mask, seen == truth
            assert masked.all() or not masked.any()
            fate = "mask" if masked.all() else "kept" if same.all() else "random"
            fates[fate] += 1
            if fate == "random":
                tokens += Counter(all=len(seen), same=int(same.sum()))
                strangers.update(seen.tolist())
    n = fates.total()
    assert n > 3000
    for fate, share in ("mask", 0.8), ("kept", 0.1), ("random", 0.1):
        assert abs(fates[fate] / n - share) < 4 * np.sqrt(share * (1 - share) / n) + 0.003
    assert tokens["same"] < 0.1 * tokens["all"]
    # random words are as frequent as in the corpus, so special ones and rare ones hardly come
    frequency = np.bincount(made.corpus.ids, minlength=made.config.vocab)
    frequency = frequency / frequency.sum()
    common = np.argsort(-frequency)[:20]
    found = sum(strangers[t] for t in common.tolist()) / strangers.total()
    assert masks.far_from(found, frequency[common].sum(), strangers.total()) < 4
    assert min(strangers) >= 5


# ---- sequences

def test_a_sequence_is_one_passage_of_one_document(made):
    s = masks.laid_out(made)
    assert not s.types.any() and not s.labels.any() and "nsp" not in made.TASKS
    borders, ends = made.corpus.sentences[made.corpus.documents], made.corpus.sentences
    for lo, hi in zip(s.cuts, s.cuts[1:]):
        text = s.places[lo + 1:hi - 1]
        assert s.ids[lo] == CLS and s.ids[hi - 1] == SEP and (np.diff(text) == 1).all()
        assert len(set(np.searchsorted(borders, text, "right").tolist())) == 1
        assert text[0] in ends and text[-1] + 1 in ends or hi - lo == made.config.seq


def test_masks_are_drawn_anew_in_every_pass_and_only_then(made):
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:30])
    assert made.config.copies == 0


def test_the_recipe_is_that_of_the_authors_command():
    c = Config()
    assert c.tokens * c.accumulate // c.seq == 256 and len(c.stages()) == 1
    assert (c.steps, c.warmup, c.lr) == (2_400_000, 10_000, 1e-4)
    assert (c.adam_eps, c.decay, c.span_places) == (1e-8, 0.01, 15)
    assert SIZES["large"].steps == c.steps
    cased = Config.vocabulary(["Anna saw Anna and anna"] * 9, 40)
    assert "A" in cased.vocab and "a" in cased.vocab


def test_random_words_are_drawn_from_the_text_that_is_trained_on():
    corpus = SimpleNamespace(ids=np.arange(12), sentences=np.array([0, 2, 5, 9, 12]),
                             documents=np.array([0, 2, 3, 4]), train=np.array([0, 2]))
    objective = Objective.__new__(Objective)
    objective.corpus = corpus
    draws = np.random.default_rng(0).integers(0, 2 ** 32, 8000).astype(np.uint32)
    found = np.bincount(objective.anywhere(draws), minlength=12)
    assert np.all(found[5:9] == 0)                              # document 1 is held out
    assert chi_square(found[[0, 1, 2, 3, 4, 9, 10, 11]], np.full(8, 1000)) < 3.1
