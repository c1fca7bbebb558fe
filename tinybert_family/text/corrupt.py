"""The family's noise: which tokens to hide, and what to put in their place.

Nothing here draws a random number: the caller passes draws (uint32), one or a few per token, and
gets the same noise for the same draws. So noise is a function of counters like everything else on
the training path.

Everything works on a whole micro-batch: T tokens of S sequences in one row, `sequence` [T] says
whose each one is, `counts` [S] how many to hide. What is hidden together is a unit: a word, a
phrase, an entity. `unit` [T] numbers them along the row; -1 marks what belongs to none, such as
[CLS] and [SEP]. What holds more than one unit, an n-gram or a span, never reaches over a -1 nor
into another sequence.

  how many     budget, rounded_up_or_down
  which        choose, weighted (tokens), whole_units, bernoulli, ngrams, spans, windows, trigrams
  by what      replace, eighty_ten_ten; uniform and from_corpus make random words

The rules that look back at what was hidden before are loops over units in a random order: an order
made by sorting draws, so that the first of it is any unit with equal chance, the next any other.
"""
import itertools

import numpy as np

# ------------------------------------------------------------------------------- draws into choices

def below(draws, n):
    """uint32 draws -> integers 0..n-1, evenly."""
    wide = draws.astype(np.uint64) * np.uint64(n)
    high = wide >> np.uint64(32)
    return high.astype(np.int64)


def pick(draws, weights):
    """uint32 draws -> integers 0..len(weights)-1, as often as the weights say."""
    bounds = np.cumsum(weights, dtype=np.float64)
    share = draws / 2.0 ** 32 * bounds[-1]
    return np.searchsorted(bounds, share, side="right")


def uniform(draws, low, high):
    """Random words: ids low..high-1, evenly."""
    return low + below(draws, high - low)


def from_corpus(draws, ids):
    """Random words as frequent as in the corpus: each a token from anywhere in it."""
    places = draws / 2.0 ** 32 * len(ids)
    return ids[places.astype(np.int64)]


# ----------------------------------------------------------------------------------------- how many
def budget(lengths, share, most):
    """How many tokens to hide in each sequence: a share of its length, at least one.

    Special tokens count as length. np.rint rounds .5 to the even number, as Python does and the
    released code with it.
    """
    wanted = np.maximum(1, np.rint(share * lengths))
    return np.minimum(most, wanted).astype(np.int64)


def rounded_up_or_down(draws, share, lengths):
    """RoBERTa's budget: 19.2 is 19 or 20, the latter one time in five, so 19.2 on average.

    draws: one per sequence, like lengths.
    """
    wanted = share * lengths + draws / 2.0 ** 32
    return np.floor(wanted).astype(np.int64)


# -------------------------------------------------------------------------------------------- units
def units(begins, special, sequence):
    """The number of the unit that each token belongs to, -1 for special tokens. -> int [T]

    begins (bool): a unit starts here. One also starts after a special token and with a sequence,
    for a passage may begin amid a word.
    """
    starts = begins.copy()
    starts[:1] = True
    starts[1:] |= special[:-1]
    starts[1:] |= differs(sequence)
    starts &= ~special
    number = np.cumsum(starts) - 1
    return np.where(special, -1, number)


def first_of(unit):
    """For each token, where its unit begins; a token in none is its own. -> int [T]

    `draws[first_of(unit)]` is one decision for all tokens of a unit.
    """
    starts = unit < 0
    starts[:1] = True
    starts[1:] |= differs(unit)
    heads = np.where(starts, np.arange(len(unit)), 0)
    return np.maximum.accumulate(heads)


