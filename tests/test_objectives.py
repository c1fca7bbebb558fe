"""What must hold for the objective of each of the sixteen: its gradient is the slope of its loss,
its batches are functions of their seed, one batch can be learnt by heart, and a run that was
interrupted goes on to the same bits."""
from itertools import islice

import numpy as np
import pytest
from objectives import first_batches, loss_of, prepared

from tinybert_family import checkpoint
from tinybert_family.engine.autograd import no_grad
from tinybert_family.engine.optim import Arena, clip

MODELS = list(checkpoint.MODELS)
# Where a stop of the gradient is the point, the slope is tested in the variant without it.
SMOOTH = {"deberta_v2": dict(sharing="es")}


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_the_slope_of_the_whole_loss(name):
    trainer = prepared(name, np.float64, dropout=0.1, attention_dropout=0.1, tokens=128,
                       **SMOOTH.get(name, {}))
    arena, batches = trainer.arena, first_batches(trainer, 2)
    rng = np.random.default_rng(0)
    Arena.forget(arena.tensors)
    loss_of(trainer, batches).backward()
    Arena.settle(arena.tensors)
    start = arena.data.copy()
    for _ in range(3):
        way = rng.standard_normal(len(start))
        way /= np.linalg.norm(way)
        up, down = [one_side(trainer, batches, start, by * way) for by in (1e-5, -1e-5)]
        slope, claimed = (up - down) / 2e-5, arena.grad @ way
        assert abs(slope - claimed) <= 2e-5 * max(abs(slope), np.linalg.norm(arena.grad) * 1e-3)
    arena.data[:] = start


def one_side(trainer, batches, start, by):
    trainer.arena.data[:] = start + by
    return float(loss_of(trainer, batches).item())


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_that_learns_has_a_gradient(name):
    """And those that have none are named: nothing is in the arena for no reason."""
    trainer = prepared(name, seq=32, tokens=512)
    Arena.forget(trainer.arena.tensors)
    loss_of(trainer, first_batches(trainer)).backward()
    Arena.settle(trainer.arena.tensors)
    silent = {n for n, t in zip(trainer.arena.names, trainer.arena.tensors)
              if not np.any(t.node.grad)}
    assert all(any(word in n for word in IDLE.get(name, ())) for n in silent), silent


IDLE = dict(ernie=("dialogue",),                        # heads of tasks that come later
            ernie2=("capital", "recurs", "order", "discourse", "pooler"),
            # nothing reads the entities of the last layer
            ernie_thu=("down_entity", "norm_entity"),
            # what later stages teach
            tinybert=("pooler", "sequence"), mobilebert=("layers.1.", "mlm.", "nsp."))


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_a_function_of_seed_and_copy(name):
    one, two, other = prepared(name), prepared(name), prepared(name, seed=1)
    a, b, c = [first_batches(trainer, 3) for trainer in (one, two, other)]
    assert all(equal(x, y) for x, y in zip(a, b))
    assert not any(equal(x, y) for x, y in zip(a, c))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", MODELS)
def test_steps_taken_again_from_where_a_run_stood_are_the_same(name):
    whole, part = prepared(name), prepared(name)
    losses = [done.loss for done in islice(whole.run(), 6)]
    taken = [done.loss for done in islice(part.run(), 3)]
    again = prepared(name)
    for mine, its in zip((again.arena.data, again.optimizer.m, again.optimizer.v),
                         (part.arena.data, part.optimizer.m, part.optimizer.v)):
        mine[:] = its
    again.optimizer.steps, again.step, again.position = part.optimizer.steps, part.step, \
        part.position
    taken += [done.loss for done in islice(again.run(), 3)]
    assert taken == losses
    np.testing.assert_array_equal(again.arena.data, whole.arena.data)


@pytest.mark.parametrize("name", MODELS)
def test_chance_names_the_scores_that_it_is_held_against(name):
    trainer = prepared(name)
    scores, chance = trainer.scores(), trainer.chance()
    assert set(chance) <= set(scores) and chance
    assert all(np.isfinite(x) for x in [*scores.values(), *chance.values()])


