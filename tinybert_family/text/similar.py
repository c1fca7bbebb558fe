"""Similar words: what MacBERT writes in a word's place, and TinyBERT's augmentation, too.

A replacement must have as many pieces as the word, for every piece is a place whose token is asked
for. So words are kept by their pieces. A word may be cut in several ways, after a space, after a
bracket or at the beginning of a text: each way is a family of its own, and a word is replaced by
one of the same family.

    calculate   ca ##lc ##ulate     ->  predict  pre ##di ##ct      3 pieces, cosine .61
"""
import numpy as np

from .corrupt import below
from .lexicon import STOP
from .segments import ranges

RULES = 1
WORDS, COUNT = 20_000, 5        # the commonest words have vectors; a word must be seen so often
NEAREST, COSINE = 10, 0.4       # a replacement is one of so many, none farther than this
CAPITALS = ("The", "A", "In")   # a tokenizer that tells them from small letters is cased
PIECES = 8                      # words of more are not replaced
ROWS = 2048
GOLDEN, STIRS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
# Where a word may stand: first, after a space, after a sign. (What is cut alone, what follows it)
BEFORE = (("", ""), ("a", " "), ("(", ""))


class Similar:
    """words [n] with vectors [n, H] of length 1, and the table of what may replace what.

    pieces: lists of ids, one for each way in which a word is cut; nearest: for each of them the
    numbers of others with equally many, NEAREST at most. Or both as arrays, -1 behind the ends.
    """

    def __init__(self, words, vectors, pieces, nearest):
        self.words, self.vectors = words, vectors
        self.pieces = padded(pieces, PIECES)
        self.nearest = padded(nearest, NEAREST)
        self.lengths = (self.pieces >= 0).sum(1)
        self.counts = (self.nearest >= 0).sum(1)
        keys = hashed(self.pieces, np.arange(PIECES))
        keys = keys.sum(1, dtype=np.uint64)
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        self.number = dict(zip(words, range(len(words))))

    def replace(self, ids, unit, draws):
        """-> int64 [T]: the pieces of a similar word for every word known, -1 elsewhere

        unit [T]: which word a token belongs to, ascending, -1 for none. draws [T] uint32: that of
        a word's first token chooses, evenly among its nearest.
        """
        ids = np.asarray(ids, np.int64)
        unit = np.asarray(unit)
        y = np.full(len(ids), -1)
        if not len(self.keys):
            return y
        begins = np.flatnonzero(np.diff(unit, prepend=-2))
        begins, lengths, row = self.known(ids, unit, begins)
        draws = np.asarray(draws)[begins]
        other = self.nearest[row, below(draws, self.counts[row])]
        places = ranges(begins, lengths)
        at = ranges(np.zeros_like(begins), lengths)
        other = np.repeat(other, lengths)
        y[places] = self.pieces[other, at]
        # Two words may have one key, once in 10^10: so the pieces are looked at.
        row = np.repeat(row, lengths)
        wrong = self.pieces[row, at] != ids[places]
        if wrong.any():
            begin = np.repeat(begins, lengths)
            wrong = np.isin(begin, begin[wrong])
            y[places[wrong]] = -1
        return y

    def known(self, ids, unit, begins):
        """Words by their keys -> (begins, lengths, rows) of those that may be replaced"""
        lengths = np.diff(begins, append=len(ids))
        at = ranges(np.zeros_like(begins), lengths)
        parts = hashed(ids, np.minimum(at, PIECES))
        if len(begins):
            parts = np.add.reduceat(parts, begins)
        found = np.searchsorted(self.keys, parts)
        found = np.minimum(found, len(self.keys) - 1)
        row = self.order[found]
        fits = self.keys[found] == parts
        fits &= self.lengths[row] == lengths
        fits &= self.counts[row] > 0
        fits &= unit[begins] >= 0
        return begins[fits], lengths[fits], row[fits]

    def neighbours(self, word, k):
        """The k words nearest to a word, itself aside -> [(word, cosine)]; [] if it is unknown"""
        small = self.number.get(word.lower())
        number = self.number.get(word, small)
        if number is None:
            return []
        cosine = self.vectors @ self.vectors[number]
        best = np.argsort(-cosine, kind="stable")
        best = best[best != number][:k]
        words = map(self.words.__getitem__, best.tolist())
        return list(zip(words, cosine[best].tolist()))