class Table:
    """Where units lie: of each, [U], `first` token, `end`, `size`, its sequence (`owner`) and the
    number behind the last unit of its passage (`reach`). `which` [T]: a token's unit, 0..U-1 or -1.
    """

    def __init__(self, unit, sequence):
        inside = unit >= 0
        starts = inside & (first_of(unit) == np.arange(len(unit)))
        number = np.cumsum(starts) - 1
        self.which = np.where(inside, number, -1)
        self.first = np.flatnonzero(starts)
        self.count = len(self.first)
        self.size = np.bincount(number[inside], minlength=self.count)
        self.end = self.first + self.size
        self.owner = sequence[self.first]
        # A passage's last unit is one that the next does not follow at once.
        is_last = np.ones(self.count, bool)
        is_last[:-1] = self.end[:-1] != self.first[1:]
        is_last[:-1] |= differs(self.owner)
        last = np.flatnonzero(is_last)
        numbers = np.arange(self.count)
        self.reach = 1 + last[np.searchsorted(last, numbers)]

    def shuffled(self, draws):
        """The units' numbers, sequence by sequence, in the order of the draws at their heads."""
        return shuffled(np.arange(self.count), draws[self.first], self.owner)

    def tokens(self, taken):
        """Where the tokens of some units are. taken: bool [U]"""
        outside = np.append(taken, False)               # for what is in no unit: which is -1
        return np.flatnonzero(outside[self.which])


def differs(x):
    """Is each number another than the one before it? One fewer than x has."""
    return x[1:] != x[:-1]


def shuffled(places, draws, sequence):
    """Some places, sequence by sequence, in the order of their draws."""
    order = np.lexsort((draws[places], sequence[places]))
    return places[order]


def running(size, owner):
    """Sums so far in each sequence, itself included. size and its owner: in any order of places,
    sequence by sequence."""
    before = np.cumsum(size) - size
    begin = np.searchsorted(owner, owner)               # where each one's sequence starts
    return before - before[begin] + size


# ------------------------------------------------------------------------------------ which: tokens
def choose(draws, candidates, sequence, counts):
    """A random subset of each sequence's candidates. -> ascending [K]

    It is the `counts[s]` of them with the smallest draws. draws, candidates (bool) and sequence
    (which one a token belongs to) are [T].
    """
    places = shuffled(np.flatnonzero(candidates), draws, sequence)
    owner = sequence[places]
    rank = running(np.ones(len(places), np.int64), owner)
    return np.sort(places[rank <= counts[owner]])


def weighted(draws, weights, count):
    """DistilBERT: `count` tokens of all, drawn one after another by weight. -> places [K]

    Every token waits for an exponential time, shorter the heavier it is. The first to come is any
    of them with a chance in proportion to its weight, and so is the next among the others
    (Efraimidis and Spirakis, 2006). Weight 0 never comes.
    """
    able = np.flatnonzero(weights > 0)
    share = (draws[able] + 0.5) / 2.0 ** 32                             # never 0
    time = -np.log(share) / weights[able]
    order = np.argsort(time, kind="stable")
    return np.sort(able[order[:count]])


def bernoulli(draws, unit, share):
    """ERNIE: every unit for itself, with the same chance. -> places [K]

    share: a number, or one for each token.
    """
    hidden = draws[first_of(unit)] < share * 2.0 ** 32
    hidden &= unit >= 0
    return np.flatnonzero(hidden)


# ------------------------------------------------------------------------------- which: whole words
def whole_units(draws, unit, sequence, counts):
    """BERT's whole words: in random order until the budget is spent. -> places [K]

    A word that would exceed it is skipped and shorter ones may follow, so longer words are chosen
    somewhat more seldom.
    """
    table = Table(unit, sequence)
    waiting = table.shuffled(draws)
    left = counts.astype(np.int64)
    taken = np.zeros(table.count, bool)
    while len(waiting):
        # What exceeds the rest now will when its turn comes; so each round ends at a word that does
        # not fit, and there are about as many rounds as word lengths.
        fits = table.size[waiting] <= left[table.owner[waiting]]
        waiting = waiting[fits]
        owner, size = table.owner[waiting], table.size[waiting]
        fits = running(size, owner) <= left[owner]
        taken[waiting[fits]] = True
        np.subtract.at(left, owner[fits], size[fits])
        waiting = waiting[~fits]
    return table.tokens(taken)


