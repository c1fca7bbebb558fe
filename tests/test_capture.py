"""Captured on NumPy, and on a stand-in for the GPU's library that only keeps a diary of what is
asked of it.

The stand-in knows the one thing that makes streams dangerous: what is done on two of them has no
order, unless one of them waits."""
import contextlib
import sys

import numpy as np
import pytest

from tinybert_family.engine.capture import Captured


class Stream:
    def __init__(self, fake, name):
        self.fake, self.name = fake, name

    def __enter__(self):
        self.before, self.fake.stream = self.fake.stream, self

    def __exit__(self, *_):
        self.fake.stream = self.before

    def synchronize(self):
        assert not self.fake.capturing, "a capture ends with an error when somebody waits"
        self.fake.diary.append(("wait", self.name))

    def record(self, event=None):
        self.fake.diary.append(("wait", self.name))
        return event

    def wait_event(self, event):
        pass                                # the order is written down by record

    def begin_capture(self, *mode):
        assert self is self.fake.stream and not self.fake.capturing
        self.fake.capturing = True
        self.fake.effects = []
        self.fake.diary.append(("begin", self.name))

    def end_capture(self):
        self.fake.capturing = False
        self.fake.diary.append(("end", self.name))
        return Graph(self.fake, self.fake.effects)


class Graph:
    def __init__(self, fake, effects):
        self.fake, self.effects = fake, effects

    def launch(self, stream=None):
        self.fake.diary.append(("launch", (stream or self.fake.stream).name))
        for effect in self.effects:
            effect()


class MemoryPool:
    def malloc(self, size):
        raise AssertionError("nobody needs real memory here")


class Fake:
    """What capture.py may ask of cupy, and what happened."""
    __name__ = "cupy"

    def __init__(self):
        self.diary, self.capturing, self.effects, self.pool = [], False, [], None
        self.stream = self.null = Stream(self, "null")
        self.cuda = self
        self.MemoryPool, self.Event = MemoryPool, object

    def Stream(self, non_blocking=False):
        assert non_blocking, "the null stream cannot be captured, nor one that waits for it"
        return Stream(self, "own")

    def get_current_stream(self):
        return self.stream

    @contextlib.contextmanager
    def using_allocator(self, malloc):
        self.pool = malloc.__self__
        yield
        self.pool = None


class Array:
    """A box with a number in it; copies are written into the diary."""

    def __init__(self, value):
        self.value = value

    def copy(self):
        fake = sys.modules["cupy"]
        fake.diary.append(("copy", fake.stream.name))
        return Array(self.value)

    def __setitem__(self, key, other):
        assert key is Ellipsis
        fake = sys.modules["cupy"]
        fake.diary.append(("copy", fake.stream.name))
        self.value = other.value


Array.__module__ = "cupy"                   # so that backend.module_of takes it for one of cupy's


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


class Step:
    """A training step: adds its input to a total, on the device; returns the total."""

    def __init__(self, fake):
        self.fake, self.total, self.taken = fake, 0, 0

    def __call__(self, arrays):
        out = Array(None)

        def effect():
            self.total += arrays["x"].value
            self.taken += 1
            out.value = self.total

        self.fake.diary.append(("step", self.fake.stream.name))
        if self.fake.capturing:
            self.fake.effects.append(effect)
            self.pool = self.fake.pool
        else:
            effect()
        return dict(total=out)


def kinds(diary):
    return [what for what, _ in diary if what != "wait"]


def test_on_numpy_it_is_the_step_itself():
    seen = []

    def step(arrays):
        seen.append(arrays)
        return dict(y=arrays["x"] + 1)

    captured = Captured(step)
    for i in range(6):
        arrays = dict(x=np.array([i]))
        assert captured(arrays)["y"].tolist() == [i + 1] and seen[-1] is arrays
    assert len(seen) == 6


def test_two_plain_runs_then_a_capture_then_only_copies_and_launches(fake):
    captured = Captured(Step(fake))
    captured(dict(x=Array(1)))
    captured(dict(x=Array(1)))
    assert kinds(fake.diary) == ["step"] * 2
    seen = len(fake.diary)
    captured(dict(x=Array(1)))
    third = kinds(fake.diary[seen:])
    begin = third.index("begin")
    assert third[begin:begin + 3] == ["begin", "step", "end"]
    assert "copy" in third[:begin], "the graph needs inputs of its own"
    for _ in range(3):
        seen = len(fake.diary)
        captured(dict(x=Array(1)))
        assert kinds(fake.diary[seen:]) == ["copy", "launch"]


def test_capture_happens_on_its_own_stream_and_in_its_own_memory(fake):
    step = Step(fake)
    captured = Captured(step)
    for _ in range(4):
        captured(dict(x=Array(1)))
    graph = {name for what, name in fake.diary if what in ("begin", "end", "launch")}
    assert graph == {"own"}
    assert type(step.pool) is MemoryPool and captured.memory is step.pool
    assert fake.stream is fake.null and fake.pool is None       # and both are as they were before


def test_replays_work_on_the_inputs_of_their_call(fake):
    captured = Captured(Step(fake))
    totals = [captured(dict(x=Array(i)))["total"].value for i in range(8)]
    assert np.diff(totals[2:]).tolist() == [3, 4, 5, 6, 7]


def test_the_callers_arrays_are_not_the_graphs(fake):
    captured = Captured(Step(fake))
    mine = Array(1)
    for _ in range(3):
        captured(dict(x=mine))
    captured(dict(x=Array(100)))
    assert mine.value == 1


def test_every_call_takes_one_step_and_no_more(fake):
    """A step moves the weights: a run that only warms up would move them once too often."""
    step = Step(fake)
    captured = Captured(step)
    for calls in range(1, 7):
        captured(dict(x=Array(1)))
        assert step.taken == calls


def ordered(diary, first, second):
    """Does every event of kind `second` come after the `first` before it, for the device too?"""
    pending, good = set(), True
    for what, stream in diary:
        if what == first:
            pending.add(stream)
        if what == "wait":
            pending.discard(stream)
        if what == second:
            good = good and not pending - {stream}
    return good


def test_a_replay_waits_for_its_inputs_to_be_copied(fake):
    captured = Captured(Step(fake))
    for _ in range(6):
        captured(dict(x=Array(1)))
    assert ordered(fake.diary, "copy", "launch")


def test_the_caller_can_use_what_a_replay_returns_at_once(fake):
    captured = Captured(Step(fake))
    for _ in range(6):
        captured(dict(x=Array(1)))
        fake.diary.append(("read", fake.stream.name))       # by the caller, where it is
    assert ordered(fake.diary, "launch", "read")
