"""The family's noise: which tokens to hide, and what to put in their place.

Nothing here draws a random number: the caller passes draws (uint32), one per token, and gets the same noise for the
same draws. So noise is a function of counters like everything else on the training path.
"""
import numpy as np


def budget(lengths, share, most):
    """How many tokens to hide in each sequence: the share of its length, special tokens counted, at least one.

    np.rint rounds .5 to the even number, as Python does and the released code with it.
    """
    return np.minimum(most, np.maximum(1, np.rint(share * lengths))).astype(np.int64)


def choose(draws, candidates, sequence, counts):
    """A random subset of each sequence's candidates: the `counts[s]` of them with the smallest draws. -> ascending [K]

    draws, candidates (bool) and sequence (which one a token belongs to) are [T].
    """
    places = np.flatnonzero(candidates)
    order = places[np.lexsort((draws[places], sequence[places]))]       # by sequence, then by draw
    owner = sequence[order]
    begin = np.searchsorted(owner, owner)                               # where each one's sequence starts
    return np.sort(order[np.arange(len(order)) - begin < counts[owner]])


def below(draws, n):
    """uint32 draws -> integers 0..n-1, evenly."""
    return (draws.astype(np.uint64) * np.uint64(n) >> np.uint64(32)).astype(np.int64)


def eighty_ten_ten(ids, chosen, draws, others, mask, vocab):
    """Hide the chosen tokens as BERT does: 80 % become [MASK], 10 % any word of the vocabulary, 10 % stay.

    That word may be a special one, and may be the right one. draws and others are [T], two draws per token.
    """
    share = draws[chosen] / 2.0 ** 32
    noisy = ids.copy()
    noisy[chosen] = np.where(share < 0.8, mask, np.where(share < 0.9, ids[chosen], below(others[chosen], vocab)))
    return noisy
