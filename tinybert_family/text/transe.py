"""TransE (Bordes et al., 2013): a vector for every entity of a graph, a step for every relation.

    h + r = t      Ada Lovelace + is_a = mathematician, nearly

A true triple shall be nearer than a false one by a margin g; false ones come from putting another
entity in the head's or the tail's place:

    loss = sum over true (h, r, t) and false (h', r, t') of [g + |h + r - t| - |h' + r - t'|]+

where |x| is the length of x, and entities are kept at length 1. One set of false entities serves a
whole batch of triples, so that all their distances come from one product of matrices:
|q - e|^2 = |q|^2 + |e|^2 - 2 q e. The gradient is written by hand below: for u = x / |x| it is u at
the true triple and -u at each false one that is too near. Adagrad, because it touches no vectors
but those of the batch.
"""
import numpy as np

from .segments import ranges

RULES = 1
MARGIN, RATE, BATCH, FALSE = 0.4, 0.2, 512, 64
UPDATES, LEAST, EPOCHS = 400_000, 10, 200     # triples seen; passes at least, at most
TINY = 1e-9


class TransE:
    """vectors [E, H] of entities and steps [R, H] of relations, trained by `fit`."""

    def __init__(self, entities, relations, width, seed=0, margin=MARGIN):
        rng = np.random.default_rng([seed, 0])
        rows = rng.standard_normal((entities + relations, width))
        self.vectors, self.steps = np.split(unit(rows), [entities])
        self.margin, self.seed = margin, seed
        # For Adagrad: of each row the squares of its gradients so far.
        self.squares = np.zeros(entities, np.float32)
        self.step_squares = np.zeros(relations, np.float32)

    def fit(self, triples, passes=None, progress=None):
        """Learn the triples [N, 3] in random order."""
        known = Known(triples, len(self.vectors), len(self.steps))
        if passes is None:
            passes = max(LEAST, UPDATES // len(triples))
            passes = min(passes, EPOCHS)
        rng = np.random.default_rng([self.seed, 1])
        for n in range(passes):
            order = rng.permutation(len(triples))
            rate = RATE * (1 - n / passes)
            for i in range(0, len(order), BATCH):
                others = rng.integers(0, len(self.vectors), FALSE)
                batch = triples[order[i:i + BATCH]]
                self.learn(batch, np.unique(others), known, rate)
            if progress:
                progress(n + 1, passes)
        return self

    def learn(self, batch, others, known, rate):
        """One step of Adagrad on a batch of triples and a set of other entities."""
        tails = known.tails(batch, others)
        heads = known.heads(batch, others)
        _, entities, relations = loss_and_gradient(
            self.vectors, self.steps, batch, others, tails, heads, self.margin)
        adagrad(self.vectors, self.squares, *entities, rate)
        adagrad(self.steps, self.step_squares, *relations, rate)
        touched = entities[0]
        self.vectors[touched] = unit(self.vectors[touched])


def loss_and_gradient(vectors, steps, batch, others, tails, heads, margin):
    """The loss of a batch [B, 3], and its gradient as (numbers, rows) of entities and relations.

    others [N], none twice, stand in for tails where tails [B, N] is true, and for heads where
    heads [B, N] is.
    """
    h, r, t = batch.T
    q = vectors[h] + steps[r]                               # [B, H], where the tail should be
    p = vectors[t] - steps[r]                               # [B, H], where the head should be
    x = q - vectors[t]
    true = np.sqrt(lengths(x) + TINY)                       # [B]
    e = vectors[others]                                     # [N, H]
    loss, dq, de, many = false_ones(q, e, true, tails, margin)
    more, dp, de_too, too_many = false_ones(p, e, true, heads, margin)
    # Each false one that is too near pulls the true one closer by the same amount.
    pull = (many + too_many) / true                         # [B]
    dx = x * pull[:, None]
    rows = [dq + dx, dp - dx, de + de_too]
    numbers = np.concatenate([h, t, others])
    entities = added(numbers, np.concatenate(rows))
    return loss + more, entities, added(r, dq - dp + dx)


def false_ones(q, e, true, allowed, margin):
    """Hinges of q [B, H] against entities e [N, H] -> (loss, dq, de, how many are at work [B])"""
    square = lengths(q)[:, None] + lengths(e)
    square -= 2 * (q @ e.T)
    far = np.sqrt(np.maximum(square, TINY))                 # [B, N]
    hinge = margin + true[:, None] - far
    near = allowed & (hinge > 0)
    weight = near / far                                     # of -(q - e)
    dq = weight @ e
    dq -= q * weight.sum(1, keepdims=True)
    weight = weight.T
    de = weight @ q
    de -= e * weight.sum(1, keepdims=True)
    many = near.sum(1, dtype=q.dtype)
    return hinge[near].sum(), dq, de, many


def lengths(x):
    """The squares of the lengths of rows"""
    return (x * x).sum(1)


def unit(x):
    square = np.maximum(lengths(x), TINY)
    y = x / np.sqrt(square)[:, None]
    return y.astype(np.float32)


def added(numbers, rows):
    """Rows of equal numbers added up -> (numbers ascending, rows)"""
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    begins = np.flatnonzero(np.diff(numbers, prepend=-1))
    rows = np.add.reduceat(rows[order], begins)
    return numbers[begins], rows


def adagrad(x, squares, numbers, dx, rate):
    """x[numbers] -= rate dx / root of the mean squares so far, one sum for a whole row."""
    squares[numbers] += lengths(dx) / dx.shape[1]
    root = np.sqrt(squares[numbers] + TINY)
    rate = rate / root
    x[numbers] -= dx * rate[:, None]


class Known:
    """The true triples, looked up by (head, relation) and by (tail, relation)."""

    def __init__(self, triples, entities, relations):
        h, r, t = np.asarray(triples).T
        self.relations, self.column = relations, np.full(entities, -1)
        keys = entities * relations
        from_head, from_tail = self.key(h, r), self.key(t, r)
        self.by_head = ragged(from_head, t, keys)
        self.by_tail = ragged(from_tail, h, keys)

    def key(self, entity, relation):
        return entity * self.relations + relation

    def tails(self, batch, others):
        """-> bool [B, N]: which of the others make a false triple as the tail"""
        h, r, _ = batch.T
        keys = self.key(h, r)
        return self._false(self.by_head, keys, others)

    def heads(self, batch, others):
        _, r, t = batch.T
        keys = self.key(t, r)
        return self._false(self.by_tail, keys, others)

    def _false(self, table, keys, others):
        row, entity = answers(table, keys)
        self.column[others] = np.arange(len(others))        # where each entity stands among them
        column = self.column[entity]
        self.column[others] = -1
        shape = len(keys), len(others)
        false = np.ones(shape, bool)
        hit = column >= 0
        false[row[hit], column[hit]] = False
        return false


def ragged(keys, values, size):
    """-> (cuts [size + 1], values by key); equal pairs once"""
    pairs = np.stack([keys, values], 1)
    keys, values = np.unique(pairs, axis=0).T
    cuts = np.searchsorted(keys, np.arange(size + 1))
    return cuts, values


def answers(table, keys):
    """All values of each key -> (row of the key, value)"""
    cuts, values = table
    counts = cuts[keys + 1] - cuts[keys]
    row = np.repeat(np.arange(len(keys)), counts)
    places = ranges(cuts[keys], counts)
    return row, values[places]


def ranks(model, triples, known):
    """The rank of each true tail [N], then of each true head [N], among all entities that would
    make no other true triple (Bordes et al. call this filtered); 1 is best"""
    tails, heads, e = [], [], model.vectors
    for i in range(0, len(triples), 256):
        h, r, t = triples[i:i + 256].T
        step = model.steps[r]
        others = answers(known.by_head, known.key(h, r))
        tails.append(rank(e[h] + step, e, t, others))
        others = answers(known.by_tail, known.key(t, r))
        heads.append(rank(e[t] - step, e, h, others))
    return np.concatenate(tails + heads)


def rank(q, e, answer, others):
    """Of entity `answer` [B] by distance from q [B, H]; `others` (rows, entities) do not count"""
    far = lengths(e) - 2 * (q @ e.T)                        # without |q|^2, equal in a row
    own = far[np.arange(len(q)), answer]
    far[others] = np.inf
    nearer = far < own[:, None]
    return nearer.sum(1) + 1
