"""SentencePiece's file read and written by hand, and the double array of its rules."""
import random
import struct

import pytest

from tinybert_family.error import Error
from tinybert_family.text import sentencepiece
from tinybert_family.text.sentencepiece import CONTROL, UNKNOWN, USER, Charsmap, Model, Piece
from tinybert_family.text.sentencepiece import pack, signs, unpack

RULES = {"ﬁ": "fi", "a\u0301": "á", "a\u0301\u0302": "ấ", "\t": " ", "\u200b": "", "ﷺ": "a b c"}
PIECES = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL),
          Piece("▁", -1.5), Piece("▁né", -2.25), Piece("[X]", 0.0, USER)]


@pytest.fixture(scope="module")
def model():
    return Model(PIECES, byte_fallback=True, pad_id=-1, unk_piece="<unk>", name="own",
                 charsmap=Charsmap.build(RULES).blob, extra_spaces=False)


def test_a_message_worked_by_hand():
    """Field 1 (08 + 2 = 0A) is a piece of 8 bytes: its text "ab", its score 0.5, its type 2."""
    data = bytes.fromhex("0A 0B  0A 02 61 62  15 00 00 00 3F  18 02")
    assert struct.pack("<f", 0.5) == bytes.fromhex("0000003F")
    assert unpack(data).pieces == [Piece("ab", 0.5, UNKNOWN)]


def test_numbers_are_read_as_they_are_written():
    unk = sentencepiece.field(1, bytes.fromhex("0A 01 75 18 02"))
    # 300 = 0b10_0101100: the low seven bits first; -1 is 64 ones, so ten bytes.
    assert sentencepiece.field(4, 300) == bytes.fromhex("20 AC 02")
    assert sentencepiece.field(43, -1) == bytes.fromhex("D8 02" + "FF" * 9 + "01")
    data = unk + sentencepiece.field(2, sentencepiece.field(43, -1) + sentencepiece.field(35, True))
    assert unpack(data).pad_id == -1 and unpack(data).byte_fallback is True


def test_what_begins_and_ends_a_text_goes_by_names(model):
    assert (unpack(pack(model)).bos_id, unpack(pack(model)).eos_id) == (1, 2)
    named = unpack(pack(model._replace(bos_piece="</s>", bos_id=7, eos_piece="[X]")))
    assert (named.bos_id, named.eos_id, named.pad_id) == (2, -1, -1)


def test_what_is_written_is_read_again(model):
    assert unpack(pack(model)) == model


def test_unknown_fields_are_skipped(model):
    added = sentencepiece.field(200, b"new") + sentencepiece.field(201, 1.5)
    added += sentencepiece.field(202, 7) + bytes.fromhex("D9 0C") + bytes(8)    # eight bytes, too
    assert unpack(added + pack(model) + added) == model


def test_the_unknown_piece_counts_whatever_the_trainer_said(model):
    assert unpack(pack(model._replace(unk_id=5))).unk_id == 0


