"""Normal forms of text: the same word, written in one way only, before it is cut into pieces.

Unicode has many ways to write one thing: é is one character or an e and an accent, ﬁ one sign or
two letters, and there are twenty-five kinds of white space. A tokenizer.json names the steps that
even this out; each is a small class here, and a Normalizer does them one after another.

A step comes twice. Called, it turns a text into its normal form, and is quick. `trace` says for
each character of that form which character of the text it stands for, by its index; from these
`Normalizer.aligned` knows where everything stood in the text that came first. The published
tokenizers think in changes: a new character replaces one old character (0), or it is added and
shares the place of the old one before it (1), or it replaces one and n more vanish (-n). When one
sign becomes several or several become one, that decides which sign each is said to come from.

What is a letter, a mark or a capital is a question of the Unicode version. The published
tokenizers compose and decompose by Unicode 9. Python knows Unicode 13 (3.10) or a later one. The
characters on which they disagree stand here, found by trying every code point.
"""
import base64
import re
import unicodedata
from functools import lru_cache, partial

import regex

from tinybert_family.error import Error
from tinybert_family.text.characters import lowered, spans, within
from tinybert_family.text.sentencepiece import USER, Charsmap, inside
from tinybert_family.text.tokenizer import Memo, find_half, listed, refuse_halves

# Characters younger than Unicode 9 that a later version composes, decomposes or orders. They stay
# as they are, and nothing is composed or ordered across them. Harmless gaps are bridged.
YOUNG = spans("""
    558 58B-58C 5C8-5C9 7FD 897-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1AF0 1DF6-1DFA 209D-209F 32FF
    A7F1-A7F4 A82C AB69 105C9-107BF 10D24-10F85 11070 1133B 11383-113D0 1145E 11839-11A99
    11D42-1612F 16D67-1B126 1CCD6-1D128 1D250-1D281 1D6A6 1DF95-1DFFF 1E030-1E6F5 1F16C
    1FBF0-1FBF9""")
# What later versions take for a mark and Unicode 9 does not; then the other way round.
NO_MARK = spans("""
    5C8-5C9 7FD 897-8D3 9FE AFA-AFF B53-B55 C04-C3C CF3-D00 D3B-D3C D81 EBA ECE 1715 180F 1ABF-1AF0
    1CF7 1DF6-1DFA A82C A8FF 10D24-10F85 11070-11074 110C2 11145-11146 111C9 111CE-111CF 11241 1133B
    113B8-113E2 1145E 1182C-11B67 11D31-1612F 16F4F 16F7F-16F87 16FE4-16FF1 1CF00-1D128 1D250-1D281
    1E08F-1E6F5""")
MARK = spans("1CF2-1CF3")
# What Unicode calls white space; str.strip() knows four controls more.
WHITE = spans("9-D 20 85 A0 1680 2000-200A 2028-2029 202F 205F 3000")
SPACES = "".join(c for c in map(chr, range(0x3001)) if within(ord(c), WHITE))
# A few characters make one sign with what follows them, whatever that is.
GLUE = inside(spans("""
    600-605 6DD 70F 890-891 8E2 D4E 110BD 110CD 111C2-111C3 113D1 1193F 11941 11A84-11A89 11D46
    11F02"""))
split_young = re.compile(f"([{inside(YOUNG)}])").split
find_young = re.compile(f"[{inside(YOUNG)}]").search
find_many = regex.compile(r"\p{M}{64}").search
FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def sources(changes, start=0):
    """[(character, change)] -> [(character, the index of the old one that it stands for)]
    >>> sources([("f", 0), ("i", 1), ("é", -1), ("!", 0)])     # "ﬁ", "e", an accent, "!"
    [("f", 0), ("i", 0), ("é", 1), ("!", 3)]
    """
    at, found = start, []
    for c, change in changes:
        found.append((c, at - 1 if change > 0 else at))
        at += 1 - change if change <= 0 else 0
    return found


