"""What train.py and bench.py share at the terminal.

Options made from a Config's fields, errors of one line, and a progress bar.
"""
import argparse
import difflib
import inspect
import re
import sys
import time
from dataclasses import fields

from tqdm import tqdm

from .error import Error


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are Errors."""

    def error(self, message):
        raise Error(message)

    def add_settings(self, module, base):
        """An option for every field of the model's Config; the comment beside it is the help."""
        group = self.add_argument_group("settings of the model and its recipe")
        about = comments(module)
        for field in fields(module.Config):
            flag = "--" + field.name.replace("_", "-")
            told = f"{about.get(field.name, '')} ({getattr(base, field.name)})"
            group.add_argument(flag, dest="config_" + field.name, metavar="VALUE",
                               type=KINDS[type(field.default)], help=told.replace("%", "%%"))

    def read(self, argv):
        """The options; an unknown one is an Error that names the nearest."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            hint = f"did you mean {near[0]}?" if near else "--help lists what there is"
            raise Error(f"unknown option {unknown[0]}; {hint}")
        return args


def truth(word):
    if word.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() in ("true", "1", "yes")


KINDS = {int: int, float: float, str: str, bool: truth}


def comments(module):
    """{field: the comment beside it}: the Config's own text is the help."""
    source = "".join(inspect.getsource(c) for c in reversed(module.Config.__mro__[:-1]))
    return dict(re.findall(r"^    (\w+): \w+ = .*?# (.*)$", source, re.M))


def say(line):
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def bar(what, unit):
    """-> progress(done, total): a bar on a terminal while something is made; elsewhere nothing."""
    drawn = tqdm(desc=what, unit=unit, dynamic_ncols=True, leave=False,
                 disable=not sys.stderr.isatty())

    def progress(done, total):
        drawn.total = total
        drawn.update(done - drawn.n)
        if done >= total:
            drawn.close()
    return progress


class Progress:
    """A bar on a terminal; elsewhere a line now and then, so that log files stay readable."""

    def __init__(self, steps, start):
        self.steps, self.start, self.step, self.live = steps, start, start, sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True,
                        disable=not self.live)
        self.clock = self.told = time.perf_counter()
        self.tokens, self.loss = 0, None

    def advance(self, tokens, loss):
        self.step += 1
        self.tokens += tokens
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        now = time.perf_counter()
        self.bar.update()
        if now - self.clock > 1:
            self.bar.set_postfix_str(f"loss {self.loss:.3f}, {self.rate():,.0f} tokens/s",
                                     refresh=False)
        if not self.live and now - self.told > 10:
            self.told = now
            left = (self.steps - self.step) * (now - self.clock) / (self.step - self.start)
            say(f"step {self.step:,}/{self.steps:,}  loss {self.loss:.3f}  "
                f"{self.rate():,.0f} tokens/s  {left:,.0f} s left")

    def rate(self):
        return round(self.tokens / max(1e-9, time.perf_counter() - self.clock), 1)

    def close(self):
        self.bar.close()
