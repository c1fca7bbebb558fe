"""ERNIE (Tsinghua)'s data: which mentions come with which vectors, what they are asked, and which
passages mention enough."""
from dataclasses import replace
from types import SimpleNamespace

import knowing
import numpy as np
import pytest

from tinybert_family.engine.autograd import Tensor
from tinybert_family.engine.nn import Init
from tinybert_family.error import Error
from tinybert_family.models import bert, ernie_thu
from tinybert_family.models.ernie_thu import Among, Objective
from tinybert_family.text import segments
from tinybert_family.text.knowledge import Knowledge
from tinybert_family.training import Trainer

MARKS = knowing.MARKS


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return knowing.the_toy(tmp_path_factory.mktemp("toy") / "corpus")


def an_objective(language, seed=0, teacher=None, **changes):
    corpus, tokenizer, known = language
    c = replace(ernie_thu.SIZES["smoke"], vocab=tokenizer.size, entity_width=knowing.WIDTH,
                **dict(seq=64, mentions=3) | changes)
    return Objective(c, corpus, tokenizer, seed, known, teacher)


def by_hand(mentions, width=4, **changes):
    """An objective on one document of random tokens with these mentions."""
    mentions = np.array(mentions)
    corpus = knowing.a_corpus([[10] * (len(mentions) // 10)])
    vectors = np.random.default_rng(0).standard_normal((max(1, mentions.max() + 1), width))
    c = replace(ernie_thu.SIZES["smoke"], vocab=1000, seq=64, entity_width=width, entity_heads=1,
                **changes)
    known = Knowledge(mentions=mentions, vectors=vectors.astype(np.float32))
    return Objective(c, corpus, MARKS, 0, known)


def framed(*pieces, label=0):
    """A Plan of one sequence out of (lo, hi) pieces, each closed by a [SEP]."""
    rows = [(*segments.special(MARKS.cls), 0)]
    for lo, hi in pieces:
        rows += [(lo, hi, 0), (*segments.special(MARKS.sep), 0)]
    return segments.Plan(np.array(rows), np.array([0, len(rows)]), np.array([label]),
                         np.array([[0, 0]]))


# ---- by hand

def test_a_worked_example():
    """[CLS] 0 1 2 3 [SEP] 7 8 [SEP]: entity 5 at places 1 and 8, entity 2 at 3, entity 9 at 5, which
    is not in the sequence. Mentions are rows 2, 4, 7; candidates zero, 2, 5."""
    mentions = np.full(20, -1)
    mentions[[1, 3, 5, 8]] = 5, 2, 9, 5
    objective = by_hand(mentions)
    draws, nothing = objective.draws, np.full(9, 2 ** 31, np.uint32)
    share = nothing.copy()
    share[[2, 4, 7]] = [int(x * 2 ** 32) for x in (0.04, 0.19, 0.21)]       # other, none, kept
    objective.draws = lambda s, copy, lane=0: (
        [share, nothing, nothing, nothing] if lane else draws(s, copy))
    b = objective.batch(framed((0, 4), (7, 9)), 0)
    vectors = objective.knowledge.vectors
    assert np.array_equal(b["candidates"], vectors[[2, 5]])
    assert b["asked"][b["entity_at"]].tolist() == [2, 4, 7]
    assert b["entity_labels"].tolist() == [2, 1, 2]         # as it was before the disturbance
    assert b["entity_lost"].tolist() == [True, True, False]
    # the second stream: [CLS], the mention with the other's vector, and the one that was kept
    assert b["mention_at"].tolist() == [0, 2, 7] and b["mention_cuts"].tolist() == [0, 3]
    assert np.array_equal(b["mention_vectors"], [0 * vectors[0], vectors[2], vectors[5]])
    assert np.array_equal(b["asked"][b["mention_asked_at"]], b["mention_at"])


def test_the_gold_entity_wins_where_the_state_is_its_vector():
    """z_i = e_i: unit vectors have their highest product with themselves; the zero vector is always
    there and scores 0."""
    vectors = np.random.default_rng(1).standard_normal((50, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same = SimpleNamespace(scores=lambda x, candidates: ernie_thu.Entities.scores(
        lambda z: z, x, candidates))
    head = Among(same, vectors)
    scores = head(Tensor(vectors)).numpy()
    assert scores.shape == (50, 51) and not scores[:, 0].any()
    assert np.array_equal(scores.argmax(1), 1 + np.arange(50))
    sharp = head.loss(Tensor(40 * vectors), 1 + np.arange(50), np.full(50, 0.02)).item()
    wrong = head.loss(Tensor(40 * vectors), np.zeros(50, int), np.full(50, 0.02)).item()
    assert sharp < 1e-3 < 30 < wrong


# ---- statistics

@pytest.fixture(scope="module")
def many():
    """40,000 mentions of 300 entities in one batch: (objective, s, the batch)."""
    rng = np.random.default_rng(3)
    mentions = np.where(rng.random(200_000) < 0.2, rng.integers(0, 300, 200_000), -1)
    objective = by_hand(mentions)
    plan = objective.plan(np.array([0]), 0)
    return objective, segments.lay_out(objective.corpus, plan), objective.batch(plan, 0)


def test_five_fifteen_eighty_within_three_sigma(many):
    objective, s, b = many
    named = b["asked"][b["entity_at"]]
    found = objective.knowledge.mentions(s.places)
    assert np.array_equal(named, np.flatnonzero(found >= 0))
    n, row = len(named), np.searchsorted(b["mention_at"], named)
    there = b["mention_at"][np.minimum(row, len(b["mention_at"]) - 1)] == named
    own = np.zeros(n, bool)
    gold = b["candidates"][b["entity_labels"] - 1]
    own[there] = (b["mention_vectors"][row[there]] == gold[there]).all(1)
    for count, share in (own.sum(), 0.8), ((there & ~own).sum(), 0.05), ((~there).sum(), 0.15):
        assert abs(count - share * n) < 3 * np.sqrt(share * (1 - share) * n)
    assert np.array_equal(b["entity_lost"], ~own)
    # per mention, not per sequence: hardly a long sequence is wholly one or the other
    spread = [own[s.sequence[named] == i].mean() for i in range(200)]
    assert 0.02 < np.std(spread) < 0.2
    # another entity: any of the batch, evenly, and never a vector of none of them
    wrong = b["mention_vectors"][row[there & ~own]]
    known = {v.tobytes(): i for i, v in enumerate(b["candidates"])}
    which = np.bincount([known[v.tobytes()] for v in wrong], minlength=300)
    assert (which > 0).mean() > 0.95


def test_labels_are_the_entities_of_the_text_whatever_the_input_says(many):
    objective, s, b = many
    named = b["asked"][b["entity_at"]]
    truth = objective.knowledge.vectors[objective.knowledge.mentions(s.places[named])]
    assert np.array_equal(b["candidates"][b["entity_labels"] - 1], truth)
    assert len(np.unique(b["candidates"], axis=0)) == len(b["candidates"]) == 300
    assert b["entity_labels"].min() == 1                    # the zero vector is never right


def test_rows_of_the_second_stream_are_the_mentions_and_first_tokens(many):
    objective, s, b = many
    at = b["mention_at"]
    assert np.all(np.diff(at) > 0) and set(s.cuts[:-1]) <= set(at)
    first = np.isin(at, s.cuts[:-1])
    assert not b["mention_vectors"][first].any() and b["mention_vectors"][~first].any(1).all()
    for i in range(len(s.cuts) - 1):
        mine = at[b["mention_cuts"][i]:b["mention_cuts"][i + 1]]
        assert (s.sequence[mine] == i).all() and mine[0] == s.cuts[i]


def test_words_are_hidden_as_in_bert_and_entities_do_not_depend_on_them(many):
    objective, s, b = many
    twin = bert.Objective(objective.config, objective.corpus, MARKS, 0)
    noisy, hidden = twin.noise(s, 0)
    assert np.array_equal(b["ids"], noisy) and np.array_equal(b["mlm_labels"], s.ids[hidden])
    both = np.isin(hidden, b["asked"][b["entity_at"]])
    assert both.sum() > 1000                                # a mention's word can be hidden, too


# ---- which passages

@pytest.mark.parametrize("least", [0, 1, 3, 6])
def test_sequences_with_few_mentions_are_left_out(language, least):
    objective = an_objective(language, mentions=least)
    everything = bert.Objective.plan(objective, objective.corpus.train, 0)
    s = segments.lay_out(objective.corpus, everything)
    has = np.bincount(s.sequence, objective.knowledge.mentions(s.places) >= 0)
    wanted = {tuple(key) for key in s.keys[has >= least].tolist()}
    plan = objective.plan(objective.corpus.train, 0)
    assert {tuple(key) for key in plan.keys.tolist()} == wanted
    assert (len(wanted) < len(everything)) == (least > 0)


def test_what_is_read_ready_made_is_what_a_user_s_call_finds(language):
    """The same states, whether the batch brings the rows of the second stream or vectors beside
    all tokens."""
    objective = an_objective(language)
    model = ernie_thu.Model(objective.config, Init(0, 0.3, np.float64))
    plan = objective.plan(objective.corpus.train, 0)[:20]
    b = objective.batch(plan, 0)
    inputs = objective.inputs(b)
    ids, vectors = np.full(len(b["ids"]), -1), np.zeros((len(b["ids"]), knowing.WIDTH))
    real = b["mention_vectors"].any(1)
    ids[b["mention_at"][real]], vectors[b["mention_at"]] = 0, b["mention_vectors"]
    user = inputs._replace(more=dict(entity_ids=ids, entity_vectors=vectors))
    for rows in None, b["asked"]:
        a, c = (model.encode(x, rows).numpy() for x in (inputs, user))
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-12)
    nobody = inputs._replace(more=dict(mentions=inputs.more["mentions"]._replace(
        vectors=0 * b["mention_vectors"])))
    assert abs(model.encode(nobody, rows).numpy() - a).max() > 1e-3


def test_a_batch_is_a_function_of_seed_and_copy(language):
    objective = an_objective(language)
    plan = objective.plan(objective.corpus.train, 0)[:30]
    one, again, other = (objective.batch(plan, copy) for copy in (3, 3, 4))
    assert all(np.array_equal(one[key], again[key]) for key in one)
    assert not np.array_equal(one["mention_at"], other["mention_at"])
    assert not np.array_equal(one["ids"], other["ids"])


# ---- training

def test_vectors_are_no_parameters_and_stay(language):
    corpus, tokenizer, known = language
    c = replace(ernie_thu.SIZES["smoke"], vocab=tokenizer.size, entity_width=knowing.WIDTH, steps=2,
                tokens=512, seq=64, mentions=1)
    before = known.vectors.copy()
    trainer = Trainer(ernie_thu, c, corpus, tokenizer, 0, knowledge=known)
    assert all(t.shape != before.shape for t in trainer.arena.tensors)
    # nothing reads what the last layer says to the entities
    idle = {name for name, t in zip(trainer.arena.names, trainer.arena.tensors)
            if "entity" in name and name.startswith("layers.2.") and "up" not in name}
    for _ in trainer.run():
        for name, grad in zip(trainer.arena.names, trainer.arena.views(trainer.arena.grad)):
            assert grad.any() != (name in idle), name
    assert np.array_equal(known.vectors, before) and len(idle) == 4


def test_the_stream_of_words_may_begin_as_a_berts(language):
    objective = an_objective(language)
    plain = {name: getattr(objective.config, name) for name in bert.Config.__dataclass_fields__}
    teacher = bert.Model(bert.Config(**plain), Init(5, 0.1))
    objective = an_objective(language, teacher=teacher)
    model = ernie_thu.Model(objective.config, Init(0, 0.1))
    mine = model.named()
    before = {name: t.data.copy() for name, t in mine.items()}
    objective.begin(model)
    for name, tensor in teacher.named().items():
        assert np.array_equal(mine[name].data, tensor.data)
    small = bert.Model(replace(teacher.config, width=32), Init(5, 0.1))
    with pytest.raises(Error, match="--teacher: its embeddings.word.*32.*a BERT of the same size"):
        an_objective(language, teacher=small).begin(model)
    others = mine.keys() - teacher.named().keys()
    assert any("entit" in name for name in others)
    assert all(np.array_equal(mine[name].data, before[name]) for name in others)


def test_scores_tell_lost_mentions_apart_and_chance_is_per_batch(language):
    objective = an_objective(language)
    model = ernie_thu.Model(objective.config, Init(0, 0.1))
    plan = objective.plan(objective.corpus.train, 0)
    batches = [objective.batch(plan[i:i + 10], 0) for i in (0, 10)]
    scores = objective.scores(model, batches[0])
    assert scores["entity_lost_accuracy"][1] == batches[0]["entity_lost"].sum() > 0
    # by hand: three mentions of one entity and one of another; two of one
    for b, labels in zip(batches, ([1, 1, 1, 2], [1, 1])):
        b["entity_labels"] = np.array(labels)
        b["entity_lost"] = np.arange(len(labels)) % 2 == 1
    chance = objective.chance(batches, np.ones(objective.config.vocab))
    assert chance["entity_accuracy"] == 5 / 6
    assert chance["entity_lost_accuracy"] == 2 / 3
    assert chance["entity_loss"] == pytest.approx((3 * np.log(4 / 3) + np.log(4)) / 6)


def test_the_recipe_is_the_published_one():
    c = ernie_thu.SIZES["base"]
    assert c.tokens * c.accumulate == 512 * 256 and (c.seq, c.predictions) == (256, 40)
    assert (c.lr, c.decay, c.schedule, c.warmup / c.steps) == (5e-5, 0.01, "constant", 0.1)
    assert (c.strange, c.unlinked, c.mentions, c.copies) == (0.05, 0.15, 3, 1)
    name, teacher = Objective.teacher_of(c)
    assert name == "bert" and type(teacher) is bert.Config and teacher.schedule == "linear"
    assert (teacher.layers, teacher.width, teacher.steps) == (12, 768, c.steps)
    assert Objective.teacher_of(ernie_thu.SIZES["smoke"]) is None


# ---- what cannot be

def test_bad_input_is_told_with_what_to_do(language):
    corpus, tokenizer, known = language
    with pytest.raises(Error, match="no entities.*--graph FILE.*--entities FILE"):
        an_objective((corpus, tokenizer, Knowledge(mentions=np.full(len(corpus.ids), -1))))
    with pytest.raises(Error, match="entity_width: 32.*16 numbers.*--entity-width 16"):
        Objective(replace(ernie_thu.SIZES["smoke"], entity_width=32), corpus, tokenizer, 0, known)
    objective = an_objective(language, mentions=60)
    with pytest.raises(Error, match="mentions: not one sequence has 60.*--mentions 1"):
        objective.plan(corpus.train, 0)
    with pytest.raises(Error, match="unlinked: 0.7.*0.5"):
        an_objective(language, strange=0.5, unlinked=0.7)