class Step:
    """One rule. `name` and `options` are its type and fields in tokenizer.json."""
    name, options = "", {}

    def __call__(self, text):
        """-> the normal form"""
        raise NotImplementedError

    def trace(self, text):
        """-> [(character of the normal form, index of the character of text it stands for)]"""
        raise NotImplementedError

    def still(self, text):
        """Whether nothing changes, so that there is nothing to trace."""
        return self(text) == text

    def to_json(self):
        return {"type": self.name, **self.options}


class Form(Step):
    """NFC composes (é is one sign), NFD decomposes (e and an accent); NFKC and NFKD also replace
    what only looks different, such as ﬁ by fi. Accents of one letter get a fixed order."""

    def __init__(self, name):
        self.name = name
        self.kind = name.replace("C", "D")          # decomposing comes first in all of them
        self.composes = name.endswith("C")

    def __call__(self, text):
        if text.isascii():
            return text
        if find_many(text):         # Python sorts them in quadratic time
            return "".join(c for c, _ in self.trace(text))
        normal = unicodedata.normalize(self.name, text)
        if normal == text or not find_young(text):
            return normal
        # A young character is a border; what stands between two is normalised alone.
        return "".join(part if i % 2 else unicodedata.normalize(self.name, part)
                       for i, part in enumerate(split_young(text)))

    def trace(self, text):
        changes = decompose(text, self.kind)
        return sources(compose(changes) if self.composes else changes)


@lru_cache(1 << 12)
def rank(c):
    """The class of a mark: those of one class keep their order, others are sorted. 0: no mark."""
    return 0 if find_young(c) else unicodedata.combining(c)


@lru_cache(1 << 12)
def apart(c, kind):
    return c if find_young(c) else unicodedata.normalize(kind, c)


def decompose(text, kind):
    """-> [(character, change)]: every character taken apart, the marks after each letter sorted."""
    done, marks = [], []
    for old in text:
        for i, c in enumerate(apart(old, kind)):
            if rank(c):
                marks.append((c, i > 0))
                continue
            if marks:
                done += sorted(marks, key=lambda mark: rank(mark[0]))
                marks = []
            done.append((c, i > 0))
    return done + sorted(marks, key=lambda mark: rank(mark[0]))


@lru_cache(1 << 12)
def composed(a, b):
    """The one character that means the letter a with the mark b; None: there is none."""
    both = unicodedata.normalize("NFC", a + b)
    return both if len(both) == 1 and not (find_young(a) or find_young(b)) else None


def compose(changes):
    """Glue marks to the letter before them, unless another mark of the same class, or a mark that
    comes later in the order, stands between them."""
    done, letter, waiting = [], None, []            # waiting: marks that the letter did not take
    for c, change in changes:
        if letter is not None and (not waiting or rank(waiting[-1][0]) < rank(c)):
            both = composed(letter[0], c)
            if both is not None:
                letter = both, letter[1] + change - 1
                continue
        if rank(c) == 0:
            done += [letter] * (letter is not None) + waiting
            letter, waiting = (c, change), []
        elif letter is None:
            done.append((c, change))
        else:
            waiting.append((c, change))
    return done + [letter] * (letter is not None) + waiting


class Each(Step):
    """A rule about single characters: a table from a character to the text that replaces it."""

    def __init__(self):
        self.table = Table(self.replacement)

    def __call__(self, text):
        return text.translate(self.table)

    def trace(self, text):
        # The characters that one becomes all come from it, so there is no need of changes.
        return [(c, i) for i, old in enumerate(text) for c in self.table[ord(old)]]


class Table(dict):
    """Code point -> text, as str.translate wants it; asked for once."""

    def __init__(self, replacement):
        self.replacement = replacement

    def __missing__(self, code):
        self[code] = text = self.replacement(chr(code))
        return text


class Lowercase(Each):
    name, replacement = "Lowercase", staticmethod(lowered)

    def __call__(self, text):
        return text.lower() if text.isascii() else text.translate(self.table)


class StripAccents(Each):
    """Marks fall off. Only those that stand alone: NFD or NFKD has to come first."""
    name = "StripAccents"

    def __call__(self, text):
        return text if text.isascii() else text.translate(self.table)

    def replacement(self, c):
        mark = unicodedata.category(c)[0] == "M" and not within(ord(c), NO_MARK)
        return "" if mark or within(ord(c), MARK) else c


