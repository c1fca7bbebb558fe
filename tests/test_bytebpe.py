"""Byte-level BPE without its peers: by hand, against the plainest algorithm, and at its limits."""
import json
import random
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybert_family.error import Error
from tinybert_family.text import bytebpe
from tinybert_family.text.bytebpe import BYTE, LETTER, SPECIAL, ByteBPE, read_merges, spelt, split
from tinybert_family.text.characters import spans, within
from tinybert_family.text.normalize import Form, Normalizer
from tinybert_family.text.tokenizer import BRACKETS, Added

TEXTS = ["low lower lowest", "new newer newest", "wide wider widest", "the naïve café, isn't it?"]
CHARACTERS = st.characters(exclude_categories=["Cs"])


def model(merges, **options):
    """All bytes, the merges given as "a b, ab c", and their products."""
    pairs = [pair.split(" ") for pair in merges.split(", ") if pair]
    pieces = [a + b for a, b in pairs]
    return ByteBPE(list(dict.fromkeys([*SPECIAL, *sorted(BYTE), *pieces])), pairs, **options)


# --- Bytes and words ------------------------------------------------------------------------------

def test_bytes_have_a_character_each():
    assert len(LETTER) == len(BYTE) == 256
    assert spelt("the naïve\n") == "theĠnaÃ¯veĊ"
    assert not any(c.isspace() or unicodedata.category(c)[0] == "C" for c in BYTE)


@pytest.mark.parametrize("text, words", [
    ("the cat sat.", ["the", " cat", " sat", "."]),
    ("we'll say 'S isn't", ["we", "'ll", " say", " '", "S", " isn", "'t"]),
    ("in 1984, 3½", ["in", " 1984", ",", " 3½"]),
    ("a  b   c ", ["a", " ", " b", "  ", " c", " "]),
    ("a\n\nb \n c\t", ["a", "\n", "\n", "b", " \n", " c", "\t"]),
    ("a\x1cb\x85\xa0c\u3000d", ["a", "\x1c", "b", "\x85", "\xa0", "c", "\u3000", "d"]),
    ("привет, 中文!", ["привет", ",", " 中文", "!"]), ("", []), (" ", [" "])])
def test_words(text, words):
    assert split(text) == words
    assert bytebpe.find_words(text) == words


@pytest.mark.skipif(unicodedata.unidata_version < "14", reason="`regex` knows Unicode 14 or later")
def test_letters_and_numbers_are_those_of_unicode_16():
    """By the tables and this Python's Unicode version the kinds are those that `regex`'s version
    and the tables give."""
    texts = bytebpe.LETTERS, bytebpe.NUMBERS, bytebpe.NEITHER
    tables = [(kind, spans(text)) for kind, text in zip("LN-", texts)]

    def kind_of(c):
        listed = [kind for kind, table in tables if within(ord(c), table)]
        return (listed or [unicodedata.category(c)[0]])[0]

    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    for run in bytebpe.find_words(everything):          # neighbours of the same kind
        kinds = {kind if kind in "LN" else "-" for kind in map(kind_of, run.strip(" "))}
        letters, numbers = [len(bytebpe.find_words(sign + run)) == 1 for sign in "a1"]
        assert kinds == {"L" if letters else "N" if numbers else "-"}, run


# --- Cutting --------------------------------------------------------------------------------------

@pytest.mark.parametrize("merges, word, pieces", [
    ("", "low", "l o w"),
    ("l o, lo w, e r", "lower", "low er"),
    ("e r, l o, lo w, low er", "lower", "lower"),
    # The best pair first, wherever it stands: bc is glued before a b comes to it.
    ("b c, a b", "abc", "a bc"),
    ("a b, b c", "abc", "ab c"),
    # Of equal pairs the leftmost, and a letter is used only once.
    ("a a", "aaaaa", "aa aa a"),
    ("a a, aa a", "aaaaa", "aa aaa"),
    ("a a, aa aa", "aaaaa", "aaaa a"),
    # In the vocabulary, but not reached by merges: ab takes the b away from bc.
    ("a b, b c, a bc", "abc", "ab c"),
    ("Ġ t, h e, Ġt he", " the", "Ġthe"), ("Ã ¯", "naïve", "n a Ã¯ v e")])
def test_cutting_by_hand(merges, word, pieces):
    tokenizer = model(merges)
    assert tokenizer.pieces(word) == pieces.split()
    ids, sizes = tokenizer.cut(spelt(word))
    assert [tokenizer.vocab[i] for i in ids] == pieces.split()
    assert sizes == [len(piece) for piece in pieces.split()]


