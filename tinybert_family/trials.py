"""Short trainings that are to be compared: an arm is a model and what is changed of its Config.

Every arm is trained as train.py would, but small and briefly, from several seeds, and asked what
probes.py asks. What a run came to is kept as soon as it is there, under a name that depends on all
that it was made of; so a bench that was stopped goes on where it stopped.

Tokens are those read. FLOPs are counted from the shapes of all products of matrices, forward and
backward; those of a teacher or a generator are among them. Where an arm is `like` another, it takes
as many steps as make the same FLOPs, otherwise as many as every other, which is the same tokens.
"""
import contextlib
import copy
import functools
import hashlib
import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from . import checkpoint, probes
from .engine import philox
from .engine.autograd import no_grad
from .engine.nn import Init
from .error import Error
from .files import make_writable, read_json, write_atomically
from .measuring import operations, products
from .text import corpus as texts
from .text import knowledge, tokenizer_files, toy
from .text.wordpiece import WordPiece
from .training import Trainer, micro_batches

RULES = 1                       # counts up when what is measured changes


@dataclass(frozen=True)
class Arm:
    """What is trained. An empty model: the teacher that `teaches` asks for."""
    model: str = ""
    changes: dict = field(default_factory=dict)     # of the model's smoke Config
    objective: type = None      # in place of the model's own
    without: tuple = ()         # tasks of the objective that are left out
    corpus: str = "text"        # "text": the user's or the embedded one; "toy": our own language
    share: float = 1.0          # of the training documents
    like: str = ""              # an arm with as many FLOPs
    teacher: str = ""           # the arm that it learns from
    teaches: str = ""           # the arm that learns from it
    timed: str = ""             # not trained, but timed: see speed()

    def told(self):
        """All that makes a difference, for a name of its results."""
        kind = self.objective and self.objective.__qualname__
        return dict(asdict(self), objective=kind)


@dataclass(frozen=True)
class Scale:
    """How long, and on what."""
    steps: int = 700
    data: tuple = ()            # the user's files; none: the embedded corpus
    words: int = 2048           # in the vocabulary of the text,
    toy_words: int = 300        # and of the toy language: few, so that names have several pieces
    stories: int = 800          # of the toy language
    quick: bool = False


FULL = Scale()
QUICK = Scale(steps=120, stories=300, quick=True)
# What all arms have alike; a Config without such a field goes without it.
COMMON = dict(seq=32, predictions=5, tokens=2048, accumulate=1, last_share=0.0)


# ---- the text

@dataclass
class Text:
    corpus: object
    tokenizer: object
    documents: object           # a function that begins the raw documents anew


def documents_of(kind, scale):
    """(a function that begins the documents anew, their name)"""
    if kind == "toy":
        return lambda: iter(toy.documents(scale.stories)), "toy language"
    if scale.data:
        return lambda: texts.read(list(scale.data), note=lambda line: None), " ".join(scale.data)
    found, about = texts.embedded_with_info()
    return lambda: iter(found), about["name"]


@functools.lru_cache(None)
def text_of(kind, scale):
    """The corpus of an arm, its words, made once and mapped by everyone."""
    documents, name = documents_of(kind, scale)
    size = scale.toy_words if kind == "toy" else scale.words
    lines = ["\n".join(d.sentences) for d in documents()]
    sha = hashlib.sha256(f"{size} {name}\n".encode())
    for line in lines:
        sha.update(line.encode(errors="replace"))
    place = texts.cache_folder() / f"claims-{kind}-{sha.hexdigest()[:12]}"
    if not (place / "corpus").exists():
        tokenizer = WordPiece.train(lines, size)
        place.mkdir(exist_ok=True)
        tokenizer.save(place)
        texts.Corpus.build(documents(), tokenizer, place / "corpus", name, processes=1)
    return Text(texts.Corpus.open(place / "corpus"), tokenizer_files.load(place), documents)


# ---- an arm, ready to be trained

def config_of(arms, name, scale, tokenizer):
    """(the model's file, its Config)"""
    arm = arms[name]
    if arm.teaches:
        module, student = config_of(arms, arm.teaches, scale, tokenizer)
        model, config = module.Objective.teacher_of(student)
        module, given = checkpoint.variant(model, "teacher"), arms[arm.teaches].changes
        changes = {k: v for k, v in given.items() if k in COMMON}
    else:
        module, changes = checkpoint.variant(arm.model, "claims"), arm.changes
        config = module.SIZES["smoke"]
    steps = changes.get("steps", scale.steps)
    wanted = {**COMMON, "vocab": tokenizer.size, "pad": tokenizer.pad, "warmup": steps // 10,
              **changes, "steps": steps}
    known = vars(config)
    unknown = set(changes) - set(known)
    if unknown:
        raise Error(f"arm {name}: {arm.model} has no setting {min(unknown)}")
    return module, replace(config, **{k: v for k, v in wanted.items() if k in known})


