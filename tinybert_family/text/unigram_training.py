"""How the pieces of a unigram tokenizer, and their probabilities, are learnt from text.

A unigram language model says: a text is written by drawing pieces, each by itself, piece x with
probability p(x). Nobody saw which pieces; a word can be cut in many ways, and is as probable as all
of them together. Which vocabulary, of a given size, makes the text most probable?

1. `seeds`: begin with far too many pieces, all stretches of text that come again.
2. `expected`: EM. Given p, every way to cut a word has a probability. How often is each piece used,
   on average over all ways? Those counts give a better p (`maximise`), and so on.
3. `prune`: drop the quarter of the pieces whose loss costs the text the least. Back to 2, until
   the vocabulary has the size that was asked for. Single characters stay: they can spell all else.

All words are worked on at once. They lie side by side like columns, longest first, and the places
before, between and behind their characters are numbered row by row: place(t, w) = first[t] + w is
before the character t of word w. So the places of one t are one slice.

    word 0, "abc":  place(0, 0)  a  place(1, 0)  b  place(2, 0)  c  place(3, 0)
    word 1, "ab":   place(0, 1)  a  place(1, 1)  b  place(2, 1)

A piece that fits between two places is an edge, and a way to cut the word is a path along edges:
a + b + c, ab + c, a + bc, abc. There are up to 2^(n-1) paths through n characters, but only the
edges are walked: what is known of all paths to a place serves all edges that go on from there.
"""
from collections import Counter

import numpy as np

from tinybert_family.error import Error

LONGEST_PIECE = 16          # characters
# Longer words are learnt in stretches of this length. A character is never less probable than
# e^-20, so a stretch has at least e^-640, which a float64 can still hold.
STRETCH = 32
COVERAGE = 0.9999           # of a text's characters are pieces of their own; the others are unknown
MOST_PLACES = 1 << 21       # of the commonest words: enough to learn from, and below 1 GiB
KEPT = 0.75                 # of the pieces survive a round
SPARE = 1.1                 # times the wanted size is where rounds end; then probability decides
LEAST = 0.5                 # a piece that is expected to be used less often goes


def learn(words, size, progress=None, taken=()):
    """{word: count} -> [(piece, log probability)], `size` of them, the most probable first; fewer
    only where the text has no more that come again. progress(done, size) is called now and then;
    pieces that are `taken` are none of them."""
    tell = progress or (lambda done, size: None)
    letters = alphabet(words, size)
    model = Model(Columns(words, letters), tell=lambda part: tell(int(part * size / 4), size))
    most, begun = max(size, int(SPARE * size)), len(model)
    while True:
        for _ in range(2):
            model.maximise(model.expected()[0])
        if len(model) <= most:
            break
        model.prune(max(most, int(KEPT * len(model))))
        # The size falls by the same factor each round, so its logarithm tells how far we are.
        part = np.log(begun / len(model)) / np.log(begun / most)
        tell(int(size * (1 + 3 * part) / 4), size)
    tell(size, size)
    return model.best(size, set(taken))


def alphabet(words, room):
    """The commonest characters."""
    counts = Counter()
    for word, n in words.items():
        for c in word:
            counts[c] += n
    if not counts:
        raise Error("no words to learn a vocabulary from: the text is empty, or holds nothing "
                    "but white space")
    enough, seen, letters = COVERAGE * sum(counts.values()), 0, []
    for c, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if seen < enough:
            letters.append(c)
            seen += n
    if len(letters) > room:
        raise Error(f"{room} pieces are too few for this text, whose alphabet alone takes "
                    f"{len(letters)}; ask for many more")
    return letters


