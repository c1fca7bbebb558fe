"""What models/roberta.py learns from: sequences full of sentences, hidden anew in every pass,
special tokens included, and positions that begin after the pad token's number."""
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import masks
import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.models import roberta
from tinybert_family.models.roberta import SIZES, Config, Objective, counted
from tinybert_family.text import segments
from tinybert_family.text.bytebpe import ByteBPE

MARKS = SimpleNamespace(cls=0, pad=1, sep=2, unk=3, mask=99)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("roberta"), Config.vocabulary, size=400)


@pytest.fixture
def made(language):
    return masks.objective(roberta, language)


def by_hand(sizes, seq, **changes):
    """Documents of sentences of so many tokens, which are numbered through from 10 on."""
    cuts = np.cumsum([0] + [n for document in sizes for n in document])
    documents = np.cumsum([0] + [len(document) for document in sizes])
    corpus = SimpleNamespace(ids=np.arange(10, 10 + cuts[-1]), sentences=cuts, documents=documents)
    c = replace(SIZES["smoke"], vocab=100, seq=seq, pad=1, **changes)
    return Objective(c, corpus, MARKS)


def rows(objective):
    documents = np.arange(len(objective.corpus.documents) - 1)
    plan = objective.plan(documents, 0)
    for i in range(len(plan)):
        yield segments.lay_out(objective.corpus, plan[[i]]).ids.tolist()


# ---- sequences

def test_full_sentences_by_hand():
    """Twelve tokens in a sequence; between documents there is one more </s>."""
    assert list(rows(by_hand([[3, 4], [2, 6]], 12, crossing=True))) == [
        [0, 10, 11, 12, 2, 13, 14, 15, 16, 2, 2],           # the sentence of two is too long
        [0, 17, 18, 2, 19, 20, 21, 22, 23, 24, 2]]
    assert list(rows(by_hand([[3], [2, 6]], 12, crossing=True)))[0] \
        == [0, 10, 11, 12, 2, 2, 13, 14, 2]


def test_sentences_of_one_document_by_hand():
    assert list(rows(by_hand([[3, 4], [2, 6]], 12, crossing=False))) == [
        [0, 10, 11, 12, 2, 13, 14, 15, 16, 2],
        [0, 17, 18, 2, 19, 20, 21, 22, 23, 24, 2]]
    assert len(list(rows(by_hand([[3], [2], [6]], 12, crossing=False)))) == 3


def test_a_sentence_that_is_too_long_comes_in_parts():
    ids = [t for row in rows(by_hand([[3, 25]], 12)) for t in row if t > 9]
    assert ids == list(range(10, 38)) and max(map(len, rows(by_hand([[3, 25]], 12)))) <= 12


@pytest.mark.parametrize("crossing", [True, False])
def test_every_token_comes_once_and_in_order_and_no_sentence_is_split(language, crossing):
    made = masks.objective(roberta, language, crossing=crossing)
    corpus, sep = made.corpus, made.tokenizer.sep
    plan = made.plan(corpus.train, 0)
    pieces = [segments.lay_out(corpus, plan[[i]]) for i in range(len(plan))]
    places = np.concatenate([s.places[s.places >= 0] for s in pieces])
    wanted = [np.arange(*corpus.sentences[corpus.documents[d:d + 2]]) for d in corpus.train]
    assert np.array_equal(places, np.concatenate(wanted))
    for s in pieces:
        assert s.ids[0] == made.tokenizer.cls and s.ids[-1] == sep and len(s.ids) <= 64
        ends = corpus.sentences[1:]
        inside = s.places[s.places >= 0]
        last = np.flatnonzero(np.isin(inside + 1, ends))
        follower = s.ids[np.flatnonzero(s.places >= 0)[last] + 1]
        assert (follower == sep).all()
        documents = np.searchsorted(corpus.sentences[corpus.documents], inside, side="right")
        assert crossing or len(set(documents.tolist())) == 1
    # A sequence ends where the next sentence does not fit, or, without crossing, with its document.
    for s, after in zip(pieces, pieces[1:]):
        lo = after.places[1] if after.places[1] >= 0 else after.places[2]
        hi = ends[np.searchsorted(ends, lo, side="right")]
        border = lo in corpus.sentences[corpus.documents]
        assert border and not crossing or len(s.ids) + hi - lo + 1 + border > 64


# ---- noise