@pytest.mark.parametrize("change, told", [
    (dict(pieces=PIECES + [Piece("▁")]), "piece 6 repeats '▁'"),
    (dict(pieces=PIECES + [Piece("")]), "piece 6 is empty"),
    (dict(pieces=PIECES + [Piece("x", float("nan"))]), "piece 6 has the score nan"),
    (dict(pieces=PIECES + [Piece("x", 0.0, 9)]), "piece 6 is of the unknown type 9"),
    (dict(pieces=PIECES[1:]), "0 of 5 pieces are of the type UNKNOWN"),
    (dict(model_type=7), "model_type is 7"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_model_that_makes_no_sense_is_refused(model, change, told):
    with pytest.raises(Error, match="m.model: ") as caught:
        unpack(pack(model._replace(**change)), "m.model")
    assert told in str(caught.value)


def test_a_broken_file_is_refused_with_its_byte(model, tmp_path):
    data = pack(model)
    path = tmp_path / "spiece.model"
    path.write_bytes(data[:-1])
    with pytest.raises(Error, match=rf"{path}: byte \d+: field 3 claims \d+ bytes, \d+ are left"):
        sentencepiece.read(path)
    with pytest.raises(Error, match="does not exist"):
        sentencepiece.read(tmp_path / "none.model")
    with pytest.raises(Error, match="cannot be read"):
        sentencepiece.read(tmp_path)
    with pytest.raises(Error, match="byte 0: the key of a field never ends"):
        unpack(b"\xff" * 20)
    with pytest.raises(Error, match="byte 0: 123 is not the key of a field"):
        unpack(b"{}")
    with pytest.raises(Error, match="byte 4: text is not UTF-8"):
        unpack(sentencepiece.field(1, sentencepiece.field(1, b"\xff")))


def test_a_file_cut_anywhere_is_a_shorter_model_or_an_error(model):
    """Never another exception. Fields may be left out, so a cut between them shows nowhere."""
    data = pack(model)
    whole = 0
    for size in [*range(260), *range(260, len(data), 7)]:
        try:
            pieces = unpack(data[:size]).pieces
            assert pieces == PIECES[:len(pieces)]
            whole += 1
        except Error as e:
            assert "\n" not in str(e)
    assert whole == len(PIECES) + 1             # also after the whole trainer's message


def test_flipped_bits_never_raise_anything_else(model):
    draw, data = random.Random(3), pack(model)
    for _ in range(3000):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(400) if draw.random() < 0.7 else draw.randrange(len(data))
            broken[at] ^= 1 << draw.randrange(8)
        try:
            read = unpack(bytes(broken))
            if read.charsmap:
                Charsmap(read.charsmap)
        except Error as e:
            assert "\n" not in str(e)


# --- The rules ------------------------------------------------------------------------------------

def test_rules_are_found_as_they_were_given():
    rules = Charsmap.build(RULES)
    for old, new in RULES.items():
        assert rules.longest(old.encode()) == (len(old.encode()), new)
    text = "xa\u0301\u0302y".encode()
    assert rules.longest(text, 1) == (5, "ấ") and rules.longest(text) is None
    assert rules.shortest("a\u0301\u0302y") == "á" and rules.shortest("a") is None
    assert [size for size, _ in rules.matches(text, 1)] == [3, 5]
    assert rules.ascii == "\t" and rules.parted
    assert not Charsmap.build({"ab": "x"}).parted


def test_the_double_array_worked_by_hand():
    """One rule, "A" -> "B". The root has the base 1, its child by "A" (0x41) lies at 1 ^ 0x41."""
    units = [0] * 256
    units[0] = 1 << 10
    units[0x40] = (0x40 ^ 2) << 10 | 1 << 8 | 0x41      # the base 2; a rule ends here
    units[2] = 1 << 31 | 0                              # its new text begins at 0
    blob = struct.pack("<257I", 1024, *units) + b"B\0"
    assert Charsmap(blob).longest(b"A") == (1, "B") and Charsmap(blob).longest(b"B") is None
    assert Charsmap.build({"A": "B"}).blob == blob


def test_many_rules():
    draw = random.Random(5)

    def text(shortest):
        return "".join(chr(draw.randint(33, 0x2FFF)) for _ in range(draw.randint(shortest, 3)))
    rules = {text(1): text(0) for _ in range(800)}
    built = Charsmap.build(rules)
    assert all(built.longest(old.encode()) == (len(old.encode()), new)
               for old, new in rules.items())
    assert [built.longest(old.encode() + b"\x20") for old in rules] == [
        (len(old.encode()), new) for old, new in rules.items()]


@pytest.mark.parametrize("break_it, told", [
    (lambda blob: b"", "does not fit"), (lambda blob: blob[:1000], "does not fit"),
    (lambda blob: blob[:-1], "no end"), (lambda blob: blob + b"\xff\0", "not UTF-8"),
    (lambda blob: blob[:4] + b"\xff\xff\xff\x7f" + blob[8:], "outside"),
    (lambda blob: blob[:4 + 1024 + 1] + b"\0", "outside of the texts")],
    ids=["empty", "cut", "no zero", "bytes", "base", "texts"])
def test_broken_rules_are_refused(break_it, told):
    with pytest.raises(Error, match="f.json: broken rules") as caught:
        Charsmap(break_it(Charsmap.build({"A": "xy", "B": "z"}).blob), "f.json")
    assert told in str(caught.value)


def test_rules_about_half_characters_are_refused():
    units = [0] * 512
    units[0], units[1 ^ 0xC3] = 1 << 10, (1 ^ 0xC3 ^ 2) << 10 | 1 << 8 | 0xC3
    units[2] = 1 << 31
    with pytest.raises(Error, match="ends within a character"):
        Charsmap(struct.pack("<513I", 2048, *units) + b"B\0")
    units[1 ^ 0xC3] = (1 ^ 0xC3 ^ 1) << 10 | 0xC3           # its own parent's base: no way out
    with pytest.raises(Error, match="not UTF-8"):
        Charsmap(struct.pack("<513I", 2048, *units) + b"B\0")


def test_rules_without_an_end_are_refused():
    units = [0] * 256
    units[0], units[1 ^ 0x41] = 1 << 10, (1 ^ 0x41 ^ 1) << 10 | 0x41
    with pytest.raises(Error, match="more than 255 bytes"):
        Charsmap(struct.pack("<257I", 1024, *units) + b"B\0")


def test_flipped_bits_in_rules():
    """Either refused, or every look-up stays inside."""
    draw, blob = random.Random(7), Charsmap.build(RULES).blob
    used = [i for i in range(4, len(blob)) if blob[i]]
    for _ in range(2000):
        broken = bytearray(blob)
        broken[draw.choice(used)] ^= 1 << draw.randrange(8)
        try:
            rules = Charsmap(bytes(broken))
        except Error:
            continue
        for text in RULES:
            "".join(new for _, new in rules.by_signs(text + "\u0302b"))
            "".join(new for _, new in rules.by_prefixes(text + "\u0302b", lambda text, i: None))
        for byte in range(256):
            rules.longest(bytes([byte, 0x81, 0x41]))


def test_rules_that_cannot_be_written():
    for rules in ({"": "x"}, {"a\0": "x"}, {"a": "\0"}):
        with pytest.raises(Error, match="rule for"):
            Charsmap.build(rules)


def test_base64_that_is_none():
    with pytest.raises(Error, match="not base64"):
        Charsmap.from_base64("?")


def test_signs():
    text = "e\u0301x\r\n👩\u200d👧🇩🇪ก\u0e33"
    assert signs(text) == ["e\u0301", "x", "\r\n", "👩\u200d👧", "🇩🇪", "ก\u0e33"]
    # U+05C8 came with Unicode 18. Before, it was nothing that hangs on to a letter.
    assert signs("e\u05c8\u0301x") == ["e", "\u05c8\u0301", "x"]
