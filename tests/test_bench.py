"""bench.py: what it writes is what was promised, at a scale of seconds. How fast anything is, no
test says."""
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
import bench  # noqa: E402
from tinybert_family import Error  # noqa: E402

SMOKE = ["--size", "smoke", "--repeats", "2"]
KEYS = {"section", "what", "model", "size", "lengths", "ours", "peer", "unit", "ratio", "spread"}


def run(*arguments):
    command = [sys.executable, str(ROOT / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A run of all sections without peers: (what was printed, the JSON)."""
    file = tmp_path_factory.mktemp("bench") / "numbers.json"
    result = run(*SMOKE, "--json", str(file))
    assert result.returncode == 0, result.stderr
    return result, json.loads(file.read_text())


def test_every_row_has_the_promised_columns_and_there_is_one_for_every_combination(ours):
    rows = ours[1]["rows"]
    assert all(KEYS <= set(row) for row in rows)
    keys = "section", "what", "size", "lengths", "dropout"
    models = [tuple(row[key] for key in keys) for row in rows if row["section"] != "text"]
    kinds = ("step", "train", 0.1), ("step", "train", 0.0), ("infer", "infer", 0.0)
    wanted = [(section, what, "smoke", lengths, p) for section, what, p in kinds
              for lengths in ("full", "ragged")]
    assert sorted(models) == sorted(wanted)
    assert [r["what"] for r in rows if r["section"] == "text"] == ["encode warm", "encode cold"]


def test_without_peers_there_are_our_numbers_the_floor_and_our_memory(ours):
    rows = ours[1]["rows"]
    for row in rows:
        assert row["ours"] > 0 and row["spread"] >= 0
        assert row["peer"] is row["ratio"] is row["peer_name"] is None
        if row["section"] != "text":
            assert row["floor_share"] > 0 and row["floor_gflops"] > 0
    published = [row for row in rows if row["what"] == "train" and row["dropout"] == 0.1]
    assert len(published) == 2 and all(row["ours_mb"] > 0 for row in published)


def test_the_table_has_a_line_for_every_row_and_progress_goes_elsewhere(ours):
    result, told = ours
    lines = result.stdout.splitlines()
    assert lines[1].split()[:2] == ["ratio", "+-"]
    assert len(lines[2:]) == len(told["rows"]) + len(told["notes"])
    assert "step smoke dropout 0.1 full" in result.stderr
    assert "step smoke dropout 0.1 full" not in result.stdout


def test_the_machine_is_described(ours):
    about = ours[1]["machine"]
    assert {"processor", "cores", "threads", "python", "platform", "date"} <= set(about)
    assert about["numpy"] == np.__version__


def test_missing_peers_are_told_and_our_numbers_follow(monkeypatch, capsys, tmp_path):
    for name in "torch", "transformers", "tokenizers":
        monkeypatch.setitem(sys.modules, name, None)            # what makes an import fail
    monkeypatch.setattr(bench, "child", lambda *job: dict(imports_mb=1.0, mb=2.0, seconds=3.0))
    file = tmp_path / "numbers.json"
    little = [*SMOKE, "--lengths", "full", "--dropout", "0"]
    assert bench.main([*little, "--peers", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert {row["section"] for row in told["rows"]} == {"step", "infer", "text"}
    assert all(row["peer"] is None and row["ratio"] is None for row in told["rows"])
    errors = capsys.readouterr().err
    assert errors.count("pip install '.[parity]'") == 2 and "Traceback" not in errors


def test_all_cores_are_measured_by_the_clock_on_the_wall(tmp_path):
    file = tmp_path / "numbers.json"
    result = run(*SMOKE, "--section", "step", "infer", "--threads", "all", "--dropout", "0",
                 "--lengths", "ragged", "--json", str(file))
    assert result.returncode == 0, result.stderr
    told = json.loads(file.read_text())
    assert told["machine"]["threads"] == bench.cores()
    assert len(told["rows"]) == 2 and all(row["ours"] > 0 for row in told["rows"])


def test_ratios_are_ours_over_the_peers(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    file = tmp_path / "numbers.json"
    result = run(*SMOKE, "--section", "step", "--lengths", "full", "--dropout", "0.1",
                 "--peers", "--compile-seconds", "0", "--json", str(file))
    assert result.returncode == 0, result.stderr
    told = json.loads(file.read_text())
    row, = told["rows"]
    assert row["peer_name"] == "transformers" and {"torch", "transformers"} <= set(told["machine"])
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert row["ours_mb"] > 0 and row["peer_mb"] > 0
    assert row["peer_imports_mb"] > row["ours_imports_mb"] > 0


def test_both_encoders_agree_on_every_line(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    file = tmp_path / "numbers.json"
    assert run(*SMOKE, "--section", "text", "--peers", "--json", str(file)).returncode == 0
    told = json.loads(file.read_text())
    assert " 0 of them encoded differently" in told["notes"][0]
    assert {(r["what"], r["peer_name"]) for r in told["rows"]} == {
        (f"encode {what}", peer) for what in ("cold", "warm")
        for peer in ("tokenizers", "tokenizers fast")}
    for row in told["rows"]:
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])


def test_the_peer_has_the_same_parameters():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    module, config, _ = bench.setting(bench.read_command(SMOKE), "smoke", 0.0)
    for train, heads in (True, ("mlm",)), (False, ()):
        peer = bench.Peer((torch, transformers), module, config, train, torch.get_num_threads())
        ours = module.Model(config, bench.Init(), heads).named().values()
        assert sum(p.numel() for p in peer.model.parameters()) == sum(t.size for t in ours)
        assert peer.model.config._attn_implementation == "sdpa" and peer.model.training is train


@pytest.mark.parametrize("command", [
    "--section kernels", "--size huge", "--model burt", "--threads 3", "--repeats 0",
    "--repeats x", "--micro -1", "--dropout 0.5", "--speed", "--json no/such/folder/x.json"])
def test_a_wrong_argument_is_one_line_and_status_2(command, capsys):
    assert bench.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and command.split()[0] in err
    assert err.count("\n") == 1 and not out


# ---- the parts

@pytest.mark.parametrize("size", list(bench.SIZES))
def test_a_ragged_batch_is_half_full_and_its_longest_sequence_whole(size):
    batch = bench.make_batch(bench.SIZES[size], "ragged")
    lengths = batch.mask.sum(1)
    assert lengths.max() == bench.SIZES[size].seq
    assert 0.35 < batch.mask.mean() < 0.7
    assert (batch.labels[batch.mask == 0] == -100).all() and (batch.labels >= 0).any(1).all()


@pytest.mark.parametrize("lengths", bench.LENGTHS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 64, 10 ** 6])
def test_micro_batches_are_the_whole_batch_without_its_padding(lengths, threads, tokens):
    batch = bench.make_batch(bench.SIZES["smoke"], lengths, seed=1)
    parts = bench.micro_batches(batch, tokens, threads)
    assert len(parts) >= min(threads, len(batch.ids))
    ids, labels = (np.concatenate([p[key] for p in parts]) for key in ("ids", "labels"))
    assert sorted(ids) == sorted(batch.ids[batch.mask == 1])
    assert sorted(labels) == sorted(batch.labels[batch.labels >= 0])
    for p in parts:
        lengths_here = np.diff(p["cuts"])
        assert p["cuts"][-1] == len(p["ids"]) and (np.diff(lengths_here) <= 0).all()
        assert (p["positions"][p["cuts"][:-1]] == 0).all() and len(p["asked"]) == len(p["labels"])
        assert (p["ids"][p["asked"]] == 103).all()


def test_the_floor_counts_the_products_of_a_step():
    """Against the textbook: 24 T H^2 + 4 T^2 H a layer forward, and thrice that to train."""
    config = bench.setting(bench.read_command(SMOKE), "smoke", 0.0)[1]
    tokens, width = 16, config.width
    b = dict(ids=np.zeros(tokens), cuts=np.array([0, tokens]), asked=np.arange(tokens))
    layers = config.layers * (24 * tokens * width ** 2 + 4 * tokens ** 2 * width)
    assert bench.floor_of(config, [b], False)[1] == layers
    head = 2 * tokens * width ** 2 + 2 * tokens * width * config.vocab
    assert bench.floor_of(config, [b], True)[1] == 3 * (layers + head)


def test_sides_take_turns_and_quick_ones_are_called_often():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.06)
    sides = dict(slow=slow, quick=lambda: calls.append("quick"))
    times = bench.interleave(sides, 3, time.perf_counter)
    assert {name: len(t) for name, t in times.items()} == dict(slow=3, quick=3)
    assert calls.count("slow") == 4 and calls.count("quick") > 100
    changes = [a for a, b in zip(calls, calls[1:] + [None]) if a != b]
    assert changes == ["slow", "quick"] * 4


def test_a_compiler_that_fails_or_takes_too_long_leaves_a_note_and_no_row():
    class Torch:
        class _dynamo:
            reset = staticmethod(lambda: None)

        @staticmethod
        def compile(model):
            return model

    class Peer:
        torch, model = Torch, None

        def step(self, batch, model, fused):
            return batch
    args = bench.read_command(SMOKE)
    args.compile_seconds = 0.2

    def broken():
        raise RuntimeError("no C++ compiler\nand forty lines more")
    assert bench.compiled(Peer(), "step smoke", dict(full=broken), args) == {}
    assert args.notes == ["no torch.compile for step smoke: no C++ compiler"]
    assert bench.compiled(Peer(), "step smoke", dict(full=lambda: time.sleep(5)), args) == {}
    assert "--compile-seconds" in args.notes[1]
    assert args.compile_seconds <= 0.01


def test_a_side_that_fails_in_its_own_process_is_a_note_and_the_table_goes_on(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: too big")
    monkeypatch.setattr(bench.subprocess, "run", lambda *a, **k: failed)
    args = bench.read_command(SMOKE)
    facts = dict(section="step", size="smoke", lengths="full", dropout=0.25)
    assert bench.in_processes(args, facts, peer=None) == {}
    assert args.notes == ["ours failed in a process of its own: MemoryError: too big"]
    with pytest.raises(Error):
        bench.child("ours", "full", "step", "smoke", 0.25, "bert", "1", None)
