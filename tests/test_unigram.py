"""Unigram by itself: every way to cut a word, counted; what is remembered against what is thought
through anew; how a vocabulary is learnt; files; what is refused.
"""
import itertools
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybert_family.error import Error
from tinybert_family.text import sentencepiece, unigram, unigram_training
from tinybert_family.text.metaspace import Metaspace, Punctuation, SentencePiece, WhitespaceSplit
from tinybert_family.text.normalize import Form, Lowercase, Normalizer, Replace, Strip
from tinybert_family.text.tokenizer import ROLES
from tinybert_family.text.unigram import SPECIAL, Unigram

ROLE_NAMES = dict(zip(ROLES, SPECIAL))


def make(scores, **options):
    """{piece: score} -> a tokenizer with the special tokens before these pieces"""
    vocab = [*SPECIAL, *scores]
    return Unigram(vocab, [0.0] * len(SPECIAL) + list(scores.values()), ROLE_NAMES, **options)


def ways(word):
    """All cuts of a word"""
    for size in range(len(word)):
        for cuts in itertools.combinations(range(1, len(word)), size):
            borders = [0, *cuts, len(word)]
            yield [word[a:b] for a, b in zip(borders, borders[1:])]


def score_of(way, scores, unknown):
    """None if a piece of several characters does not exist"""
    if any(piece not in scores and len(piece) > 1 for piece in way):
        return None
    return sum(scores.get(piece, unknown) for piece in way)


# --- Cutting --------------------------------------------------------------------------------------

def test_the_best_of_all_ways():
    """Five pieces, worked by hand: ab + c has -3, a + bc has -3.5, a + b + c cannot be (no b), abc
    alone would be -4."""
    ours = make({"a": -1.0, "c": -1.0, "ab": -2.0, "bc": -2.5, "abc": -4.0})
    assert ours.cut("abc") == ([ours.ids["ab"], ours.ids["c"]], [2, 1])
    assert ours.cut("bc") == ([ours.ids["bc"]], [2])
    # b alone is unknown and costs -4 - 10; so do two, which make one token.
    assert ours.cut("ba") == ([ours.unk, ours.ids["a"]], [1, 1])
    assert ours.cut("bxac") == ([ours.unk, ours.ids["a"], ours.ids["c"]], [2, 1, 1])
    assert ours.cut("") == ([], [])


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.floats(-9, -0.5), min_size=1),
       st.text("abcd", min_size=1, max_size=8))
def test_a_word_is_cut_the_best_of_all_ways(scores, word):
    ours = make(scores)
    unknown = min(scores.values()) - 10
    best = max(score for way in ways(word)
               if (score := score_of(way, scores, unknown)) is not None)
    ids, sizes = ours.cut(word)
    assert sum(sizes) == len(word)
    found, at = 0.0, 0
    for id_, size in zip(ids, sizes):
        piece = word[at:at + size]
        assert id_ == ours.unk or ours.vocab[id_] == piece
        found += unknown * size if id_ == ours.unk else scores[piece]
        at += size
    assert math.isclose(found, best, rel_tol=1e-12)
    assert list(ours._best(word)[0]) == ids == list(ours._word(word)[0])


def test_of_equals_the_last_piece_is_the_longest():
    ours = make({"a": -1.0, "aa": -1.0})
    assert ours.pieces("") == []
    assert [ours.vocab[i] for i in ours.cut("aaa")[0]] == ["a", "aa"]


def test_single_precision_decides_between_equals():
    """a + b and ab have the same score but for rounding; which is taken depends on the sum of all
    that stands before."""
    scores = {"▁": -1.7, "a": -2.3, "b": -3.1, "ab": -5.4}
    scores = {piece: float(np.float32(score)) for piece, score in scores.items()}
    whole = make(scores, rules=[SentencePiece(silent=range(5))])
    for text in ("ab " * n for n in range(1, 60)):
        total, expected = np.float32(0), []
        for c in ("▁" + text.strip().replace(" ", "▁")).split("▁")[1:]:
            assert c == "ab"
            total = total + np.float32(-1.7)
            parts = total + np.float32(-2.3) + np.float32(-3.1)
            joined = total + np.float32(-5.4)
            expected += ["▁"] + (["ab"] if joined >= parts else ["a", "b"])
            total = max(joined, parts)
        assert whole.pieces(text.strip()) == expected
    assert {"ab", "a"} < set(expected)          # both do occur


def test_bytes_spell_what_no_piece_covers():
    spelt = {f"<0x{byte:02X}>": -20.0 for byte in range(256)}
    ours = make({"▁": -1.0, "a": -2.0, **spelt}, byte_fallback=True)
    assert ours.pieces("aé") == ["▁", "a", "<0xC3>", "<0xA9>"]
    assert ours.trace("aéa")[1] == [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3)]
    assert ours.decode(ours.encode("a é😂a")) == "a é😂a"
    assert ours.decode([ours.ids["a"], ours.ids["<0xC3>"], ours.ids["a"]]) == "a\ufffda"