def padded(rows, width):
    """Rows of several lengths -> int64 [n, width], -1 behind their ends"""
    if not isinstance(rows, list):
        return np.array(rows, np.int64).reshape(-1, width)
    shape = len(rows), width
    y = np.full(shape, -1)
    for i, row in enumerate(rows):
        y[i, :len(row)] = row
    return y


def hashed(ids, at):
    """Numbers that add up to a word's key, modulo 2^64; -1 (no piece) gives 0."""
    odd = at.astype(np.uint64) * GOLDEN | np.uint64(1)
    mixed = (ids + 1).astype(np.uint64) * STIRS * odd
    return mixed ^ mixed >> np.uint64(29)


def ways(words, tokenizer):
    """How each word is cut -> (pieces [rows], word of each row, family of each row). Where two
    words are cut alike, as cafe and café may be, the pieces are those of the first."""
    found = {}
    heads = [tokenizer.encode(before) for before, _ in BEFORE]
    for number, word in enumerate(words):
        for family, (before, gap) in enumerate(BEFORE):
            ids = tokenizer.encode(before + gap + word)
            size = len(heads[family])
            own = tuple(ids[size:])
            if ids[:size] == heads[family] and 0 < len(own) <= PIECES:
                found.setdefault(own, (number, family))
    owners = np.array(list(found.values()), np.int64)
    return list(found), *owners.reshape(-1, 2).T


def chosen(lexicon, surface, tokenizer):
    """The commonest words of the corpus, in small letters for a tokenizer that makes them small
    -> (each raw word's number [V], -1 for none; the words)"""
    encode = tokenizer.encode
    kind, names = lexicon.lower, lexicon.lowers
    if any(encode(word) != encode(word.lower()) for word in CAPITALS):
        kind, names = np.arange(len(lexicon.words)), lexicon.words
    counts = np.zeros(len(names), np.int64)
    for block in surface.blocks():
        words = kind[block.words]
        counts += np.bincount(words, minlength=len(names))
    lettered = np.zeros(len(names), bool)
    lettered[kind[lexicon.letters]] = True
    counts[~lettered] = 0
    best = np.argsort(-counts, kind="stable")[:WORDS]
    best = best[counts[best] >= COUNT]
    number = np.full(len(names), -1)
    number[best] = np.arange(len(best))
    words = map(names.__getitem__, best.tolist())
    return number[kind], list(words)


def table(words, vectors, common, tokenizer, progress=None):
    """Which rows of pieces may replace which: those of words that are `common` in the corpus, are
    letters only and no stop words -> (pieces, nearest [rows, NEAREST])"""
    number = dict(zip(words, range(len(words))))
    common = [word for word in common if word in number]
    fit = [word.isalpha() and word.lower() not in STOP for word in common]
    # All are cut, for what á is cut into may be that of a, and is then no way of á.
    rows, owners, families = ways(common, tokenizer)
    known = [tokenizer.unk not in row for row in rows]
    usable = np.array(known, bool) & np.array(fit, bool)[owners]
    numbers = np.array([number[word] for word in common], np.int64)
    owners = numbers[owners]
    lengths = np.array(list(map(len, rows)), np.int64)
    nearest = padded([[] for _ in rows], NEAREST)
    groups = lengths * len(BEFORE) + families
    done = 0
    for group in np.unique(groups[usable]).tolist():
        members = np.flatnonzero(usable & (groups == group))
        x = vectors[owners[members]]
        for top in range(0, len(members), ROWS):
            mine = np.arange(top, min(top + ROWS, len(members)))
            cosine = x[mine] @ x.T
            cosine[np.arange(len(mine)), mine] = -2             # not the word itself
            nearest[members[mine]] = best_of(cosine, members)
            done += len(mine)
            if progress:
                progress(done, int(usable.sum()))
    return rows, nearest


def best_of(cosine, members):
    """The NEAREST columns of each row that are near enough, best first -> numbers of `members`"""
    k = min(NEAREST, cosine.shape[1])
    row = np.arange(len(cosine))[:, None]
    best = np.argpartition(-cosine, k - 1)[:, :k]
    order = np.argsort(-cosine[row, best], kind="stable")
    best = best[row, order]
    far = cosine[row, best] < COSINE
    best = np.where(far, -1, members[best])
    return np.pad(best, [(0, 0), (0, NEAREST - k)], constant_values=-1)
