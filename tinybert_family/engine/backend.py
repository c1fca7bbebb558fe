"""Which array library an array belongs to, and the few things NumPy and CuPy do differently.

This is the one file that may import cupy, and it does so only when a GPU is asked for:
importing cupy costs two seconds, and importing us must not. Everything above takes the
library as an argument named `xp`.
"""
import ctypes
import functools
import hashlib
import os
import sys
from pathlib import Path

import numpy as np

from ..error import Error
from ..files import cache_folder, write_atomically
from . import compiler


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


# ---- kernels

def kernel_folder(here=Path(__file__).resolve().parent.parent):
    """kernels/: in the package, or beside it in a checkout."""
    for folder in (here / "kernels", here.parent / "kernels"):
        if (folder / "prelude.cuh").is_file():
            return folder
    raise Error(f"kernels: not in {here} nor {here.parent}; reinstall the package")


def architecture(capability):
    """What to compile for: of Hopper also what later cards have no more."""
    return f"sm_{capability}a" if capability == "90" else f"sm_{capability}"


def compiled(file, name, arch):
    """(path of the machine code of one instance of a kernel, its name in there), kept from run to
    run for as long as the text is the same."""
    folder = kernel_folder()
    text = (folder / file).read_text()
    headers = {path.name: path.read_text() for path in sorted(folder.glob("*.cuh"))}
    key = hashlib.sha256("\0".join([text, *headers.values(), name, arch]).encode()).hexdigest()[:20]
    place = cache_folder() / "kernels"
    place.mkdir(exist_ok=True)
    code, lowered = place / f"{key}.cubin", place / f"{key}.name"
    if not (code.exists() and lowered.exists()):
        made = compiler.compile(text, headers, [name], arch)
        write_atomically(code, made.code)
        write_atomically(lowered, made.names[name].encode())
    return code, lowered.read_text()


@functools.lru_cache(None)
def kernel(file, name):
    """An instance of a kernel of kernels/: call it with (blocks, threads, arguments, shared)."""
    cupy = sys.modules["cupy"]
    arch = architecture(cupy.cuda.Device().compute_capability)
    path, lowered = compiled(file, name, arch)
    function = cupy.RawModule(path=str(path)).get_function(lowered)

    def launch(blocks, threads, arguments, shared=0):
        if shared > 48 * 1024:                  # more has to be asked for
            function.max_dynamic_shared_size_bytes = shared
        function(blocks, threads, arguments, shared_mem=shared)
    return launch


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
