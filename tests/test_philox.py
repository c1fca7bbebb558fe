"""Random numbers as functions of counters: the published vectors, a second implementation, and the
statistics."""
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybert_family.engine import philox
from tinybert_family.engine.philox import Key, at, draw, next_key, position, replay, threshold

# Known answers that the authors publish with Random123, for Philox4x32-10: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1")]
few = settings(max_examples=100, deadline=None, derandomize=True, database=None)
word = st.integers(0, 2**32 - 1)


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("counter, key, result", KNOWN)
def test_the_published_vectors_come_out_of_integers_and_of_arrays(counter, key, result):
    assert list(philox.philox(np, words(counter), words(key))) == words(result)
    arrays = [np.array([w, 1, w], np.uint64) for w in words(counter)]
    got = philox.philox(np, arrays, words(key))
    assert [int(a[0]) for a in got] == [int(a[2]) for a in got] == words(result)


def by_hand(counter, key):
    """The rounds as the paper draws them: halves of two products, on Python's integers."""
    x, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x[2], 2**32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


@given(counter=st.tuples(word, word, word, word), key=st.tuples(word, word))
@few
def test_random_counters_agree_with_a_second_implementation(counter, key):
    arrays = [np.array([w], np.uint64) for w in counter]
    assert [int(a[0]) for a in philox.philox(np, arrays, key)] == by_hand(counter, key)


@given(place=st.tuples(word, word, st.integers(0, 9), word), row=word, column=st.integers(0, 200))
@few
def test_a_draw_is_one_byte_of_the_block_the_docstring_names(place, row, column):
    seed, step, part, site = place
    block = by_hand([column // 16, row, part, site], [seed, step])
    octets = b"".join(w.to_bytes(4, "little") for w in block)
    drawn = draw(np, Key(*place), np.array([row]), column + 1)
    assert drawn.shape == (1, column + 1) and drawn.dtype == np.uint8
    assert drawn[0, column] == octets[column % 16]


some_rows, width = st.lists(st.integers(0, 299), max_size=20), st.integers(0, 40)


@given(rows=some_rows, columns=width, more=width)
@few
def test_some_rows_and_columns_are_drawn_as_they_are_in_the_whole(rows, columns, more):
    key = Key(1, 2, 3, 4)
    whole = draw(np, key, 300, columns + more)
    some = draw(np, key, np.array(rows, int), columns)
    assert np.array_equal(some, whole[np.array(rows, int), :columns])


def test_a_large_draw_is_made_in_chunks_that_do_not_show():
    key, edge = Key(1, 2), philox.CHUNK
    whole = draw(np, key, edge + 100, 33)
    assert np.array_equal(whole[-200:], draw(np, key, np.arange(edge - 100, edge + 100), 33))


KEYS = [Key(0, 0), Key(1, 0), Key(0, 1), Key(0, 0, 1), Key(0, 0, 0, 1), Key(2**32 - 1, 10**6, 3, 9)]


@pytest.mark.parametrize("first", [0, 1, 15, 16, 17, 40, 64])
@pytest.mark.parametrize("columns", [0, 1, 16, 33])
def test_columns_may_begin_anywhere(first, columns):
    """As a window over a long sequence has them: its draws are those of the whole."""
    whole = draw(np, Key(5, 6, 7, 8), 40, first + columns)
    assert np.array_equal(whole[:, first:], draw(np, Key(5, 6, 7, 8), 40, columns, first))


@pytest.mark.parametrize("key", KEYS)
def test_draws_are_uniform(key):
    counts = np.bincount(draw(np, key, 512, 512).ravel(), minlength=256)
    expected = 512 * 512 / 256
    chi = ((counts - expected) ** 2 / expected).sum()
    # chi-square with 255 degrees of freedom: mean 255, deviation sqrt(510) = 22.6
    assert 255 - 4.5 * 22.6 < chi < 255 + 4.5 * 22.6


def correlation(a, b):
    """In units of what chance gives to so many independent pairs."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1] * a.size ** 0.5


def test_seeds_steps_parts_and_sites_are_not_correlated():
    draws = [draw(np, key, 256, 256).astype(float) for key in KEYS]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(correlation(a, b)) < 4.5


@pytest.mark.parametrize("shift", [1, 2, 4, 16, 17])
def test_rows_and_columns_are_not_correlated_with_later_ones(shift):
    x = draw(np, Key(5, 6), 512, 512).astype(float)
    assert abs(correlation(x[shift:], x[:-shift])) < 4.5
    assert abs(correlation(x[:, shift:], x[:, :-shift])) < 4.5


def test_the_bits_of_a_draw_are_not_correlated():
    octets = draw(np, Key(5, 6), 512, 512).reshape(-1, 1)
    bits = np.unpackbits(octets, axis=1).astype(float)
    close = np.corrcoef(bits.T) * len(bits) ** 0.5
    assert abs(close - np.diag(np.diag(close))).max() < 4.5


def test_threshold_counts_in_steps_of_a_256th():
    assert [threshold(p) for p in (0, 0.1, 0.25, 0.5)] == [0, 26, 64, 128]


# ---- positions

def test_outside_at_nothing_is_drawn():
    assert position() is None and next_key() is None
    assert position() is None


def test_at_numbers_the_sites_from_zero_and_ends_with_its_block():
    with at(seed=7, step=8, part=2):
        assert [next_key() for _ in range(3)] == [Key(7, 8, 2, site) for site in range(3)]
        assert position() == Key(7, 8, 2, 3)
    assert next_key() is None


def test_blocks_nest_and_the_outer_one_goes_on_where_it_was():
    with at(1, 2):
        first = next_key()
        with at(3, 4):
            assert next_key() == Key(3, 4, 0, 0)
        with replay(first):
            assert next_key() == first
        with replay(None):
            assert next_key() is None
        assert next_key() == Key(1, 2, 0, 1)


def test_an_exception_leaves_the_block_too():
    with pytest.raises(KeyError):
        with at(1, 2):
            raise KeyError
    assert position() is None


def test_every_thread_has_its_own_position():
    found = []

    def work():
        found.append(next_key())
        with at(9, 9):
            found.append(next_key())

    with at(1, 2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [None, Key(9, 9, 0, 0)]
        assert next_key() == Key(1, 2, 0, 0)
