"""The door between padded [B, S] arrays, which users have, and packed [T] rows, which models know.

A call packs once on the way in and unpacks once on the way out. Places that the mask leaves out do
not exist inside; in the outputs they are zero.
"""
from typing import NamedTuple

import numpy as np

from ...engine.ops import put
from ...error import Error


class Packed(NamedTuple):
    ids: np.ndarray         # [T] tokens of all sequences, one sequence after another
    types: np.ndarray       # [T]
    positions: np.ndarray   # [T] the column each token had, or what the variant counts instead
    cuts: np.ndarray        # [B+1] where sequences begin and end, longest sequence first
    index: np.ndarray = None    # [T] row * S + column
    shape: tuple = None         # (B, S)
    more: dict = {}             # whatever else a variant reads about every token, [T] each

    def pieces(self, tokens=1024):
        """The same in parts of about so many tokens, cut between sequences.

        Where nothing is kept for a backward, the arrays of a part stay in the cache, and memory
        does not grow with the batch.
        """
        ends = self.cuts.searchsorted(range(tokens, self.cuts[-1], tokens))
        bounds = sorted({0, *ends.tolist()} - {len(self.cuts) - 1}) + [len(self.cuts) - 1]
        bounds = [0, 0] if len(self.cuts) == 1 else bounds              # a batch of nothing
        for a, b in zip(bounds, bounds[1:]):
            t = slice(self.cuts[a], self.cuts[b])
            more = {name: x[t] for name, x in self.more.items()}
            yield Packed(self.ids[t], self.types[t], self.positions[t],
                         self.cuts[a:b + 1] - self.cuts[a], self.index[t], self.shape, more)

    def unpack(self, x):
        """[T, ...] -> [B, S, ...]"""
        rows = self.shape[0] * self.shape[1]
        if len(self.index) == rows and (np.diff(self.index) == 1).all():
            return x.reshape(*self.shape, *x.shape[1:])     # nothing was padded: nothing to copy
        return put(x, index=self.index, rows=rows).reshape(*self.shape, *x.shape[1:])

    def unpack_first(self, x):
        """One row per sequence back in the order of the batch.  [B', ...] -> [B, ...]"""
        rows = self.index[self.firsts()] // self.shape[1]
        return put(x, index=rows, rows=self.shape[0])

    def firsts(self):
        """The first token of every sequence that has any."""
        return self.cuts[:-1][np.diff(self.cuts) > 0]


def integers(name, x, shape=None):
    """x as an int64 array [B, S], or an Error that says what is wrong with it."""
    try:
        x = np.asarray(x)
    except ValueError:
        raise Error(f"{name}: the rows have different lengths; pad them to one length") from None
    if x.dtype == bool:
        x = x.astype(np.int64)
    if x.ndim != 2 or shape and x.shape != shape:
        wanted = f"{shape}" if shape else "two axes [batch, tokens]"
        raise Error(f"{name}: shape {x.shape}, but {wanted} is wanted")
    if x.size and x.dtype.kind not in "iu":
        raise Error(f"{name}: {x.dtype} values, but integers are wanted")
    return x.astype(np.int64)


def within(name, x, limit, what):
    bad = (x < 0) | (x >= limit)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise Error(f"{name}: {x[row, column]} at row {row} column {column}, but {what} is "
                    f"{limit}; were these made with this model's own tokenizer?")


def columns(ids):
    """BERT's positions: the column that a token stands in.  [B, S] -> [B, S]"""
    return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)


def pack(config, input_ids, attention_mask=None, token_type_ids=None, places=columns, longest=None,
         holes=True, more=None):
    """Check a padded batch and drop what the mask leaves out.

    places: ids -> positions. longest: as many tokens as a sequence may have. holes: may the mask
    leave out tokens between others? more: {name: int array or None} of further inputs.
    """
    ids = integers("input_ids", input_ids)
    longest = longest or config.positions
    if ids.shape[1] > longest:
        raise Error(f"input_ids: {ids.shape[1]} tokens, but this model was built for "
                    f"{longest} positions; call the tokenizer with max_length={longest}")
    mask, types = np.ones_like(ids), np.zeros_like(ids)
    if attention_mask is not None:
        mask = integers("attention_mask", attention_mask, ids.shape)
    if token_type_ids is not None:
        types = integers("token_type_ids", token_type_ids, ids.shape)
    within("input_ids", ids, config.vocab, "the vocabulary's size")
    within("attention_mask", mask, 2, "the number of values a mask has")
    within("token_type_ids", types, max(1, config.types), "the number of token types")
    if not holes:
        without_holes(mask)
    lengths = mask.sum(1)
    order = np.argsort(-lengths, kind="stable")
    row, column = np.nonzero(mask[order])
    row = order[row]
    cuts = np.concatenate([[0], np.cumsum(lengths[order])])
    index = row * ids.shape[1] + column
    more = {name: integers(name, x, ids.shape)[row, column] for name, x in (more or {}).items()
            if x is not None}
    return Packed(ids[row, column], types[row, column], places(ids)[row, column], cuts, index,
                  ids.shape, more)


def without_holes(mask):
    """A model that counts distances between tokens needs them side by side."""
    begins = np.diff(mask, axis=1, prepend=0) == 1
    bad = begins.sum(1) > 1
    if bad.any():
        raise Error(f"attention_mask: row {np.argmax(bad)} leaves out tokens between others, but "
                    "this model counts distances; padding must stand at the ends")


def side_by_side(input_ids, attention_mask, token_type_ids):
    """Candidates [B, C, S] as a batch of B * C sequences; and C."""
    ids = flat("input_ids", input_ids)
    shape = np.shape(input_ids)
    if len(shape) != 3 or 0 in shape[:2]:
        raise Error("input_ids: a model that chooses wants three axes [batch, candidates, tokens], "
                    "padded to one length")
    mask, types = flat("attention_mask", attention_mask), flat("token_type_ids", token_type_ids)
    return ids, mask, types, shape[1]


def flat(name, x):
    """[B, C, S] -> [B * C, S]; what has fewer axes stays as it is."""
    try:
        *outer, last = np.shape(x) or (0,)
    except ValueError:
        raise Error(f"{name}: the candidates have different lengths; pad them to one") from None
    return np.reshape(x, (int(np.prod(outer)), last)) if outer else x
