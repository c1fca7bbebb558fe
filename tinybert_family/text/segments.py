"""From documents to training sequences.

A sequence is a few cut points into the corpus's ids; no token is copied until a batch is made, so
a plan of millions of sequences is a small array of numbers.
"""
import numpy as np

# Columns of a plan: A = ids[a:a_end], B = ids[b:b_end], does B come from elsewhere, and the
# sequence's own number.
A, A_END, B, B_END, RANDOM, NUMBER = range(6)


def next_sentence_pairs(corpus, documents, length, short, seed):
    """BERT's pairs of passages, as create_pretraining_data.py makes them. -> int64 [N, 6]

    Sentences are collected until they fill a sequence; a random cut divides them into A and B. Half
    of the time, and always when there is a single sentence, B is taken from another document
    instead, and the sentences that were to be B are put back to start the next sequence. So at
    least half of the pairs are random, and no sentence is lost.
    """
    plan = [np.zeros((0, 5), np.int64)]
    for document in documents:
        rng = np.random.default_rng([*seed, int(document)])
        pairs = pairs_of(corpus, documents, int(document), length, short, rng)
        plan.append(np.array(pairs, np.int64).reshape(-1, 5))
    table = np.concatenate(plan)
    return np.column_stack([table, np.arange(len(table))])


def pairs_of(corpus, documents, document, length, short, rng):
    first, last = corpus.documents[document:document + 2].tolist()
    cuts = corpus.sentences[first:last + 1].tolist()    # sentence s is ids[cuts[s]:cuts[s + 1]]
    count = len(cuts) - 1
    room = length - 3                                   # [CLS] A [SEP] B [SEP]

    def new_target():
        return room if rng.random() >= short else int(rng.integers(2, room + 1))

    target = new_target()
    s, pairs = 0, []
    while s < count:
        e = s + 1
        while e < count and cuts[e] - cuts[s] < target:
            e += 1
        single = e - s == 1
        middle = e if single else int(rng.integers(s + 1, e))
        a, a_end = cuts[s], cuts[middle]
        is_random = single or rng.random() < 0.5
        if is_random:
            b, b_end = elsewhere(corpus, documents, document, target - (a_end - a), rng)
            e = middle                                  # the unused sentences go back
        else:
            b, b_end = cuts[middle], cuts[e]
        if a_end > a and (b_end > b or not is_random):
            pair = shorten(a, a_end, b, b_end, room, rng)
            pairs.append((*pair, is_random))
        s = e
        target = new_target()
    return pairs


def elsewhere(corpus, documents, document, wanted, rng):
    """Sentences of another document, from a random one on, until there are `wanted` tokens."""
    for _ in range(10):
        other = int(documents[rng.integers(len(documents))])
        if other != document:
            break
    first, last = corpus.documents[other:other + 2].tolist()
    start = int(rng.integers(first, last)) if last > first else first
    lo = int(corpus.sentences[start])
    ends = corpus.sentences[start + 1:last + 1]
    if not len(ends):
        return lo, lo
    stop = int(np.searchsorted(ends, lo + max(1, wanted)))
    return lo, int(ends[min(stop, len(ends) - 1)])


def shorten(a, a_end, b, b_end, room, rng):
    """Take tokens from the longer passage, front or back as a coin falls, until both fit."""
    while (a_end - a) + (b_end - b) > room:
        front = rng.random() < 0.5
        if a_end - a > b_end - b:
            a, a_end = a + front, a_end - (not front)
        else:
            b, b_end = b + front, b_end - (not front)
    return a, a_end, b, b_end


def lengths(plan):
    a = plan[:, A_END] - plan[:, A]
    b = plan[:, B_END] - plan[:, B]
    return a + b + 3


def tokens_of(corpus, row, cls, sep):
    """[CLS] A [SEP] B [SEP] and its segment numbers."""
    a = corpus.ids[row[A]:row[A_END]]
    b = corpus.ids[row[B]:row[B_END]]
    ids = np.concatenate([[cls], a, [sep], b, [sep]])
    types = np.repeat([0, 1], [len(a) + 2, len(b) + 1])
    return ids, types
