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
# e^-28, so a stretch has at least e^-672, which a float64 can still hold.
STRETCH = 24
COVERAGE = 0.9999           # of a text's characters are pieces of their own; the others are unknown
MOST_PLACES = 1 << 21       # of the commonest words: enough to learn from, and below 1 GiB
KEPT = 0.75                 # of the pieces survive a round
SPARE = 1.1                 # times the wanted size is where rounds end; then probability decides
TINY = 1e-300               # has a logarithm, other than zero
LEAST = 0.5                 # a piece that is expected to be used less often goes


def learn(words, size, progress=None, taken=()):
    """{word: count} -> [(piece, log probability)], `size` of them, the most probable first; fewer
    only where the text has no more that come again. progress(done, size) is called now and then;
    pieces that are `taken` are none of them."""
    tell = progress or (lambda done, size: None)
    letters = alphabet(words, size)
    # Progress is told in pieces of the wanted size; finding the seeds is a quarter of the work.
    columns = Columns(words, letters)
    model = Model(columns, tell=lambda part: tell(int(part * size / 4), size))
    most, begun = int(SPARE * size), len(model)
    while True:
        for _ in range(2):
            model.maximise(model.expected()[0])
        if len(model) <= most:
            break
        model.prune(max(most, int(KEPT * len(model))))
        # The size falls by the same factor each round, so its logarithm tells how far we are.
        fallen = np.log(begun / len(model))
        part = fallen / np.log(begun / most)
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
    for c, n in by_count(counts):
        if seen < enough:
            letters.append(c)
            seen += n
    if len(letters) > room:
        raise Error(f"{room} pieces are too few for this text, whose alphabet alone takes "
                    f"{len(letters)}; ask for many more")
    return letters


def by_count(counts):
    """[(key, count)], the most frequent first, whatever order they came in"""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def running(sizes):
    """a, b, c ... -> 0, a, a + b, a + b + c, ...: where each begins if they stand in a row"""
    return np.concatenate([[0], np.cumsum(sizes)])


class Columns:
    """Words side by side, longest first. A character outside of the alphabet ends a word."""

    def __init__(self, words, letters):
        self.letters = letters
        codes = {c: i for i, c in enumerate(letters)}
        parts = stretches(words, codes)
        words = sorted(parts, key=lambda word: (-len(word), word))
        self.counts = np.array([parts[word] for word in words], float)          # [W]
        self.sizes = np.array([len(word) for word in words])                    # [W]
        height = self.sizes[0]
        # How many words have t characters or more; where the places of each t begin.
        shorter = np.searchsorted(self.sizes[::-1], np.arange(height + 1))
        self.wide = len(words) - shorter                                        # [height + 1]
        self.first = running(self.wide)                                         # [height + 2]
        self.ends = self.place(self.sizes, np.arange(len(words)))               # [W]
        self.codes = np.zeros(self.first[-1], np.int64)         # the character behind each place
        text = np.array([codes[c] for word in words for c in word])
        begin = running(self.sizes)
        for t in range(height):
            low, wide = self.first[t], self.wide[t + 1]
            self.codes[low:low + wide] = text[begin[:wide] + t]

    def place(self, t, w):
        return self.first[t] + w

    def spell(self, t, w, size):
        places = self.place(np.arange(t, t + size), w)
        return "".join(self.letters[code] for code in self.codes[places])


def stretches(words, known):
    """{word: count} -> the same for what lies between unknown characters, long ones in pieces; of
    the commonest words, as far as memory is meant to reach."""
    parts, places = Counter(), 0
    for word, n in by_count(words):
        places += len(word) + 1
        if places > MOST_PLACES:
            break
        clean = "".join(c if c in known else "\0" for c in word)
        for part in clean.split("\0"):
            for begin in range(0, len(part), STRETCH):
                parts[part[begin:begin + STRETCH]] += n
    return parts


# --- Seeds ----------------------------------------------------------------------------------------

