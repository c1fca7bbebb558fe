"""Normal forms worked by hand, what all of them promise, and what is refused."""
import random
import sys
import time
import unicodedata

import pytest

from tinybert_family.error import Error
from tinybert_family.text import normalize
from tinybert_family.text.normalize import Form, Lowercase, Nmt, Normalizer, Precompiled, Prepend
from tinybert_family.text.normalize import Replace, Strip, StripAccents, normalizer_of, sources
from tinybert_family.text.sentencepiece import USER, Charsmap, Model, Piece

RULES = {"ﬁ": "fi", "a\u0301": "á", "\t": " ", "\u200b": "", "\u00a0": " ", "ﷺ": "a b c", "№": "No"}


def precompiled(**options):
    return Precompiled(Charsmap.build(RULES), **options)


def all_steps():
    return [*map(Form, normalize.FORMS), Lowercase(), StripAccents(), Nmt(), Strip(),
            Strip(strip_left=False), Replace({"Regex": r"\s{2,}|[\n\r\t]"}, " "),
            Replace({"String": "``"}, '"'), Replace({"Regex": " {2,}"}, ""), Prepend("▁"),
            precompiled(), precompiled(by="prefix"), precompiled(by="prefix", keep=["ﬁ", "x№"])]


def nasty(count, seed=1):
    draw = random.Random(seed)
    young = [c for c in map(chr, range(0x20000)) if normalize.find_young(c)]
    marks = [c for c in map(chr, range(0x20000)) if unicodedata.combining(c)]
    words = [*"aeEßΣİ \t\n\r\x1c\x85\u200b\u2028\u3000", "``", "  ", "ﬁ", "№", "각", "\u1100\u1161",
             "Å", "\u0344", "\u0f73", "Ω", "½", "ǅ", "▁", "中", "x", "\u0600", "👩\u200d👧", "ﷺ",
             *RULES]

    def part():
        kind = draw.random()
        if kind < 0.5:
            return draw.choice(words)
        if kind < 0.8:
            return draw.choice("aeoc ﬁ\u00a0") + "".join(draw.choices(marks, k=draw.randint(1, 3)))
        code = draw.randint(0, 0x10F7FF)
        return draw.choice(young) if kind < 0.9 else chr(code + 0x800 * (code >= 0xD800))
    return ["".join(part() for _ in range(draw.randint(0, 9))) for _ in range(count)]


# --- Worked by hand -------------------------------------------------------------------------------

def test_changes():
    """"ﬁ", "e", an accent, "!": the i is added, the é makes one more vanish."""
    changes = [("f", 0), ("i", 1), ("é", -1), ("!", 0)]
    assert sources(changes) == [("f", 0), ("i", 0), ("é", 1), ("!", 3)]


@pytest.mark.parametrize("step, text, normal, places", [
    (Form("NFC"), "e\u0301x", "éx", [0, 2]),
    (Form("NFD"), "éx", "e\u0301x", [0, 0, 1]),
    (Form("NFKC"), "ﬁ½", "fi1⁄2", [0, 0, 1, 1, 1]),
    (Form("NFKD"), "각", "\u1100\u1161\u11a8", [0, 0, 0]),
    (Form("NFC"), "\u1100\u1161\u11a8", "각", [0]),
    # Below comes before above in the order of accents; a new place goes to the one that moved.
    (Form("NFD"), "e\u0301\u0316", "e\u0316\u0301", [0, 1, 2]),
    (Form("NFC"), "e\u0316\u0301", "é\u0316", [0, 2]),
    # U+08D3 is a mark since Unicode 11, so for Unicode 9 it parts the letter from its accent.
    (Form("NFC"), "e\u08d3\u0301", "e\u08d3\u0301", [0, 1, 2]),
    (Form("NFKC"), "\u32ff", "\u32ff", [0]),
    (Lowercase(), "İΑΣ", "i\u0307ας".replace("ς", "σ"), [0, 0, 1, 2]),
    (StripAccents(), "e\u0301é\u0903", "eé", [0, 2]),
    (Nmt(), "a\x01\u200b\ufeffb", "a  b", [0, 2, 3, 4]),
    (Strip(), " \u3000a b\x85", "a b", [2, 3, 4]),
    (Strip(strip_left=False), " a\t", " a", [0, 1]),
    (Strip(), "\x1ca", "\x1ca", [0, 1]),            # white space to Python alone
    (Replace({"String": "``"}, '"'), "a``b", 'a"b', [0, 2, 3]),
    (Replace({"Regex": r"\s{2,}|[\n\r\t]"}, " "), "a \u3000b\nc", "a b c", [0, 2, 3, 4, 5]),
    (Replace({"String": "."}, "xy"), "a.b", "axyb", [0, 1, 1, 2]),
    (Prepend("▁_"), "ab", "▁_ab", [0, 0, 0, 1]),
    (Prepend("▁"), "", "", []),
    (precompiled(), "№ a\u0301", "No á", [0, 0, 1, 2]),
    (precompiled(), "a\u200bb", "ab", [0, 2]),
    # The published tokenizers lose count where a text begins with what vanishes.
    (precompiled(), "\u200bab", "ab", [0, 1]),
    (precompiled(by="prefix"), "\u200bab", "ab", [1, 2]),
    # A sign of five bytes is replaced as a whole by the shortest rule that fits its beginning.
    (precompiled(), "ﬁ\u0301", "fi", [0, 1]),
    (precompiled(by="prefix"), "ﬁ\u0301", "fi\u0301", [0, 0, 1]),
    (precompiled(by="prefix", keep=["x№"]), "x№№", "x№No", [0, 1, 2, 2]),
], ids=lambda value: type(value).__name__)
def test_one_step(step, text, normal, places):
    assert step(text) == normal
    assert step.trace(text) == list(zip(normal, places))


