"""Scores that depend on how far apart two tokens stand, without a number for every pair and column.

Token a's products with the table rows of all its distances are wanted: x_a . table[bucket(a - b)]
for every b. As a moves on by one, the same distances come up, one place further on. So the table is
spread out once, a row per distance in order, and a window of it meets every x_a in one matrix
product. With r tokens a and c tokens b the window has W = r + c - 1 rows:

    b = 0 1 2 3           d0 d1 d2 d3 d4 d5       products with distances, [r, W]
    a = 0                  .  .  0  1  2  3
    a = 1                  .  0  1  2  3  .       the number is b
    a = 2                  0  1  2  3  .  .

Row a of the scores begins one column before row a - 1. In memory that is a constant stride of
W - 1 numbers, so the scores are a view of the products (`sheared`): nothing is gathered. Of the
dots nobody reads; to have few of them, only some tokens a are taken at a time.
"""
from ..error import Error
from .autograd import Part
from .backend import sum_rows
from .tiles import Places, turned

BLOCK = 64                                  # tokens at a time


class Distances:
    """A table [O, H] spread out over distances, and its gradient.

    Scores s [n, A, r, c] have a token a for every row, or with by_column for every column.
    buckets: the row of the table for every distance, from far on one side to far on the other, such
    that it moves on with the place of b and back with the place of a.
    """

    def __init__(self, xp, table, buckets, longest, heads, by_column=False):
        self.xp, self.shape, self.heads, self.by_column = xp, table.shape, heads, by_column
        middle = len(buckets) // 2
        if middle < longest - 1:
            raise Error(f"buckets: they hold distances up to {middle}, but a sequence has {longest} "
                        "tokens; give 2 * length - 1 of them")
        self.ids = xp.asarray(buckets[middle - longest + 1:middle + longest])
        self.middle = longest - 1                                   # where distance 0 is
        self.rows = self.by_head(table[self.ids])                   # [A, L, D]

    def start_back(self, dtype):
        self.sums = self.xp.zeros((len(self.ids), self.shape[1]), dtype)    # a gradient per distance

    def by_head(self, x):
        return x.reshape(len(x), self.heads, x.shape[1] // self.heads).swapaxes(0, 1)

    def window(self, a, b):
        return slice(self.middle - a.last + b.first, self.middle - a.first + b.last + 1)

    def pieces(self, s, a):
        """Some tokens a at a time: their slice, their places, their part of the scores. Places
        that do not follow each other are not cut."""
        count = s.shape[-1 if self.by_column else -2]
        step = BLOCK if a.each is None else count
        for lo in range(0, count, step):
            hi = min(lo + step, count)
            here = a if a.each is not None else Places(a.first + lo, a.first + hi - 1)
            some = slice(lo, hi)
            yield some, here, s[..., some] if self.by_column else s[..., some, :]

    def turn(self, x):
        return turned(x) if self.by_column else x

    def add(self, s, X, a, b):
        """Add x_a . (row of the distance) to every score. X [n, A, r, D]; a and b are Places."""
        for some, here, part in self.pieces(s, a):
            rows = self.rows[:, self.window(here, b)]               # [A, W, D]
            products = self.xp.matmul(X[:, :, some], turned(rows))  # [n, A, r, W]
            part += self.turn(chosen(self.xp, products, here, b))

    def back(self, ds, X, dX, a, b):
        """Add what the scores' gradients give to dX, and to the table."""
        xp = self.xp
        sums = self.by_head(self.sums)
        for some, here, part in self.pieces(ds, a):
            window = self.window(here, b)
            shape = *X[:, :, some].shape[:3], window.stop - window.start
            g = xp.zeros(shape, ds.dtype)                           # [n, A, r, W]
            if consecutive(here, b):
                # A copy that goes through memory as `part` lies there, unlike an assignment.
                xp.positive(part, out=self.turn(sheared(xp, g)))
            else:
                flat = g.reshape(*shape[:2], -1)
                flat[:, :, flat_index(xp, here, b)] = self.turn(part)
            dX[:, :, some] += g @ self.rows[:, window]
            sums[:, window] += (turned(g) @ X[:, :, some]).sum(0)

    def gradient(self):
        """The table's: distances that share a row of it add up."""
        return Part(*sum_rows(self.xp, self.sums, self.ids), self.shape)


def consecutive(a, b):
    return a.each is None and b.each is None


def sheared(xp, x):
    """x [n, A, r, r+c-1] -> [n, A, r, c], a view that begins one column earlier in each row."""
    n, heads, r, width = x.shape
    *outer, down, right = x.strides
    view = xp.lib.stride_tricks.as_strided
    return view(x[..., r - 1:], (n, heads, r, width - r + 1), (*outer, down - right, right))


def flat_index(xp, a, b):
    """Where in the products, row after row, the scores are, if places are anywhere [r, c]."""
    width = a.last - a.first + b.last - b.first + 1
    i, j = a.array(xp), b.array(xp)
    column = (a.last - i)[:, None] + (j - b.first)
    return xp.arange(len(i))[:, None] * width + column


def chosen(xp, products, a, b):
    """The scores [n, A, r, c] among the products [n, A, r, W]."""
    if consecutive(a, b):
        return sheared(xp, products)
    flat = products.reshape(*products.shape[:2], -1)
    return xp.take(flat, flat_index(xp, a, b), axis=-1)