class Groups:
    """All places with `length` more characters behind them, in groups of equal ones.

    Begin with single characters and divide the groups by the next character, again and again: so
    all stretches of 1, 2, 3 ... characters are found, each with all the places where it stands.
    """

    def __init__(self, columns):
        self.columns, self.length = columns, 1
        t = np.repeat(np.arange(len(columns.wide)), columns.wide)
        at = np.arange(len(t))
        w = at - columns.first[t]
        inside = t < columns.sizes[w]
        self.t, self.w = t[inside], w[inside]
        self.group = columns.codes[at[inside]]      # the number of the group, for each place

    def chosen(self):
        """-> which groups are seeds. A stretch that is always followed by the same character is
        none, for the longer one always takes its place. It must be met in two words, or be a whole
        word that is met twice."""
        columns = self.columns
        self.ends = self.t + self.length == columns.sizes[self.w]
        going = np.flatnonzero(~self.ends)
        after = columns.place(self.t[going] + self.length, self.w[going])
        after = columns.codes[after]
        key = self.group[going] * len(columns.letters) + after
        pairs, self.child = np.unique(key, return_inverse=True)
        count = int(self.group.max()) + 1
        self.many = np.bincount(self.group, minlength=count)
        ways = np.bincount(pairs // len(columns.letters), minlength=count)
        ways += np.bincount(self.group[self.ends], minlength=count)
        chosen = (self.many > 1) & (ways > 1)
        twice = columns.counts[self.w] > 1
        self.again = twice & (self.t == 0)
        whole = self.ends & self.again
        chosen[self.group[whole]] = True
        return chosen | (self.length == 1)                      # letters always

    def divide(self):
        """On to stretches of one more character, where they can still come again."""
        more = (self.many[self.group] > 1) | self.again
        child = self.child[more[~self.ends]]
        more &= ~self.ends
        self.t, self.w = self.t[more], self.w[more]
        self.group = np.unique(child, return_inverse=True)[1]
        self.length += 1


def seeds(columns, tell):
    """-> (where each seed first stands: t, w and length [3, V]; how often it is met [V];
    the edges: start, end, piece)"""
    groups, made = Groups(columns), 0
    where, counts, edges = [], [], []
    while len(groups.t) and groups.length <= LONGEST_PIECE:
        chosen = groups.chosen()
        t, w, group = groups.t, groups.w, groups.group
        number = made + np.cumsum(chosen) - 1
        made += int(chosen.sum())
        _, stand = np.unique(group, return_index=True)
        stand = stand[chosen]
        length = np.full(len(stand), groups.length)
        where.append(np.stack([t[stand], w[stand], length]))
        met = np.bincount(group, columns.counts[w])
        counts.append(met[chosen])
        mine = chosen[group]
        t, w, piece = t[mine], w[mine], number[group[mine]]
        end = columns.place(t + groups.length, w)
        edge = np.stack([columns.place(t, w), end, piece])
        edges.append(edge.astype(np.int32))
        tell(groups.length / LONGEST_PIECE)
        groups.divide()
    where, counts = np.concatenate(where, 1), np.concatenate(counts)
    return where, counts, np.concatenate(edges, 1)


# --- EM -------------------------------------------------------------------------------------------

class Model:
    """Pieces, their probabilities, and all edges of all words, in the order of where they end."""

    def __init__(self, columns, tell=lambda part: None):
        self.columns = columns
        self.where, counts, (start, end, piece) = seeds(columns, tell)
        order = np.argsort(end, kind="stable")
        self.start, self.piece = start[order], piece[order]                     # [edges]
        places = columns.first[-1]
        # The edges that end at a place are a slice: cuts[place] to cuts[place + 1].
        self.cuts = running(np.bincount(end, minlength=places))
        self.logs = np.zeros(len(counts))
        self.maximise(counts * self.where[2])       # a first guess: characters covered

    def __len__(self):
        return len(self.logs)

    def rows(self):
        """For each t > 0: its places and the edges that end there, as slices, and where in these
        the edges of each place begin."""
        first = self.columns.first
        for t in range(1, len(first) - 1):
            places = slice(first[t], first[t + 1])
            low, high = self.cuts[places.start], self.cuts[places.stop]
            yield places, slice(low, high), self.cuts[places] - low

    def expected(self):
        """-> (how often each piece is used, on average over all ways to cut; log-likelihood)

        alpha(i): the probability of all ways from the word's begin to place i, summed. beta(i): the
        same from i to the end. Of the word's probability Z = alpha(end), the ways that use the edge
        i -> j with piece x have alpha(i) p(x) beta(j). To begin beta with count / Z instead of 1
        divides by Z, and counts the word as often as it occurs, at no cost.
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
            start = self.start[edges]
            sizes = np.diff(np.append(begins, len(start)))
            ways = np.repeat(beta[places], sizes)
            ways *= p[self.piece[edges]]
            low = start.min()
            before = beta[low:places.start]
            before += np.bincount(start - low, ways, len(before))
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
        self.where = self.where[:, keep]
        self.logs = self.logs[keep]
        number = (np.cumsum(keep) - 1).astype(np.int32)
        stay = keep[self.piece]
        self.cuts = running(stay)[self.cuts]
        self.start = self.start[stay]
        self.piece = number[self.piece[stay]]

    def viterbi(self):
        """-> how often each piece is used when every word is cut the best way"""
        columns = self.columns
        best = np.zeros(columns.first[-1])
        back = np.zeros(columns.first[-1], np.int64)            # the edge by which one comes best
        for places, edges, begins in self.rows():
            ways = best[self.start[edges]] + self.logs[self.piece[edges]]
            best[places], back[places] = best_of(ways, begins)
            back[places] += edges.start
        counts = np.zeros(len(self))
        place, n = columns.ends, columns.counts
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
        n = np.maximum(used, TINY)
        share = np.log(n) - np.log(total)
        after = others - parts * np.log(total + n * (parts - 1))
        loss = used * (share - after)
        # What is better written by others is not needed at all.
        loss[(score > self.logs) | (used == 0)] = -np.inf
        loss[letter] = np.inf
        keep = np.zeros(len(self), bool)
        keep[np.argsort(-loss, kind="stable")[:size]] = True
        self.select(keep & (loss > -np.inf))

    def replaced(self, used):
        """The best cut of every piece into others -> (its log probability, the sum of
        log(used[other] + used[piece]), how many others)"""
        sizes = self.where[2]
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 1]
        score, back = self.recut(order)
        scores = np.full(len(self), -np.inf)
        others, parts = np.zeros((2, len(self)))
        row, end = np.arange(len(order)), sizes[order]
        scores[order] = score[end, row]
        while len(row):
            piece, mine = self.piece[back[end, row]], order[row]
            both = used[piece] + used[mine]
            others[mine] += np.log(np.maximum(both, TINY))
            parts[mine] += 1
            end = end - sizes[piece]
            row, end = row[end > 0], end[end > 0]
        return scores, others, parts

    def recut(self, order):
        """Viterbi along each of these pieces, the longest first, without the piece itself: along
        the edges where it first stands. -> (best score, its last edge), both [characters, pieces]
        """
        t, w, size = self.where[:, order]
        best = np.zeros((LONGEST_PIECE + 1, len(order)))
        back = np.zeros(best.shape, np.int64)
        for end in range(1, 1 + size.max(initial=0)):
            rows = int(np.sum(size >= end))
            place = self.columns.place(t[:rows] + end, w[:rows])
            low = self.cuts[place]
            many = self.cuts[place + 1] - low
            *begins, total = running(many)
            edge = np.arange(total) + np.repeat(low - begins, many)
            row = np.repeat(np.arange(rows), many)
            piece = self.piece[edge]
            begin = end - self.where[2][piece]
            ways = best[begin, row] + self.logs[piece]
            before, itself = begin < 0, piece == order[row]
            ways[before | itself] = -np.inf
            best[end, :rows], found = best_of(ways, begins)
            back[end, :rows] = edge[found]
        return best, back

    def best(self, size, taken):
        """-> [(piece, log probability)], the most probable first; all letters are among them."""
        ranked = []
        for place, log in zip(self.where.T, self.logs.tolist()):
            piece = self.columns.spell(*place)
            if piece not in taken:
                # Ten decimals: of more than 15 digits not all readers make the same number.
                ranked.append((len(piece) > 1, -round(log, 10), piece))
        chosen = sorted(ranked)[:size]
        return [(piece, -score) for _, score, piece in sorted(chosen, key=lambda x: x[1:])]


def best_of(ways, begins):
    """Of each slice of `ways` the greatest, and where it first stands."""
    best = np.maximum.reduceat(ways, begins)
    sizes = np.diff(np.append(begins, len(ways)))
    hits = np.flatnonzero(ways == np.repeat(best, sizes))
    return best, hits[np.searchsorted(hits, begins)]


def digamma(x):
    """The slope of log(gamma(x)). digamma(x) = digamma(x + 1) - 1 / x leads to large x, where a
    series in 1 / (x - 1/2)^2 is right to ten digits."""
    x = np.array(x, float)
    y = np.zeros_like(x)
    for _ in range(7):
        small = x < 7
        y[small] -= 1 / x[small]
        x[small] += 1
    x -= 0.5
    z = 1 / x**2
    series = 31 / 8064 - z * 127 / 30720
    series = 1 / 24 + z * (z * series - 7 / 960)
    return y + np.log(x) + z * series
