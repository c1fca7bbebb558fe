"""A text as numbers for the tests of what is found in it, without files and tokenizers."""
from types import SimpleNamespace

import numpy as np

from tinybert_family.text import surface
from tinybert_family.text.lexicon import Lexicon


class Text(surface.Surface):
    """documents: lists of sentences. Each word is one token. held: documents that are held out."""

    def __init__(self, *documents, held=()):
        vocabulary, words, cuts, ends = surface.Vocabulary(), [], [0], [0]
        for document in documents:
            for sentence in document:
                words += [vocabulary[word] for word in surface.words_of(sentence)]
                cuts.append(len(words))
            ends.append(len(cuts) - 1)
        self.words, self.cuts = np.array(words, np.uint32), np.array(cuts)
        self.documents, self.tokens = np.array(ends), self.cuts
        self.parts, self.held = self.documents, np.array(held, int)
        self.names = [f"document {i}" for i in range(len(documents))]
        lengths = np.diff(self.cuts)
        self.place = np.arange(len(words)) - np.repeat(self.cuts[:-1], lengths)
        self.vocabulary = list(vocabulary)
        self.lexicon = Lexicon(self.vocabulary)

    def spelt(self, begins, lengths):
        return [" ".join(self.vocabulary[w] for w in self.words[i:i + n])
                for i, n in zip(begins.tolist(), lengths.tolist())]

    def block(self):
        return next(self.blocks())


class Letters:
    """A tokenizer of which every letter is a piece; a space belongs to what follows it."""
    unk = 0

    def __init__(self, lower=True):
        self.lower = lower

    def encode(self, text):
        return [ord(c) for c in (text.lower() if self.lower else text) if c != " "]


def corpus_of(text):
    return SimpleNamespace(sentences=text.cuts, ids=text.words, info=dict(name="a test"))
