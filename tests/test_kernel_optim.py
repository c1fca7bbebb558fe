"""The kernels of optim.cu against the classes of engine/optim.py themselves, in float64, over some
steps."""
import math

import emulated
import numpy as np
import pytest
from emulated import MEETINGS, guarded, numbers, poisoned, stored

from tinybert_family.engine import optim
from tinybert_family.engine.autograd import parameter

RATE, SCALE, STEPS, SKIPPED, GOOD, HALTED, LENGTH, FACTOR, FIRST, SECOND = range(10)
STRETCH = 4096                                      # of the arena, for a block


# ---- launching

class Device:
    """What lies in a GPU's memory beside the arena, and the launches of a step."""

    def __init__(self, arena, grad, shadow, betas, eps, decay, correct=True, scale=1.0, blocks=3,
                 meeting=MEETINGS[0]):
        self.meeting, self.edge = meeting, np.int32(arena.decayed)
        self.grad, self.shadow, n = grad, shadow, len(arena.data)
        self.kinds = kind_of(grad), "float" if shadow is None else kind_of(shadow)
        self.w = guarded(arena.data.astype(np.float32))
        self.m, self.v = (guarded(np.zeros(n, np.float32)) for _ in range(2))
        starts = np.union1d(np.arange(0, n, STRETCH), arena.cuts)
        owner = np.searchsorted(arena.cuts, starts[:-1], "right") - 1
        first = np.searchsorted(starts, arena.cuts)
        self.starts, self.owner, self.first = (guarded(x.astype(np.int32))
                                               for x in (starts, owner, first))
        self.partials = poisoned(blocks, "f4")
        self.sums, self.ratios = poisoned((len(owner), 2), "f4"), poisoned(len(first) - 1, "f4")
        self.control = guarded(np.zeros(10, np.float32))
        self.control[SCALE] = scale
        self.betas, self.correct = betas, np.int32(correct)
        self.shares = [np.float32(1 - b) for b in betas]
        self.eps, self.decay = np.float32(eps), np.float32(decay)

    def launch(self, name, blocks, threads, arguments, shared=0):
        emulated.kernel("optim.cu", name, self.meeting)((blocks,), (threads,), arguments, shared)

    def judge(self, limit=0.0, patience=0):
        n = np.int32(len(self.w))
        self.launch(f"squares<{self.kinds[0]}>", len(self.partials), 256,
                    (self.grad, self.partials, n), 128)
        self.launch("judge", 1, 1024, (
            self.partials, self.control, np.int32(len(self.partials)), np.float32(limit),
            *(np.float32(math.log(b)) for b in self.betas), self.correct, np.int32(patience)), 128)

    def adamw(self, pulls=None):
        self.launch("adamw<%s,%s>" % self.kinds, len(self.owner), 256, (
            self.w, self.grad, self.m, self.v, self.shadow, self.starts, self.owner, pulls,
            self.control, self.edge, *self.shares, self.eps, self.decay))

    def by_tensor(self, method, pulls=None, decay=None):
        decay = self.decay if decay is None else np.float32(decay)
        walk = len(self.owner), 256
        self.launch(f"measure<{self.kinds[0]},{method}>", *walk, (
            self.w, self.grad, self.m, self.v, self.starts, self.owner, pulls, self.control,
            self.sums, self.edge, *self.shares, self.eps, decay), 256)
        self.launch(f"ratios_of<{method}>", len(self.ratios), 256, (
            self.sums, self.starts, self.first, pulls, self.control, self.ratios, self.edge), 256)
        self.launch(f"move<{self.kinds[1]},{method}>", *walk, (
            self.w, self.m, self.v, self.shadow, self.starts, self.owner, pulls, self.control,
            self.ratios, self.edge, self.eps, decay))

    def lamb(self, pulls=None):
        self.by_tensor(0, pulls)

    def stable(self, pulls=None, peak=None):
        self.by_tensor(1, pulls, self.decay / peak if peak else None)


def kind_of(x):
    return next(k for k, dtype in emulated.TYPES.items() if x.dtype == dtype)


# ---- beside the classes

SHAPES = dict(word=(131, 33), bias=(5,), weight=(7, 9), gain=(4,), zero=(3, 3), long=(8211,),
              one=(1,))
BETAS, EPS, DECAY, TAKEN = (0.9, 0.98), 1e-6, 0.1, 4
BOTH = [("float", "float"), ("float", "bf16"), ("float", "f16"), ("bf16", "bf16"), ("f16", "f16")]


def arena_of(seed=0):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    drawn["zero"][...] = 0
    return optim.Arena([(name, parameter(x.astype(float))) for name, x in drawn.items()])


def device_of(arena, grad="float", shadow="float", **how):
    n = len(arena.data)
    shadow = shadow and poisoned(n, emulated.TYPES[shadow])
    return Device(arena, poisoned(n, emulated.TYPES[grad]), shadow, how.pop("betas", BETAS), EPS,
                  DECAY, **how)


def rate(step):
    return 0.01 * (1 + step % 3)


