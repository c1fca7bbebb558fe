"""The raw words of a corpus as numbers, and the word that each token belongs to.

What makes a phrase, a name or a similar word is seen in the raw text: a tokenizer may have dropped
capitals and accents, and pieces are no words. So the raw text is read once more and put beside the
corpus's ids. Everything that is then looked for is arithmetic on arrays.

    raw sentence    "Ada's re-reading"
    words           Ada   '   s   re   -   reading          letters and digits; each sign by itself
    tokens          ada   '   s   re   -   read   ##ing     of corpus.ids
    word            0     1   2   3    4   5      5         of each token

Where a token stands in the text, the tokenizer's `trace` tells, and it is slow. Between spaces a
text is cut alike wherever it stands, or nearly always: so a run between spaces is traced once and
remembered. Where the ids that are put together so are not those of the corpus, the whole sentence
is traced. Either way what comes out is compared with corpus.ids, token by token.
"""
import itertools
from typing import NamedTuple

import numpy as np
import regex

from ..error import Error
from . import shelf
from .tokenizer import Memo

RULES = 1                       # raised when what is written here changes
# Letters, their accents, and digits make a word; a Chinese or Japanese character is one alone, and
# so is every sign. Marks that nobody sees (soft hyphens, joiners) are no words.
EAST = r"\p{Han}\p{Hiragana}\p{Katakana}"
WORD = regex.compile(rf"[{EAST}]\p{{M}}*"
                     rf"|[\p{{L}}\p{{N}}--[{EAST}]][\p{{L}}\p{{N}}\p{{M}}\p{{Cf}}--[{EAST}]]*"
                     r"|[^\s\p{Cf}\p{Cc}]", regex.VERSION1)
RUN = regex.compile(r"\s*\S+")
SEEN = regex.compile(r"[^\s\p{Cf}\p{Cc}]")
MOST = 1 << 22                  # words told apart; what comes later is "rare", with capital or not
OTHERS = [" rare", " Rare"]     # no real word holds a space
BLOCK = 1 << 20                 # words that are looked at together


def words_of(text):
    """A text's words as they are counted here."""
    return WORD.findall(text)


class Vocabulary(dict):
    """word -> number, in the order in which words are first seen"""

    def __init__(self):
        super().__init__((word, i) for i, word in enumerate(OTHERS))

    def __missing__(self, word):
        if len(self) >= MOST:
            return int(word[:1].isupper())
        self[word] = len(self)
        return self[word]


class Block(NamedTuple):
    """Some sentences in one piece."""
    words: np.ndarray           # int64 [W]
    sentence: np.ndarray        # int64 [W]: which sentence of the block
    left: np.ndarray            # int64 [W]: words from here to the sentence's end, itself included
    first: int                  # number of the block's first word in the corpus
    sentences: slice            # which of the corpus's sentences


class Surface:
    """What `kept` returns: mapped arrays, and the words of the vocabulary."""

    def __init__(self, arrays, corpus):
        self.words = arrays["words"]            # uint32 [W]
        self.cuts = arrays["cuts"]              # int64 [N + 1], sentences as cuts into words
        self.place = arrays["place"]            # uint32 [tokens]: which word of its sentence
        self.documents = arrays["documents"]    # int64 [D + 1], the raw ones, as cuts into cuts
        self.names = shelf.lines_of(arrays["names.txt"])
        self.vocabulary = shelf.lines_of(arrays["vocabulary.txt"])
        self.tokens = corpus.sentences          # int64 [N + 1], sentences as cuts into tokens
        self.parts = corpus.documents           # int64 [D + 1], documents as cuts into sentences
        self.held = np.setdiff1d(corpus.held, corpus.train)

    def blocks(self):
        """All words, some sentences at a time."""
        ends, s = self.cuts[1:], 0
        while s < len(ends):
            e = int(np.searchsorted(ends, self.cuts[s] + BLOCK, "right"))
            e = max(e, s + 1)
            cuts = np.asarray(self.cuts[s:e + 1])
            lengths = np.diff(cuts)
            words = np.asarray(self.words[cuts[0]:cuts[-1]]).astype(np.int64)
            sentence = np.repeat(np.arange(e - s), lengths)
            left = np.repeat(cuts[1:], lengths) - np.arange(cuts[0], cuts[-1])
            yield Block(words, sentence, left, int(cuts[0]), slice(s, e))
            s = e

    def trained(self, block):
        """Which of the block's sentences belong to text that is not held out."""
        numbers = np.arange(block.sentences.start, block.sentences.stop)
        document = np.searchsorted(self.parts, numbers, side="right") - 1
        return ~np.isin(document, self.held)

    def word_of(self, block):
        """For the block's tokens: (their word's number in the block, does a sentence begin)"""
        tokens = np.asarray(self.tokens[block.sentences.start:block.sentences.stop + 1])
        cuts = np.asarray(self.cuts[block.sentences])
        lengths = np.diff(tokens)
        word = np.repeat(cuts - block.first, lengths) + self.place[tokens[0]:tokens[-1]]
        begins = np.zeros(len(word), bool)
        begins[(tokens[:-1] - tokens[0])[lengths > 0]] = True
        return word, begins


