"""Random strings made of what tokenizers go wrong on."""
import random
import unicodedata
from functools import cache

from tinybert_family.text.characters import find_kept
from tinybert_family.text.tokenizer import ANGLES, BRACKETS

CODES = [*range(0xD800), *range(0xE000, 0x110000)]
NAMES = [*BRACKETS.values(), *ANGLES.values()]


@cache
def characters():
    kinds, marks = {}, []
    for c in map(chr, CODES):
        kinds.setdefault(unicodedata.category(c), []).append(c)
        if unicodedata.combining(c):
            marks.append(c)
    return list(kinds.values()), marks, [c for c in marks if find_kept(c)]


@cache
def hostile(count, seed):
    """Strings of what goes wrong: every category, marks in any order, false spaces, long words."""
    draw = random.Random(seed)
    kinds, marks, kept = characters()
    spaces = [*"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u200b\u200e\u2028\u2029\u202e",
              *"\u202f\u3000\ufeff\x00\ufffd"]
    words = ["hello", "World", *NAMES, "[mask]", "[", "naïve", "Σας", "ΟΔΟΣ", "İstanbul", "ǅ",
             "ﬁ", "unaffable", "don't", "1.5", "😂", "👩‍👩‍👧", "中文", "한국어", "ß", "##ing", "שלום",
             "नमस्ते", "a" * 99, "b" * 100, "c" * 101, "é" * 60, "x" * 200]

    def part():
        kind = draw.random()
        if kind < 0.3:
            return draw.choice(words)
        if kind < 0.5:
            return draw.choice(draw.choice(kinds))
        if kind < 0.62:
            accents = draw.choices(marks, k=draw.randint(0, 3))
            accents += draw.choices(kept, k=draw.randint(0, 2))
            draw.shuffle(accents)
            return draw.choice("aeiouAEOyc") + "".join(accents)
        if kind < 0.8:
            return draw.choice(spaces)
        return chr(draw.choice(CODES)) if kind < 0.9 else chr(draw.randint(33, 0x2FF))

    return ["".join(part() for _ in range(draw.randint(0, 14))) for _ in range(count)]
