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
from tinybert_family.text import corpus as texts
from tinybert_family.text import knowledge, tokenizer_files
from tinybert_family.training import Trainer


# ---- the command line

# What a model may want to know beside the text; text/knowledge.py says how each file looks.
KNOWLEDGE = dict(phrases="words that belong together", entities="names of things",
                 vectors="of words, by which some are similar", graph="facts: head, relation, tail",
                 dialogues="what people say in turns")


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
    add("--from", metavar="FOLDER", help="begin with its model: shape, weights and words")
    add("--teacher", metavar="FOLDER", help="of a trained model, for a student to learn from; "
        "default: a short run of its own comes first")
    for name, what in KNOWLEDGE.items():
        add(f"--{name}", metavar="FILE", help=f"{what}; default: found in the text")
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
    source, config = vars(args)["from"], module.SIZES[size]
    if source:
        given = checkpoint.shape_of(source, config) | given
    config = replace(config, **given)
    if args.teacher and not module.Objective.teacher_of(config):
        raise Error(f"--teacher: {model} learns without one; leave it out")
    own = {name for name in KNOWLEDGE if getattr(args, name)}
    if own and not module.Objective.needs(config, own):
        raise Error(f"--{min(own)}: {model} asks for no such knowledge; leave it out")
    for name in sorted(own):
        if not os.path.isfile(getattr(args, name)):
            raise Error(f"--{name} {getattr(args, name)}: there is no such file")
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
    size = config.vocab if exactly else min(config.vocab, enough)
    return config.vocabulary(sample, size, bar("vocabulary", "piece"))


def for_words(config, tokenizer, least=0):
    """The Config with what the tokenizer decides. (Published tables may have rows to spare.)"""
    pad = dict(pad=tokenizer.pad) if hasattr(config, "pad") else {}
    return replace(config, vocab=max(least, tokenizer.size), **pad)


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


def knowledge_of(args, module, config, documents, corpus, tokenizer):
    """What the objective asks for beside the text: from the user's files, or from the text."""
    files = {name: getattr(args, name) for name in KNOWLEDGE}
    given = {name for name, path in files.items() if path}
    needs = module.Objective.needs(config, given)
    if not needs:
        return None
    return knowledge.build(needs, documents, corpus, tokenizer, files, corpus.folder,
                           bar("knowledge", "part"), getattr(config, "entity_width", 100))


def teacher_of(args, module, config, folder, tokenizer):
    """The model that the student learns from: --teacher, or one that is trained now.

    -> (a Model or None, the exit status of a run that was interrupted)
    """
    wanted = module.Objective.teacher_of(config)
    if not wanted:
        return None, 0
    if args.teacher:
        same_words("--teacher", args.teacher, tokenizer)
        say(f"teacher {args.teacher}")
        return tbf.load(args.teacher), 0
    name, wanted = wanted
    own = folder / "teacher"
    begun = (own / "run.json").exists()
    if not begun or not finished(own):
        say(f"teacher none was given (--teacher FOLDER), so a {name} is trained first: "
            f"{wanted.steps:,} steps, in {own}")
        changes = dict(dict.fromkeys(["from", "teacher", "config_vocab", *KNOWLEDGE]), model=name,
                       size="teacher", out=str(own), resume=begun, tokenizer=str(folder))
        again = argparse.Namespace(**(vars(args) | changes))
        status = begin(again, checkpoint.variant(name, "teacher"), wanted, set())
        if status:
            return None, status
    return tbf.load(own), 0


def finished(folder):
    """Has the run in this folder done all its steps?"""
    saved = runs.Checkpoints(folder / "checkpoints").newest()
    about = files.read_json(folder / "run.json")
    return saved is not None and saved[0] >= about["config"]["steps"]


def same_words(option, folder, tokenizer):
    """A model that is learnt from must know the words by the same numbers."""
    other = tbf.load_tokenizer(folder)
    if other.vocab != tokenizer.vocab:
        raise Error(f"{option} {folder}: its vocabulary ({other.size:,} pieces) is not the run's "
                    f"({tokenizer.size:,}); give --tokenizer {folder}, too")


# ---- what a run keeps on disk