def facts_of(module, config, text):
    needs = module.Objective.needs(config, set())
    if not needs:
        return None
    return knowledge.build(needs, text.documents, text.corpus, text.tokenizer, {},
                           text.corpus.folder, width=getattr(config, "entity_width", 100))


def objective_of(arm, module):
    kind = arm.objective or module.Objective
    if not arm.without:
        return kind
    tasks = {task: head for task, head in kind.TASKS.items() if task not in arm.without}
    return type(kind.__name__, (kind,), dict(TASKS=tasks))


def trainer_of(arms, name, scale, seed=0, teacher=None, steps=None):
    arm = arms[name]
    text = text_of(arm.corpus, scale)
    module, config = config_of(arms, name, scale, text.tokenizer)
    if steps:
        config = replace(config, steps=steps, warmup=steps // 10)
    corpus = copy.copy(text.corpus)
    corpus.train = corpus.train[::round(1 / arm.share)]
    made = SimpleNamespace(Model=module.Model, Objective=objective_of(arm, module))
    made.Learner = getattr(module, "Learner", module.Model)
    facts = facts_of(made, config, text)
    return Trainer(made, config, corpus, text.tokenizer, seed, 1, knowledge=facts, teacher=teacher)


# ---- what it computes

def work(trainer, batches=4):
    """FLOPs, and tokens, of a micro-batch of the trainer's stage."""
    stream = micro_batches(trainer.objective, trainer.corpus.train, trainer.seed, [0, 0, 0])
    flops = tokens = 0
    for b, _ in itertools.islice(stream, batches):
        counts = trainer.objective.counts(b)

        def step():
            with philox.at(trainer.seed, 0):
                parts = trainer.objective.loss(trainer.learner, b, counts)
                trainer.objective.total(parts).backward()
        flops += operations(products(step))
        tokens += len(b["ids"])
    return flops / batches, tokens / batches


def plain_teacher(arms, name, scale):
    """A teacher of the right shape that knows nothing: enough to count."""
    arm = arms[name]
    if not arm.teacher:
        return None
    text = text_of(arm.corpus, scale)
    module, config = config_of(arms, arm.teacher, scale, text.tokenizer)
    return module.Model(config, Init(0, config.init))


def flops_of(arms, name, scale):
    """(FLOPs of the whole run, its steps)"""
    teacher = plain_teacher(arms, name, scale)
    trainer = trainer_of(arms, name, scale, teacher=teacher)
    total = 0
    for stage in trainer.stages:
        trainer.enter(stage)
        each, _ = work(trainer)
        total += each * sum(map(stage.accumulate, range(stage.steps)))
    return total, trainer.steps


def steps_for(arms, name, scale):
    """Steps that make as many FLOPs as the arm that this one is like; None: as many as all."""
    if not arms[name].like:
        return None
    wanted, _ = flops_of(arms, arms[name].like, scale)
    own, steps = flops_of(arms, name, scale)
    return max(1, round(steps * wanted / own))


# ---- a run

def teacher_file(folder, name, seed, key):
    return Path(folder) / "teachers" / f"{name}-{seed}-{key}.npz"


def taught_by(arms, name, scale, folder, seed, key):
    """The trained teacher of an arm."""
    if not name:
        return None
    text = text_of(arms[name].corpus, scale)
    module, config = config_of(arms, name, scale, text.tokenizer)
    model = module.Model(config, Init(0, config.init))
    with np.load(teacher_file(folder, name, seed, key)) as arrays:
        for part, tensor in model.named().items():
            tensor.data[...] = arrays[part]
    return model


def keep_teacher(path, model):
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}")
    with open(partial, "wb") as file:
        np.savez(file, **{name: tensor.data for name, tensor in model.named().items()})
    partial.replace(path)


