"""Normal forms against the tokenizers library and SentencePiece, live: every step, and the
sequences that published models use, on every code point and on hostile strings, with offsets.
"""
import base64
import json
import lzma
import os

import pytest
from hostile import hostile

from tinybert_family.text import normalize, sentencepiece
from tinybert_family.text.normalize import Normalizer, normalizer_of
from tinybert_family.text.sentencepiece import Charsmap

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
tokenizers = pytest.importorskip("tokenizers", reason="the oracle of this file")

# Every code point, but of long rows that are all alike (Chinese characters, private ones, empty
# planes) one of many.
CODES = [*range(0x3500), *range(0x3500, 0x9F00, 61), *range(0x9F00, 0xAC10),
         *range(0xAC10, 0xD700, 7), *range(0xD700, 0xD800), *range(0xE000, 0xF900, 61),
         *range(0xF900, 0x17100), *range(0x17100, 0x18AF0, 61), *range(0x18AF0, 0x20000),
         *range(0x20000, 0x2F800, 61), *range(0x2F800, 0x2FA20), *range(0x2FA20, 0xE0000, 4093),
         *range(0xE0000, 0xE0200), *range(0xE0200, 0x110000, 4093)]
MODELS = {"nmt": "albert-base/spiece.model", "nfkc": "sentencepiece/test_model.model",
          "v3": "deberta-v3/spm.model"}


def kind(name, **options):
    return {"type": name, **options}


def strip(left, right):
    return kind("Strip", strip_left=left, strip_right=right)


def replace(pattern, content, how="Regex"):
    return kind("Replace", pattern={how: pattern}, content=content)


def sequence(*specs):
    return kind("Sequence", normalizers=list(specs))


LONG, NMT = replace(" {2,}", " "), "nmt"        # NMT: put the rules of a real model here
QUOTES = [replace("``", '"', "String"), replace("''", '"', "String")]
SPECS = {
    **{name: kind(name) for name in (*normalize.FORMS, "Lowercase", "StripAccents", "Nmt")},
    "strip": strip(True, True), "left": strip(True, False), "right": strip(False, True),
    "spaces": replace(r"\s{2,}|[\n\r\t]", " "), "not spaces": replace(r"\S{3}[^\s\u0041]", "xé"),
    "ends": sequence(replace(r"\A +", ""), replace(r"(?<![ ▁])[ ▁]+\z", "")),
    "string": replace(".", "é.", "String"), "prepend": kind("Prepend", prepend="▁x"),
    "rules nmt": NMT, "rules nfkc": "nfkc",
    "albert": sequence(*QUOTES, kind("NFKD"), kind("StripAccents"), kind("Lowercase"), NMT, LONG),
    "deberta-v3, transformers 4": sequence(strip(True, True), NMT, LONG),
    "deberta-v3, transformers 5": sequence(replace(r"\s{2,}|[\n\r\t]", " "), kind("NFC"),
                                           strip(False, True)),
    "xlm-r": sequence(NMT, LONG), "xlm-r, transformers 5": sequence(strip(False, True), LONG),
    "unigram": sequence(*QUOTES, kind("Nmt"), sequence(kind("NFKC"), LONG)),
    "llama": sequence(kind("Prepend", prepend="▁"), replace(" ", "▁", "String"))}
# Those whose steps, too, are among them need not see every code point again.
SINGLE = [name for name, spec in SPECS.items() if isinstance(spec, str) or len(spec) == 1]


def filled(spec, shared):
    """With the rules of real models in their places."""
    if isinstance(spec, str):
        model = sentencepiece.read(shared / "data/tokenizers" / MODELS[spec])
        rules = base64.b64encode(model.charsmap).decode()
        return kind("Precompiled", precompiled_charsmap=rules)
    if spec["type"] == "Sequence":
        return sequence(*(filled(one, shared) for one in spec["normalizers"]))
    return spec


@pytest.fixture
def both(shared, request):
    """-> our normalizer, and a tokenizer of theirs that makes each normal character a token"""
    spec = filled(SPECS[request.param], shared)
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    whole = {**json.loads(whole.to_str()), "normalizer": spec}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(whole))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    return Normalizer.from_json(spec, "tokenizer.json"), theirs


@pytest.mark.parametrize("both", SPECS, indirect=True)
def test_hostile_strings(both):
    ours, theirs = both
    texts, normal = hostile(20000, seed=1), theirs.normalizer
    different = []
    for text in texts:
        if ours(text) != (normal.normalize_str(text) if normal else text):
            different.append(text)
    assert different == []


@pytest.mark.parametrize("both", SPECS, indirect=True)
def test_offsets_of_hostile_strings(both):
    ours, theirs = both
    texts = hostile(20000, seed=1)[:4000]
    for text, theirs in zip(texts, theirs.encode_batch(texts)):
        normal, places = ours.aligned(text)
        assert normal == ours(text)
        assert places == theirs.offsets, text


