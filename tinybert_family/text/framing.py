"""From texts' ids to the arrays of a batch: shortened to a limit, framed, and padded.

    [CLS] the cat sat [SEP] on the mat [SEP] [PAD] [PAD]
      0    0   0   0    0    1  1   1    1     0     0       token types: which text
      1    1   1   1    1    1  1   1    1     0     0       attention mask: what is no padding

Names and meanings of the options are those of transformers.
"""
from typing import NamedTuple

import numpy as np

from tinybert_family.error import Error

TEXTS = ("$A", "$B")                # in a frame, they stand for the two texts
TRUNCATIONS = (True, False, "longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = (True, False, "longest", "max_length", "do_not_pad")
SIDES = ("left", "right")


class Text(NamedTuple):
    ids: list
    places: list = None             # (start, end) of each id in the text; None: nobody asked


class Row(NamedTuple):
    ids: list
    types: list
    special: list                   # 1 for what the frame has put there
    places: list


def one_of(name, value, choices):
    if value not in choices:
        raise Error(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def texts_of(texts):
    """A text or texts -> a list of them"""
    try:
        return [texts] if isinstance(texts, str) else list(texts)
    except TypeError:
        raise Error(f"a call wants a str or a list of them, not {type(texts).__name__}") from None


def room_in(frame, limit, truncation, multiple):
    """How many tokens of the texts a row may hold; None: as many as there are."""
    for name, value in dict(max_length=limit, pad_to_multiple_of=multiple).items():
        if value is not None and (not hasattr(value, "__index__") or not 0 <= value < 1 << 31):
            raise Error(f"{name}={value!r}: give a whole number, or None")
    one_of("truncation", truncation, TRUNCATIONS)
    if truncation in (False, "do_not_truncate") or limit is None:
        return None
    room = limit - sum(name not in TEXTS for name, _ in frame)
    if room < 0:
        raise Error(f"max_length {limit} has no room for the frame of special tokens; "
                    f"give at least {limit - room}")
    if multiple and limit % multiple:
        raise Error(f"max_length {limit} is no multiple of pad_to_multiple_of {multiple}, so "
                    "padding would pass it; change one of them")
    return room


def fitted(texts, room, strategy, side):
    """One text or two, shortened so that they fill `room` together; `side` is where they lose."""
    sizes = [len(text.ids) for text in texts]
    over = sum(sizes) - room
    if over <= 0:
        return texts
    if room == 0:                           # the frame alone
        sizes = [0, 0]
    elif strategy in ("only_first", "only_second"):
        which = int(strategy == "only_second")
        if which == len(texts):
            raise Error("truncation='only_second' needs pairs; these texts have none")
        if over >= sizes[which]:
            raise Error(f"truncation={strategy!r}: that text has {sizes[which]} tokens, and {over} "
                        "would have to go; shorten the other one or use "
                        "truncation='longest_first'")
        sizes[which] -= over
    elif len(texts) == 1:
        sizes = [room]
    else:
        # The shorter one is cut only where it alone takes more than half of the room.
        short = min(*sizes, room // 2)
        sizes = [short, room - short] if sizes[0] <= sizes[1] else [room - short, short]
    return [shortened(text, size, side) for text, size in zip(texts, sizes)]


def shortened(text, size, side):
    start = max(0, len(text.ids) - size) if side == "left" else 0
    return Text(*(column and column[start:start + size] for column in text))


def framed(texts, frame, ids):
    """Texts in a frame: a list of (special token or one of TEXTS, token type) -> Row"""
    row = Row([], [], [], [])
    for name, kind in frame:
        if name in TEXTS:
            mine, places = texts[TEXTS.index(name)]
        else:
            mine, places = [ids[name]], None
        row.ids.extend(mine)
        row.types.extend([kind] * len(mine))
        row.special.extend([int(name not in TEXTS)] * len(mine))
        row.places.extend(places or [(0, 0)] * len(mine))
    return row


def width_of(sizes, padding, limit, multiple):
    """How long the rows of a batch are made."""
    one_of("padding", padding, PADDINGS)
    width = max(sizes, default=0)
    if padding in (False, "do_not_pad"):
        if len(set(sizes)) > 1:
            raise Error("texts of several lengths make no array without padding; set padding=True")
        return width
    if padding == "max_length" and limit is not None:
        width = max(width, limit)
    return -(-width // multiple) * multiple if multiple else width


def arrays_of(rows, width, pad, side, wanted):
    """-> {name: int64 array [S, width]} of the wanted names, in their order"""
    one_of("padding_side", side, SIDES)
    columns = dict(input_ids=(lambda row: row.ids, pad), token_type_ids=(lambda row: row.types, 0),
                   attention_mask=(lambda row: 1, 0), offset_mapping=(lambda row: row.places, 0),
                   special_tokens_mask=(lambda row: row.special, 1))
    arrays = {}
    for name in wanted:
        column, blank = columns[name]
        shape = (len(rows), width, 2) if name == "offset_mapping" else (len(rows), width)
        arrays[name] = np.full(shape, blank, np.int64)
        for line, row in zip(arrays[name], rows):
            start = width - len(row.ids) if side == "left" else 0
            if row.ids:
                line[start:start + len(row.ids)] = column(row)
    return arrays