class Nmt(Each):
    """Controls vanish, and what acts as a space becomes one."""
    name = "Nmt"
    GONE = spans("1-8 B E-1F 7F 8F 9F")
    SPACE = spans("9-A C-D 1680 200B-200F 2028-2029 2581 FEFF FFFD")

    def replacement(self, c):
        if within(ord(c), self.GONE):
            return ""
        return " " if within(ord(c), self.SPACE) else c


class Strip(Step):
    """White space at the ends of the text falls off."""
    name = "Strip"

    def __init__(self, strip_left=True, strip_right=True):
        self.options = {"strip_left": strip_left, "strip_right": strip_right}
        self.left = SPACES if strip_left else ""
        self.right = SPACES if strip_right else ""

    def __call__(self, text):
        return text.lstrip(self.left).rstrip(self.right)

    def trace(self, text):
        start = len(text) - len(text.lstrip(self.left))
        return [(c, start + i) for i, c in enumerate(self(text))]


class Replace(Step):
    """Every place that a pattern matches becomes `content`: a text, or a regular expression."""
    name = "Replace"

    def __init__(self, pattern, content):
        """pattern: {"String": a text} or {"Regex": an expression}"""
        (kind, text), = pattern.items()
        self.options, self.content = {"pattern": pattern, "content": content}, content
        self.text = text if kind == "String" else None
        try:
            self.find = re.compile(re.escape(text) if kind == "String" else expression(text))
        except (re.error, OverflowError, RecursionError) as e:
            raise Error(f"Replace: {text!r} is no regular expression: {e}") from None
        if self.find.match(""):
            raise Error(f"Replace: the pattern {text!r} matches the empty text, so there is no "
                        "saying where; write one that needs a character")

    def __call__(self, text):
        if self.text is not None:
            return text.replace(self.text, self.content)
        return self.find.sub(lambda match: self.content, text)

    def still(self, text):
        return not self.find.search(text)       # the same text again would still have moved

    def trace(self, text):
        """The new text as a whole comes from the last character of what it replaces."""
        found, at = [], 0
        for match in self.find.finditer(text):
            found += [(text[i], i) for i in range(at, match.start())]
            found += [(c, match.end() - 1) for c in self.content]
            at = match.end()
        return found + [(text[i], i) for i in range(at, len(text))]


# The parts of a regular expression that mean the same in Oniguruma, which the published tokenizers
# use, and in Python; other parts (flags, ends of lines, \w ...) do not. Two are written otherwise.
SAME = re.compile(r"""
    \\[AsSnrtf] | \\z | \\[^\w\s] | \\u[0-9A-Fa-f]{4}
  | \[\^?(?: \\[snrtf] | \\[^\w\s] | \\u[0-9A-Fa-f]{4} | [^\\\[\]&] )+\]
  | \(\?[:=!] | \(\?<[=!] | \((?!\?) | \)
  | (?: \{\d+(?:,\d*)?\} | [?*+]\?? )(?![?*+{]) | [^\\\[\](){}?*+^$]""", re.X)
OTHERWISE = {"\\s": f"[{SPACES}]", "\\S": f"[^{SPACES}]", "\\z": "\\Z"}


def expression(pattern):
    """A regular expression of Oniguruma -> the same in Python"""
    parts = [match[0] for match in SAME.finditer(pattern)]
    if "".join(parts) != pattern:
        raise Error(f"Replace: the regular expression {pattern!r} has parts that are not supported "
                    r"here; supported are texts, groups, \s \S \A \z, [classes] and * + ? {2,}")
    return "".join(part.replace("\\s", SPACES) if part[0] == "[" else OTHERWISE.get(part, part)
                   for part in parts)


class Prepend(Step):
    """A text that is not empty begins with `prepend`."""
    name = "Prepend"

    def __init__(self, prepend):
        self.options, self.prepend = {"prepend": prepend}, prepend

    def __call__(self, text):
        return self.prepend + text if text else text

    def trace(self, text):
        return [(c, 0) for c in self.prepend * (text > "")] + [(c, i) for i, c in enumerate(text)]


