"""SentencePiece's .model files, read and written by hand: pieces with scores, and how text is
brought into a normal form before it is cut into them.

The file is a protobuf message. Such a message is a row of fields, and each field a key, then a
value. Key = 8 * number + kind, a varint: seven bits a byte, the lowest first, and the highest bit
of a byte says "more to come". The kind tells how long the value is:

    0  a varint                 7: 08 07        the field 1 is 7
    1  eight bytes              5  four bytes, here always a float32
    2  a varint, then as many bytes: a text, or a message inside the message

A reader skips the numbers that it does not know and takes the default for those that are missing,
so old and new releases read each other's files. (protobuf.dev, "Encoding"; the numbers are
sentencepiece_model.proto's.)
"""
import base64
import math
import re
import struct
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex

from tinybert_family.error import Error
from tinybert_family.text.characters import spans
from tinybert_family.text.tokenizer import Memo

# What a piece can be. A control piece never comes from text; a user's is never cut nor changed.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE, WORD, CHARS = 1, 2, 3, 4
# Of each message the fields used here: number -> (name, type).
PIECE = {1: ("text", str), 2: ("score", float), 3: ("type", int)}
TRAINER = {
    3: ("model_type", int), 24: ("space_behind", bool), 35: ("byte_fallback", bool),
    40: ("unk_id", int), 41: ("bos_id", int), 42: ("eos_id", int), 43: ("pad_id", int),
    44: ("unk_surface", str), 45: ("unk_piece", str), 46: ("bos_piece", str),
    47: ("eos_piece", str), 48: ("pad_piece", str)}
NORMALIZER = {
    1: ("name", str), 2: ("charsmap", bytes), 3: ("dummy_prefix", bool),
    4: ("extra_spaces", bool), 5: ("escape_spaces", bool)}
KINDS = {int: 0, bool: 0, float: 5, str: 2, bytes: 2}
unpack_float = struct.Struct("<f").unpack_from
LONGEST_RULE = 255                  # bytes of a text that a charsmap replaces


class Piece(NamedTuple):
    text: str = ""
    score: float = 0.0
    type: int = NORMAL


class Model(NamedTuple):
    """What a .model file says, as far as it decides which ids a text has."""
    pieces: list                        # of Piece, in the order of ids
    model_type: int = UNIGRAM
    byte_fallback: bool = False         # spell what no piece covers in bytes, <0x00> to <0xFF>
    unk_id: int = 0
    bos_id: int = 1                     # -1: there is none
    eos_id: int = 2
    pad_id: int = -1
    unk_piece: str = "<unk>"
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"
    pad_piece: str = "<pad>"
    unk_surface: str = " \u2047 "       # what the unknown piece is decoded to
    space_behind: bool = False          # the sign for a space stands behind a word, not before it
    name: str = ""                      # of the normal form, such as "nmt_nfkc"
    charsmap: bytes = b""               # its rules, compiled; see Charsmap
    dummy_prefix: bool = True           # a text begins with a space even if it does not
    extra_spaces: bool = True           # to remove: around the text, and all but one in a row
    escape_spaces: bool = True          # a space is written "\u2581"


# --- Protobuf -------------------------------------------------------------------------------------

