"""What all kinds of tokenizer share: added tokens, frames, truncation, padding, places."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybert_family.error import Error
from tinybert_family.text import tokenizer
from tinybert_family.text.bytebpe import ByteBPE
from tinybert_family.text.metaspace import Metaspace
from tinybert_family.text.normalize import Normalizer, Replace, Strip
from tinybert_family.text.tokenizer import BRACKETS, Added
from tinybert_family.text.unigram import Unigram
from tinybert_family.text.wordpiece import SPECIAL, WordPiece

LETTERS = list("abcdefgh") + ["##" + c for c in "abcdefgh"]
PLAIN = WordPiece(SPECIAL + LETTERS)


def made(*added, **options):
    """A tokenizer of single letters with more added tokens."""
    tokens = [Added(name) for name in SPECIAL] + [Added(**token) for token in added]
    vocab = SPECIAL + LETTERS + [token["text"] for token in added]
    return WordPiece(vocab, added=tokens, **options)


# --- Added tokens ---------------------------------------------------------------------------------

@pytest.mark.parametrize("token, text, pieces", [
    ({}, "ab<t>cd", ["a", "##b", "<t>", "c", "##d"]),
    ({}, "a <t> b <T>", ["a", "<t>", "b", "[UNK]", "[UNK]", "[UNK]"]),
    ({"left": True}, "a  <t> b", ["a", "<t>", "b"]),
    ({"word": True}, "a<t> b", ["a", "[UNK]", "[UNK]", "[UNK]", "b"]),
    ({"word": True}, "a <t>, b", ["a", "<t>", "[UNK]", "b"]),
    ({"normal": True}, "a <T> b", ["a", "<t>", "b"]),
    ({"normal": True}, "a <t\u0301> [MASK]<T>", ["a", "<t>", "[MASK]", "<t>"]),
])
def test_flags_of_added_tokens(token, text, pieces):
    t = made(dict(text="<t>", **token))
    assert t.pieces(text) == pieces
    assert t.trace(text)[0] == t.encode(text)


def test_added_tokens_take_white_space_into_their_place():
    t = made(dict(text="<l>", left=True), dict(text="<r>", right=True))
    text = "a \t<l>\u3000<r>\n b"
    ids, places = t.trace(text)
    assert [t.vocab[i] for i in ids] == ["a", "<l>", "<r>", "b"]
    assert places == [(0, 1), (1, 6), (7, 12), (12, 13)]
    # What one token took, the next cannot take again.
    ids, places = t.trace("<r>  <l>")
    assert places == [(0, 5), (5, 8)]


def test_the_longest_added_token_wins():
    t = made(dict(text="<t>"), dict(text="<t><t>"), dict(text="<t>x"))
    assert t.pieces("<t><t><t>x<t>") == ["<t><t>", "<t>x", "<t>"]


@given(st.lists(st.text("ab(", min_size=1, max_size=4), min_size=1, max_size=6, unique=True),
       st.text("ab(", max_size=12))
def test_the_pattern_of_tokens_finds_the_longest(words, text):
    import re
    at, found = 0, []
    while at < len(text):
        here = [word for word in words if text.startswith(word, at)]
        if here:
            found.append(max(here, key=len))
        at += len(found[-1]) if here else 1
    assert re.findall(tokenizer.longest(words), text) == found


def test_white_space_that_another_token_took_is_no_token():
    t = made(dict(text="<r>", right=True), dict(text=" ", left=True))
    text = "a<r> b c"
    assert t.pieces(text) == ["a", "<r>", "b", " ", "c"]
    assert t.trace(text)[1] == [(0, 1), (1, 5), (5, 6), (6, 7), (7, 8)]


def test_a_token_that_normalises_to_nothing_is_refused():
    with pytest.raises(Error, match="normalises to nothing"):
        made(dict(text="\u200b", normal=True)).encode("a")


def test_only_the_first_word_of_a_text_is_marked_where_that_is_the_rule():
    rules = dict(rules=[Metaspace(prepend="first")], roles=BRACKETS)
    vocab = [*BRACKETS.values(), "a", "▁a", "▁", "b", "<t>"]
    scores = [0.0] * 5 + [-1.0, -1.0, -2.0, -3.0]
    for normal in None, Normalizer([Strip()]), Normalizer([Replace({"String": "ba"}, "a")]):
        for token in Added("<t>"), Added("<t>", normal=True):
            t = Unigram(vocab, scores, normal=normal, added=[token], **rules)
            for text in ["a", " a", "a<t>a", "<t>a", "ba", "\ta<t>", "ba<t> a", ""]:
                assert t.encode(text) == t.trace(text)[0], (text, normal, token)
    t = Unigram(vocab, scores, normal=Normalizer([Strip()]), **rules)
    assert (t.pieces("a"), t.pieces(" a")) == (["▁a"], ["a"])


def test_very_long_added_tokens_are_found():
    names = ["<" + "t" * n + ">" for n in (3, 90, 3000)] + ["x" * n for n in range(1, 150)]
    t = made(*({"text": name} for name in names))
    assert t.pieces("".join(names[:3]) + "a" + "x" * 150) == [*names[:3], "a", "x" * 149, "x"]


def test_a_normalised_token_decodes_in_its_normal_form():
    t = made(dict(text="<TÄG>", normal=True, special=False))
    assert t.pieces("x <täg> <TÄG>")[1:] == ["<TÄG>"] * 2
    assert t.decode(t.encode("a<TÄG>")) == "a <tag>"


@pytest.mark.parametrize("kind", [ByteBPE, Unigram])
def test_pieces_are_shown_in_one_way(kind):
    t = kind.train(["the mat and the hat, the log and the dog " * 9], 275 if kind is ByteBPE else 30)
    pieces = [t.shown(piece) for piece in t.pieces("the dogmat [MASK] the")]
    text = " ".join(pieces).replace(" ##", "").removeprefix("##")
    assert text.split()[0] == "the" and text.endswith("the") and "dogmat" in text
    assert all(piece == piece.strip() for piece in pieces)
    assert t.shown(t.roles["mask"]) == t.roles["mask"]
    assert PLAIN.shown("##a") == "##a"


# --- Frames, truncation, padding ------------------------------------------------------------------

def test_a_batch_has_the_published_layout():
    out = PLAIN(["a b", "c"], ["d", "e f g"])
    cls, sep, pad = PLAIN.cls, PLAIN.sep, PLAIN.pad
    a, b, c, d, e, f, g = (PLAIN.ids[x] for x in "abcdefg")
    assert out["input_ids"].tolist() == [[cls, a, b, sep, d, sep, pad],
                                         [cls, c, sep, e, f, g, sep]]
    assert out["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert out["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 7]
    assert all(array.dtype == np.int64 for array in out.values())


def test_what_is_asked_for_is_returned():
    out = PLAIN(["a b", "c"], return_offsets_mapping=True, return_special_tokens_mask=True,
                return_token_type_ids=False, padding_side="left")
    assert sorted(out) == ["attention_mask", "input_ids", "offset_mapping", "special_tokens_mask"]
    assert out["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert out["special_tokens_mask"].tolist() == [[1, 0, 0, 1], [1, 1, 0, 1]]
    places = [[[0, 0], [0, 1], [2, 3], [0, 0]], [[0, 0], [0, 0], [0, 1], [0, 0]]]
    assert out["offset_mapping"].tolist() == places
    bare = PLAIN("a b", add_special_tokens=False)["input_ids"]
    assert bare.tolist() == [PLAIN.encode("a b")]


def test_models_without_types_get_none():
    t = WordPiece(PLAIN.vocab, inputs=("input_ids", "attention_mask"))
    assert sorted(t("a")) == ["attention_mask", "input_ids"]
    assert "token_type_ids" in t("a", return_token_type_ids=True)


@pytest.mark.parametrize("multiple, width", [(None, 5), (1, 5), (4, 8), (8, 8), (5, 5)])
def test_padding_to_a_multiple(multiple, width):
    out = PLAIN(["a b c", "a"], pad_to_multiple_of=multiple)
    assert out["input_ids"].shape == (2, width)


def test_padding_to_the_limit():
    assert PLAIN(["a"], max_length=9, padding="max_length")["input_ids"].shape == (1, 9)
    assert PLAIN(["a"], padding="max_length")["input_ids"].shape == (1, 3)
    assert PLAIN(["a"], padding=False)["input_ids"].shape == (1, 3)
    assert PLAIN([])["input_ids"].shape == (0, 0)
    out = PLAIN([], return_offsets_mapping=True)
    assert out["offset_mapping"].shape == (0, 0, 2)


@settings(max_examples=60)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(3, 14),
       st.sampled_from(["longest_first", "only_first", "only_second"]))
def test_truncation_takes_the_ends_and_no_more(first, second, limit, strategy):
    a, b = PLAIN.ids["a"], PLAIN.ids["b"]
    call = dict(texts=["a " * first], pairs=["b " * second], max_length=limit, truncation=strategy)
    over = first + second + 3 - limit
    alone = {"only_first": first, "only_second": second}.get(strategy)
    if alone is not None and over > 0 and over >= alone and limit > 3:
        with pytest.raises(Error, match="longest_first"):
            PLAIN(**call)
        return
    row = PLAIN(**call)["input_ids"][0].tolist()
    assert len(row) == min(limit, first + second + 3)
    left = [row.count(a), row.count(b)]
    if limit == 3:                          # room for the frame alone: both go
        assert left == [0, 0]
        return
    if over > 0 and strategy == "longest_first":
        assert all(n <= size for n, size in zip(left, (first, second)))
        # Nobody who is shortened ends up shorter than the other by more than one.
        cut = [n for n, size in zip(left, (first, second)) if n < size]
        assert all(n >= max(left) - 1 for n in cut)
    if strategy == "only_first":
        assert left[1] == second
    if strategy == "only_second":
        assert left[0] == first


def test_truncation_from_the_left_keeps_the_end():
    t = WordPiece(PLAIN.vocab, truncation_side="left", max_length=4)
    assert t.pieces("a b c d") == ["a", "b", "c", "d"]
    assert t("a b c d")["input_ids"].tolist() == [[t.cls, t.ids["c"], t.ids["d"], t.sep]]
    assert t("a b c", max_length=2)["input_ids"].tolist() == [[t.cls, t.sep]]
    assert t("a b c d", truncation=False)["input_ids"].shape == (1, 6)


@pytest.mark.parametrize("call, message", [
    (dict(texts=["a"], pairs=["b", "c"]), "1 texts but 2 pairs"),
    (dict(texts=["a", "a b"], padding=False), "padding=True"),
    (dict(texts=["a"], max_length=1), "at least 2"),
    (dict(texts=["a"], pairs=["b"], max_length=2), "at least 3"),
    (dict(texts=["a b"], truncation="shortest"), "truncation='shortest': choose one of True"),
    (dict(texts=["a b"], padding="most"), "padding='most': choose"),
    (dict(texts=["a b"], max_length=9, pad_to_multiple_of=4), "9 is no multiple of .* 4"),
    (dict(texts=["a b"], padding_side="top"), "padding_side='top'"),
    (dict(texts=["a b"], max_length=3, truncation="only_second"), "needs pairs"),
    (dict(texts=5), "a list of them, not int"), (dict(texts=["a"], pairs=5), "not int"),
    (dict(texts=["a"], max_length="3"), "max_length='3': give a whole number"),
    (dict(texts=["a"], max_length=2.5), "max_length=2.5"),
    (dict(texts=["a"], max_length=10 ** 30, padding="max_length"), "max_length=10"),
    (dict(texts=["a"], pad_to_multiple_of=-8), "pad_to_multiple_of=-8"),
    (dict(texts=[b"a"]), "not bytes"),
    (dict(texts=[None]), "not NoneType"),
    (dict(texts=["a\ud800"]), "U\\+D800"),
    (dict(texts=["a\udfff"], return_offsets_mapping=True), "U\\+DFFF"),
])
def test_bad_calls_are_refused_in_one_line(call, message):
    with pytest.raises(Error, match=message) as caught:
        PLAIN(**call)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_its_special_tokens_is_refused():
    roles = {**BRACKETS, "mask": "<mask>"}
    with pytest.raises(Error, match="lacks <mask>"):
        WordPiece(SPECIAL + LETTERS, roles=roles)


# --- Places ---------------------------------------------------------------------------------------

@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("abAB é[]博\u0301 \n"),
               max_size=30))
def test_places_rise_and_stay_inside(text):
    ids, places = PLAIN.trace(text)
    assert ids == PLAIN.encode(text) and len(places) == len(ids)
    assert all(0 <= start < end <= len(text) for start, end in places)
    assert places == sorted(places)


def test_places_point_at_the_original_text():
    text = "Äb, [MASK] c\u200bd\u0301 博"
    ids, places = PLAIN.trace(text)
    words = [text[start:end] for start, end in places]
    assert words == ["Ä", "b", ",", "[MASK]", "c", "d", "博"]