class Precompiled(Step):
    """The rules that a SentencePiece model brings along (see Charsmap). They are read in two ways.

    "prefix" is SentencePiece's own: from left to right, always the longest rule that fits.
    "grapheme" is the published tokenizers': the text is cut into what a reader takes for one sign.
    If a sign has less than six bytes and a rule fits its beginning, the shortest such rule replaces
    the whole sign, so accents may get lost; else each of its characters is looked up alone.
    """
    name = "Precompiled"

    @classmethod
    def from_json(cls, precompiled_charsmap, **options):
        return cls(Charsmap.from_base64(precompiled_charsmap), **options)

    def __init__(self, charsmap, by="grapheme", keep=()):
        """`keep`: texts that no rule may touch, only with "prefix"."""
        self.rules, self.by = charsmap, by
        self.keep = sorted(set(keep) - {""}, key=lambda text: (-len(text), text))
        self.chunk = Memo(lambda text: "".join(new for _, new in self.pairs(text)))
        self.kept = re.compile("|".join(map(re.escape, self.keep)) or "(?!)").match
        # If no rule has ASCII but as its first character, then texts fall into chunks: ASCII that
        # no rule touches, and the rest, each run with the character before it.
        self.chunks = charsmap.parted and all(len(text) == 1 for text in self.keep)
        touched = "".join(c for c in charsmap.ascii if c not in self.keep)
        touched = f"\r\n\x80-\U0010ffff{re.escape(touched)}"
        find = re.compile(f"[{touched}](?:[{touched}]|(?<=[{GLUE}])[^{touched}])*")
        self.find, self.search = find.finditer, find.search

    @property
    def options(self):
        blob = base64.b64encode(self.rules.blob).decode()
        more = {} if self.by == "grapheme" else {"by": self.by, "keep": self.keep}
        return {"precompiled_charsmap": blob, **more}       # published tokenizers ignore the others

    def __call__(self, text):
        if not self.chunks:
            return self.chunk[text]
        if not self.search(text):
            return text
        at, done = 0, []
        for start, end in self.touched(text):
            done += text[at:start], self.chunk[text[start:end]]
            at = end
        return "".join(done) + text[at:]

    def touched(self, text):
        """-> (start, end) of the chunks that rules may touch"""
        at = 0
        for match in self.find(text):
            start, end = match.span()
            yield max(at, start - 1), end
            at = end

    def pairs(self, text):
        """-> (old, new): the text in parts, and what becomes of each."""
        if self.by == "grapheme":
            return self.rules.by_signs(text)
        return self.rules.by_prefixes(text, self.kept)

    def still(self, text):
        return self.chunks and not self.search(text)

    def trace(self, text):
        changes, lost, at = [], 0, 0
        for start, end in self.touched(text) if self.chunks else [(0, len(text))]:
            changes += [(c, 0) for c in text[at:start]]
            at = end
            for old, new in self.pairs(text[start:end]):
                grown = len(new) - len(old)
                changes += [(c, int(i >= len(old))) for i, c in enumerate(new)]
                if grown < 0 and changes:
                    c, change = changes[-1]
                    changes[-1] = c, change + grown
                elif grown < 0 and self.by == "prefix":
                    lost -= grown       # the published tokenizers forget what vanishes in front
        return sources(changes + [(c, 0) for c in text[at:]], lost)


# --- All of them ----------------------------------------------------------------------------------

class Normalizer:
    """Steps, one after another. `normalizer(text)` is the normal form."""

    def __init__(self, steps=()):
        self.steps = list(steps)

    def __call__(self, text):
        if not text.isascii():
            refuse_halves(text)
        for step in self.steps:
            text = step(text)
        return text

    def aligned(self, text, places=None):
        """-> (normal form, for each of its characters the (start, end) of where it comes from).
        `places`: the same for the characters of text, where text is a part or a changed one."""
        refuse_halves(text)
        places = [(i, i + 1) for i in range(len(text))] if places is None else places
        for step in self.steps:
            if step.still(text):
                continue
            found = step.trace(text)
            text = "".join(c for c, _ in found)
            places = [places[i] if i >= 0 else (0, 0) for _, i in found]
        return text, places

    def to_json(self):
        """-> the value of "normalizer" in tokenizer.json"""
        steps = [step.to_json() for step in self.steps]
        return {"type": "Sequence", "normalizers": steps} if len(steps) > 1 else (*steps, None)[0]

    @classmethod
    def from_json(cls, spec, where):
        """spec: the value of "normalizer" in the file `where`, None included"""
        return cls(steps_of(spec, f"{where}: normalizer"))


