"""Pre-train a model of the BERT family.

    python train.py                     a small BERT on Python's own documentation, in minutes
    python train.py MODEL [--size SIZE] [--data FILE_OR_FOLDER ...] [--out FOLDER] [--resume]
                          [--any-setting value]

The whole of training stands in this file, from top to bottom: the command line, the data, what is
kept on disk, the loop.
"""
import os

# Cores share a step's micro-batches, not single matrix products: see workers.py.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

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

try:
    import numpy as np
    import regex
    import tqdm
except ModuleNotFoundError as missing:
    print(f"error: {missing.name} is not installed; pip install numpy regex tqdm, or use make "
          "train, which makes an environment of its own", file=sys.stderr)
    sys.exit(2)

import tinybert_family as tbf
from tinybert_family import Error, checkpoint, files, fillings, report, runs
from tinybert_family.console import Parser, Progress, bar, say
from tinybert_family.engine import backend
from tinybert_family.engine.nn import Init
from tinybert_family.engine.optim import OPTIMIZERS, SCHEDULES, Arena, clip
from tinybert_family.text import corpus as texts
from tinybert_family.text import tokenizer_files
from tinybert_family.text.batches import Prefetch, pack
from tinybert_family.text.wordpiece import WordPiece
from tinybert_family.workers import Workers

ORDER = 1               # a stream of random numbers beside those of the data
HELD_OUT_COPY = 0       # the masked copy of the held-out text


# ---- the command line

