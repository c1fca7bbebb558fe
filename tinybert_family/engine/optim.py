"""The arena that holds every parameter, the optimisers that walk over it, and the schedules.

All parameters are views into one flat array, and so are their gradients and moments: clipping,
AdamW, LAMB, casting and saving are operations on one array. Decayed parameters come first, those
without weight decay after them.
"""
import math

import numpy as np

from ..error import Error
from .autograd import Node
from .backend import module_of

BLOCK = 1 << 15             # elements at a time: an update's dozen steps stay in the cache


class Arena:
    """Moves a model's parameters and gradients into flat arrays.

    decays(name, tensor) says which parameters weight decay may pull: matrices yes, biases and norms
    no, unless a recipe says otherwise.
    """

    def __init__(self, named, decays=lambda name, tensor: tensor.ndim > 1):
        # A stable sort: within each half the model's own order.
        named = sorted(named, key=lambda item: not decays(*item))
        self.names = [name for name, _ in named]
        self.tensors = [tensor for _, tensor in named]
        sizes = [tensor.size for tensor in self.tensors]
        self.cuts = np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()
        self.decayed = sum(size for size, item in zip(sizes, named) if decays(*item))
        xp = module_of(self.tensors[0].data)
        self.data = xp.empty(self.cuts[-1], self.tensors[0].dtype)
        for tensor, view in zip(self.tensors, self.views(self.data)):
            view[...] = tensor.data
            tensor.data = view
        self.grad = self.gradients_of(self.tensors)

    def views(self, flat):
        """The pieces of a flat array, in the shapes of the parameters."""
        return [flat[lo:hi].reshape(tensor.shape)
                for tensor, lo, hi in zip(self.tensors, self.cuts, self.cuts[1:])]

    def gradients_of(self, tensors):
        """One flat array for the gradients of these Tensors: the model's own, or a replica's."""
        flat = module_of(self.data).zeros_like(self.data)
        for tensor, view in zip(tensors, self.views(flat)):
            tensor.node.grad, tensor.node.state = view, Node.STALE
        return flat

    @staticmethod
    def forget(tensors):
        """Start a new sum: the old gradients are overwritten by the first to arrive."""
        for tensor in tensors:
            tensor.node.state = Node.STALE

    @staticmethod
    def settle(tensors):
        """Whatever received no gradient has zero, not what is left from a step ago."""
        for tensor in tensors:
            tensor.node.current_grad()


def blocks(n):
    return [slice(lo, min(lo + BLOCK, n)) for lo in range(0, n, BLOCK)]


def global_norm(grad):
    """The length of the whole gradient; block sums in Python's double precision."""
    return math.sqrt(sum(float(grad[b] @ grad[b]) for b in blocks(len(grad))))


def clip(grad, limit):
    """Shorten the gradient to the limit, if it is longer; return how long it was.

    As BERT clips: by limit / norm, with no small number added below.
    """
    length = global_norm(grad)
    if limit and length > limit and math.isfinite(length):
        grad *= limit / length
    return length


class Optimizer:
    """Two moments beside the arena.

    correct: divide them by 1 - beta^t. peak: the schedule's highest learning rate.

    step(lr, pulls): pulls has a multiple of the rate for each parameter of the arena, in its order.
    One whose multiple is 0 is frozen: nothing moves it, not even decay, and its moments are
    forgotten, so that it begins afresh when its time comes. (t counts the steps of the run, not
    since then. A recipe that wakes parameters should begin gently, as MobileBERT's does.)
    """

    def __init__(self, arena, betas=(0.9, 0.999), eps=1e-6, decay=0.01, correct=True, peak=None):
        xp = module_of(arena.data)
        self.arena, self.betas, self.eps, self.decay = arena, betas, eps, decay
        self.correct, self.peak = correct, peak
        self.m, self.v = xp.zeros_like(arena.data), xp.zeros_like(arena.data)
        self.steps = 0

    def corrections(self):
        """1 - beta^t: what the first moments lack, having started from zero.

        1 where a recipe leaves it out.
        """
        return [1 - beta ** self.steps if self.correct else 1.0 for beta in self.betas]

    def moments(self, b, betas):
        """Move both moments of block b towards the gradient."""
        g, m, v = self.arena.grad[b], self.m[b], self.v[b]
        b1, b2 = betas
        m *= b1
        m += (1 - b1) * g
        v *= b2
        square = g * g
        square *= 1 - b2
        v += square

    def direction(self, b, lr=1.0):
        """lr m' / (sqrt(v') + eps) with m' = m / c1 and v' = v / c2: how far the block moves.

        The corrections go into the two numbers, so that they cost no pass over the arrays.
        """
        xp = module_of(self.m)
        c1, c2 = self.corrections()
        root = math.sqrt(c2)
        d = xp.sqrt(self.v[b])
        d += self.eps * root
        xp.divide(self.m[b], d, out=d)
        d *= lr * root / c1
        return d

    def tensor_slices(self, lr, pulls=None):
        """(slice, does weight decay pull at it, its learning rate) for every parameter that may
        move."""
        cuts = self.arena.cuts
        if pulls is not None and len(pulls) != len(cuts) - 1:
            raise Error(f"pulls: {len(pulls)} of them, but the arena has {len(cuts) - 1} "
                        "parameters; give one for each of arena.names")
        for i, (lo, hi) in enumerate(zip(cuts, cuts[1:])):
            pull = 1 if pulls is None else pulls[i]
            if pull:
                yield slice(lo, hi), lo < self.arena.decayed, lr * pull
            else:
                self.m[lo:hi] = 0
                self.v[lo:hi] = 0


