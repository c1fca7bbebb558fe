"""Entities: the names in a text, found by their capitals or in a list of the user's.

    In 1815 | Vincent van Gogh | met | Ada Lovelace | at the | University of California | .

A name is a run of capitalised words; small words (CONNECTORS) may stand between two of them. But a
sentence begins with a capital, too. Its first word counts when elsewhere, inside sentences, it is
written small less than three times in ten ("truecasing"). A name of one word must occur twice.
Numbers are no names. The text must have its capitals still: the tokenizer may drop them later.
"""
import numpy as np

from ..error import Error
from .matching import Trie, outside

RULES = 2
SMALL = 0.3                     # share of small letters from which a first word is no name
LONGEST = 8                     # words; longer runs are headlines


class Runs:
    """Finds names by their capitals; made with one pass over the corpus, which counts."""

    def __init__(self, surface, lexicon):
        self.lexicon = lexicon
        size, small = len(lexicon.lowers), len(lexicon.words)
        whole = np.zeros(size, np.int64)
        lower = np.zeros(size, np.int64)
        for block in surface.blocks():
            words = block.words[~initial(block, lexicon)]
            whole += np.bincount(lexicon.lower[words], minlength=size)
            words = words[~lexicon.capital[words]]
            lower += np.bincount(lexicon.lower[words], minlength=size)
        # May a word [V] be taken for a name where every word is capitalised?
        proper = (whole > 0) & (lower < SMALL * whole)
        self.proper = proper[lexicon.lower]
        # "I" is a capital by custom, and no name.
        self.named = lexicon.capital & lexicon.letters & ~lexicon.stop
        self.named &= lexicon.lower != lexicon.number.get("i", -1)
        self.often = np.ones(small, bool)
        counts = np.zeros(small, np.int64)
        for block in surface.blocks():
            begins, lengths = self.find(block)
            alone = begins[lengths == 1]
            counts += np.bincount(block.words[alone], minlength=small)
        self.often = counts >= 2

    def alone(self, block):
        """-> bool [W]: may a word of a list be a name here? "Mark my words" begins with no Mark,
        when that is written small elsewhere."""
        small = ~self.lexicon.capital[block.words]          # a name that is written so everywhere
        return ~initial(block, self.lexicon) | self.proper[block.words] | small

    def find(self, block):
        """The names of a block -> (begins, lengths)"""
        words, lexicon = block.words, self.lexicon
        at = np.flatnonzero(self.named[words] & self.alone(block))
        if not len(at):
            return at, at
        # Two capitalised words belong together when only small words stand between, two at most.
        gap, link = np.diff(at), lexicon.connector[words]
        one = link[at[:-1] + 1]
        two = one & link[at[1:] - 1]
        together = (gap == 1) | (gap == 2) & one | (gap == 3) & two
        together &= np.diff(block.sentence[at]) == 0
        begins = at[np.concatenate([[True], ~together])]
        ends = at[np.concatenate([~together, [True]])]
        lengths = ends + 1 - begins
        kept = (lengths > 1) | self.often[words[begins]]
        kept &= lengths <= LONGEST
        return begins[kept], lengths[kept]


class Gazetteer:
    """Finds the names of a list: the longest at each place, written with the same capitals."""

    def __init__(self, lines, runs, where):
        lexicon, self.runs = runs.lexicon, runs
        known = {word: i for i, word in enumerate(lexicon.words)}
        names = [[known.get(word, -1) for word in words] for words, _ in lines]
        names = [tuple(name) for name in names if min(name) >= 0]
        if not names:
            raise Error(f"{where}: none of its {len(lines)} names can occur in the corpus; give "
                        "names as the text writes them, capitals and all, one in each line")
        self.trie = Trie(names, len(lexicon.words))

    def find(self, block):
        """The names of a block -> (begins, lengths)"""
        alone = self.runs.alone(block)
        return self.trie.find(block.words, block.left, alone)[:2]


class Both:
    """The names of one finder, and those of another that do not touch them."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def find(self, block):
        one = self.first.find(block)[:2]
        other = self.second.find(block)[:2]
        other = outside(*other, *one, len(block.words))
        begins, lengths = map(np.concatenate, zip(one, other))
        order = np.argsort(begins)
        return begins[order], lengths[order]


def initial(block, lexicon):
    """-> bool [W]: the first word of its sentence; signs before it do not count"""
    lettered = lexicon.letters | lexicon.digits
    at = np.flatnonzero(lettered[block.words])
    first = np.zeros(len(block.words), bool)
    _, where = np.unique(block.sentence[at], return_index=True)
    first[at[where]] = True
    return first
