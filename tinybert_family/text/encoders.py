"""Documents -> token ids, with the help of other processes when there is much to do.

Encoding is Python through and through, and one Python uses one core. So of a long text other
processes get a batch of documents at a time: JSON there, plain numbers back, each frame of bytes
with its length before it. A helper holds the tokenizer that was saved for it in a folder, and a
memory of words of its own. While all of them are busy, this process encodes, too. The answers are
taken in the order of the documents, and so the result is, bit for bit, what one process would make.

    python -m tinybert_family.text.encoders FOLDER      is such a helper
"""
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinybert_family.error import Error
from tinybert_family.text import tokenizer_files
from tinybert_family.text.toy import Document

# Characters after which help is called. A helper needs a quarter of a second to begin, in which a
# megabyte can be encoded; a text that ends just then has waited for nothing.
ALONE = 2_000_000
BATCH = 200_000             # characters sent at a time
QUEUE = 3                   # batches that a helper is given in advance
WAITING = 32                # batches that are read and not yet answered in their turn: 6 MB
MOST = 8                    # processes unasked: who reads the text could not feed more
TRIAL = 64                  # sentences by which a process shows that it has the same tokenizer
WITHOUT = "none is needed with processes=1 (in train.py --workers 1)"
PACKAGES = Path(__file__).resolve().parents[2]      # where the processes find this package


class Encoded(NamedTuple):
    ids: np.ndarray         # uint16 or uint32 [N]
    lengths: np.ndarray     # int64 [sentences], how many of the ids each has; it may be none
    words: int              # between white space, in the sentences that have ids


def kind_of(tokenizer):
    """The least type that holds every id."""
    return "<u2" if tokenizer.size <= 2**16 else "<u4"


def cores():
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def characters(document):
    return sum(map(len, document.sentences))


def encode(document, tokenizer):
    coded = [tokenizer.encode(s) for s in document.sentences]
    ids = np.array(list(itertools.chain.from_iterable(coded)), np.int64)
    wrong = ids[(ids < 0) | (ids >= tokenizer.size)]
    if len(wrong):
        raise Error(f"token id {wrong[0]} in document {document.name}, but the tokenizer has "
                    f"{tokenizer.size} entries; its files do not belong together")
    words = sum(len(s.split()) for s, i in zip(document.sentences, coded) if len(i))
    lengths = np.array(list(map(len, coded)), "<i8")
    return Encoded(ids.astype(kind_of(tokenizer)), lengths, words)


def encoded(documents, tokenizer, folder, processes=None):
    """Yield (document, Encoded) in order. `processes`: None is one for every core; 1 is this one
    alone. In `folder` the tokenizer is saved for the others meanwhile."""
    documents, done = iter(documents), 0
    processes = processes or min(cores(), MOST)
    shared = processes > 1 and sys.executable and hasattr(tokenizer, "save")
    alone = ALONE if shared else float("inf")
    while done < alone:
        document = next(documents, None)
        if document is None:
            return
        yield document, encode(document, tokenizer)
        done += characters(document)
    batches = in_batches(documents)
    first = next(batches, None)
    if first:
        trial = Document(first[0].name, first[0].sentences[:TRIAL])
        with helpers(tokenizer, folder, processes - 1, trial) as ask:
            yield from in_order(itertools.chain([first], batches), ask,
                                lambda batch: kept(batch, tokenizer), processes)


