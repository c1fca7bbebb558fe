"""The loop around every objective: groups of documents, passes, positions, stages."""
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from objectives import prepared

import tinybert_family as tbf
from tinybert_family import training
from tinybert_family.engine.optim import SCHEDULES
from tinybert_family.models import bert
from tinybert_family.models.parts.stages import Stage, lengthening, shares_of


def keys(batches):
    return Counter(tuple(b["ids"].tolist()) for b in batches)


def one_pass(stream, number):
    """The micro-batches of this pass over the corpus, and the first of the next."""
    found = []
    for batch, position in stream:
        if position[0] > number:
            return found, batch
        found.append(batch)


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(training, "GROUP", 700)


def test_groups_are_all_documents_once_and_about_as_large_as_asked(small_groups):
    corpus = prepared("bert").corpus
    groups = training.groups_of(corpus, corpus.train, 3)
    again = training.groups_of(corpus, corpus.train, 3)
    assert all(np.array_equal(a, b) for a, b in zip(groups, again))
    assert sorted(np.concatenate(groups)) == sorted(corpus.train)
    cuts = corpus.sentences[corpus.documents]
    sizes = [int((cuts[g + 1] - cuts[g]).sum()) for g in groups]
    assert len(groups) > 3 and max(sizes) < 700 + np.diff(cuts).max()
    other = training.groups_of(corpus, corpus.train, 4)
    assert any(not np.array_equal(a, b) for a, b in zip(groups, other))


def test_a_stream_goes_on_from_any_position_as_it_would_have(small_groups):
    trainer = prepared("bert", copies=2)
    def stream(position=(0, 0, 0)):
        return training.micro_batches(trainer.objective, trainer.corpus.train, 0, position)
    whole = list(islice(stream(), 90))
    assert whole[-1][1][0] > 1                      # well into a third pass
    for stop in 1, 7, 20, 41, 80:
        rest = islice(stream(whole[stop - 1][1]), 5)
        for (batch, position), (wanted, where) in zip(rest, whole[stop:]):
            assert position == where and np.array_equal(batch["ids"], wanted["ids"])


def test_every_pass_holds_every_sequence_once_in_an_order_of_its_own():
    trainer = prepared("bert", copies=1)
    stream = training.micro_batches(trainer.objective, trainer.corpus.train, 0, (0, 0, 0))
    first, begin = one_pass(stream, 0)
    second, _ = one_pass(stream, 1)
    plan = trainer.objective.plan(np.sort(trainer.corpus.train), 0)
    for found in first, [begin, *second]:
        sequences = sum(len(b["cuts"]) - 1 for b in found)
        assert sequences == len(plan)
    assert sum(len(b["ids"]) for b in first) == plan.lengths().sum()
    assert keys(first) != keys([begin, *second])    # other sequences share a batch


@pytest.mark.parametrize("copies, same", [(1, True), (0, False)])
def test_masks_are_drawn_once_or_anew(copies, same):
    """copies 1: the second pass hides what the first hid; copies 0: something else."""
    trainer = prepared("bert", copies=copies, tokens=32)        # a sequence in each batch
    stream = training.micro_batches(trainer.objective, trainer.corpus.train, 0, (0, 0, 0))
    first, begin = one_pass(stream, 0)
    second, _ = one_pass(stream, 1)
    common = keys(first) & keys([begin, *second])
    assert (sum(common.values()) > 0.9 * len(first)) == same


def test_held_out_text_is_the_same_batches_every_time():
    a, b = prepared("bert"), prepared("bert")
    assert keys(a.tests) == keys(b.tests) and a.tests
    cuts = a.corpus.sentences[a.corpus.documents]
    for wrong in a.corpus.train[:3]:
        lo, hi = cuts[wrong], cuts[wrong + 1]
        text = a.corpus.ids[lo:hi].tolist()
        assert not any(str(text)[1:-1] in str(x["ids"].tolist()) for x in a.tests)


# ---- stages

def test_steps_are_shared_without_a_rest():
    assert shares_of(10, [0.9, 0.1]) == [9, 1]
    assert shares_of(7, [1, 1, 1]) == [2, 3, 2] and shares_of(1, [0.9, 0.1]) == [1, 0]
    for steps in range(40):
        assert sum(shares_of(steps, [0.3, 0.5, 0.2])) == steps


def test_the_last_tenth_is_long_and_one_schedule_spans_both():
    c = replace(bert.SIZES["base"], steps=1000, warmup=50)
    short, long = c.stages()
    assert (short.steps, long.steps) == (900, 100)
    assert (short.config.seq, long.config.seq) == (128, 512)
    assert long.config.predictions == 80 and long.config.last_share == 0
    sequences = [x.config.tokens * x.config.accumulate // x.config.seq for x in (short, long)]
    assert sequences == [256, 256]
    rates = [short.rate(t) for t in range(900)] + [long.rate(t) for t in range(100)]
    linear = SCHEDULES["linear"]
    assert rates == [c.lr * linear(t, 1000, 50) for t in range(1000)]
    assert len(lengthening(replace(c, positions=128, seq=128))) == 1


class TwoStages(bert.Config):
    def stages(self):
        first = replace(self, masked=0.3)
        return [Stage(first, 4, "first"), Stage(self, 3, "second")]


def test_a_stage_has_its_config_and_the_weights_go_on(monkeypatch):
    trainer = prepared("bert", steps=7)
    config = TwoStages(**vars(trainer.stage.config))
    twin = training.Trainer(bert, config, trainer.corpus, trainer.given[1], 0)
    seen, entered = [], []
    for done in twin.run(lambda: entered.append((twin.stage.name, twin.step))):
        seen.append((twin.stage.name, twin.learner.config.masked, twin.position[0]))
        assert np.isfinite(done.loss)
    assert entered == [("first", 0), ("second", 4)]
    assert seen == [("first", 0.3, 0)] * 4 + [("second", 0.15, 1)] * 3
    assert twin.step == twin.steps == 7 and twin.optimizer.steps == 7
    # And from the seam on, the same again.
    again = training.Trainer(bert, config, trainer.corpus, trainer.given[1], 0)
    part = training.Trainer(bert, config, trainer.corpus, trainer.given[1], 0)
    list(islice(part.run(), 4))
    again.arena.data[:], again.optimizer.m[:] = part.arena.data, part.optimizer.m
    again.optimizer.v[:], again.optimizer.steps = part.optimizer.v, 4
    again.step, again.position = 4, part.position
    list(again.run())
    assert np.array_equal(again.arena.data, twin.arena.data)


def test_a_text_that_gives_no_sequence_is_an_error_with_the_remedy(monkeypatch):
    trainer = prepared("bert")
    empty = trainer.objective.plan(trainer.corpus.train, 0)[:0]
    monkeypatch.setattr(trainer.objective, "plan", lambda documents, copy: empty)
    stream = training.micro_batches(trainer.objective, trainer.corpus.train, 0, (0, 0, 0))
    with pytest.raises(tbf.Error, match="not one sequence.*--data"):
        next(stream)