# ----------------------------------------------------------------------------- which: rows of words
def ngrams(draws, more, unit, sequence, counts, weights=(6, 3, 2)):
    """ALBERT and MacBERT: rows of n words. -> places [K], the number of each one's n-gram [K]

    Words are tried in random order (draws) as the first of an n-gram, n as often as `weights` say
    (more); it gets shorter until it fits the budget, and where it overlaps with an earlier one it
    is skipped. 6:3:2 is 1 : 1/2 : 1/3.
    """
    table = Table(unit, sequence)
    # n is drawn among those that do not reach over the passage's end.
    room = table.reach - np.arange(table.count)
    room = np.minimum(room, len(weights))
    bounds = np.cumsum(weights, dtype=np.float64)
    share = more[table.first] / 2.0 ** 32 * bounds[room - 1]
    wanted = np.searchsorted(bounds, share, side="right") + 1

    ends = np.arange(table.count) + wanted
    first, end = table.first.tolist(), table.end.tolist()
    ends, owner = ends.tolist(), table.owner.tolist()
    left = counts.tolist()
    gram = [-1] * table.count                           # which n-gram each word is in: its first
    for u in table.shuffled(draws).tolist():
        rest = left[owner[u]]
        if not rest:
            continue
        stop = ends[u]
        while stop > u and end[stop - 1] - first[u] > rest:
            stop -= 1
        if stop > u and max(gram[u:stop]) < 0:
            gram[u:stop] = [u] * (stop - u)
            left[owner[u]] -= end[stop - 1] - first[u]
    gram = np.array(gram, np.int64)
    places = table.tokens(gram >= 0)
    return places, renumbered(gram[table.which[places]])


def spans(draws, more, unit, sequence, counts, share=0.2, longest=10, whole=False):
    """SpanBERT: rows of words of geometric length. -> places [K], the number of each one's span [K]

    Any token that is not hidden yet (draws) says where: at the beginning of its word. How many
    words is 1, 2, ..., `longest`, each (1 - share) times as frequent as the one before (more, at
    that token); fewer at the end of a passage. The last span ends where the budget does, be it
    inside a word; or, with `whole`, before the word that would exceed it. Spans that touch are one.
    """
    table = Table(unit, sequence)
    anchors = shuffled(np.flatnonzero(unit >= 0), draws, sequence)
    words = 1 + pick(more[anchors], (1 - share) ** np.arange(longest))
    start = table.which[anchors]
    stops = np.minimum(start + words, table.reach[start])

    rows = [anchors, sequence[anchors], start, stops]
    rows = zip(*(column.tolist() for column in rows))
    first, end = table.first.tolist(), table.end.tolist()
    left = counts.tolist()
    hidden = bytearray(len(unit))
    for anchor, s, u, stop in rows:
        rest = left[s]
        if not rest or hidden[anchor]:
            continue
        if whole:
            while stop > u and hidden.count(0, first[u], end[stop - 1]) > rest:
                stop -= 1
            if stop == u:
                continue
        row = range(first[u], end[stop - 1])
        new = [t for t in row if not hidden[t]][:rest]
        left[s] -= len(new)
        for t in new:
            hidden[t] = 1
    places = np.flatnonzero(np.frombuffer(hidden, np.uint8))
    # Neighbours in one sequence get one number.
    return places, renumbered(places - np.arange(len(places)) + sequence[places])


