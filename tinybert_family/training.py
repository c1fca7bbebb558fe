"""The loop that all sixteen are trained by: stages, batches, gradients, steps.

It keeps nothing on disk and says nothing: train.py does that around it, and bench.py measures it.
"""
import itertools
import math
from typing import NamedTuple

import numpy as np

from .engine.nn import Init
from .engine.optim import OPTIMIZERS, Arena, clip
from .error import Error
from .text.batches import Prefetch, pack
from .workers import Workers

ORDER, GROUPS = 10**6 + 1, 10**6 + 2    # streams of random numbers beside those of the copies
GROUP = 1 << 21                 # tokens whose sequences are planned, and shuffled, at a time
HELD_OUT_COPY = 0               # the masked copy of the held-out text


# ---- batches

def groups_of(corpus, documents, seed):
    """The documents in random groups of about GROUP tokens, the same ones in every pass."""
    documents = documents[np.random.default_rng([seed, GROUPS]).permutation(len(documents))]
    first, last = corpus.documents[documents], corpus.documents[documents + 1]
    ends = np.cumsum(corpus.sentences[last] - corpus.sentences[first])
    group = (ends - 1) // GROUP
    # A document alone would have no stranger to be paired with: it joins those before it.
    alone = np.bincount(group)[group] == 1
    group = np.maximum.accumulate(np.where(alone, 0, group))
    group[:1] = group[1:2] if len(group) > 1 else 0
    return [np.sort(g) for g in np.split(documents, np.flatnonzero(np.diff(group)) + 1)]


def packed(objective, documents, copy, rng=None):
    """[a plan for every micro-batch]; in random order where there is an rng."""
    found = []
    for plan in objective.plans(documents, copy):
        if rng:
            plan = plan[rng.permutation(len(plan))]
        found += [plan[rows] for rows in pack(plan.lengths(), objective.config.tokens)]
    return [found[i] for i in rng.permutation(len(found))] if rng else found


def micro_batches(objective, documents, seed, position):
    """Endless (batch, position after it).

    A position is (pass over the corpus, group of documents, micro-batch in it), so a stream that
    starts at a position goes on exactly as one that came there.
    """
    copies = objective.config.copies
    groups = groups_of(objective.corpus, documents, seed)
    number, group, start = position
    while True:
        made = 0
        copy = number % copies if copies else number
        order = np.random.default_rng([seed, ORDER, number, 1]).permutation(len(groups))
        for g in range(group, len(groups)):
            rng = np.random.default_rng([seed, ORDER, number, g + 2])
            plans = packed(objective, groups[order[g]], copy, rng)
            made += len(plans)
            for i in range(start, len(plans)):
                yield objective.batch(plans[i], copy), (number, g, i + 1)
            start = 0
        if not made and not group:
            raise Error("the text gives not one sequence to train on; give more to --data, or a "
                        f"shorter --seq than {objective.config.seq}")
        number, group = number + 1, 0


def held_out(objective, documents, most=16):
    """A fixed set of micro-batches of held-out text, spread over its plans."""
    plans = packed(objective, documents, HELD_OUT_COPY)
    chosen = np.linspace(0, len(plans) - 1, min(most, len(plans))).astype(int)
    return [objective.batch(plans[i], HELD_OUT_COPY) for i in chosen]


def frequencies(corpus, size):
    """How often each word occurs in the text trained on, plus one.  [V]"""
    counts = np.ones(size)
    for document in corpus.train:
        first, last = corpus.sentences[corpus.documents[document:document + 2]]
        counts += np.bincount(corpus.ids[first:last], minlength=size)
    return counts


# ---- steps

class Done(NamedTuple):
    """What a step came to."""
    losses: dict                # a mean over the step for every task
    loss: float                 # what was minimised
    grad_norm: float
    lr: float
    tokens: int


