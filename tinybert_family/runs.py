"""What a run keeps on disk so that it can die at any moment and go on as if it had not:
checkpoints, a lock, and logs.

A checkpoint is a folder written under a temporary name, forced to the disk file by file, and only
then renamed to step-00000500: it is there whole or not at all. Its state.json carries the SHA-256
of every file and one of itself, so that a damaged one is noticed and the one before it used.
"""
import contextlib
import hashlib
import json
import math
import os
import re
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:             # Windows
    fcntl = None
    import msvcrt

import numpy as np

from . import files
from .error import Error

KEEP = 2
REMEDY = "nothing is half written; free some space or choose another folder"


# --- checkpoints ---------------------------------------------------------------------------------

class Checkpoints:
    """The checkpoints of one run: save() adds one and drops all but the last two, newest() finds
    the last whole one."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def save(self, step, arrays, state):
        """Write arrays ({"model": {name: array}, ...}) and state (anything JSON holds) as this
        step's checkpoint. Nothing older goes before the new one would survive a power cut."""
        final = self.folder / f"step-{step:08d}"
        temporary = files.temporary_name(self.folder)
        with files.told(final, REMEDY):
            files.make_folder(self.folder)
            files.sweep(self.folder)
            try:
                _write(temporary, step, arrays, state)
                if final.exists():      # saved twice: the first is there until the second is
                    os.rename(final, self._aside(final))
                os.rename(temporary, final)
            except BaseException:
                with contextlib.suppress(OSError):
                    files.remove(temporary)
                raise
            files.sync_folder(self.folder)
            self._prune(step)
        return final

    def newest(self):
        """(step, arrays, state) of the last whole checkpoint, its arrays mapped; None if there is
        no checkpoint at all."""
        rows = self._rows()
        for step, _, path in reversed(rows):
            try:
                return step, *_read(path, step)
            except Error as e:
                print(f"warning: passing over a damaged checkpoint: {e}", file=sys.stderr)
        if rows:
            raise Error(f"{files.shown(self.folder)}: no checkpoint is whole; start the run afresh")
        return None

    def _rows(self):
        """[(step, current, folder)] in order; what was set aside stands before its successor."""
        matches = [(re.fullmatch(r"step-(\d{8,})(\.old)?", path.name), path)
                   for path in self.folder.glob("step-*")]
        return sorted((int(m[1]), m[2] is None, path) for m, path in matches if m)

    def _aside(self, final):
        """Where the old checkpoint of the same step waits; newest() looks there too."""
        aside = final.with_suffix(".old")
        if aside.exists():              # an even older one, whose successor is long in place
            self._drop(aside)
        return aside

    def _prune(self, step):
        """Keep the last two. What lies beyond this step goes too: the run was resumed before it."""
        rows = self._rows()
        kept = [path for s, current, path in rows if current and s <= step][-KEEP:]
        for _, _, path in rows:
            if path not in kept:
                self._drop(path)

    def _drop(self, path):
        """Out of sight in one stroke, then piece by piece: no half of one ever bears the name."""
        hidden = files.temporary_name(self.folder)
        os.rename(path, hidden)
        files.sync_folder(self.folder)  # or a power cut could bring the name back, its files gone
        files.remove(hidden)


def _write(folder, step, arrays, state):
    os.mkdir(folder)
    seals = {}
    for part, tensors in arrays.items():
        path = folder / f"{part}.safetensors"
        digest = hashlib.sha256()
        files.write_synced(path, _watched(files.safetensors_parts(path.name, tensors), digest))
        seals[path.name] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    # Parsed again at once: what could not be read back is refused now, not at the resume.
    record = json.dumps({"step": step, "files": seals, "state": state}, allow_nan=False)
    record = files.parse_json(record.encode(), "the state of the run")
    record["sha256"] = _seal(record)
    files.write_synced(folder / "state.json", [json.dumps(record, indent=1).encode()])
    files.sync_folder(folder)


def _watched(parts, digest):
    """The same parts, digested as they pass."""
    for part in parts:
        digest.update(part)
        yield part


