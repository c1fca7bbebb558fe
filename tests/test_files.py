"""What files.py promises: a good file comes back bit for bit, a bad one is refused in one line, and
what is replaced is replaced whole. (Death in mid-write is in test_runs.py.)"""
import errno
import json
import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from tinybert_family import files
from tinybert_family.error import Error

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.ones(3, np.float16),
    "empty": np.zeros((0, 4), np.int64),
    "flag": np.array(True),
}
NUMBERS = [np.dtype(code) for name, code in files.CODES.items() if name != "BF16"]


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def refused(call, *words):
    """The call raises Error, whose message is one line and holds the words."""
    with pytest.raises(Error) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500, message
    for word in words:
        assert str(word) in message, message


def pack(header, data=b""):
    """A safetensors file by hand; the header a dict, or text to be taken as it is."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bad(shape, begin, end, size=4, dtype="F32", **others):
    """A file whose tensor x is described so, with `size` bytes of data."""
    return pack({**others, "x": entry(shape, begin, end, dtype)}, bytes(size))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# --- round trips ---------------------------------------------------------------------------------

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
arrays = st.sampled_from(NUMBERS).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=11)   # not "__metadata__"


@settings(max_examples=100, deadline=None)
@given(tensors=st.dictionaries(names, arrays, max_size=6), metadata=st.dictionaries(names, names))
def test_what_is_written_is_read_bit_for_bit(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    files.write_safetensors(path, tensors, metadata)
    back, header = files.read_safetensors(path), files.safetensors_header(path)
    assert back.keys() == header.keys() == tensors.keys()
    assert all(same(back[name], x) for name, x in tensors.items())
    assert all(header[name][1] == x.shape for name, x in tensors.items())


def test_every_layout_of_memory_gives_the_same_bytes(path):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    twisted = [
        np.asfortranarray(x),
        np.repeat(x, 2, 1)[:, ::2],
        x[::-1].copy()[::-1],
        x.astype(">f4"),
    ]
    files.write_safetensors(path, {"x": x})
    expected = path.read_bytes()
    for y in twisted:
        files.write_safetensors(path, {"x": y})
        assert path.read_bytes() == expected


def test_the_order_of_names_and_metadata_does_not_change_the_bytes(path):
    files.write_safetensors(path, SMALL, {"x": "1", "y": "2"})
    once = path.read_bytes()
    backwards = dict(reversed(SMALL.items()))
    files.write_safetensors(path, backwards, {"y": "2", "x": "1"})
    assert path.read_bytes() == once


def test_arrays_are_read_only_views_of_the_mapped_file(path):
    files.write_safetensors(path, {"x": np.zeros((1000, 1000), np.float32)})
    x = files.read_safetensors(path)["x"]
    assert not x.flags.owndata and not x.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 1


def test_tensors_begin_at_multiples_of_their_element_size(path):
    files.write_safetensors(path, {f"{d}": np.zeros(3, d) for d in NUMBERS})
    assert all(x.flags.aligned for x in files.read_safetensors(path).values())


def test_bfloat16_is_widened_exactly(path):
    bits = np.arange(2**16, dtype="<u2")                              # every bfloat16 there is
    path.write_bytes(pack({"x": entry([2**16], 0, 2**17, "BF16")}, bits.tobytes()))
    x = files.read_safetensors(path)["x"]
    assert x.dtype == np.float32 and not x.flags.writeable
    assert np.array_equal(x.view(np.uint32), bits.astype(np.uint32) * 65536)
    values = {0x3F80: 1.0, 0xC040: -3.0, 0x7F80: np.inf, 0x0001: 2.0**-133}    # worked by hand
    assert all(x[at] == value for at, value in values.items())


def test_a_bfloat16_without_dimensions_or_elements_keeps_its_shape(path):
    a, b = entry([], 0, 2, "BF16"), entry([0, 3], 2, 2, "BF16")
    path.write_bytes(pack({"a": a, "b": b}, b"\x80\x3f"))
    back = files.read_safetensors(path)
    assert back["a"].shape == () and back["a"] == 1
    assert back["b"].shape == (0, 3)


def test_a_file_may_be_saved_over_while_it_is_mapped(path):
    x = np.arange(5000.0)
    files.write_safetensors(path, {"x": x, **SMALL})
    before = path.read_bytes()
    tensors = files.read_safetensors(path)
    files.write_safetensors(path, tensors)
    assert path.read_bytes() == before
    assert same(tensors["x"], x)


def test_no_metadata_and_no_tensors_are_fine(path):
    files.write_safetensors(path, {}, None)
    assert path.read_bytes() == pack(b"{}      ") and files.read_safetensors(path) == {}


def test_the_header_is_read_without_touching_the_tensors(path):
    path.write_bytes(pack({"x": entry([2**40], 0, 2**42)}))
    os.truncate(path, path.stat().st_size + 2**42)                    # a hole of 4 TiB
    assert files.safetensors_header(path) == {"x": ("F32", (2**40,))}


# --- refusals ------------------------------------------------------------------------------------

X = json.dumps(entry([1], 0, 4)).encode()
BAD = {
    "empty file": b"",
    "cut in the length": b"\x08\0\0",
    "header longer than the file": struct.pack("<Q", 100) + b"{}",
    "header of 2**64 - 1 bytes": b"\xff" * 8 + b"{}",
    "no header": pack(b""),
    "not JSON": pack(b"{]"),
    "two documents": pack(b"{}{}"),
    "not UTF-8": pack(b'{"\xff": 1}'),
    "byte order mark": pack(b"\xef\xbb\xbf{}"),
    "a list": pack(b"[]"),
    "NaN": pack(b'{"x": NaN}'),
    "minus infinity": pack(b'{"x": -Infinity}'),
    "1e999": pack(b'{"x": 1e999}'),
    "5,000 digits": pack(b'{"x": ' + b"9" * 5000 + b"}"),
    "100,000 brackets": pack(b"[" * 100_000),
    "100,000 closed brackets": pack(b"[" * 100_000 + b"]" * 100_000),
    "200 objects": pack(b'{"x":' * 200 + b"1" + b"}" * 200),
    "lone surrogate": pack(b'{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'),
    "duplicate tensor": pack(b'{"x":%b,"x":%b}' % (X, X), b"0000"),
    "duplicate field": pack(b'{"x":' + X[:-1] + b',"dtype":"F32"}}', b"0000"),
    "metadata no object": pack({"__metadata__": []}),
    "metadata holds a number": pack({"__metadata__": {"a": 1}}),
    "tail": pack({"x": entry([1], 0, 4)}, b"00000"),
    "tail without tensors": pack(b"{}", b"0"),
}
BAD_TENSORS = {
    "no object": pack({"x": [1]}),
    "no dtype": bad([1], 0, 4, dtype=None),
    "unknown dtype": bad([1], 0, 4, dtype="F128"),
    "dtype a list": bad([1], 0, 4, dtype=["F32"]),
    "no shape": bad(None, 0, 4),
    "shape a number": bad(1, 0, 4),
    "negative size": bad([-1], 0, 4),
    "two negative sizes": bad([-1, -1], 0, 4),
    "float size": bad([1.0], 0, 4),
    "true as a size": bad([True], 0, 4),
    "65 dimensions": bad([1] * 65, 0, 4),
    "size of 90 digits": bad([10**90], 0, 4),
    "product past 2**64": bad([2**32, 2**32], 0, 0, size=0),
    "product of 2**63, and zero": bad([0, 2**61], 0, 0, size=0),
    "product past 2**64, and zero": bad([0, 2**62, 2**62], 0, 0, size=0),
    "larger than the file": bad([2**40], 0, 2**42),
    "no offsets": pack({"x": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "float offset": bad([1], 0.0, 4),
    "offsets backwards": bad([1], 4, 0),
    "negative offset": bad([1], -4, 0),
    "too few bytes": bad([2], 0, 4),
    "too many bytes": bad([1], 0, 8, size=8),
    "hole in front": bad([1], 4, 8, size=8),
    "hole between": bad([1], 8, 12, size=12, a=entry([1], 0, 4)),
    "overlap": bad([2], 4, 12, size=12, a=entry([2], 0, 8)),
    "twice the same bytes": bad([1], 0, 4, a=entry([1], 0, 4)),
    "empty tensor inside another": bad([0], 2, 2, a=entry([1], 0, 4)),
    "empty tensor past the end": bad([0], 9, 9, a=entry([1], 0, 4)),
    "cut": bad([2], 0, 8),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_refused_in_one_line_that_names_it(path, what):
    path.write_bytes(BAD[what])
    refused(lambda: files.read_safetensors(path), path)
    refused(lambda: files.safetensors_header(path), path)


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_bad_tensor_is_refused_in_one_line_that_names_file_and_tensor(path, what):
    path.write_bytes(BAD_TENSORS[what])
    refused(lambda: files.read_safetensors(path), path, "tensor 'x'")


def test_a_name_of_several_lines_is_told_in_one(path):
    path.write_bytes(pack({"a\nb" + "c" * 10_000: entry([1], 0, 4)}, b""))
    refused(lambda: files.read_safetensors(path), r"'a\nb")


def test_a_header_over_the_limit_is_refused_unread(path, monkeypatch):
    path.write_bytes(struct.pack("<Q", files.LIMIT + 1))
    os.truncate(path, files.LIMIT + 100)
    monkeypatch.setattr(files, "parse_json", None)
    refused(lambda: files.read_safetensors(path), path, "header of 100000001 bytes")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("fifo", ".", "/dev/zero", "loop", "absent", "nul\0", "line\nbreak", "long" * 99):
        for read in (files.read_safetensors, files.safetensors_header, files.read_json):
            refused(lambda: read(tmp_path / name))


def right_or_refused(path):
    """Read the file; what comes must be exactly as large as the header says, or else one Error."""
    try:
        tensors = files.read_safetensors(path)
    except Error as e:
        assert str(path) in str(e) and str(e).isprintable()
        return False
    start = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    for name, (dtype, shape) in files.safetensors_header(path).items():
        assert tensors[name].shape == shape
        start += tensors[name].nbytes // (2 if dtype == "BF16" else 1)
    assert start == path.stat().st_size
    return True


def mutate(rng, raw):
    """A few bytes changed, cut, doubled or put in; mostly within the header, where it matters."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        end = rng.choice([8, 300, len(raw)])
        at = rng.randrange(max(1, min(end, len(raw))))
        kind = rng.randrange(5)
        if kind == 0:
            raw[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            raw[at:at + 1] = rng.choice(b'0123456789-.eE[]{},:"\\ ').to_bytes(1, "little")
        elif kind == 2:
            del raw[at:at + rng.choice([1, 1, 8, 1000])]
        elif kind == 3:
            raw[at:at] = raw[at:at + rng.choice([1, 8, 60])]
        else:
            raw[at:at] = rng.choice([b"\0", b"9" * 20, b"[", b"null", b"\xff\xfe", b'"x":'])
    return bytes(raw)


def test_thousands_of_damaged_files_are_right_or_refused(path):
    rng = random.Random(0)
    files.write_safetensors(path, SMALL)
    good = path.read_bytes()
    verdicts = []
    for _ in range(4000):
        path.write_bytes(mutate(rng, good))
        verdicts.append(right_or_refused(path))
    assert 50 < sum(verdicts) < 2000                      # both halves of the promise were tried


text = st.text(max_size=5)
plain = st.none() | st.booleans() | st.integers() | st.floats() | text
json_like = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8)
large = st.sampled_from([-1, 2**31, 2**62, 2**64, 10**30])
count = st.integers(0, 8) | large | json_like
entries = st.fixed_dictionaries({
    "dtype": st.sampled_from(list(files.CODES)) | json_like,
    "shape": st.lists(count, max_size=3) | json_like,
    "data_offsets": st.lists(count, min_size=2, max_size=2) | json_like}) | json_like
