"""The arena, the optimisers against their papers' formulas tensor by tensor, and the corners of the
schedules."""
import math

import numpy as np
import pytest

from tinybert_family.engine import ops, optim
from tinybert_family.engine.autograd import parameter
from tinybert_family.engine.optim import LAMB, AdamW, Arena, StableAdamW

SHAPES = dict(word=(40, 3), bias=(5,), weight=(2, 3), gain=(4,), zero=(2, 2))
MATRICES = ["word", "weight", "zero"]              # what Arena lets decay, unless told otherwise
STEPS, B1, B2, EPS, DECAY = 20, 0.9, 0.98, 1e-6, 0.1


def values(seed=0):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return dict(drawn, zero=np.zeros((2, 2)))


def make(dtype=np.float64, **kwargs):
    named = [(name, parameter(x.astype(dtype))) for name, x in values().items()]
    return dict(named), Arena(named, **kwargs)


def gradients(step):
    """Of growing and shrinking size, so that second moments lag behind."""
    rng = np.random.default_rng(100 + step)
    size = math.exp(3 * math.sin(step))
    return {name: size * rng.standard_normal(shape) for name, shape in SHAPES.items()}


def run(optimizer, rate):
    """Twenty steps; {name: array}."""
    tensors = dict(zip(optimizer.arena.names, optimizer.arena.tensors))
    for step in range(STEPS):
        for name, g in gradients(step).items():
            tensors[name].grad[...] = g
        optimizer.step(rate(step))
    return {name: tensor.data for name, tensor in tensors.items()}


def expect(rule, rate, decayed=MATRICES):
    """The same by `rule(w, m, v, g, t, lr, decay) -> w, m, v`, one tensor after another."""
    result = {}
    for name, w in values().items():
        m = v = np.zeros_like(w)
        decay = DECAY if name in decayed else 0
        for t in range(1, STEPS + 1):
            w, m, v = rule(w, m, v, gradients(t - 1)[name], t, rate(t - 1), decay)
        result[name] = w
    return result


def near(got, wanted, tolerance=1e-12):
    assert set(got) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=tolerance, err_msg=name)


def rate(step):
    return 0.01 * (1 + step % 3)


def bert_adam(w, m, v, g, t, lr, decay):
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    return w - lr * (m / (np.sqrt(v) + EPS) + decay * w), m, v


def adamw(w, m, v, g, t, lr, decay):
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    mhat, vhat = m / (1 - B1 ** t), v / (1 - B2 ** t)
    return w - lr * (mhat / (np.sqrt(vhat) + EPS) + decay * w), m, v


def lamb(w, m, v, g, t, lr, decay):
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    u = m / (np.sqrt(v) + EPS) + decay * w
    lengths = np.linalg.norm(w), np.linalg.norm(u)
    trust = lengths[0] / lengths[1] if all(lengths) and decay else 1
    return w - lr * trust * u, m, v


def stable(peak):
    def rule(w, m, v, g, t, lr, decay):
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b ** t) for b in (B1, B2))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        lr = lr / max(1, np.sqrt(np.mean(g * g / np.maximum(v, EPS ** 2))))
        w = w * (1 - decay * (lr / peak if peak else lr))
        return w - lr * m / (np.sqrt(v) + EPS), m, v
    return rule


RULES = {
    "AdamW": (AdamW, dict(correct=True), adamw),
    "BERT's AdamW": (AdamW, dict(correct=False), bert_adam),
    "LAMB": (LAMB, dict(correct=False), lamb),
    "StableAdamW": (StableAdamW, dict(peak=0.03), stable(0.03)),
    "StableAdamW without a peak": (StableAdamW, {}, stable(None))}


def everything(name, tensor):
    return True


def matrices(name, tensor):
    return name in MATRICES


@pytest.mark.parametrize("name, decays", [
    *[(name, everything) for name in RULES],
    *[(name, matrices) for name in RULES if name != "LAMB"]])       # it has a test of its own
def test_twenty_steps_follow_the_paper(name, decays):
    optimizer, options, rule = RULES[name]
    _, arena = make(decays=decays)
    decayed = [name for name in SHAPES if decays(name, None)]
    near(run(optimizer(arena, (B1, B2), EPS, DECAY, **options), rate), expect(rule, rate, decayed))


@pytest.mark.parametrize("name", RULES)
def test_blocks_smaller_than_a_tensor_change_nothing(name, monkeypatch):
    optimizer, options, _ = RULES[name]
    _, whole = make()
    wanted = run(optimizer(whole, (B1, B2), EPS, DECAY, **options), rate)
    monkeypatch.setattr(optim, "BLOCK", 7)
    _, arena = make()
    near(run(optimizer(arena, (B1, B2), EPS, DECAY, **options), rate), wanted, 1e-13)


@pytest.mark.parametrize("name", RULES)
def test_float32_stays_float32_and_near_the_paper(name):
    optimizer, options, rule = RULES[name]
    _, arena = make(np.float32, decays=everything)
    moved = optimizer(arena, (B1, B2), EPS, DECAY, **options)
    near(run(moved, rate), expect(rule, rate, list(SHAPES)), 1e-4)
    assert arena.data.dtype == arena.grad.dtype == moved.m.dtype == moved.v.dtype == np.float32


def test_lamb_leaves_what_does_not_decay_out_of_its_trust_ratio():
    """Biases and norms begin at 0 and 1, which says nothing of how far they should move."""
    _, arena = make()
    near(run(LAMB(arena, (B1, B2), EPS, DECAY, correct=False), rate), expect(lamb, rate))


def test_only_what_the_recipe_says_decays():
    _, arena = make(decays=lambda name, tensor: name in ("bias", "word"))
    near(run(AdamW(arena, (B1, B2), EPS, DECAY), rate), expect(adamw, rate, ["bias", "word"]))


