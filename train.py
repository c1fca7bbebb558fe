"""Pre-train a model of the BERT family.

    python train.py                                 a small BERT on the documentation that Python ships, in minutes
    python train.py MODEL [--size SIZE] [--data FILE_OR_FOLDER ...] [--out FOLDER] [--resume] [--any-setting value]

The whole of training stands in this file, from top to bottom: the command line, the data, the loop, what is kept.
"""
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")      # cores share micro-batches, not single products: see Workers

import argparse
import hashlib
import itertools
import json
import math
import platform
import re
import shlex
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

import tinybert_family as tbf
from tinybert_family import Error, checkpoint, files, fillings, report, runs
from tinybert_family.console import Parser, Progress, say
from tinybert_family.engine import backend
from tinybert_family.engine.nn import Init
from tinybert_family.engine.optim import OPTIMIZERS, SCHEDULES, Arena, clip
from tinybert_family.text import corpus as texts
from tinybert_family.text.batches import Prefetch, pack
from tinybert_family.text.wordpiece import WordPiece
from tinybert_family.workers import Workers

ORDER, HELD_OUT_COPY = 1, 0                             # streams of random numbers beside those of the data


# ---- the command line

def options():
    """The options that are not settings of the model's Config."""
    parser = Parser(prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    add = parser.add_argument
    add("model", nargs="?", default="bert", metavar="MODEL", help=" ".join(sorted(checkpoint.VARIANTS)))
    add("--size", default="smoke", help="a row of the model's SIZES (default smoke)")
    add("--data", nargs="+", metavar="PATH", help="text files or folders (.txt .jsonl .gz); default: Python's own docs")
    add("--encoding", default="utf-8", help="of the text files")
    add("--tokenizer", metavar="FOLDER", help="use this vocab.txt instead of training one")
    add("--out", metavar="FOLDER", help="the run's folder (default runs/MODEL-SIZE)")
    add("--resume", action="store_true", help="continue the run in --out, to the same bits")
    add("--seed", type=int, default=0)
    add("--device", choices=["auto", "cpu", "gpu"], default="auto")
    add("--workers", type=int, help="threads that share a step's micro-batches (default: one per core)")
    add("--log-every", type=int, default=50, metavar="N", help="steps between training rows in metrics.jsonl")
    add("--eval-every", type=int, default=500, metavar="N", help="steps between held-out rows")
    add("--save-every", type=int, default=500, metavar="N", help="steps between checkpoints")
    return parser


def read_command(argv):
    """-> (options, the model's file, its Config, the names that were given on the command line)"""
    model = argv[0] if argv and not argv[0].startswith("-") else "bert"
    module = checkpoint.variant(model, "MODEL (the first word of the command)")
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--size", default="smoke")
    size = first.parse_known_args(argv)[0].size
    if size not in module.SIZES:
        raise Error(f"--size {size}: {model} has the sizes {', '.join(module.SIZES)}")
    parser = options()
    base = module.SIZES[size]
    parser.add_settings(module, base)
    args = parser.read(argv)
    if args.seed < 0 or args.seed >= 2 ** 32:
        raise Error(f"--seed {args.seed}: a seed is a whole number from 0 to {2 ** 32 - 1}")
    given = {k: v for k, v in vars(args).items() if k.startswith("config_") and v is not None}
    config = replace(base, **{k.removeprefix("config_"): v for k, v in given.items()})
    explicit = {a.split("=")[0].lstrip("-").replace("-", "_") for a in argv if a.startswith("--")}
    return args, module, config, explicit


# ---- the data

def documents_of(args):
    """(a function that begins the documents anew, their name)"""
    if args.data:
        paths = [str(p) for p in args.data]
        texts.read(paths, args.encoding)                            # complain now, not after a minute
        return lambda: texts.read(paths, args.encoding), " ".join(paths)
    documents, about = texts.embedded_with_info()
    return lambda: iter(documents), about["name"]


def vocabulary(args, config, documents):
    """A tokenizer trained on a sample of the corpus, as large as the corpus can fill."""
    sample, characters = [], 0
    for document in documents():
        sample.append("\n".join(document.sentences))
        characters += len(sample[-1])
        if characters > 20_000_000:
            break
    size = min(config.vocab, max(1024, 1 << int(math.log2(max(1, characters // 300)))))
    return WordPiece.train(sample, config.vocab if args.config_vocab else size)


def corpus_of(documents, name, args, tokenizer):
    """The corpus as memory-mapped numbers, made once for a text and a vocabulary."""
    key = hashlib.sha256("\n".join(tokenizer.vocab).encode())
    for path, *_ in texts.listed([Path(p) for p in args.data or []]):
        key.update(f"{path} {os.stat(path).st_size} {os.stat(path).st_mtime_ns}".encode())
    key.update(name.encode() + args.encoding.encode())
    folder = texts.cache_folder() / f"corpus-{key.hexdigest()[:16]}"
    if folder.exists():
        try:
            return texts.Corpus.open(folder)
        except Error:
            pass                                                    # damaged: made anew
    return texts.Corpus.build(documents(), tokenizer, folder, name)


def micro_batches(objective, config, documents, seed, position):
    """Endless (batch, position after it). A position is (pass over the corpus, micro-batch in it), so a stream that
    starts at a position goes on exactly as one that came there."""
    epoch, start = position
    while True:
        copy = epoch % config.copies
        plan = objective.plan(documents, copy)
        plan = plan[np.random.default_rng([seed, ORDER, epoch]).permutation(len(plan))]
        packs = pack(objective.lengths(plan), config.tokens)
        for i in range(start, len(packs)):
            yield objective.batch(plan[packs[i]], copy), (epoch, i + 1)
        epoch, start = epoch + 1, 0


def steps_of(stream, count):
    """Micro-batches by the step: (list of them, position after the last)."""
    while True:
        batches, positions = zip(*itertools.islice(stream, count))
        yield list(batches), positions[-1]


def held_out(objective, config, documents, most=16):
    """A fixed set of micro-batches of held-out text."""
    plan = objective.plan(documents, HELD_OUT_COPY)
    return [objective.batch(plan[rows], HELD_OUT_COPY) for rows in pack(objective.lengths(plan), config.tokens)[:most]]


def baseline(corpus, batches, vocabulary):
    """What needs no model: the loss of each word's frequency, and the score of always guessing the commonest."""
    counts = np.ones(len(vocabulary))
    for document in corpus.train:
        first, last = corpus.sentences[corpus.documents[document:document + 2]]
        counts += np.bincount(corpus.ids[first:last], minlength=len(counts))
    labels = np.concatenate([b["labels"] for b in batches])
    commonest = int(counts.argmax())
    return dict(loss=float(-np.log(counts / counts.sum())[labels].mean()), token=vocabulary[commonest],
                accuracy=float((labels == commonest).mean()))


# ---- the work of a step

def held_out_row(scores):
    losses = [value for name, value in scores.items() if name.endswith("_loss")]
    return dict(eval_loss=sum(losses), perplexity=math.exp(min(50, scores["mlm_loss"])), **scores)


class Stop:
    """SIGINT and SIGTERM end the run after the step in hand; a second one ends it at once."""
    signal = None

    def __init__(self):
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, self)

    def __call__(self, number, frame):
        signal.signal(number, signal.SIG_DFL)
        self.signal = number


# ---- a run

class Run:
    """What a run keeps on disk, and how it goes on from there."""

    def __init__(self, folder):
        self.folder = folder
        self.checkpoints = runs.Checkpoints(folder / "checkpoints")

    def open_logs(self, step):
        self.metrics, self.fillings = runs.Log(self.folder / "metrics.jsonl"), runs.Log(self.folder / "fillings.jsonl")
        for log in self.metrics, self.fillings:
            log.rewind(step)

    def save(self, step, model, optimizer, state):
        self.metrics.sync()
        self.fillings.sync()
        arrays = dict(model=checkpoint.published_arrays(model), optimizer=dict(m=optimizer.m, v=optimizer.v))
        saved = self.checkpoints.save(step, arrays, dict(state, updates=optimizer.steps))
        # The folder itself is a Hugging Face folder: its weights are the newest checkpoint's.
        link = self.folder / f".model-{os.getpid()}"
        link.unlink(missing_ok=True)
        try:
            os.link(saved / "model.safetensors", link)
            os.replace(link, self.folder / "model.safetensors")
        except OSError:                                             # a file system without hard links
            tbf.save(model, self.folder)

    def restore(self, model, arena, optimizer, saved):
        _, arrays, state = saved
        for name, tensor, rows in checkpoint.published(model):
            tensor.data[slice(None) if rows is None else rows] = arrays["model"][name]
        optimizer.m[...], optimizer.v[...] = arrays["optimizer"]["m"], arrays["optimizer"]["v"]
        optimizer.steps = state["updates"]
        return state


def folder_for(args):
    """--out; or runs/MODEL-SIZE, with a number behind it when that is taken."""
    if args.out:
        return Path(args.out)
    name = f"{args.model}-{args.size}"
    taken = [p for p in Path("runs").glob(f"{name}*") if re.fullmatch(re.escape(name) + r"(-\d+)?", p.name)]
    if args.resume:
        started = [p for p in taken if (p / "run.json").exists()]
        if not started:
            raise Error(f"--resume: there is no run runs/{name}; leave --resume out, or name the folder with --out")
        return max(started, key=lambda p: (p / "run.json").stat().st_mtime)
    return next(path for i in itertools.count(1)
                if not (path := Path("runs") / (name if i == 1 else f"{name}-{i}")).exists())


def same_run(about, args, config, explicit):
    """Refuse to go on with other settings than the run was begun with."""
    begun = dict(about["config"], model=about["model"], size=about["size"], seed=about["seed"],
                 data=about["arguments"]["data"], tokenizer=about["arguments"]["tokenizer"],
                 vocab=about["arguments"]["vocab"], workers=about["workers"])
    now = dict(asdict(config), model=args.model, size=args.size, seed=args.seed, data=args.data,
               tokenizer=args.tokenizer, workers=args.workers)
    for name in sorted(explicit & set(begun)):
        if now[name] != begun[name]:
            raise Error(f"--resume: --{name.replace('_', '-')} {now[name]}, but this run was begun with "
                        f"{begun[name]}; leave the option out, or start a new run without --resume")


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def new_model(module, config, seed):
    return module.Model(config, Init(seed, config.init))


def describe(args, module, config, asked, corpus, model, workers, base):
    return dict(version=tbf.__version__, model=args.model, size=args.size, config=asdict(config), seed=args.seed,
                command="python train.py " + shlex.join(sys.argv[1:]), data=corpus.info, workers=workers,
                arguments=dict(data=args.data, tokenizer=args.tokenizer, encoding=args.encoding, vocab=asked), device="cpu",
                parameters=sum(t.size for t in model.named().values()), baseline=base,
                machine=dict(python=platform.python_version(), numpy=np.__version__, platform=platform.platform()))


def train(args, module, config, explicit):
    folder = folder_for(args)
    about = None
    if args.resume:
        if not (folder / "run.json").exists():
            raise Error(f"--resume: {folder} holds no run; leave --resume out to start one there")
        about = files.read_json(folder / "run.json")
        same_run(about, args, config, explicit)
        config = module.Config(**about["config"])
        args.seed, args.data = about["seed"], about["arguments"]["data"]
        args.encoding, args.tokenizer = about["arguments"]["encoding"], str(folder)
    elif (folder / "run.json").exists():
        raise Error(f"{folder} holds a run already: add --resume to continue it, or choose another --out")
    if backend.device(args.device) is not np:
        print("A GPU is here, but this version trains on the CPU.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise Error(f"--out {folder}: {problem.strerror}; choose a folder that can be written") from None
    with runs.Lock(folder):
        return loop(args, module, config, about, Run(folder))


def loop(args, module, config, about, run):
    tokenizer = tbf.load_tokenizer(args.tokenizer) if args.tokenizer else None
    documents, name = documents_of(args)
    tokenizer = tokenizer or vocabulary(args, config, documents)
    asked, config = config.vocab, replace(config, vocab=tokenizer.size)
    corpus = corpus_of(documents, name, args, tokenizer)
    say(f"data   {corpus.info['name']}: {corpus.info['documents']:,} documents, {corpus.info['words']:,} words, "
        f"{corpus.info['tokens']:,} tokens of {tokenizer.size:,} kinds; {len(corpus.held)} documents held out")
    if about and about["data"]["sha256"] != corpus.info["sha256"]:
        raise Error(f"--resume: {name} is not the text this run was begun with; restore it, or start a new run")

    model = new_model(module, config, args.seed)
    arena = Arena(model.named().items())
    optimizer = OPTIMIZERS[config.optimizer](arena, betas=(config.beta1, config.beta2), eps=config.adam_eps,
                                             decay=config.decay, correct=config.correct, peak=config.lr)
    objective = module.Objective(config, corpus, tokenizer, args.seed)
    tests = held_out(objective, config, corpus.held)
    chosen = fillings.choose(corpus, tokenizer, config.positions)
    count = about["workers"] if about else max(1, min(args.workers or cores(), config.accumulate))
    workers = Workers(model, arena, objective, count)

    saved = run.checkpoints.newest() if about else None
    step, state = 0, dict(position=[0, 0], sums={}, tokens=0)
    if saved:
        step, state = saved[0], run.restore(model, arena, optimizer, saved)
    else:
        about = describe(args, module, config, asked, corpus, model, count, baseline(corpus, tests, tokenizer.vocab))
        tokenizer.save(run.folder)
        checkpoint.write_config(model, run.folder)
        files.write_atomically(run.folder / "run.json", checkpoint.json_bytes(about))
    run.open_logs(step if saved else -1)
    base = about["baseline"]
    say(f"model  {args.model} {args.size}: {about['parameters']:,} parameters, {count} workers; "
        + (f"resumed at step {step:,}" if step else f"seed {args.seed}"))
    say(f"goal   below loss {base['loss']:.2f}, the words' frequencies, and above {base['accuracy']:.1%}, "
        f"always guessing {base['token']!r}")

    def evaluate():
        row = held_out_row(workers.scores(tests))
        run.metrics.append(dict(step=step, **row))
        run.fillings.append(dict(step=step, rows=fillings.guess(model, tokenizer, chosen)))
        say(f"step {step:,}: held-out masked words: loss {row['mlm_loss']:.3f}, accuracy {row['mlm_accuracy']:.1%}")
        return row

    def save():
        run.save(step, model, optimizer, state)

    stop, began = Stop(), time.perf_counter()
    stream = Prefetch(steps_of(micro_batches(objective, config, corpus.train, args.seed, state["position"]),
                               config.accumulate))
    bar = Progress(config.steps, step)
    schedule = SCHEDULES[config.schedule]
    try:
        if not step:
            evaluate()
        for batches, position in stream:
            if step >= config.steps:
                break
            lr = config.lr * schedule(step, config.steps, config.warmup)
            losses = workers.gradients(batches, args.seed, step)
            length = clip(arena.grad, config.clip)
            total = sum(losses.values())
            if not math.isfinite(total + length):
                raise Error(f"step {step + 1}: the loss is {total} and the gradient's length {length}; a smaller --lr "
                            f"or a longer --warmup helps; the last checkpoint in {run.folder} is whole")
            optimizer.step(lr)
            step += 1
            tokens = sum(len(b["ids"]) for b in batches)
            state["position"] = list(position)
            state["tokens"] += tokens
            for key, value in dict(losses, loss=total, grad_norm=length).items():
                state["sums"][key] = state["sums"].get(key, 0.0) + value
            bar.advance(tokens, total)
            if step % args.log_every == 0 or step == config.steps:
                since = step % args.log_every or args.log_every
                means = {key: value / since for key, value in state["sums"].items()}
                run.metrics.append(dict(step=step, **means, lr=lr, tokens=state["tokens"], tokens_per_s=bar.rate(),
                                        seconds=round(time.perf_counter() - began, 3)))
                state["sums"] = {}
            if step % args.eval_every == 0 or step == config.steps:
                evaluate()
            if step % args.save_every == 0 or step == config.steps or stop.signal:
                save()
            if stop.signal:
                bar.close()
                say(f"stopped at step {step:,}, saved in {run.folder}; "
                    f"continue with: python train.py {args.model} --size {args.size} --out {run.folder} --resume")
                return 128 + stop.signal
    finally:
        bar.close()
        stream.close()
    finish(run, model, tokenizer, chosen, base)
    return 0


def finish(run, model, tokenizer, chosen, base):
    rows = fillings.guess(model, tokenizer, chosen)
    say("what it fills in, in text it never saw:")
    for line in fillings.as_lines(rows):
        say(line)
    last = [row for row in runs.read_lines(run.folder / "metrics.jsonl") if "eval_loss" in row][-1]
    say(f"done   held-out loss {last['mlm_loss']:.3f} (word frequencies: {base['loss']:.3f}), "
        f"accuracy {last['mlm_accuracy']:.1%} (commonest word: {base['accuracy']:.1%})")
    say(f"report {report.write(run.folder)}\nrun    {run.folder}   (transformers loads this folder, too)")


def main(argv):
    try:
        return train(*read_command(argv))
    except Error as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: out of memory; try smaller --tokens (with larger --accumulate), or --recompute true", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the first step; nothing was lost", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
