"""Where words end, by the marks that SentencePiece makes of spaces; and pieces back to text.

    text        "Hello world"
    marked      "▁Hello▁world"      a space becomes a "▁", and one more is put in front
    words       "▁Hello" "▁world"   so "world" is the same word wherever it stands
    decoded     "Hello world"       every "▁" is a space but the first

These are the rules that files of Unigram tokenizers name (pre_tokenizer and decoder of
tokenizer.json). Each takes a part of a text, the places in the original of its characters (None:
nobody asked) and whether the text begins here, and gives the parts of that part. They are used one
after another.
"""
import re

from tinybert_family.error import Error
from tinybert_family.text.characters import is_punctuation
from tinybert_family.text.normalize import SPACES

MARK = "\u2581"             # "▁"


def slices(text, spans, borders):
    return [(text[a:b], spans and spans[a:b]) for a, b in borders if a < b]


class WhitespaceSplit:
    """At white space, which falls out."""
    find = re.compile(f"[^{SPACES}]+").finditer

    def __call__(self, text, spans, first):
        return slices(text, spans, [match.span() for match in self.find(text)])

    def to_json(self):
        return {"type": "WhitespaceSplit"}


class Punctuation:
    """Each sign is a part by itself."""

    def __call__(self, text, spans, first):
        borders, begin = [], 0
        for i, c in enumerate(text):
            if is_punctuation(c):
                borders += [(begin, i), (i, i + 1)]
                begin = i + 1
        return slices(text, spans, borders + [(begin, len(text))])

    def to_json(self):
        return {"type": "Punctuation", "behavior": "Isolated"}


class Metaspace:
    """Spaces become "▁", and what does not begin with one is given one, so that a word is the same
    word wherever it stands. `prepend`: "always", "first" (just where the text begins) or "never".
    `split`: each "▁" begins a new part."""

    def __init__(self, mark=MARK, prepend="always", split=True):
        self.mark, self.prepend, self.split = mark, prepend, split
        self.find = re.compile(f"{re.escape(mark)}[^{re.escape(mark)}]*|[^{re.escape(mark)}]+")

    def __call__(self, text, spans, first):
        text = text.replace(" ", self.mark)
        if self.prepends(text) and (self.prepend == "always" or self.prepend == "first" and first):
            text, spans = self.mark + text, spans and [spans[0], *spans]
        if not self.split:
            return [(text, spans)]
        return slices(text, spans, [match.span() for match in self.find.finditer(text)])

    def prepends(self, text):
        return text and not text.startswith(self.mark)

    def to_json(self):
        return {"type": "Metaspace", "replacement": self.mark, "prepend_scheme": self.prepend,
                "split": self.split}


class SentencePiece(Metaspace):
    """SentencePiece cuts a text as a whole, and prepends a "▁" to any. `silent`: ids of pieces
    that no text is cut into."""

    def __init__(self, prepend="always", silent=()):
        super().__init__(MARK, prepend, split=False)
        self.silent = sorted(silent)

    def prepends(self, text):
        return text

    def to_json(self):
        # Other readers take this for a Metaspace. The words that it makes have the same pieces, but
        # for ties, see Unigram.
        return {**super().to_json(), "split": True, "sentencepiece": {"silent": self.silent}}


class Decoder:
    """Pieces -> text. Each "▁" is a space; `drops`: those of the first piece were not in the text.
    `in_bytes`: <0xC3> <0xA9> is é; of what is no UTF-8 each byte becomes a U+FFFD."""

    def __init__(self, mark, drops, in_bytes):
        self.mark, self.drops, self.in_bytes = mark, drops, in_bytes

    def __call__(self, pieces):
        pieces = self.joined(pieces) if self.in_bytes else pieces
        first = "" if self.drops else " "
        return "".join(piece.replace(self.mark, " " if i else first)
                       for i, piece in enumerate(pieces))

    def joined(self, pieces):
        found, data = [], b""
        for piece in [*pieces, ""]:
            if byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece):
                data += bytes([int(byte[1], 16)])
                continue
            try:
                found += [data.decode()] * bool(data)
            except UnicodeDecodeError:
                found += ["\ufffd"] * len(data)
            data = b""
            found.append(piece)
        return found

    def to_json(self):
        spaces = Metaspace(self.mark, "always" if self.drops else "never").to_json()
        if not self.in_bytes:
            return spaces
        return {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, spaces]}


# --- As tokenizer.json has them -------------------------------------------------------------------

def read_rules(spec, where):
    spec = spec if isinstance(spec, dict) else {"type": spec}
    kind = spec.get("type")
    if kind == "Sequence" and isinstance(spec.get("pretokenizers"), list):
        rules = [rule for i, one in enumerate(spec["pretokenizers"])
                 for rule in read_rules(one, f"{where}.pretokenizers[{i}]")]
    elif kind == "WhitespaceSplit":
        return [WhitespaceSplit()]
    elif kind == "Punctuation":
        if (behavior := spec.get("behavior", "Isolated")) != "Isolated":
            raise Error(f"{where}.behavior is {behavior!r}; only 'Isolated' is known here")
        return [Punctuation()]
    else:
        rules = [read_metaspace(spec, where)] if kind == "Metaspace" else []
    if "pretokenizers[" not in where and not (rules and isinstance(rules[-1], Metaspace)):
        raise Error(f"{where} is {kind!r}; a Unigram tokenizer of this family has Metaspace, or a "
                    "Sequence of WhitespaceSplit and Punctuation that ends with it")
    return rules


def read_metaspace(spec, where):
    mark, split = spec.get("replacement", MARK), spec.get("split", True)
    old, prepend = spec.get("add_prefix_space", True), spec.get("prepend_scheme")
    if not isinstance(mark, str) or len(mark) != 1:
        raise Error(f"{where}.replacement is {mark!r}; it must be one character")
    prepend = prepend or ("always" if old else "never")     # the older name of the option
    if prepend not in ("always", "first", "never") or not old and prepend != "never":
        raise Error(f"{where}.prepend_scheme is {prepend!r}; it must be always, first or never, "
                    "and never where add_prefix_space is false")
    if not isinstance(split, bool):
        raise Error(f"{where}.split is {split!r}; it must be true or false")
    if "sentencepiece" not in spec:
        return Metaspace(mark, prepend, split)
    exact = spec["sentencepiece"]
    silent = exact.get("silent") if isinstance(exact, dict) else None
    if not isinstance(silent, list) or not all(type(i) is int for i in silent):
        raise Error(f"{where}.sentencepiece must be {{\"silent\": a list of ids}}")
    return SentencePiece(prepend, silent)


def read_decoder(spec, where):
    spec = spec if isinstance(spec, dict) else {"type": spec}
    kind, in_bytes = spec.get("type"), False
    if kind == "Sequence" and isinstance(inner := spec.get("decoders"), list):
        kinds = [one.get("type") for one in inner if isinstance(one, dict)]
        if in_bytes := kinds == ["ByteFallback", "Metaspace"]:
            spec, kind = inner[1], "Metaspace"
    if kind != "Metaspace":
        raise Error(f"{where} is {kind!r}; a Unigram tokenizer of this family has Metaspace, or a "
                    "Sequence of ByteFallback and Metaspace")
    told = read_metaspace(spec, where)
    return Decoder(told.mark, told.prepend != "never", in_bytes)
