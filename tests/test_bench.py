"""bench.py: what it writes is what was promised, at a scale of seconds. How fast anything is, no
test says."""
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
import bench  # noqa: E402
from tinybert_family import Error, checkpoint, measuring  # noqa: E402
from tinybert_family.engine.autograd import OPS  # noqa: E402
from tinybert_family.text import tokenizer_files  # noqa: E402
from tinybert_family.text.wordpiece import SPECIAL, WordPiece  # noqa: E402

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
    models = [tuple(row[key] for key in keys) for row in rows if "dropout" in row]
    kinds = ("step", "train", 0.1), ("step", "train", 0.0), ("infer", "infer", 0.0)
    wanted = [(section, what, "smoke", lengths, p) for section, what, p in kinds
              for lengths in ("full", "ragged")]
    assert sorted(models) == sorted(wanted)
    text = [(row["model"], row["what"]) for row in rows if row["section"] == "text"]
    assert text == [(name, "data") for name in checkpoint.MODELS] + [
        (kind, what) for kind in ("wordpiece", "bpe", "unigram")
        for what in ("learn", "encode warm", "encode cold")]


def test_without_peers_there_are_our_numbers_the_floor_and_our_memory(ours):
    rows = [row for row in ours[1]["rows"] if row["section"] != "family"]
    for row in [row for row in rows if row["what"] == "data"]:
        assert row["ratio"] == row["ours"] / row["peer"] and row["unit"] == "tokens/s"
        assert (row["peer_name"], row["size"]) == ("goal", "32") and row["spread"] >= 0
        assert row["peer"] == (500_000 if row["model"] in bench.feeding.WHOLE else 1_500_000)
    rows = [row for row in rows if row["what"] != "data"]
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
    headings = [i for i, line in enumerate(lines) if line.split()[:2] == ["ratio", "+-"]]
    assert headings == [1, 2 + sum(row["section"] != "family" for row in told["rows"])]
    assert len(lines) == 1 + len(headings) + len(told["rows"]) + len(told["notes"])
    assert "step bert smoke dropout 0.1 full" in result.stderr
    assert "step bert smoke dropout 0.1 full" not in result.stdout


def test_the_family_has_a_line_for_every_model_beside_bert_and_two_for_long_inputs(ours):
    rows = [row for row in ours[1]["rows"] if row["section"] == "family"]
    long = {("modernbert", 32, "bert"), ("modernbert", 128, "at 32 tokens")}
    every = {(name, 32, "bert") for name in checkpoint.MODELS}
    assert {(row["model"], row["seq"], row["peer_name"]) for row in rows} == every | long
    assert len(rows) == len(checkpoint.MODELS) + 2
    parameters = {row["model"]: row["parameters"] for row in rows}
    for row in rows:
        assert (row["what"], row["size"], row["lengths"]) == ("infer", "smoke", "full")
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"]) and row["spread"] >= 0
        bert = parameters["bert" if row["peer_name"] == "bert" else row["model"]]
        assert row["smaller"] == bert / row["parameters"]
        assert "said_faster" not in row                     # papers speak of the published sizes
    flops = {(row["model"], row["seq"]): row["flops"] for row in rows}
    # 2 layers of 64: all but attention is 24 H^2 a token, and each key of 32 takes 4 H
    layers = checkpoint.variant("distilbert", "test").SIZES["smoke"].layers
    each = 24 * 64 ** 2 + 4 * 32 * 64
    assert (flops["bert", 32], flops["distilbert", 32]) == (2 * each, layers * each)
    assert flops["modernbert", 128] > flops["modernbert", 32]