def trial(arms, name, seed, measures, scale, folder, keys):
    """Train an arm, and ask. -> what is kept: numbers alone. keys: names of all arms' results."""
    began, arm = time.process_time(), arms[name]
    if arm.timed:
        return speed(arms, name, seed, scale)
    teacher = taught_by(arms, arm.teacher, scale, folder, seed, keys.get(arm.teacher))
    steps = steps_for(arms, name, scale)
    trainer = trainer_of(arms, name, scale, seed, teacher, steps)
    flops, tokens, rate = 0.0, 0, [0.0]

    def entered():
        each, several = work(trainer)
        rate[0] = each / several
    for done in trainer.run(entered):
        tokens += done.tokens
        flops += done.tokens * rate[0]
    if arm.teaches:
        keep_teacher(teacher_file(folder, name, seed, keys[name]), trainer.learner)
    return dict(values=values_of(arm, trainer, measures, scale), tokens=tokens,
                flops=flops, steps=trainer.steps, seconds=round(time.process_time() - began, 1))


def values_of(arm, trainer, measures, scale):
    """All that is measured of a trained arm: its own objective's scores, and what was asked for."""
    model = trainer.learner.published()[""]
    values = {f"held {score}": float(x) for score, x in trainer.scores().items()}
    values["parameters"] = sum(t.size for t in model.named().values())
    text = text_of(arm.corpus, scale)
    known = trainer.objective.knowledge
    if "restored" in measures and known is None:
        known = knowledge.build({"similar"}, text.documents, text.corpus, text.tokenizer, {},
                                text.corpus.folder)
    subject = probes.Subject(model, text.tokenizer, text.corpus, known)
    for measure in measures:
        if measure in probes.MEASURES:
            values[measure] = float(probes.MEASURES[measure].of(subject))
    return values


def speed(arms, name, seed, scale, batches=16, size=32):
    """Random held-out sentences through a model, some at a time: as they are ("packed"), or with
    their padding as if it were text ("padded"). Both compute the same sentences."""
    arm = arms[name]
    trainer = trainer_of(arms, name, scale, seed)
    model, corpus = trainer.learner, trainer.corpus
    mine = np.concatenate([np.arange(*corpus.documents[d:d + 2]) for d in corpus.held])
    rng, given = np.random.default_rng(seed), []
    for _ in range(batches):
        lo = corpus.sentences[rng.choice(mine, size)]
        hi = corpus.sentences[np.searchsorted(corpus.sentences, lo, side="right")]
        n = np.minimum(hi - lo, model.config.positions)
        where = np.arange(n.max()) < n[:, None]                         # [S, L]
        at = np.where(where, lo[:, None] + np.arange(n.max()), 0)
        given.append((corpus.ids[at].astype(np.int64), where))

    def run():
        with no_grad():
            for ids, where in given:
                model(ids, where if arm.timed == "packed" else where | True)
    flops, times = operations(products(run)), []
    for _ in range(5):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    tokens = sum(int(where.sum()) for _, where in given)
    filled = tokens / sum(where.size for _, where in given)
    return dict(values=dict(speed=tokens / min(times), filled=filled), tokens=tokens, flops=flops,
                steps=batches, seconds=round(sum(times), 1))


# ---- many runs

def keys_of(arms, wanted, scale):
    """{arm: a name for all that its results depend on}"""
    known = {}

    def key(name):
        if not name:
            return ""
        if name not in known:
            arm = arms[name]
            about = text_of(arm.corpus, scale).corpus.info["sha256"]
            parts = [RULES, arm.told(), asdict(scale), about, sorted(wanted.get(name, ()))]
            others = arm.like, arm.teacher, arm.teaches
            parts += [arms[other].told() for other in others if other] + [key(arm.teacher)]
            known[name] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        return known[name]
    return {name: key(name) for name in wanted}


def with_teachers(arms, wanted):
    """What is wanted of which arm, teachers first, whether or not they are asked themselves."""
    teachers = dict.fromkeys(arms[name].teacher for name in wanted if arms[name].teacher)
    first = {name: wanted.get(name, ()) for name in teachers}
    return first | {name: wanted[name] for name in wanted if name not in first}


