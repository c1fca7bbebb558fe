"""Several processes at one text: the same bytes as one makes, and no process left behind."""
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, strategies as st

from tinybert_family.error import Error
from tinybert_family.text import encoders, tokenizer_files, toy
from tinybert_family.text.corpus import Corpus
from tinybert_family.text.encoders import encoded
from tinybert_family.text.toy import Document
from tinybert_family.text.wordpiece import SPECIAL, WordPiece

ODD = [Document("odd", ["", "\t", "line\nbreak", "naïve café 你好", "\U0001f44d\u0301 [MASK]", "\0"]),
       Document("", []), Document("blank \ud800", [" ", "\u200b"])]


@pytest.fixture(scope="module")
def tokenizer():
    lines = [s for document in toy.documents(30) for s in document.sentences]
    return WordPiece.train(lines, 200)


@pytest.fixture
def soon(monkeypatch):
    """Help is called for at once, with small batches, and this process is slow. Every helper's
    process is written down, and how often it answered: to the trial, and at least one batch."""
    begun, keep = [], encoders.kept

    class Watched(encoders.Helper):
        def __init__(self, folder):
            super().__init__(folder)
            self.process.answers = 0
            begun.append(self.process)

        def receive(self, prove):
            answer = super().receive(prove)
            self.process.answers += 1
            return answer

    def slowly(batch, tokenizer):
        time.sleep(0.03)
        return keep(batch, tokenizer)

    monkeypatch.setattr(encoders, "ALONE", 0)
    monkeypatch.setattr(encoders, "BATCH", 2000)
    monkeypatch.setattr(encoders, "Helper", Watched)
    monkeypatch.setattr(encoders, "kept", slowly)
    yield begun
    assert all(process.poll() is not None for process in begun)


