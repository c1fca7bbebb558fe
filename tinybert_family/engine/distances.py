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
        self.xp, self.heads, self.by_column = xp, heads, by_column
        self.shape = table.shape
        furthest = len(buckets) // 2
        # On either side there may be more than anybody needs.
        spare = furthest + 1 - longest
        if spare < 0:
            raise Error(f"buckets: they end at distance {furthest}, but a sequence has {longest} "
                        "tokens; give 2 * length - 1 of them")
        used = buckets[spare:len(buckets) - spare]
        self.ids = xp.asarray(used)                     # [2P-1], P the length of the longest
        self.rows = self.by_head(table[self.ids])       # [A, 2P-1, D]
        self.middle = longest - 1                       # where distance 0 is

    def start_back(self, dtype):
        count = len(self.ids)
        self.sums = self.xp.zeros((count, self.shape[1]), dtype)    # gradients of the rows

    def by_head(self, x):
        size = self.shape[1] // self.heads
        return x.reshape(len(x), self.heads, size).swapaxes(0, 1)

    def window(self, a, b):
        """The rows between the furthest distances of some tokens a and b."""
        low = self.middle - a.last + b.first
        high = self.middle - a.first + b.last
        return slice(low, high + 1)

    def pieces(self, s, a):
        """Some tokens a at a time: a slice of them, their places, their part of s. Tokens that do
        not stand next to each other come all at once."""
        if a.each is not None:
            yield slice(None), a, s
            return
        count = a.last - a.first + 1
        for lo in range(0, count, BLOCK):
            hi = min(lo + BLOCK, count)
            some = slice(lo, hi)
            here = Places(a.first + lo, a.first + hi - 1)
            part = s[..., some] if self.by_column else s[..., some, :]
            yield some, here, part

    def turn(self, x):
        return turned(x) if self.by_column else x

    def add(self, s, X, a, b, heads):
        """Add x_a . (row of the distance) to every score. X [n, A, r, D]; a and b are Places."""
        for some, here, part in self.pieces(s, a):
            window = self.window(here, b)
            rows = self.rows[heads, window]                         # [A, W, D]
            x = X[:, :, some]                                       # [n, A, r, D]
            products = self.xp.matmul(x, turned(rows))              # [n, A, r, W]
            found = chosen(self.xp, products, here, b)
            part += self.turn(found)

    def back(self, ds, X, dX, a, b, heads):
        """Add what the scores' gradients give to dX, and to the table."""
        sums = self.by_head(self.sums)
        for some, here, part in self.pieces(ds, a):
            window = self.window(here, b)
            width = window.stop - window.start
            x = X[:, :, some]                                       # [n, A, r, D]
            g = self.xp.zeros((*x.shape[:3], width), ds.dtype)      # [n, A, r, W]
            self.put_back(g, part, here, b)
            dX[:, :, some] += g @ self.rows[heads, window]
            each = turned(g) @ x                                    # [n, A, W, D]
            sums[heads, window] += each.sum(0)

    def put_back(self, products, part, a, b):
        """Write the scores' gradients to where their products were."""
        xp = self.xp
        if consecutive(a, b):
            # An assignment would go through memory as the view lies there, and this as `part` does:
            # three times as fast where the two differ.
            view = sheared(xp, products)
            xp.positive(part, out=self.turn(view))
        else:
            flat = row_after_row(products)
            index = flat_index(xp, a, b)
            flat[:, :, index] = self.turn(part)

    def gradient(self):
        """The table's: distances that share a row of it add up."""
        return Part(*sum_rows(self.xp, self.sums, self.ids), self.shape)


# ---- where in the products the scores are

def consecutive(a, b):
    return a.each is None and b.each is None


def sheared(xp, x):
    """x [n, A, r, r+c-1] -> [n, A, r, c], a view that begins one column earlier in each row."""
    *outer, r, width = x.shape
    shape = *outer, r, width - r + 1
    *outer, down, right = x.strides
    strides = *outer, down - right, right
    begin = x[..., r - 1:]
    return xp.lib.stride_tricks.as_strided(begin, shape, strides)


def row_after_row(x):
    """[n, A, r, W] -> [n, A, r * W]"""
    return x.reshape(*x.shape[:2], -1)


def flat_index(xp, a, b):
    """Where the scores [r, c] are row after row, if places are anywhere."""
    i, j = a.array(xp), b.array(xp)
    width = a.last - a.first + b.last - b.first + 1
    row = xp.arange(len(i)) * width + a.last - i
    return row[:, None] + (j - b.first)


def chosen(xp, products, a, b):
    """The scores [n, A, r, c] among the products [n, A, r, W]."""
    if consecutive(a, b):
        return sheared(xp, products)
    flat = row_after_row(products)
    index = flat_index(xp, a, b)
    return xp.take(flat, index, axis=-1)