class Trainer:
    """A learner on its way through the stages of a run.

    `step` counts the steps done, `position` says where in the data the next one begins. With the
    learner's arrays and the optimiser's they are all there is to keep.
    """

    def __init__(self, module, config, corpus, tokenizer, seed=0, workers=1, dtype=np.float32,
                 **more):
        """more: knowledge and teacher, where the objective needs them."""
        self.module, self.corpus, self.seed = module, corpus, seed
        self.count, self.given = workers, (corpus, tokenizer, seed)
        self.more, self.frequency = more, None
        learner = getattr(module, "Learner", module.Model)
        self.learner = learner(config, Init(seed, config.init, dtype))
        self.arena = Arena(self.learner.named().items(), config.decays)
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.arena, betas=(config.beta1, config.beta2), eps=config.adam_eps,
            decay=config.decay, correct=config.correct, peak=config.lr)
        self.stages = [stage for stage in config.stages() if stage.steps]
        self.step, self.position, self.stage = 0, [0, 0, 0], None

    @property
    def steps(self):
        return sum(stage.steps for stage in self.stages)

    def begun(self):
        """The stage that the next step belongs to, and how many of its steps are done."""
        done = self.step
        for stage in self.stages[:-1]:
            if done < stage.steps:
                return stage, done
            done -= stage.steps
        return self.stages[-1], done

    def enter(self, stage):
        """A stage begins: what is to be learnt, from which data, is its Config's."""
        self.stage, self.learner.config = stage, stage.config
        self.objective = self.module.Objective(stage.config, *self.given, **self.more)
        if not self.step:
            self.objective.begin(self.learner)
        self.tests = held_out(self.objective, self.corpus.held)
        if not self.tests:
            raise Error("the held-out text gives not one sequence; give more to --data, or a "
                        f"shorter --seq than {stage.config.seq}")
        self.workers = Workers(self.learner, self.arena, self.objective, self.count)

    def scores(self):
        """Of held-out text, by name, and eval_loss, what they add up to."""
        scores = self.workers.scores(self.tests)
        return dict(eval_loss=self.objective.total(scores), **scores)

    def chance(self):
        """The same without a model."""
        if self.frequency is None:
            self.frequency = frequencies(self.corpus, self.stage.config.vocab)
        return self.objective.chance(self.tests, self.frequency)

    def run(self, entered=None):
        """Yield a Done after every step, until the last. Between steps the caller may look at
        everything, and save it. entered() is called when a stage begins, or is gone on with."""
        while self.step < self.steps:
            stage, t = self.begun()
            if self.step and not t:
                self.position = [self.position[0] + 1, 0, 0]        # words are masked anew
            self.enter(stage)
            if entered:
                entered()
            yield from self.through(stage, t)

    def through(self, stage, t):
        micro = micro_batches(self.objective, self.corpus.train, self.seed, self.position)
        counts = map(stage.accumulate, range(t, stage.steps))
        stream = Prefetch(list(itertools.islice(micro, n)) for n in counts)
        try:
            for t, found in zip(range(t, stage.steps), stream):
                yield self.one(stage, t, found)
        finally:
            stream.close()

    def clip(self, limit):
        """Shorten the gradient; how long it was. Two networks may want to be measured apart."""
        own = getattr(self.learner, "clip", None)
        return own(self.arena, limit) if own else clip(self.arena.grad, limit)

    def one(self, stage, t, found):
        batches, positions = zip(*found)
        losses = self.workers.gradients(batches, self.seed, self.step)
        length, total = self.clip(stage.config.clip), self.objective.total(losses)
        if not math.isfinite(total + length):
            raise Error(f"step {self.step + 1}: the loss is {total} and the gradient's length "
                        f"{length}; a smaller --lr or a longer --warmup helps")
        lr = stage.rate(t)
        self.optimizer.step(lr, stage.pulls(self.arena.names, t))
        self.step, self.position = self.step + 1, list(positions[-1])
        return Done(losses, total, length, lr, sum(len(b["ids"]) for b in batches))
