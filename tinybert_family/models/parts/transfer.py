"""How MobileBERT learns from IB-BERT: first what the teacher's layers do, then what it answers.

Student and teacher have equally many layers, equally many heads, and states of one width between
layers. So each layer has a model: the state that it gives (feature map), and where its heads look
(attention). In progressive transfer layer l learns this in phase l, on top of layers that have
learnt theirs and hardly move any more; words and heads are the teacher's own from the start and
stand still. Then all of it learns the teacher's answers to hidden words.

    progressive     one layer after another, then answers          (PKT in the paper)
    joint           all layers at once, then answers               (JKT)
    auxiliary       all layers and the answers at the same time    (AKT)
    answers         answers alone
    alone           no teacher: BERT's own objective, which the teacher is trained by
"""
from dataclasses import dataclass, replace

import numpy as np

from ...engine import fused, ops, philox
from ...error import Error
from .. import bert
from . import distil
from .stages import Stage, shares_of

TRANSFERS = "progressive", "joint", "auxiliary", "answers", "alone"


# ---- stages

def stages(c):
    """Equal phases, together a share of the steps, and the teacher's answers in what remains."""
    answers = replace(c, phase=c.layers)
    if c.transfer not in ("progressive", "joint"):
        return [Stage(answers, c.steps)]
    first, last = shares_of(c.steps, [c.transfer_share, 1 - c.transfer_share])
    if c.transfer == "joint":
        return [Transfer(c, first, "all layers"), Stage(answers, last, "answers")]
    phases = [Transfer(replace(c, phase=i), steps, f"layer {i + 1} of {c.layers}")
              for i, steps in enumerate(shares_of(first, [1] * c.layers))]
    return [*phases, Stage(answers, last, "answers")]


@dataclass(frozen=True)
class Transfer(Stage):
    """A phase: the rate is constant but for `background`, which each begins anew."""

    def rate(self, t):
        return self.config.lr

    def background(self, t):
        """Up from 0 in the first tenth of the phase, then slowly down from 1 to 0.9."""
        done = (t + 1) / self.steps
        return min(10 * done, 0.9 + 0.1 * (1 - done) ** 0.5)

    def pulls(self, names, t):
        """The layer in hand moves, those below it by a tenth as much, and nothing else."""
        c = self.config
        here = c.pull * self.background(t)
        return [self.pull(name, c.phase, here) for name in names]

    def pull(self, name, phase, here):
        where, _, rest = name.partition(".")
        if where != "layers":
            return 0
        layer = int(rest.partition(".")[0])
        if layer == phase or self.config.transfer == "joint":
            return here
        return 0.1 * here if layer < phase else 0


# ---- what is learnt