class Columns:
    """Words side by side, longest first. A character outside of the alphabet ends a word."""

    def __init__(self, words, letters):
        self.letters = letters
        codes = {c: i for i, c in enumerate(letters)}
        parts, places = Counter(), 0
        for word, n in sorted(words.items(), key=lambda item: (-item[1], item[0])):
            places += len(word) + 1
            if places > MOST_PLACES:
                break
            for part in "".join(c if c in codes else "\0" for c in word).split("\0"):
                for begin in range(0, len(part), STRETCH):
                    parts[part[begin:begin + STRETCH]] += n
        words = sorted(parts, key=lambda word: (-len(word), word))
        self.counts = np.array([parts[word] for word in words], float)          # [W]
        self.sizes = np.array([len(word) for word in words])                    # [W]
        height = self.sizes[0]
        # How many words have t characters or more; where the places of each t begin.
        self.wide = np.array([np.sum(self.sizes >= t) for t in range(height + 1)])
        self.first = np.concatenate([[0], np.cumsum(self.wide)])                # [height + 2]
        self.ends = self.first[self.sizes] + np.arange(len(words))              # [W]
        self.codes = np.zeros(self.first[-1], np.int64)         # the character behind each place
        text = np.array([codes[c] for word in words for c in word])
        begin = np.cumsum(self.sizes) - self.sizes
        for t in range(height):
            row = slice(self.first[t], self.first[t] + self.wide[t + 1])
            self.codes[row] = text[begin[:self.wide[t + 1]] + t]

    def spell(self, t, w, size):
        return "".join(self.letters[self.codes[self.first[i] + w]] for i in range(t, t + size))