def is_text(value):
    return isinstance(value, str) and not find_half(value)


def is_pattern(value):
    known = isinstance(value, dict) and len(value) == 1 and set(value) < {"String", "Regex"}
    return known and is_text(*value.values())


# What an option must be: a test, and in words.
FLAG = (lambda value: isinstance(value, bool)), "true or false"
TEXT = is_text, "a text"
PATTERN = is_pattern, '{"String": a text} or {"Regex": a text}'
TEXTS = (lambda value: isinstance(value, list) and all(map(is_text, value))), "a list of texts"
WAY = (lambda value: value in ("grapheme", "prefix")), '"grapheme" or "prefix"'
# Type -> what makes it from its options, the options that it must have, those that it may have.
STEPS = {
    **{name: (partial(Form, name), {}, {}) for name in FORMS},
    "Lowercase": (Lowercase, {}, {}), "StripAccents": (StripAccents, {}, {}), "Nmt": (Nmt, {}, {}),
    "Strip": (Strip, {"strip_left": FLAG, "strip_right": FLAG}, {}),
    "Replace": (Replace, {"pattern": PATTERN, "content": TEXT}, {}),
    "Prepend": (Prepend, {"prepend": TEXT}, {}),
    "Precompiled": (Precompiled.from_json, {"precompiled_charsmap": TEXT},
                    {"by": WAY, "keep": TEXTS})}


def steps_of(spec, where):
    """-> list of Step; sequences within sequences are laid out flat"""
    if spec is None:
        return []
    if not isinstance(spec, dict) or spec.get("type") not in ("Sequence", *STEPS):
        kind = spec.get("type") if isinstance(spec, dict) else spec
        raise Error(f"{where}: {kind!r} is not supported; supported are null, Sequence, "
                    f"{', '.join(STEPS)}")
    kind = spec["type"]
    options = {name: value for name, value in spec.items() if name != "type"}
    if kind == "Sequence":
        inner = options.get("normalizers")
        if not isinstance(inner, list) or where.count(".normalizers[") > 9:
            raise Error(f"{where}: a Sequence needs a list named normalizers, and no more than ten "
                        "stand one in another")
        return [step for i, one in enumerate(inner)
                for step in steps_of(one, f"{where}.normalizers[{i}]")]
    make, needed, allowed = STEPS[kind]
    if not set(needed) <= set(options) <= {*needed, *allowed}:
        raise Error(f"{where}: {kind} has the options {listed(options) or 'none'}; it must have "
                    f"{', '.join(needed) or 'none'}")
    for name, value in options.items():
        fits, words = {**needed, **allowed}[name]
        if not fits(value):
            raise Error(f"{where}.{name} is {value!r}; it must be {words}")
    try:
        return [make(**options)]
    except Error as e:
        raise Error(f"{where}: {e}") from None


def normalizer_of(model, where="model"):
    """What SentencePiece itself does to a text before it cuts it with `model`. Spaces stay spaces:
    writing them as "\u2581" and putting one in front is the matter of unigram.py."""
    steps = []
    if model.charsmap:
        rules = Charsmap(model.charsmap, where)
        if model.extra_spaces and b"  " in rules.texts:     # they would stay, if in no other row
            raise Error(f"{where}: a rule writes two spaces in a row, which is not supported")
        users = [piece.text for piece in model.pieces if piece.type == USER]
        steps.append(Precompiled(rules, "prefix", users))
    if model.extra_spaces:
        # At the end also what looks like a written space falls off; a row is tried from its first.
        space = "[ \u2581]" if model.escape_spaces else "[ ]"
        steps += [Replace({"Regex": pattern}, content) for pattern, content in (
            (r"\A +", ""), (" {2,}", " "), (rf"(?<!{space}){space}+\z", ""))]
    return Normalizer(steps)