class Run:
    """A run's folder. It is a Hugging Face folder too: its weights are the last checkpoint's."""

    def __init__(self, folder):
        self.folder = folder
        self.checkpoints = runs.Checkpoints(folder / "checkpoints")

    def write(self, about):
        files.write_atomically(self.folder / "run.json", checkpoint.json_bytes(about))

    def open_logs(self, step):
        self.metrics = runs.Log(self.folder / "metrics.jsonl")
        self.fillings = runs.Log(self.folder / "fillings.jsonl")
        for log in self.metrics, self.fillings:
            log.rewind(step)

    def save(self, trainer, tokenizer, state):
        self.metrics.sync()
        self.fillings.sync()
        learner, optimizer = trainer.learner, trainer.optimizer
        arrays = dict(learner={name: t.data for name, t in learner.named().items()},
                      optimizer=dict(m=optimizer.m, v=optimizer.v))
        state = dict(state, position=trainer.position, updates=optimizer.steps)
        self.checkpoints.save(trainer.step, arrays, state)
        for part, model in learner.published().items():
            folder = self.folder / part
            if part:
                files.make_writable(folder, "--out")
                tokenizer.save(folder)
            tbf.save(model, folder)
        report.write(self.folder)

    def restore(self, trainer, saved):
        trainer.step, arrays, state = saved
        for name, tensor in trainer.learner.named().items():
            tensor.data[...] = arrays["learner"][name]
        optimizer = trainer.optimizer
        optimizer.m[...], optimizer.v[...] = arrays["optimizer"]["m"], arrays["optimizer"]["v"]
        optimizer.steps, trainer.position = state.pop("updates"), state.pop("position")
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


