"""How ModernBERT was trained: what grows in the course of a run, and what ends it.

    batches      small ones first, when even a rough gradient shows the way; they cost less
    the rate     up in a short warm-up, level for nearly all of the run, down at its end: a
                 trapezoid. While it is level the run may go on with other data or longer texts,
                 and nobody has to know at the start how long it will be
    texts        short ones first, as most can be learnt from these; then long ones, for which
                 global layers turn their queries and keys more slowly (theta), so that the angles
                 of far tokens are none that near ones had
"""
from dataclasses import dataclass, replace

from ...engine.optim import trapezoidal
from ...error import Error
from . import stages as parts


@dataclass(frozen=True)
class Stage(parts.Stage):
    """`before` and `whole` count the steps of the run: rate and batch look at all of it."""

    def rate(self, t):
        c = self.config
        return c.lr * trapezoidal(self.before + t, self.whole, c.warmup, c.ending)

    def accumulate(self, t):
        c = self.config
        return grown(self.before + t, c.first_accumulate, c.accumulate, c.growth * self.whole)


def grown(t, first, last, steps):
    """Micro-batches in step t: every number from `first` to `last` - 1 for as many steps."""
    if t >= steps:
        return last
    return first + int(t * (last - first) / steps)


def check(c):
    after = max(c.last_share, c.ending)
    if c.again_share + after >= 1:
        raise Error(f"again_share: {c.again_share}, but with {after} of the steps after it "
                    "(last_share, ending) nothing is left for the first stage; choose less")
    if c.first_accumulate > c.accumulate:
        raise Error(f"first_accumulate: {c.first_accumulate}, but a whole step has {c.accumulate} "
                    "micro-batches (accumulate), and batches grow")
    if c.last_share and c.ending > c.last_share:
        raise Error(f"ending: {c.ending}, but the last sequences have {c.last_share} of the steps "
                    "(last_share), and the rate falls while they are read")


def stages(c):
    """Short texts (for the large model in two parts, the second at a tenth of the rate), long ones,
    and the end."""
    short = long = c
    if c.last_share:
        short, long = replace(c, global_theta=c.first_theta), longer(c)
    again = replace(short, lr=c.again_lr)
    shares = [1 - c.again_share - max(c.last_share, c.ending), c.again_share,
              max(0.0, c.last_share - c.ending), c.ending]
    named = zip(parts.shares_of(c.steps, shares), (short, again, long, long),
                (f"{c.seq} tokens", "a lower rate", f"{long.seq} tokens", "the end"))
    found, before = [], 0
    for steps, config, name in named:
        found.append(Stage(config, steps, name, before, c.steps))
        before += steps
    return [stage for stage in found if stage.steps]


def longer(c):
    """As many tokens in a step as before."""
    seq = max(c.seq, min(c.last_seq, c.positions))
    tokens = max(c.tokens, seq)
    first, last = (max(1, n * c.tokens // tokens) for n in (c.first_accumulate, c.accumulate))
    return replace(c, seq=seq, tokens=tokens, lr=c.last_lr, first_accumulate=first, accumulate=last)
