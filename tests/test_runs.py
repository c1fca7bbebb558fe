"""What runs.py promises: a run may die at any moment, and what it finds on its return is whole.

The disk of these tests stands in for the module os. It counts every operation that changes
something and can be told to die before the nth, or inside it when it is a write. After that nothing
works any more, as in a process that is gone. A power cut takes more: bytes not yet forced to the
disk are lost, and so may be names whose folder was not synced."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tinybert_family import files, runs
from tinybert_family.error import Error
from tinybert_family.runs import Checkpoints, Lock, Log, read_lines

ROOT = Path(__file__).resolve().parent.parent
CHANGES = ["open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "ftruncate"]
DEATHS = ["killed", "killed inside", "power cut", "power cut, names lost"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Forcing bytes to a real disk is slow, and nobody cuts this machine's power meanwhile."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Dead(BaseException):
    """Nobody in the code under test may catch it."""


class Disk:
    """The module os, but mortal. `fail` is an errno: then the nth operation only fails, once."""

    def __init__(self, death, stop, fail=None):
        self.death, self.stop, self.fail = death, stop, fail
        self.count, self.dead, self.past = 0, False, []
        self.loose = {}             # inode -> bytes that are safe, of files not wholly synced
        self.names = []             # (inode of the folder, how to undo) of names not synced

    def __getattr__(self, name):
        return partial(self.change, name) if name in CHANGES else getattr(os, name)

    def change(self, name, *args, **more):
        if self.dead:
            raise Dead
        self.count, self.past = self.count + 1, self.past + [name]
        if self.count == self.stop:
            if self.fail:
                raise OSError(self.fail, os.strerror(self.fail))
            self.dead = True
            if name == "write" and self.death != "killed":
                os.write(args[0], memoryview(args[1])[:memoryview(args[1]).nbytes // 2])
            raise Dead
        return getattr(self, "_" + name, partial(self.plain, name))(*args, **more)

    def plain(self, name, *args, **more):
        return getattr(os, name)(*args, **more)

    def _open(self, path, flags, mode=0o777):
        new = not os.path.exists(path)
        descriptor = os.open(path, flags, mode)
        if new:
            self.loose[os.fstat(descriptor).st_ino] = 0
            self.remember(path, lambda: os.unlink(path))
        return descriptor

    def _mkdir(self, path):
        os.mkdir(path)
        self.remember(path, lambda: shutil.rmtree(path))

    def _write(self, descriptor, data):
        self.loose.setdefault(os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size)
        return os.write(descriptor, data)

    def _fsync(self, descriptor):
        inode = os.fstat(descriptor).st_ino
        self.loose.pop(inode, None)
        self.names = [row for row in self.names if row[0] != inode]

    def _rename(self, old, new):
        hidden = Path(new).read_bytes() if os.path.isfile(new) else None

        def undo():
            os.rename(new, old)
            if hidden is not None:
                Path(new).write_bytes(hidden)
        os.replace(old, new)
        self.remember(new, undo)

    _replace = _rename

    def remember(self, path, undo):
        self.names.append((os.stat(Path(path).parent).st_ino, undo))

    def lose(self, folder):
        """What a power cut takes. Deletions count as durable at once, which is their worst case."""
        if self.death == "power cut, names lost":
            for _, undo in reversed(self.names):
                undo()
        if self.death.startswith("power cut"):
            for path in Path(folder).rglob("*"):
                if path.is_file() and path.stat().st_ino in self.loose:
                    os.truncate(path, self.loose[path.stat().st_ino])


def dying(tmp_path, monkeypatch, death, before, act):
    """Yield a folder for every n at which `act(folder)`, begun in the state that `before(folder)`
    made, can die; and whether it lived to its end."""
    (tmp_path / "start").mkdir()
    before(tmp_path / "start")
    for n in range(1, 1000):
        folder = tmp_path / f"run{n}"
        shutil.copytree(tmp_path / "start", folder)
        disk = Disk(death, n)
        with monkeypatch.context() as m:
            m.setattr(files, "os", disk)
            m.setattr(runs, "os", disk)
            try:
                act(folder)
            except Dead:
                pass
        disk.lose(folder)
        yield folder, not disk.dead
        shutil.rmtree(folder)
        if not disk.dead:
            assert n > 3
            return
    raise AssertionError("it never came to its end")


def arrays(step):
    rng = np.random.default_rng(step)
    return {"model": {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4).astype(np.float32)},
            "optimizer": {"m": rng.normal(size=16), "count": np.array(step)}}


def state(step):
    return {"step": step, "rng": [2**64 - 1, step], "loss": 0.1 * step, "name": "é"}


def save(folder, step, seed=None):
    seed = step if seed is None else seed
    return Checkpoints(folder).save(step, arrays(seed), state(seed))


def found(folder):
    """(step, seed) of the newest checkpoint, once every bit of it is compared; None if none is."""
    newest = Checkpoints(folder).newest()
    if newest is None:
        return None
    step, parts, kept = newest
    expected = arrays(kept["step"])
    assert kept == state(kept["step"]) and parts.keys() == expected.keys()
    for part, tensors in expected.items():
        assert parts[part].keys() == tensors.keys()
        for name, x in tensors.items():
            assert parts[part][name].dtype == x.dtype and np.array_equal(parts[part][name], x)
    return step, kept["step"]


def steps(folder):
    return sorted(os.listdir(folder))


# --- checkpoints ---------------------------------------------------------------------------------

def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    path = save(tmp_path / "a" / "b", 500)
    assert path == tmp_path / "a" / "b" / "step-00000500"
    assert steps(path) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert found(tmp_path / "a" / "b") == (500, 500)


def test_there_is_none_before_the_first(tmp_path):
    assert Checkpoints(tmp_path / "absent").newest() is None and found(tmp_path) is None


def test_the_last_two_are_kept_however_many_digits_the_step_has(tmp_path):
    for step in (1, 2, 99_999_999, 100_000_000):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step-100000000", "step-99999999"]
    assert found(tmp_path) == (100_000_000, 100_000_000)


def test_a_step_saved_again_is_replaced(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    save(tmp_path, 2, seed=7)
    assert found(tmp_path) == (2, 7) and steps(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_step_saved_again_after_its_folder_was_set_aside_is_replaced(tmp_path):
    shutil.copytree(save(tmp_path, 2), tmp_path / "step-00000002.old")
    save(tmp_path, 2, seed=7)
    assert found(tmp_path) == (2, 7) and steps(tmp_path) == ["step-00000002"]


def test_what_lies_beyond_the_step_of_a_resumed_run_is_dropped(tmp_path):
    save(tmp_path, 400)
    save(tmp_path, 500)
    save(tmp_path, 450)
    assert found(tmp_path) == (450, 450) and steps(tmp_path) == ["step-00000400", "step-00000450"]


def test_arrays_of_an_old_checkpoint_outlive_it(tmp_path):
    save(tmp_path, 1)
    _, parts, kept = Checkpoints(tmp_path).newest()
    for step in (2, 3, 4):
        Checkpoints(tmp_path).save(step, parts, kept)
    assert Checkpoints(tmp_path).newest()[0] == 4 and found(tmp_path) == (4, 1)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "longer", "empty", "a folder"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, capsys, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    raw = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        flipped = raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:]
        made = {"flip": flipped, "cut": raw[:-1], "longer": raw + b"x", "empty": b""}
        path.write_bytes(made[damage])
    assert found(tmp_path) == (1, 1)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.count("\n") == 1 and str(path) in warning


def test_every_flipped_bit_of_the_state_is_noticed(tmp_path):
    path = save(tmp_path, 1) / "state.json"
    raw = path.read_bytes()
    good = json.loads(raw)
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << at % 7)]) + raw[at + 1:])
        try:
            Checkpoints(tmp_path).newest()
        except Error as e:
            assert "no checkpoint is whole" in str(e)
        else:                       # only white space between the parts may change unnoticed
            assert json.loads(path.read_bytes()) == good


def test_a_checkpoint_under_another_step_s_name_is_not_used(tmp_path):
    save(tmp_path, 1).rename(tmp_path / "step-00000009")
    with pytest.raises(Error, match="no checkpoint is whole"):
        Checkpoints(tmp_path).newest()


def test_after_a_fall_back_two_whole_checkpoints_are_kept_again(tmp_path, capsys):
    for step in (400, 500):
        save(tmp_path, step)
    (tmp_path / "step-00000500" / "model.safetensors").write_bytes(b"")
    assert found(tmp_path) == (400, 400)
    save(tmp_path, 500)                                     # over the damaged one
    capsys.readouterr()
    assert found(tmp_path) == (500, 500) and capsys.readouterr().err == ""
    assert steps(tmp_path) == ["step-00000400", "step-00000500"]


@pytest.mark.parametrize("bad", [float("nan"), [float("inf")], {"n": 10**200}, "\ud800"])
def test_a_state_that_could_not_be_read_back_is_refused_when_saved(tmp_path, bad):
    save(tmp_path, 1)
    with pytest.raises(Error):
        Checkpoints(tmp_path).save(2, {}, {"x": bad})
    assert steps(tmp_path) == ["step-00000001"]


def test_a_state_with_numbers_for_keys_keeps_its_seal(tmp_path):
    Checkpoints(tmp_path).save(1, {}, {"x": {9: 1, 10: 2}, "t": (1, 2)})
    assert Checkpoints(tmp_path).newest() == (1, {}, {"x": {"9": 1, "10": 2}, "t": [1, 2]})


def test_other_names_in_the_folder_are_left_alone(tmp_path):
    for name in ("step-1", "step-00000001.bak", "notes"):
        (tmp_path / name).mkdir()
    for step in (2, 3, 4):
        save(tmp_path, step)
    assert {"step-1", "step-00000001.bak", "notes"} < set(steps(tmp_path))


# --- death ---------------------------------------------------------------------------------------

SCENES = {
    "the first": ([], (1, 1)),
    "the third": ([(1, 1), (2, 2)], (3, 3)),
    "the same step": ([(1, 1), (2, 2)], (2, 7)),
    "the same step, alone": ([(2, 2)], (2, 7)),
    "an earlier step": ([(1, 1), (2, 2)], (1, 7)),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("scene", SCENES)
def test_a_run_that_dies_while_saving_finds_the_old_or_the_new_whole(
        tmp_path, monkeypatch, capsys, scene, death):
    earlier, (step, seed) = SCENES[scene]
    old = earlier[-1] if earlier else None
    seen = []
    for run, alive in dying(tmp_path, monkeypatch, death,
                            before=lambda run: [save(run / "checkpoints", *row) for row in earlier],
                            act=lambda run: save(run / "checkpoints", step, seed)):
        folder = run / "checkpoints"
        seen.append(found(folder))
        assert seen[-1] == (step, seed) if alive else seen[-1] in (old, (step, seed))
        assert capsys.readouterr().err == ""        # nothing damaged bears a checkpoint's name
        save(folder, 8)
        assert found(folder) == (8, 8)
        assert len(steps(folder)) <= 2 and all(name.startswith("step-") for name in steps(folder))
    assert old in seen and len(seen) > 15


def test_a_run_that_dies_twice_while_saving_one_step_finds_it_whole(tmp_path, monkeypatch):
    """The old one of that step was set aside by the first death; the second must not lose it."""
    def before(folder):
        save(folder, 2)
        (folder / "step-00000002").rename(folder / "step-00000002.old")

    for death in DEATHS:
        (tmp_path / death).mkdir()
        for folder, alive in dying(tmp_path / death, monkeypatch, death, before,
                                   act=lambda folder: save(folder, 2, seed=7)):
            assert found(folder) in ([(2, 7)] if alive else [(2, 2), (2, 7)])


def test_the_old_goes_only_after_the_new_is_durable(tmp_path, monkeypatch):
    """Said once more in the order of operations: nothing is deleted before the parent is synced."""
    for step in (1, 2):
        save(tmp_path, step)
    disk = Disk("killed", None)
    monkeypatch.setattr(files, "os", disk)
    monkeypatch.setattr(runs, "os", disk)
    save(tmp_path, 3)
    rename = disk.past.index("rename")
    assert disk.past[rename - 1] == "fsync" and disk.past[rename + 2] == "fsync"
    assert disk.past[:rename + 3].count("fsync") == 5 and "unlink" not in disk.past[:rename + 3]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_operation_that_fails_is_one_error_and_no_damage(tmp_path, monkeypatch, code):
    failed = 0
    for n in range(1, 1000):
        folder = tmp_path / str(n)
        for step in (1, 2):
            save(folder, step)
        disk = Disk("killed", n, fail=code)
        with monkeypatch.context() as m:
            m.setattr(files, "os", disk)
            m.setattr(runs, "os", disk)
            try:
                save(folder, 3)
            except Error as e:
                failed += 1
                assert str(e).isprintable()
                assert str(folder) in str(e) and os.strerror(code) in str(e)
        assert found(folder) in [(2, 2), (3, 3)]
        if "rename" not in disk.past:
            assert steps(folder) == ["step-00000001", "step-00000002"]      # nothing left half done
        if disk.count < n:
            break
    assert failed == n - 1 > 15


@pytest.mark.parametrize("death", DEATHS)
def test_a_process_that_dies_in_replacing_a_file_leaves_old_or_new(tmp_path, monkeypatch, death):
    old, new = b"old" * 1000, [b"n" * 700, b"ew"]
    seen = []
    for folder, alive in dying(tmp_path, monkeypatch, death,
                               before=lambda folder: (folder / "x").write_bytes(old),
                               act=lambda folder: files.write_atomically(folder / "x", iter(new))):
        seen.append((folder / "x").read_bytes())
        assert seen[-1] in ([b"".join(new)] if alive else [old, b"".join(new)])
        files.sweep(folder)
        assert steps(folder) == ["x"]
    assert old in seen


def test_the_dying_disk_would_notice_a_missing_sync(tmp_path, monkeypatch):
    """The harness itself: without fsync a power cut must be seen to lose the bytes or the name."""
    for forgotten, death, lost in [("write_synced", "power cut", b""),
                                   ("sync_folder", "power cut, names lost", b"old")]:
        (tmp_path / forgotten).mkdir()
        with monkeypatch.context() as m:
            if forgotten == "sync_folder":
                m.setattr(files, "sync_folder", lambda folder: None)
            else:
                m.setattr(Disk, "_fsync", lambda disk, descriptor: None)
            seen = [(folder / "x").read_bytes() for folder, _ in dying(
                tmp_path / forgotten, monkeypatch, death,
                before=lambda folder: (folder / "x").write_bytes(b"old"),
                act=lambda folder: files.write_atomically(folder / "x", b"new"))]
        assert seen[-1] == lost


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_runs import save
for step in range(1, 10**6):
    save(sys.argv[1], step)
    print(step, flush=True)
"""


