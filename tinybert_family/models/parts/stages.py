"""The stages of a run: some steps each, under a Config of their own.

Most papers train in one go. Others change something on the way: the length of the sequences (BERT),
the tasks (ERNIE), what is being taught (TinyBERT), which layer learns (MobileBERT).
"""
from dataclasses import dataclass, replace

from ...engine.optim import SCHEDULES


@dataclass(frozen=True)
class Stage:
    """Steps t = 0, 1, ... of a part of the run."""
    config: object              # the model's Config as it is then
    steps: int
    name: str = ""
    before: int = 0             # steps of the learning rate's schedule that lie behind
    whole: int = 0              # steps that this schedule spans; 0: those of the stage

    def rate(self, t):
        """The learning rate."""
        c = self.config
        curve = SCHEDULES[c.schedule]
        return c.lr * curve(self.before + t, self.whole or self.steps, c.warmup)

    def accumulate(self, t):
        """Micro-batches in the step."""
        return self.config.accumulate

    def pulls(self, names, t):
        """A multiple of the learning rate for each parameter, 0 for one that is frozen; None: 1."""


def shares_of(steps, shares):
    """So many steps, divided in these proportions; not one is lost in rounding."""
    ends = [round(steps * sum(shares[:i + 1]) / sum(shares)) for i in range(len(shares))]
    return [end - begin for begin, end in zip([0, *ends], ends)]


def lengthening(c):
    """Short sequences most of the time, long ones at the end: cheaper, as attention grows with the
    square of the length, and all positions are still learnt. One schedule spans both."""
    longest = min(c.last_seq, c.positions)
    if not c.last_share or longest <= c.seq:
        return [Stage(c, c.steps)]
    first, last = shares_of(c.steps, [1 - c.last_share, c.last_share])
    # As many sequences in a step as before, and as large a share of their tokens hidden.
    hidden = c.predictions * longest // c.seq
    tokens = max(c.tokens, longest)
    longer = replace(c, seq=longest, predictions=hidden, tokens=tokens, last_share=0.0,
                     accumulate=max(1, c.accumulate * c.tokens // c.seq * longest // tokens))
    return [Stage(c, first, f"{c.seq} tokens", 0, c.steps),
            Stage(longer, last, f"{longest} tokens", first, c.steps)]
