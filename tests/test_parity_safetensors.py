"""Our files against those of the package `safetensors`: the same bytes out, the same arrays in, and
nothing that we take for good which the package would refuse."""
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from tinybert_family import files
from tinybert_family.error import Error

package = pytest.importorskip("safetensors.numpy", reason="needs the package safetensors")
NUMBERS = [np.dtype(code) for name, code in files.CODES.items() if name not in ("BF16", "C64")]

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
arrays = st.sampled_from(NUMBERS).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=11)   # not "__metadata__"
tensors = st.dictionaries(names, arrays, max_size=6)
# The package orders two or more entries of the metadata at random, so bytes are compared with one.
metadata = st.none() | st.dictionaries(names, names, min_size=1, max_size=1)


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in ((ours[name], theirs[name]) for name in ours))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("parity") / "model.safetensors"


@settings(max_examples=150, deadline=None)
@given(tensors=tensors, metadata=metadata)
def test_we_write_the_same_bytes(path, tensors, metadata):
    files.write_safetensors(path, tensors, metadata)
    assert path.read_bytes() == package.save(tensors, metadata)


@settings(max_examples=100, deadline=None)
@given(tensors=tensors, metadata=metadata)
def test_we_read_what_the_package_writes(path, tensors, metadata):
    package.save_file(tensors, path, metadata)
    assert same(files.read_safetensors(path), tensors)


@settings(max_examples=100, deadline=None)
@given(tensors=tensors, metadata=st.dictionaries(names, names, max_size=4))
def test_the_package_reads_what_we_write(path, tensors, metadata):
    files.write_safetensors(path, tensors, metadata)
    assert same(package.load_file(path), tensors)
    with package.safe_open(path, "np") as opened:
        assert (opened.metadata() or {}) == metadata
        header = files.safetensors_header(path)
        for name in opened.keys():
            part = opened.get_slice(name)
            assert header[name] == (part.get_dtype(), tuple(part.get_shape()))


def test_every_dtype_of_torch_is_read_as_torch_has_it(path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file
    made = {name: torch.arange(-3, 9).to(getattr(torch, name)).reshape(3, 4) for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
        "bool", "uint16", "uint32", "uint64", "complex64")}
    made["odd"] = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file(made, path)
    ours = files.read_safetensors(path)
    assert ours.keys() == made.keys() and ours["bfloat16"].dtype == np.float32
    for name, x in made.items():
        if x.dtype == torch.bfloat16:
            x = x.float()
        assert np.array_equal(ours[name], x.numpy())


def test_torch_reads_what_we_write(path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file
    rng = np.random.default_rng(0)
    made = {dtype.name: (100 * rng.random((2, 3))).astype(dtype) for dtype in NUMBERS}
    files.write_safetensors(path, made)
    assert same({name: x.numpy() for name, x in load_file(path).items()}, made)


def test_a_dtype_only_the_package_knows_is_refused_by_name(path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file
    save_file({"x": torch.zeros(2).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(Error, match="tensor 'x': dtype 'F8_E4M3' is unknown"):
        files.read_safetensors(path)


def test_of_thousands_of_damaged_files_none_is_good_to_us_and_bad_to_the_package(path):
    rng = random.Random(1)
    tensors = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bias": np.ones(3, np.float16),
        "empty": np.zeros((0, 4), np.int64),
        "flag": np.array(True),
    }
    good = package.save(tensors, {"a": "b"})
    length = struct.unpack("<Q", good[:8])[0]
    taken = 0
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(rng.choice([1, 1, 2])):
            at = rng.randrange(8, len(raw))
            new = rng.choice(["", "0", "1", "9", " ", "\0", '"', "[]", "-", "e", "."]).encode()
            raw[at:at + rng.randrange(2)] = new
        if rng.randrange(2):                # the header's length as it is after these changes
            raw[:8] = struct.pack("<Q", length + len(raw) - len(good))
        path.write_bytes(raw)
        try:
            ours = files.read_safetensors(path)
        except Error:
            continue
        taken += 1
        assert same(ours, package.load(bytes(raw)))
    assert taken > 200