def seeds(columns, tell):
    """-> (where each seed first stands: t, w, length; its count; the edges: start, end, seed)

    Begin with all places, in groups by the character behind them, and divide the groups by the
    next character, again and again: so equal stretches of 1, 2, 3 ... characters are found
    together. A stretch that is always followed by the same character is no seed, for the longer one
    always takes its place. It must be met in two words, or be a whole word that is met twice.
    """
    width, first = len(columns.letters), columns.first
    t = np.repeat(np.arange(len(columns.wide)), columns.wide)
    at = np.flatnonzero(t < columns.sizes[np.arange(len(t)) - first[t]])
    t = t[at]
    w = at - first[t]
    group, found, edges, made = columns.codes[at], [], [], 0
    for length in range(1, LONGEST_PIECE + 1):
        # at, t, w: places with `length` characters behind them; group: which stretch that is.
        ends = t + length == columns.sizes[w]
        on = np.flatnonzero(~ends)
        key = group[on] * width + columns.codes[first[t[on] + length] + w[on]]
        children, child = np.unique(key, return_inverse=True)
        groups = group.max() + 1
        many = np.bincount(group, minlength=groups)
        ways = np.bincount(group[ends], minlength=groups)
        ways += np.bincount(children // width, minlength=groups)
        counts = np.bincount(group, columns.counts[w], groups)
        again = ends & (t == 0) & (columns.counts[w] > 1)
        chosen = (many > 1) & (ways > 1)
        chosen[group[again]] = True
        if length == 1:
            chosen[:] = True                                    # letters always
        number = np.cumsum(chosen) - 1 + made
        made += int(chosen.sum())
        stand = np.zeros(groups, np.int64)
        stand[group[::-1]] = np.arange(len(at))[::-1]           # the first of each group
        stand = stand[chosen]
        found.append(np.stack([t[stand], w[stand], np.full(len(stand), length)]))
        found[-1] = found[-1], counts[chosen]
        mine = np.flatnonzero(chosen[group])
        end = first[t[mine] + length] + w[mine]
        edges.append((at[mine].astype(np.int32), end.astype(np.int32),
                      number[group[mine]].astype(np.int32)))
        # Go on with what can still come again.
        more = (many[group[on]] > 1) | (t[on] == 0) & (columns.counts[w[on]] > 1)
        on, child = on[more], child[more]
        at, t, w = at[on], t[on], w[on]
        if not len(at):
            break
        group = np.unique(child, return_inverse=True)[1]
        tell(length / LONGEST_PIECE)
    where = np.concatenate([place for place, _ in found], 1)
    counts = np.concatenate([count for _, count in found])
    return where, counts, [np.concatenate(column) for column in zip(*edges)]


class Model:
    """Pieces, their probabilities, and all edges of all words, in the order of where they end."""

    def __init__(self, columns, tell=lambda part: None):
        self.columns = columns
        self.where, counts, (start, end, piece) = seeds(columns, tell)
        order = np.argsort(end, kind="stable")
        self.start, self.piece = start[order], piece[order]                     # [edges]
        places = columns.first[-1]
        # The edges that end at a place are a slice: cuts[place] to cuts[place + 1].
        self.cuts = np.concatenate([[0], np.cumsum(np.bincount(end, minlength=places))])
        self.logs = np.zeros(len(counts))
        self.maximise(counts * self.where[2])       # a first guess: characters covered

    def __len__(self):
        return len(self.logs)

    def rows(self):
        """For each t > 0: its places and the edges that end there, as slices, and where in these
        the edges of each place begin."""
        first = self.columns.first
        for t in range(1, len(first) - 1):
            low, high = self.cuts[first[t]], self.cuts[first[t + 1]]
            yield slice(first[t], first[t + 1]), slice(low, high), self.cuts[first[t]:first[t + 1]] - low

    def expected(self):
        """-> (how often each piece is used, on average over all ways to cut; log-likelihood)

        alpha(i): the probability of all ways from the word's begin to place i, summed. beta(i): the
        same from i to the end. Ways that use the edge i -> j with piece x have alpha(i) p(x) beta(j)
        of the word's probability Z = alpha(end). Starting beta with count / Z instead of 1 divides
        by Z, and counts the word as often as it occurs, at no cost.
        """
        columns, p = self.columns, np.exp(self.logs)
        alpha = np.zeros(columns.first[-1])
        alpha[:columns.wide[0]] = 1
        for places, edges, begins in self.rows():
            ways = alpha[self.start[edges]] * p[self.piece[edges]]
            alpha[places] = np.add.reduceat(ways, begins)
        total = alpha[columns.ends]
        beta = np.zeros_like(alpha)
        beta[columns.ends] = columns.counts / total
        used = np.empty(len(self.piece))
        for places, edges, begins in reversed(list(self.rows())):
            start, sizes = self.start[edges], np.diff(np.append(begins, edges.stop - edges.start))
            ways = np.repeat(beta[places], sizes) * p[self.piece[edges]]
            low = start.min()
            beta[low:places.start] += np.bincount(start - low, ways, places.start - low)
            used[edges] = ways * alpha[start]
        counts = np.bincount(self.piece, used, len(self))
        return counts, float(columns.counts @ np.log(total))

    def maximise(self, counts):
        """Counts -> probabilities, and without the pieces that are hardly used.

        Plain EM would take log(count / sum). digamma(count) - digamma(sum) is the average of the
        logarithm when the probabilities themselves are uncertain (Dirichlet distributed, given the
        counts; Liang and Klein, 2007). digamma(n) is about log(n - 1/2): it takes half a use from
        everyone. Who is used often does not notice; what is hardly used shrinks and dies out.
        """
        letter = self.where[2] == 1
        keep = letter | (counts >= LEAST)
        counts = np.maximum(counts, LEAST)
        self.logs = digamma(counts) - digamma(counts[keep].sum())
        if not keep.all():
            self.select(keep)

    def select(self, keep):
        """Only these pieces [V], and only their edges."""
        self.where, self.logs = self.where[:, keep], self.logs[keep]
        number = (np.cumsum(keep) - 1).astype(np.int32)
        stay = keep[self.piece]
        self.cuts = np.concatenate([[0], np.cumsum(stay)])[self.cuts]
        self.start, self.piece = self.start[stay], number[self.piece[stay]]

    def viterbi(self):
        """-> how often each piece is used when every word is cut the best way"""
        columns = self.columns
        best = np.zeros(columns.first[-1])
        back = np.zeros(columns.first[-1], np.int64)            # the edge by which one comes best
        for places, edges, begins in self.rows():
            ways = best[self.start[edges]] + self.logs[self.piece[edges]]
            best[places], back[places] = best_of(ways, begins)
            back[places] += edges.start
        counts, place, n = np.zeros(len(self)), columns.ends, columns.counts
        while len(place):
            edge = back[place]
            counts += np.bincount(self.piece[edge], n, len(self))
            place = self.start[edge]
            on = place >= columns.wide[0]                       # not yet at the word's begin
            place, n = place[on], n[on]
        return counts

    def prune(self, size):
        """Keep the `size` pieces whose loss would cost the text the most probability.

        A piece that is not there is replaced by its best cut into others. That is counted without
        cutting the text anew: a piece used n times gives its n to each piece of the replacement.
        """
        used = self.viterbi()
        letter = self.where[2] == 1
        total = used.sum()
        score, others, parts = self.replaced(used)
        # log of the piece's share, less the logs of its replacements' shares after the change.
        n = np.maximum(used, 1e-300)
        after = np.log(total + n * (parts - 1))
        loss = used * (np.log(n) - np.log(total) - others + parts * after)
        # What is better written by others is not needed at all.
        loss[(score > self.logs) | (used == 0)] = -np.inf
        loss[letter] = np.inf
        keep = np.zeros(len(self), bool)
        keep[np.argsort(-loss, kind="stable")[:size]] = True
        self.select(keep & (loss > -np.inf))

    def replaced(self, used):
        """The best cut of every piece into others -> (log probability, the sum of
        log(used[other] + used[piece]), how many others); found where the piece first stands."""
        columns, (t, w, size) = self.columns, self.where
        order = np.argsort(-size, kind="stable")
        order = order[size[order] > 1]
        t, w, size = t[order], w[order], size[order]
        best = np.zeros((LONGEST_PIECE + 1, len(order)))
        back = np.zeros(best.shape, np.int64)
        for end in range(1, LONGEST_PIECE + 1):
            rows = int(np.sum(size >= end))                     # the longest pieces come first
            place = columns.first[t[:rows] + end] + w[:rows]
            low, many = self.cuts[place], self.cuts[place + 1] - self.cuts[place]
            begins = np.cumsum(many) - many
            edge = np.repeat(low - begins, many) + np.arange(many.sum())
            row = np.repeat(np.arange(rows), many)
            begin = end - self.where[2][self.piece[edge]]
            # Edges from before the piece and the piece itself are out.
            ways = best[begin, row] + self.logs[self.piece[edge]]
            ways[(begin < 0) | (self.piece[edge] == order[row])] = -np.inf
            if rows:
                best[end, :rows], found = best_of(ways, begins)
                back[end, :rows] = edge[found]
        score, others, parts = np.full(len(self), -np.inf), np.zeros(len(self)), np.zeros(len(self))
        score[order] = best[size, np.arange(len(order))]
        row, end = np.arange(len(order)), size
        while len(row):
            piece = self.piece[back[end, row]]
            mine = order[row]
            others[mine] += np.log(np.maximum(used[piece] + used[mine], 1e-300))
            parts[mine] += 1
            end = end - self.where[2][piece]
            row, end = row[end > 0], end[end > 0]
        return score, others, parts

    def best(self, size, taken):
        """-> [(piece, log probability)], the most probable first; all letters are among them."""
        pieces = [self.columns.spell(*place) for place in self.where.T]
        # Ten decimals: with more than 15 digits, not all readers of files see the same number.
        ranked = [(-round(float(log), 10), piece) for log, piece in zip(self.logs, pieces)]
        ranked = sorted((len(x[1]) > 1, *x) for x in ranked if x[1] not in taken)
        return [(piece, -score) for score, piece in sorted(x[1:] for x in ranked[:size])]


def best_of(ways, begins):
    """Of each slice of `ways` the greatest, and where it first stands."""
    best = np.maximum.reduceat(ways, begins)
    sizes = np.diff(np.append(begins, len(ways)))
    hits = np.flatnonzero(ways == np.repeat(best, sizes))
    return best, hits[np.searchsorted(hits, begins)]


def digamma(x):
    """The slope of log(gamma(x)). digamma(x) = digamma(x + 1) - 1 / x leads to large x, where a
    series in 1 / (x - 1/2)^2 is exact to all digits."""
    x = np.array(x, float)
    y = np.zeros_like(x)
    while (small := x < 7).any():
        y[small] -= 1 / x[small]
        x[small] += 1
    x -= 0.5
    z = 1 / x**2
    series = 1 / 24 + z * (-7 / 960 + z * (31 / 8064 - z * 127 / 30720))
    return y + np.log(x) + z * series
