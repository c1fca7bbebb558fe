"""Files in and out: safetensors, JSON with limits, and the one way in which a file is replaced.

A safetensors file is eight bytes (the header's length), a JSON header (a dtype, a shape and a range
of bytes for each tensor) and then the tensors' bytes, end to end. Nothing in it can run. We map it
into memory instead of reading it: a large model opens at once, and only what is used is read. A
file from elsewhere may be damaged or hostile, so every word of the header is held against the
file's true size before a single array is made.

Writing never touches what is there: a new file under a temporary name, forced to the disk, then
renamed over the old.
"""
import contextlib
import itertools
import json
import math
import mmap
import os
import secrets
import stat
import tempfile
from pathlib import Path

import numpy as np

from .error import Error

# Widest first, as tensors lie in a file too: so each starts at a multiple of its element's size.
CODES = {"U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8", "F32": "<f4", "U32": "<u4",
         "I32": "<i4", "BF16": "<u2", "F16": "<f2", "U16": "<u2", "I16": "<i2", "I8": "|i1",
         "U8": "|u1", "BOOL": "|b1"}
ORDER = list(CODES)
DTYPES = {code: name for name, code in CODES.items() if name != "BF16"}    # read, never written

LIMIT = 100_000_000     # bytes of JSON: far above any real file, far below what exhausts a machine
DIGITS = 100            # of one integer; real tokenizer files do hold one of 31
DEPTH = 100             # of nesting
TEMPORARY = ".tinybert-tmp-"


@contextlib.contextmanager
def told(path, remedy):
    """What the operating system refuses is told in one line that names the file and what to do."""
    try:
        yield
    except Error:
        raise
    except (OSError, ValueError) as e:       # ValueError: a path with a NUL in it
        raise Error(f"{shown(path)}: {getattr(e, 'strerror', None) or e}; {remedy}") from None


def shown(path):
    """A path as it stands in a message, which must remain one line whatever the path holds."""
    text = str(path)
    return text if text.isprintable() else repr(text)


# --- reading -------------------------------------------------------------------------------------

def open_regular(path):
    """A regular file, open for reading. A FIFO would keep us waiting; a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Error(f"{shown(path)}: not a regular file; give the path of a file")
    return open(path, "rb")


def read_bytes(path, limit=None):
    with told(path, "check the path"), open_regular(path) as file:
        raw = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(raw) > limit:
        raise Error(f"{shown(path)}: more than {limit} bytes; is it the right file?")
    return raw


def read_text(path):
    raw = read_bytes(path, LIMIT)
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise Error(f"{shown(path)}: line {line} is not UTF-8 (byte 0x{raw[e.start]:02x}); "
                    "is this a text file?") from None


def read_json(path):
    """A JSON file whose top level is an object, as a dict."""
    value = parse_json(read_bytes(path, LIMIT), shown(path))
    if not isinstance(value, dict):
        raise Error(f"{shown(path)}: holds no JSON object; is it the right file?")
    return value


def parse_json(raw, where):
    """Strict JSON. Python's parser takes NaN, keeps the last of two equal keys, turns 1e999 into
    infinity and a lone surrogate into text that cannot be written again; all these are refused."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse,
                           parse_int=_integer, parse_float=_finite)
        _check_depth(value)
        if b"\\u" in raw:                                   # the only way in for a lone surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise Error(f"{where}: JSON nested too deeply; the file is damaged or hostile") from None
    except ValueError as e:                                 # covers bad UTF-8 and bad JSON too
        raise Error(f"{where}: not valid JSON ({e}); fix it or fetch it again") from None
    return value


def _unique(pairs):
    value = dict(pairs)
    if len(value) < len(pairs):
        seen = set()
        key = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"key {key!r:.80} appears twice")
    return value


def _refuse(word):
    raise ValueError(f"{word} is not a JSON number")


def _integer(text):
    if len(text) > DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return -0.0 if text == "-0" else int(text)      # -0 is no whole number, as other parsers agree


def _finite(text):
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is too large a number")
    return value


def _check_depth(value):
    """Level by level, without recursion. (The parser's own limit differs between Pythons.)"""
    level, depth = [[value]], -1             # the outermost list is ours
    while level:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"nested more than {DEPTH} deep")
        children = (box.values() if isinstance(box, dict) else box for box in level)
        level = [x for x in itertools.chain.from_iterable(children) if isinstance(x, (dict, list))]