class Reader:
    """The fields of a message. Every complaint names the byte in the whole file."""

    def __init__(self, data, where):
        self.data, self.where = data, where

    def error(self, problem, at):
        return Error(f"{self.where}: byte {at}: {problem}; is this a SentencePiece model, "
                     "and was it copied whole?")

    def varint(self, at, end, what):
        """-> (value, where it ends)"""
        value = 0
        for i in range(at, min(at + 10, end)):
            byte = self.data[i]
            value |= (byte & 127) << 7 * (i - at)
            if byte < 128:
                return value & (1 << 64) - 1, i + 1
        raise self.error(f"{what} never ends", at)

    def fields(self, at, end):
        """-> (number, kind, value): a number for kind 0, else where it begins and ends"""
        data = self.data
        while at < end:
            start, key, at = at, data[at], at + 1       # of one byte, nearly always
            if key > 127:
                key, at = self.varint(start, end, "the key of a field")
            number, kind = key >> 3, key & 7
            if kind == 2:
                if at < end and data[at] < 128:
                    size, at = data[at], at + 1
                else:
                    size, at = self.varint(at, end, f"the size of field {number}")
                value = at, at + size
            elif kind == 0:
                value, at = self.varint(at, end, f"field {number}")
                size = 0
            else:
                size = {1: 8, 5: 4}.get(kind, -1)
                value = at, at + size
            if size < 0 or not 0 < number < 1 << 29:
                raise self.error(f"{key} is not the key of a field", start)
            if size > end - at:
                raise self.error(f"field {number} claims {size} bytes, {end - at} are left", start)
            yield number, kind, value
            at += size

    def message(self, schema, start, end):
        """-> {name: value} of the fields that are there; of the last where one is repeated."""
        values = {}
        for number, kind, value in self.fields(start, end):
            if number not in schema:
                continue
            name, type = schema[number]
            if kind != KINDS[type]:
                at = start if kind == 0 else value[0]
                raise self.error(f"{name} (field {number}) is of kind {kind}, not {KINDS[type]}",
                                 at)
            values[name] = self.value(name, type, value)
        return values

    def value(self, name, type, value):
        if type is int:                     # of 32 bits; a negative one was widened to 64
            return (value + (1 << 31)) % (1 << 32) - (1 << 31)
        if type is bool:
            return value != 0
        if type is float:
            return unpack_float(self.data, value[0])[0]
        data = self.data[slice(*value)]
        try:
            return data.decode() if type is str else data
        except UnicodeDecodeError as e:
            raise self.error(f"{name} is not UTF-8", value[0] + e.start) from None


def read(path):
    """A .model file -> Model"""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise Error(f"{path} does not exist; name a SentencePiece model") from None
    except OSError as e:
        raise Error(f"{path} cannot be read: {e.strerror}") from None
    return unpack(data, path)


def unpack(data, where="model"):
    """The bytes of a .model file -> Model; `where` is named in complaints."""
    reader, values, pieces, known = Reader(data, where), {}, [], set()
    for number, kind, value in reader.fields(0, len(data)):
        if number not in (1, 2, 3):
            continue
        if kind != 2:
            raise reader.error(f"field {number} of the model is of kind {kind}, not 2", 0)
        if number == 1:
            piece = Piece(**reader.message(PIECE, *value))
            if problem := problem_of(piece, known):
                raise reader.error(f"piece {len(pieces)} {problem}", value[0])
            known.add(piece.text)
            pieces.append(piece)
        else:
            values |= reader.message(TRAINER if number == 2 else NORMALIZER, *value)
    unknown = [i for i, piece in enumerate(pieces) if piece.type == UNKNOWN]
    if len(unknown) != 1:
        raise Error(f"{where}: {len(unknown)} of {len(pieces)} pieces are of the type UNKNOWN; "
                    "it must be one; is this a SentencePiece model?")
    model = Model(pieces, **{**values, "unk_id": unknown[0]})
    # SentencePiece, too, goes by the names: control pieces that are called so.
    ids = {piece.text: i for i, piece in enumerate(pieces) if piece.type == CONTROL}
    model = model._replace(bos_id=ids.get(model.bos_piece, -1), eos_id=ids.get(model.eos_piece, -1),
                           pad_id=ids.get(model.pad_piece, -1))
    if model.model_type not in (UNIGRAM, BPE, WORD, CHARS):
        raise Error(f"{where}: model_type is {model.model_type}; it must be 1 to 4")
    return model


def problem_of(piece, known):
    if not piece.text:
        return "is empty"
    if piece.text in known:
        return f"repeats {piece.text!r}"
    if not -math.inf < piece.score < math.inf:
        return f"has the score {piece.score}"
    return "" if NORMAL <= piece.type <= BYTE else f"is of the unknown type {piece.type}"


def pack(model):
    """Model -> the bytes of a .model file, as `unpack` and SentencePiece read it"""
    values = model._asdict()
    data = b"".join(field(1, packed(PIECE, piece._asdict())) for piece in model.pieces)
    return data + field(2, packed(TRAINER, values)) + field(3, packed(NORMALIZER, values))


def packed(schema, values):
    return b"".join(field(number, kind(values[name])) for number, (name, kind) in schema.items())


def field(number, value):
    kind = KINDS[type(value)]
    key = varint(8 * number + kind)
    if kind == 0:
        return key + varint(value % (1 << 64))
    if kind == 5:
        return key + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return key + varint(len(data)) + data


def varint(value):
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


