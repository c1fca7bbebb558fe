"""How fast is it, and how fast could it be?

    python bench.py                   our own numbers, and the share of the floor reached
    python bench.py --peers           beside transformers on torch, and the tokenizers library
    python bench.py --section step --size tiny --peers --json numbers.json
    python bench.py --section text --peers --data my_texts/
    python bench.py --section family  every model beside BERT, and beside what its paper says; then
                                      the papers' claims, each as a small experiment (an hour, and
                                      a few minutes with --quick)
    python bench.py --claims sop spans --keep my_claims/

The floor of a step is the time of its matrix products alone (a real step tells which), in arrays
that are there already, at the rate measured in the same run: no engine on this BLAS goes below. A
ratio above 1 means that we are faster; in the section family, that a model is faster than BERT.
Both sides get the same configuration and the same tokens, in one process, in turns; padding does
not count as tokens. transformers attends as it does by default, with SDPA where a class can.
Numbers are medians; +- is half the interquartile range of the ratio. On one thread, time is CPU
time, which survives a busy machine; with --threads all it is wall time, which wants a quiet one. MB
is a side's peak in a process of its own, above what its imports take; the peer's padded arrays take
the same whatever the lengths.

What is slow: small and base with --peers (half a minute to a minute a line), long inputs in the
section family, and torch.compile, which has --compile-seconds in all and finds in the next run what
it compiled in this one. What was measured before Ctrl-C is written to --json. Of the claims every
run is kept in --keep as soon as it is done, and not done again; there lie also their table and a
plot (claims.txt, .md, .json and .svg).

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
import inspect
import itertools
import json
import math
import platform
import re
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from tinybert_family import Error, checkpoint, claims, feeding, strips, trials
from tinybert_family.console import Parser
from tinybert_family.engine.autograd import no_grad
from tinybert_family.engine.nn import Init
from tinybert_family.engine.optim import AdamW, Arena, clip
from tinybert_family.files import write_atomically
from tinybert_family.measuring import interleave, numbers, operations, products, resident, ROUNDS
from tinybert_family.text import corpus, tokenizer_files, toy
from tinybert_family.text.encoders import cores
from tinybert_family.text.tokenizer import Memo
from tinybert_family.workers import Workers


class Work(NamedTuple):
    """What a size of model is given to do. vocab: in place of the model's own. micro: tokens in one
    of our micro-batches, the best of 256 to 4,096 where they were tried; two cores halve it where
    there would be one alone."""
    vocab: int | None
    seq: int
    batch: int
    micro: int


SECTIONS = "step", "infer", "text", "family"
SIZES = dict(smoke=Work(2048, 32, 6, 64), tiny=Work(8192, 128, 32, 2048),
             mini=Work(8192, 128, 16, 2048), small=Work(8192, 128, 16, 2048),
             base=Work(None, 128, 4, 2048))
LENGTHS = "full", "ragged"
DROPOUTS = 0.1, 0.0
MASK, IGNORED = 103, -100       # [MASK] in BERT's vocabulary; what torch's loss passes over


# ---- the command line

def read_command(argv):
    parser = Parser(prog="bench.py", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--section", nargs="+", action="extend", choices=SECTIONS, help="default: all of them")
    add("--peers", action="store_true", help="measure the libraries people use now beside us")
    add("--size", nargs="+", action="extend", help="default: tiny, mini, small and base, where a "
        "model has them; the section family has base, or smoke if that is asked for")
    add("--model", nargs="+", action="extend", choices=[*checkpoint.MODELS, "all"],
        help="in step and infer (default: bert, and in infer the base of all); family has all")
    add("--lengths", nargs="+", choices=LENGTHS, default=LENGTHS)
    add("--dropout", nargs="+", type=float, choices=DROPOUTS, default=DROPOUTS, help="in training")
    add("--threads", choices=["1", "all"], default="1", help="1: CPU time; all: wall time")
    add("--repeats", type=int, default=5, metavar="N", help="rounds of a line (default 5)")
    add("--micro", type=int, metavar="TOKENS", help="in one of our micro-batches")
    add("--compile-seconds", type=float, default=60, metavar="S",
        help="for torch.compile, in all (default 60; 0: leave it out)")
    add("--data", metavar="PATH", nargs="+", help="for the section text and the claims; default: "
        "Python's own documentation")
    add("--claims", nargs="+", choices=[*claims.NAMES, "all", "none"], help="which of the papers' "
        "claims to test; all with --section family")
    add("--quick", action="store_true", help="an eighth of the steps and two seeds for the claims")
    add("--seeds", type=int, metavar="N", help="runs of each arm of a claim (default 3)")
    add("--keep", metavar="FOLDER", default="runs/claims", help="of the claims' runs")
    add("--json", metavar="FILE", help="write all numbers there, too")
    add("--alone", choices=["ours", "transformers"],
        help="one side of the first line in this process: its memory and time, as JSON")
    args = parser.read(argv)
    args.others = () if args.model or args.size else checkpoint.MODELS[1:]
    args.claims = chosen_claims(args)
    if args.claims and not args.section:
        args.section = ["claims"]
    args.section, args.model = args.section or SECTIONS, args.model or ["bert"]
    if "all" in args.model:
        args.model = checkpoint.MODELS
    for name in "repeats", "micro", "seeds":
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise Error(f"--{name} {getattr(args, name)}: it must be at least 1")
    if args.data:
        corpus.read(args.data)                      # complains now, not after minutes
    if args.json and not (folder := Path(args.json).absolute().parent).is_dir():
        raise Error(f"--json {args.json}: there is no folder {folder}; make it first")
    args.cores = 1 if args.threads == "1" else cores()
    args.clock = time.process_time if args.threads == "1" else time.perf_counter
    args.notes = []
    args.lines = lines_of(args)
    return args


def chosen_claims(args):
    """Those asked for; all with the section family, if that is asked for; else none."""
    asked = args.claims or (["all"] if "family" in (args.section or ()) else [])
    if "none" in asked:
        return []
    return claims.NAMES if "all" in asked else list(dict.fromkeys(asked))


def lines_of(args):
    """[(model, size)] of the sections step and infer."""
    has = {name: checkpoint.variant(name, "--model").SIZES for name in args.model}
    for size in args.size or ():
        without = [name for name in has if size not in has[name]]
        if len(without) == len(has):
            known = ", ".join(dict.fromkeys(itertools.chain(*has.values())))
            raise Error(f"--size {size}: there is no such size; these are: {known}")
        if without:
            args.notes.append(f"no size {size}: {', '.join(without)}")
    sizes = args.size or list(SIZES)[1:]
    return [(name, size) for name in has for size in sizes if size in has[name]]


# ---- the work: the same tokens for both sides

class Batch(NamedTuple):
    ids: np.ndarray             # [B, S]
    mask: np.ndarray            # [B, S] 1 where there is a token
    labels: np.ndarray          # [B, S] the hidden tokens, IGNORED elsewhere


def setting(model, size, dropout=0.0):
    """(the model's file, its Config, its Work)"""
    module, work = checkpoint.variant(model, "--model"), SIZES.get(size, SIZES["base"])
    config = module.SIZES[size]
    work = work._replace(vocab=work.vocab or config.vocab)
    config = replace(config, vocab=work.vocab, init=0.02, dropout=dropout,
                     attention_dropout=dropout)
    return module, config, work


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


def micro_batches(model, batch, tokens, threads):
    """The batch without padding, in parts of about `tokens` tokens, neighbours in length together;
    as many parts as threads can share evenly."""
    lengths = batch.mask.sum(1)
    order = np.argsort(-lengths, kind="stable")
    parts = -(-max(1, round(lengths.sum() / tokens)) // threads) * threads
    before = np.cumsum(lengths[order]) - lengths[order]
    shares = before * parts // lengths.sum()
    return [packed(model, batch, order[shares == i]) for i in np.unique(shares)]


def packed(model, batch, rows):
    inputs = model.pack(batch.ids[rows], batch.mask[rows], None)
    labels = batch.labels[rows].reshape(-1)[inputs.index]                           # [T]
    asked = np.flatnonzero(labels != IGNORED)
    return dict(inputs=inputs, asked=asked, labels=labels[asked])


# ---- our side: the loop of train.py minus everything

class MaskedWords:
    """The objective both sides have: masked words alone."""

    @staticmethod
    def counts(b):
        return len(b["labels"])

    @staticmethod
    def loss(model, b, count):
        x = model.encode(b["inputs"], b["asked"])                                       # [K, H]
        return dict(mlm_loss=model.mlm.loss(x, b["labels"], np.full(len(x), 1 / count, x.dtype)))

    @staticmethod
    def total(losses):
        return losses["mlm_loss"]


class Ours:
    """Our model, and what a training step or an inference on a batch is."""

    def __init__(self, args, module, config, work, train):
        self.args, self.work, self.training = args, work, train
        heads = checkpoint.heads_for(module, "mlm") if train else ()
        self.model = module.Model(config, Init(0, config.init), heads)
        self.parameters = sum(t.size for t in self.model.named().values())
        if train:
            self.arena = Arena(self.model.named().items())
            self.optimizer = AdamW(self.arena)
            self.workers = Workers(self.model, self.arena, MaskedWords, args.cores)

    def parts(self, batch):
        micro = self.args.micro or self.work.micro
        return micro_batches(self.model, batch, micro, self.args.cores)

    def step(self, batch):
        return self.train(self.parts(batch)) if self.training else self.infer(batch)

    def forward(self, batch):
        """The part of a step that comes before backward."""
        def losses():
            with no_grad():
                return [MaskedWords.loss(self.model, b, 1) for b in self.parts(batch)]
        return losses if self.training else self.infer(batch)

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

def floor_of(shapes, train):
    """(a function that does the products of a step and nothing else, how many operations)"""
    # x [m, k], w [n, k] as files store it, y [m, n]; dx and dw have the shapes of x and w.
    wanted = [[(c, m, k), (c, n, k), (c, m, n), (c, m, k), (c, n, k)] for m, k, n, c in shapes]
    draw = np.random.default_rng(0).standard_normal
    pools = [draw(max(map(math.prod, column)), np.float32) for column in zip(*wanted)]
    steps = [[pool[:math.prod(shape)].reshape(shape) for pool, shape in zip(pools, row)]
             for row in wanted]

    def run():
        for x, w, y, dx, dw in steps:
            np.matmul(x, w.swapaxes(1, 2), out=y)
            if train:
                np.matmul(y, w, out=dx)
                np.matmul(y.swapaxes(1, 2), x, out=dw)
    return run, operations(shapes) * (3 if train else 1)


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


def peer_of(args, peers, name, ours):
    """The Peer of a model; None, and a note, where transformers has no such network."""
    if not peers:
        return None
    settings, problem = checkpoint.settings_of(ours.model), "transformers has no such model"
    if settings["model_type"] in peers[1].CONFIG_MAPPING:
        peer = Peer(peers, settings, ours.training, args.cores)
        if peer.parameters == ours.parameters:
            return peer
        problem = (f"transformers makes {peer.parameters:,} parameters of its config.json, not "
                   f"{ours.parameters:,}")
    note = f"{name} is measured alone: {problem}"
    args.notes += [note] * (note not in args.notes)


class Peer:
    """What transformers builds from our config.json."""

    def __init__(self, peers, settings, train, threads):
        (self.torch, transformers), self.training = peers, train
        self.torch.set_num_threads(threads)
        self.torch.manual_seed(0)
        settings = transformers.AutoConfig.for_model(**settings)
        kind = transformers.AutoModelForMaskedLM if train else transformers.AutoModel
        bare = transformers.MODEL_MAPPING[type(settings)]
        poolable = not train and "add_pooling_layer" in inspect.signature(bare.__init__).parameters
        extra = dict(add_pooling_layer=False) if poolable else {}
        self.model = kind.from_config(settings, **extra).train(train)
        self.parameters = sum(p.numel() for p in self.model.parameters())

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
    say(f"{name}: torch.compile, at most {args.compile_seconds:.0f} s")
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
    if not hasattr(signal, "setitimer"):
        return (yield)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- the sections step and infer

def model_rows(args, peers):
    """Rows of the sections that run a model, as they are measured."""
    dropouts = dict(step=args.dropout, infer=[0.0])
    for (name, size), section in itertools.product(args.lines, dropouts):
        for dropout in dropouts[section] if section in args.section else ():
            yield from measured(args, peers, section, name, size, dropout)
    for name in args.others if "infer" in args.section else ():
        yield from measured(args, peers, "infer", name, "base", 0.0)


def measured(args, peers, section, name, size, dropout):
    """The rows of one model, for every kind of lengths."""
    train = section == "step"
    title = f"{section} {name} {size}" + f" dropout {dropout:g}" * train
    module, config, work = setting(name, size, dropout)
    batches = {lengths: make_batch(work, lengths) for lengths in args.lengths}
    ours = Ours(args, module, config, work, train)
    peer = peer_of(args, peers, f"{name} {size}", ours)
    # Of the first dropout alone: torch.compile and fresh processes take their time.
    first, quick = not train or dropout == args.dropout[0], {}
    if peer and first and args.compile_seconds > 0:
        quick = compiled(peer, title, batches, args)
    for lengths, batch in batches.items():
        say(f"{title} {lengths}")
        sides = dict(ours=ours.step(batch))
        floor, count = floor_of(products(ours.forward(batch)), train)
        sides |= dict(floor=floor) if args.cores == 1 else {}
        sides |= dict(transformers=peer.step(batch)) if peer else {}
        sides |= {"torch.compile": quick[lengths]} if lengths in quick else {}
        times = interleave(sides, args.repeats, args.clock)
        facts = dict(section=section, what="train" if train else "infer", model=name, size=size,
                     lengths=lengths, dropout=dropout)
        alone = in_processes(args, facts, peer) if first else {}
        yield from rows_of(facts, int(batch.mask.sum()), times, count, alone)


def rows_of(facts, tokens, times, count, alone):
    """A row for every peer that was measured, or one for us alone."""
    for peer in [name for name in ("transformers", "torch.compile") if name in times] or [None]:
        row = facts | numbers(tokens, "tokens/s", times, peer)
        if "floor" in times:
            row["floor_share"] = median(f / o for f, o in zip(times["floor"], times["ours"]))
            row["floor_gflops"] = count / median(times["floor"]) / 1e9
        for side, name in ("ours", "ours"), ("peer", peer):
            if name in alone:
                row |= {f"{side}_{key}": alone[name][key] for key in ("mb", "imports_mb")}
        yield row


# ---- one side in a process of its own

def in_processes(args, facts, peer):
    """{side: what alone() tells}"""
    common = [facts[key] for key in ("section", "size", "dropout", "model")]
    common += args.threads, args.micro
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
    (name, size), lengths = args.lines[0], args.lengths[0]
    imports, train = resident("VmRSS"), args.section[0] == "step"
    module, config, work = setting(name, size, args.dropout[0] if train else 0.0)
    batch = make_batch(work, lengths)
    if args.alone == "ours":
        side = Ours(args, module, config, work, train).step(batch)
    else:
        settings = checkpoint.settings_of(module.Model(config, Init(), ()))
        side = Peer(peers, settings, train, args.cores).step(batch)
    interleave(dict(side=side), 2, args.clock)
    told = dict(imports_mb=imports, mb=resident("VmHWM") - imports)
    print(json.dumps(told))


# ---- the section text

def text_rows(args):
    """Every kind of tokenizer learns a vocabulary, and encodes with it, line by line."""
    smoke, speeds = args.size == ["smoke"], {}
    if args.data:
        documents = corpus.read(args.data)
    else:
        documents = toy.documents(20) if smoke else corpus.embedded()
    lines = [line for document in documents for line in document.sentences]
    lines = lines[::max(1, sum(map(len, lines)) // 2_000_000)]      # from everywhere
    yield from data_rows(args, smoke)
    library = import_tokenizers(args) if args.peers else None
    for kind in tokenizer_files.KINDS.values():
        say(f"text: {kind.KIND}")
        ours = yield from learning(args, kind, lines, 300 if smoke else 8192, library)
        speeds[kind.KIND] = yield from encoding(args, ours, lines, library)
    for size in ("smoke",) if smoke else ("smoke", "tiny"):
        model = Ours(args, *setting("bert", size, 0.1), True)
        batch = make_batch(model.work, "full")
        step = median(interleave(dict(step=model.step(batch)), args.repeats, args.clock)["step"])
        told = [f"{batch.ids.size / speed / step:.2%} {name}" for name, speed in speeds.items()]
        args.notes.append(f"text: encoding {batch.ids.size:,} new tokens takes, of the time of a "
                          f"training step on them, bert {size}: {', '.join(told)}")


def data_rows(args, smoke):
    """How fast each objective's batches are made, beside how fast they ought to be."""
    scale = trials.Scale(words=8192, stories=60, data=tuple(args.data or ()))
    text = trials.text_of("toy" if smoke else "text", scale)
    for name in checkpoint.MODELS:
        say(f"text: data of {name}")
        try:
            objective = feeding.objective_of(name, text, "smoke" if smoke else "base")
        except Error as problem:
            args.notes.append(f"text: no data of {name} from this text: {problem}")
            continue
        run, tokens = feeding.feeder(objective)
        times = interleave(dict(ours=run), args.repeats, time.process_time)
        facts = dict(section="text", what="data", model=name, lengths="full")
        row = facts | numbers(tokens, "tokens/s", times, None)
        row["size"] = str(objective.config.seq)
        row["peer_name"], row["peer"] = "goal", feeding.goal(name)
        row["ratio"] = row["ours"] / row["peer"]
        yield row


def learning(args, kind, lines, size, library):
    """A row, then our tokenizer; how well both vocabularies suit other text goes into a note."""
    learnt, held, made = [x for i, x in enumerate(lines) if i % 10], lines[::10], {}
    sides = dict(ours=lambda: made.update(ours=kind.train(learnt, size)))
    if library:
        sides["tokenizers"] = lambda: made.update(
            tokenizers=rust_trained(library, made["ours"], learnt))
    times = interleave(sides, min(args.repeats, ROUNDS), args.clock)
    ours = made["ours"]
    coded = dict(ours=map(ours.encode, held))
    if library:
        theirs = rust_encoder(made["tokenizers"].encode_batch, held)
        name = f"tokenizers with {made['tokenizers'].get_vocab_size():,}"
        coded[name] = (x.ids for x in theirs())
    fits = {side: sum(map(len, held)) / sum(map(len, ids)) for side, ids in coded.items()}
    told = [f"{value:.3f} {side}" for side, value in fits.items()]
    args.notes.append(f"text: {kind.KIND}, {ours.size:,} pieces; held-out characters a token: "
                      f"{', '.join(told)}")
    yield text_row(ours, "learn", learnt, times, "tokenizers" if library else None)
    return ours


def encoding(args, ours, lines, library):
    """Rows: warm, every word seen before; cold, nothing remembered. Then tokens a second, cold."""
    def warm():
        return [ours.encode(line) for line in lines]

    def cold():
        for memory in vars(ours).values():
            if isinstance(memory, Memo):
                memory.clear()
        return warm()
    ids, sides, peers = warm(), dict(warm=warm, cold=cold), {}
    if library:
        rust = library.Tokenizer.from_str(json.dumps(tokenizer_files.whole_of(ours)))
        # The second leaves out the positions in the text, as we do.
        peers = {"tokenizers": rust_encoder(rust.encode_batch, lines),
                 "tokenizers fast": rust_encoder(rust.encode_batch_fast, lines)}
        different = sum(a != b.ids for a, b in zip(ids, peers["tokenizers"]()))
        args.notes.append(f"text: {ours.KIND}, {len(lines):,} lines, {different} of them encoded "
                          "differently")
    times = interleave(sides | peers, args.repeats, args.clock)
    for what, peer in itertools.product(sides, list(peers) or [None]):
        yield text_row(ours, f"encode {what}", lines, times | dict(ours=times[what]), peer)
    return sum(map(len, ids)) / median(times["cold"])


def text_row(ours, what, lines, times, peer):
    megabytes = sum(len(line.encode()) for line in lines) / 1e6
    return dict(section="text", what=what, model=ours.KIND.lower(), size=str(ours.size),
                lengths="full", **numbers(megabytes, "MB/s", times, peer))


def import_tokenizers(args):
    """The tokenizers library (Rust), on as many threads as --threads; or None."""
    os.environ["TOKENIZERS_PARALLELISM"] = str(args.cores > 1).lower()
    try:
        import tokenizers
    except ImportError as problem:
        return absent(problem)
    return tokenizers


def rust_encoder(encode, lines):
    return lambda: encode(lines, add_special_tokens=False)


def rust_trained(library, ours, texts):
    """Their own vocabulary from the same texts, as large as ours; the text cleaned and split so."""
    rust = library.Tokenizer.from_str(json.dumps(tokenizer_files.whole_of(ours)))
    first = dict(BPE=dict(initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()),
                 Unigram=dict(unk_token=ours.roles["unk"]))
    trainer = getattr(library.trainers, ours.KIND.replace("BPE", "Bpe") + "Trainer")
    special = [token.text for token in ours.added]
    rust.train_from_iterator(texts, trainer(vocab_size=ours.size, special_tokens=special,
                                            show_progress=False, **first.get(ours.KIND, {})))
    return rust


# ---- the section family

# What papers say: how many times faster than BERT-base, on what, and how many times smaller.
CLAIMS = dict(
    distilbert=dict(said_faster=1.6, said_of="a CPU (Sanh and others, 2019)", said_smaller=1 / 0.6),
    albert=dict(said_faster=1.0, said_of="the operations (Lan and others, 2020)", said_smaller=9.0),
    tinybert=dict(said_faster=9.4, said_of="a K80 GPU (Jiao and others, 2020)", said_smaller=7.5),
    mobilebert=dict(said_faster=5.5, said_of="a phone (Sun and others, 2020)", said_smaller=4.3),
    # Made for long inputs: in thousands of tokens a second, at 8,192 tokens against 512.
    long=dict(said_faster=123.7 / 148.1, said_of="an RTX 4090 (Warner and others, 2024)"))
LONG = dict(smoke=(32, 128), base=(512, 4096))      # 8,192 would keep us waiting


class Member:
    """A model of the family as it is published, ours and the peer's."""

    def __init__(self, args, peers, name, size):
        module, config, self.work = setting(name, size)
        self.name, self.size = name, size
        self.ours = Ours(args, module, config, self.work, False)
        self.peer = peer_of(args, peers, f"{name} {size}", self.ours)
        published = module.Model(config, Init(), next(iter(module.HF_CLASSES.values()), ()))
        self.parameters = sum(t.size for t in published.named().values())


def family_rows(args, peers):
    """Every model beside BERT: its size, what it computes, its speed; and what its paper says."""
    size, said = ("smoke", {}) if args.size == ["smoke"] else ("base", CLAIMS)
    bert = Member(args, peers, "bert", size)
    seq, (short, long) = bert.work.seq, LONG[size]
    for name in checkpoint.MODELS:
        this = Member(args, peers, name, size)
        yield from beside(args, (this, seq), (bert, seq), said.get(name, {}))
        if name == "modernbert":
            yield from beside(args, (this, short), (bert, short), {})
            yield from beside(args, (this, long), (this, short), said.get("long", {}))


def beside(args, this, base, said):
    """A row for one (Member, tokens in a sequence) beside another, and one beside the peer."""
    (member, seq), (other, other_seq) = this, base
    say(f"family {member.name} {member.size}, sequences of {seq} tokens")
    peers = member.peer and other.peer
    sides, tokens = {}, {}
    for suffix, (model, length) in {"": this, " base": base}.items():
        count = max(1, model.work.batch * model.work.seq // length)
        batch = make_batch(model.work._replace(seq=length, batch=count), "full")
        sides["ours" + suffix] = model.ours.step(batch)
        if peers:
            sides["transformers" + suffix] = model.peer.step(batch)
        tokens |= dict.fromkeys(sides.keys() - tokens.keys(), batch.ids.size)
    flops = operations(products(sides["ours"])) / tokens["ours"]
    times = interleave(sides, args.repeats, args.clock)
    each = {side: [t / tokens[side] for t in times[side]] for side in sides}    # for a token
    facts = dict(section="family", what="infer", model=member.name, size=member.size,
                 lengths="full", seq=seq, parameters=member.parameters, flops=flops,
                 smaller=other.parameters / member.parameters, **said)
    name = f"at {other_seq} tokens" if other is member else other.name
    row = facts | numbers(1, "tokens/s", each | {name: each["ours base"]}, name)
    if peers:
        row["peers_ratio"] = median(each["transformers base"]) / median(each["transformers"])
    yield row
    if peers:
        yield facts | numbers(1, "tokens/s", each, "transformers")


# ---- what the papers claim

def claim_rows(args):
    """A row for each claim, of runs that are done now or were kept."""
    scale, seeds = (trials.QUICK, 2) if args.quick else (trials.FULL, 3)
    scale = replace(scale, data=tuple(args.data or ()))
    seeds = args.seeds or seeds
    wanted = claims.wanted(args.claims)
    results = trials.run(claims.ARMS, wanted, seeds, scale, args.keep, cores(), say,
                         claims.COMMAND)
    chosen = [claim for claim in claims.CLAIMS if claim.name in args.claims]
    rows = list(filter(None, (claims.judged(claim, results) for claim in chosen)))
    if len(rows) < len(chosen):
        args.notes.append(f"claims: {len(chosen) - len(rows)} could not be tested, see above")
    args.notes.append(f"claims: {claims.summary(rows)}; table and plot are in {args.keep}")
    text = [line for row in rows for line in claims.lines(row)]
    files = {"claims.txt": "\n".join([*text, ""]),
             "claims.md": "\n".join([*claims.table(rows), ""]),
             "claims.json": json.dumps(rows, indent=1),
             "claims.svg": strips.svg(rows)}
    for name, content in files.items():
        write_atomically(Path(args.keep) / name, content.encode())
    return rows


# ---- what comes out

COLUMNS = [                                 # heading, width (left when negative), key, format
    ("ratio", 6, "ratio", ".2f"), ("+-", 4, "spread", ".0%"), ("", 0, "", ""),
    ("what", -11, "what", ""), ("model", -10, "model", ""), ("size", -5, "size", ""),
    ("lengths", -7, "lengths", ""), ("drop", 4, "dropout", "g"), ("", 0, "", ""),
    ("beside", -15, "peer_name", ""), ("ours", 9, "ours", ",.1f"), ("peer", 9, "peer", ",.1f"),
    ("unit", -8, "unit", ""), ("of floor", 8, "floor_share", ".0%"),
    ("MB ours", 7, "ours_mb", ",.0f"), ("MB peer", 7, "peer_mb", ",.0f")]
FAMILY = [                                  # theirs: what ratio is of ours, of transformers'
    ("ratio", 6, "ratio", ".2f"), ("+-", 4, "spread", ".0%"), ("theirs", 6, "peers_ratio", ".2f"),
    ("said", 5, "said_faster", ".2f"), ("", 0, "", ""), ("model", -10, "model", ""),
    ("seq", 5, "seq", ""), ("beside", -13, "peer_name", ""), ("tokens/s", 9, "ours", ",.1f"),
    ("beside", 9, "peer", ",.1f"), ("parameters", 11, "parameters", ",d"),
    ("smaller", 7, "smaller", ".2f"), ("said", 5, "said_smaller", ".2f"),
    ("FLOPs/token", 12, "flops", ",.0f"), ("said of", 0, "said_of", "")]


def line(columns, row=None):
    """A row of the table; its headings without one."""
    cells = []
    for heading, width, key, form in columns:
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


def all_rows(args, peers):
    """Of the sections that are asked for, as they are measured."""
    yield from model_rows(args, peers)
    if "text" in args.section:
        yield from text_rows(args)
    if "family" in args.section:
        yield from family_rows(args, peers)
    if args.claims:
        yield from claim_rows(args)


def bench(args):
    modelled = set(args.section) - {"text", "claims"}
    wanted = args.peers and modelled or args.alone == "transformers"
    peers = import_peers() if wanted else None
    if args.alone:
        return alone(args, peers)
    about, rows, columns = machine(args), [], None
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    try:
        for row in all_rows(args, peers):
            rows.append(row)
            if row["section"] == "claims":
                print(*claims.lines(row), sep="\n", flush=True)
                continue
            before, columns = columns, FAMILY if row["section"] == "family" else COLUMNS
            if columns is not before:
                print(line(columns))
            print(line(columns, row), flush=True)
    finally:
        notes = [*args.notes, *closing_notes(rows)]
        print(*notes, sep="\n")
        if args.json and rows:
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
