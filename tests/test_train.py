"""train.py from outside, as a user meets it: it learns, it stops when asked, it resumes to the
same bits, and it says what is wrong in one line.
"""
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

import tinybert_family as tbf
from tinybert_family import runs
from tinybert_family.files import read_safetensors
from tinybert_family.text import toy

TRAIN = [sys.executable, str(ROOT / "train.py")]
SMALL = """--vocab 300 --width 32 --heads 2 --hidden 64 --seq 32 --tokens 256 --positions 32
           --log-every 5 --eval-every 20 --save-every 10"""
TIMES = {"seconds", "tokens_per_s"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "toy.txt"
    path.write_text("\n\n".join("\n".join(d.sentences) for d in toy.documents(200)))
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    os.environ["TINYBERT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["TINYBERT_CACHE"]


def command(text, out, options=""):
    """train.py with this text and folder; `options` as they are typed."""
    always = [*TRAIN, "bert", "--data", text, "--out", str(out)]
    return always + SMALL.split() + options.split()


def run(*args, **kwargs):
    return subprocess.run(*args, capture_output=True, text=True, timeout=300, **kwargs)


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refused(done, *words):
    """It ended with status 2 and one line, in which all these words stand."""
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def weights(folder):
    arrays = read_safetensors(folder / "model.safetensors")
    return {name: np.array(x) for name, x in arrays.items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if path.is_file() and path.name != ".lock"}


def metrics(folder):
    rows = runs.read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_it_learns_shows_what_it_learnt_and_leaves_a_folder_that_loads(text, tmp_path):
    out = tmp_path / "run"
    done = run(command(text, out, """--steps 600 --width 64 --heads 4 --hidden 128 --tokens 512
                                     --lr 4e-3 --warmup 60 --eval-every 200"""))
    assert done.returncode == 0, done.stderr
    about, rows = json.loads((out / "run.json").read_text()), metrics(out)
    floor, last = about["baseline"], [row for row in rows if "eval_loss" in row][-1]
    assert last["mlm_loss"] < floor["mlm_loss"] - 0.8
    assert last["mlm_accuracy"] > floor["mlm_accuracy"] + 0.1
    for words in "what it fills in", str(out), "[MASK]":
        assert words in done.stdout
    assert (out / "report.html").exists()
    assert runs.read_lines(out / "fillings.jsonl")
    model, tok = tbf.load(out), tbf.load_tokenizer(out)
    logits = model(**tok(["the cat [MASK] in the garden."])).logits.numpy()
    assert np.isfinite(logits).all() and logits.shape[-1] == tok.size
    assert [row["step"] for row in rows if "lr" in row] == list(range(5, 601, 5))


def test_two_runs_with_one_seed_are_equal_to_the_bit_and_another_seed_is_not(text, tmp_path):
    more = "--steps 12 --dropout 0.1 --attention-dropout 0.1"
    a, b, c = [tmp_path / name for name in "abc"]
    for folder, seed in (a, 3), (b, 3), (c, 4):
        assert run(command(text, folder, f"{more} --seed {seed}")).returncode == 0
    assert same(weights(a), weights(b)) and metrics(a) == metrics(b)
    assert not same(weights(a), weights(c))


def test_workers_and_recomputing_change_nothing_but_rounding(text, tmp_path):
    results = {}
    more = "--steps 6 --dropout 0.1 --attention-dropout 0.1 --accumulate 3"
    ways = dict(one="--workers 1", two="--workers 2", again="--recompute true")
    for name, way in ways.items():
        assert run(command(text, tmp_path / name, f"{way} {more}")).returncode == 0
        results[name] = weights(tmp_path / name)
    assert same(results["two"], results["again"]) or os.cpu_count() == 1
    for name, x in results["one"].items():
        np.testing.assert_allclose(results["two"][name], x, atol=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_and_resumed_it_ends_in_the_same_bits(text, tmp_path, seed):
    more = "--steps 300 --dropout 0.1 --accumulate 3"
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run(command(text, whole, more)).returncode == 0
    rng = np.random.default_rng(seed)
    for step in sorted(rng.integers(5, 200, 4)):
        resume = " --resume" if (torn / "run.json").exists() else ""
        child = start(command(text, torn, more + resume))
        wait_for_step(torn, step, child)
        time.sleep(rng.uniform(0, 0.1))                 # in a step, in a checkpoint, in the report
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert run(command(text, torn, more + " --resume")).returncode == 0
    assert same(weights(whole), weights(torn))
    assert metrics(whole) == metrics(torn)              # neither gap nor duplicate
    fillings = [runs.read_lines(folder / "fillings.jsonl") for folder in (whole, torn)]
    assert fillings[0] == fillings[1]


def wait_for_step(folder, step, child):
    """Until a run has logged this step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        rows = runs.read_lines(folder / "metrics.jsonl")
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.005)


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise on Windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line_a_checkpoint_and_status_128_plus_n(text, tmp_path, number):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    more = "--steps 400 --log-every 1 --eval-every 1000 --save-every 1000"
    child = start(command(text, torn, more))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(runs.read_lines(torn / "metrics.jsonl")) < 4:
        time.sleep(0.02)
    child.send_signal(number)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + number and not errors.strip()
    assert re.search(r"stopped at step \d+, saved in .*--resume", said.splitlines()[-1])
    assert run(command(text, torn, f"{more} --resume")).returncode == 0
    assert run(command(text, whole, more)).returncode == 0
    assert same(weights(whole), weights(torn)) and metrics(whole) == metrics(torn)


def test_a_second_run_in_one_folder_is_refused(text, tmp_path):
    with runs.Lock(tmp_path):
        second = run(command(text, tmp_path, "--steps 5"))
    refused(second, "error:")
    assert not (tmp_path / "run.json").exists()


def test_a_finished_folder_is_never_overwritten_and_its_settings_hold(text, tmp_path):
    assert run(command(text, tmp_path, "--steps 4")).returncode == 0
    before = contents(tmp_path)
    for more, words in (("--steps 4", "--resume"), ("--steps 9 --resume", "--steps 9"),
                        ("--steps 4 --lr 0.5 --resume", "--lr 0.5")):
        refused(run(command(text, tmp_path, more)), words)
    assert before == contents(tmp_path)


def test_resume_without_a_run_and_with_another_text_is_refused(text, tmp_path):
    refused(run(command(text, tmp_path / "none", "--resume")), "holds no run")
    other, out, more = tmp_path / "other.txt", tmp_path / "run", "--steps 2 --vocab 80"
    first = "A first sentence stands here.\n\nA second one, in a text of its own.\n\n"
    other.write_text(first * 40)
    assert run(command(str(other), out, more)).returncode == 0
    second = "Something else altogether is written here now.\n\nAnd here is more of it, too.\n\n"
    other.write_text(second * 40)
    refused(run(command(str(other), out, f"{more} --resume")), "not the text")


BAD = {
    "unknown option": ("bert --learning-rat 1", ["unknown option --learning-rat"]),
    "typo in a setting": ("bert --drop-out 0.1", ["--drop-out", "did you mean --dropout?"]),
    "unknown model": ("bart", ["bart", "bert"]),
    "a teacher for who has none": ("bert --teacher nowhere", ["--teacher", "bert", "leave it out"]),
    "knowledge for who asks none": ("bert --phrases nowhere", ["--phrases", "bert", "leave it out"]),
    "unknown size": ("bert --size huge", ["--size huge", "base", "large"]),
    "word for a number": ("bert --steps many", ["--steps", "many"]),
    "heads that do not divide": ("bert --heads 7", ["width", "7 heads", "63"]),
    "sequence beyond positions": ("bert --seq 4096", ["seq", "4096", "--positions"]),
    "unknown schedule": ("bert --schedule cosine", ["schedule", "trapezoidal"]),
    "missing corpus": ("bert --data nowhere.txt", ["nowhere.txt"]),
    "missing tokenizer": ("bert --tokenizer nowhere", ["nowhere"]),
    "GPU where there is none": ("bert --device gpu", ["--device gpu", "--device cpu"]),
}


@pytest.mark.parametrize("what", BAD)
def test_a_mistake_is_one_line_that_names_it(what, tmp_path):
    typed, words = BAD[what]
    if "gpu" in typed and os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has a GPU")
    done = run([*TRAIN, *typed.split()], cwd=tmp_path)
    refused(done, *words)
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("content, words", [
    (b"", ["empty.txt"]),
    (bytes(range(256)) * 9, ["empty.txt"]),
    (b"caf\xe9 au lait. " * 30, ["empty.txt", "--encoding"])])
def test_an_unusable_corpus_is_one_line_that_names_it(tmp_path, content, words):
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    refused(run([*TRAIN, "bert", "--data", str(path)], cwd=tmp_path), *words)


def test_a_vocabulary_too_small_and_a_folder_that_cannot_be_written(text, tmp_path):
    refused(run([*TRAIN, "bert", "--data", text, "--vocab", "12"], cwd=tmp_path), "12")
    (tmp_path / "file").write_text("")
    refused(run(command(text, tmp_path / "file" / "run")), "file")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs a limit on the size of files")
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays_whole(text, tmp_path):
    resource = pytest.importorskip("resource")
    assert run(command(text, tmp_path, "--steps 10")).returncode == 0
    before = runs.Checkpoints(tmp_path / "checkpoints").newest()[0]

    def small_files():                      # stands in for a full disk: writing beyond 20 kB fails
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    other = tmp_path / "other"
    refused(run(command(text, other, "--steps 10"), preexec_fn=small_files))
    assert runs.Checkpoints(tmp_path / "checkpoints").newest()[0] == before
    assert not list(other.glob("checkpoints/step-*"))


def test_help_lists_every_setting_with_its_meaning():
    done = run([*TRAIN, "bert", "--help"])
    assert done.returncode == 0
    assert "--attention-dropout" in done.stdout
    assert "share of the tokens to guess" in done.stdout
