"""How much work it is, and how long it takes.

Work is counted by listening: an array that takes part in a product of matrices tells of it. So the
count is right for layers that are shared, narrow, or see a window, and for scores that depend on
distances, without a formula for each.
"""
import functools
import math
import os
import re
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from .engine.autograd import OPS

ROUNDS, PATIENCE = 2, 8         # a line ends early after so many seconds, but not before 2 rounds


# ---- work

class Watched(np.ndarray):
    """An array that tells of the matrix products it takes part in; their results tell nothing."""
    told = []                   # (shape of the first, shape of the second, shape of the product)

    def __array_ufunc__(self, ufunc, method, *inputs, **how):
        inputs = [plain(x) for x in inputs]
        if "out" in how:
            how["out"] = tuple(map(plain, how["out"]))
        y = getattr(ufunc, method)(*inputs, **how)
        if ufunc is np.matmul and min(x.ndim for x in inputs) > 1:  # sums are products with vectors
            Watched.told.append((*[x.shape for x in inputs], y.shape))
        return y


def plain(x):
    return x.view(np.ndarray) if type(x) is Watched else x


def telling(x):
    """Arrays that tell, however they are kept."""
    if isinstance(x, np.ndarray):
        return x.view(Watched) if x.dtype.kind == "f" else x
    return type(x)(map(telling, x)) if type(x) in (tuple, list) else x


def watched(function, xp, *arrays, **static):
    """The forward or backward of an op, given arrays that tell."""
    static = {name: telling(x) for name, x in static.items()}
    return function(xp, *map(telling, arrays), **static)


def products(run):
    """(m, k, n, how many) of all products [m, k] x [k, n] of matrices that a call makes in ops,
    forward and backward."""
    before = {op.text: (op.text.forward, op.text.backward) for op in OPS.values()}
    Watched.told = []
    try:
        for pair, functions in before.items():
            pair.forward, pair.backward = (functools.partial(watched, f) for f in functions)
        run()
    finally:
        for pair, functions in before.items():
            pair.forward, pair.backward = functions
    return [(a[-2], a[-1], b[-1], math.prod(y[:-2])) for a, b, y in Watched.told]


def operations(shapes):
    return sum(2 * m * k * n * c for m, k, n, c in shapes)


# ---- time

def interleave(sides, repeats, clock):
    """{name: seconds per call, round by round}. The sides take turns, so that whatever else the
    machine does falls on all alike."""
    calls, times = {}, {name: [] for name in sides}
    for name, side in sides.items():        # warm up, and find how many calls make 50 milliseconds
        start = clock()
        side()
        once = max(1e-6, clock() - start)
        calls[name] = max(1, int(0.05 / once))
    began = time.perf_counter()
    for i in range(repeats):
        if i >= ROUNDS and time.perf_counter() - began > PATIENCE:
            break
        for name, side in sides.items():
            start = clock()
            for _ in range(calls[name]):
                side()
            times[name].append((clock() - start) / calls[name])
    return times


def spread(values):
    """Half the interquartile range over the median; below four values, half the whole range."""
    few = len(values) < 4
    low, high = (min(values), max(values)) if few else quantiles(values, n=4)[::2]
    return (high - low) / 2 / median(values)


def numbers(amount, unit, times, peer):
    """The columns of every row: amount per second on both sides, their ratio and its spread."""
    row = dict(ours=amount / median(times["ours"]), peer=None, unit=unit, ratio=None,
               spread=spread(times["ours"]), peer_name=peer)
    if peer:
        row["peer"] = amount / median(times[peer])
        row["ratio"] = row["ours"] / row["peer"]
        row["spread"] = spread([p / o for p, o in zip(times[peer], times["ours"])])
    return row


# ---- room

def resident(field):
    """MB of this process in memory, now (VmRSS) or at the most so far (VmHWM).

    Linux says so itself. Elsewhere ru_maxrss stands for both; on Linux it would remember the
    parent's peak as well.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(field + r":\s+(\d+) kB", status)[1]) / 1024
    except OSError:
        if os.name == "nt":
            return 0.0
        import resource
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)