def run(name, grad="float", shadow="float", limit=0.0, pulls=None, scale=1.0, peak=None, **how):
    """Some steps by a class and by the kernels; (optimizer, device)."""
    arena = arena_of()
    device = device_of(arena, grad, shadow, scale=scale, **how)
    options = {} if name == "stableadamw" else dict(correct=how.get("correct", True))
    optimizer = optim.OPTIMIZERS[name](arena, BETAS, EPS, DECAY, peak=peak, **options)
    steps = dict(adamw=device.adamw, lamb=device.lamb, stableadamw=lambda p: device.stable(p, peak))
    rng = np.random.default_rng(1)
    for t in range(TAKEN):
        pull = pulls and pulls[t % len(pulls)]
        g = math.exp(2 * math.sin(2 * t)) * rng.standard_normal(len(arena.data))
        device.grad[...] = stored(g * scale, grad)
        arena.grad[...] = numbers(device.grad) / scale
        device.control[RATE] = rate(t)
        device.judge(limit)
        np.testing.assert_allclose(device.control[LENGTH], optim.clip(arena.grad, limit), rtol=1e-5)
        steps[name](None if pull is None else guarded(np.array(pull, "f4")))
        optimizer.step(rate(t), pull)
    assert device.control[STEPS] == optimizer.steps and not device.control[HALTED]
    return optimizer, device


def check(optimizer, device):
    """w is near 1 and moves by some hundredths a step: a rounding or two of float for each step,
    and as much again for what the moments are off by. Gradients are below 40.

    Is there a tensor whose shadow was not written, since it did not move?
    """
    np.testing.assert_allclose(device.w, optimizer.arena.data, rtol=0, atol=3e-6)
    np.testing.assert_allclose(device.m, optimizer.m, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(device.v, optimizer.v, rtol=1e-5, atol=1e-9)
    still = np.isnan(numbers(device.shadow))                        # where it never was written
    copy = stored(device.w, device.kinds[1])
    assert np.array_equal(device.shadow[~still], copy[~still])
    return still.any()


NAMES = ["adamw", "lamb", "stableadamw"]


@pytest.mark.parametrize("grad, shadow", BOTH)
@pytest.mark.parametrize("name", NAMES)
def test_some_steps_are_those_of_the_class(name, grad, shadow):
    assert not check(*run(name, grad, shadow, limit=50.0, scale=1 if grad == "float" else 64.0))


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_corrections_may_be_left_out(name):
    optimizer, device = run(name, correct=False)
    check(optimizer, device)
    assert device.control[FIRST] == device.control[SECOND] == 1


def test_decay_is_in_proportion_to_the_peak():
    check(*run("stableadamw", peak=0.03))


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_tensor_stays_and_forgets(name):
    """Frozen from the first step or later, woken up, and slowed down."""
    pulls = [1, .5, 0, 2, 0, 1, 1], [0, 1, 1, 0, 0, 1, 0]
    optimizer, device = run(name, "bf16", "bf16", pulls=pulls)
    assert check(optimizer, device)
    assert not device.m[optimizer.arena.cuts[4]:optimizer.arena.cuts[5]].any()


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("name", NAMES)
def test_no_order_of_threads_changes_a_bit(name, meeting):
    arrays = []
    for order in MEETINGS[0], meeting:
        _, d = run(name, "bf16", "bf16", limit=30.0, meeting=order)
        arrays.append([x.copy() for x in (d.w, d.m, d.v, d.shadow, d.control)])
    assert all(np.array_equal(a, b) for a, b in zip(*arrays))


@pytest.mark.parametrize("name", NAMES)
def test_a_shadow_may_be_left_out(name):
    (_, with_it), (_, without) = run(name), run(name, shadow=None)
    assert np.array_equal(with_it.w, without.w)


# ---- measuring

@pytest.mark.parametrize("kind", ["float", "bf16", "f16"])
@pytest.mark.parametrize("blocks", [1, 5])
def test_the_length_of_a_gradient_of_any_size(kind, blocks):
    for n in 0, 1, 7, 8, 9, 2047, 6011:
        g = stored(np.random.default_rng(n).standard_normal(n), kind)
        partials = poisoned(blocks, "f4")
        measure = emulated.kernel("optim.cu", f"squares<{kind}>")
        measure((blocks,), (256,), (g, partials, np.int32(n)), 128)
        length = optim.global_norm(numbers(g))
        np.testing.assert_allclose(math.sqrt(partials.sum()), length, rtol=1e-5)


def test_corrections_keep_their_digits_for_many_steps():
    arena = arena_of()
    device = device_of(arena, betas=(0.9, 0.999))
    device.grad[...] = 0
    for before in 0, 1, 9, 99, 9999, 999999:
        device.control[STEPS] = before
        device.judge()
        wanted = [1 - b ** (before + 1) for b in (0.9, 0.999)]
        np.testing.assert_allclose(device.control[[FIRST, SECOND]], wanted, rtol=3e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_makes_no_step(name, bad):
    arena = arena_of()
    device = device_of(arena, "f16", "f16", scale=1024.0)
    step = getattr(device, name.removesuffix("adamw") or name)
    before = [x.copy() for x in (device.w, device.m, device.v, device.shadow.view("u2"))]
    device.control[RATE] = 0.1
    device.grad[...] = 1
    device.grad[len(arena.data) - 2] = bad
    device.judge(limit=1.0, patience=2)
    step(guarded(np.array([1, 0, 1, 1, 1, 1, 1], "f4")))
    after = device.w, device.m, device.v, device.shadow.view("u2")
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    control = device.control
    assert control[HALTED] == control[SKIPPED] == 1
    assert control[STEPS] == 0 and control[SCALE] == 512
    device.grad[...] = 1
    scales = []
    for _ in range(5):
        device.judge(limit=1.0, patience=2)
        scales.append(float(control[SCALE]))
    assert scales == [512, 1024, 1024, 2048, 2048] and control[STEPS] == 5 and not control[HALTED]
    step()
    assert not np.array_equal(before[0], device.w)