def naive(tokenizer, word):
    """Look at all pairs, glue the leftmost of the best rank, and so on."""
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    parts = list(spelt(word))
    while True:
        pairs = enumerate(zip(parts, parts[1:]))
        found = [(ranks[pair], at) for at, pair in pairs if pair in ranks]
        if not found:
            return parts
        at = min(found)[1]
        parts[at:at + 2] = [parts[at] + parts[at + 1]]


def random_model(draw, count):
    """Merges in any order, so that a later one may be needed for an earlier one."""
    pieces, merges = list("abcĠ"), []
    for _ in range(count):
        pair = draw.choice(pieces), draw.choice(pieces)
        if pair not in merges and len(pair[0] + pair[1]) < 9:
            merges.append(pair)
            pieces.append(pair[0] + pair[1])
    draw.shuffle(merges)
    return model(", ".join(map(" ".join, merges)))


@pytest.mark.parametrize("seed", range(20))
def test_both_ways_of_gluing_do_what_the_plainest_does(seed, monkeypatch):
    draw = random.Random(seed)
    tokenizer = random_model(draw, draw.randint(1, 60))
    for _ in range(60):
        word = "".join(draw.choices("abc", k=draw.choice([1, 2, 5, 12, 40])))
        expected = naive(tokenizer, word)
        for limit in (0, 10**6):
            monkeypatch.setattr(bytebpe, "LONG", limit)
            found = tokenizer.glue([tokenizer.bytes[byte] for byte in word.encode()])
            assert [tokenizer.vocab[i] for i in found] == expected


def test_a_word_without_end_takes_seconds():
    tokenizer = ByteBPE.train(["ab" * 50, "a" * 100, "lorem ipsum " * 9] * 3, 300)
    for text in ("a" * 300_000, "ab" * 150_000, "loremipsum" * 30_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("a" * 300_000)) < 100_000


# --- Encoding, and back ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def small():
    return ByteBPE.train(TEXTS * 3, 330)


# The letters of words that it knows, what is white, what is odd.
KNOWN = st.sampled_from("lower newest'\t\n\r \u2028\u3000\xa0\x1c\x85é")
HARD = st.text(st.one_of(KNOWN, CHARACTERS))


def plainly(tokenizer, text):
    normal = tokenizer.normal(text)
    return [i for word, _ in tokenizer.words(normal, [(0, 0)] * len(normal))
            for i in tokenizer.cut(word)[0]]


@settings(deadline=None, max_examples=500)
@given(HARD)
def test_what_is_encoded_is_decoded_again(small, text):
    assert small.decode(small.encode(text)) == text


@settings(deadline=None, max_examples=500)
@given(HARD, st.booleans(), st.booleans())
def test_the_fast_way_is_the_plain_way(small, text, prefix, use_regex):
    small.runs.clear()
    small.heads.clear()
    other = ByteBPE(small.vocab, small.merges, prefix_space=prefix, use_regex=use_regex,
                    normal=Normalizer([Form("NFC")]))
    for tokenizer in (small, other):
        ids = tokenizer._ids(text)
        assert ids == plainly(tokenizer, text) == tokenizer._ids(text)
        if not any(name in text for name in SPECIAL):
            assert tokenizer.trace(text)[0] == ids


def test_runs_are_cut_where_no_word_is():
    for text in ("a b", " a", "a ", "a  b", "a \n b", "a\n b", "a\n  b", "  ", "", "a \u3000 b c"):
        first, *rest = bytebpe.runs_of(text)
        assert first + "".join(" " + run for run in rest) == text
        assert split(first) + [word for run in rest for word in split(" " + run)] == split(text)


def test_places():
    tokenizer = model("Ġ t, h e, Ġt he")
    ids, places = tokenizer.trace("the é\n the <mask>x")
    text = "the é\n the <mask>x"
    assert [tokenizer.vocab[i] for i in ids] == [
        "t", "he", "Ġ", "Ã", "©", "Ċ", "Ġthe", "<mask>", "x"]
    # The parts of é both stand where it stands; the space before a word is not part of its place.
    assert places == [(0, 1), (1, 3), (4, 4), (4, 5), (4, 5), (5, 6), (7, 10), (11, 17), (17, 18)]
    assert [text[a:b] for a, b in places][-3:] == ["the", "<mask>", "x"]
    whole = model("Ġ t, h e, Ġt he", trim=False).trace(text)[1]
    assert whole[2] == (3, 4) and whole[6] == (6, 10) and whole[7] == (10, 17)
    # A space that was put before the text takes no place.
    assert model("Ġ t, h e, Ġt he", prefix_space=True).trace("the the")[1] == [(0, 3), (4, 7)]