def surface_of(documents, corpus, tokenizer, folder, key, progress):
    """Put the raw text beside the corpus, or open what was put there before. -> Surface"""
    def make(writer):
        vocabulary = Vocabulary()
        reader = Reader(tokenizer, vocabulary)
        sentence, words, starts, names = 0, 0, [0], []
        writer.append("cuts", np.zeros(1, np.int64))
        for document in documents():
            found = reader.read(document, corpus, sentence)
            if not found.lengths:
                continue
            sentence += len(found.lengths)
            writer.append("words", found.words)
            writer.append("place", found.place)
            writer.append("cuts", words + np.cumsum(found.lengths))
            words += sum(found.lengths)
            starts.append(sentence)
            names.append(document.name.replace("\n", " "))
            progress(int(corpus.sentences[sentence]), len(corpus.ids))
        if sentence + 1 != len(corpus.sentences):
            raise Error(f"the text has {sentence} sentences and the corpus "
                        f"{len(corpus.sentences) - 1}; build the corpus again from this text")
        writer.append("documents", np.array(starts))
        writer.texts("names", names)
        writer.texts("vocabulary", vocabulary)
    arrays, _ = shelf.kept(folder, "surface", [RULES, *key], make)
    return Surface(arrays, corpus)


class Found(NamedTuple):
    """Of one document, whatever sentences have tokens."""
    words: np.ndarray           # uint32 [W]
    place: np.ndarray           # uint32 [tokens]
    lengths: list               # words of each sentence


class Reader:
    """Remembers how runs between spaces are cut: into (ids, words, each token's word)."""

    def __init__(self, tokenizer, vocabulary):
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.runs, self.words = Memo(self.cut), Memo(tokenizer.encode)

    def cut(self, text):
        found = list(WORD.finditer(text)) or list(RUN.finditer(text))
        words = [self.vocabulary[match[0].strip()] for match in found]
        ids = self.tokenizer.encode(text)
        # If the words one by one are cut as they are together, it is plain which piece is whose.
        cuts = [0, *(match.end() for match in found)]
        own = [self.words[text[lo:hi]] for lo, hi in zip(cuts, cuts[1:])]
        if list(itertools.chain.from_iterable(own)) == ids:
            return ids, words, [i for i, pieces in enumerate(own) for _ in pieces]
        ids, spans = self.tokenizer.trace(text)
        # A token belongs to the first word that ends behind where the token begins to be seen. So
        # one of a space alone goes with the word after it, and one of many signs with the first.
        seen = [SEEN.search(text, *span) for span in spans]
        starts = [at.start() if at else span[0] for at, span in zip(seen, spans)]
        place = np.searchsorted(cuts[1:], starts, "right")
        return ids, words, np.minimum(place, len(found) - 1).tolist()

    def read(self, document, corpus, sentence):
        """-> Found, the document's first sentence being number `sentence` of the corpus"""
        rows = [[self.runs[run] for run in RUN.findall(text)] for text in document.sentences]
        kept = self.together(rows)
        if not self.fits(kept, corpus, sentence):       # some text that is cut otherwise in whole
            rows = [[self.cut(text)] if text.strip() else [] for text in document.sentences]
            kept = self.together(rows)
            if not self.fits(kept, corpus, sentence):
                raise Error(f"document {document.name}: its text and the corpus do not agree; "
                            "build the corpus again from this text with this tokenizer")
        _, sizes, words, place, lengths = kept
        return Found(words, place, lengths)

    def together(self, rows):
        """Runs of each sentence -> ids, tokens of each sentence, words, place, words of each"""
        rows = [row for row in rows if any(ids for ids, _, _ in row)]
        runs = list(itertools.chain.from_iterable(rows))
        counts = np.array([len(words) for _, words, _ in runs], np.int64)
        sizes = np.array([len(ids) for ids, _, _ in runs], np.int64)
        # Words before a run: of all runs, less those before its sentence.
        before = np.cumsum(counts) - counts
        first = np.cumsum([0, *map(len, rows)])
        if len(runs):
            before -= np.repeat(before[first[:-1]], np.diff(first))
        chain = itertools.chain.from_iterable
        ids = np.fromiter(chain(run[0] for run in runs), np.int64)
        words = np.fromiter(chain(run[1] for run in runs), np.uint32)
        place = np.fromiter(chain(run[2] for run in runs), np.int64) + np.repeat(before, sizes)
        lengths = [sum(len(run[1]) for run in row) for row in rows]
        tokens = [sum(len(run[0]) for run in row) for row in rows]
        return ids, tokens, words, place.astype(np.uint32), lengths

    @staticmethod
    def fits(kept, corpus, sentence):
        ids, tokens, *_ = kept
        cuts = corpus.sentences[sentence:sentence + len(tokens) + 1]
        if len(cuts) != len(tokens) + 1 or not np.array_equal(np.diff(cuts), tokens):
            return False
        return np.array_equal(corpus.ids[cuts[0]:cuts[-1]], ids)
