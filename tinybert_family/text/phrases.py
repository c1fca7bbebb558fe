"""Phrases: words that stand together more often than chance would have it.

"machine learning" is a phrase when the two are neighbours far more often than two words of their
frequencies would be. The measure is normalised pointwise mutual information, and what it joins is
one word in the next pass, so that "New York" and "Times" can meet (as in word2phrase of Mikolov et
al., 2013):

    npmi(x, y) = ln(p(xy) / (p(x) p(y))) / -ln p(xy)        joined at .35
"""
import numpy as np

from ..error import Error
from .lexicon import Tally, npmi
from .matching import Trie, inside

RULES = 1
PASSES, WORDS = 3, 4            # how often neighbours are joined, and words of a phrase at most
JOINED, COUNT, SHARE = 0.35, 5, 1e-6


def found_in(surface, lexicon, progress=None):
    """The phrases of a corpus, as tuples of lower-case word numbers."""
    stops = np.zeros(len(lexicon.lowers), bool)
    stops[lexicon.lower[lexicon.stop | ~lexicon.letters]] = True
    phrases, known = [], set()
    for n in range(PASSES):
        trie = Trie(phrases, len(stops))
        new = joined(surface, lexicon, trie, phrases, stops)
        new = [phrase for phrase in new if phrase not in known]
        if progress:
            progress(n + 1, PASSES)
        if not new:
            break
        known.update(new)
        phrases += new
    return phrases


def joined(surface, lexicon, trie, phrases, stops):
    """One pass: neighbouring units, words or phrases so far, that belong together."""
    size = len(stops)
    pairs, total = Tally(), 0
    single = np.zeros(size + len(phrases), np.int64)
    for block in surface.blocks():
        units, sentence = units_of(block, lexicon, trie, size)
        single += np.bincount(units, minlength=len(single))
        total += len(units)
        near = sentence[1:] == sentence[:-1]
        whole = (units >= size) | ~stops[np.minimum(units, size - 1)]
        near &= whole[1:] & whole[:-1]
        at = np.flatnonzero(near)
        pairs.add(units[at] * len(single) + units[at + 1])
    keys, counts = pairs.settle()
    enough = counts >= max(COUNT, SHARE * total)
    keys, counts = keys[enough], counts[enough]
    one, other = np.divmod(keys, len(single))
    close = npmi(counts, single[one], single[other], total) >= JOINED

    def words(unit):
        return phrases[unit - size] if unit >= size else (unit,)
    found = [words(x) + words(y) for x, y in zip(one[close].tolist(), other[close].tolist())]
    return [phrase for phrase in found if len(phrase) <= WORDS]


def units_of(block, lexicon, trie, size):
    """-> (units, their sentences): a word's number, or `size` + a phrase's"""
    words = lexicon.lower[block.words]
    begins, lengths, values = trie.find(words, block.left)
    words[begins] = size + values
    kept = ~inside(begins, lengths, len(words))
    return words[kept], block.sentence[kept]


def listed(lines, lexicon, where):
    """The user's phrases -> tuples of lower-case word numbers; those with a word that the corpus
    never has are left out. lines: [(words, line number)]"""
    found = []
    for words, _ in lines:
        numbers = [lexicon.number.get(word.lower(), -1) for word in words]
        if len(numbers) > 1 and min(numbers) >= 0:
            found.append(tuple(numbers))
    if not found:
        raise Error(f"{where}: none of its {len(lines)} phrases can occur in the corpus; give "
                    "phrases of two words or more, one in each line, in the corpus's language")
    return found
