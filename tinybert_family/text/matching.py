"""Finding thousands of expressions in millions of words at once.

A Trie is a tree of words: from its root a step for each word, and where an expression ends stands
its number. All places of a text walk down the tree together, one word a round; those that find no
step drop out, and after the first round few are left.
"""
import numpy as np

from .segments import ends_of


class Trie:
    """expressions: rows of word numbers below `size`, none of them empty. values: what `find`
    answers (else their numbers). Of equal expressions the last counts."""

    def __init__(self, expressions, size, values=None):
        self.size, edges, ends = max(1, size), {}, {}
        values = range(len(expressions)) if values is None else values
        self.depth = max(map(len, expressions), default=0)
        for words, value in zip(expressions, values):
            state = 0
            for word in words:
                key = state * self.size + word
                state = edges.setdefault(key, len(edges) + 1)
            ends[state] = value
        self.keys = np.fromiter(sorted(edges), np.int64)
        self.targets = np.array(list(map(edges.get, self.keys.tolist())), np.int64)
        self.values = np.full(len(edges) + 1, -1, np.int64)             # of each state
        self.values[list(ends)] = list(ends.values())
        self.roots = np.zeros(self.size, np.int64)                      # states after one word
        first = self.keys < self.size
        self.roots[self.keys[first]] = self.targets[first]

    def step(self, states, words):
        """-> the states after one more word, 0 where there is no such step"""
        keys = states * self.size + words
        at = np.searchsorted(self.keys, keys)
        at = np.minimum(at, len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.targets[at], 0)

    def longest(self, words, left):
        """For every place [W] the longest expression that begins there -> (length or 0, value).
        left: how many words a match may take at most."""
        length = np.zeros(len(words), np.int64)
        value = length - 1
        if not self.depth:
            return length, value
        states = self.roots[words]
        at = np.flatnonzero(states)
        states = states[at]
        for n in range(1, self.depth + 1):
            found = self.values[states]
            ends = found >= 0
            length[at[ends]] = n
            value[at[ends]] = found[ends]
            going = left[at] > n
            at, states = at[going], states[going]
            states = self.step(states, words[at + n])
            at, states = at[states > 0], states[states > 0]
            if not len(at):
                break
        return length, value

    def find(self, words, left, alone=None):
        """Expressions in the text, none overlapping -> (begins, lengths, values). From left to
        right, at each place the longest; `alone` [W] says where a single word may be one."""
        length, value = self.longest(words, left)
        if alone is not None:
            length[(length == 1) & ~alone] = 0
        at = np.flatnonzero(length)
        taken = apart(at, length[at])
        return at[taken], length[at[taken]], value[at[taken]]


def apart(begins, lengths):
    """Of spans in the order of their begins: those that no earlier chosen one overlaps -> bool"""
    taken, end = np.ones(len(begins), bool), 0
    clash = begins[1:] < begins[:-1] + lengths[:-1]
    if not clash.any():
        return taken
    for i, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist())):
        if begin < end:
            taken[i] = False
        else:
            end = begin + length
    return taken


def inside(begins, lengths, size):
    """-> bool [size]: is a word of a span, but not its first"""
    change = np.zeros(size + 1, np.int64)
    np.add.at(change, begins + 1, 1)
    np.add.at(change, begins + lengths, -1)
    return np.cumsum(change)[:size] > 0


def outside(begins, lengths, other, sizes, words):
    """Of some spans those that share no word with the others -> (begins, lengths)"""
    change = np.zeros(words + 1, np.int64)
    change[other] += 1                                  # the others do not overlap each other,
    np.subtract.at(change, other + sizes, 1)            # but one may begin where another ends
    covered = ends_of(np.cumsum(change)[:words] > 0)
    free = covered[begins + lengths] == covered[begins]
    return begins[free], lengths[free]
