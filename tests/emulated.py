"""Run the kernels of kernels/ on a CPU: g++ compiles them against tests/emulator.

    add = emulated.kernel("file.cu", "add<bf16>")
    add((blocks,), (threads,), (x, y, np.int32(n)), shared=bytes)

as CuPy's kernels are called, but on NumPy arrays. Arrays of 16-bit numbers are uint16 (bf16) or
float16. `Meeting` says in which order threads run and when asynchronous copies land; a right kernel
gives the same under every one of MEETINGS. guarded() makes an array that ends where memory ends.
"""
import ctypes
import functools
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT

KERNELS, HERE = ROOT / "kernels", ROOT / "tests" / "emulator"
CACHE = Path(tempfile.gettempdir()) / f"emulator-{os.getuid()}"
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-DEMULATED",
         "-Wall", "-Wno-unknown-pragmas", "-Wno-unused", f"-I{HERE}", f"-I{KERNELS}"]
# What a run under ThreadSanitizer adds: see test_emulator.py.
WATCHED = os.environ.get("EMULATOR_WATCHED", "").split()
KINDS = dict(f=np.float32, i=np.int32, u=np.uint32)


class Meeting(NamedTuple):
    order: str = "forward"              # of the threads in a block: forward, backward, random
    late: bool = True                   # copies land when they are waited for, not at once
    seed: int = 0


MEETINGS = [Meeting(), Meeting("backward", False), Meeting("random", True, 1),
            Meeting("random", False, 2)]


class Options(ctypes.Structure):
    _fields_ = [("order", ctypes.c_int), ("late", ctypes.c_int), ("seed", ctypes.c_uint)]


# ---- building

def build(name, source, flags):
    """Compile C++ text, unless that has been done before. -> the file."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    headers = b"".join(path.read_bytes() for path in (*sorted(HERE.iterdir()),
                                                      *sorted(KERNELS.glob("*.cuh"))))
    key = hashlib.sha256(headers + source.encode() + " ".join(flags).encode()).hexdigest()[:20]
    path = CACHE / f"{key}-{name}"
    if not path.exists():
        CACHE.mkdir(exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            text, made = Path(folder) / "kernel.cpp", Path(folder) / name
            text.write_text(source)
            done = subprocess.run(["g++", *flags, str(text), "-o", str(made)], capture_output=True,
                                  text=True)
            assert not done.returncode, done.stderr
            made.rename(path)
    return path


def instances(file):
    """{name expression: registers it may use} that a file of kernels/ lists at its end."""
    text = (KERNELS / file).read_text()
    _, found, listed = text.partition("\n// instances, and the registers that each may use:\n")
    assert found, f"{file} lists no instances"
    rows = re.findall(r"^//     (\S.*?) +(\d+)$", listed, re.M)
    assert len(rows) == len(listed.strip().splitlines()), f"{file}: a line of its list is odd"
    return {name: int(registers) for name, registers in rows}


@functools.lru_cache(None)
def library(file, names):
    """Instances of a file of kernels/, each as two functions that C can call."""
    watched = ["-DWATCHED"] if WATCHED else []
    runtime = build("runtime.o", (HERE / "runtime.cpp").read_text(), [*FLAGS, *watched, "-c"])
    exports = (f"EXPORT({i}, {name})" for i, name in enumerate(names))
    text = f'#line 1 "{file}"\n{(KERNELS / file).read_text()}\n' + "\n".join(exports) + "\n"
    return ctypes.CDLL(str(build("kernels.so", text, [*FLAGS, *WATCHED, "-shared", str(runtime)])))


def built(file, name):
    """(the library that an instance is in, its number there). All of a file are built at once, but
    one by one where they are watched: that takes longer, and few are."""
    names = tuple(instances(file))
    assert name in names, f"{file} does not list {name}"
    names = (name,) if WATCHED else names
    return library(file, names), names.index(name)


# ---- calling

def kernel(file, name, meeting=MEETINGS[0]):
    """An instance of a kernel, to be called as said above."""
    found, number = built(file, name)
    launch = getattr(found, f"launch_{number}")
    launch.restype = ctypes.c_char_p
    buffer = ctypes.create_string_buffer(256)
    getattr(found, f"kinds_{number}")(buffer)
    kinds = buffer.value.decode()
    order = ("forward", "backward", "random").index(meeting.order)
    options = Options(order, meeting.late, meeting.seed)

    def call(blocks, threads, arguments, shared=0):
        if len(arguments) != len(kinds):
            raise TypeError(f"{name} wants {len(kinds)} arguments, not {len(arguments)}")
        held = [as_c(f"{name}, argument {i}", a, kind)
                for i, (a, kind) in enumerate(zip(arguments, kinds))]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
        problem = launch(three(blocks), three(threads), ctypes.c_size_t(shared), pointers,
                         ctypes.byref(options))
        if problem:
            raise RuntimeError(f"{name}: {problem.decode()}")
    return call


def as_c(what, value, kind):
    """An argument as C has it. CuPy would take any number and pass it on as it is; we do not."""
    if kind == "p":
        if value is None:
            return ctypes.c_void_p(None)
        if not (isinstance(value, np.ndarray) and value.flags.c_contiguous):
            raise TypeError(f"{what}: a contiguous array is wanted")
        return ctypes.c_void_p(value.ctypes.data)
    if type(value) is not KINDS.get(kind):
        raise TypeError(f"{what}: {type(value).__name__}, but {KINDS.get(kind)} is wanted")
    return (ctypes.c_char * value.itemsize).from_buffer_copy(value.tobytes())


def three(counts):
    return (ctypes.c_uint * 3)(*(*counts, 1, 1, 1)[:3])


def conflicts(file):
    """(reads of eight rows by ldmatrix, waits for banks of memory in them) since last asked."""
    out = (ctypes.c_long * 2)()
    library(file, tuple(instances(file))).statistics(out)
    return tuple(out)


# ---- arrays

_kept = []                              # memory that is never unmapped


def guarded(x):
    """A copy of x whose end is the end of memory: to read or write beyond it ends the process."""
    x = np.asarray(x)
    libc, size = ctypes.CDLL(None, use_errno=True), -(-x.nbytes // 16) * 16
    pages = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    _kept.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    assert libc.mprotect(base + pages, mmap.PAGESIZE, 0) == 0
    y = np.frombuffer(memory, x.dtype, x.size, pages - size).reshape(x.shape)
    y[...] = x
    return y


def poisoned(shape, dtype):
    """An array to be written: full of NaN, and guarded."""
    x = guarded(np.empty(shape, dtype))
    x.view(np.uint8)[...] = 0xff
    return x


TYPES = dict(float=np.float32, bf16=np.uint16, f16=np.float16)


def stored(x, kind):
    """Numbers as a kernel for `kind` (float, bf16, f16) wants them in memory, guarded."""
    if kind != "bf16":
        return guarded(np.asarray(x, TYPES[kind]))
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return guarded(((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16))


def numbers(x):
    """What such memory says, as float64."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


# How far the rounding of a type may move a number, relative to its size.
ROUNDING = dict(float=2.0 ** -24, bf16=2.0 ** -8, f16=2.0 ** -11)
