"""Arrays that are made once and kept: a folder for each thing, named after all it depends on.

    arrays, about = kept(folder, "phrases", key, make)

`make(writer)` is called when there is no such folder yet, or a damaged one. It may write arrays
larger than memory, piece by piece; what comes back is mapped, not read. The folder appears under
its name when it is whole, so one who is interrupted leaves nothing that could be mistaken for it.
"""
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np

from ..error import Error
from ..files import shown


class Writer:
    """Writes the arrays of one folder, and notes for its about.json."""

    def __init__(self, folder):
        self.folder, self.files, self.notes = folder, {}, {}

    def append(self, name, array):
        """Rows more of an array; it grows along its first axis."""
        array = np.ascontiguousarray(array)
        if name not in self.files:
            file = open(self.folder / f"{name}.bin", "wb")
            self.files[name] = [file, array.dtype.str, [0, *array.shape[1:]], 0]
        entry = self.files[name]
        file, dtype, shape, crc = entry
        data = array.astype(dtype, copy=False).reshape(-1).view(np.uint8)
        file.write(data)
        shape[0] += len(array)
        entry[3] = zlib.crc32(data, crc)

    def note(self, **notes):
        self.notes.update(notes)

    def texts(self, name, words):
        """A list of texts without line breaks, as the file NAME.txt's lines."""
        data = "".join(f"{word}\n" for word in words).encode("utf-8", "replace")
        self.append(f"{name}.txt", np.frombuffer(data, np.uint8))

    def close(self):
        table = {}
        for name, (file, dtype, shape, crc) in self.files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            table[name] = dict(dtype=dtype, shape=shape, crc=crc)
        about = json.dumps(dict(arrays=table, notes=self.notes), indent=1)
        with open(self.folder / "about.json", "w", encoding="utf-8") as file:
            file.write(about)
            file.flush()
            os.fsync(file.fileno())

    def abandon(self):
        for file, *_ in self.files.values():
            file.close()


def kept(folder, what, key, make):
    """-> ({name: mapped array}, notes), made by make(Writer) unless it was kept"""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder).absolute() / f"{what}-{digest}"
    found = opened(path)
    if found is not None:
        return found
    work = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
    try:
        work.mkdir(parents=True)
        writer = Writer(work)
        try:
            make(writer)
            writer.close()
        finally:
            writer.abandon()
        replace(work, path)
    except OSError as e:
        raise Error(f"cannot write {shown(path)} ({e.strerror or e}); free some space or choose "
                    "another folder with TINYBERT_CACHE") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = opened(path)
    if found is None:
        raise Error(f"{shown(path)} was damaged while it was written; check the disk")
    return found


def replace(work, path):
    """Put a finished folder in its place; a damaged one there steps aside and is deleted."""
    if path.exists() and opened(path) is not None:      # another process was as quick
        return
    if path.exists():
        os.rename(path, work.with_name(work.name + "-old"))
        shutil.rmtree(work.with_name(work.name + "-old"), ignore_errors=True)
    try:
        os.rename(work, path)
    except OSError:
        if opened(path) is None:
            raise


def opened(path):
    """What a folder holds; None where there is none, or one that is not as it was written."""
    try:
        about = json.loads((path / "about.json").read_text("utf-8"))
        arrays = {}
        for name, entry in about["arrays"].items():
            dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
            if 0 in shape:                              # an empty file cannot be mapped
                array = np.zeros(shape, dtype)
            else:
                array = np.memmap(path / f"{name}.bin", dtype, "r", shape=shape)
            if (path / f"{name}.bin").stat().st_size != array.nbytes:
                return None
            if zlib.crc32(array.reshape(-1).view(np.uint8)) != entry["crc"]:
                return None
            arrays[name] = array
        return arrays, about["notes"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def lines_of(array):
    """The list that Writer.texts wrote"""
    return array.tobytes().decode("utf-8", "replace").split("\n")[:-1]