def test_places_of_several_steps():
    normalizer = Normalizer([Form("NFKD"), StripAccents(), Lowercase(), Strip()])
    assert normalizer(" ÉﬁX") == "efix"
    assert normalizer.aligned(" ÉﬁX") == ("efix", [(1, 2), (2, 3), (2, 3), (3, 4)])
    # The text may be a part of a longer one, or changed already.
    assert normalizer.aligned("É ", [(7, 9), (9, 10)]) == ("e", [(7, 9)])


def test_no_steps():
    assert Normalizer()("Éa") == "Éa" and Normalizer().aligned("É") == ("É", [(0, 1)])


# --- What all of them promise ---------------------------------------------------------------------

@pytest.mark.parametrize("step", all_steps(), ids=lambda step: step.name)
def test_the_quick_way_and_the_exact_way_agree(step):
    normalizer = Normalizer([step])
    for text in nasty(1500):
        traced = step.trace(text)
        assert "".join(c for c, _ in traced) == step(text)
        assert [i for _, i in traced] == sorted(i for _, i in traced)
        assert all(0 <= i < len(text) for _, i in traced)
        normal, places = normalizer.aligned(text)
        assert normal == normalizer(text) == step(text)
        assert places == [(i, i + 1) for _, i in traced]


@pytest.mark.parametrize("name", normalize.FORMS)
def test_a_normal_form_is_normal(name):
    form = Form(name)
    for text in nasty(1500, seed=2):
        normal = form(text)
        assert form(normal) == normal
        assert form(text[:3]) + form("x" + text[3:]) == form(text[:3] + "x" + text[3:])
        known = [part for part in normalize.split_young(text)[::2]]
        assert [form(part) for part in known] == [unicodedata.normalize(name, part)
                                                  for part in known]


def test_young_characters_stay_as_they_are():
    for code in [c for c in range(sys.maxunicode + 1) if normalize.find_young(chr(c))]:
        c = chr(code)
        for name in normalize.FORMS:
            if unicodedata.category(c) == "Cn" or unicodedata.normalize(name, c) != c:
                assert Form(name)(c) == c
            assert Form(name)(f"e{c}\u0301") == f"e{c}\u0301"


def test_stripping_is_done_once():
    for step in (Strip(), StripAccents(), Lowercase(), Nmt()):
        for text in nasty(500, seed=3):
            assert step(step(text)) == step(text)


# --- tokenizer.json -------------------------------------------------------------------------------

def test_json_there_and_back():
    normalizer = Normalizer(all_steps())
    spec = normalizer.to_json()
    again = Normalizer.from_json(spec, "tokenizer.json")
    assert again.to_json() == spec
    assert [again(text) for text in nasty(100)] == [normalizer(text) for text in nasty(100)]
    assert Normalizer.from_json(None, "f").to_json() is None
    assert Normalizer.from_json({"type": "NFC"}, "f").to_json() == {"type": "NFC"}


def test_sequences_within_sequences():
    inner = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}
    spec = {"type": "Sequence", "normalizers": [inner, {"type": "Lowercase"}]}
    normalizer = Normalizer.from_json(spec, "f")
    assert [step.name for step in normalizer.steps] == ["NFD", "StripAccents", "Lowercase"]
    for _ in range(20):
        inner = {"type": "Sequence", "normalizers": [inner]}
    with pytest.raises(Error, match="no more than ten"):
        Normalizer.from_json(inner, "f")


