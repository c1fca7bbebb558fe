"""What the published tokenizers of BERT do to single characters, before they cut words in pieces.

Controls vanish, white space becomes a space, capitals become small, accents fall off; punctuation
and Chinese characters are set apart as words of their own. All rules but one speak of single
characters, so together they are one table, from a character to the text that replaces it. It was
compared with the published tokenizer's on every code point.

What is a mark, a capital or a control is a question of the Unicode version. The published
tokenizer takes marks, punctuation and controls from Unicode 8, decompositions from Unicode 9 and
capitals from Unicode 17. Python knows Unicode 13 (3.10) or a later one. The characters on which
they disagree stand here, found by trying every code point under Unicode 13 to 17. Gaps that hold
nothing of the kind are bridged: the lists get short and cover what comes.
"""
import re
import unicodedata
from bisect import bisect_right
from functools import lru_cache
from itertools import groupby

from tinybert_family.error import Error


def spans(text):
    """"A 10-1F" -> [0xA, 0xB, 0x10, 0x20]: where the spans begin, and where they are over."""
    ends = [[int(end, 16) for end in span.split("-")] for span in text.split()]
    return [border for span in ends for border in (span[0], span[-1] + 1)]


def within(code, borders):
    return bisect_right(borders, code) % 2 == 1


# What Python takes for a mark and the published tokenizer does not; then the other way round.
NO_MARK = spans("""
    7FD 897-8E1 9FE AFA-AFF B55 C04-C3C D00 D3B-D3C D81 EBA ECE 180F-1886 1ABF-1AEB 1DF6-1DFB A82C
    A8C5 A8FF A9BD 10D24-10F85 11070-11074 110C2 111C9 111CF 1123E-11241 1133B 113BB-1145E
    1182F-1612F 16F4F 16FE4 1CF00-1CF46 1E000-1E6F5 1E944-1E94A""")
MARK = spans("1734 1171E")
NO_PUNCTUATION = spans("""
    61D 9FD-A76 C77-C84 1B4E-1B4F 1B7D-1B7F 2E43-2E5D 10D6E-10F89 113D4-1145D 11660-116B9
    1183B-11FFF 12FF1-12FF2 16D6D-16FE2 1E5FF-1E95F""")
PUNCTUATION = spans("21-2F 3A-40 5B-60 7B-7E 166D 111C9")       # all signs of ASCII, also $ + < = >
NO_CONTROL = spans("890-8E2 110CD-1343F")
NO_DECOMPOSITION = spans("105C9 105E4 11383-11391 113C5-113C8 11938 16121-16128 16D68-16D6A")
# Without U+2B820 to U+2B91F: a slip, but every published model was used with it.
CHINESE = spans("3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B81F 2B920-2CEAF 2F800-2FA1F")
WHITE = spans("9-A D 20 A0 1680 2000-200A 2028-2029 202F 205F 3000")
# Capitals younger than Unicode 13: the first, the last, the small letter of the first.
CAPITALS = [[int(code, 16) for code in row.split("-")] for row in """
    1C89-1C89-1C8A 2C2F-2C2F-2C5F A7C0-A7C0-A7C1 A7CB-A7CB-264 A7CC-A7CC-A7CD A7CE-A7CE-A7CF
    A7D0-A7D0-A7D1 A7D2-A7D2-A7D3 A7D4-A7D4-A7D5 A7D6-A7D6-A7D7 A7D8-A7D8-A7D9 A7DA-A7DA-A7DB
    A7DC-A7DC-19B 10570-1057A-10597 1057C-1058A-105A3 1058C-10592-105B3 10594-10595-105BB
    10D50-10D65-10D70 16EA0-16EB8-16EBB""".split()]
# Combining characters that are no marks here, yet have a place in their order (see `ordered`).
KEPT = spans("""
    8D4-8E1 1B44 1BAA 1BF2-1BF3 1DFB 302E-302F A953 A9C0 111C0 11235 1134D 11442 11446 116B6 11C3F
    1D165-1D166 1D16D-1D172 1E000-1E02A 1E944-1E94A""")


def is_mark(c):
    listed = within(ord(c), MARK)
    return listed or unicodedata.category(c) == "Mn" and not within(ord(c), NO_MARK)