def test_nothing_may_decay_and_everything_may():
    for answer, names in (True, list(SHAPES)), (False, []):
        _, arena = make(decays=lambda name, tensor: answer)
        near(run(AdamW(arena, (B1, B2), EPS, DECAY), rate), expect(adamw, rate, names))


def test_the_known_optimisers_can_be_chosen_by_name():
    assert optim.OPTIMIZERS == dict(adamw=AdamW, lamb=LAMB, stableadamw=StableAdamW)


# ---- the arena

def test_parameters_and_gradients_are_views_and_keep_their_values():
    tensors, arena = make()
    for name, tensor in tensors.items():
        assert np.array_equal(tensor.data, values()[name])
        assert np.shares_memory(tensor.data, arena.data)
        assert np.shares_memory(tensor.grad, arena.grad)
    arena.data[:] = 3
    arena.grad[:] = 4
    assert all((t.data == 3).all() and (t.node.grad == 4).all() for t in tensors.values())


def test_decayed_parameters_come_first_each_half_in_the_models_order():
    _, arena = make()
    assert arena.names == ["word", "weight", "zero", "bias", "gain"]
    assert arena.cuts == [0, 120, 126, 130, 135, 139] and arena.decayed == 130
    assert len(arena.data) == len(arena.grad) == 139


def test_backward_writes_into_the_arena_and_forgetting_starts_a_new_sum():
    tensors, arena = make()
    w, bias = tensors["weight"], tensors["gain"]

    def step():
        ops.sum(w * 2.0).backward()
        ops.sum(w * 1.0).backward()

    step()
    assert (w.grad == 3).all() and np.shares_memory(w.grad, arena.grad)
    step()
    assert (w.grad == 6).all()                              # nobody said forget: gradients add up
    arena.grad[-4:] = 7                                     # left in gain from a step ago
    arena.forget(arena.tensors)
    step()
    arena.settle(arena.tensors)
    lo = arena.cuts[arena.names.index("weight")]
    wanted = np.zeros(139)
    wanted[lo:lo + 6] = 3
    assert np.array_equal(arena.grad, wanted)
    assert np.shares_memory(w.grad, arena.grad) and (bias.grad == 0).all()


def test_a_second_set_of_gradients_leaves_the_first_alone():
    tensors, arena = make()
    twins = [parameter(t.data) for t in arena.tensors]
    flat = arena.gradients_of(twins)
    ops.sum(twins[0] * 5.0).backward()
    arena.settle(twins)
    assert flat.sum() == 5 * 120 and arena.grad.sum() == 0


# ---- clipping

def test_clip_shortens_to_the_limit_and_says_how_long_it_was():
    grad = np.full(4 * optim.BLOCK, 0.5)
    length = math.sqrt(len(grad)) / 2
    assert optim.global_norm(grad) == pytest.approx(length, rel=1e-14)
    assert optim.clip(grad, 1.0) == pytest.approx(length, rel=1e-14)
    assert optim.global_norm(grad) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("limit", [5.0, 6.0, 0, None])
def test_clip_leaves_a_gradient_within_the_limit_as_it_is(limit):
    grad = np.array([3.0, 4.0])
    assert optim.clip(grad, limit) == 5
    assert np.array_equal(grad, [3, 4])


def test_clip_reports_a_length_that_is_no_number_and_spreads_nothing():
    grad = np.array([1.0, np.inf])
    assert optim.clip(grad, 1.0) == math.inf
    assert np.array_equal(grad, [1, np.inf])


# ---- schedules: (schedule, its arguments, {step: share of the peak rate})

CORNERS = [
    ("linear", dict(steps=100, warmup=10),
     {0: 0.1, 4: 0.5, 9: 1, 10: 0.9, 50: 0.5, 99: 0.01, 100: 0}),
    ("linear", dict(steps=100, warmup=0), {0: 1, 50: 0.5, 99: 0.01}),
    ("linear", dict(steps=1, warmup=0), {0: 1}),
    ("constant", dict(steps=100, warmup=10), {0: 0.1, 9: 1, 10: 1, 99: 1}),
    ("constant", dict(steps=100, warmup=0), {0: 1, 99: 1}),
    ("trapezoidal", dict(steps=100, warmup=10),
     {0: 0.1, 9: 1, 10: 1, 79: 1, 80: 1, 85: 0.5, 99: 1 - math.sqrt(19 / 20), 100: 0}),
    ("trapezoidal", dict(steps=100, warmup=0, decay=0.5), {0: 1, 49: 1, 62.5: 0.5, 100: 0}),
    ("trapezoidal", dict(steps=100, warmup=10, decay=0), {0: 0.1, 50: 1, 99: 1}),
    ("inverse_sqrt", dict(steps=100, warmup=16), {0: 1 / 16, 15: 1, 63: 0.5, 99: 0.4}),
    ("inverse_sqrt", dict(steps=100, warmup=0), {0: 1, 3: 0.5, 99: 0.1}),
]


@pytest.mark.parametrize("name, arguments, corners", CORNERS)
def test_a_schedule_passes_through_its_corners(name, arguments, corners):
    for t, share in corners.items():
        assert optim.SCHEDULES[name](t, **arguments) == pytest.approx(share, abs=1e-12), t


@pytest.mark.parametrize("name", optim.SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7, 50])
def test_no_step_of_a_schedule_is_outside_zero_to_one(name, warmup):
    shares = [optim.SCHEDULES[name](t, 50, warmup) for t in range(50)]
    assert min(shares) > 0 and max(shares) <= 1
    after = shares[warmup:]
    assert after == sorted(after, reverse=True)     # and after the warm-up it never rises again
