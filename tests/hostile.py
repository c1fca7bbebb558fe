"""Random strings made of what tokenizers go wrong on, the same ones for every kind."""
import random
import unicodedata
from functools import cache

from tinybert_family.text.characters import find_kept
from tinybert_family.text.normalize import find_young
from tinybert_family.text.tokenizer import ANGLES, BRACKETS

CODES = [*range(0xD800), *range(0xE000, 0x110000)]
NAMES = [*BRACKETS.values(), *ANGLES.values(), " <mask>", "<mask> ", "[mask]", "[", "<", "[unused7]",
         "|||IP_ADDRESS|||", "<|padding|>", "<|endoftext|>", "<0x41>"]
SPACES = [*"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\xad\u1680\u180e\u2003\u200b\u200c\u200d\u200e",
          *"\u2028\u2029\u202e\u202f\u205f\u3000\ufeff\x00\x7f\ufffd▁", " ", " ", "  ", "   ",
          "\n\n", "\r\n", " \n ", " " * 30, "▁▁"]
WORDS = ["hello", "World", "unaffable", "don't", "we'll", "I'm", "'s", "'S", "x's", "'", "''", "``",
         "``x''", "1.5", "2007,", "...", "(a-b)", "£5–€6", "##ing", "▁the", "ĠĊ", "naïve", "Σας",
         "ΟΔΟΣ", "İstanbul", "ǅ", "ﬁ", "ß", "½", "№", "㎏", "Ⅷ½", "٣٤", "¨", "Å", "Ω", "ﷺ", "😂",
         "👩‍👩‍👧", "🏳️‍🌈", "🇺🇸🇩", "©\u200d®", "中文", "한국어", "각", "\u1100\u1161\u11a8", "テスト",
         "ｶﾞ", "שלום", "नमस्ते", "क्षि", "ำน้ำ", "\u0600a\u0301", "\u06dd1", "\u0f73\u0f72", "\u0344",
         "\u1e9b\u0323", "\u3304", "\u32ff", "<\u0338", "a" * 99, "b" * 100, "c" * 101, "x" * 200,
         "ab" * 100, "é" * 60]
BASES = "aeiouAEOyc <=ﬁ½\xa0¨éộ각\u1100\u0f71"         # of accents


@cache
def characters():
    kinds, marks = {}, []
    for c in map(chr, CODES):
        kinds.setdefault(unicodedata.category(c), []).append(c)
        if unicodedata.combining(c):
            marks.append(c)
    young = [c for c in map(chr, CODES) if find_young(c)]
    # Of the marks: all; those of two bytes; those that BERT's tokenizers keep.
    marks = [marks, [c for c in marks if c < "\u0800"], [c for c in marks if find_kept(c)]]
    return list(kinds.values()), marks, young


@cache
def hostile(count, seed):
    """Every category of Unicode, marks in any order, all white space and what only looks like it,
    special tokens, long words, and what has many equally good ways to be cut."""
    draw = random.Random(seed)
    kinds, marks, young = characters()

    def accents():
        found = [draw.choice(draw.choice(marks)) for _ in range(draw.randint(0, 4))]
        return draw.choice(BASES) + "".join(found)

    ways = [(22, lambda: draw.choice(WORDS)), (6, lambda: draw.choice(NAMES)),
            (16, lambda: draw.choice(draw.choice(kinds))), (14, accents),
            (20, lambda: draw.choice(SPACES)), (4, lambda: draw.choice(young)),
            (4, lambda: draw.choice(["a", "ha", "!", ".", "-", "lol", "0"]) * draw.randint(2, 40)),
            (4, lambda: "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 15)))),
            (5, lambda: chr(draw.choice(CODES))), (5, lambda: chr(draw.randint(1, 0x2FF)))]
    weights, parts = zip(*ways)
    return ["".join(part() for part in draw.choices(parts, weights, k=draw.randint(0, 14)))
            for _ in range(count)]
