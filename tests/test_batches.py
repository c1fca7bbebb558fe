"""What text/batches.py promises: no sequence lost, no budget broken, hardly a token wasted; and a
thread that makes batches ahead of time without hiding what goes wrong in it."""
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybert_family.text.batches import Prefetch, pack, ragged

WAIT = 5                        # seconds after which a thread counts as stuck


# ---- pack

@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=200), st.integers(64, 300),
       st.one_of(st.none(), st.integers(1, 6)),
       st.integers(1, 70))
def test_every_sequence_is_packed_once_and_within_the_budget(lengths, budget, sequences, shelf):
    batches = pack(lengths, budget, sequences, shelf)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batch and sum(lengths[i] for i in batch) <= budget for batch in batches)
    assert sequences is None or all(len(batch) <= sequences for batch in batches)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(64, 300),
       st.integers(1, 70))
def test_sequences_come_in_nearly_the_given_order(lengths, budget, shelf):
    """Nobody is taken before the shelf reaches it, and the oldest never waits another turn."""
    done = set()
    for batch in pack(lengths, budget, shelf=shelf):
        oldest = min(set(range(len(lengths))) - done)
        assert batch[0] == oldest
        waiting = sorted(set(range(len(lengths))) - done)[:shelf]
        assert set(batch) <= set(waiting)
        done |= set(batch)


@pytest.mark.parametrize("budget", [1024, 2048])
@pytest.mark.parametrize("draw", ["even", "mostly long", "short and long"])
def test_more_than_97_percent_of_the_budget_is_used(draw, budget):
    rng = np.random.default_rng(0)
    n = 4000
    lengths = {"even": rng.integers(5, 129, n),
               "mostly long": np.where(rng.random(n) < 0.9, 128, rng.integers(5, 129, n)),
               "short and long": np.where(rng.random(n) < 0.5, rng.integers(5, 12, n),
                                          rng.integers(100, 129, n))}[draw]
    batches = pack(lengths, budget)
    # the last takes what is left
    full = [int(lengths[batch].sum()) for batch in batches[:-1]]
    assert sum(full) / (budget * len(full)) > 0.97
    assert len(batches) <= 1.03 * lengths.sum() / budget + 1


def test_packing_is_a_function_of_the_lengths():
    lengths = np.random.default_rng(1).integers(1, 100, 500)
    assert pack(lengths, 256) == pack(lengths.tolist(), 256) == pack(lengths.astype(np.uint8), 256)


def test_a_worked_example():
    # 5 comes first, as the oldest; beside it the longest that fit: 4, then 1 (not 3, not 2).
    assert pack([5, 3, 4, 2, 1], 10) == [[0, 2, 4], [1, 3]]
    # At most two sequences: 5 and 4, 3 and 2, 1.
    assert pack([5, 3, 4, 2, 1], 10, sequences=2) == [[0, 2], [1, 3], [4]]
    # A shelf of one is first come, first served.
    assert pack([5, 3, 4, 2, 1], 10, shelf=1) == [[0], [1], [2], [3], [4]]
    assert pack([], 10) == []


def test_a_sequence_above_the_budget_is_refused():
    with pytest.raises(ValueError, match="11 tokens.*10"):
        pack([3, 11], 10)


def test_ragged_puts_arrays_end_to_end():
    values, cuts = ragged([[1, 2], [], [3]])
    assert values.tolist() == [1, 2, 3] and cuts.tolist() == [0, 2, 2, 3]
    assert values.dtype == cuts.dtype == np.int64
    values, cuts = ragged([], np.float32)
    assert values.shape == (0,) and values.dtype == np.float32 and cuts.tolist() == [0]


# ---- prefetch

def in_time(function):
    """function() in a thread of its own, so that a hang fails instead of hanging the tests."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive(), "it hangs"
    return found[0]


def until(condition):
    end = time.monotonic() + WAIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_items_come_in_order_and_come_to_an_end():
    assert in_time(lambda: list(Prefetch(range(100), ahead=3))) == list(range(100))
    assert in_time(lambda: list(Prefetch([]))) == []


@pytest.mark.parametrize("ahead", [1, 4])
def test_it_works_ahead_but_only_so_far(ahead):
    """`ahead` items wait, and one more is in the thread's hands."""
    made = []
    def source():
        for i in range(100):
            made.append(i)
            yield i
    items = Prefetch(source(), ahead)
    try:
        assert until(lambda: len(made) == ahead + 1)
        time.sleep(0.3)
        assert len(made) == ahead + 1
        it = iter(items)
        assert in_time(lambda: next(it)) == 0
        assert until(lambda: len(made) == ahead + 2)
    finally:
        items.close()


class Mishap(Exception):
    pass


@pytest.mark.parametrize("error", [Mishap, KeyboardInterrupt, StopAsyncIteration])
def test_what_goes_wrong_is_raised_in_its_place(error):
    def source():
        yield 1
        yield 2
        raise error("here")
    found, items = [], Prefetch(source())
    def read():
        try:
            for item in items:
                found.append(item)
        except BaseException as problem:
            return problem
    problem = in_time(read)
    assert found == [1, 2] and type(problem) is error and problem.args == ("here",)
    assert until(lambda: not items.thread.is_alive())


def test_an_exception_that_is_an_item_of_ours_is_told_with_its_place():
    """The traceback still says where in the source it happened."""
    def source():
        yield 0
        raise Mishap
    def read():
        try:
            list(Prefetch(source()))
        except Mishap as problem:
            names, at = [], problem.__traceback__
            while at:
                names.append(at.tb_frame.f_code.co_name)
                at = at.tb_next
            return names
    assert "source" in in_time(read)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_ends_the_thread_of_an_endless_source(taken):
    items = Prefetch(iter(int, 1), ahead=2)
    it = iter(items)
    for _ in range(taken):
        assert in_time(lambda: next(it)) == 0
    in_time(items.close)
    assert not items.thread.is_alive()
    in_time(items.close)                                    # twice is no harm


def test_close_after_the_end_or_an_error_returns():
    done = Prefetch([1])
    assert in_time(lambda: list(done)) == [1]
    in_time(done.close)
    def source():
        raise Mishap
        yield
    broken = Prefetch(source())
    in_time(broken.close)
    assert not broken.thread.is_alive()


def test_an_ended_stream_stays_ended():
    """Asked again, it says so again instead of waiting for ever."""
    items = Prefetch([1, 2])
    assert in_time(lambda: list(items)) == [1, 2]
    assert in_time(lambda: list(items)) == []


def test_reading_a_closed_stream_ends():
    items = Prefetch(iter(int, 1), ahead=2)
    assert until(items.items.full)
    in_time(items.close)
    in_time(lambda: len(list(items)))