class Objective(bert.Objective):
    """BERT's data. Nobody drops anything here: neither the teacher nor, unless it is alone, the
    student."""

    def __init__(self, c, *given, **more):
        super().__init__(c, *given, **more)
        begun = c.phase < c.layers and c.transfer in ("progressive", "joint")
        self.answering = not begun
        self.layers = []                        # whose maps are learnt in this stage
        if begun and c.transfer == "progressive":
            self.layers = [c.phase]
        elif begun or c.transfer == "auxiliary":
            self.layers = list(range(c.layers))
        if c.transfer == "alone":
            return
        why = "layers are taught one by one"
        distil.fits(self.teacher, c, self.tokenizer, layers=why, width=why, heads=why)
        distil.needs_heads(self.teacher, "mlm", "nsp")
        # The learner's own answers are looked at, and not minimised.
        self.WEIGHTS = dict(mlm=0)
        if begun:
            self.WEIGHTS["nsp"] = 0

    def begin(self, learner):
        """Words, positions and heads are the teacher's."""
        if self.config.transfer == "alone":
            return
        of_teacher = self.teacher.named()
        for name, tensor in learner.named().items():
            source = of_teacher.get(name)
            alike = source is not None and source.shape == tensor.shape
            if alike and not name.startswith("layers."):
                tensor.data[...] = source.data
            elif name == "embeddings.word":
                shape = None if source is None else source.shape
                raise Error(f"--teacher: its table of words has shape {shape}, but the student's "
                            f"{tensor.shape}, which is to be a copy; use --embedding "
                            f"{shape[1] if shape else 'as it has'}")

    def counts(self, b):
        return np.append(super().counts(b), len(b["ids"]))

    def loss(self, model, b, counts):
        if self.config.transfer == "alone":
            return super().loss(model, b, counts)
        inputs, losses = self.inputs(b), {}
        rows = None if self.layers else b["asked"]
        with distil.still():
            theirs = distil.through(self.teacher, inputs, self.deep, rows)
        with philox.replay(None):
            mine = distil.through(model, inputs, self.deep, rows)
            if self.layers:
                losses |= self.maps(model, inputs, mine, theirs, counts)
            if self.answering:
                last = [mine[-1], theirs[-1]]
                if rows is None:
                    last = [ops.take(x, index=b["asked"]) for x in last]
                losses |= self.words(model, b, *last, counts)
        return losses

    @property
    def deep(self):
        """How many layers are looked at."""
        return self.config.layers if self.answering else self.layers[-1] + 1

    def maps(self, model, inputs, mine, theirs, counts):
        """The states that layers give, and where their heads look: means over tokens."""
        c = self.config
        each = 1 / (len(self.layers) * counts[-1])
        compare = decomposed if c.decomposed else plain
        weight = each / c.heads
        if c.decomposed:
            weight /= c.layers
        maps = looks = 0
        for i in self.layers:
            maps = compare(mine[i + 1], theirs[i + 1].data, float(each), c.layers) + maps
            with distil.still():
                target = self.seen(self.teacher, i, theirs, inputs).data            # [T, A, P]
            own = self.seen(model, i, mine, inputs)
            looks = distil.looking(own, target, float(weight)) + looks
        return dict(map_loss=maps, looks_loss=looks)

    @staticmethod
    def seen(model, i, states, inputs):
        return model.layers[i].attention.scores(states[i], inputs, distil.NOBODY)

    def words(self, model, b, mine, theirs, counts):
        """Hidden words, half what they are and half what the teacher thinks; and next sentences."""
        with distil.still():
            states = ops.take(theirs, index=b["mlm_at"])                            # [K, H]
            answers = [t.data for t in distil.answers_of(self.teacher.mlm, states)]
        features = distil.answers_of(model.mlm, ops.take(mine, index=b["mlm_at"]))
        firsts = ops.take(mine, index=b["nsp_at"])                                  # [S, H]
        words, order = b["mlm_labels"], b["nsp_labels"]
        weights = distil.even(len(words), counts[0], theirs.dtype)
        mixed = distil.soft_loss(*features, teacher=answers, weights=weights, labels=words,
                                 gold=self.config.gold)
        weights = distil.even(len(order), counts[1], theirs.dtype)
        return dict(mixed_loss=mixed, nsp_loss=model.nsp.loss(firsts, order, weights))

    def scores(self, model, b):
        scores = super().scores(model, b)
        if self.config.transfer == "alone":
            return scores
        words, _, tokens = counts = self.counts(b)
        losses = self.loss(model, b, counts)
        for name, n in dict(mixed_loss=words, map_loss=tokens, looks_loss=tokens).items():
            if name in losses:
                scores[name] = losses[name].item() * n, n
        return scores

    def chance(self, batches, frequency):
        """Of maps: always the same state; of looks: everywhere alike."""
        found = super().chance(batches, frequency)
        if self.layers and not self.config.decomposed:
            each = [self.nothing(b) for b in batches]
            maps, looks = np.mean(each, 0).tolist()
            found |= dict(map_loss=maps, looks_loss=looks)
        return found

    def nothing(self, b):
        inputs, found = self.inputs(b), []
        with distil.still():
            states = distil.through(self.teacher, inputs, self.deep)
            for i in self.layers:
                seen = self.seen(self.teacher, i, states, inputs).data
                blind = np.where(seen > distil.NOBODY / 2, 0, seen)
                looks = distil.looking(blind, seen, 1 / seen[..., 0].size)
                variance = states[i + 1].data.var(0)
                found.append((variance.mean(), looks.item()))
        return np.mean(found, 0)


# ---- how states are compared; each [T, H], summed over tokens with a weight

def plain(x, target, each, layers):
    """The mean square over a state's numbers, as the paper has it."""
    return distil.squares(x, target, each / x.shape[1])


def decomposed(x, target, each, layers):
    """As the released code has it: the states' form (without mean and size) apart from their means
    and their variances."""
    width = x.shape[1]
    ones = np.ones(width, x.dtype)
    forms = [fused.norm(side, ones) for side in (x, target)]
    form = distil.squares(forms[0], forms[1].data, each / width)
    mean, its = x.mean(axis=1, keepdims=True), target.mean(1, keepdims=True)
    means = distil.squares(mean, its, each)
    variance = ops.square(x - mean).mean(axis=1)
    more = variance - target.var(1)
    size = fused.relu(more) + fused.relu(-more)             # its absolute value
    apart = size.sum() * each
    return (form * 100 + means * 5000 + apart * 5) * (1 / layers)