def test_a_process_killed_in_earnest_leaves_its_last_checkpoint_or_the_next(tmp_path):
    for lines in (1, 2, 5, 11):
        folder = tmp_path / str(lines)
        with subprocess.Popen([sys.executable, "-c", WRITER, folder, ROOT / "tests"], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True) as child:
            for _ in range(lines):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            last = lines + len(child.stdout.readlines())
        assert found(folder) in [(last, last), (last + 1, last + 1)]


# --- lock ----------------------------------------------------------------------------------------

def test_a_second_run_in_the_folder_is_refused_and_told_who_holds_it(tmp_path):
    with Lock(tmp_path / "run"):
        with pytest.raises(Error, match=f"in use by process {os.getpid()}; "):
            with Lock(tmp_path / "run"):
                pass
    with Lock(tmp_path / "run"):            # the refused one took nothing, the first gave it back
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    (tmp_path / ".lock").write_text("12345678901\n")       # what an older run left, and longer
    program = "import sys; from tinybert_family.runs import Lock\n" \
              "with Lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(Error, match=f"process {child.pid}; "), Lock(tmp_path):
            pass
        child.kill()
    with Lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_clears_what_a_dead_run_left(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoints"):
        files.temporary_name(folder).mkdir()
    with Lock(tmp_path):
        assert steps(tmp_path) == [".lock", "checkpoints"] and steps(tmp_path / "checkpoints") == []


def test_a_lock_refused_leaves_the_holder_s_half_done_work_alone(tmp_path):
    with Lock(tmp_path):
        busy = files.temporary_name(tmp_path)
        busy.write_bytes(b"")
        with pytest.raises(Error), Lock(tmp_path):
            pass
        assert busy.exists()


def test_a_folder_that_cannot_be_locked_is_one_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Error, match="file"), Lock(tmp_path / "file"):
        pass


