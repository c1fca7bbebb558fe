"""What can be said of single words: their lower case, and which are letters, capitals, stop words.

A Lexicon holds it for the whole vocabulary of a Surface as arrays, so that asking it of a million
words is one line. Counting is here, too: a Tally counts more pairs than a dictionary could hold.
"""
import numpy as np

# Words that hold sentences together and name nothing: they neither begin nor end a phrase, are no
# name, and have no similar word that would fit in their place.
STOP = frozenset("""
    a about above after again against all also am an and any are as at be became because been before
    being below between both but by can cannot could did do does doing done down during each either
    else even ever every few for from further get had has have having he hence her here hers herself
    him himself his how however i if in into is it its itself just let like ll many may me might
    more most much must my myself neither no nor not now of off often on once one only onto or other
    others our ours ourselves out over own per quite rather re same shall she should since so some
    such t than that the their theirs them themselves then there therefore these they this those
    though through thus to too toward towards two under unless until up upon us use used using ve
    very was we well were what when where whether which while who whom whose why will with within
    without would yes yet you your yours yourself yourselves s d m o
    """.split())
# Small words inside names: Bank of England, Vincent van Gogh, Trinidad and Tobago, O'Brien.
CONNECTORS = frozenset("of the de van von der la and ' ’".split())


class Lexicon:
    """Of each word of a vocabulary [V]; `lower` numbers words without regard to capitals [L]."""

    def __init__(self, vocabulary):
        self.words = vocabulary
        small = [word.lower() for word in vocabulary]
        self.lowers = list(dict.fromkeys(small))                                    # [L]
        self.number = dict(zip(self.lowers, range(len(self.lowers))))
        self.lower = np.array(list(map(self.number.get, small)), np.int64)          # [V]
        first = [word.lstrip()[:1] for word in vocabulary]
        self.capital = told(map(str.isupper, first))
        self.letters = told(map(str.isalpha, first))
        self.alphabetic = told(map(str.isalpha, vocabulary))
        self.digits = told(map(str.isnumeric, vocabulary))
        # The capital letters of O'Reilly and Plan S are no stop words.
        initials = {word for word in vocabulary if len(word) == 1 and word.isupper()}
        stops = {word for word in vocabulary if word.lower() in STOP} - initials
        self.stop = told(map(stops.__contains__, vocabulary))
        self.connector = told(map(CONNECTORS.__contains__, vocabulary))


def told(answers):
    return np.fromiter(answers, bool)


SETTLED = 1 << 22               # kinds that wait to be sorted in among the others


def summed(keys, counts):
    """Equal keys (none below 0) become one, their counts added; keys come back ascending."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[begins], np.add.reduceat(counts[order], begins)


class Tally:
    """Counts integers. When there are too many kinds, the rarest are forgotten, as word2phrase
    does: each time the bar is one higher."""

    def __init__(self, most=1 << 24):
        self.most, self.floor = most, 0
        self.waiting, self.size = [], 0
        self.keys = self.counts = np.zeros(0, np.int64)

    def add(self, keys):
        found = summed(keys, np.ones(len(keys), np.int64))
        self.waiting.append(found)
        self.size += len(found[0])
        if self.size > max(len(self.keys), SETTLED):
            self.settle()
            while len(self.keys) > self.most:
                self.floor += 1
                common = self.counts > self.floor
                self.keys = self.keys[common]
                self.counts = self.counts[common]

    def settle(self):
        """-> (keys ascending, counts)"""
        self.waiting.append((self.keys, self.counts))
        keys, counts = map(np.concatenate, zip(*self.waiting))
        self.keys, self.counts = summed(keys, counts)
        self.waiting, self.size = [], 0
        return self.keys, self.counts


def npmi(both, one, other, total):
    """ln(p(xy) / (p(x) p(y))) / -ln p(xy): 1 where x and y never go apart, 0 by chance."""
    together = np.log(both / total)
    apart = np.log(one / total) + np.log(other / total)
    return (together - apart) / np.maximum(-together, 1e-12)