headers = st.dictionaries(st.sampled_from(["x", "y", "__metadata__"]), entries)


@settings(max_examples=300, deadline=None)
@given(header=headers, data=st.binary(max_size=16))
def test_any_header_is_right_or_refused(tmp_path_factory, header, data):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(pack(header, data))
    right_or_refused(path)


# --- JSON ----------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(value=st.dictionaries(names, json_like))
def test_json_is_read_as_python_reads_it_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    try:
        assert files.read_json(path) == value
    except Error as e:
        assert str(path) in str(e) and str(e).isprintable()
        assert any(word in path.read_text() for word in ("NaN", "Infinity", "\\u"))


def test_real_oddities_of_published_files_are_read(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"max": 1000000000000000019884624838656, "eps": 1e-12, "\\ud83d\\ude00": 0}')
    assert files.read_json(path) == {"max": int(1e30), "eps": 1e-12, "\U0001F600": 0}


@pytest.mark.parametrize("text, why", [
    ('{"num_labels": 1, "num_labels": 2}', "'num_labels' appears twice"), ('{"eps": NaN}', "NaN"),
    ('{"a": ' * 50_000, "JSON"), ('{"a": ' + "1" * 4301 + "}", "4301 digits"), ('{"a": 1', "JSON"),
    ('{"a": 1e400}', "too large"), ('{"a": "\\udc00"}', "surrogates"), ("[]", "no JSON object"),
    ("", "JSON")])
