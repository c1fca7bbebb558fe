"""The emulator itself: what it computes is right, and what is wrong in a kernel it finds."""
import os
import re
import shutil
import subprocess
import sys

import emulated
import numpy as np
import pytest
from conftest import ROOT
from emulated import MEETINGS, Meeting

from tinybert_family.engine import philox

RNG = np.random.default_rng


def run(file, name, blocks, threads, arguments, shared=0, meeting=MEETINGS[0]):
    emulated.kernel(file, name, meeting)(blocks, threads, arguments, shared)


# ---- the words of the prelude (a GPU is held to the same in conformance.py)

def test_numbers_of_16_bits_are_rounded_to_the_nearest():
    bits = RNG(0).integers(0, 2 ** 32, 8192, dtype=np.uint32)
    bits[:4096] &= 0xbfffffff                           # many in the range of f16
    x = bits.view(np.float32)
    x[:8] = [0, -0.0, 1, 65504, 65519.9, 65520, 2 ** -25, np.inf]
    for kind in "bf16", "f16":
        rounded, wide = emulated.poisoned(8192, emulated.TYPES[kind]), emulated.poisoned(8192, "f4")
        eights = emulated.poisoned(8192, emulated.TYPES[kind])
        run("conformance.cu", f"convert<{kind}>", (64,), (128,),
            (emulated.guarded(x), rounded, wide, eights, np.int32(8192)))
        with np.errstate(all="ignore"):
            expected = emulated.stored(x, kind)
        number = ~np.isnan(x)
        assert np.array_equal(rounded[number].view("u2"), expected[number].view("u2"))
        assert np.isnan(emulated.numbers(rounded)[~number]).all()
        assert np.array_equal(eights.view("u2"), rounded.view("u2"))
        assert np.array_equal(wide[number], emulated.numbers(rounded)[number])


