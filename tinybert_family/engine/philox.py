"""Random numbers that are functions of counters: Philox4x32-10 (Salmon et al., SC 2011).

A bijection scrambles a 128-bit counter under a 64-bit key; there is no state to carry. We spend
the words so:
    key      seed, step
    counter  block in the row, row, part of the step, site (the number of the dropout in the pass)
So the mask of any dropout can be had again from five small numbers: by the backward pass,
by an activation computed a second time, by a run resumed after a crash, and by a kernel
on a GPU, always the same.
"""
import contextlib
import threading
from dataclasses import dataclass, replace

LOW = 0xFFFFFFFF
BLOCK = 16                                  # bytes in a Philox block: sixteen draws of eight bits
CHUNK = 4096                                # counters at a time: the arrays stay in the cache


def philox(xp, counter, key, rounds=10):
    """Four words of counter, two of key -> four words.

    Each is a uint64 array or a Python int below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # Two 32 x 32 -> 64 bit products; their halves cross over.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ (c1 ^ k0), p1 & LOW, (p0 >> 32) ^ (c3 ^ k1), p0 & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW      # golden ratio, sqrt(3) - 1
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Key:
    """Where in the run a mask is drawn."""
    seed: int
    step: int
    part: int = 0
    site: int = 0


def draw(xp, key, rows, columns, first=0):
    """uint8 draws [rows, columns]; `rows` numbers the rows (or counts them), `first` the columns.

    Row r, column c is byte c % 16 of block (c // 16, r), whatever else is drawn with it: a kernel
    that works on some rows finds its own.
    """
    rows = xp.arange(rows, dtype=xp.uint64) if isinstance(rows, int) else rows.astype(xp.uint64)
    skipped = first // BLOCK
    blocks = -(-(first + columns) // BLOCK) - skipped
    block = xp.arange(skipped, skipped + blocks, dtype=xp.uint64)
    words = xp.empty((len(rows), blocks, 4), xp.uint32)
    step = max(1, CHUNK // max(1, blocks))
    for lo in range(0, len(rows), step):
        row = rows[lo:lo + step, None]
        shape = len(row), blocks
        counter = xp.broadcast_to(block, shape), xp.broadcast_to(row, shape)
        scrambled = philox(xp, (*counter, key.part, key.site), (key.seed & LOW, key.step & LOW))
        for i, word in enumerate(scrambled):
            words[lo:lo + step, :, i] = word
    first -= skipped * BLOCK
    return words.view(xp.uint8).reshape(len(rows), blocks * BLOCK)[:, first:first + columns]


def threshold(p):
    """Dropout's p in 256ths: a draw below it is dropped."""
    return min(255, int(round(p * 256)))


def scale(p):
    """What stays after dropout is multiplied by this, which keeps the mean."""
    return 256 / (256 - threshold(p))


class _Now(threading.local):
    key = None


_now = _Now()


@contextlib.contextmanager
def replay(key):
    """Draw from this position on, then go back to where we were."""
    before, _now.key = _now.key, key
    try:
        yield
    finally:
        _now.key = before


def at(seed, step, part=0):
    """`with at(seed, step):` switches dropout on.

    Outside there is none: that is all there is to "train" and "eval" mode.
    """
    return replay(Key(seed, step, part))


def position():
    return _now.key


def next_key():
    """The key of the next dropout, or None outside `at`."""
    key = _now.key
    if key is not None:
        _now.key = replace(key, site=key.site + 1)
    return key