def test_long_words_take_their_time_but_no_more():
    """The work per character stays what it is, however long the word is."""
    ours = make({"▁": -1.0, "a": -2.0, "aa": -3.0, "b" * 16: -4.0})
    asked, fitting = Counter(), ours.fitting

    def counted(word, start):
        asked[len(word)] += 1
        return fitting(word, start)
    ours.fitting = counted
    for size in (1000, 100_000):
        ids, sizes = ours.cut("▁" + "a" * size)
        assert sum(sizes) == size + 1 and len(ids) == size // 2 + 1
        assert asked[size + 1] == size + 1
    assert len(ours.encode("a" * 100_000)) == 50_001
    assert ours.encode("x" * 100_000) == [ours.ids["▁"], ours.unk]


# --- The fast way and the plain one ---------------------------------------------------------------

PIECES = {"▁": -2.0, "▁the": -3.0, "the": -4.5, "▁a": -3.5, "a": -4.0, "aa": -5.0, "aaa": -6.5,
          "b": -4.2, "ab": -5.1, ",": -3.3, "▁,": -6.0, ".": -4.0, "e": -4.4, "h": -5.0, "t": -4.0}
NEWER = [Replace({"Regex": r"\s{2,}|[\n\r\t]"}, " "), Form("NFC"), Strip(False, True)]
KINDS = [
    dict(), dict(normal=Normalizer(unigram.plain_steps())),
    dict(rules=[WhitespaceSplit(), Punctuation(), Metaspace()]),
    dict(rules=[Metaspace()], normal=Normalizer(NEWER)),
    dict(rules=[Metaspace(prepend="first")], normal=Normalizer(NEWER)),
    dict(rules=[Metaspace(prepend="never")]), dict(rules=[Metaspace(split=False)]),
    dict(rules=[Punctuation(), Metaspace()], normal=Normalizer([Lowercase(), *NEWER])),
    dict(rules=[WhitespaceSplit(), Metaspace(prepend="first")]),
    dict(rules=[SentencePiece(silent=range(5))],
         normal=unigram.normalizer_of(sentencepiece.Model([])))]
TEXTS = st.text(st.sampled_from("aaab the,.e   \n\t\x1c\xa0\u0301\u2003\u200d\u3000▁é¨中x"), max_size=30)


@pytest.mark.parametrize("options", KINDS, ids=range(len(KINDS)))
def test_the_fast_way_is_the_plain_way(options):
    ours = make(PIECES, **options)

    @settings(deadline=None, max_examples=300)
    @given(TEXTS, st.booleans())
    def check(text, first):
        if first:
            assert ours.encode(text) == ours.trace(text)[0]
        clean, spans = ours.normal.aligned(text)
        words = ours.words(clean, [(a + 1 - first, b) for a, b in spans], first)
        assert ours._ids(text, first) == [i for word, _ in words for i in ours.cut(word)[0]]
    check()


def test_places_in_the_text():
    ours = make(PIECES)
    ids, places = ours.trace("  the ab,")
    assert [ours.vocab[i] for i in ids] == ["▁the", "▁", "ab", ","]
    assert places == [(2, 5), (6, 7), (6, 8), (8, 9)]       # a "▁" that is put in front has none
    batch = ours("the [MASK]", return_offsets_mapping=True)
    assert batch["input_ids"].tolist() == [[2, ours.ids["▁the"], 4, 3]]
    assert batch["offset_mapping"].tolist() == [[[0, 0], [0, 3], [4, 10], [0, 0]]]


def test_decoding():
    ours = make(PIECES)
    assert ours.decode(ours.encode("the a ,")) == "the a ,"
    ids = ours("the a")["input_ids"][0]
    assert ours.decode(ids) == "[CLS] the a[SEP]"
    assert ours.decode(ids, skip_special_tokens=True) == "the a"


# --- Learning -------------------------------------------------------------------------------------

WORDS = {"▁the": 50, "▁then": 20, "▁they": 17, "▁other": 9, "▁mother": 8, "▁her": 11, "▁on": 30,
         "▁one": 12, "▁none": 4, "▁,": 40, "▁thee": 2, "▁nothe": 1}


def small(words=WORDS):
    columns = unigram_training.Columns(words, unigram_training.alphabet(words, 99))
    return unigram_training.Model(columns)


def named(model):
    return [model.columns.spell(*place) for place in model.where.T]