def is_punctuation(c):
    listed = within(ord(c), PUNCTUATION)
    return listed or unicodedata.category(c)[0] == "P" and not within(ord(c), NO_PUNCTUATION)


def is_removed(c):
    """Controls, format and private characters vanish, even those that Python calls white space."""
    if unicodedata.category(c) in ("Cc", "Cf", "Co"):
        return c not in "\t\n\r" and not within(ord(c), NO_CONTROL)
    return c == "\ufffd"


def decomposed(c):
    """A letter with accents -> the bare letter, then its accents."""
    return c if within(ord(c), NO_DECOMPOSITION) else unicodedata.normalize("NFD", c)


def lowered(c):
    """Of one character: str.lower() of a whole word turns a last sigma into its final form."""
    for first, last, small in CAPITALS:
        if first <= ord(c) <= last:
            return chr(small + ord(c) - first)
    return c.lower()


class Characters(dict):
    """Code point -> the text that replaces it, as str.translate wants it; made at first sight."""

    def __init__(self, lower, accents, chinese, apart=False):
        """apart: punctuation gets spaces around it, so that cleaning and cutting words are one."""
        self.lower, self.accents, self.chinese, self.apart = lower, accents, chinese, apart

    def __missing__(self, code):
        self[code] = text = self.replacement(chr(code))
        return text

    def replacement(self, c):
        if "\ud800" <= c <= "\udfff":
            raise Error(f"the text holds U+{ord(c):04X}, half a surrogate pair and no character; "
                        "decode its bytes anew, for instance with errors='replace'")
        if is_removed(c):
            return ""
        if within(ord(c), WHITE):
            return " "
        letters = [x for x in decomposed(c) if not is_mark(x)] if self.accents else [c]
        if self.lower:
            letters = [x for letter in letters for x in lowered(letter)]
        text = "".join(f" {x} " if self.apart and is_punctuation(x) else x for x in letters)
        # Chinese is written without spaces, so each of its characters is made a word.
        return f" {text} " if self.chinese and within(ord(c), CHINESE) else text


kept = "".join(f"{chr(a)}-{chr(b - 1)}" for a, b in zip(KEPT[::2], KEPT[1::2]))
find_kept = re.compile(f"[{kept}]").search


@lru_cache(1 << 12)
def rank(c):
    return unicodedata.combining(c) if is_mark(c) or within(ord(c), KEPT) else 0


def ordered(text):
    """The one rule that looks at neighbours. The accents of a letter may be written in any order,
    so each run of them is sorted by class before the marks among them are dropped. That shows only
    where one stays, so only texts with a KEPT character come here."""
    return in_order(text, [(0, 0)] * len(text))[0]


def in_order(text, spans):
    """`ordered`, and where each character stood. A letter that falls into several takes one place:
    the first of them takes the next place that is free, the others the last one that was taken."""
    stay = [(c, span) for c, span in zip(text, spans) if not is_removed(c)]
    letters = [(x, n > 0) for c, _ in stay for n, x in enumerate(decomposed(c))]
    runs = groupby(letters, lambda letter: rank(letter[0]) > 0)
    letters = [letter for ranked, run in runs
               for letter in (sorted(run, key=lambda letter: rank(letter[0])) if ranked else run)]
    places, taken = [], 0
    for _, further in letters:
        taken += not further
        places.append(stay[max(taken, 1) - 1][1])
    return "".join(c for c, _ in letters), places


class BertNormalizer:
    """The same table for a whole text, and with the place where each character came from."""

    def __init__(self, lower, accents, chinese):
        self.table = Characters(lower, accents, chinese)

    def __call__(self, text):
        if self.table.accents and find_kept(text):
            text = ordered(text)
        return text.translate(self.table)

    def aligned(self, text, spans=None):
        """-> (normal text, the (start, end) in the original of each of its characters)"""
        spans = [(i, i + 1) for i in range(len(text))] if spans is None else spans
        if self.table.accents and find_kept(text):
            text, spans = in_order(text, spans)
        new, places = [], []
        for c, span in zip(text, spans):
            replaced = c.translate(self.table)
            new.append(replaced)
            places += [span] * len(replaced)
        return "".join(new), places

    def to_json(self, accents):
        return dict(type="BertNormalizer", clean_text=True,
                    handle_chinese_chars=self.table.chinese, strip_accents=accents,
                    lowercase=self.table.lower)
