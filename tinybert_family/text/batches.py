"""Packing sequences into batches of a fixed number of tokens, and making batches ahead of time."""
import itertools
import queue
import threading

import numpy as np

from ..error import Error


def pack(lengths, budget, sequences=None, shelf=256):
    """Batches of sequence numbers, each of at most `budget` tokens, in nearly the given order.

    The oldest waiting sequence always goes in; the rest of the room goes to the longest that still
    fit among the next `shelf`. So hardly a token of the budget is left over, and nobody waits long.
    `sequences`, where it is given, limits how many a batch may hold.
    """
    lengths = [int(n) for n in lengths]
    if lengths and max(lengths) > budget:
        raise Error(f"a sequence of {max(lengths)} tokens does not fit a budget of {budget}")
    waiting, following, batches = [], iter(range(len(lengths))), []
    while True:
        waiting += itertools.islice(following, shelf - len(waiting))
        if not waiting:
            return batches
        batch, room = [waiting.pop(0)], budget
        room -= lengths[batch[0]]
        for i in sorted(waiting, key=lambda i: (-lengths[i], i)):
            if lengths[i] <= room and (sequences is None or len(batch) < sequences):
                batch.append(i)
                room -= lengths[i]
        taken = set(batch)
        waiting = [i for i in waiting if i not in taken]
        batches.append(batch)


def ragged(pieces, dtype=np.int64):
    """Arrays one after another: (values [T], cuts [S+1])."""
    cuts = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    return (np.concatenate(pieces) if pieces else np.zeros(0)).astype(dtype), cuts


class Prefetch:
    """Iterate over `source` in a thread of its own, `ahead` items in advance.

    What goes wrong in the thread is raised here, in its place among the items. close() ends the
    thread.
    """
    END = object()

    def __init__(self, source, ahead=4):
        self.items, self.stopped = queue.Queue(ahead), threading.Event()
        self.thread = threading.Thread(target=self._fill, args=(source,), daemon=True)
        self.thread.start()

    def _fill(self, source):
        try:
            for item in source:
                if not self._put(item):
                    return
            self._put(self.END)
        except BaseException as problem:                # handed over, not swallowed
            self._put(problem)

    def _put(self, item):
        while not self.stopped.is_set():
            try:
                self.items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self):
        while not self.stopped.is_set():
            item = self.items.get()
            if item is self.END or isinstance(item, BaseException):
                self.stopped.set()
            if isinstance(item, BaseException):
                raise item
            if item is not self.END:
                yield item

    def close(self):
        self.stopped.set()
        self.thread.join()