@pytest.mark.parametrize("spec, told", [
    ({"type": "ByteLevel"}, "'ByteLevel' is not supported; supported are null, Sequence, NFC"),
    ({"lowercase": True}, "None is not supported"), ([], "[] is not supported"),
    ({"type": "NFC", "form": 1}, "NFC has the options form; it must have none"),
    ({"type": "Strip", "strip_left": True}, "it must have strip_left, strip_right"),
    ({"type": "Strip", "strip_left": 1, "strip_right": True}, "normalizer.strip_left is 1; it"),
    ({"type": "Prepend", "prepend": None}, "prepend is None; it must be a text"),
    ({"type": "Prepend", "prepend": "\ud800"}, "it must be a text"),
    ({"type": "Replace", "pattern": "x", "content": ""}, "pattern is 'x'; it must be"),
    ({"type": "Replace", "pattern": {"String": ""}, "content": ""}, "matches the empty text"),
    ({"type": "Replace", "pattern": {"Regex": "x*"}, "content": ""}, "matches the empty text"),
    ({"type": "Replace", "pattern": {"Regex": "(x"}, "content": ""}, "no regular expression"),
    ({"type": "Replace", "pattern": {"Regex": r"\h+"}, "content": ""}, "not supported here"),
    ({"type": "Replace", "pattern": {"Regex": "^a"}, "content": ""}, "not supported here"),
    ({"type": "Replace", "pattern": {"Regex": "(?m:.)"}, "content": ""}, "not supported here"),
    ({"type": "Replace", "pattern": {"Regex": "a++"}, "content": ""}, "not supported here"),
    ({"type": "Sequence", "normalizers": {}}, "a Sequence needs a list"),
    ({"type": "Sequence", "normalizers": [{"type": "NFC"}, 7]}, "normalizers[1]: 7 is not"),
    ({"type": "Precompiled", "precompiled_charsmap": "?"}, "precompiled_charsmap is not base64"),
    ({"type": "Precompiled", "precompiled_charsmap": ""}, "broken rules of normalisation"),
    ({"type": "Precompiled", "precompiled_charsmap": "", "by": "x"}, "by is 'x'; it must be"),
], ids=lambda value: "" if isinstance(value, str) else str(value)[:40])
def test_what_is_not_known_is_refused(spec, told):
    with pytest.raises(Error) as caught:
        Normalizer.from_json(spec, "dir/tokenizer.json")
    assert str(caught.value).startswith("dir/tokenizer.json: normalizer")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_character_is_refused():
    for normalizer in (Normalizer(), Normalizer(all_steps())):
        for way in (normalizer, normalizer.aligned):
            with pytest.raises(Error, match="U\\+D801, half a surrogate pair"):
                way("a\ud801b")


# --- SentencePiece's own way ----------------------------------------------------------------------

def test_spaces_of_a_model():
    rules = Charsmap.build({"\u3000": " ", "[x]": "-", "é": "e"}).blob
    model = Model([Piece("<unk>", 0.0, 2), Piece("[x]", 0.0, USER)], charsmap=rules)
    normal = normalizer_of(model)
    assert normal("\u3000 é  [x]\u3000 b ▁ ") == "e [x] b"
    assert normal(" ▁a  ▁") == "▁a"
    assert normalizer_of(model._replace(extra_spaces=False))(" é\u3000 b ") == " e  b "
    assert normalizer_of(model._replace(charsmap=b""))(" é ") == "é"
    again = Normalizer.from_json(normal.to_json(), "f")
    with pytest.raises(Error, match="m.model: a rule writes two spaces"):
        normalizer_of(model._replace(charsmap=Charsmap.build({"x": "  "}).blob), "m.model")
    assert again("\u3000 é  [x]\u3000 b ▁ ") == "e [x] b"


def test_long_rows_take_no_time():
    """Trying a row of spaces from each of its spaces would take minutes."""
    normal, steps = normalizer_of(Model([Piece("<unk>", 0.0, 2)])), Normalizer(all_steps())
    start = time.perf_counter()
    for row in (" ", "▁", " ▁", "▁ "):
        assert normal(row * 300000 + "x").endswith("x")
    for row in (" ", "a\u0301", "\u0301", "\t\r\n"):
        steps(row * 20000 + "x")
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("name", normalize.FORMS)
def test_a_hundred_thousand_marks_are_ordered_at_once(name):
    many = 100_000
    normal = normalize.Form(name)("e" + "\u0301\u0316" * many)
    below, above = "\u0316" * many, "\u0301" * (many - 1)
    assert normal == ("é" + below + above if name.endswith("C") else
                      "e" + below + "\u0301" + above)