def refused(call, *parts):
    with pytest.raises(Error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and all(part in message for part in parts), message


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the same as one process makes

@pytest.mark.parametrize("kind, processes", [
    ("WordPiece", 2), ("WordPiece", 3), ("BPE", 2), ("Unigram", 2)])
def test_the_corpus_is_the_same_to_the_last_bit(soon, tmp_path, kind, processes):
    lines = [s for document in toy.documents(30) for s in document.sentences]
    tokenizer = tokenizer_files.KINDS[kind].train(lines, 300)
    documents = [*toy.documents(20), *ODD, *toy.documents(25, seed=3)]
    done = {1: [], processes: []}
    for count in done:
        Corpus.build(iter(documents), tokenizer, tmp_path / str(count), "both",
                     done[count].append, count)
    one, many = bytes_of(tmp_path / "1"), bytes_of(tmp_path / str(processes))
    assert one == many and len(one) == 6
    assert done[1] == done[processes] and len(done[1]) == len(documents)
    assert len(soon) == processes - 1 and all(helper.answers >= 2 for helper in soon)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", str(processes)]


@pytest.mark.parametrize("alone", [500, 10_000, 10_000_000])
def test_wherever_help_begins_nothing_is_lost(tokenizer, soon, tmp_path, monkeypatch, alone):
    monkeypatch.setattr(encoders, "ALONE", alone)
    documents = toy.documents(20)
    found = list(encoded(documents, tokenizer, tmp_path, 2))
    assert [document for document, _ in found] == documents
    for document, each in found:
        assert encoders.same(each, encoders.encode(document, tokenizer))
    assert len(soon) == (0 if alone > 1_000_000 else 1)


def test_ids_take_four_bytes_in_all_processes_where_the_vocabulary_is_large(soon, tmp_path):
    words = [f"w{n}" for n in range(70_000)]
    tokenizer = WordPiece([*SPECIAL, *words])
    documents = [Document(f"d{n}", [f"w{n} w69999"]) for n in range(20)]
    made = Corpus.build(documents, tokenizer, tmp_path / "c", processes=2)
    assert made.ids.dtype == np.uint32 and made.ids[1::2].tolist() == [70_004] * 20
    assert made.ids[::2].tolist() == list(range(5, 25))


def test_a_short_text_stays_in_one_process(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "Helper", None)           # what is not called need not exist
    Corpus.build(toy.documents(20), tokenizer, tmp_path / "c", processes=4)


def test_a_tokenizer_that_cannot_be_saved_stays_in_one_process(soon, tmp_path):
    class Letters:
        size = 1 << 16

        def encode(self, text):
            return list(map(ord, text))
    made = Corpus.build(toy.documents(5), Letters(), tmp_path / "c", processes=2)
    assert made.info["tokens"] == made.info["characters"] and not soon


class Promise:
    """An answer that comes only when somebody waits for it."""

    def __init__(self, batch, by):
        self.batch, self.by, self.kept = batch, by, by == "us"

    def done(self):
        return self.kept

    def result(self):
        self.kept = True
        return [(self.by, number) for number in self.batch]


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_only_so_many_batches_are_read_ahead_and_helpers_have_some_each(processes):
    drawn, taken, asked = [], 0, []

    def documents():
        for number in range(100):
            drawn.append(number)
            yield [number]

    def ask(batch):
        asked.append(Promise(batch, "helper"))
        assert sum(not promise.done() for promise in asked) <= encoders.QUEUE * (processes - 1)
        return asked[-1]
    by = {"us": 0, "helper": 0}
    for number, (who, answer) in encoders.in_order(
            documents(), ask, lambda batch: Promise(batch, "us"), processes):
        assert answer == number == taken
        taken += 1
        by[who] += 1
        assert len(drawn) - taken < encoders.WAITING
    assert taken == 100 and by["us"] > 0 and by["helper"] > 0


def test_batches_hold_about_as_many_characters_as_they_should():
    documents = [Document(str(n), ["x" * 9_000]) for n in range(100)]
    documents.append(Document("long", ["y" * 10**6]))
    batches = list(encoders.in_batches(documents))
    assert [document for batch in batches for document in batch] == documents
    assert [len(batch) for batch in batches] == [23, 23, 23, 23, 9]


# ---- what goes wrong

def test_an_error_is_the_one_that_one_process_tells(tokenizer, soon, tmp_path):
    with pytest.raises(Error) as alone:
        tokenizer.encode("half \ud800")
    documents = [*toy.documents(30), Document("bad", ["fine", "half \ud800"]), *toy.documents(30)]
    for processes in 1, 2:
        refused(lambda: Corpus.build(documents, tokenizer, tmp_path / "c", processes=processes),
                str(alone.value))
    assert list(tmp_path.iterdir()) == [] and len(soon) == 1


def test_a_process_that_cannot_load_the_tokenizer_says_why(tokenizer, soon, tmp_path, monkeypatch):
    save = type(tokenizer).save

    def save_nonsense(self, folder):
        save(self, folder)
        for path in os.scandir(folder):
            with open(path, "w") as file:
                file.write("no tokenizer")
    monkeypatch.setattr(type(tokenizer), "save", save_nonsense)
    refused(lambda: Corpus.build(toy.documents(9), tokenizer, tmp_path / "c", processes=2),
            "status 2: ", "not valid JSON", "processes=1")
    assert list(tmp_path.iterdir()) == [] and len(soon) == 1


def test_a_process_that_cannot_be_started_is_told(tokenizer, soon, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    refused(lambda: Corpus.build(toy.documents(9), tokenizer, tmp_path / "c", processes=2),
            "cannot be started", "no-python", "processes=1")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_is_told(tokenizer, soon, tmp_path):
    def documents():
        for document in toy.documents(100):
            if soon:
                soon[0].kill()
            yield document
    refused(lambda: Corpus.build(documents(), tokenizer, tmp_path / "c", processes=2),
            "ended with status -9", "memory enough?")
    assert list(tmp_path.iterdir()) == [] and len(soon) == 1


def test_a_tokenizer_that_changes_when_it_is_saved_is_refused(soon, tmp_path, tokenizer):
    class Backwards(WordPiece):
        def encode(self, text):
            return super().encode(text)[::-1]
    refused(lambda: Corpus.build(toy.documents(9), Backwards(tokenizer.vocab), tmp_path / "c",
                                 processes=2), "Backwards", "otherwise")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_ends_the_processes_and_leaves_nothing(tokenizer, soon, tmp_path):
    def documents():
        yield from toy.documents(100)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        Corpus.build(documents(), tokenizer, tmp_path / "c", processes=3)
    assert list(tmp_path.iterdir()) == [] and len(soon) == 2


# A program that encodes for ever, and tells when it is at it and by which processes.
ENDLESS = """
import itertools, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)       # a shell's `&` leaves it ignored
from tinybert_family.text import corpus, encoders, toy
from tinybert_family.text.wordpiece import WordPiece
encoders.ALONE, known = 0, []
begin = encoders.Helper.__init__
def watched(self, folder):
    begin(self, folder)
    known.append(self.process.pid)
encoders.Helper.__init__ = watched
def tell(done):
    if known:
        print(*known, flush=True)
        known.clear()
lines = [s for d in toy.documents(30) for s in d.sentences]
corpus.Corpus.build(itertools.cycle(toy.documents(50)), WordPiece.train(lines, 200), sys.argv[1],
                    progress=tell, processes=3)
"""


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize("number, to_all", [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_no_process_is_left_when_the_program_is_stopped(tmp_path, number, to_all):
    program = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path / "c")], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    processes = list(map(int, program.stdout.readline().split()))
    assert len(processes) == 2 and all(map(alive, processes))
    (os.killpg if to_all else os.kill)(program.pid, number)     # Ctrl-C goes to the whole group
    try:
        program.communicate(timeout=60)
    finally:
        program.kill()
    until = time.monotonic() + 60
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, processes))
    assert not (tmp_path / "c").exists()
    if to_all:
        assert list(tmp_path.iterdir()) == []


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:                 # a zombie has ended, too
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return False
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