# --- safetensors ---------------------------------------------------------------------------------

def safetensors_header(path):
    """{name: (dtype, shape)}, for example ("F32", (30522, 128)); no tensor's bytes are touched."""
    with told(path, "check the path"), open_regular(path) as file:
        table, _ = _read_header(file, shown(path))
    return {name: (dtype, shape) for name, (dtype, shape, _) in table.items()}


def read_safetensors(path):
    """{name: array}, read-only views of the mapped file. bfloat16, which NumPy lacks, is copied to
    float32."""
    with told(path, "check the path"), open_regular(path) as file:
        table, start = _read_header(file, shown(path))
        # The map lives as long as a view of it does, whatever becomes of the file's name.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, (dtype, shape, begin) in table.items():
        x = np.ndarray(shape, CODES[dtype], buffer=mapped, offset=start + begin)
        tensors[name] = widen(x) if dtype == "BF16" else x
    return tensors


def widen(x):
    """bfloat16 is the upper half of a float32: shift its bits up."""
    bits = x.astype(np.uint32)
    bits <<= 16
    y = bits.view(np.float32)
    y.flags.writeable = False
    return y


def _read_header(file, where):
    """({name: (dtype, shape, begin)}, where the tensors' bytes start), everything in it checked."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise Error(f"{where}: too short for its header, or no safetensors file; fetch it again")
    if length > LIMIT:
        raise Error(f"{where}: a header of {length} bytes, above {LIMIT}; fetch it again")
    header = parse_json(file.read(length), f"{where}: header")
    if not isinstance(header, dict):
        raise Error(f"{where}: the header is no JSON object; fetch the file again")
    _check_metadata(header.pop("__metadata__", None), where)

    table = {}
    for name, entry in header.items():
        table[name] = _check_entry(entry, f"{where}: tensor {name!r:.80}")
    _check_places(table, size - 8 - length, where)
    return {name: entry[:3] for name, entry in table.items()}, 8 + length


def _check_places(table, size, where):
    """In order of place, each tensor must begin where the one before ended and the last end with
    the file: so there is no overlap, no hole and nothing left over."""
    place = 0
    for name, (_, _, begin, end) in sorted(table.items(), key=lambda item: item[1][2:]):
        if begin != place:
            raise Error(f"{where}: tensor {name!r:.80} begins at byte {begin}, not at {place}; "
                        "fetch the file again")
        if end > size:
            raise Error(f"{where}: cut off inside tensor {name!r:.80}; fetch the file again")
        place = end
    if place != size:
        raise Error(f"{where}: {size - place} bytes belong to no tensor; fetch the file again")


def _check_metadata(metadata, where):
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(map(_is_text, itertools.chain(*metadata.items()))):
        raise Error(f"{where}: __metadata__ must map text to text; correct it")


def _is_text(x):
    return isinstance(x, str)


def _check_entry(entry, where):
    """One tensor's (dtype, shape, begin, end), which agree with one another."""
    if not isinstance(entry, dict):
        raise Error(f"{where}: no JSON object describes it; fetch the file again")
    dtype, shape, offsets = map(entry.get, ("dtype", "shape", "data_offsets"))
    if not _is_text(dtype) or dtype not in CODES:
        raise Error(f"{where}: dtype {dtype!r:.40} is unknown; convert it to F32")
    if not _are_counts(shape) or len(shape) > 64:              # 64 is NumPy's own limit
        raise Error(f"{where}: shape must be at most 64 whole numbers; fetch the file again")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise Error(f"{where}: data_offsets must be two whole numbers; fetch the file again")

    width = np.dtype(CODES[dtype]).itemsize
    # NumPy multiplies the sizes in 64 bits, zeros left out; nothing larger may reach it.
    if width * math.prod(d or 1 for d in shape) >= 2**63:
        raise Error(f"{where}: shape {shape!r:.60} is larger than any file; fetch it again")
    begin, end = offsets
    if end - begin != width * math.prod(shape):
        raise Error(f"{where}: {dtype} {shape!r:.60} does not fill bytes {begin} to {end}; "
                    "fetch the file again")
    return dtype, tuple(shape), begin, end


def _are_counts(x):
    """Whole numbers in the strict sense: to Python True is one as well."""
    return isinstance(x, list) and all(type(n) is int and 0 <= n < 2**64 for n in x)