# --- The rules of a normal form -------------------------------------------------------------------

def inside(borders):
    """-> what stands between the brackets of a regular expression"""
    return "".join(f"{chr(a)}-{chr(b - 1)}" for a, b in zip(borders[::2], borders[1::2]))


# What a reader takes for one sign, such as a letter with its accents.
find_signs = regex.compile(r"\X").findall
# Marks younger than Unicode 17: for the published tokenizers they hang on to nothing.
YOUNG_SIGNS = spans("5C8-5C9 B53-B54 1ADE-1ADF 1AEC-1AF0 10ECB-10EF9 11DF0 1D127-1D128 1D250-1D281")
find_young = re.compile(f"[{inside(YOUNG_SIGNS)}]")


def signs(text):
    """-> list of what a reader takes for one sign; together they are the text"""
    if not find_young.search(text):
        return find_signs(text)
    ends = accumulate(map(len, find_signs(find_young.sub("a", text))))
    return [text[start:end] for start, end in pairwise([0, *ends])]


class Charsmap:
    """Rules "this text becomes that one", compiled: four bytes with the size of a trie, the trie,
    then the new texts, each ended by a zero byte.

    The trie is a "double array" (Aoe 1989), here of 32-bit units. A state is a place in the array.
    Each unit holds an offset; place XOR offset is the state's base, and its child by the byte c
    lies at base XOR c. Whether there is one, that unit says itself: it repeats c as its label. So a
    step costs one look and no search. Of a unit the bits 0 to 7 are the label, bit 8 says that a
    rule ends here (at base itself then lies where its new text begins, marked by bit 31), bit 9
    that the offset counts in 256s, and the bits 10 to 30 are the offset.
    """

    @classmethod
    def build(cls, rules):
        """{text: new text} -> Charsmap. Each state takes the first base where all its children find
        room; two states must not share one, or they would share their children."""
        if bad := [old for old, new in rules.items() if not old or "\0" in old + new]:
            raise Error(f"the rule for {bad[0]!r} is empty or holds a zero, which ends texts here")
        texts, starts, tree = b"", {}, {}
        for old, new in sorted(rules.items()):
            starts.setdefault(new, len(texts))
            if starts[new] == len(texts):
                texts += new.encode() + b"\0"
            state = tree
            for c in old.encode():
                state = state.setdefault(c, {})
            state[0] = starts[new]          # "the child by 0" is where the new text begins
        units, bases, states, top = {0: 0}, set(), [(0, tree)], 0
        for place, state in states:         # the list grows while it is walked
            base = max(1, (top & ~255) - 256)       # further back there is hardly any room
            while base in bases or any(base ^ c in units for c in state):
                base += 1
            bases.add(base)
            top = max(top, base)
            units[place] |= (place ^ base) << 10 | (0 in state) << 8
            for c, child in state.items():
                units[base ^ c] = c or 1 << 31 | child
                states += [(base ^ c, child)] if c else []
        array = np.zeros((max(units) | 255) + 1, "<u4")
        array[list(units)] = list(units.values())
        return cls(array.nbytes.to_bytes(4, "little") + array.tobytes() + texts)

    @classmethod
    def from_base64(cls, text, where="precompiled_charsmap"):
        try:
            blob = base64.b64decode(text, validate=True)
        except ValueError as e:
            raise Error(f"{where} is not base64: {e}") from None
        return cls(blob, where)

    def __init__(self, blob, where="charsmap"):
        self.blob, self.where = bytes(blob), where
        size = int.from_bytes(self.blob[:4], "little")
        if len(self.blob) < 8 or size % 4 or not 0 < size <= len(self.blob) - 4:
            raise self.error(f"a trie of {size} bytes does not fit into {len(self.blob)}")
        units = np.frombuffer(self.blob, "<u4", size // 4, 4).astype(np.int64)
        self.texts = self.blob[4 + size:]
        try:
            self.texts.decode()
        except UnicodeDecodeError as e:
            raise self.error(f"byte {e.start} of the new texts is not UTF-8") from None
        if self.texts[-1:] != b"\0":
            raise self.error("the last new text has no end")
        self.check(units)
        self.units = units.tolist()
        self.root, self.rule = offset(self.units[0]), Memo(self.shortest)
        self.ascii = "".join(chr(c) for c in range(1, 128) if self.longest(bytes([c])))

    def error(self, problem):
        return Error(f"{self.where}: broken rules of normalisation: {problem}; get the file anew")

    def check(self, units):
        """Walk over all states, a byte deeper a round, so that no look-up can leave the array. A
        state goes with how many bytes its last character still lacks; rules hold whole ones."""
        labels = units & 255
        labels[units >> 31 == 1] = 0                    # no state but the place of a new text
        parents = np.arange(len(units)) ^ labels        # the base whose child a unit would be
        order = np.argsort(parents, kind="stable")
        order = order[labels[order] > 0]
        parents = parents[order]
        bases, lacking = self.bases(units, np.zeros(1, np.int64)), np.zeros(1, np.int64)
        self.parted = True
        for depth in range(LONGEST_RULE + 1):
            first = np.searchsorted(parents, bases)
            count = np.searchsorted(parents, bases, "right") - first
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            places = order[np.repeat(first, count) + within]
            if len(places) == 0:
                return
            lacking = continued(np.repeat(lacking, count), labels[places])
            self.parted &= depth == 0 or labels[places].min() > 127
            if lacking.min() < 0:
                raise self.error("a rule is not UTF-8")
            places, lacking = np.divmod(np.unique(places * 4 + lacking), 4)
            bases = self.bases(units, places)
            ends = units[places] >> 8 & 1 == 1
            self.check_texts(units, bases[ends], lacking[ends])
        raise self.error(f"a rule of more than {LONGEST_RULE} bytes")

    def bases(self, units, places):
        bases = places ^ offset(units[places])
        if (bases | 255).max() >= len(units):           # whatever byte is asked for
            raise self.error("a state lies outside of the trie")
        return bases

    def check_texts(self, units, places, lacking):
        """Where rules end: their new texts exist, and neither side is cut within a character."""
        starts = units[places] & (1 << 31) - 1
        if lacking.any():
            raise self.error("a rule ends within a character")
        if (starts >= len(self.texts)).any():
            raise self.error("a new text lies outside of the texts")
        if any(self.texts[start] & 0xC0 == 0x80 for start in starts.tolist()):
            raise self.error("a new text begins within a character")

    def matches(self, data, at=0):
        """The rules whose left side stands at `at` in data (UTF-8), the shortest first
        -> (how many bytes it has, where its new text begins)"""
        units, base = self.units, self.root
        for i in range(at, len(data)):
            c = data[i]
            place = base ^ c
            unit = units[place]
            if unit & 0x800000FF != c or c == 0:        # a child repeats its byte
                return
            base = place ^ offset(unit)
            if unit & 256:
                yield i + 1 - at, units[base] & 0x7FFFFFFF

    def text(self, start):
        return self.texts[start:self.texts.index(0, start)].decode()

    def shortest(self, text):
        """-> the new text of the shortest rule that fits the beginning of text; None: none does"""
        start = next((start for _, start in self.matches(text.encode())), None)
        return None if start is None else self.text(start)

    def by_signs(self, text):
        """-> (old, new): the text in parts, and what becomes of each, as Precompiled tells it."""
        for sign in signs(text):
            new = self.rule[sign] if len(sign.encode()) < 6 else None
            if new is not None:
                yield sign, new
                continue
            for c in sign:
                new = self.rule[c]
                yield c, c if new is None else new

    def by_prefixes(self, text, kept):
        """The same, where the longest rule counts. `kept`: matches what no rule may touch."""
        data, at, i = text.encode(), 0, 0
        while i < len(text):
            old = new = text[i]
            if match := kept(text, i):
                old = new = match[0]
            elif (found := self.longest(data, at)) is not None:
                old, new = data[at:at + found[0]].decode(), found[1]
            yield old, new
            at += len(old.encode())
            i += len(old)

    def longest(self, data, at=0):
        found = None
        for found in self.matches(data, at):
            pass
        return found and (found[0], self.text(found[1]))


def offset(unit):
    return (unit >> 10) << ((unit & 512) >> 6)


def continued(lacking, c):
    """How many bytes a character lacks after one more byte; -1: this one does not belong there."""
    after = np.where((c >= 0x80) & (c < 0xC0), lacking - 1, -1)
    begun = np.select([c < 0x80, c < 0xC2, c < 0xE0, c < 0xF0, c < 0xF5], [0, -1, 1, 2, 3], -1)
    return np.where(lacking > 0, after, begun)
