"""Where words begin, by the pieces of all three kinds of tokenizer."""
from types import SimpleNamespace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.text import corrupt, words
from tinybert_family.text.bytebpe import ByteBPE
from tinybert_family.text.unigram import Unigram
from tinybert_family.text.wordpiece import WordPiece

TEXT = "The unhappiest players (both of them) replayed it, unhappily: 12 times!"
TEXTS = [TEXT, "players played and replayed the unhappy play", "12 21 unhappily (both) happily"] * 3


def words_of(tokenizer, text, **how):
    """The text's words, as the pieces that make them up"""
    begins = words.begins_word(tokenizer, **how)
    assert begins.shape == (tokenizer.size,) and begins.dtype == bool
    ids = np.array(tokenizer.encode(text))
    unit = corrupt.units(begins[ids], np.zeros(len(ids), bool), np.zeros(len(ids), np.int64))
    return [[tokenizer.vocab[i] for i in ids[unit == u]] for u in range(unit[-1] + 1)]


def told(found):
    return " ".join("+".join(word) for word in found)


def test_wordpiece():
    assert told(words_of(WordPiece.train(TEXTS, 70), TEXT)) == (
        "the unhapp+##ies+##t players ( both o+##f the+##m ) replayed it , unhappily : 12 "
        "t+##im+##es !")


def test_unigram():
    assert told(words_of(Unigram.train(TEXTS, 35), TEXT)) == (
        "▁the ▁+u+n+h+a+p+p+i+e+s+t ▁+p+l+a+y+e+r+s ▁(both ▁+o+f ▁the+m ) ▁replayed ▁+i+t , "
        "▁unhappily : ▁+1+2 ▁+t+i+m+e+s !")


def test_bytes():
    assert told(words_of(ByteBPE.train(TEXTS, 300), TEXT)) == (
        "Th+e Ġunhapp+ies+t Ġ+players Ġ(+both Ġ+of Ġthe+m ) Ġreplayed Ġ+it , Ġunhappily : Ġ12 "
        "Ġ+tim+es !")


def a_vocabulary(kind, *pieces):
    if kind is WordPiece:
        return WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces])
    if kind is Unigram:
        special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
        roles = dict(zip(("pad", "unk", "cls", "sep", "mask"), special))
        vocab = special + list(pieces)
        return Unigram(vocab, [0.0] * len(vocab), roles)
    return ByteBPE(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *pieces], [])


@pytest.mark.parametrize("kind, yes, no", [
    (WordPiece, ["play", ",", "é", "中"], ["##ing", "##s"]),
    (Unigram, ["▁play", "▁", ",", "(", "«"], ["play", "ing", "...", "9", "é", "'s", "<0xC3>"]),
    (ByteBPE, ["Ġplay", "Ġ", "Ċ", ",", "(", "Ġ(", "Â«"], ["play", "ing", "...", "9", "Ã", "Ã©"]),
])
def test_piece_by_piece(kind, yes, no):
    tokenizer = a_vocabulary(kind, *yes, *no)
    begins = words.begins_word(tokenizer)
    assert begins.tolist() == [True] * (5 + len(yes)) + [False] * len(no)


def test_alberts_rule_for_what_is_not_english():
    """A piece with anything but letters a-z and common signs is a word of its own, also 's."""
    pieces = ["ing", "ING", "e.g", "...", "9", "é", "'s", "<0xC3>", "中", "▁a"]
    begins = words.begins_word(a_vocabulary(Unigram, *pieces), foreign=True)
    assert begins[5:].tolist() == [False] * 4 + [True] * 6


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(tbf.Error, match="Characters tokenizer; use one of WordPiece, Unigram, BPE"):
        words.begins_word(SimpleNamespace(KIND="Characters"))


@pytest.mark.parametrize("name, wanted", [
    ("bert-base-uncased", "the un+##ha+##pp+##iest players ( both of them ) replay+##ed it ,"),
    ("roberta-base", "The Ġunh+app+iest Ġplayers Ġ(+both Ġof Ġthem ) Ġre+played Ġit ,"),
    ("deberta-v3", "▁The ▁un+ha+ppies+t ▁players ▁(+both ▁of ▁them ) ▁replayed ▁it ,"),
    ("albert-base", "▁the ▁un+h+app+iest ▁players ▁ (+both ▁of ▁them ) ▁replay+ed ▁it ,"),
], ids=["bert", "roberta", "deberta", "albert"])
def test_published_vocabularies(shared, name, wanted):
    folder = shared / "data" / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in shared/")
    found = words_of(tbf.load_tokenizer(folder), TEXT, foreign=name == "albert-base")
    assert told(found).startswith(wanted + " ")