# --- logs ----------------------------------------------------------------------------------------

def test_rows_come_back_in_order(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    rows = [{"step": i, "loss": 0.1 * i, "word": "é\n\u2028"} for i in range(3)]
    for row in rows:
        log.append(row)
    assert read_lines(tmp_path / "metrics.jsonl") == rows
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_a_log_that_is_not_there_has_no_rows(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    log.rewind(3)
    log.sync()
    assert read_lines(tmp_path / "metrics.jsonl") == [] and os.listdir(tmp_path) == []


def test_numpy_s_numbers_are_written_and_nan_becomes_null(tmp_path):
    Log(tmp_path / "x").append({
        "a": np.float32(0.5), "b": np.int64(3), "c": np.array([1.0, np.nan]), "d": float("inf"),
        "e": np.float64("nan"), "f": ("x", True), 7: None})
    assert read_lines(tmp_path / "x") == [
        {"a": 0.5, "b": 3, "c": [1.0, None], "d": None, "e": None, "f": ["x", True], "7": None}]


def test_rewinding_cuts_what_lies_beyond_the_step_and_keeps_the_rest_to_the_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "a": 1.50}\n{"note": 0}\n{"step":2}\n'
    path.write_text(kept + '{"step": 3}\n{"step": 2, "eval_loss": 1}\n{"step": 4')
    log = Log(path)
    log.rewind(2)
    assert path.read_text() == kept + '{"step": 2, "eval_loss": 1}\n'
    log.append({"step": 3})
    assert [row.get("step") for row in read_lines(path)] == [1, None, 2, 2, 3]


def test_a_resumed_run_s_log_equals_that_of_one_never_killed(tmp_path):
    whole = Log(tmp_path / "whole")
    for step in range(10):
        whole.append({"step": step})
    raw = (tmp_path / "whole").read_bytes()
    for cut in range(raw.index(b'{"step": 3'), len(raw)):   # killed here, the last checkpoint at 2
        (tmp_path / "killed").write_bytes(raw[:cut])
        log = Log(tmp_path / "killed")
        log.rewind(2)
        for step in range(3, 10):
            log.append({"step": step})
        assert (tmp_path / "killed").read_bytes() == raw


def test_a_half_written_last_line_is_passed_over_and_not_glued_to_the_next(tmp_path):
    path = tmp_path / "x"
    path.write_text('{"step": 1}\n{"step": 2}')             # whole but for its end
    assert read_lines(path) == [{"step": 1}]
    Log(path).append({"step": 3})
    assert read_lines(path) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("line", ["{", "3", '{"a": NaN}', '{"a": 1, "a": 1}', ""])
def test_damage_inside_a_log_is_an_error_that_names_the_line(tmp_path, line):
    (tmp_path / "x").write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(Error, match="x: line 2"):
        read_lines(tmp_path / "x")


@pytest.mark.parametrize("death", DEATHS)
def test_a_log_that_dies_while_rewound_is_whole(tmp_path, monkeypatch, death):
    lines = [b'{"step": %d}\n' % i for i in range(5)]
    for folder, alive in dying(tmp_path, monkeypatch, death,
                               before=lambda folder: (folder / "x").write_bytes(b"".join(lines)),
                               act=lambda folder: Log(folder / "x").rewind(2)):
        count = len(read_lines(folder / "x"))
        assert count == 3 if alive else count in (3, 5)


def test_a_synced_log_survives_a_power_cut(tmp_path, monkeypatch):
    for sync, rows in [(True, 2), (False, 1)]:
        path = tmp_path / str(sync) / "x"
        path.parent.mkdir()
        path.write_text('{"step": 0}\n')
        disk = Disk("power cut", None)
        with monkeypatch.context() as m:
            m.setattr(files, "os", disk)
            m.setattr(runs, "os", disk)
            log = Log(path)
            log.append({"step": 1})
            if sync:
                log.sync()
                assert disk.past.count("fsync") == 2        # the file, and its name in the folder
        disk.lose(path.parent)
        assert len(read_lines(path)) == rows


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    log = Log(tmp_path / "x")
    log.append({"step": 1})
    real, calls = os.write, []

    def full(descriptor, data):
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:4])
    with monkeypatch.context() as m:
        m.setattr(os, "write", full)
        with pytest.raises(Error, match="x: No space left on device; "):
            log.append({"step": 2})
    log.append({"step": 3})
    assert [row["step"] for row in read_lines(tmp_path / "x")] == [1, 3]