# ---- frames

@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(0, 300))
def test_a_frame_comes_back_whole_or_not_at_all(frames, cut):
    file = io.BytesIO()
    for frame in frames:
        encoders.write_frame(file, frame)
    for size in len(file.getvalue()), min(cut, len(file.getvalue())):
        again, found = io.BytesIO(file.getvalue()[:size]), []
        with pytest.raises(EOFError):
            while True:
                found.append(encoders.read_frame(again))
        assert found == frames[:len(found)]
        assert size < len(file.getvalue()) or found == frames


@given(st.lists(st.text(st.characters() | st.sampled_from("\ud83d\ude00\n\"\\"))))
def test_every_text_crosses_unchanged(texts):
    assert json.loads(encoders.as_json(texts).decode("utf-8", "surrogatepass")) == texts


def test_answers_are_three_frames_and_the_process_ends_with_its_questions(tokenizer):
    questions, answers = io.BytesIO(), io.BytesIO()
    for document in Document("d", ["a a", "", "the"]), Document("half", ["\udc00"]):
        encoders.write_frame(questions, encoders.as_json([document]))
    questions.seek(0)
    encoders.serve(tokenizer, questions, answers)
    answers.seek(0)
    told = json.loads(encoders.read_frame(answers))
    assert told == dict(kind="<u2", words=[3], sentences=[3])
    lengths = np.frombuffer(encoders.read_frame(answers), "<i8")
    ids = np.frombuffer(encoders.read_frame(answers), "<u2")
    assert lengths.tolist() == [len(tokenizer.encode(s)) for s in ("a a", "", "the")]
    assert ids.tolist() == tokenizer.encode("a a the")
    assert "U+DC00" in json.loads(encoders.read_frame(answers))["error"]
    assert encoders.read_frame(answers) == encoders.read_frame(answers) == b""
    assert answers.read() == b""
