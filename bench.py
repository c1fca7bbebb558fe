"""How fast is it, and how fast could it be?

    python bench.py                   our own numbers, and the share of the floor reached
    python bench.py --peers           beside transformers on torch, and the tokenizers library
    python bench.py --section step --size tiny --peers --json numbers.json

The floor of a step is the time of its matrix products alone, in arrays that are there already, at
the rate measured in the same run: no engine on this BLAS goes below. A ratio above 1 means that we
are faster. Both sides get the same configuration and the same tokens, in one process, in turns;
padding does not count as tokens. Numbers are medians; +- is half the interquartile range of the
ratio. On one thread, time is CPU time, which survives a busy machine; with --threads all it is wall
time, which wants a quiet one. MB is a side's peak in a process of its own, above what its imports
take; the peer's padded arrays take the same whatever the lengths.

What is slow: small and base with --peers (half a minute to a minute a line), and torch.compile,
which has --compile-seconds in all and finds in the next run what it compiled in this one.

NOTES on what was tried and did not pay (two shared cores, November 2026):
- glibc's malloc told to keep what is freed (mallopt): nothing for us, and the peer gains by it
- micro-batches of 512 tokens instead of 2,048: 10 % slower at tiny, 3 to 7 % at mini and small
- one malloc arena for all threads: 50 times fewer page faults at small, no time at all
- a transposed copy of the vocabulary's matrix for the product with it: 5 %, less than the copy
"""
import os

# Before numpy is imported. Our threads share micro-batches, not single products; torch is told
# its number of threads later.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import contextlib
import functools
import itertools
import json
import platform
import re
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import numpy as np

from tinybert_family import Error, checkpoint
from tinybert_family.engine.autograd import no_grad
from tinybert_family.engine.nn import Init
from tinybert_family.engine.optim import AdamW, Arena, clip
from tinybert_family.files import write_atomically
from tinybert_family.models.padded import Packed
from tinybert_family.text import corpus, toy
from tinybert_family.text.wordpiece import WordPiece
from train import Parser, Workers


class Work(NamedTuple):
    """What a size of model is given to do. micro: tokens in one of our micro-batches, the best of
    256 to 4,096 where they were tried; two cores halve it where there would be one alone."""
    vocab: int
    seq: int
    batch: int
    micro: int


SECTIONS = "step", "infer", "text"
SIZES = dict(smoke=Work(2048, 32, 6, 64), tiny=Work(8192, 128, 32, 2048),
             mini=Work(8192, 128, 16, 2048), small=Work(8192, 128, 16, 2048),
             base=Work(30522, 128, 4, 2048))
LENGTHS = "full", "ragged"
DROPOUTS = 0.1, 0.0
ROUNDS, PATIENCE = 2, 8         # a line ends early after so many seconds, but not before 2 rounds
MASK, IGNORED = 103, -100       # [MASK] in BERT's vocabulary; what torch's loss passes over


# ---- the command line

