"""CUDA text to machine code, by NVRTC: NVIDIA's compiler as a library.

It needs neither a GPU nor a driver nor CUDA's headers, and is a package of its own
(nvidia-cuda-nvrtc, which cupy's [ctk] brings). cupy would compile too, but only where there is a
GPU, and it keeps what ptxas says of registers to itself.
"""
import ctypes
import functools
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from ..error import Error

FLAGS = ["--std=c++17", "--ptxas-options=-v", "-default-device"]


@functools.lru_cache(None)
def library():
    """libnvrtc: of the package, or where the system looks for libraries."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations if found else ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True):
            # It asks for its other half by name alone, so that has to be there already.
            for half in path.parent.glob("libnvrtc-builtins.so*"):
                ctypes.CDLL(str(half), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
    for name in "libnvrtc.so.13", "libnvrtc.so.12":
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Error("kernels cannot be compiled: NVRTC is not installed; pip install '.[cuda13]' or "
                "'.[cuda12]'")


class Compiled(NamedTuple):
    code: bytes                         # a cubin
    names: dict                         # {name expression: its name in there}
    log: str


class Program:
    """One call of NVRTC, with what it says when it fails."""

    def __init__(self, text, headers):
        self.handle = ctypes.c_void_p()
        names = [name.encode() for name in headers]
        texts = [header.encode() for header in headers.values()]
        count = len(headers)
        self.call("CreateProgram", text.encode(), b"kernel.cu", count,
                  (ctypes.c_char_p * count)(*texts), (ctypes.c_char_p * count)(*names))

    def call(self, what, *args):
        handle = ctypes.byref(self.handle) if what in ("CreateProgram", "DestroyProgram") \
            else self.handle
        problem = getattr(library(), f"nvrtc{what}")(handle, *args)
        if problem:
            told = self.bytes("ProgramLog").decode() if what == "CompileProgram" else ""
            raise Error(f"NVRTC, {what}: error {problem} {told}".strip())

    def bytes(self, what):
        size = ctypes.c_size_t()
        self.call(f"Get{what}Size", ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"Get{what}", buffer)
        return buffer.raw

    def lowered(self, expression):
        name = ctypes.c_char_p()
        self.call("GetLoweredName", expression.encode(), ctypes.byref(name))
        return name.value.decode()


def compile(text, headers, expressions, arch):
    """text and headers {name: text}; expressions like "norm<bf16,4>"; arch like "sm_90a"."""
    program = Program(text, headers)
    try:
        for expression in expressions:
            program.call("AddNameExpression", expression.encode())
        flags = [flag.encode() for flag in (f"-arch={arch}", *FLAGS)]
        program.call("CompileProgram", len(flags), (ctypes.c_char_p * len(flags))(*flags))
        names = {expression: program.lowered(expression) for expression in expressions}
        log = program.bytes("ProgramLog").rstrip(b"\0").decode()
        return Compiled(program.bytes("CUBIN"), names, log)
    finally:
        program.call("DestroyProgram")


class Usage(NamedTuple):
    """What a kernel takes of a multiprocessor."""
    registers: int                      # for each thread
    spilled: int                        # bytes of registers that went to memory instead
    shared: int                         # bytes, besides those that a launch asks for


def usage(compiled):
    """{name expression: Usage}, as ptxas reports it."""
    found, spilled, name = {}, 0, None
    for line in compiled.log.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)'", line):
            name, spilled = entry[1], 0
        elif spills := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(spills[1]) + int(spills[2])
        elif registers := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] = Usage(int(registers[1]), spilled, int(shared[1]) if shared else 0)
    return {expression: found[name] for expression, name in compiled.names.items()}