def write_safetensors(path, tensors, metadata={"format": "pt"}):
    """Replace the file at path by these arrays, atomically; the same arrays give the same bytes.
    They may be views of the very file that is replaced: its bytes live on while a view does."""
    write_atomically(path, safetensors_parts(shown(path), tensors, metadata))


def safetensors_parts(where, tensors, metadata={"format": "pt"}):
    """The buffers that make up the file, in order; an array is laid in C order at its turn."""
    header = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    _check_metadata(metadata, where)
    rows = [(ORDER.index(_dtype_name(where, name, x)), name, x) for name, x in tensors.items()]
    rows.sort(key=lambda row: row[:2])
    place = 0
    for rank, name, x in rows:
        span = [place, place + x.nbytes]
        header[name] = {"dtype": ORDER[rank], "shape": list(x.shape), "data_offsets": span}
        place += x.nbytes
    try:
        head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise Error(f"{where}: a name holds a lone surrogate; rename that tensor") from None
    head += b" " * (-len(head) % 8)                       # the tensors begin at a multiple of eight
    if len(head) > LIMIT:
        raise Error(f"{where}: too many tensors for one header; write several files")
    return itertools.chain([len(head).to_bytes(8, "little"), head], (_bytes(x) for *_, x in rows))


def _dtype_name(where, name, x):
    if not isinstance(name, str) or name == "__metadata__":
        raise Error(f"{where}: {name!r:.80} cannot be a tensor's name; rename it")
    dtype = getattr(x, "dtype", None)
    code = dtype.newbyteorder("<").str if isinstance(x, (np.ndarray, np.generic)) else None
    if code not in DTYPES:
        raise Error(f"{where}: tensor {name!r:.80} is {dtype or type(x).__name__}, unknown to "
                    "safetensors; make it an array of numbers")
    return DTYPES[code]


def _bytes(x):
    """An array's bytes, little-endian and in C order; not copied when they lie so already."""
    x = np.asarray(x, x.dtype.newbyteorder("<"), order="C")
    return x.reshape(-1).view(np.uint8)


# --- writing -------------------------------------------------------------------------------------

def write_atomically(path, data):
    """Replace the file at path by data: bytes, or an iterable of them for what is made piece by
    piece. Whatever happens, a kill or a power cut, path holds the old bytes or the new, whole."""
    path = Path(path)
    temporary = temporary_name(path.parent)
    with told(path, "nothing is half written; free some space or choose another folder"):
        try:
            write_synced(temporary, [data] if isinstance(data, (bytes, bytearray)) else data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def temporary_name(folder):
    """A name that no other process chooses, and that sweep() will know should this one die."""
    return Path(folder) / f"{TEMPORARY}{secrets.token_hex(8)}"


def write_synced(path, parts):
    """A new file, every byte of it on the disk (not merely on its way) when this returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        for part in parts:
            write_all(descriptor, part)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor, part):
    """The system may take less than it is given (at most 2 GiB), so ask until all is taken."""
    rest = memoryview(part)
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest):]


def sync_folder(folder):
    """Names live in the folder, itself a file; until it is synced a power cut undoes renames."""
    if os.name == "nt":                                        # Windows does not open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder):
    """The folder and those above it, each entered durably in its parent."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        sync_folder(folder.parent)


def make_writable(folder, what="folder"):
    """Make a folder, or say in one line why nothing can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
        reason = "not writable"
    except OSError as problem:
        reason = problem.strerror
    raise Error(f"{what} {shown(folder)}: {reason}; choose a folder that can be written")


def remove(path):
    """A file, or a folder with all it holds."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            remove(child)
        os.rmdir(path)
    else:
        os.unlink(path)


def sweep(folder):
    """Remove what dead processes left half done; for whoever alone writes to this folder."""
    for path in Path(folder).glob(TEMPORARY + "*"):
        remove(path)


# ---- what is made once

def cache_folder():
    """Where what is made once is kept: $TINYBERT_CACHE, or else the user's cache, or else /tmp."""
    own, cache = os.environ.get("TINYBERT_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    shared = [Path(root, "tinybert_family") for root in (cache, tempfile.gettempdir())]
    for folder in [Path(own)] if own else shared:
        try:
            folder = folder.expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
        except (OSError, RuntimeError):             # RuntimeError: a user without a home
            pass
    raise Error(f"{own or shared[0]} cannot be written; set TINYBERT_CACHE to a folder that can")