def describe(args, config, asked, corpus, workers):
    """run.json: everything needed to do it again."""
    return dict(
        version=tbf.__version__, model=args.model, size=args.size, seed=args.seed, device="cpu",
        command="python train.py " + shlex.join(sys.argv[1:]), config=asdict(config),
        data=corpus.info, workers=workers, baseline={},
        arguments=dict(data=args.data, tokenizer=args.tokenizer, encoding=args.encoding,
                       teacher=args.teacher, vocab=asked,
                       **{name: getattr(args, name) for name in ("from", *KNOWLEDGE)}),
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
        args.seed, begun = about["seed"], about["arguments"]
        for name in "data", "encoding", "teacher", "from", *KNOWLEDGE:
            setattr(args, name, begun.get(name))
        args.tokenizer = str(folder)
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
    source = vars(args)["from"]
    words = args.tokenizer or source or args.teacher
    tokenizer = tbf.load_tokenizer(words) if words else None
    documents, name = documents_of(args)
    tokenizer = tokenizer or vocabulary(config, documents, exactly=args.config_vocab)
    if source:
        same_words("--from", source, tokenizer)
    asked, config = config.vocab, for_words(config, tokenizer, config.vocab if source else 0)
    corpus = corpus_of(documents, name, args, tokenizer)
    info = corpus.info
    if about and about["data"]["sha256"] != info["sha256"]:
        raise Error(f"--resume: {name} is not the text this run was begun with; restore it, or "
                    "start a new run")
    say(f"data   {info['name']}: {info['documents']:,} documents, {info['words']:,} words,\n"
        f"       {info['tokens']:,} tokens of {tokenizer.size:,} kinds; "
        f"{len(corpus.held)} documents held out")
    facts = knowledge_of(args, module, config, documents, corpus, tokenizer)
    count = about["workers"] if about else min(args.workers or cores(), config.accumulate)
    if not about:
        about = describe(args, config, asked, corpus, count)
        tokenizer.save(run.folder)
        run.write(about)
    teacher, status = teacher_of(args, module, config, run.folder, tokenizer)
    if status:
        return status

    # The learner; where it stands: at the start, or at the last checkpoint.
    trainer = Trainer(module, config, corpus, tokenizer, args.seed, count, knowledge=facts,
                      teacher=teacher)
    saved = run.checkpoints.newest() if args.resume else None
    state = run.restore(trainer, saved) if saved else dict(sums={}, tokens=0)
    run.open_logs(trainer.step if saved else -1)
    about["parameters"] = sum(t.size for t in trainer.learner.named().values())
    say(f"model  {args.model} {args.size}: {about['parameters']:,} parameters, {count} workers; "
        + (f"resumed at step {trainer.step:,}" if saved else f"seed {args.seed}"))
    hidden = fillings.choose(corpus, tokenizer, config.positions)

    def guesses():
        filler = trainer.objective.filler(trainer.learner)
        veil = trainer.objective.veil
        return fillings.guess(filler, tokenizer, hidden, veil) if filler else []

    def evaluate():
        row, step = trainer.scores(), trainer.step
        if "mlm_loss" in row:
            row["perplexity"] = math.exp(min(50, row["mlm_loss"]))
        run.metrics.append(dict(step=step, **row))
        if rows := guesses():
            run.fillings.append(dict(step=step, rows=rows))
        say(f"step {step:,}: held out, {told(row)}")

    def enter():
        """A new stage: say what it is, and what it would be to know nothing."""
        if source and not trainer.step:
            new = checkpoint.begin_from(trainer.learner, source)
            say(f"from   {source}" + (f"; new are: {', '.join(new)}" if new else ""))
        if len(trainer.stages) > 1:
            say(f"stage  {trainer.stage.name}: {trainer.stage.steps:,} steps")
        about["baseline"] |= trainer.chance()
        run.write(about)
        say(f"goal   better than knowing nothing, {told(about['baseline'])}")
        if not trainer.step:
            evaluate()

    stop, clock, bar = Stop(), time.perf_counter(), Progress(trainer.steps, trainer.step)
    sums, again = state["sums"], f"{args.model} --size {args.size} --out {run.folder}"
    try:
        for done in trainer.run(enter):
            step, steps = trainer.step, trainer.steps
            state["tokens"] += done.tokens
            for key, value in dict(done.losses, loss=done.loss, grad_norm=done.grad_norm,
                                   steps=1).items():
                sums[key] = sums.get(key, 0) + value
            bar.advance(done.tokens, done.loss)
            last = step == steps
            if step % args.log_every == 0 or last:
                since = sums.pop("steps")
                run.metrics.append(dict(
                    {key: value / since for key, value in sums.items()}, step=step, lr=done.lr,
                    tokens=state["tokens"], tokens_per_s=bar.rate(),
                    seconds=round(time.perf_counter() - clock, 3)))
                sums.clear()
            if step % args.eval_every == 0 or last:
                evaluate()
            if step % args.save_every == 0 or last or stop.signal:
                run.save(trainer, tokenizer, state)
            if stop.signal and not last:
                bar.close()
                say(f"stopped at step {step:,}, saved in {run.folder}; to continue: "
                    f"python train.py {again} --resume")
                return 128 + stop.signal
    except Error as problem:
        if not trainer.step:                            # then there is no run, either
            (run.folder / "run.json").unlink()
            raise
        raise Error(f"{problem}; the last checkpoint in {run.folder} is whole") from None
    finally:
        bar.close()
    finish(run, guesses())
    return 0


def told(scores):
    """Scores as words: every task's loss and accuracy."""
    tasks = [name.removesuffix("_loss") for name in scores if name.endswith("_loss")]
    parts = []
    for task in tasks:
        if task != "eval":
            right = scores.get(f"{task}_accuracy")
            fair = scores.get(f"{task}_balanced_accuracy")      # the mean over its classes
            share = "" if right is None else f" ({right:.1%} right)"
            share = share if fair is None else f" ({fair:.1%} right, each class counting alike)"
            parts.append(f"{report.TASKS.get(task, task)} {scores[f'{task}_loss']:.3f}{share}")
    return ", ".join(parts)


def finish(run, rows):
    if rows:
        say("what it fills in, in text it never saw:")
    for line in fillings.as_lines(rows):
        say(line)
    found = runs.read_lines(run.folder / "metrics.jsonl")
    last = [row for row in found if "eval_loss" in row][-1]
    base = files.read_json(run.folder / "run.json")["baseline"]
    say(f"done   held out, {told(last)};\n       knowing nothing, {told(base)}")
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