def test_the_budget_is_rounded_up_or_down_and_is_15_percent_on_average(made):
    counts, lengths = [], []
    for copy in range(10):
        s = masks.laid_out(made, copy)
        counts.append(np.bincount(s.sequence[made.noise(s, copy)[1]], minlength=len(s.keys)))
        lengths.append(np.diff(s.cuts))
    counts, lengths = np.concatenate(counts), np.concatenate(lengths)
    exact = 0.15 * lengths
    assert ((counts == np.floor(exact)) | (counts == np.floor(exact) + 1)).all()
    part = exact % 1
    spread = np.sqrt((part * (1 - part)).sum())
    assert abs(counts.sum() - exact.sum()) < 4 * spread


def test_special_tokens_are_hidden_as_often_as_others(made):
    found, of = Counter(), Counter()
    for copy in range(15):
        s = masks.laid_out(made, copy)
        hidden = made.noise(s, copy)[1]
        for mark in "cls", "sep":
            number = getattr(made.tokenizer, mark)
            found[mark] += int((s.ids[hidden] == number).sum())
            of[mark] += int((s.ids == number).sum())
    for mark in "cls", "sep":
        assert of[mark] > 2000
        assert masks.far_from(found[mark] / of[mark], 0.15, of[mark]) < 4


def test_eighty_ten_ten_and_random_words_are_never_one_of_the_first_four(made):
    kinds, strangers = Counter(), Counter()
    for copy in range(8):
        s = masks.laid_out(made, copy)
        noisy, hidden = made.noise(s, copy)
        assert masks.restored(s, noisy, hidden)
        seen, truth = noisy[hidden], s.ids[hidden]
        kinds += Counter(mask=int((seen == made.tokenizer.mask).sum()),
                         kept=int((seen == truth).sum()), all=len(hidden))
        strangers.update(seen[(seen != truth) & (seen != made.tokenizer.mask)].tolist())
    n, size = kinds["all"], made.config.vocab - 4
    assert n > 20_000 and made.tokenizer.mask == 4          # <mask> is the fifth: it may be one
    assert min(strangers) == 5 and max(strangers) == made.config.vocab - 1
    assert masks.far_from(kinds["mask"] / n, 0.8 + 0.1 / size, n) < 4
    assert masks.far_from(kinds["kept"] / n, 0.1 + 0.1 / size, n) < 4
    mean = strangers.total() / size
    assert len(strangers) > 0.95 * size and max(strangers.values()) < 3 * mean


def test_masks_are_drawn_anew_in_every_pass_and_only_then(made):
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:30])
    assert made.config.copies == Config().copies == 0


# ---- what the network reads

def test_positions_are_those_of_a_padded_call(made):
    s, b = masks.batch(made)
    inputs, pad = made.inputs(b), made.config.pad
    assert pad == made.tokenizer.pad == 1 and inputs.positions.min() == pad + 1
    assert not inputs.types.any()
    width = int(np.diff(b["cuts"]).max())
    padded = np.full((len(b["cuts"]) - 1, width), pad)
    padded[s.sequence, s.positions] = b["ids"]
    assert np.array_equal(counted(padded, pad)[s.sequence, s.positions], inputs.positions)


def test_hidden_words_are_all_that_is_asked(made):
    s, b = masks.batch(made)
    assert list(made.TASKS) == ["mlm"] and np.array_equal(b["mlm_labels"], s.ids[b["asked"]])
    model = masks.a_model(roberta, made)
    assert set(made.loss(model, b, made.counts(b))) == {"mlm_loss"}
    assert set(made.scores(model, b)) == {"mlm_loss", "mlm_accuracy"}


def test_a_pad_token_of_another_number_is_told(language):
    corpus, tokenizer = language
    c = replace(SIZES["smoke"], vocab=tokenizer.size, pad=0)
    with pytest.raises(tbf.Error, match="pad: 0, but in this vocabulary .* number 1; use --pad 1"):
        Objective(c, corpus, tokenizer)


# ---- the recipe

def test_the_recipe_is_the_published_one():
    c = Config()
    assert c.tokens * c.accumulate // c.seq == 8192 and len(c.stages()) == 1
    assert (c.steps, c.warmup, c.lr, c.beta2, c.clip) == (500_000, 24_000, 6e-4, 0.98, 0)
    assert SIZES["large"].lr == 4e-4 and SIZES["large"].warmup == 30_000
    model = roberta.Model(SIZES["smoke"], masks.Init())
    assert all(c.decays(*item) for item in model.named().items())
    assert isinstance(Config.vocabulary(["a text of some words"] * 9, 300), ByteBPE)