# What each is to gain on knowing nothing, on held-out documents of the toy language after a few
# hundred small steps: a task's accuracy above chance, or the share of chance's loss that is gone.
GAINS = dict(
    bert=dict(mlm_accuracy=0.1), roberta=dict(mlm_accuracy=0.1), albert=dict(mlm_accuracy=0.03),
    distilbert=dict(mlm_loss=0.1, soft_loss=0.5, turned_loss=0.2),
    electra=dict(rtd_balanced_accuracy=0.1, mlm_accuracy=0.03),
    deberta=dict(mlm_accuracy=0.1),
    deberta_v2=dict(rtd_balanced_accuracy=0.05, mlm_accuracy=0.1),
    modernbert=dict(mlm_accuracy=0.3), ernie=dict(mlm_accuracy=0.05),
    ernie2=dict(capital_accuracy=0.05, recurs_accuracy=0.05, discourse_accuracy=0.2),
    ernie_thu=dict(entity_accuracy=0.3, entity_lost_accuracy=0.1, mlm_accuracy=0.05),
    spanbert=dict(mlm_accuracy=0.1, sbo_accuracy=0.1),
    tinybert=dict(embedding_loss=0.5, states_loss=0.5, scores_loss=0.5),
    mobilebert=dict(mlm_accuracy=0.1), bert_wwm=dict(mlm_accuracy=0.1),
    macbert=dict(mlm_loss=0.2, mlm_accuracy=0.03, sop_accuracy=0.1),
    structbert=dict(mlm_accuracy=0.1, wso_accuracy=0.02, nsp_accuracy=0.08))


# Of two stages the first: the teacher here was never taught, so it has no task to hand on.
ALONE = dict(tinybert=dict(intermediate=0.0, prediction=0.0))


# Several tasks share the steps.
STEPS = dict(ernie2=600, structbert=500)


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_what_it_is_for(name):
    trainer = prepared(name, steps=STEPS.get(name, 300), warmup=30, tokens=1024, **ALONE.get(name, {}))
    first = trainer.scores()
    for done in trainer.run():
        assert np.isfinite(done.loss)
    last, chance = trainer.scores(), trainer.chance()
    if first.keys() == last.keys():
        assert last["eval_loss"] < first["eval_loss"]
    for metric, margin in GAINS[name].items():
        gain = last[metric] - chance[metric]
        if metric.endswith("loss"):
            gain = -gain / chance[metric]
        assert gain > margin, (metric, chance[metric], last[metric])


# Students are held to their teacher, which here knows nothing: their losses fall far instead.
STUDENTS = dict(tinybert=0.1, distilbert=0.35, mobilebert=0.1)
# All tasks at once, where there are stages for them.
TOGETHER = dict(ernie2=dict(learning="together"), **ALONE)


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_is_learnt_by_heart(name):
    """A loss that falls can hide answers of which half are wrong; these are all right at last."""
    trainer = prepared(name, tokens=256, steps=300, warmup=20, **TOGETHER.get(name, {}))
    batches = one_of_each(trainer)
    first, taught = means(trainer, batches), loss_names(trainer, batches)
    for step in range(250):
        Arena.forget(trainer.arena.tensors)
        loss_of(trainer, batches, step).backward()
        Arena.settle(trainer.arena.tensors)
        clip(trainer.arena.grad, 1.0)
        trainer.optimizer.step(3e-3 * min(1, (step + 1) / 20, (250 - step) / 100))
    last = means(trainer, batches)
    if name in STUDENTS:
        before, after = [sum(x[loss] for loss in taught) for x in (first, last)]
        assert after < STUDENTS[name] * before
        return
    right = {key: x for key, x in last.items() if key.endswith("_accuracy")}
    assert len(right) >= len(taught) and all(x >= 0.97 for x in right.values()), right


def one_of_each(trainer):
    """A batch of every kind: ERNIE 2.0 has one for each of its tasks."""
    kinds = {tuple(sorted(b)): b for b in reversed(first_batches(trainer, 40))}
    return list(kinds.values())


def loss_names(trainer, batches):
    counts = sum(trainer.objective.counts(b) for b in batches)
    return {name for b in batches for name in trainer.objective.loss(trainer.learner, b, counts)}


def means(trainer, batches):
    total = {}
    with no_grad():
        for b in batches:
            for name, (value, count) in trainer.objective.scores(trainer.learner, b).items():
                before = total.get(name, (0, 0))
                total[name] = before[0] + value, before[1] + count
    return {name: value / max(1, count) for name, (value, count) in total.items()}
