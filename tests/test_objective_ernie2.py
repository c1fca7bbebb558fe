"""ERNIE 2.0's data: the labels of all seven tasks told again from where the tokens come from, one
task for each batch, and how many steps each has in each stage."""
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import knowing
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybert_family.engine.nn import Init
from tinybert_family.error import Error
from tinybert_family.models import ernie2
from tinybert_family.text import clues, corrupt, passages, segments, words
from tinybert_family.text.corpus import Corpus, Document
from tinybert_family.text.knowledge import Knowledge, flags
from tinybert_family.text.wordpiece import WordPiece
from tinybert_family.training import Trainer, micro_batches

MARKS = knowing.MARKS
ALL = " ".join(ernie2.TASKS)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return knowing.the_toy(tmp_path_factory.mktemp("toy") / "corpus")


def an_objective(language, seed=0, **changes):
    corpus, tokenizer, known = language
    changes = dict(seq=64, tasks=ALL) | changes
    c = replace(ernie2.SIZES["smoke"], vocab=tokenizer.size, **changes)
    return ernie2.Objective(c, corpus, tokenizer, seed, known)


def random_corpus(count=60, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return knowing.a_corpus([rng.integers(1, longest, rng.integers(1, 30)).tolist()
                             for _ in range(count)], seed=seed)


def texts_of(plan):
    """For each sequence [(lo, hi), ...] of what is no special token."""
    pieces = [plan.pieces[lo:hi] for lo, hi in zip(plan.cuts, plan.cuts[1:])]
    return [[(int(a), int(b)) for a, b, _ in rows if a >= 0] for rows in pieces]


def document_of(corpus, place):
    ends = corpus.sentences[corpus.documents]
    return int(np.searchsorted(ends, place, "right")) - 1


# ---- order

@pytest.mark.parametrize("most, count", [(1, 1), (2, 3), (3, 9), (4, 33)])
def test_every_class_is_an_order_and_leads_back(most, count):
    known = passages.orders(most)
    assert len(known) == len(set(known)) == count
    for number, order in enumerate(known):
        text = [f"piece {i}" for i in range(len(order))]
        shown = [text[i] for i in order]
        back = [shown[order.index(i)] for i in range(len(order))]
        assert back == text and known.index(order) == number
    assert passages.orders(3)[:3] == [(0,), (0, 1), (1, 0)]
    assert passages.orders(3)[3:] == sorted(passages.orders(3)[3:])


@pytest.mark.parametrize("pieces, length", [(3, 20), (3, 60), (4, 128), (1, 30)])
def test_the_label_puts_the_pieces_back(pieces, length):
    corpus, known = random_corpus(), passages.orders(pieces)
    plan = passages.reordered(corpus, np.arange(60), length, pieces, (0, 0), MARKS, "order")
    begins = set(corpus.sentences.tolist())
    for texts, label, (document, _) in zip(texts_of(plan), plan.labels, plan.keys):
        order = known[label]
        assert len(texts) == len(order)
        back = [texts[order.index(i)] for i in range(len(order))]
        assert back == sorted(back) and {lo for lo, _ in back} <= begins
        assert {document_of(corpus, lo) for lo, _ in back} == {document}
        if sum(hi - lo for lo, hi in back) < length - 1 - len(order):       # nothing was cut
            assert all(a[1] == b[0] for a, b in zip(back, back[1:]))
    assert plan.lengths().max() <= length
    assert {len(known[label]) for label in plan.labels} == set(range(1, pieces + 1))


def test_one_two_and_three_pieces_are_equally_frequent_and_so_are_their_orders():
    corpus = knowing.a_corpus([[6] * 3000])
    plan = passages.reordered(corpus, [0], 64, 3, (1, 0), MARKS, "order")
    plans = [passages.reordered(corpus, [0], 64, 3, (i, 0), MARKS, "order") for i in range(12)]
    labels = np.concatenate([p.labels for p in plans])
    share = np.bincount(labels, minlength=9) / len(labels)
    expected = [1 / 3, *[1 / 6] * 2, *[1 / 18] * 6]
    assert abs(share - expected).max() < 4 * np.sqrt(0.25 / len(labels))
    types = plan.pieces[:, 2][plan.pieces[:, 0] >= 0]
    assert set(types) == {0, 1, 2}
    assert abs(np.diff([len(t) for t in texts_of(plan)])).max() > 0


def test_a_sequence_of_pieces_reads_cls_a_sep_b_sep_c_sep():
    corpus = knowing.a_corpus([[2, 3, 4]])
    for seed in range(200):
        plan = passages.reordered(corpus, [0], 13, 3, (seed,), MARKS, "order")
        if plan.labels.tolist() == [6]:                     # (1, 2, 0)
            break
    s = segments.lay_out(corpus, plan)
    a, b, c = corpus.ids[:2], corpus.ids[2:5], corpus.ids[5:9]
    assert passages.orders(3)[6] == (1, 2, 0)
    assert s.ids.tolist() == [1, *b, 2, *c, 2, *a, 2]
    assert s.types.tolist() == [0] * 5 + [1] * 5 + [2] * 3


# ---- distance

def test_the_distance_can_be_told_from_where_the_passages_stood():
    corpus = random_corpus(80)
    plan = passages.distances(corpus, np.arange(80), 40, (3, 0), MARKS, "distance")
    for texts, label, (document, _) in zip(texts_of(plan), plan.labels, plan.keys):
        (a, a_end), (b, b_end) = texts
        here = document_of(corpus, a), document_of(corpus, b)
        assert here[0] == document
        if label == 2:
            assert here[1] != document
        else:
            assert here[1] == document
            sentence = np.searchsorted(corpus.sentences, [a, b, a_end, b_end], "right") - 1
            assert (sentence[1] == sentence[2]) == (label == 0) or a_end - a == 18
            assert b >= a_end if label == 0 else b != a_end
    assert plan.lengths().max() <= 40
    share = np.bincount(plan.labels, minlength=3) / len(plan)
    assert abs(share - 1 / 3).max() < 0.06


def test_of_one_document_no_passage_is_foreign():
    plan = passages.distances(knowing.a_corpus([[5] * 100]), [0], 40, (0,), MARKS, "distance")
    assert set(plan.labels) == {0, 1}
    plan = passages.distances(knowing.a_corpus([[5]]), [0], 40, (0,), MARKS, "distance")
    assert len(plan) == 0


# ---- discourse

def test_no_connective_is_the_beginning_of_another():
    words = [f"{c} " for c in clues.CONNECTIVES]
    assert len(set(words)) == len(words) <= 64
    assert not any(a != b and b.startswith(a) for a in words for b in words)


LINES = [["The file is open.", "If it is closed, nothing is read.", "In other words, do it now.",
          "Iffy lines are no condition.", "But nobody does.", "The end."],
         ["If a document begins so, what it follows is not there.", "However, this one counts.",
          "In this.", "In other ways it does not.", "If", "The end."]]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    texts = ["in other words however but , ."] * 9 + ["if if if"] * 99
    tokenizer = WordPiece.train([*texts, *(s for d in LINES for s in d)], 120)
    documents = [Document(str(i), lines) for i, lines in enumerate(LINES)]
    corpus = Corpus.build(documents, tokenizer, tmp_path_factory.mktemp("lines") / "corpus")
    corpus.train = np.arange(len(corpus.documents) - 1)
    return corpus, tokenizer


def test_connectives_by_hand(lines):
    corpus, tokenizer = lines
    known = clues.Connectives(tokenizer, words.begins_word(tokenizer), 64)
    number, rest = known.found(corpus, np.arange(len(corpus.sentences) - 1))
    assert tokenizer.pieces("iffy")[0] == "if" != "iffy" and len(tokenizer.pieces("iffy")) > 1
    found = [clues.CONNECTIVES[n] if n >= 0 else None for n in number]
    # Not "iffy", which only begins so; "in other words", not "in"; not an "if" that stands alone.
    assert found == [None, "if", "in other words", None, "but", None,
                     "if", "however", None, None, None, None]
    texts = [tokenizer.decode(corpus.ids[lo:hi]) for lo, hi in zip(rest, corpus.sentences[1:])]
    assert texts[1] == "it is closed, nothing is read."
    assert texts[2] == "do it now." and texts[7] == "this one counts."


def test_the_connective_is_the_label_and_is_gone(lines):
    corpus, tokenizer = lines
    known = clues.Connectives(tokenizer, words.begins_word(tokenizer), 64)
    plan = clues.discourse(corpus, corpus.train, known, 64, (0,), tokenizer, "discourse")
    s = segments.lay_out(corpus, plan)
    found = {tokenizer.decode(s.ids[lo:hi]): clues.CONNECTIVES[label]
             for lo, hi, label in zip(s.cuts, s.cuts[1:], s.labels)}
    a, b = "the file is open.", "if it is closed, nothing is read."
    # Not the first of the second document: what it follows is another text.
    assert found == {
        f"[CLS] {a} [SEP] it is closed, nothing is read. [SEP]": "if",
        f"[CLS] {b} [SEP] do it now. [SEP]": "in other words",
        "[CLS] iffy lines are no condition. [SEP] nobody does. [SEP]": "but",
        "[CLS] if a document begins so, what it follows is not there. [SEP] this one counts. "
        "[SEP]": "however"}


def test_a_frequent_connective_is_no_answer_to_everything():
    """1 of one kind, 3 of another, 80 of a third: 28 on average, so no more of any."""
    corpus = knowing.a_corpus([[5] * 100])
    heads = np.array([11] + [12] * 3 + [13] * 80)
    corpus.ids[corpus.sentences[1:85]] = heads
    corpus.ids[np.isin(corpus.ids, [11, 12, 13])] = 20
    corpus.ids[corpus.sentences[1:85]] = heads
    known = SimpleNamespace(found=lambda corpus, sentences: (
        np.where(corpus.ids[corpus.sentences[sentences]] < 14,
                 corpus.ids[corpus.sentences[sentences]].astype(int) - 11, -1),
        corpus.sentences[sentences] + 1))
    drawn = [clues.discourse(corpus, [0], known, 64, (i,), MARKS, "discourse") for i in (0, 1)]
    assert np.bincount(drawn[0].labels).tolist() == [1, 3, 28]
    assert not np.array_equal(drawn[0].keys, drawn[1].keys)     # others in another copy


# ---- relevance

def test_a_query_is_the_words_that_tell_a_passage_from_others():
    """tf * idf by hand: of 3 passages "cat" is in one, twice: 2 ln 3; "dog" in two: ln 1.5."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "##s", "sun", "."]
    ids = np.array([5, 6, 10, 6, 7, 10,     5, 7, 8, 10,    5, 7, 9, 8, 10])
    corpus = SimpleNamespace(ids=ids)
    begins = np.array([not piece.startswith("##") for piece in pieces])
    letters = np.array([piece[-1].isalpha() for piece in pieces])
    lo, hi = np.array([0, 6, 10]), np.array([6, 10, 15])
    begin, end = clues.queries(corpus, lo, hi, begins, letters)
    found = [[" ".join(pieces[i] for i in ids[a:b]) for a, b in zip(*both) if b > a]
             for both in zip(begin, end)]
    # "the" is everywhere and says nothing, but there are not five better words
    assert found == [["cat", "dog", "the"], ["dog ##s", "the"], ["sun ##s", "dog", "the"]]


def test_the_relevance_can_be_told_from_where_the_query_stood(language):
    corpus, tokenizer, _ = language
    sections = clues.Sections(corpus, corpus.train, words.begins_word(tokenizer),
                              clues.letters(tokenizer))
    starts, labels = set(corpus.sentences.tolist()), []
    plan = clues.relevance(sections, 64, (0, 1), tokenizer, "relevance")
    for texts, label, (document, number) in zip(texts_of(plan), plan.labels, plan.keys):
        *query, (title, title_end) = texts
        assert title in starts and title_end in starts and 1 <= len(query) <= 5
        here = np.flatnonzero((sections.keys == [document, number]).all(1))[0]
        assert sections.title[0][here] == title
        own = set(zip(*sections.query[:, here].tolist()))
        documents = {document_of(corpus, lo) for lo, _ in query}
        if label == 0:
            assert set(query) <= own
        elif label == 1:
            assert documents == {document} and not set(query) & own
        else:
            assert document not in documents and len(documents) == 1
        labels.append(label)
    assert abs(np.bincount(labels) / len(labels) - 1 / 3).max() < 0.1
    s = segments.lay_out(corpus, plan[:1])
    assert s.ids[0] == tokenizer.cls and (s.ids == tokenizer.sep).sum() == 2
    assert s.types.tolist() == sorted(s.types)


# ---- token-level tasks

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10 ** 6), st.integers(3, 40))
def test_a_word_recurs_if_each_of_its_pieces_stands_in_other_parts(seed, vocab):
    rng = np.random.default_rng(seed)
    sizes = [rng.integers(1, 12, rng.integers(1, 9)).tolist() for _ in range(5)]
    corpus = knowing.a_corpus(sizes, vocab=10 + vocab, seed=seed)
    plan = passages.blocks(corpus, np.arange(5), 20, (seed,), MARKS, "recurs")
    s = segments.lay_out(corpus, plan)
    unit = corrupt.units(rng.random(len(s.ids)) < 0.6, s.places < 0, s.sequence)
    found = clues.recurring(corpus, s, unit, 10 + vocab)
    ends = corpus.sentences[corpus.documents]
    for t in range(len(s.ids)):
        if s.places[t] < 0:
            assert not found[t]
            continue
        own = s.places[(s.sequence == s.sequence[t]) & (s.places >= 0)]
        document = document_of(corpus, s.places[t])
        others = np.setdiff1d(np.arange(ends[document], ends[document + 1]), own)
        pieces = s.ids[unit == unit[t]]
        assert found[t] == np.isin(pieces, corpus.ids[others]).all()


def test_blocks_are_a_document_without_rest():
    corpus = random_corpus(longest=9)
    plan = passages.blocks(corpus, np.arange(60), 30, (0,), MARKS, "mlm")
    found = [texts for texts in texts_of(plan)]
    assert all(len(texts) == 1 for texts in found)
    places = np.concatenate([np.arange(*texts[0]) for texts in found])
    assert np.array_equal(places, np.arange(len(corpus.ids)))
    assert plan.lengths().max() <= 30 and plan.lengths().mean() > 20


def test_capitals_and_recurrence_are_asked_of_every_token_but_the_special_ones(language):
    objective = an_objective(language)
    for task in "capital", "recurs":
        plan = objective.plan(task, objective.corpus.train, (0, 0))[:30]
        s, batch = segments.lay_out(objective.corpus, plan), objective.batch(plan, 0)
        at = batch["asked"][batch[f"{task}_at"]]
        assert np.array_equal(at, np.flatnonzero(s.places >= 0))
        if task == "capital":
            assert np.array_equal(batch["capital_labels"], objective.knowledge.capital(s.places[at]))
            sentence = np.isin(s.places[at], objective.corpus.sentences)
            assert batch["capital_labels"][sentence].all()  # every sentence begins with one
        assert 0.05 < batch[f"{task}_labels"].mean() < 0.8


# ---- batches

def test_a_batch_is_of_one_task_and_says_so(language):
    objective = an_objective(language)
    plans = objective.plans(objective.corpus.train, 0)
    assert [plan.kind for plan in plans] == list(ernie2.TASKS)
    for number, plan in enumerate(plans):
        batch = objective.batch(plan[:20], 0)
        s = segments.lay_out(objective.corpus, plan[:20])
        asked = {name.removesuffix("_labels") for name in batch if name.endswith("_labels")}
        assert asked == {plan.kind}
        assert set(batch["task_type_ids"].tolist()) == {number}
        assert len(batch["task_type_ids"]) == len(batch["ids"])
        inputs = objective.inputs(batch)
        assert inputs.more["task_type_ids"] is batch["task_type_ids"]
        # what is asked about whole texts, capitals and recurrence leaves the text as it is
        if plan.kind != "mlm":
            assert np.array_equal(batch["ids"], s.ids)
            assert objective.tokenizer.mask not in batch["ids"]
        else:
            assert (batch["ids"] == objective.tokenizer.mask).mean() > 0.05


def test_plans_are_functions_of_seed_and_copy(language):
    one, again, other = (an_objective(language, seed).plans(np.arange(60), copy)
                         for seed, copy in ((0, 0), (0, 0), (0, 1)))
    for a, b, c in zip(one, again, other):
        assert np.array_equal(a.pieces, b.pieces) and np.array_equal(a.labels, b.labels)
        assert not np.array_equal(a.pieces, c.pieces)
    held = language[0].held
    ends = language[0].sentences[language[0].documents]
    for plan in an_objective(language).plans(held, 0):      # held-out text stays among itself
        places = plan.pieces[plan.pieces[:, 0] >= 0, 0]
        assert np.isin(np.searchsorted(ends, places, "right") - 1, held).all()


def test_tasks_have_tokens_as_their_stage_says_and_held_out_text_asks_all(language):
    objective = an_objective(language, tasks="mlm order discourse", allocation="60 30 0")
    plans = objective.plans(objective.corpus.train, 2)
    assert [plan.kind for plan in plans] == ["mlm", "order"]
    sizes = [plan.lengths().sum() for plan in plans]
    assert abs(sizes[1] / sizes[0] - 0.5) < 0.02
    held = objective.plans(objective.corpus.held, 0)
    assert [plan.kind for plan in held] == ["mlm", "order", "discourse"]
    stream = micro_batches(objective, objective.corpus.train, 0, [0, 0, 0])
    kinds = [b["task_type_ids"][0] for b, _ in islice(stream, 40)]
    assert set(kinds) == {ernie2.TASKS["mlm"], ernie2.TASKS["order"]}


def test_a_step_is_the_mean_over_its_batches(language):
    """Three batches of words and one of orders: words weigh three quarters."""
    objective = an_objective(language)
    model = ernie2.Learner(objective.config, Init(0, 0.1, np.float64))
    mlm = objective.plan("mlm", objective.corpus.train, (0, 0))
    order = objective.plan("order", objective.corpus.train, (0, 0))
    batches = [objective.batch(plan, 0) for plan in (mlm[:9], mlm[9:14], mlm[14:30], order[:9])]
    counts = sum(objective.counts(b) for b in batches)
    total = sum(objective.total(objective.loss(model, b, counts)).item() for b in batches)
    alone = [objective.scores(model, b) for b in batches]
    means = [float(sums["mlm_loss"][0] / sums["mlm_loss"][1]) for sums in alone[:3]]
    means.append(float(alone[3]["order_loss"][0] / alone[3]["order_loss"][1]))
    assert total == pytest.approx(np.mean(means), rel=1e-10)


def test_chance_knows_how_many_pieces_there_are():
    """Of 1 piece 4, of 2 pieces 3 + 1: always right, and three times of four."""
    labels = np.array([0] * 4 + [1] * 3 + [2])
    found = ernie2.chance_of_orders(labels, 3)
    assert found["order_accuracy"] == 7 / 8
    assert found["order_loss"] == pytest.approx(-(3 * np.log(3 / 4) + np.log(1 / 4)) / 8)


# ---- stages

def test_the_papers_table():
    """Four tasks, 50 steps of each."""
    assert ernie2.continual(200, 4) == [[20, 0, 0, 0], [10, 30, 0, 0], [10, 10, 40, 0],
                                        [10, 10, 10, 50]]
    assert ernie2.sequential(200, 4) == np.diag([50] * 4).tolist()
    assert ernie2.together(200, 4) == [[50] * 4]


@given(st.integers(0, 10 ** 6), st.integers(1, 7), st.sampled_from(list(ernie2.LEARNING)))
def test_every_task_has_its_share_of_the_steps_and_none_is_lost(steps, tasks, how):
    table = np.array(ernie2.LEARNING[how](steps, tasks))
    assert table.sum() == steps and (table >= 0).all()
    assert np.ptp(table.sum(0)) <= 1                        # sum_s A[s][i] = N for each task
    if how != "together":
        assert (np.triu(table, 1) == 0).all()               # none before its time


def test_a_stage_for_each_task_with_a_warm_up_of_its_own():
    c = replace(ernie2.Config(), steps=200, warmup=5, tasks="mlm capital order recurs")
    stages = list(c.stages())
    assert [s.name for s in stages] == ["mlm", "capital", "order", "recurs"]
    assert [s.config.allocation for s in stages] == ["20 0 0 0", "10 30 0 0", "10 10 40 0",
                                                     "10 10 10 50"]
    assert [s.steps for s in stages] == [20, 40, 60, 80]
    for stage in stages:                                    # noam, from its beginning again
        assert stage.rate(0) == pytest.approx(c.lr / 5) and stage.rate(4) == c.lr
        assert stage.rate(19) == pytest.approx(c.lr * (5 / 20) ** 0.5)
    one, = replace(c, learning="together").stages()
    assert (one.steps, one.config.allocation) == (200, "50 50 50 50")


def test_the_recipe_is_the_published_one():
    base, large, chinese = (ernie2.SIZES[size] for size in ("base", "large", "chinese"))
    assert base.tokens * base.accumulate == 393_216
    assert (base.lr, base.warmup, base.schedule, base.beta2) == (5e-5, 4000, "inverse_sqrt", 0.98)
    assert base.tasks.split() == list(ernie2.ENGLISH) and large.lr == base.lr
    assert chinese.tasks.split() == list(ernie2.CHINESE) and chinese.lr == 1.28e-4


def test_what_is_trained_has_the_heads_of_its_tasks_and_goes_through_all_stages(language):
    corpus, tokenizer, known = language
    c = replace(ernie2.SIZES["smoke"], vocab=tokenizer.size, tasks="order capital", steps=6,
                tokens=512, accumulate=1, seq=32)
    trainer = Trainer(ernie2, c, corpus, tokenizer, 0, knowledge=known)
    assert trainer.learner.order and trainer.learner.capital and not trainer.learner.mlm
    names = [trainer.stage.name for _ in trainer.run()]
    assert names == ["order"] * 2 + ["capital"] * 4
    assert {"order_loss", "capital_accuracy"} <= set(trainer.scores())


def test_it_asks_for_what_its_tasks_need():
    needs, c = ernie2.Objective.needs, ernie2.Config()
    assert needs(c, set()) == {"phrases", "entities", "capitals"}
    assert needs(replace(c, tasks="order capital"), set()) == {"capitals"}
    assert needs(replace(c, tasks="order"), set()) == set()


# ---- what cannot be

def test_tasks_that_the_text_cannot_teach_are_told_with_what_to_do(language, tmp_path):
    corpus, tokenizer, known = language
    with pytest.raises(Error, match="tasks: 'mlm mlm'"):
        an_objective(language, tasks="mlm mlm")
    with pytest.raises(Error, match="tasks: ''"):
        an_objective(language, tasks="")
    with pytest.raises(Error, match="learning: 'random'.*continual"):
        an_objective(language, learning="random")
    with pytest.raises(Error, match="order: pieces is 5.*--types 5.*--tasks 'mlm'"):
        an_objective(language, tasks="mlm order", pieces=5)
    with pytest.raises(Error, match="recurs: .*shorter --seq.*--tasks 'mlm'"):
        an_objective(language, tasks="mlm recurs", seq=128 * 8, positions=2048, tokens=2048)

    none = np.zeros(len(corpus.ids), bool)
    small = Knowledge(flags(entity=none, capital=none))
    with pytest.raises(Error, match="capital: no word of the text has a capital.*--tasks 'mlm'"):
        an_objective((corpus, tokenizer, small), tasks="capital mlm")
    objective = an_objective((corpus, tokenizer, None), tasks="recurs order")    # knows nothing
    for plan in objective.plans(corpus.train, 0):
        objective.batch(plan[:20], 0)

    one = SimpleNamespace(**{**vars(corpus), "train": corpus.train[:1]})
    for task in "distance", "relevance":
        with pytest.raises(Error, match=f"{task}: the text is one document.*blank lines.*'mlm'"):
            an_objective((one, tokenizer, known), tasks=f"mlm {task}")
    short = SimpleNamespace(**{**vars(corpus), "documents": np.arange(len(corpus.sentences))})
    with pytest.raises(Error, match="order: no document has two sentences"):
        an_objective((short, tokenizer, known), tasks="mlm order")
    with pytest.raises(Error, match="discourse: no sentence that follows another"):
        an_objective((short, tokenizer, known), tasks="mlm discourse")

    cased = WordPiece(tokenizer.vocab + ["The", "Cat"], lower=False)
    with pytest.raises(Error, match="capital: this vocabulary tells capitals apart"):
        an_objective((corpus, cased, known), tasks="mlm capital")