def _read(folder, step):
    """(arrays, state), after every byte has been held against its checksum."""
    path = folder / "state.json"
    record = files.read_json(path)
    if record.pop("sha256", None) != _seal(record) or record.get("step") != step:
        raise Error(f"{files.shown(path)}: its checksum or step is wrong; delete this checkpoint")
    arrays = {}
    for name, seal in record["files"].items():
        if _measure(folder / name) != seal:
            path = files.shown(folder / name)
            raise Error(f"{path}: its checksum is wrong; delete this checkpoint")
        arrays[Path(name).stem] = files.read_safetensors(folder / name)
    return arrays, record["state"]


def _measure(path):
    digest = hashlib.sha256()
    with files.told(path, "delete this checkpoint"), files.open_regular(path) as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _seal(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


# --- lock ----------------------------------------------------------------------------------------

class Lock:
    """`with Lock(folder):` keeps a second run out. The kernel holds the lock, so it goes when the
    process goes, however it goes. The file .lock stays: were it removed, two processes could each
    lock a file of that name."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __enter__(self):
        with files.told(self.folder, REMEDY):
            files.make_folder(self.folder)
            self.descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take()
            except BaseException:
                os.close(self.descriptor)
                raise
        return self

    def _take(self):
        try:
            _lock(self.descriptor)
        except (BlockingIOError, PermissionError):
            holder = os.read(self.descriptor, 20).decode("ascii", "replace").strip()
            raise Error(f"{files.shown(self.folder)}: in use by process {holder or 'unknown'}; "
                        "wait for it, stop it, or choose another folder") from None
        os.ftruncate(self.descriptor, 0)
        files.write_all(self.descriptor, b"%d\n" % os.getpid())
        for folder in (self.folder, self.folder / "checkpoints"):
            files.sweep(folder)              # alone here now, so what is half done is a dead run's

    def __exit__(self, *_):
        os.close(self.descriptor)


def _lock(descriptor):
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:                   # Windows locks bytes: take one far behind the pid, which others read
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)


# --- logs ----------------------------------------------------------------------------------------

class Log:
    """A file of JSON lines that only grows, except that a resumed run first cuts what lies beyond
    its checkpoint. Append a step's rows and sync() before saving its checkpoint: then none is lost.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._keep(lambda row: True)    # a half-written last line goes, or the next would join it

    def append(self, row):
        """One line, in the system's hands when this returns: killing the process cannot lose it."""
        line = json.dumps(_plain(row), allow_nan=False).encode() + b"\n"
        with files.told(self.path, REMEDY), open(self.path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                files.write_all(file.fileno(), line)
            except OSError:                  # a disk that filled up half-way: leave no half line
                file.truncate(size)
                raise

    def rewind(self, step):
        """Forget every row beyond this step: the run that resumes there will write them again."""
        self._keep(lambda row: row.get("step", 0) <= step)

    def sync(self):
        """On the disk when this returns: a power cut cannot lose it either."""
        if self.path.exists():
            with files.told(self.path, "check the disk"), open(self.path, "ab") as file:
                os.fsync(file.fileno())
            files.sync_folder(self.path.parent)

    def _keep(self, wanted):
        if self.path.exists():
            raw = files.read_bytes(self.path)
            kept = b"".join(line for line, row in _parsed(raw, self.path) if wanted(row))
            if kept != raw:
                files.write_atomically(self.path, kept)


def read_lines(path):
    """The rows of a log; none if it is not there. A half-written last line is passed over: its run
    was killed, or is writing at this moment."""
    return [row for _, row in _parsed(files.read_bytes(path), path)] if os.path.exists(path) else []


def _parsed(raw, path):
    """(line, row) for every line that has its end."""
    for number, line in enumerate(raw.split(b"\n")[:-1], 1):
        row = files.parse_json(line, f"{files.shown(path)}: line {number}")
        if not isinstance(row, dict):
            raise Error(f"{files.shown(path)}: line {number} is no JSON object; remove that line")
        yield line + b"\n", row


def _plain(x):
    """What JSON holds: NumPy's numbers as Python's, and null for NaN and infinity."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (np.ndarray, np.generic)):
        return _plain(x.tolist())
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