def windows(draws, more, order, unit, sequence, counts, longest=1, window=6, tail_bias=False):
    """DeBERTa's evenly strewn n-grams. -> places [K]

    From left to right: n is 1..longest in the ratio 1 : 1/2 : 1/3 ... (draws); of the next
    n * `window` units, n in a row, anywhere (more), are marked. That is about 1/window of all, a
    little more than wanted. Of the marked units, random ones (order) are hidden until the count is
    reached. Of a last window that the text does not fill (but for its first: something is to be
    hidden), what lies beyond the text counts for nothing. The released code (`tail_bias`) always
    marks something there, but takes the leftmost of all, so a text's end is never hidden.
    """
    table = Table(unit, sequence)
    weights = 1 / np.arange(1, longest + 1)
    sizes = 1 + pick(draws[table.first], weights)
    sizes, where = sizes.tolist(), more[table.first].tolist()
    reach = table.reach.tolist()
    gram = [-1] * table.count                           # which n-gram each unit is in: its first
    begins = np.flatnonzero(np.diff(table.owner, prepend=-1))
    ends = np.append(begins[1:], table.count)
    for first, last in zip(begins.tolist(), ends.tolist()):
        u = first
        while u < last:
            n, stop = sizes[u], u
            room = n * window
            if tail_bias or u == first:
                room = min(room, last - u)
            begin = u + (where[u] * room >> 32)
            if begin < last:
                stop = min(begin + n, reach[begin])
                gram[begin:stop] = [begin] * (stop - begin)
            u = max(u + room, stop)
    gram = np.array(gram, np.int64)
    marked = np.flatnonzero(gram >= 0)
    if not tail_bias:
        # n-grams in the order of their heads' draws, each from left to right
        gram = gram[marked]
        draw, owner = order[table.first[gram]], table.owner[marked]
        by_chance = np.lexsort((marked, gram, draw, owner))
        marked = marked[by_chance]
    owner, size = table.owner[marked], table.size[marked]
    before = running(size, owner) - size
    taken = np.zeros(table.count, bool)
    taken[marked[before < counts[owner]]] = True
    return table.tokens(taken)


def renumbered(label):
    """0 as long as the label stays the same, then 1, then 2, ..."""
    return np.cumsum(np.diff(label, prepend=label[:1]) != 0)


# ----------------------------------------------------------------------------------- which: triples
ORDERS = np.array(list(itertools.permutations(range(3))))               # [6, 3]


def trigrams(draws, more, ids, free, sequence, counts):
    """StructBERT: shuffle three tokens in a row. -> (places [3N], sources [3N])

    `counts` triples in each sequence, as far as there are any, anywhere (draws) among tokens that
    are `free` (bool), no two with a token in common. The noise is noisy[places] = ids[sources]; all
    six orders (more) are equally frequent, also the right one. Three equal tokens have no order.
    """
    new = differs(ids)
    fits = free[:-2] & free[1:-1] & free[2:]
    fits &= sequence[:-2] == sequence[2:]
    fits &= new[:-1] | new[1:]
    starts = shuffled(np.flatnonzero(fits), draws, sequence)
    owner = sequence[starts].tolist()
    left, chosen = counts.tolist(), []
    taken = bytearray(len(ids))
    for t, s in zip(starts.tolist(), owner):
        if left[s] and not any(taken[t:t + 3]):
            taken[t:t + 3] = b"\1\1\1"
            left[s] -= 1
            chosen.append(t)
    begin = np.sort(np.array(chosen, np.int64))
    order = ORDERS[below(more[begin], len(ORDERS))]                     # [N, 3]
    places = begin[:, None] + np.arange(3)
    sources = begin[:, None] + order
    return places.ravel(), sources.ravel()


# ------------------------------------------------------------------------------------------ by what
def replace(ids, chosen, shares, words, mask, parts=(0.8, 0.1)):
    """Put [MASK], another word, or nothing new in the chosen places. -> noisy ids [T]

    `parts`: how much of the chosen becomes `mask` (an id, or ids [T]) and how much its word of
    `words` [T]; the rest stays. shares [T]: the draws that decide. Give draws[first_of(unit)] to
    decide once for all tokens of a unit.
    """
    masked, other = parts
    share = shares[chosen] / 2.0 ** 32                                  # [K]
    veil = np.broadcast_to(mask, ids.shape)[chosen]
    visible = np.where(share < 1 - other, ids[chosen], words[chosen])
    noisy = ids.copy()
    noisy[chosen] = np.where(share < masked, veil, visible)
    return noisy


def eighty_ten_ten(ids, chosen, draws, others, mask, vocab):
    """Hide the chosen tokens as BERT does: 80 % become [MASK], 10 % any word, 10 % stay.

    Any word of the vocabulary: it may be a special one, and may be the right one. draws and
    others are [T], two draws per token.
    """
    return replace(ids, chosen, draws, uniform(others, 0, vocab), mask)