def test_bad_json_is_refused_with_the_reason(tmp_path, text, why):
    (tmp_path / "config.json").write_text(text)
    refused(lambda: files.read_json(tmp_path / "config.json"), tmp_path / "config.json", why)


def test_nesting_is_refused_at_the_same_depth_everywhere(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text('{"x":' * 99 + "[]" + "}" * 99)
    assert files.read_json(path)
    path.write_text('{"x":' * 100 + "[]" + "}" * 100)
    refused(lambda: files.read_json(path), "more than 100 deep")


def test_json_over_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 10)
    (tmp_path / "a.json").write_text('{"a": 12}')
    assert files.read_json(tmp_path / "a.json") == {"a": 12}
    (tmp_path / "a.json").write_text('{"a": 1234}')
    refused(lambda: files.read_json(tmp_path / "a.json"), "more than 10 bytes")


# --- writing -------------------------------------------------------------------------------------

@pytest.mark.parametrize("tensors", [
    {"x": np.array([object()])},
    {"x": np.array(["a"])},
    {"x": np.zeros(1, "c16")},
    {"x": [1.0]},
    {3: np.zeros(1)},
    {"__metadata__": np.zeros(1)},
    {"\ud800": np.zeros(1)},
])
def test_what_a_file_cannot_hold_is_refused_and_the_old_file_kept(path, tensors):
    path.write_bytes(b"old")
    refused(lambda: files.write_safetensors(path, tensors), path)
    assert os.listdir(path.parent) == [path.name] and path.read_bytes() == b"old"


