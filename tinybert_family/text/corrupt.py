"""The family's noise: which tokens to hide, and what to put in their place.

Nothing here draws a random number: the caller passes draws (uint32), one per token, and
gets the same noise for the same draws. So noise is a function of counters like
everything else on the training path.
"""
import numpy as np


def budget(lengths, share, most):
    """How many tokens to hide in each sequence: a share of its length, at least one.

    Special tokens count as length. np.rint rounds .5 to the even number, as Python does and the
    released code with it.
    """
    wanted = np.maximum(1, np.rint(share * lengths))
    return np.minimum(most, wanted).astype(np.int64)


def choose(draws, candidates, sequence, counts):
    """A random subset of each sequence's candidates. -> ascending [K]

    It is the `counts[s]` of them with the smallest draws. draws, candidates (bool) and sequence
    (which one a token belongs to) are [T].
    """
    places = np.flatnonzero(candidates)
    order = np.lexsort((draws[places], sequence[places]))       # by sequence, then by draw
    places = places[order]
    owner = sequence[places]
    begin = np.searchsorted(owner, owner)                       # where each one's sequence starts
    rank = np.arange(len(places)) - begin
    return np.sort(places[rank < counts[owner]])


def below(draws, n):
    """uint32 draws -> integers 0..n-1, evenly."""
    wide = draws.astype(np.uint64) * np.uint64(n)
    return (wide >> np.uint64(32)).astype(np.int64)


def eighty_ten_ten(ids, chosen, draws, others, mask, vocab):
    """Hide the chosen tokens as BERT does: 80 % become [MASK], 10 % any word, 10 % stay.

    Any word of the vocabulary: it may be a special one, and may be the right one. draws and
    others are [T], two draws per token.
    """
    share = draws[chosen] / 2.0 ** 32                           # [K]
    word = below(others[chosen], vocab)
    visible = np.where(share < 0.9, ids[chosen], word)
    noisy = ids.copy()
    noisy[chosen] = np.where(share < 0.8, mask, visible)
    return noisy