@pytest.mark.parametrize("meeting", MEETINGS)
def test_matrices_are_dealt_to_lanes_as_the_manual_says(meeting):
    tile = RNG(1).integers(0, 2 ** 16, (16, 16), dtype=np.uint16)
    straight, turned = (emulated.poisoned((32, 4), np.uint32) for _ in range(2))
    run("conformance.cu", "matrices_of", (1,), (32,), (emulated.guarded(tile), straight, turned),
        16 * 24 * 2, meeting)
    for lane in range(32):
        g, t = lane // 4, lane % 4 * 2
        for m in range(4):
            matrix = tile[m % 2 * 8:m % 2 * 8 + 8, m // 2 * 8:m // 2 * 8 + 8]
            assert straight[lane, m] == int(matrix[g, t]) | int(matrix[g, t + 1]) << 16
            assert turned[lane, m] == int(matrix[t, g]) | int(matrix[t + 1, g]) << 16
    assert emulated.conflicts("conformance.cu")[1] == 0


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_a_product_of_a_warp(kind):
    rng = RNG(2)
    A, B = (emulated.guarded(rng.integers(-8, 9, (16, n)).astype("f4")) for n in (16, 8))
    C = emulated.poisoned((16, 8), "f4")
    run("conformance.cu", f"product<{kind}>", (1,), (32,), (A, B, C))
    assert np.array_equal(C, A @ B)


@pytest.mark.parametrize("meeting", MEETINGS)
def test_copies_land_and_leave_zeros_where_nothing_is_read(meeting):
    x = RNG(3).integers(0, 2 ** 32, (32, 4), dtype=np.uint32)
    out = emulated.poisoned((2, 32, 4), np.uint32)
    run("conformance.cu", "copies", (1,), (32,), (emulated.guarded(x), out), 1024, meeting)
    assert np.array_equal(out[1], x)
    assert np.array_equal(out[0], np.where(np.arange(32)[:, None] % 3, x, 0))


@pytest.mark.parametrize("meeting", MEETINGS)
def test_sums_over_a_warp_and_a_block(meeting):
    x = RNG(4).integers(-99, 99, 96).astype("f4")
    out = emulated.poisoned((4, 96), "f4")
    run("conformance.cu", "sums", (1,), (96,), (emulated.guarded(x), out), 128, meeting)
    warps = x.reshape(3, 32)
    assert np.array_equal(out[0].reshape(3, 32), np.repeat(warps.sum(1), 32).reshape(3, 32))
    assert np.array_equal(out[1].reshape(3, 32), np.repeat(warps.max(1), 32).reshape(3, 32))
    assert (out[2] == x.sum()).all() and (out[3] == x.max()).all()


def test_draws_are_those_of_numpy():
    run_of = emulated.guarded(np.array([12345, 67], np.uint32))
    out, powers = emulated.poisoned(160, np.uint32), emulated.poisoned(32, "f4")
    run("conformance.cu", "randoms", (1,), (32,), (run_of, np.uint32(3), np.uint32(5), out, powers))
    words = out[:128].view(np.uint8).reshape(32, 16)
    key = philox.Key(12345, 67, 3, 5)
    for row in range(32):
        rows = np.array([row])
        expected = philox.draw(np, key, rows, 16, first=16 * row * row)
        assert np.array_equal(words[row], expected[0])
    assert np.array_equal(out[128:], words[np.arange(32), np.arange(32) % 4])
    assert np.array_equal(powers, 2.0 ** np.arange(-16, 16))


# ---- what is wrong is found

PLANTED = {
    "a barrier too few": ("""
KERNEL(64) wrong(float* x, int n) {
    SHARED(s); float* mine = (float*)s;
    mine[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = mine[63 - threadIdx.x];
}""", "differs"),
    "a copy that is not waited for": ("""
KERNEL(64) wrong(float* x, int n) {
    SHARED(s); float* mine = (float*)s;
    if (threadIdx.x < 16) copy16(mine + threadIdx.x * 4, x + threadIdx.x * 4);
    commit();
    __syncthreads();
    float y = mine[63 - threadIdx.x];
    wait<0>();
    __syncthreads();
    x[threadIdx.x] = y;
}""", "differs"),
    "a barrier that some do not come to": ("""
KERNEL(64) wrong(float* x, int n) {
    if (threadIdx.x < 32) __syncthreads();
    else BARRIER(1, 64);
    x[threadIdx.x] = 0;
}""", "every thread waits"),
    "two barriers for one": ("""
KERNEL(64) wrong(float* x, int n) {
    if (threadIdx.x < 32) __syncthreads();
    else
        __syncthreads();
    x[threadIdx.x] = 0;
}""", "different barriers"),
    "a collective in a branch": ("""
KERNEL(64) wrong(float* x, int n) {
    if (threadIdx.x % 2) x[threadIdx.x] = warp_sum(1.f);
}""", "every thread waits|different collectives"),
    "an address that is not aligned": ("""
KERNEL(64) wrong(float* x, int n) {
    if (threadIdx.x == 0) store16(x, load16<float4>(x + 1));
}""", "no multiple of 16"),
    "copies left behind": ("""
KERNEL(64) wrong(float* x, int n) {
    SHARED(s);
    if (threadIdx.x == 0) copy16(s, x);
}""", "did not wait for its copies"),
    "a write beyond the end": ("""
KERNEL(64) wrong(float* x, int n) { x[threadIdx.x + 64] = 1; }""", "signal"),
    "a read beyond shared memory": ("""
KERNEL(64) wrong(float* x, int n) { SHARED(s); x[threadIdx.x] = ((float*)s)[threadIdx.x + 64]; }""",
                                    "signal"),
}
CHILD = """
import sys, emulated, numpy as np
from pathlib import Path
emulated.KERNELS = Path(sys.argv[1])
x = emulated.guarded(np.arange(64, dtype="f4"))
order, late = sys.argv[2].split()
meeting = emulated.Meeting(order, late == "True", 3)
emulated.kernel("wrong.cu", "wrong", meeting)((1,), (64,), (x, np.int32(64)), 256)
print(*x)
"""


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_wrong_in_a_kernel_is_found(what, tmp_path):
    text, expected = PLANTED[what]
    listed = "\n// instances, and the registers that each may use:\n//     wrong  40\n"
    (tmp_path / "wrong.cu").write_text('#include "prelude.cuh"\n' + text + listed)
    (tmp_path / "prelude.cuh").write_text((emulated.KERNELS / "prelude.cuh").read_text())
    told = set()
    for meeting in MEETINGS[:2]:
        args = [sys.executable, "-c", CHILD, str(tmp_path), f"{meeting.order} {meeting.late}"]
        here = dict(os.environ, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        done = subprocess.run(args, capture_output=True, text=True, env=here)
        told.add("signal" if done.returncode < 0 else done.stdout + done.stderr)
    right = " ".join(str(float(x)) for x in range(63, -1, -1))
    if expected == "differs":                   # under one order at least
        assert any(right not in x and "nan" in x for x in told), told
    else:
        assert any(re.search(expected, x) for x in told), told


def test_an_argument_of_another_kind_is_refused():
    call = emulated.kernel("conformance.cu", "sums")
    x = np.zeros(96, "f4")
    with pytest.raises(TypeError, match="wants 2 arguments, not 1"):
        call((1,), (96,), (x,))
    with pytest.raises(TypeError, match="a contiguous array is wanted"):
        call((1,), (96,), (x, np.zeros((4, 192), "f4")[:, ::2]), 128)
    with pytest.raises(TypeError, match="argument 1: int, but .*uint32.* is wanted"):
        emulated.kernel("conformance.cu", "randoms")((1,), (32,), (np.zeros(2, "u4"), 3, 3, x, x))


def test_a_launch_of_many_threads_after_one_of_few_is_right():
    for threads in 32, 128, 64:
        x = np.arange(128, dtype="f4")
        out = [emulated.poisoned(128, t) for t in (np.uint16, "f4", np.uint16)]
        run("conformance.cu", "convert<bf16>", (128 // threads,), (128,), (x, *out, np.int32(128)),
            meeting=Meeting("random", seed=threads))
        assert np.array_equal(out[1], x)


# ---- races

def watched(*arguments):
    """pytest under ThreadSanitizer, in a process of its own: (its status, what it said)."""
    library = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True)
    if not (shutil.which("setarch") and os.path.isabs(library.stdout.strip())):
        pytest.skip("ThreadSanitizer is not installed")
    here = dict(os.environ, EMULATOR_WATCHED="-fsanitize=thread", TSAN_OPTIONS="exitcode=66",
                LD_PRELOAD=library.stdout.strip(), PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    # It wants memory where it expects it: without the random offsets that the system adds.
    done = subprocess.run(["setarch", "-R", sys.executable, *arguments], capture_output=True,
                          text=True, env=here, cwd=ROOT / "tests")
    if "unexpected memory mapping" in done.stderr or "setarch: failed" in done.stderr:
        pytest.skip("ThreadSanitizer does not run here")
    return done.returncode, done.stdout + done.stderr


RACE = """
KERNEL(64) wrong(float* x, int n) {
    SHARED(s); float* mine = (float*)s;
    mine[threadIdx.x] = x[threadIdx.x];
    %s
    x[threadIdx.x] = mine[63 - threadIdx.x];
}"""


@pytest.mark.parametrize("between, races", [("__syncwarp();", True), ("__syncthreads();", False)])
def test_a_race_is_seen_whatever_the_numbers(between, races, tmp_path):
    listed = "\n// instances, and the registers that each may use:\n//     wrong  40\n"
    (tmp_path / "wrong.cu").write_text('#include "prelude.cuh"\n' + RACE % between + listed)
    status, told = watched("-c", CHILD, str(tmp_path), "forward True")
    assert ("data race" in told) == races, told[-3000:]
    assert (status == 66) == races


def test_the_words_of_the_prelude_do_not_race():
    status, told = watched("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_emulator.py", "-k",
                           "meeting2 and (copies or sums or matrices)")
    assert status == 0 and "3 passed" in told and "data race" not in told, told[-3000:]