def read_command(argv):
    parser = Parser(prog="bench.py", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--section", nargs="+", action="extend", choices=SECTIONS, help="default: all of them")
    add("--peers", action="store_true", help="measure the libraries people use now beside us")
    add("--size", nargs="+", action="extend", choices=list(SIZES), help="default: all but smoke")
    add("--model", choices=checkpoint.MODELS, default="bert")
    add("--lengths", nargs="+", choices=LENGTHS, default=LENGTHS)
    add("--dropout", nargs="+", type=float, choices=DROPOUTS, default=DROPOUTS, help="in training")
    add("--threads", choices=["1", "all"], default="1", help="1: CPU time; all: wall time")
    add("--repeats", type=int, default=5, metavar="N", help="rounds of a line (default 5)")
    add("--micro", type=int, metavar="TOKENS", help="in one of our micro-batches")
    add("--compile-seconds", type=float, default=60, metavar="S",
        help="for torch.compile, in all (default 60; 0: leave it out)")
    add("--json", metavar="FILE", help="write all numbers there, too")
    add("--alone", choices=["ours", "transformers"],
        help="one side of the first line in this process: its memory and time, as JSON")
    args = parser.read(argv)
    args.section, args.size = args.section or SECTIONS, args.size or list(SIZES)[1:]
    for name in "repeats", "micro":
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise Error(f"--{name} {getattr(args, name)}: it must be at least 1")
    if args.json and not (folder := Path(args.json).absolute().parent).is_dir():
        raise Error(f"--json {args.json}: there is no folder {folder}; make it first")
    args.cores = 1 if args.threads == "1" else cores()
    args.clock = time.process_time if args.threads == "1" else time.perf_counter
    args.notes = []
    return args


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# ---- the work: the same tokens for both sides

class Batch(NamedTuple):
    ids: np.ndarray             # [B, S]
    mask: np.ndarray            # [B, S] 1 where there is a token
    labels: np.ndarray          # [B, S] the hidden tokens, IGNORED elsewhere


def setting(args, size, dropout):
    """(the model's file, its Config, {lengths: Batch})"""
    module, work = checkpoint.variant(args.model, "--model"), SIZES[size]
    config = replace(module.SIZES[size], vocab=work.vocab, init=0.02, dropout=dropout,
                     attention_dropout=dropout)
    return module, config, {name: make_batch(work, name) for name in args.lengths}


def make_batch(work, lengths, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(min(1000, work.vocab // 4), work.vocab, (work.batch, work.seq))
    mask = np.arange(work.seq) < sequence_lengths(work, lengths, rng)[:, None]
    hidden = (rng.random(ids.shape) < 0.15) & mask
    hidden[:, 1] = True                                     # so that no sequence goes without
    mask = mask.astype(np.int64)
    return Batch(np.where(hidden, MASK, ids) * mask, mask, np.where(hidden, ids, IGNORED))


def sequence_lengths(work, lengths, rng):
    """Skewed like those of real text: many short, few long, about half of seq in the mean."""
    if lengths == "full":
        return np.full(work.batch, work.seq)
    at = (np.arange(work.batch) + 0.5) / work.batch
    drawn = np.round(work.seq * np.quantile(rng.gamma(2.0, 0.26, 4096), at)).astype(int)
    drawn[-1] = work.seq
    return rng.permutation(drawn.clip(8, work.seq))


def micro_batches(batch, tokens, threads):
    """The batch without padding, in parts of about `tokens` tokens, neighbours in length together;
    as many parts as threads can share evenly."""
    lengths = batch.mask.sum(1)
    order = np.argsort(-lengths, kind="stable")
    parts = -(-max(1, round(lengths.sum() / tokens)) // threads) * threads
    before = np.cumsum(lengths[order]) - lengths[order]
    shares = before * parts // lengths.sum()
    return [packed(batch, order[shares == i]) for i in np.unique(shares)]


def packed(batch, rows):
    row, column = np.nonzero(batch.mask[rows])
    ids, labels = batch.ids[rows[row], column], batch.labels[rows[row], column]     # [T]
    asked = np.flatnonzero(labels != IGNORED)
    cuts = np.concatenate([[0], np.cumsum(batch.mask[rows].sum(1))])
    return dict(ids=ids, types=np.zeros_like(ids), positions=column, cuts=cuts, asked=asked,
                labels=labels[asked])


# ---- our side: the loop of train.py minus everything

class MaskedWords:
    """The objective both sides have: masked words alone."""

    @staticmethod
    def counts(b):
        return len(b["labels"])

    @staticmethod
    def loss(model, b, count):
        inputs = Packed(b["ids"], b["types"], b["positions"], b["cuts"])
        x = model.encode(inputs, b["asked"])                                            # [K, H]
        return dict(mlm_loss=model.mlm.loss(x, b["labels"], np.full(len(x), 1 / count, x.dtype)))


class Ours:
    """Our model, and what a training step or an inference on a batch is."""

    def __init__(self, args, module, config, train):
        self.args, self.training = args, train
        self.model = module.Model(config, Init(0, config.init), ("mlm",) if train else ())
        if train:
            self.arena = Arena(self.model.named().items())
            self.optimizer = AdamW(self.arena)
            self.workers = Workers(self.model, self.arena, MaskedWords, args.cores)

    def parts(self, batch, size):
        """Micro-batches. Inference takes its batch whole, which measured no slower than parts."""
        micro = self.args.micro or SIZES[size].micro if self.training else batch.ids.size
        return micro_batches(batch, micro, self.args.cores)

    def step(self, batch, size):
        return self.train(self.parts(batch, size)) if self.training else self.infer(batch)

    def train(self, batches):
        count = itertools.count()

        def step():
            self.workers.gradients(batches, 0, next(count))
            clip(self.arena.grad, 1.0)
            self.optimizer.step(1e-4)
        return step

    def infer(self, batch):
        """Through the public door: padded arrays in, padded hidden states out."""
        threads = self.args.cores
        order = np.argsort(-batch.mask.sum(1), kind="stable")
        shares = [rows for i in range(threads) if len(rows := order[i::threads])]
        each = map if threads == 1 else ThreadPoolExecutor(threads).map

        def run(rows):
            with no_grad():
                return self.model(batch.ids[rows], batch.mask[rows]).last_hidden_state.numpy()
        return lambda: list(each(run, shares))


# ---- the floor

def products(config, b, train):
    """(m, k, n, how many) of all products [m, k] x [k, n] of a forward pass over a micro-batch."""
    width, hidden, heads = config.width, config.hidden, config.heads
    tokens, cuts = len(b["ids"]), b["cuts"]
    lengths = np.diff(cuts)
    for layer in range(config.layers):
        rows, asked = tokens, lengths
        if train and layer == config.layers - 1:            # computed at the masked tokens alone
            rows, asked = len(b["asked"]), np.diff(np.searchsorted(b["asked"], cuts))
            yield from [(tokens, width, 2 * width, 1), (rows, width, width, 1)]     # k and v; q
        else:
            yield tokens, width, 3 * width, 1
        yield from [(rows, width, width, 1), (rows, width, hidden, 1), (rows, hidden, width, 1)]
        for (q, k), n in Counter(zip(asked.tolist(), lengths.tolist())).items():
            yield from [(q, width // heads, k, n * heads), (q, k, width // heads, n * heads)]
    if train:
        rows = len(b["asked"])
        yield from [(rows, width, width, 1), (rows, width, config.vocab, 1)]


def floor_of(config, batches, train):
    """(a function that does the products of a step and nothing else, how many operations)"""
    shapes = [shape for b in batches for shape in products(config, b, train)]
    # x [m, k], w [n, k] as files store it, y [m, n]; dx and dw have the shapes of x and w.
    wanted = [[(c, m, k), (c, n, k), (c, m, n), (c, m, k), (c, n, k)] for m, k, n, c in shapes]
    draw = np.random.default_rng(0).standard_normal
    pools = [draw(max(map(np.prod, column)), np.float32) for column in zip(*wanted)]
    steps = [[pool[:np.prod(shape)].reshape(shape) for pool, shape in zip(pools, row)]
             for row in wanted]

    def run():
        for x, w, y, dx, dw in steps:
            np.matmul(x, w.swapaxes(1, 2), out=y)
            if train:
                np.matmul(y, w, out=dx)
                np.matmul(y.swapaxes(1, 2), x, out=dw)
    return run, sum(2 * m * k * n * c for m, k, n, c in shapes) * (3 if train else 1)


# ---- the peer: transformers on torch

def import_peers():
    """torch and transformers; or None, and a line on standard error."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    try:
        import torch
        import transformers
    except ImportError as problem:
        return absent(problem)
    return torch, transformers


def absent(problem):
    say(f"no peer: {problem}; pip install '.[parity]' brings it. Our own numbers follow.")


class Peer:
    """The same configuration as transformers builds it, with scaled_dot_product_attention."""

    def __init__(self, peers, module, config, train, threads):
        (self.torch, transformers), self.training = peers, train
        self.torch.set_num_threads(threads)
        self.torch.manual_seed(0)
        settings = checkpoint.settings_of(module.Model(config, Init(), ()))
        settings = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        kind = transformers.AutoModelForMaskedLM if train else transformers.AutoModel
        extra = {} if train else dict(add_pooling_layer=False)
        model = kind.from_config(settings, attn_implementation="sdpa", **extra)
        self.model = model.train(train)

    def step(self, batch, call=None, fused=None):
        """A step of training or inference; `call` is the model as torch.compile left it."""
        torch, call = self.torch, self.model if call is None else call
        ids, mask, labels = (torch.from_numpy(np.ascontiguousarray(x)) for x in batch)
        weights = list(self.model.parameters())
        optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.01, fused=fused)

        def train():
            call(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def infer():
            with torch.inference_mode():
                return call(input_ids=ids, attention_mask=mask).last_hidden_state
        return train if self.training else infer


def compiled(peer, name, batches, args):
    """{lengths: step} under torch.compile, with torch's fused AdamW; {} and a note on failure."""
    say(f"{name}: torch.compile, at most {max(0, args.compile_seconds):.0f} s")
    began, steps = time.perf_counter(), {}
    try:
        with at_most(args.compile_seconds):
            model = peer.torch.compile(peer.model)
            for lengths, batch in batches.items():
                steps[lengths] = peer.step(batch, model, True)
                steps[lengths]()
    except Exception as problem:            # compilers fail in many ways; a bench does without
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0][:160]
        if LATE in str(problem):            # torch may have wrapped our own exception
            reason = "--compile-seconds are spent; what it has compiled is kept for the next run"
        args.notes.append(f"no torch.compile for {name}: {reason}")
        steps = {}
        peer.torch._dynamo.reset()
    args.compile_seconds -= time.perf_counter() - began
    return steps


LATE = "out of time"


@contextlib.contextmanager
def at_most(seconds):
    """Raise TimeoutError inside after so many seconds, on systems that can."""
    def ring(number, frame):
        raise TimeoutError(LATE)
    if seconds <= 0:
        raise TimeoutError(LATE)
    if not hasattr(signal, "setitimer"):
        return (yield)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- measuring

def interleave(sides, repeats, clock):
    """{name: seconds per call, round by round}. The sides take turns, so that whatever else the
    machine does falls on all alike."""
    calls, times = {}, {name: [] for name in sides}
    for name, side in sides.items():        # warm up, and find how many calls make 50 milliseconds
        start = clock()
        side()
        once = max(1e-6, clock() - start)
        calls[name] = max(1, int(0.05 / once))
    began = time.perf_counter()
    for i in range(repeats):
        if i >= ROUNDS and time.perf_counter() - began > PATIENCE:
            break
        for name, side in sides.items():
            start = clock()
            for _ in range(calls[name]):
                side()
            times[name].append((clock() - start) / calls[name])
    return times


def spread(values):
    """Half the interquartile range over the median; below four values, half the whole range."""
    few = len(values) < 4
    low, high = (min(values), max(values)) if few else quantiles(values, n=4)[::2]
    return (high - low) / 2 / median(values)


def numbers(amount, unit, times, peer):
    """The columns of every row: amount per second on both sides, their ratio and its spread."""
    row = dict(ours=amount / median(times["ours"]), peer=None, unit=unit, ratio=None,
               spread=spread(times["ours"]), peer_name=peer)
    if peer:
        row["peer"] = amount / median(times[peer])
        row["ratio"] = row["ours"] / row["peer"]
        row["spread"] = spread([p / o for p, o in zip(times[peer], times["ours"])])
    return row


# ---- the sections step and infer

def model_rows(args, peers):
    """Rows of the sections that run a model, as they are measured."""
    for size, section in itertools.product(args.size, [s for s in SECTIONS if s in args.section]):
        train = section == "step"
        for dropout in dict(step=args.dropout, infer=[0.0]).get(section, []):
            name = f"{section} {size}" + f" dropout {dropout:g}" * train
            module, config, batches = setting(args, size, dropout)
            ours = Ours(args, module, config, train)
            peer = peers and Peer(peers, module, config, train, args.cores)
            # Of the first dropout alone: torch.compile and fresh processes take their time.
            first, quick = not train or dropout == args.dropout[0], {}
            if peer and first and args.compile_seconds:
                quick = compiled(peer, name, batches, args)
            for lengths, batch in batches.items():
                say(f"{name} {lengths}")
                sides = dict(ours=ours.step(batch, size))
                floor, operations = floor_of(config, ours.parts(batch, size), train)
                sides |= dict(floor=floor) if args.cores == 1 else {}
                sides |= dict(transformers=peer.step(batch)) if peer else {}
                sides |= {"torch.compile": quick[lengths]} if lengths in quick else {}
                times = interleave(sides, args.repeats, args.clock)
                facts = dict(section=section, what="train" if train else "infer", model=args.model,
                             size=size, lengths=lengths, dropout=dropout)
                alone = in_processes(args, facts, peer) if first else {}
                yield from rows_of(facts, int(batch.mask.sum()), times, operations, alone)


def rows_of(facts, tokens, times, operations, alone):
    """A row for every peer that was measured, or one for us alone."""
    for peer in [name for name in ("transformers", "torch.compile") if name in times] or [None]:
        row = facts | numbers(tokens, "tokens/s", times, peer)
        if "floor" in times:
            row["floor_share"] = median(f / o for f, o in zip(times["floor"], times["ours"]))
            row["floor_gflops"] = operations / median(times["floor"]) / 1e9
        for side, name in ("ours", "ours"), ("peer", peer):
            if name in alone:
                row |= {f"{side}_{key}": alone[name][key] for key in ("mb", "imports_mb")}
        yield row


# ---- one side in a process of its own

def in_processes(args, facts, peer):
    """{side: what alone() tells}"""
    common = facts["section"], facts["size"], facts["dropout"], args.model, args.threads, args.micro
    jobs = [("ours", facts["lengths"])] + [("transformers", "full")] * bool(peer)
    told = {}
    for side, lengths in jobs:
        try:
            told[side] = child(side, lengths, *common)
        except Error as problem:                            # out of memory, as a rule: go on
            args.notes.append(str(problem))
    return told


@functools.cache
def child(side, lengths, section, size, dropout, model, threads, micro):
    command = [sys.executable, __file__, "--alone", side, "--lengths", lengths, "--section",
               section, "--size", size, "--dropout", str(dropout), "--model", model,
               "--threads", threads]
    command += ["--micro", str(micro)] if micro else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1]
        raise Error(f"{side} failed in a process of its own: {reason}")
    return json.loads(result.stdout.splitlines()[-1])


def alone(args, peers):
    """The child's part: MB of the imports, and MB above them at the peak."""
    section, size, lengths = args.section[0], args.size[0], args.lengths[0]
    imports, train = resident("VmRSS"), section == "step"
    module, config, batches = setting(args, size, args.dropout[0] if train else 0.0)
    if args.alone == "ours":
        side = Ours(args, module, config, train).step(batches[lengths], size)
    else:
        side = Peer(peers, module, config, train, args.cores).step(batches[lengths])
    interleave(dict(side=side), 2, args.clock)
    told = dict(imports_mb=imports, mb=resident("VmHWM") - imports)
    print(json.dumps(told))


def resident(field):
    """MB of this process in memory, now (VmRSS) or at the most so far (VmHWM).

    Linux says so itself. Elsewhere ru_maxrss stands for both; on Linux it would remember the
    parent's peak as well.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(field + r":\s+(\d+) kB", status)[1]) / 1024
    except OSError:
        if os.name == "nt":
            return 0.0
        import resource
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


# ---- the section text

def text_rows(args):
    """Encoding line by line: cold, with nothing remembered; warm, with every word seen before."""
    say("text: the corpus and its vocabulary")
    smoke = args.size == ["smoke"]
    documents = toy.documents(20) if smoke else corpus.embedded()
    lines = [sentence for document in documents for sentence in document.sentences]
    lines = lines[::max(1, sum(map(len, lines)) // 1_000_000)]      # a megabyte, from everywhere
    vocabulary = WordPiece.train(lines, 300 if smoke else 8192).vocab
    tokenizer = WordPiece(vocabulary)

    def encode(tokenizer):
        return [tokenizer.encode(line) for line in lines]
    sides = dict(warm=lambda: encode(tokenizer), cold=lambda: encode(WordPiece(vocabulary)))
    peers = text_peers(args, vocabulary, lines, encode(tokenizer)) if args.peers else {}
    say("text: encoding")
    times = interleave(sides | peers, args.repeats, args.clock)
    megabytes = sum(len(line.encode()) for line in lines) / 1e6
    for what, peer in itertools.product(sides, list(peers) or [None]):
        yield dict(section="text", what=f"encode {what}", model="wordpiece", lengths="full",
                   size=str(len(vocabulary)),
                   **numbers(megabytes, "MB/s", times | dict(ours=times[what]), peer))


def text_peers(args, vocabulary, lines, ours):
    """The same vocabulary in the tokenizers library (Rust), on as many threads as --threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = str(args.cores > 1).lower()
    os.environ["RAYON_NUM_THREADS"] = str(args.cores)
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as problem:
        return absent(problem) or {}
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    rust = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs = rust.encode_batch(lines, add_special_tokens=False)
    different = sum(a != b.ids for a, b in zip(ours, theirs))
    args.notes.append(f"text: {len(lines):,} lines, {different} of them encoded differently")
    # The second leaves out the positions in the text, as we do.
    return {"tokenizers": lambda: rust.encode_batch(lines, add_special_tokens=False),
            "tokenizers fast": lambda: rust.encode_batch_fast(lines, add_special_tokens=False)}


# ---- what comes out

COLUMNS = [                                 # heading, width (left when negative), key, format
    ("ratio", 6, "ratio", ".2f"), ("+-", 4, "spread", ".0%"), ("", 0, "", ""),
    ("what", -11, "what", ""), ("model", -9, "model", ""), ("size", -5, "size", ""),
    ("lengths", -7, "lengths", ""), ("drop", 4, "dropout", "g"), ("", 0, "", ""),
    ("beside", -15, "peer_name", ""), ("ours", 9, "ours", ",.1f"), ("peer", 9, "peer", ",.1f"),
    ("unit", -8, "unit", ""), ("of floor", 8, "floor_share", ".0%"),
    ("MB ours", 7, "ours_mb", ",.0f"), ("MB peer", 7, "peer_mb", ",.0f")]


def line(row=None):
    """A row of the table; its headings without one."""
    cells = []
    for heading, width, key, form in COLUMNS:
        value = row and row.get(key)
        text = heading if row is None or not key else "-" if value is None else format(value, form)
        cells.append(text.ljust(-width) if width < 0 else text.rjust(width))
    return " ".join(cells)


def machine(args):
    """What the numbers depend on."""
    known = {}
    for package in "numpy", "torch", "transformers", "tokenizers":
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[package] = metadata.version(package)
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, AttributeError):
        names = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        processor = names[1]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if args.cores > 1 and load > 0.3:       # torch's threads wait for the one that lost its core
        args.notes.append(f"other processes kept {load:.1f} cores busy before we began: with "
                          f"--threads all such numbers mean nothing, torch's least of all")
    return dict(date=time.strftime("%Y-%m-%d"), processor=processor, cores=cores(),
                load=round(load, 1), threads=args.cores, python=platform.python_version(),
                platform=platform.platform(), **known)


def closing_notes(rows):
    """What the columns have no room for."""
    imports = {side: max((row.get(f"{side}_imports_mb", 0) for row in rows), default=0)
               for side in ("ours", "peer")}
    if imports["ours"]:
        yield "imports alone take " + ", ".join(
            f"{side} {mb:,.0f} MB" for side, mb in imports.items() if mb)


def say(text):
    print(text, file=sys.stderr, flush=True)


def bench(args):
    wanted = args.peers and set(args.section) != {"text"} or args.alone == "transformers"
    peers = import_peers() if wanted else None
    if args.alone:
        return alone(args, peers)
    about, rows = machine(args), []
    print(", ".join(f"{key} {value}" for key, value in about.items()), line(), sep="\n", flush=True)
    for row in itertools.chain(model_rows(args, peers),
                               text_rows(args) if "text" in args.section else []):
        rows.append(row)
        print(line(row), flush=True)
    notes = [*args.notes, *closing_notes(rows)]
    print(*notes, sep="\n")
    if args.json:
        told = dict(machine=about, rows=rows, notes=notes)
        write_atomically(args.json, json.dumps(told, indent=1).encode())


def main(argv):
    try:
        bench(read_command(argv))
        return 0
    except Error as problem:
        say(f"error: {problem}")
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
