"""Word vectors: words that keep the same company lie close together.

How often two words stand within five words of each other is counted; what the count tells beyond
chance is the positive pointwise mutual information (PPMI), with the company's frequencies smoothed
to the power .75 (Levy, Goldberg and Dagan, 2015):

    X[w, c] = max(0, ln(p(w, c) / (p(w) p'(c))))        p'(c) = count(c)^.75 / sum

X is as wide as it is high. Its best part of rank d is found by a randomised SVD (Halko, Martinsson
and Tropp, 2011): X times a few random columns already spans the directions in which X is large.
    Q = orthonormal basis of X (X' X)^q R       B = Q' X        B = U S V'      X ~ (Q U) S V'
A word's vector is its row of (Q U) S^1/2, brought to length 1. X is never there as a whole.
"""
import numpy as np

from .lexicon import Tally

RULES = 1
WINDOW, SMOOTH = 5, 0.75
WIDTH, SPARE, POWERS = 100, 20, 2
ROWS = 1024                     # of X at a time


def from_text(surface, number, progress=None):
    """number [V]: raw word -> its row, -1 for words that have none. -> float32 [rows, WIDTH]"""
    size = int(number.max()) + 1
    pairs = Tally()
    for block in surface.blocks():
        words = number[block.words]
        for distance in range(1, WINDOW + 1):
            x, y = words[:-distance], words[distance:]
            near = block.left[:-distance] > distance
            near &= np.minimum(x, y) >= 0
            x, y = x[near], y[near]
            pairs.add(np.minimum(x, y) * size + np.maximum(x, y))
        if progress:
            progress(block.sentences.stop, len(surface.cuts) - 1)
    keys, counts = pairs.settle()
    x, y = np.divmod(keys, max(1, size))
    return factors(Matrix(x, y, counts, size), WIDTH)


class Matrix:
    """X [n, n], symmetric counts turned into PPMI; kept are the entries above zero, by rows."""

    def __init__(self, x, y, counts, size):
        other = x != y                              # each pair stands there once: add its mirror
        rows = np.concatenate([x, y[other]])
        columns = np.concatenate([y, x[other]])
        counts = np.concatenate([counts, counts[other]])
        whole = np.bincount(rows, counts, size)
        smooth = whole ** SMOOTH
        smooth /= smooth.sum()
        chance = whole[rows] * smooth[columns]      # counts that chance would give
        value = np.log(counts / np.maximum(chance, 1e-300))
        order = np.flatnonzero(value > 0)
        order = order[np.argsort(rows[order], kind="stable")]
        self.size, self.rows = size, rows[order]
        self.columns = columns[order]
        self.values = value[order].astype(np.float32)

    def blocks(self):
        """Some rows at a time as an ordinary matrix: (slice, [ROWS, n])"""
        for top in range(0, self.size, ROWS):
            end = min(top + ROWS, self.size)
            some = slice(*np.searchsorted(self.rows, [top, end]))
            block = np.zeros((end - top, self.size), np.float32)
            block[self.rows[some] - top, self.columns[some]] = self.values[some]
            yield slice(top, end), block

    def times(self, y):
        """X y"""
        blocks = [block @ y for _, block in self.blocks()]
        return np.concatenate(blocks)

    def transposed_times(self, y):
        """X' y"""
        return sum(block.T @ y[rows] for rows, block in self.blocks())


def factors(matrix, width, seed=0):
    """The rows of U S^1/2 of the best approximation of this rank, each of length 1."""
    rng = np.random.default_rng(seed)
    columns = min(width + SPARE, matrix.size)
    q = rng.standard_normal((matrix.size, columns), np.float32)
    q = basis(matrix.times(q))
    for _ in range(POWERS):                         # makes large directions larger still
        q = basis(matrix.transposed_times(q))
        q = basis(matrix.times(q))
    b = matrix.transposed_times(q).T                # Q' X [columns, n]
    squares, u = np.linalg.eigh(b @ b.T)            # B B' = U S^2 U'
    largest = slice(None, -width - 1, -1)           # they ascend
    roots = np.maximum(squares[largest], 0) ** 0.25
    return unit(q @ u[:, largest] * roots)


def basis(x):
    """Orthonormal columns that span those of x"""
    return np.linalg.qr(x)[0]


def unit(x):
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.maximum(length, 1e-12)).astype(np.float32)
