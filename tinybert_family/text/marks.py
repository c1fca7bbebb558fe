"""From spans of words to marks on tokens: the arrays that objectives look into while they train.

    words       Ada Lovelace | met | Charles Babbage        two names and a word
    tokens      ada love ##lace  met  charles ba ##bb ##age
    begins       1   0     0      1      1     0   0    0   of units at the level "entity"
    mentions     7  -1    -1     -1      9    -1  -1   -1   the numbers of entities
"""
import numpy as np

from .matching import inside, outside
from .segments import ranges

RULES = 1
BITS = dict(word=1, phrase=2, entity=4, capital=8)      # of one byte for each token


def flags(**levels):
    """One byte for each token out of rows of bool [tokens]: word=, phrase=, entity=, capital=."""
    byte = np.uint8(0)
    for name, row in levels.items():
        byte = byte | np.asarray(row, bool) * np.uint8(BITS[name])
    return byte


def write_flags(writer, surface, lexicon, phrases=None, names=None, progress=None):
    """Write "flags" [tokens] -> how many phrases and names were found.

    phrases: a Trie of lower-case words; names: find(block) -> (begins, lengths). What is not given
    has no level of its own: words are its units.
    """
    writer.append("flags", np.zeros(0, np.uint8))
    found = dict(phrases=0, entities=0)
    for block in surface.blocks():
        size = len(block.words)
        known, common, loose = [none()] * 3
        if names:
            known = names.find(block)[:2]
        if phrases:
            words = lexicon.lower[block.words]
            common = phrases.find(words, block.left)[:2]
            loose = outside(*common, *known, size)
        found["entities"] += len(known[0])
        found["phrases"] += len(common[0])
        word, sentence = surface.word_of(block)
        capital = lexicon.capital[block.words]
        phrase = inside(*common, size)
        entity = inside(*known, size) | inside(*loose, size)
        phrase, entity = np.cumsum(~phrase), np.cumsum(~entity)     # numbers of units
        writer.append("flags", flags(
            word=begin(word, sentence), phrase=begin(phrase[word], sentence),
            entity=begin(entity[word], sentence), capital=capital[word]))
        if progress:
            progress(block.sentences.stop, len(surface.cuts) - 1)
    return found


def write_mentions(writer, surface, mentions, progress=None):
    """Write "mentions" [tokens]: the number of an entity at a mention's first token, else -1."""
    writer.append("mentions", np.zeros(0, np.int32))
    found = 0
    for block in surface.blocks():
        begins, lengths, entities = mentions.find(block)
        size = len(block.words)
        # Which mention a word is of: a token of a bracket may have swallowed the first word.
        owner = np.full(size, -1, np.int64)
        owner[ranges(begins, lengths)] = np.repeat(np.arange(len(begins)), lengths)
        word, sentence = surface.word_of(block)
        mention = owner[word]
        first = begin(mention, sentence) & (mention >= 0)
        row = np.full(len(word), -1, np.int32)
        row[first] = entities[mention[first]]
        found += int(first.sum())
        writer.append("mentions", row)
        if progress:
            progress(block.sentences.stop, len(surface.cuts) - 1)
    return found


def none():
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def begin(units, sentence):
    """Units of tokens [T] -> bool [T]: does one begin here; `sentence`: a sentence does"""
    return sentence | (np.diff(units, prepend=-2) != 0)