def options():
    """The options that are not settings of the model's Config."""
    parser = Parser(prog="train.py", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", default="bert", metavar="MODEL", help=" ".join(checkpoint.MODELS))
    add("--size", default="smoke", help="a row of the model's SIZES (default smoke)")
    add("--data", nargs="+", metavar="PATH",
        help="text files or folders (.txt .jsonl .gz); default: Python's own documentation")
    add("--encoding", default="utf-8", help="of the text files")
    add("--tokenizer", metavar="FOLDER", help="use its tokenizer instead of training one")
    add("--out", metavar="FOLDER", help="the run's folder (default runs/MODEL-SIZE)")
    add("--resume", action="store_true", help="continue the run in --out, to the same bits")
    add("--seed", type=int, default=0)
    add("--device", choices=["auto", "cpu", "gpu"], default="auto")
    add("--workers", type=int, metavar="N",
        help="threads that share a step's micro-batches (default: one per core)")
    add("--log-every", type=int, default=50, metavar="N", help="steps between training rows")
    add("--eval-every", type=int, default=500, metavar="N", help="steps between held-out rows")
    add("--save-every", type=int, default=500, metavar="N", help="steps between checkpoints")
    return parser


def read_command(argv):
    """-> (options, the model's file, its Config, the names given on the command line)"""
    model = argv[0] if argv and not argv[0].startswith("-") else "bert"
    module = checkpoint.variant(model, "MODEL (the first word of the command)")
    if not hasattr(module, "Objective"):
        raise Error(f"MODEL {model}: this version loads it and computes with it, but pre-trains "
                    "bert alone")
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--size", default="smoke")
    size = first.parse_known_args(argv)[0].size
    if size not in module.SIZES:
        raise Error(f"--size {size}: {model} has the sizes {', '.join(module.SIZES)}")
    parser = options()
    parser.add_settings(module, module.SIZES[size])
    args = parser.read(argv)
    if not 0 <= args.seed < 2 ** 32:
        raise Error(f"--seed {args.seed}: a seed is a whole number from 0 to {2 ** 32 - 1}")
    for name in "log_every", "eval_every", "save_every", "workers":
        if (getattr(args, name) or 1) < 1:
            raise Error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    given = {k.removeprefix("config_"): v for k, v in vars(args).items()
             if k.startswith("config_") and v is not None}
    config = replace(module.SIZES[size], **given)
    flags = {a.split("=")[0].lstrip("-").replace("-", "_") for a in argv if a.startswith("--")}
    return args, module, config, flags


# ---- the data

def documents_of(args):
    """(a function that begins the documents anew, their name)"""
    if args.data:
        texts.read(args.data, args.encoding)            # complains now, not after a minute
        return lambda: texts.read(args.data, args.encoding), " ".join(args.data)
    documents, about = texts.embedded_with_info()
    return lambda: iter(documents), about["name"]


def vocabulary(config, documents, exactly):
    """A tokenizer trained on a sample of the corpus, as large as the corpus can fill."""
    sample, characters = [], 0
    for document in documents():
        sample.append("\n".join(document.sentences))
        characters += len(sample[-1])
        if characters > 20_000_000:
            break
    # A piece should be seen some dozens of times: one for every few hundred characters.
    enough = max(1024, 1 << int(math.log2(max(1, characters // 300))))
    return WordPiece.train(sample, config.vocab if exactly else min(config.vocab, enough),
                           progress=bar("vocabulary", "piece"))


def corpus_of(documents, name, args, tokenizer):
    """The corpus as memory-mapped numbers, made once for a text and a tokenizer."""
    whole = json.dumps(tokenizer_files.whole_of(tokenizer))
    key = hashlib.sha256("\n".join([name, args.encoding, whole]).encode(errors="replace"))
    for path, *_ in texts.listed([Path(p) for p in args.data or []]):
        about = os.stat(path)
        key.update(f"{path} {about.st_size} {about.st_mtime_ns}".encode(errors="replace"))
    folder = texts.cache_folder() / f"corpus-{key.hexdigest()[:16]}"
    if folder.exists():
        try:
            return texts.Corpus.open(folder)
        except Error:
            pass                                        # damaged: made anew
    told = time.perf_counter()

    def progress(done):
        nonlocal told
        now = time.perf_counter()
        if now - told > 10:
            told = now
            say(f"data   {done / 1e6:,.0f} million characters are numbers now")
    return texts.Corpus.build(documents(), tokenizer, folder, name, progress, args.workers)


def micro_batches(objective, config, documents, seed, position):
    """Endless (batch, position after it).

    A position is (pass over the corpus, micro-batch in it), so a stream that starts at a position
    goes on exactly as one that came there.
    """
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
    packs = pack(objective.lengths(plan), config.tokens)[:most]
    return [objective.batch(plan[rows], HELD_OUT_COPY) for rows in packs]


def baseline(corpus, batches, vocabulary):
    """What needs no model: the loss of each word's frequency, and the score of always guessing
    the commonest."""
    counts = np.ones(len(vocabulary))
    for document in corpus.train:
        first, last = corpus.sentences[corpus.documents[document:document + 2]]
        counts += np.bincount(corpus.ids[first:last], minlength=len(counts))
    labels = np.concatenate([b["labels"] for b in batches])
    surprise, commonest = -np.log(counts / counts.sum()), int(counts.argmax())
    return dict(loss=float(surprise[labels].mean()), token=vocabulary[commonest],
                accuracy=float((labels == commonest).mean()))


def held_out_row(scores):
    total = sum(value for name, value in scores.items() if name.endswith("_loss"))
    return dict(eval_loss=total, perplexity=math.exp(min(50, scores["mlm_loss"])), **scores)


# ---- what a run keeps on disk

class Run:
    """A run's folder. It is a Hugging Face folder too: its weights are the last checkpoint's."""

    def __init__(self, folder):
        self.folder = folder
        self.checkpoints = runs.Checkpoints(folder / "checkpoints")

    def open_logs(self, step):
        self.metrics = runs.Log(self.folder / "metrics.jsonl")
        self.fillings = runs.Log(self.folder / "fillings.jsonl")
        for log in self.metrics, self.fillings:
            log.rewind(step)

    def save(self, step, model, optimizer, state):
        self.metrics.sync()
        self.fillings.sync()
        arrays = dict(model=checkpoint.published_arrays(model),
                      optimizer=dict(m=optimizer.m, v=optimizer.v))
        saved = self.checkpoints.save(step, arrays, dict(state, updates=optimizer.steps))
        link = self.folder / f".model-{os.getpid()}"
        link.unlink(missing_ok=True)
        try:
            os.link(saved / "model.safetensors", link)
            os.replace(link, self.folder / "model.safetensors")
        except OSError:                                 # a file system without hard links
            tbf.save(model, self.folder)
        report.write(self.folder)

    def restore(self, model, optimizer, saved):
        _, arrays, state = saved
        for name, array in checkpoint.published_arrays(model).items():
            array[...] = arrays["model"][name]
        optimizer.m[...], optimizer.v[...] = arrays["optimizer"]["m"], arrays["optimizer"]["v"]
        optimizer.steps = state["updates"]
        return state


def folder_for(args):
    """--out; or runs/MODEL-SIZE, with a number behind it when that is taken."""
    if args.out:
        return Path(args.out)
    name = f"{args.model}-{args.size}"
    if not args.resume:
        paths = (Path("runs") / (f"{name}-{i}" if i > 1 else name) for i in itertools.count(1))
        return next(path for path in paths if not path.exists())
    numbered = re.compile(re.escape(name) + r"(-\d+)?")
    begun = [p for p in Path("runs").glob(f"{name}*/run.json") if numbered.fullmatch(p.parent.name)]
    if not begun:
        raise Error(f"--resume: there is no run runs/{name}; leave --resume out, or name the "
                    "folder with --out")
    return max(begun, key=lambda path: path.stat().st_mtime).parent


def same_run(about, args, config, flags):
    """Refuse to go on with other settings than the run was begun with."""
    begun = {**about["config"], **about["arguments"], "model": about["model"],
             "size": about["size"], "seed": about["seed"], "workers": about["workers"]}
    now = {**asdict(config), **vars(args)}
    for name in sorted(flags & set(begun)):
        if now[name] != begun[name]:
            raise Error(f"--resume: --{name.replace('_', '-')} {now[name]}, but this run was begun "
                        f"with {begun[name]}; leave the option out, or start a new run")


def describe(args, config, asked, corpus, model, workers, base):
    """run.json: everything needed to do it again, and what it was measured against."""
    return dict(
        version=tbf.__version__, model=args.model, size=args.size, seed=args.seed, device="cpu",
        command="python train.py " + shlex.join(sys.argv[1:]), config=asdict(config),
        data=corpus.info, workers=workers, baseline=base,
        arguments=dict(data=args.data, tokenizer=args.tokenizer, encoding=args.encoding,
                       vocab=asked),
        parameters=sum(t.size for t in model.named().values()),
        machine=dict(python=platform.python_version(), numpy=np.__version__,
                     platform=platform.platform()))


# ---- the loop

class Stop:
    """SIGINT and SIGTERM end the run after the step in hand; a second one ends it at once."""
    signal = None

    def __init__(self):
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, self)

    def __call__(self, number, frame):
        signal.signal(number, signal.SIG_DFL)
        self.signal = number


def cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def begin(args, module, config, flags):
    """Find or make the folder, lock it, and train there."""
    folder, about = folder_for(args), None
    if args.resume:
        if not (folder / "run.json").exists():
            raise Error(f"--resume: {folder} holds no run; leave --resume out to start one there")
        about = files.read_json(folder / "run.json")
        same_run(about, args, config, flags)
        config = module.Config(**about["config"])
        args.seed, args.data = about["seed"], about["arguments"]["data"]
        args.encoding, args.tokenizer = about["arguments"]["encoding"], str(folder)
    elif (folder / "run.json").exists():
        raise Error(f"{folder} holds a run already: add --resume to continue it, or choose "
                    "another --out")
    if backend.device(args.device) is not np:
        say("device a GPU is here, but this version trains on the CPU")
    files.make_writable(folder, "--out")
    with runs.Lock(folder):
        return train(args, module, config, about, Run(folder))


def train(args, module, config, about, run):
    # The text, its vocabulary, and the text as numbers.
    tokenizer = tbf.load_tokenizer(args.tokenizer) if args.tokenizer else None
    documents, name = documents_of(args)
    tokenizer = tokenizer or vocabulary(config, documents, exactly=args.config_vocab)
    asked, config = config.vocab, replace(config, vocab=tokenizer.size)
    corpus = corpus_of(documents, name, args, tokenizer)
    info = corpus.info
    if about and about["data"]["sha256"] != info["sha256"]:
        raise Error(f"--resume: {name} is not the text this run was begun with; restore it, or "
                    "start a new run")
    say(f"data   {info['name']}: {info['documents']:,} documents, {info['words']:,} words,\n"
        f"       {info['tokens']:,} tokens of {tokenizer.size:,} kinds; "
        f"{len(corpus.held)} documents held out")

    # The model, all its numbers in one arena; what it is to learn; who does the work.
    model = module.Model(config, Init(args.seed, config.init))
    arena = Arena(model.named().items())
    optimizer = OPTIMIZERS[config.optimizer](
        arena, betas=(config.beta1, config.beta2), eps=config.adam_eps, decay=config.decay,
        correct=config.correct, peak=config.lr)
    objective = module.Objective(config, corpus, tokenizer, args.seed)
    tests = held_out(objective, config, corpus.held)
    hidden = fillings.choose(corpus, tokenizer, config.positions)
    count = about["workers"] if about else min(args.workers or cores(), config.accumulate)
    workers = Workers(model, arena, objective, count)

    # Where it stands: at the start, or at the last checkpoint.
    saved = run.checkpoints.newest() if about else None
    step, state = 0, dict(position=[0, 0], sums={}, tokens=0)
    if saved:
        step, state = saved[0], run.restore(model, optimizer, saved)
    if not about:
        base = baseline(corpus, tests, tokenizer.vocab)
        about = describe(args, config, asked, corpus, model, count, base)
        tokenizer.save(run.folder)
        checkpoint.write_config(model, run.folder)
        files.write_atomically(run.folder / "run.json", checkpoint.json_bytes(about))
    run.open_logs(step if saved else -1)
    base = about["baseline"]
    say(f"model  {args.model} {args.size}: {about['parameters']:,} parameters, {count} workers; "
        + (f"resumed at step {step:,}" if step else f"seed {args.seed}"))
    say(f"goal   loss below {base['loss']:.2f} (words by their frequency), accuracy above "
        f"{base['accuracy']:.1%} (always {base['token']!r})")

    def evaluate():
        row = held_out_row(workers.scores(tests))
        run.metrics.append(dict(step=step, **row))
        run.fillings.append(dict(step=step, rows=fillings.guess(model, tokenizer, hidden)))
        say(f"step {step:,}: held-out loss {row['mlm_loss']:.3f}, "
            f"accuracy {row['mlm_accuracy']:.1%}")

    stop, clock, bar = Stop(), time.perf_counter(), Progress(config.steps, step)
    stream = micro_batches(objective, config, corpus.train, args.seed, state["position"])
    stream = Prefetch(steps_of(stream, config.accumulate))
    schedule, sums = SCHEDULES[config.schedule], state["sums"]
    try:
        if not step:
            evaluate()
        for batches, position in stream:
            if step >= config.steps:
                break
            lr = config.lr * schedule(step, config.steps, config.warmup)
            losses = workers.gradients(batches, args.seed, step)
            length, total = clip(arena.grad, config.clip), sum(losses.values())
            if not math.isfinite(total + length):
                raise Error(f"step {step + 1}: the loss is {total} and the gradient's length "
                            f"{length}; a smaller --lr or a longer --warmup helps; the last "
                            f"checkpoint in {run.folder} is whole")
            optimizer.step(lr)

            step += 1
            tokens = sum(len(b["ids"]) for b in batches)
            state["position"], state["tokens"] = list(position), state["tokens"] + tokens
            for key, value in dict(losses, loss=total, grad_norm=length, steps=1).items():
                sums[key] = sums.get(key, 0) + value
            bar.advance(tokens, total)
            last = step == config.steps
            if step % args.log_every == 0 or last:
                since = sums.pop("steps")
                run.metrics.append(dict(
                    {key: value / since for key, value in sums.items()}, step=step, lr=lr,
                    tokens=state["tokens"], tokens_per_s=bar.rate(),
                    seconds=round(time.perf_counter() - clock, 3)))
                sums.clear()
            if step % args.eval_every == 0 or last:
                evaluate()
            if step % args.save_every == 0 or last or stop.signal:
                run.save(step, model, optimizer, state)
            if stop.signal and not last:
                bar.close()
                again = f"{args.model} --size {args.size} --out {shlex.quote(str(run.folder))}"
                say(f"stopped at step {step:,}, saved in {run.folder}; to continue: "
                    f"python train.py {again} --resume")
                return 128 + stop.signal
    finally:
        bar.close()
        stream.close()
    finish(run, model, tokenizer, hidden, base)
    return 0


def finish(run, model, tokenizer, hidden, base):
    say("what it fills in, in text it never saw:")
    for line in fillings.as_lines(fillings.guess(model, tokenizer, hidden)):
        say(line)
    rows = runs.read_lines(run.folder / "metrics.jsonl")
    last = [row for row in rows if "eval_loss" in row][-1]
    say(f"done   held-out loss {last['mlm_loss']:.3f} (words by their frequency: "
        f"{base['loss']:.3f}),\n       accuracy {last['mlm_accuracy']:.1%} "
        f"(always the commonest: {base['accuracy']:.1%})")
    say(f"report {report.write(run.folder)}\nrun    {run.folder}   (transformers loads it, too)")


def main(argv):
    try:
        return begin(*read_command(argv))
    except Error as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: out of memory; try smaller --tokens with larger --accumulate, or "
              "--recompute true", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the first step; nothing was lost", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