class AdamW(Optimizer):
    """Loshchilov & Hutter (2017).

    correct=False is BERT's own optimiser, which never divides by 1 - beta^t.
    """

    def step(self, lr, pulls=None):
        self.steps += 1
        if pulls is None:                   # who decays and who does not: two long pieces
            edge = self.arena.decayed
            pieces = (slice(0, edge), True, lr), (slice(edge, len(self.m)), False, lr)
        else:
            pieces = self.tensor_slices(lr, pulls)
        for piece, decays, rate in pieces:
            self.move(piece, self.decay if decays else 0.0, rate)

    def move(self, piece, decay, lr):
        for b in blocks(piece.stop - piece.start):
            b = slice(piece.start + b.start, piece.start + b.stop)
            self.moments(b, self.betas)
            update = self.direction(b, lr)
            w = self.arena.data[b]
            if decay:
                w *= 1 - lr * decay
            w -= update


class LAMB(Optimizer):
    """You et al. (2019): a matrix moves in AdamW's direction, in proportion to its own length.

    Biases and norms, which do not decay either, move as far as in AdamW.
    """

    def step(self, lr, pulls=None):
        self.steps += 1
        for piece, decays, rate in self.tensor_slices(lr, pulls):
            self.moments(piece, self.betas)
            w = self.arena.data[piece]
            update, trust = self.direction(piece), 1.0
            if decays:
                update += self.decay * w
                weight, move = global_norm(w), global_norm(update)
                trust = weight / move if weight and move else 1.0
            w -= rate * trust * update


class StableAdamW(Optimizer):
    """Wortsman et al. (2023), as ModernBERT used it: a tensor whose gradients suddenly outgrow its
    second moment takes a smaller step, which replaces clipping. Decay is in proportion to
    rate / peak (to the rate itself without a peak).
    """

    def step(self, lr, pulls=None):
        self.steps += 1
        # Debiasing moved into the betas: b(1 - b^(t-1)) / (1 - b^t) is 0 at the first step and b
        # in the long run.
        betas = [b * (1 - b ** (self.steps - 1)) / (1 - b ** self.steps) for b in self.betas]
        xp = module_of(self.m)
        for piece, decays, rate in self.tensor_slices(lr, pulls):
            self.moments(piece, betas)
            g, v, w = self.arena.grad[piece], self.v[piece], self.arena.data[piece]
            rms = math.sqrt(float((g * g / xp.maximum(v, self.eps ** 2)).mean()))
            rate = rate / max(1.0, rms)
            if decays:
                w *= 1 - self.decay * (rate / self.peak if self.peak else rate)
            w -= rate * self.m[piece] / (xp.sqrt(v) + self.eps)


OPTIMIZERS = dict(adamw=AdamW, lamb=LAMB, stableadamw=StableAdamW)


# ---- schedules: the share of the peak learning rate at step t of `steps`, counted from 0

def linear(t, steps, warmup=0):
    """BERT's: up during warm-up, then down to zero.

    The line down started at step 0, so the rate drops where the two meet.
    """
    return (t + 1) / warmup if t < warmup else 1 - t / steps


def descending(t, steps, warmup=0):
    """Up during warm-up, and from there down to zero: RoBERTa's and DistilBERT's."""
    if t < warmup:
        return (t + 1) / warmup
    return (steps - t) / max(1, steps - warmup)


def constant(t, steps, warmup=0):
    return min(1.0, (t + 1) / warmup) if warmup else 1.0


def trapezoidal(t, steps, warmup=0, decay=0.2):
    """Up, level, and in the last `decay` of the steps down as 1 - sqrt(progress): ModernBERT's."""
    start = steps * (1 - decay)
    if t < start:
        return constant(t, steps, warmup)
    return max(0.0, 1 - math.sqrt((t - start) / (steps - start)))


def inverse_sqrt(t, steps, warmup=0):
    """Up to 1 at the end of warm-up, then falling as 1 / sqrt(t)."""
    peak = max(1, warmup)
    return min((t + 1) / peak, math.sqrt(peak / (t + 1)))


SCHEDULES = dict(linear=linear, descending=descending, constant=constant, trapezoidal=trapezoidal,
                 inverse_sqrt=inverse_sqrt)
