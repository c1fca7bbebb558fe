"""train.py for models of other kinds than BERT: two networks, several stages, a teacher, facts.

As in test_train.py, from outside: the folder loads, an interrupted run ends in the same bits, and
mistakes are one line with the remedy.
"""
import json
import signal
import time

import numpy as np
import pytest
from test_train import cache, text  # noqa: F401  fixtures
from test_train import TRAIN, metrics, refused, run, same, start, weights

import tinybert_family as tbf
from tinybert_family import runs
from tinybert_family.files import read_safetensors

LITTLE = """--vocab 300 --seq 32 --tokens 256 --log-every 1 --eval-every 1000 --save-every 1000
            --accumulate 2"""


def command(model, text, out, options=""):
    always = [*TRAIN, model, "--data", text, "--out", str(out)]
    return always + LITTLE.split() + options.split()


def everything(folder):
    """All weights in a run's folder, of all networks in it."""
    return {f"{path.relative_to(folder)} {name}": np.array(x)
            for path in sorted(folder.rglob("*.safetensors")) if "checkpoints" not in path.parts
            for name, x in read_safetensors(path).items()}


KINDS = dict(electra="", deberta_v2="", ernie="", ernie2="--pieces 2 --tasks mlm\\ order",
             modernbert="", distilbert="--teacher-steps 6")


def typed(options):
    return options.replace("\\ ", "\0").split()


@pytest.mark.parametrize("model", KINDS)
def test_a_run_that_was_stopped_in_any_stage_ends_in_the_same_bits(model, text, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    more = [word.replace("\0", " ") for word in typed(KINDS[model])] + ["--steps", "60"]
    child = start(command(model, text, torn) + more)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and child.poll() is None:
        if len(runs.read_lines(torn / "metrics.jsonl")) > 20:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=100)
    if child.returncode == 128 + signal.SIGTERM:            # it may have been quicker than we
        again = run(command(model, text, torn, "--resume") + more)
        assert again.returncode == 0, again.stderr
    done = run(command(model, text, whole) + more)
    assert done.returncode == 0, done.stderr
    assert same(everything(whole), everything(torn)) and metrics(whole) == metrics(torn)
    loaded = tbf.load(whole)
    assert np.isfinite(loaded(**tbf.load_tokenizer(whole)(["a dog"])).last_hidden_state.data).all()
    about = json.loads((whole / "run.json").read_text())
    assert about["model"] == model and about["baseline"] and (whole / "report.html").exists()
    if model in ("electra", "deberta_v2"):
        assert tbf.load(whole / "generator").mlm is not None


def test_a_teacher_is_trained_first_kept_and_not_trained_again(text, tmp_path):
    more = "--steps 4 --teacher-steps 5"
    first = run(command("distilbert", text, tmp_path / "a", more))
    assert first.returncode == 0, first.stderr
    assert "so a bert is trained first: 5 steps" in first.stdout
    teacher = tmp_path / "a" / "teacher"
    assert (teacher / "report.html").exists() and tbf.load(teacher).mlm is not None
    given = run(command("distilbert", text, tmp_path / "b", f"{more} --teacher {teacher}"))
    assert given.returncode == 0 and "is trained first" not in given.stdout, given.stderr
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_an_interrupted_teacher_is_gone_on_with(text, tmp_path):
    more = "--steps 3 --teacher-steps 60"
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    child = start(command("distilbert", text, torn, more))
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and \
            len(runs.read_lines(torn / "teacher" / "metrics.jsonl")) < 5:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGINT
    for folder, resume in (torn, " --resume"), (whole, ""):
        done = run(command("distilbert", text, folder, more + resume))
        assert done.returncode == 0, done.stderr
    assert same(everything(whole), everything(torn))