def test_metadata_other_than_text_is_refused(path):
    refused(lambda: files.write_safetensors(path, {}, {"step": 1}), path)


def test_a_temporary_file_never_takes_over_another(path):
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        files.write_synced(path, [b"new"])
    assert path.read_bytes() == b"old"


def test_an_iterable_is_written_piece_by_piece(tmp_path):
    files.write_atomically(tmp_path / "x", (bytes([i]) * i for i in range(4)))
    assert (tmp_path / "x").read_bytes() == b"\1\2\2\3\3\3"


def test_a_new_file_has_the_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_atomically(tmp_path / "x", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("broken", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_a_refusal_of_the_system_is_an_error_and_the_old_file_stays(
        path, monkeypatch, broken, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))
    path.write_bytes(b"old")
    with monkeypatch.context() as m:
        m.setattr(os, broken, refuse)
        refused(lambda: files.write_atomically(path, b"new"), path, os.strerror(code))
    assert os.listdir(path.parent) == [path.name] and path.read_bytes() == b"old"


def test_a_write_that_takes_only_part_is_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    files.write_atomically(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_disk_that_is_truly_full_leaves_the_old_file(tmp_path):
    """The kernel's own refusal, in a process that may write no more than 100,000 bytes a file."""
    path = tmp_path / "model.safetensors"
    files.write_safetensors(path, {"x": np.ones(10)})
    before = path.read_bytes()
    program = ("import sys, numpy as np; from tinybert_family import files, error\n"
               "try: files.write_safetensors(sys.argv[1], {'x': np.ones(10**6)})\n"
               "except error.Error as e: print(e)")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, preexec_fn=limit,
                          capture_output=True, text=True)
    assert done.stdout.startswith(f"{path}: File too large; ") and not done.stderr
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_a_folder_that_is_missing_or_none_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in ("absent", "file"):
        refused(lambda: files.write_safetensors(tmp_path / folder / "x", {}), tmp_path / folder)
    (tmp_path / "folder").mkdir()
    refused(lambda: files.write_atomically(tmp_path / "folder", b""), tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_folder_without_permission_is_an_error(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the super-user may write anywhere")
    (tmp_path / "x").mkdir(0o555)
    refused(lambda: files.write_atomically(tmp_path / "x" / "y", b""), "Permission denied")


def test_an_interrupt_leaves_no_temporary_file(tmp_path):
    def parts():
        yield b"half"
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "x", parts())
    assert os.listdir(tmp_path) == []


def test_sweeping_removes_temporary_names_and_nothing_else(tmp_path):
    folder = files.temporary_name(tmp_path)
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "x").write_bytes(b"")
    (folder / "link").symlink_to(tmp_path / "kept")
    files.temporary_name(tmp_path).write_bytes(b"")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["kept"] and os.listdir(tmp_path / "kept") == ["file"]