@pytest.mark.parametrize("both", SINGLE, indirect=True)
def test_every_code_point(both):
    """Alone, between a letter and accents that would like to compose with it, and after signs that
    a rule replaces."""
    ours, theirs = both
    ways = ["a{}\u0316\u0301", "ﬁ\u0301{}\u0301", "{}\u0338\xa0{}"]
    different = []
    for first in range(0, len(CODES), 256):
        text = " x".join(way.format(*[chr(code)] * 2) for code in CODES[first:first + 256]
                         for way in ways)
        if ours(text) != theirs.normalizer.normalize_str(text):
            different.append(hex(CODES[first]))
    assert different == []


def test_white_space_of_expressions():
    text = "".join(map(chr, CODES))
    for pattern in (r"\s", r"\S", r"[\s,]", r"[^\s,]", ".", r"\u00e9|[\n\r\t]"):
        ours = Normalizer.from_json(replace(pattern, ""), "f")
        theirs = tokenizers.normalizers.Replace(tokenizers.Regex(pattern), "")
        assert ours(text) == theirs.normalize_str(text)


def test_prepending_nothing():
    """Here the library is wrong: with nothing to prepend it loses the first character's place."""
    theirs = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    theirs.normalizer = tokenizers.normalizers.Prepend("")
    assert theirs.encode("a").offsets == [(0, 0)]
    ours = Normalizer.from_json(kind("Prepend", prepend=""), "f")
    assert ours.aligned("a") == ("a", [(0, 1)])


# --- SentencePiece --------------------------------------------------------------------------------

@pytest.fixture(params=MODELS)
def model(shared, request):
    """-> ours and theirs"""
    theirs = pytest.importorskip("sentencepiece", reason="the oracle of these tests")
    path = shared / "data/tokenizers" / MODELS[request.param]
    return sentencepiece.read(path), theirs.SentencePieceProcessor(model_file=str(path))


def spelt(normal, model):
    """With the signs for spaces, which belong to the next step."""
    if normal == "" and model.extra_spaces:
        return ""
    return "▁" + normal.replace(" ", "▁")


def test_pieces_of_a_model(model):
    ours, theirs = model
    assert [piece.text for piece in ours.pieces] == theirs.id_to_piece(list(range(len(theirs))))
    assert [piece.score for piece in ours.pieces] == [theirs.get_score(i)
                                                      for i in range(len(theirs))]
    ids = (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id)
    assert ids == (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id())
    kinds = [theirs.is_unknown, theirs.is_control, theirs.is_byte, theirs.is_unused]
    types = [sentencepiece.UNKNOWN, sentencepiece.CONTROL, sentencepiece.BYTE, sentencepiece.UNUSED]
    for i, piece in enumerate(ours.pieces[:1000]):
        assert [is_kind(i) for is_kind in kinds] == [piece.type == type for type in types]


def test_hostile_strings_by_the_longest_rule(model):
    ours, theirs = model
    normal = normalizer_of(ours)
    assert [text for text in hostile(20000, seed=2)
            if spelt(normal(text), ours) != theirs.normalize(text)] == []


def test_every_code_point_by_the_longest_rule(model):
    ours, theirs = model
    normal, different = normalizer_of(ours), []
    for first in range(1, len(CODES), 256):
        text = "".join(f"a{chr(code)}\u0301  {chr(code)}" for code in CODES[first:first + 256])
        if spelt(normal(text), ours) != theirs.normalize(text):
            different.append(hex(CODES[first]))
    assert different == []


def test_real_text(model, shared):
    ours, theirs = model
    normal = normalizer_of(ours)
    with lzma.open(shared / "data/text/wiki_en_1.txt.xz", "rt", encoding="utf-8") as lines:
        for line, _ in zip(lines, range(3000)):
            assert spelt(normal(line), ours) == theirs.normalize(line)


def test_a_model_written_by_hand_is_read_by_sentencepiece(shared):
    """Also with rules of our own making, and with all ways to treat spaces."""
    oracle = pytest.importorskip("sentencepiece", reason="the oracle of this test")
    read = sentencepiece.read(shared / "data/tokenizers" / MODELS["nfkc"])
    rules = Charsmap.build({"ﬁ": "fi", "a\u0301": "á", "a\u0301\u0316": " b", "  ": "\t", "\n": " ",
                            "\u200b": "", "hel": "", "x": " ", "中文": "zw"})
    for charsmap in (read.charsmap, rules.blob, b""):
        for extra in (True, False):
            ours = read._replace(charsmap=charsmap, extra_spaces=extra)
            theirs = oracle.SentencePieceProcessor(model_proto=sentencepiece.pack(ours))
            normal = normalizer_of(ours)
            assert theirs.encode("hello world") != []
            for text in hostile(20000, seed=2)[:3000]:
                # Of a NUL behind what a rule replaces theirs loses what follows.
                if text and "\0" not in text:
                    assert spelt(normal(text), ours) == theirs.normalize(text), text