def test_a_teacher_of_another_vocabulary_is_refused(text, tmp_path):
    teacher = tmp_path / "teacher"
    assert run(command("bert", text, teacher, "--steps 1 --vocab 200")).returncode == 0
    student = tmp_path / "student"
    assert run(command("bert", text, student, "--steps 1")).returncode == 0
    words = f"--teacher {teacher} --tokenizer {student} --steps 2"
    refused(run(command("distilbert", text, tmp_path / "out", words)), "--teacher", "vocabulary",
            "--tokenizer")


def test_knowledge_is_read_from_the_users_file_and_checked(text, tmp_path):
    graph = tmp_path / "graph.tsv"
    graph.write_text("one\ttwo\n")
    refused(run(command("ernie_thu", text, tmp_path / "out", f"--steps 2 --graph {graph}")),
            "--graph", "graph.tsv")
    refused(run(command("macbert", text, tmp_path / "out2", "--steps 2 --vectors nowhere.txt")),
            "--vectors", "nowhere.txt")


def test_a_text_without_what_an_objective_needs_is_refused_with_the_remedy(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("\n\n".join(["the cat sat on the mat and looked at the dog over there."] * 90))
    done = run(command("ernie_thu", str(plain), tmp_path / "a", "--steps 2"))
    refused(done, "no entities", "--graph")


def test_a_run_begins_with_the_weights_words_and_shape_of_a_folder(text, tmp_path):
    """At a rate of zero nothing is learnt, so what the run leaves is what it began with."""
    bert, still = tmp_path / "bert", "--steps 1 --lr 0"
    assert run(command("bert", text, bert, "--steps 3 --width 32 --hidden 80")).returncode == 0
    begun = weights(bert)
    out = tmp_path / "wwm"
    done = run(command("bert_wwm", text, out, f"--from {bert} {still}"))
    assert done.returncode == 0 and f"from   {bert}\n" in done.stdout, done.stderr
    assert same(weights(out), begun)
    lower = tmp_path / "lower"
    assert run(command("bert", text, lower, f"--from {bert} {still} --layers 1")).returncode == 0
    assert same(weights(lower), {name: x for name, x in begun.items() if "layer.1." not in name})
    # StructBERT's sentences are of three kinds, ERNIE's layers know entities: these parts are new
    for model, new in ("structbert", "nsp.classifier\n"), ("ernie_thu", "layers.#.entities.qkv, "):
        out, more = tmp_path / model, []
        if model == "ernie_thu":
            more = ["--kinds", "mix norm"]
        done = run(command(model, text, out, f"--from {bert} {still}") + more)
        assert done.returncode == 0, done.stderr
        assert "new are: " in done.stdout and new in done.stdout
        after = everything(out)
        shared = [name for name in begun if "seq_relationship" not in name]
        kept = {name.split(" ")[1]: x for name, x in after.items()}
        assert all(np.array_equal(kept[name], begun[name]) for name in shared if name in kept)


def test_a_folder_to_begin_from_that_does_not_fit_is_refused(text, tmp_path):
    bert, other = tmp_path / "bert", tmp_path / "other"
    assert run(command("bert", text, bert, "--steps 1")).returncode == 0
    assert run(command("bert", text, other, "--steps 1 --vocab 200")).returncode == 0
    refused(run(command("albert", text, tmp_path / "a", f"--from {bert} --steps 1")),
            "--from", str(bert), "of the same kind")
    assert not (tmp_path / "a" / "run.json").exists()       # so the command can be given again
    refused(run(command("bert", text, tmp_path / "b", f"--from {bert} --steps 1 --hidden 40")),
            "--from", "layers.0.mlp.up.weight", "(40, 64)")
    refused(run(command("bert", text, tmp_path / "c",
                        f"--from {bert} --tokenizer {other} --steps 1")),
            "--from", "vocabulary", "--tokenizer")
    refused(run(command("bert", text, tmp_path / "d", "--from nowhere --steps 1")), "nowhere")
    refused(run(command("bert", text, bert, f"--from {other} --resume")), "--from", "begun")