def in_batches(documents):
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += characters(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_order(batches, ask, keep, processes):
    """Yield (document, Encoded). ask and keep: a batch -> the promise of its answer; keep does the
    work at once, and is called while the others have enough to do."""
    waiting = deque()
    for batch in batches:
        busy = sum(not promise.done() for _, promise in waiting)
        promise = ask(batch) if busy < QUEUE * (processes - 1) else keep(batch)
        waiting.append((batch, promise))
        while waiting and (waiting[0][1].done() or len(waiting) >= WAITING):
            yield from answered(*waiting.popleft())
    for batch, promise in waiting:
        yield from answered(batch, promise)


def answered(batch, promise):
    return zip(batch, promise.result())


def kept(batch, tokenizer):
    promise = Future()
    try:
        promise.set_result([encode(document, tokenizer) for document in batch])
    except Error as problem:                        # to be raised when its turn has come
        promise.set_exception(problem)
    return promise


# ---- from the side of the one who asks

@contextlib.contextmanager
def helpers(tokenizer, folder, count, trial):
    """A function: documents -> the promise of what they are encoded to. Whatever happens, the
    processes are gone afterwards."""
    expected = encode(trial, tokenizer)

    def prove(answer):
        if not same(expected, *answer):
            raise Error(f"{type(tokenizer).__name__}: saved and loaded again, the tokenizer "
                        f"encodes otherwise; {WITHOUT}")

    with tempfile.TemporaryDirectory(dir=folder) as saved, contextlib.ExitStack() as stack:
        tokenizer.save(saved)
        found = [stack.enter_context(Helper(saved)) for _ in range(count)]
        for helper in found:
            helper.proof = helper.ask([trial], prove)
        yield lambda batch: min(found, key=Helper.busy).ask(batch)


def same(one, other):
    return one.words == other.words and all(map(np.array_equal, one[:2], other[:2]))


class Helper:
    """A process that encodes, and what is said to it."""

    def __init__(self, folder):
        command = [sys.executable, "-m", "tinybert_family.text.encoders", str(folder)]
        one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.complaints, self.promises = tempfile.TemporaryFile(), deque(maxlen=QUEUE + 1)
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints,
                cwd=PACKAGES, env=os.environ | one_thread)
        except OSError as e:
            self.complaints.close()
            raise Error(f"a process that encodes cannot be started ({e}); {WITHOUT}") from None
        self.thread = ThreadPoolExecutor(1)         # takes the answers
        # Pipes that hold all that a helper has to do, where the system can: so neither waits for
        # the other to read.
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import fcntl
            for pipe in self.process.stdin, self.process.stdout:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.process.kill()                         # so that the thread waits for nothing
        self.thread.shutdown(cancel_futures=True)
        self.process.wait()
        for file in self.process.stdin, self.process.stdout, self.complaints:
            with contextlib.suppress(OSError):      # what was not sent yet has nowhere to go
                file.close()

    def busy(self):
        return sum(not promise.done() for promise in self.promises)

    def ask(self, documents, prove=None):
        """-> the promise of [Encoded], one for each document"""
        with self.alive():
            write_frame(self.process.stdin, as_json(documents))
            self.process.stdin.flush()
        self.promises.append(self.thread.submit(self.receive, prove))
        return self.promises[-1]

    def receive(self, prove):
        if not prove:
            self.proof.result()                     # raises what was wrong, if anything was
        with self.alive():
            told, *arrays = [read_frame(self.process.stdout) for _ in range(3)]
        told = json.loads(told)
        if "error" in told:
            raise Error(told["error"])
        lengths, ids = np.frombuffer(arrays[0], "<i8"), np.frombuffer(arrays[1], told["kind"])
        answer, sentence, token = [], 0, 0
        for count, words in zip(told["sentences"], told["words"]):
            own = lengths[sentence:sentence + count]
            size = int(own.sum())
            answer.append(Encoded(ids[token:token + size], own, words))
            sentence, token = sentence + count, token + size
        if prove:
            prove(answer)
        return answer

    @contextlib.contextmanager
    def alive(self):
        """Inside, a process that has ended is an Error with its last words."""
        try:
            yield
        except (OSError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)            # it closes its files, and is gone a little later
            status = self.process.poll()
            self.complaints.seek(0)
            said = self.complaints.read().decode("utf-8", "replace").split("\n")
            said = [line.strip() for line in said if line.strip()] or ["is there memory enough?"]
            raise Error(f"a process that encodes ended with status {status}: "
                        f"{said[-1].removeprefix('error: ')}; {WITHOUT}") from None


# ---- frames: eight bytes that say how many follow, then those

def write_frame(file, data):
    file.write(len(data).to_bytes(8, "little"))
    file.write(data)


def read_frame(file):
    """The bytes of a frame; EOFError where the file ends instead."""
    size = file.read(8)
    data = file.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    if len(size) < 8 or len(data) < int.from_bytes(size, "little"):
        raise EOFError
    return data


def as_json(value):
    # surrogatepass: half a character is no text, but the tokenizer shall be the one to say so.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


# ---- from the side of the one who is asked

def serve(tokenizer, questions, answers):
    """Answer with three frames (what is told, lengths, ids) until there are no more questions."""
    while True:
        try:
            question = read_frame(questions).decode("utf-8", "surrogatepass")
        except EOFError:
            return
        documents = [Document(*parts) for parts in json.loads(question)]
        try:
            found = [encode(document, tokenizer) for document in documents]
            told = dict(kind=kind_of(tokenizer), words=[each.words for each in found],
                        sentences=[len(each.lengths) for each in found])
        except Error as problem:
            found, told = [], dict(error=str(problem))
        write_frame(answers, as_json(told))
        write_frame(answers, b"".join(each.lengths.tobytes() for each in found))
        write_frame(answers, b"".join(each.ids.tobytes() for each in found))
        answers.flush()


def main(argv):
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C is for the one who asks to act upon
    answers, sys.stdout = sys.stdout.buffer, sys.stderr         # nothing else may come between
    try:
        serve(tokenizer_files.load(argv[0]), sys.stdin.buffer, answers)
    except Error as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:                         # nobody asks any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