def run(arms, wanted, seeds, scale, folder, processes, say, command=None):
    """Train what is not kept yet. wanted: {arm: measures}. -> {arm: [what each seed came to]}, of
    those arms that could be trained; why one could not is said. command: what starts a process
    that serves() the same arms; without one there is but this process."""
    folder = Path(folder)
    make_writable(folder, "--keep")
    wanted = with_teachers(arms, wanted)
    for corpus in dict.fromkeys(arms[name].corpus for name in wanted):
        text_of(corpus, scale)
    keys, file = keys_of(arms, wanted, scale), folder / "results.json"
    kept = read_json(file) if file.exists() else {}
    jobs = [(name, seed) for name in wanted for seed in range(seeds)]
    jobs.sort(key=lambda job: not arms[job[0]].teaches)                 # teachers first

    def name_of(name, seed):
        return f"{name} {seed} {keys[name]}"

    def there(name, seed):
        teaches = arms[name].teaches
        saved = teaches and not teacher_file(folder, name, seed, keys[name]).exists()
        return name_of(name, seed) in kept and not saved
    waiting = [job for job in jobs if not there(*job)]
    clock, failed = Clock(len(waiting), processes, scale), set()
    say(f"claims: {len(jobs)} runs, {len(jobs) - len(waiting)} of them kept in {file}; about "
        f"{clock.left() / 60:.0f} minutes")
    for name in dict.fromkeys(name for name, _ in waiting):
        learn(arms, name, scale, say)

    def arguments(name, seed):
        return arms, name, seed, tuple(wanted[name]), scale, str(folder), keys
    for wave in True, False:
        some = [job for job in waiting if bool(arms[job[0]].teaches) == wave]
        some = [job for job in some if arms[job[0]].teacher not in failed]
        for (name, seed), found in done(some, arguments, processes, command):
            if isinstance(found, Error):
                failed.add(name)
                say(f"claims: {name} cannot be trained: {found}")
                continue
            kept[name_of(name, seed)] = found
            write_atomically(file, json.dumps(kept, indent=1).encode())
            say(f"claims: {clock.told(found['seconds'])}: {name}, seed {seed}")
    results = {name: [kept.get(name_of(name, seed)) for seed in range(seeds)] for name in wanted}
    return {name: found for name, found in results.items() if all(found)}


def learn(arms, name, scale, say):
    """What an arm wants to know beside the text is found once, and then kept, for all processes."""
    if arms[name].timed:
        return
    text = text_of(arms[name].corpus, scale)
    module, config = config_of(arms, name, scale, text.tokenizer)
    kind = SimpleNamespace(Objective=objective_of(arms[name], module))
    if kind.Objective.needs(config, set()):
        say(f"claims: {name}: what there is to know beside the text")
        with contextlib.suppress(Error):            # the run itself will say it
            facts_of(kind, config, text)


def done(jobs, arguments, processes, command):
    """(job, what trial() gave, or its Error) as they end. Several processes get their jobs, and say
    what came of them, as JSON."""
    if processes == 1 or len(jobs) < 2 or not command:
        for job in jobs:
            yield job, attempt(*arguments(*job))
        return
    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(elsewhere, command, *arguments(*job)): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:                       # Ctrl-C ends the processes, too
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def attempt(*given):
    try:
        return trial(*given)
    except Error as problem:                        # of one arm; the others go on
        return problem


def elsewhere(command, _, name, seed, measures, scale, folder, keys):
    """The same in a process of its own, whose arms are those of its module."""
    job = dict(name=name, seed=seed, measures=measures, scale=asdict(scale), folder=folder,
               keys=keys)
    ended = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip() or "nothing was said").splitlines()[-1]
        return Error(f"its process ended with status {ended.returncode} ({last}); what was done "
                     "before is kept: start again")
    found = json.loads(ended.stdout.splitlines()[-1])
    return Error(found["error"]) if "error" in found else found


def serve(arms):
    """What such a process does: one job from standard input, one line of JSON to its output."""
    job = json.load(sys.stdin)
    scale = Scale(**dict(job["scale"], data=tuple(job["scale"]["data"])))
    found = attempt(arms, job["name"], job["seed"], tuple(job["measures"]), scale, job["folder"],
                    job["keys"])
    print(json.dumps(dict(error=str(found)) if isinstance(found, Error) else found))


class Clock:
    """How far we are, and how long it will take by what it has taken so far."""
    GUESS = dict(full=60, quick=12)                 # seconds of one core for a run

    def __init__(self, count, processes, scale):
        self.count, self.processes, self.ended, self.spent = count, processes, 0, 0.0
        self.guess = self.GUESS["quick" if scale.quick else "full"]

    def left(self):
        each = self.spent / self.ended if self.ended else self.guess
        return (self.count - self.ended) * each / self.processes

    def told(self, seconds):
        self.ended, self.spent = self.ended + 1, self.spent + seconds
        return f"{self.ended} of {self.count}, about {self.left() / 60:.0f} minutes left"
