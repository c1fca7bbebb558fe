"""Which array library an array belongs to, and the few things NumPy and CuPy do differently.

This is the one file that may import cupy, and it does so only when a GPU is asked for:
importing cupy costs two seconds, and importing us must not. Everything above takes the
library as an argument named `xp`.
"""
import ctypes
import os
import sys
from pathlib import Path

import numpy as np

from ..error import Error


def module_of(x):
    """numpy for NumPy arrays and plain numbers, cupy for CuPy arrays."""
    return sys.modules["cupy"] if type(x).__module__.startswith("cupy") else np


def to_host(x):
    """The same values as a NumPy array."""
    return x.get() if module_of(x) is not np else np.asarray(x)


def device(name="auto"):
    """The array module for --device auto, cpu or gpu."""
    if name == "cpu" or name == "auto" and not _driver():
        return np
    if not _driver():
        raise Error("--device gpu: this machine has no CUDA driver; --device cpu works now")
    try:
        import cupy
        cupy.zeros(1)                           # the driver may still be too old for this cupy
    except Exception as problem:
        if name == "auto":
            return np
        reason = str(problem).split("\n")[0]
        raise Error(f"--device gpu: {reason}; pip install '.[cuda13]' or '.[cuda12]'") from None
    return cupy


def _driver():
    """Is there a CUDA driver? To load its library takes microseconds, to ask cupy seconds."""
    try:
        return bool(ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1"))
    except OSError:
        return False


def kernel_source(name, here=Path(__file__).resolve().parent.parent):
    """The text of a file of kernels/, which is in the package, or beside it in a checkout."""
    for folder in (here / "kernels", here.parent / "kernels"):
        if (folder / name).is_file():
            return (folder / name).read_text()
    raise Error(f"{name}: not in {here}/kernels nor {here.parent}/kernels; reinstall the package")


def row_blocks(x, size=96 * 1024):
    """Slices of the first axis small enough that a chain of elementwise steps stays in the cache.

    A GPU gets one slice: there a kernel launch is what costs.
    """
    rows = len(x)
    step = max(1, size * rows // max(1, x.nbytes)) if type(x) is np.ndarray else max(1, rows)
    return [slice(lo, lo + step) for lo in range(0, rows, step)]


def sum_rows(xp, rows, ids):
    """Sum the rows that share an id: (distinct ids, their sums). A table look-up's gradient."""
    order = xp.argsort(ids, kind="stable")
    distinct, first = xp.unique(ids[order], return_index=True)
    if len(distinct) == len(ids):
        return ids, rows
    if xp is np:
        return distinct, np.add.reduceat(rows[order], first, axis=0)
    sums = xp.zeros((len(distinct), *rows.shape[1:]), rows.dtype)
    xp.add.at(sums, xp.searchsorted(distinct, ids), rows)
    return distinct, sums