def test_a_space_before_the_first_word():
    tokenizer = model("Ġ a", prefix_space=True)
    assert tokenizer.pieces("a a") == tokenizer.pieces(" a a") == ["Ġa", "Ġa"]
    assert tokenizer.pieces("a<mask>a") == ["Ġa", "<mask>", "Ġa"]
    assert tokenizer.pieces("\na") == ["Ġ", "Ċ", "a"]
    assert tokenizer.pieces("") == []


def test_bytes_that_the_vocabulary_lacks():
    vocab = [*SPECIAL, "a", "b", "ab"]
    assert ByteBPE(vocab, ["a b"]).pieces("axb") == ["ab"]          # dropped
    unknown = ByteBPE(vocab, ["a b"], unk_token="<unk>")
    assert unknown.pieces("axxb ab") == ["a", "<unk>", "<unk>", "b", "<unk>", "ab"]
    assert unknown.trace("axé")[1] == [(0, 1), (1, 2), (2, 3), (2, 3)]


def test_a_word_that_is_a_piece_is_not_cut_where_merges_are_ignored():
    vocab = list(dict.fromkeys([*SPECIAL, *sorted(BYTE), "abc", "ab"]))
    assert ByteBPE(vocab, ["a b"]).pieces("abc") == ["ab", "c"]
    ignoring = ByteBPE(vocab, ["a b"], ignore_merges=True)
    assert ignoring.pieces("abc abc") == ["abc", "Ġ", "ab", "c"]
    assert ignoring.cut("abc") == ([ignoring.ids["abc"]], [3])


def test_pieces_become_text():
    tokenizer = ByteBPE.train(TEXTS, 300, special=[*SPECIAL, "[a b]", "é"])
    assert tokenizer.text_of(["Ã", "©", "Ġx"]) == "é x"
    assert tokenizer.text_of(["Ã", "Ġx", "©"]) == "\ufffd x\ufffd"
    assert tokenizer.text_of(["[a b]", "ĠÃ", "©"]) == "[a b] é"     # not spelt in bytes: as it is
    assert tokenizer.text_of(["é"]) == "\ufffd"                     # but this might be
    ids = tokenizer.encode("low <mask> low")
    assert tokenizer.decode(ids) == "low<mask> low"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "low low"


def test_halves_of_characters_are_refused(small):
    for use_regex in (True, False):
        tokenizer = ByteBPE(small.vocab, small.merges, use_regex=use_regex)
        for text in ("\ud800", "low \udfff"):
            for encode in (tokenizer.encode, tokenizer.trace):
                with pytest.raises(Error, match="half a surrogate pair"):
                    encode(text)


# --- Frames and files -----------------------------------------------------------------------------