def test_seeds_come_again_and_go_on_differently():
    pieces = set(named(small()))
    assert pieces >= {"the", "ther", "▁on", "one", "mother"[1:], "▁thee"} | set("▁theyrmon,")
    assert "▁t" not in pieces           # always followed by h
    assert "▁nothe" not in pieces       # once, in one word


def test_expected_counts_are_those_of_all_ways():
    model = small()
    scores = dict(zip(named(model), model.logs))
    counts, total = Counter(), 0.0
    for word, n in WORDS.items():
        found = [(math.exp(score), way) for way in ways(word)
                 if (score := score_of(way, scores, -math.inf)) not in (None, -math.inf)]
        whole = sum(p for p, _ in found)
        total += n * math.log(whole)
        for p, way in found:
            for piece in way:
                counts[piece] += n * p / whole
    expected, likelihood = model.expected()
    np.testing.assert_allclose(expected, [counts[piece] for piece in named(model)], rtol=1e-10)
    assert math.isclose(likelihood, total, rel_tol=1e-12)


def test_every_step_of_em_makes_the_text_more_probable():
    """With plain probabilities, count / sum, that is a theorem."""
    model, last = small(), -math.inf
    for _ in range(30):
        counts, likelihood = model.expected()
        assert likelihood >= last - 1e-9 * abs(likelihood)
        model.logs, last = np.log(np.maximum(counts, 1e-300) / counts.sum()), likelihood
    assert likelihood > -1300


def test_learning_makes_the_text_more_probable(monkeypatch):
    """As it is done: digamma, and the rare pieces dropped; the two steps of each round."""
    seen, expected = [], unigram_training.Model.expected

    def noted(self):
        found = expected(self)
        seen.append((len(self), found[1]))
        return found
    monkeypatch.setattr(unigram_training.Model, "expected", noted)
    unigram_training.learn(count(), 120)
    assert len(seen) > 8
    assert all(second > first for (_, first), (_, second) in zip(seen[::2], seen[1::2]))
    assert [size for size, _ in seen] == sorted((size for size, _ in seen), reverse=True)


def test_digamma():
    gamma = 0.5772156649015329
    known = {1: -gamma, 2: 1 - gamma, 0.5: -gamma - 2 * math.log(2), 10: 2.251752589066721}
    found = unigram_training.digamma(list(known))
    np.testing.assert_allclose(found, list(known.values()), rtol=1e-9)


def test_a_piece_is_replaced_by_the_best_way_without_it():
    model = small()
    pieces = named(model)
    scores = dict(zip(pieces, model.logs))
    used = model.viterbi()
    best, others, parts = model.replaced(used)
    for i, piece in enumerate(pieces):
        found = [(score, way) for way in ways(piece) if len(way) > 1
                 and (score := score_of(way, scores, -math.inf)) not in (None, -math.inf)]
        if len(piece) == 1:
            assert best[i] == -math.inf
            continue
        score, way = max(found)
        assert math.isclose(best[i], score, rel_tol=1e-12) and parts[i] == len(way)
        number = {piece: i for i, piece in enumerate(pieces)}
        total = sum(math.log(max(used[number[x]] + used[i], 1e-300)) for x in way)
        assert math.isclose(others[i], total, rel_tol=1e-12)


def test_pruning_keeps_the_letters():
    model = small()
    letters = {piece for piece in named(model) if len(piece) == 1}
    model.prune(len(letters) + 3)
    assert letters < set(named(model)) and len(model) <= len(letters) + 3
    assert model.viterbi().sum() > 0


TEXT = "We the people, in order to form a more perfect tokenizer, do ordain this text."


def texts():
    draw = random.Random(0)
    parts = "ka lo mi ne ru sta pre ing tion er ly un the and of to be".split()
    words = ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(400)]
    return [" ".join(draw.choices(words, range(400, 0, -1), k=12)) for _ in range(300)] + [TEXT] * 20


def count():
    return unigram.count_words(make({"▁": -1.0}), texts())


def test_training_is_deterministic_and_exact():
    told = []
    first = Unigram.train(texts(), 150, progress=lambda done, size: told.append((done, size)))
    again = Unigram.train(reversed(texts()), 150)
    assert first.vocab == again.vocab and first.scores == again.scores
    assert first.size == 150 and first.vocab[:5] == list(SPECIAL)
    assert first.scores[5:] == sorted(first.scores[5:], reverse=True)
    assert told == sorted(told) and told[-1] == (145, 145) and len(told) > 5
    assert all(done <= size == 145 for done, size in told)
    assert first.unk not in first.encode(TEXT)
    assert first.decode(first.encode(TEXT)) == TEXT.lower()
    letters = set(TEXT.lower()) - {" "}
    assert letters <= set(first.vocab)