def test_what_papers_claim_is_told_of_models_that_exist():
    assert set(bench.CLAIMS) - {"long"} <= set(checkpoint.MODELS)
    shown = {key for _, _, key, _ in bench.FAMILY}
    for claim in bench.CLAIMS.values():
        assert set(claim) <= shown and claim["said_faster"] > 0
    assert bench.LONG["base"][1] <= checkpoint.variant("modernbert", "test").SIZES["base"].positions


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
    little += ["--section", "step", "infer", "text"]
    assert bench.main([*little, "--peers", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert {row["section"] for row in told["rows"]} == {"step", "infer", "text"}
    # the data of objectives stands beside its goal, not beside a peer
    rows = [row for row in told["rows"] if row["what"] != "data"]
    assert rows and all(row["peer"] is None and row["ratio"] is None for row in rows)
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


def notes_of(told):
    """{kind of tokenizer: the notes that speak of it}"""
    return {kind: [note for note in told["notes"] if note.startswith(f"text: {kind},")]
            for kind in ("WordPiece", "BPE", "Unigram")}


def test_encoders_agree_on_every_line_and_vocabularies_suit_other_text_alike(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    file = tmp_path / "numbers.json"
    result = run(*SMOKE, "--section", "text", "--peers", "--json", str(file))
    assert result.returncode == 0, result.stderr
    told = json.loads(file.read_text())
    wanted = set()
    for kind, (fits, same) in notes_of(told).items():
        assert " 0 of them encoded differently" in same
        ours, theirs = re.findall(r"[\d.]+(?= ours| tokenizers)", fits)
        assert float(ours) > 0.97 * float(theirs)
        wanted |= {(kind.lower(), "learn", "tokenizers")}
        wanted |= {(kind.lower(), f"encode {what}", peer) for what in ("cold", "warm")
                   for peer in ("tokenizers", "tokenizers fast")}
    rows = [row for row in told["rows"] if row["what"] != "data"]
    assert {(r["model"], r["what"], r["peer_name"]) for r in rows} == wanted
    assert len(rows) == len(wanted)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])


def test_the_share_of_encoding_in_a_training_step_is_told_for_every_kind(ours):
    share, = [note for note in ours[1]["notes"] if "training step" in note]
    assert "192 new tokens" in share and "bert smoke" in share
    told = re.findall(r"([\d.]+)% (\w+)", share)
    assert [kind for _, kind in told] == list(tokenizer_files.KINDS)
    assert all(0 < float(percent) < 1000 for percent, _ in told)


def test_a_text_of_ones_own_is_learnt_from(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(f"One word and word {n}." for n in range(400)))
    seen = []

    def learning(args, kind, lines, size, library):
        seen.append(lines)
        yield from ()
        return kind
    monkeypatch.setattr(bench, "learning", learning)
    monkeypatch.setattr(bench, "encoding", lambda *args: (yield from ()) or 1.0)
    args = bench.read_command([*SMOKE, "--section", "text", "--data", str(tmp_path / "a.txt")])
    assert {row["what"] for row in bench.text_rows(args)} == {"data"}
    assert seen == [[f"One word and word {n}." for n in range(400)]] * 3


def test_what_is_cold_has_forgotten_every_word():
    class Counting(WordPiece):
        asked = 0

        def _word(self, word):
            self.asked += 1
            return super()._word(word)
    tokenizer, asked = Counting([*SPECIAL, "a", "b"]), []

    def interleave(sides, repeats, clock):
        for side in "warm", "cold", "warm", "cold":
            before = tokenizer.asked
            assert sides[side]() == [[5, 6], [6]]
            asked.append(tokenizer.asked - before)
        return dict(warm=[0.5], cold=[0.25])
    args = bench.read_command(SMOKE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "interleave", interleave)
        rows = list(bench.encoding(args, tokenizer, ["a b", "b"], None))
    assert asked == [0, 2, 0, 2]
    assert [(row["what"], row["ours"]) for row in rows] == [
        ("encode warm", 4e-6 / 0.5), ("encode cold", 4e-6 / 0.25)]


@pytest.mark.parametrize("name", checkpoint.MODELS)
def test_the_peer_is_the_same_network_and_attends_as_is_its_default(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    args, peers = bench.read_command(SMOKE), (torch, transformers)
    args.cores = torch.get_num_threads()            # which is left as it is
    for train in True, False:
        ours = bench.Ours(args, *bench.setting(name, "smoke"), train)
        peer = bench.peer_of(args, peers, name, ours)
        if name == "ernie_thu":
            assert peer is None
            continue
        assert peer.parameters == ours.parameters and peer.model.training is train
        eager = name in ("deberta", "deberta_v2")
        assert peer.model.config._attn_implementation == ("eager" if eager else "sdpa")
    assert bool(args.notes) == (name == "ernie_thu")


def test_a_network_that_transformers_builds_otherwise_is_measured_alone():
    """Asked for IB-BERT, the teacher of MobileBERT, it makes matrices that do not fit."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    args = bench.read_command(SMOKE)
    args.cores = torch.get_num_threads()
    module, config, work = bench.setting("mobilebert", "smoke")
    config = bench.replace(config, inner=128, shared=False)
    ours = bench.Ours(args, module, config, work, False)
    assert bench.peer_of(args, (torch, transformers), "mobilebert ib", ours) is None
    note, = args.notes
    assert note.startswith("mobilebert ib is measured alone: ") and f"{ours.parameters:,}" in note


@pytest.mark.parametrize("command", [
    "--section kernels", "--size huge", "--model burt", "--model bert burt", "--threads 3",
    "--size medium --model roberta modernbert", "--repeats 0",
    "--repeats x", "--micro -1", "--dropout 0.5", "--speed", "--json no/such/folder/x.json",
    "--data no/such/text.txt"])
def test_a_wrong_argument_is_one_line_and_status_2(command, capsys):
    assert bench.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and command.split()[0] in err
    assert err.count("\n") == 1 and not out


def test_models_are_measured_at_the_sizes_they_have():
    def lines(command):
        args = bench.read_command(command.split())
        return args.lines, args.notes
    sizes = ["tiny", "mini", "small", "base"]
    assert lines("") == ([("bert", size) for size in sizes], [])
    assert lines("--size base --model all")[0] == [(name, "base") for name in checkpoint.MODELS]
    assert lines("--model roberta bert --size mini") == ([("bert", "mini")],
                                                         ["no size mini: roberta"])
    assert lines("--model mobilebert --size teacher")[0] == [("mobilebert", "teacher")]


def test_unless_told_what_to_measure_inference_covers_every_model_at_base(monkeypatch):
    monkeypatch.setattr(bench, "measured", lambda args, peers, *what: [what])
    whole = [("infer", "bert", size, 0.0) for size in ("tiny", "mini", "small", "base")]
    whole += [("infer", name, "base", 0.0) for name in checkpoint.MODELS if name != "bert"]
    assert list(bench.model_rows(bench.read_command("--section infer".split()), None)) == whole
    for less in "--section infer --model roberta", "--section infer --size base", "--section step":
        rows = list(bench.model_rows(bench.read_command(less.split()), None))
        assert {name for _, name, *_ in rows} == {"roberta" if "roberta" in less else "bert"}


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch, tmp_path, capsys):
    def interrupted(args, peers):
        yield dict(section="infer", model="bert", ours=1.0)
        raise KeyboardInterrupt
    monkeypatch.setattr(bench, "model_rows", interrupted)
    file = tmp_path / "numbers.json"
    assert bench.main([*SMOKE, "--json", str(file)]) == 130
    assert [row["ours"] for row in json.loads(file.read_text())["rows"]] == [1.0]


def test_claims_are_tested_where_they_or_the_family_are_asked_for():
    def chosen(command):
        args = bench.read_command(command.split())
        return args.claims, tuple(args.section)
    every = bench.claims.NAMES
    assert chosen("") == ([], bench.SECTIONS)
    assert chosen("--section family") == (every, ("family",))
    assert chosen("--section family --claims none") == ([], ("family",))
    assert chosen("--claims sop nsp sop") == (["sop", "nsp"], ("claims",))
    assert chosen("--claims all") == (every, ("claims",))


def test_claims_end_as_rows_a_table_and_a_plot(monkeypatch, tmp_path, capsys):
    def run(arms, wanted, seeds, scale, folder, processes, say, command):
        asked.append((set(wanted), seeds, scale.quick, scale.data))
        cost = dict(tokens=1e6, flops=1e9, seconds=1.0, steps=1)
        return {name: [dict(cost, values=dict(speed=1.0 + (name == "packed")))] * seeds
                for name in wanted}
    asked = []
    monkeypatch.setattr(bench.trials, "run", run)
    command = ["--claims", "unpadding", "--quick", "--keep", str(tmp_path)]
    assert bench.main([*command, "--json", str(tmp_path / "numbers.json")]) == 0
    assert asked == [({"packed", "padded"}, 2, True, ())]
    row, = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert (row["section"], row["claim"], row["verdict"]) == ("claims", "unpadding", "holds")
    assert json.loads((tmp_path / "claims.json").read_text()) == [row]
    printed = capsys.readouterr().out
    assert (tmp_path / "claims.txt").read_text() in printed and "of 1 claims 1 hold" in printed
    assert (tmp_path / "claims.svg").read_text().startswith("<svg")


# ---- the parts

@pytest.mark.parametrize("size", list(bench.SIZES))
def test_a_ragged_batch_is_half_full_and_its_longest_sequence_whole(size):
    batch = bench.make_batch(bench.setting("bert", size)[2], "ragged")
    lengths = batch.mask.sum(1)
    assert lengths.max() == bench.SIZES[size].seq
    assert 0.35 < batch.mask.mean() < 0.7
    assert (batch.labels[batch.mask == 0] == -100).all() and (batch.labels >= 0).any(1).all()


@pytest.mark.parametrize("lengths", bench.LENGTHS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 64, 10 ** 6])
def test_micro_batches_are_the_whole_batch_without_its_padding(lengths, threads, tokens):
    module, config, work = bench.setting("bert", "smoke")
    batch, model = bench.make_batch(work, lengths, seed=1), module.Model(config, bench.Init(), ())
    parts = bench.micro_batches(model, batch, tokens, threads)
    assert len(parts) >= min(threads, len(batch.ids))
    ids = np.concatenate([p["inputs"].ids for p in parts])
    labels = np.concatenate([p["labels"] for p in parts])
    assert sorted(ids) == sorted(batch.ids[batch.mask == 1])
    assert sorted(labels) == sorted(batch.labels[batch.labels >= 0])
    for p in parts:
        cuts = p["inputs"].cuts
        assert cuts[-1] == len(p["inputs"].ids) and (np.diff(cuts, 2) <= 0).all()
        assert (p["inputs"].positions[cuts[:-1]] == 0).all()
        assert len(p["asked"]) == len(p["labels"]) and (p["inputs"].ids[p["asked"]] == 103).all()


def ours_at(lengths, train, name="bert"):
    module, config, work = bench.setting(name, "smoke")
    args = bench.read_command(SMOKE)
    side = bench.Ours(args, module, config, work, train)
    return config, side, bench.make_batch(work, lengths)


@pytest.mark.parametrize("lengths", bench.LENGTHS)
def test_the_products_of_an_inference_are_those_of_the_textbook(lengths):
    """24 T H^2 a layer, and 4 H n^2 for a sequence of n tokens."""
    config, side, batch = ours_at(lengths, False)
    count = bench.operations(bench.products(side.forward(batch)))
    n, width = batch.mask.sum(1), config.width
    assert count == config.layers * (24 * n.sum() * width ** 2 + 4 * width * (n ** 2).sum())


@pytest.mark.parametrize("lengths", bench.LENGTHS)
def test_the_floor_of_training_has_thrice_the_products_and_the_last_layer_only_where_asked(lengths):
    config, side, batch = ours_at(lengths, True)
    n, k, width = batch.mask.sum(1), (batch.labels >= 0).sum(1), config.width
    tokens, asked = n.sum(), k.sum()
    whole = (config.layers - 1) * (24 * tokens * width ** 2 + 4 * width * (n ** 2).sum())
    last = 4 * tokens * width ** 2 + 20 * asked * width ** 2 + 4 * width * (n * k).sum()
    head = 2 * asked * width * (width + config.vocab)
    shapes = bench.products(side.forward(batch))
    run, count = bench.floor_of(shapes, True)
    assert count == 3 * (whole + last + head) == 3 * bench.floor_of(shapes, False)[1]
    run()                                                   # all of them fit together


def test_listening_to_products_changes_no_number_and_leaves_no_trace():
    before = {name: op.text.forward for name, op in OPS.items()}
    side, batch = ours_at("ragged", False, "deberta")[1:]
    heard = []
    bench.products(lambda: heard.extend(side.infer(batch)()))
    told = list(measuring.Watched.told)
    np.testing.assert_array_equal(heard[0], side.infer(batch)()[0])
    assert type(heard[0]) is np.ndarray and told == measuring.Watched.told
    with pytest.raises(ZeroDivisionError):
        bench.products(lambda: 1 / 0)
    assert before == {name: op.text.forward for name, op in OPS.items()}


def test_products_of_shared_layers_windows_and_distances_are_heard():
    def count(name, **changes):
        module, config, work = bench.setting(name, "smoke")
        config = bench.replace(config, **changes)
        side = bench.Ours(bench.read_command(SMOKE), module, config, work, False)
        batch = bench.make_batch(work._replace(seq=128, batch=1), "full")
        return config, bench.operations(bench.products(side.forward(batch)))
    c, shared = count("albert")
    assert c.groups == 1 and shared == count("albert", groups=2)[1]
    c, narrow = count("modernbert", pattern="l", window=16)
    _, whole = count("modernbert", pattern="g")
    # a stretch of 32 queries or fewer sees at most 8 keys more on either side
    assert whole - narrow >= c.layers * 4 * c.width * 128 * (128 - 48)
    _, bert = count("bert")
    assert count("deberta")[1] > bert + 2 * 4 * 64 * 128 ** 2


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
    facts = dict(section="step", model="bert", size="smoke", lengths="full", dropout=0.25)
    assert bench.in_processes(args, facts, peer=None) == {}
    assert args.notes == ["ours failed in a process of its own: MemoryError: too big"]
    with pytest.raises(Error):
        bench.child("ours", "full", "step", "smoke", 0.25, "bert", "1", None)
