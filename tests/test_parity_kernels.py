"""Every kernel compiles for every GPU it is meant for, with no GPU here: NVRTC alone is needed. No
register may spill to memory, and none may take more of them than its file says."""
import re
import sys
from types import SimpleNamespace

import emulated
import pytest

from tinybert_family import Error
from tinybert_family.engine import backend, compiler

FILES = sorted(path.name for path in emulated.KERNELS.glob("*.cu"))
HEADERS = {path.name: path.read_text() for path in emulated.KERNELS.glob("*.cuh")}
# Turing's tensor cores know no bf16, and its blocks have no more than 64 KB of shared memory: the
# tiles of these want 72 and more.
TURING_LACKS = "bf16"
TOO_LARGE = "disentangled.cu", "disentangled_backward.cu"
CASES = [(file, arch) for file in FILES for arch in ("sm_75", "sm_80", "sm_90", "sm_90a")
         if not (arch == "sm_75" and file in TOO_LARGE)]


@pytest.fixture(scope="module", autouse=True)
def nvrtc():
    try:
        compiler.library()
    except Error as missing:
        pytest.skip(str(missing))


def text_of(file):
    return (emulated.KERNELS / file).read_text()


def multiplies(file):
    """Does it use tensor cores, itself or in a header of its own?"""
    headers = re.findall(r'^#include "(?!prelude)(.*)"', text_of(file), re.M)
    return "mma<" in "".join(map(text_of, [file, *headers]))


@pytest.mark.parametrize("file, arch", CASES)
def test_it_compiles_and_spills_nothing(file, arch):
    allowed = emulated.instances(file)
    lacking = arch == "sm_75" and multiplies(file)
    wanted = [name for name in allowed if not (lacking and TURING_LACKS in name)]
    assert wanted
    compiled = compiler.compile(text_of(file), HEADERS, wanted, arch)
    used = compiler.usage(compiled)
    assert set(used) == set(wanted) and compiled.code[:4] == b"\x7fELF"
    spilled = {name: u.spilled for name, u in used.items() if u.spilled}
    too_many = {name: u.registers for name, u in used.items() if u.registers > allowed[name]}
    assert not spilled and not too_many


def test_a_mistake_is_told_with_its_line():
    with pytest.raises(Error, match=r"kernel.cu\(2\): error"):
        compiler.compile("#include \"prelude.cuh\"\nKERNEL(32) f() { nonsense; }", HEADERS, ["f"],
                         "sm_80")


def test_a_spill_is_seen():
    body = "\n".join(f"x[{i}] = v[{i}];" for i in range(300))
    text = ('#include "prelude.cuh"\nKERNEL(1024) f(float* x) {\nfloat v[300];\n'
            "for (int i = 0; i < 300; i++) v[i] = x[i * 1024];\n__syncthreads();\n" + body + "}")
    compiled = compiler.compile(text, HEADERS, ["f"], "sm_80")
    assert compiler.usage(compiled)["f"].spilled > 0


def test_machine_code_is_kept_and_loaded_by_cupy(tmp_path, monkeypatch):
    """With a cupy that only remembers what it was asked for."""
    monkeypatch.setenv("TINYBERT_CACHE", str(tmp_path))
    asked = []

    class Module:
        def __init__(self, path):
            asked.append(open(path, "rb").read(4))

        def get_function(self, name):
            asked.append(name)
            return lambda *args, **how: asked.append((args, how))
    device = SimpleNamespace(Device=lambda: SimpleNamespace(compute_capability="90"))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=device, RawModule=Module))
    backend.kernel.cache_clear()
    for _ in range(2):
        backend.kernel("conformance.cu", "convert<bf16>")((1,), (128,), ("x",))
    code, name, *launches = asked
    assert code == b"\x7fELF" and name.startswith("_Z") and "convert" in name
    assert launches == [(((1,), (128,), ("x",)), dict(shared_mem=0))] * 2
    backend.kernel.cache_clear()
    assert len(list((tmp_path / "kernels").iterdir())) == 2
    monkeypatch.setattr(compiler, "compile", None)          # not needed again
    backend.kernel("conformance.cu", "convert<bf16>")
    backend.kernel.cache_clear()