def test_a_text_that_has_no_more():
    ours = Unigram.train(["aaa bbb aaa bbb aaa"], 5000)
    assert ours.size < 30 and ours.pieces("aaa bbb") == ["▁aaa", "▁bbb"]
    assert Unigram.train("ab [MASK] <pad> ab", 100).vocab.count("<pad>") == 1
    assert Unigram.train(["AB Ab"] * 5, 100, lower=False).pieces("AB") == ["▁AB"]


@pytest.mark.parametrize("given, told", [
    ([], "no words"), ([" \n "], "no words"), ([b"abc"], "bytes"), (["abcdefghij"], "too few")])
def test_what_nothing_can_be_learnt_from(given, told):
    with pytest.raises(Error, match=told):
        Unigram.train(given, 10)


# --- Files ----------------------------------------------------------------------------------------

def test_saved_and_loaded(tmp_path):
    trained = Unigram.train(texts(), 150)
    for ours in (trained, make(PIECES), make(PIECES, **KINDS[-1]), make(PIECES, **KINDS[2])):
        ours.save(tmp_path / "made")
        again = Unigram.load(tmp_path / "made")
        assert again.to_json() == ours.to_json()
        for text in [TEXT, "aaaaaaaaaaaa, the  ab\tx", "[MASK]the", "中 é"]:
            assert again.encode(text) == ours.encode(text)
            assert again.trace(text) == ours.trace(text)


def test_a_score_is_read_as_others_read_it():
    assert unigram.as_read(-13.532299041748047) == -13.532299041748049      # 17 digits
    assert unigram.as_read(-8.063311576843262) == -8.063311576843262
    assert unigram.as_read(-1e-7) == -1e-7 and unigram.as_read(0.0) == 0.0


GOOD = dict(normalizer=None, pre_tokenizer={"type": "Metaspace"}, decoder={"type": "Metaspace"},
            model=dict(type="Unigram", unk_id=1, vocab=[[piece, -1.0] for piece in SPECIAL]))


def changed(path, value):
    """GOOD with one field in it, or a section as a whole, replaced."""
    whole = json.loads(json.dumps(GOOD))
    *section, field = path.split(".")
    (whole[section[0]] if section else whole)[field] = value
    return whole


@pytest.mark.parametrize("path, value, told", [
    ("model.unk_id", None, "model.unk_id is None"), ("model.unk_id", 9, "model.unk_id is 9"),
    ("model.vocab", [["<pad>", -1], ["<unk>"], 0, 0, 0], r"model.vocab\[1\]"),
    ("model.vocab", [["<pad>", float("nan")], *[[x, 0.0] for x in SPECIAL[1:]]], "finite"),
    ("model.byte_fallback", 1, "byte_fallback is 1"),
    ("pre_tokenizer", None, "pre_tokenizer is None"),
    ("pre_tokenizer", {"type": "ByteLevel"}, "pre_tokenizer is 'ByteLevel'"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}]}, "Metaspace"),
    ("pre_tokenizer.prepend_scheme", "last", "prepend_scheme is 'last'"),
    ("pre_tokenizer", {"type": "Metaspace", "add_prefix_space": False, "prepend_scheme": "first"},
     "never where"),
    ("pre_tokenizer.replacement", "ab", "one character"), ("pre_tokenizer.split", 0, "split is 0"),
    ("pre_tokenizer.sentencepiece", 3, "list of ids"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [
        {"type": "Punctuation", "behavior": "Removed"}, {"type": "Metaspace"}]}, "Removed"),
    ("decoder", None, "decoder is None"), ("decoder", {"type": "BPEDecoder"}, "BPEDecoder"),
    ("normalizer", {"type": "BertNormalizer"}, "BertNormalizer")])
def test_files_that_are_refused(path, value, told):
    with pytest.raises(Error, match=told) as caught:
        Unigram.from_json(changed(path, value), "t.json", list(SPECIAL),
                          roles=dict(ROLE_NAMES))
    assert "\n" not in str(caught.value)


def test_the_older_name_of_an_option():
    never = {"type": "Metaspace", "add_prefix_space": False, "replacement": "_"}
    whole = dict(changed("decoder", never), pre_tokenizer=never)
    t = Unigram.from_json(whole, "t.json", list(SPECIAL), roles=dict(ROLE_NAMES))
    rule = t.rules[-1]
    assert (rule.mark, rule.prepend) == ("_", "never")
    assert [word for word, _ in t.words("a b", None)] == ["a", "_b"]


@pytest.mark.parametrize("text, told", [(b"ab", "bytes"), (None, "None"), ("a\ud800b", "U.D800")])
def test_texts_that_are_none(text, told):
    with pytest.raises(Error, match=told):
        make(PIECES).encode(text)


def test_pieces_twice():
    with pytest.raises(Error, match="'a' twice"):
        Unigram([*SPECIAL, "a", "a"], [0.0] * 7, ROLE_NAMES)