def test_frames():
    angles = ByteBPE.train(TEXTS, 270)
    assert angles.pieces("<s> <mask>") == ["<s>", "<mask>"]
    out = angles("a", "b")
    row = [angles.vocab[i] for i in out["input_ids"][0]]
    assert row == ["<s>", "a", "</s>", "</s>", "b", "</s>"] and "token_type_ids" not in out
    brackets = ByteBPE.train(TEXTS, 270, special=BRACKETS.values())
    out = brackets("a", "b")
    row = [brackets.vocab[i] for i in out["input_ids"][0]]
    assert row == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]
    assert out["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


@pytest.mark.parametrize("options", [
    {}, {"prefix_space": True}, {"special": tuple(BRACKETS.values())}, {"trim": False},
    {"normal": Normalizer([Form("NFC")])}, {"use_regex": False, "ignore_merges": True}], ids=str)
def test_saved_and_loaded(tmp_path, options):
    ours = ByteBPE.train(TEXTS * 2, 320, **options)
    ours.save(tmp_path)
    texts = ["lower  e\u0301 <mask> [MASK]\n", " the the"]
    again = ByteBPE.load(tmp_path)
    assert again.to_json() == ours.to_json() and set(again.added) == set(ours.added)
    assert [again.trace(text) for text in texts] == [ours.trace(text) for text in texts]
    if not {"normal", "use_regex"} & options.keys():        # of which merges.txt does not tell
        (tmp_path / "tokenizer.json").unlink()
        again = ByteBPE.load(tmp_path)
        assert [again.encode(text) for text in texts] == [ours.encode(text) for text in texts]


def test_merges_are_read(tmp_path):
    path, vocab = tmp_path / "merges.txt", {piece: i for i, piece in enumerate(["a", "b", "ab"])}
    for text in ("#version: 0.2\na b\n", "a b", "\n\na b\r\n\n"):
        path.write_text(text)
        assert read_merges(path, vocab) == [("a", "b")]


@pytest.mark.parametrize("text, message", [
    ("#version: 0.2\na b\nab\n", r"line 3 is 'ab'; a merge is two pieces"),
    ("a  b", r"line 1 is 'a  b'; a merge is two pieces"),
    ("a b c", r"line 1 is 'a b c'; a merge is two pieces"),
    ("a b\n\na c", r"line 3, 'a c': 'c' is not in the vocabulary"),
    ("a b\nb a", r"line 2, 'b a': 'ba' is not in the vocabulary"),
    ("a b\n\n\na b", r"line 4, 'a b', repeats .*line 1; remove one")])
def test_merges_that_cannot_be(tmp_path, text, message):
    path, vocab = tmp_path / "merges.txt", {piece: i for i, piece in enumerate(["a", "b", "ab"])}
    path.write_text(text)
    with pytest.raises(Error, match=re.escape(str(path)) + ".*" + message) as caught:
        read_merges(path, vocab)
    assert "\n" not in str(caught.value)


def whole_of(tokenizer, **changes):
    """tokenizer.json, and in it what is changed: "model.dropout" -> value"""
    whole = json.loads(json.dumps(tokenizer.to_json()))
    for name, value in changes.items():
        *path, last = name.split("__")
        place = whole
        for step in path:
            place = place[step]
        place[last] = value
    return whole


def read_again(tokenizer, whole):
    return ByteBPE.from_json(whole, "x/tokenizer.json", tokenizer.vocab, roles=tokenizer.roles)


@pytest.mark.parametrize("changes, message", [
    ({"model__dropout": 0.1}, "model.dropout is 0.1"),
    ({"model__end_of_word_suffix": "</w>"}, "model.end_of_word_suffix is '</w>'"),
    ({"model__continuing_subword_prefix": "##"}, "model.continuing_subword_prefix is '##'"),
    ({"model__byte_fallback": True}, "model.byte_fallback is True"),
    ({"model__fuse_unk": True}, "model.fuse_unk is True"),
    ({"model__unk_token": "[?]"}, r"model.unk_token is '\[\?\]'"),
    ({"model__ignore_merges": "no"}, "ignore_merges is 'no'; it must be true or false"),
    ({"pre_tokenizer__use_regex": 1}, "use_regex is 1; it must be true or false"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is 'Whitespace'"),
    ({"pre_tokenizer": None}, "pre_tokenizer is None"),
    ({"decoder": {"type": "WordPiece"}}, "decoder is 'WordPiece'"),
    ({"model__merges": {}}, "model.merges must be a list"),
    ({"model__merges": [["l", "o"], "l"]}, r"model.merges\[1\] is 'l'; a merge is two"),
    ({"model__merges": [["l", "o", "w"]]}, r"model.merges\[0\] is \['l', 'o', 'w'\]"),
    ({"model__merges": [["l", 1]]}, r"model.merges\[0\] is \['l', 1\]"),
    ({"model__merges": [7]}, r"model.merges\[0\] is 7; a merge is two pieces"),
    ({"model__merges": [["q", "z"]]}, r"model.merges\[0\], .*'qz' is not in the vocabulary"),
    ({"model__merges": ["l o", ["l", "o"]]}, r"model.merges\[1\], .*repeats .*merges\[0\]")],
    ids=str)
def test_a_file_that_is_not_understood(small, changes, message):
    with pytest.raises(Error, match="x/tokenizer.json.*" + message) as caught:
        read_again(small, whole_of(small, **changes))
    assert "\n" not in str(caught.value)


def test_a_file_written_by_others(small):
    level = small.to_json()["pre_tokenizer"]
    whole = whole_of(small, model__dropout=0, model__end_of_word_suffix="", decoder={
        "type": "Sequence", "decoders": [{"type": "ByteLevel"}]}, pre_tokenizer={
            "type": "Sequence", "pretokenizers": [level]},
        model__merges=[" ".join(pair) for pair in small.merges])
    assert read_again(small, whole).to_json() == small.to_json()


# --- Learning -------------------------------------------------------------------------------------

def test_learning_by_hand():
    # ab is there six times, then abc three; c d and Ġ ab thrice each, of which c has the lower id.
    tokenizer = ByteBPE.train(["abcd ab", "abcd ab", "abcd ab"], 5 + 256 + 5)
    assert tokenizer.merges == [("a", "b"), ("c", "d"), ("Ġ", "ab"), ("ab", "cd")]
    assert tokenizer.vocab[:5] == list(SPECIAL) and tokenizer.vocab[5:261] == sorted(BYTE)
    assert tokenizer.vocab[261:] == ["ab", "cd", "Ġab", "abcd"]     # no more pairs
    assert tokenizer.pieces("abcd ab") == ["abcd", "Ġab"]


def recounted(texts, size):
    """The plainest learning: count all pairs anew each time. For texts in which no piece comes
    about in two ways, where that is also what the published trainers do."""
    vocab = [*SPECIAL, *sorted(BYTE)]
    words, merges = [list(spelt(word)) for text in texts for word in split(text)], []
    while len(vocab) < size:
        ids, pairs = {piece: i for i, piece in enumerate(vocab)}, {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        pairs = {pair: n for pair, n in pairs.items() if n > 1}
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        vocab.append("".join(best))
        for word in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == best:
                    word[at:at + 2] = ["".join(best)]
                at += 1
    return merges


def test_learning_keeps_its_counts_right():
    draw = random.Random(1)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(300)]
    texts = [" ".join(draw.choices(words, k=12)) for _ in range(60)]
    merges = recounted(texts, 5 + 256 + 120)
    assert len(merges) == 120 == len(set(map("".join, merges)))
    assert ByteBPE.train(texts, 5 + 256 + 120).merges == merges


def test_learning_is_the_same_again_and_in_any_order():
    texts, seen = TEXTS * 2 + ["<mask> low", "aaaa aaa aa"], []
    first = ByteBPE.train(texts, 320, progress=lambda done, size: seen.append((done, size)))
    assert seen[-1] == (first.size, 320)
    assert ByteBPE.train(iter(texts[::-1]), 320).to_json() == first.to_json()
    assert ByteBPE.train("\n".join(texts), 320).size <= 320


def test_special_tokens_are_not_learnt_from():
    texts = ["a <mask> b<s>c"] * 5
    learnt = ByteBPE.train(texts, 400)
    assert learnt.merges == [("Ġ", "b")]
    assert ByteBPE.train(texts, 400, special=BRACKETS.values()).size > learnt.size
    more = ByteBPE.train(["xyz [X] xyz"] * 3, 400, special=[*SPECIAL, "[X]"])
    assert Added("[X]") in more.added and more.vocab[5] == "[X]"
    assert not any("X" in piece for piece in more.vocab[262:])


def test_counting_in_little_memory(monkeypatch):
    texts = [text for n in range(40) for text in (*TEXTS, f"rare{n} words")]
    whole = ByteBPE.train(texts, 300)
    monkeypatch.setattr(bytebpe, "COUNTED", 16)
    # What was seen once by then is forgotten; what is frequent is learnt as before.
    counts = bytebpe.count_words(whole, texts)
    assert counts["low"] == counts[" words"] == 40 and len(counts) < 40
    assert ByteBPE.train(texts, 300).merges == whole.merges


@pytest.mark.parametrize("call, message", [
    (lambda: ByteBPE.train(TEXTS, 260), "260 pieces: choose from 261, .* to 1048576"),
    (lambda: ByteBPE.train([b"x"], 300), "learnt from texts .*, not from bytes"),
    (lambda: ByteBPE.train(TEXTS, 300, special=["<s>", "</s>"]), "lack pad unk mask"),
    (lambda: ByteBPE.train(["\ud800"], 300), "half a surrogate pair"),
    (lambda: ByteBPE(["a"], []), "lacks <pad>"),
    (lambda: model("").encode(b"x"), "not bytes"),
    (lambda: ByteBPE([*SPECIAL, "a"], ["a b"]), r"merges\[0\], 'a b': 'b' is not in")],
    ids=range(7))
def test_refusals(call, message):
    with pytest.raises(Error, match=message):
        call()
