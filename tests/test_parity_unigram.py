"""Unigram against transformers, tokenizers and sentencepiece, live: hostile strings, every code
point, real text, files, and what is learnt.
"""
import json
import lzma
import os
import random
from functools import cache

import pytest
from hostile import CODES, hostile

from tinybert_family.text import sentencepiece, unigram
from tinybert_family.text.corpus import embedded
from tinybert_family.text.tokenizer import ROLES
from tinybert_family.text.unigram import Unigram, from_model

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
tokenizers = pytest.importorskip("tokenizers", reason="the peer that is compared with")
pieces_of = pytest.importorskip("sentencepiece", reason="the peer that is compared with")
transformers = pytest.importorskip("transformers", reason="it has ALBERT's tokenizer")

FILES = {"albert": "albert-base/spiece.model", "deberta": "deberta-v3/spm.model",
         "small": "sentencepiece/test_model.model"}


@cache
def model(shared, name):
    return sentencepiece.read(shared / "data/tokenizers" / FILES[name])


def peer(model, steps=None, rules=None, byte_fallback=False):
    """The published tokenizers' reading of a model's pieces and rules."""
    vocab = [(piece.text, piece.score) for piece in model.pieces]
    one = tokenizers.Tokenizer(
        tokenizers.models.Unigram(vocab, unk_id=model.unk_id, byte_fallback=byte_fallback))
    known, cuts = tokenizers.normalizers, tokenizers.pre_tokenizers
    steps = [known.Precompiled(model.charsmap)] if steps is None else steps
    one.normalizer = known.Sequence(steps)
    one.pre_tokenizer = cuts.Sequence(rules or [cuts.WhitespaceSplit(), cuts.Metaspace()])
    one.decoder = tokenizers.decoders.Metaspace()
    return one


@cache
def albert(shared):
    """-> ours, theirs. ALBERT cut "2007," into "2007" and ",", and its published files and vectors
    do; transformers 5, given the .model, does not. So it is given the scores of those files."""
    found = model(shared, "albert")
    comma = [piece.text[-1] == "," and piece.text[-2:-1].isdigit() for piece in found.pieces]
    theirs = transformers.AlbertTokenizer(
        vocab=[(piece.text, piece.score - 100 * off) for piece, off in zip(found.pieces, comma)],
        _spm_precompiled_charsmap=found.charsmap)
    return from_model(found, "albert"), theirs.backend_tokenizer


def different(ours, theirs, texts):
    """Texts whose ids differ, or, of the first third, places or decoding."""
    wrong = []
    expected = theirs.encode_batch(texts, add_special_tokens=False)
    for i, (text, row) in enumerate(zip(texts, expected)):
        same = ours.encode(text) == row.ids
        if i < len(texts) / 3:
            same = same and ours.trace(text) == (row.ids, row.offsets)
            decoded = theirs.decode(row.ids, skip_special_tokens=False)
            same = same and ours.decode(row.ids) == decoded
        if not same:
            wrong.append(text)
    return wrong


def test_albert_on_hostile_strings(shared):
    assert different(*albert(shared), hostile(20000, 1)) == []


def ways_of(found):
    """How a model's pieces may be read: as transformers 4 wrote tokenizer.json, as transformers 5
    builds it, with punctuation split off, with bytes, and with the other ways to prepend."""
    known, cuts = tokenizers.normalizers, tokenizers.pre_tokenizers
    charsmap = known.Precompiled(found.charsmap)
    spaces = known.Replace(tokenizers.Regex(" {2,}"), " ")
    newer = [known.Replace(tokenizers.Regex(r"\s{2,}|[\n\r\t]"), " "), known.NFC(),
             known.Strip(left=False, right=True)]
    punctuation = cuts.Punctuation(behavior="isolated")
    return {
        "older": peer(found, [known.Strip(), charsmap, spaces], [cuts.Metaspace()]),
        "newer": peer(found, newer, [cuts.Metaspace()]),
        "punctuation": peer(found, newer, [punctuation, cuts.Metaspace()]),
        "bytes": peer(found, [charsmap], None, byte_fallback=True),
        "first": peer(found, [charsmap], [cuts.Metaspace(prepend_scheme="first")]),
        "first word": peer(found, newer, [cuts.WhitespaceSplit(),
                                          cuts.Metaspace(prepend_scheme="first")]),
        "never": peer(found, newer, [cuts.Metaspace(prepend_scheme="never")]),
        "whole": peer(found, newer, [cuts.Metaspace(split=False)])}


def read_by_both(theirs, tmp_path):
    """The same file, read by us and by the peer; see also unigram.as_read."""
    path = tmp_path / "tokenizer.json"
    whole = json.loads(theirs.to_str())
    path.write_text(json.dumps(whole))
    vocab = [piece for piece, _ in whole["model"]["vocab"]]
    roles = dict.fromkeys(ROLES, vocab[whole["model"]["unk_id"]])
    ours = Unigram.from_json(whole, path, vocab, roles=roles, added=[])
    return ours, tokenizers.Tokenizer.from_file(str(path))


def test_deberta_in_the_published_tokenizers_on_hostile_strings(shared, tmp_path):
    theirs = ways_of(model(shared, "deberta"))["older"]
    assert different(*read_by_both(theirs, tmp_path), hostile(20000, 2)) == []


WAYS = ["older", "newer", "punctuation", "bytes", "first", "first word", "never", "whole"]


@pytest.mark.parametrize("way", WAYS)
def test_all_that_files_can_say_on_hostile_strings(shared, tmp_path, way):
    theirs = ways_of(model(shared, "small"))[way]
    assert different(*read_by_both(theirs, tmp_path), hostile(20000, 3)[:2500]) == []


def sentencepieces(shared, name):
    """-> ours, theirs, and what makes their ids ours"""
    theirs = pieces_of.SentencePieceProcessor(str(shared / "data/tokenizers" / FILES[name]))
    if name == "deberta":
        return from_model(model(shared, name), "deberta"), theirs, lambda ids: ids
    moved = {0: 3, 1: 0, 2: 2}
    return (from_model(model(shared, name), "xlm-r"), theirs,
            lambda ids: [moved.get(i, i + 1) for i in ids])


@pytest.mark.parametrize("name", ["deberta", "small"])
def test_sentencepiece_on_hostile_strings(shared, name):
    ours, theirs, moved = sentencepieces(shared, name)
    wrong = []
    # Special tokens in the text are ours to find, not SentencePiece's.
    texts = [x for x in hostile(30000, 4) if not any(name in x for name in ours.special)]
    for i, text in enumerate(texts[:20000]):
        expected = moved(theirs.encode(text))
        if ours.encode(text) != expected or i < 2000 and ours.trace(text)[0] != expected:
            wrong.append(text)
    assert len(texts) > 20000 and wrong == []


def test_of_equals_sentencepiece_takes_others_than_the_tokenizers(shared):
    """Why there are two readings: it adds in single precision along the whole text."""
    ours, theirs, _ = sentencepieces(shared, "deberta")
    peers = ways_of(model(shared, "deberta"))["older"]
    texts = ["no" * n + " " + "ha" * n for n in range(1, 40)]
    assert all(ours.encode(text) == theirs.encode(text) for text in texts)
    assert any(peers.encode(text).ids != theirs.encode(text) for text in texts)


# --- Every code point, real text, vectors ---------------------------------------------------------

def test_every_code_point(shared):
    """Between letters, at the end of a word, alone, and after a space that it might join."""
    ours, theirs = albert(shared)
    exact, sentences, _ = sentencepieces(shared, "deberta")
    wrong = []
    draw = random.Random(7)
    later = [c for c in CODES if 0x3000 <= c < 0x34000 or c >> 16 == 0xE]       # others are empty
    codes = [*range(0x3000), *draw.sample(later, 12000)]
    for first in range(0, len(codes), 8):
        some = list(map(chr, codes[first:first + 8]))
        text = " ".join(f"a{c}b o{c} {c} {c}e" for c in some)
        if ours.encode(text) != theirs.encode(text, add_special_tokens=False).ids:
            wrong.append(("albert", hex(codes[first])))
        if exact.encode(text) != sentences.encode(text):
            wrong.append(("deberta", hex(codes[first])))
    assert wrong == []


@cache
def lines(shared, name, size=300_000):
    with lzma.open(shared / f"data/text/{name}.txt.xz", "rt", encoding="utf-8") as file:
        return [line for line in file.read(size).split("\n") if line.strip()]


@pytest.mark.parametrize("name", ["wiki_en_0", "books"])
def test_real_text(shared, name):
    ours, theirs = albert(shared)
    exact, sentences, _ = sentencepieces(shared, "deberta")
    texts = lines(shared, name)
    expected = theirs.encode_batch(texts, add_special_tokens=False)
    assert [ours.encode(text) for text in texts] == [row.ids for row in expected]
    assert [exact.encode(text) for text in texts] == sentences.encode(texts)


@pytest.mark.parametrize("name, published", [("albert", "albert-base"), ("deberta", "deberta-v3")])
def test_published_vectors(shared, name, published):
    ours = from_model(model(shared, name), name)
    with lzma.open(shared / "data/tokenizers/vectors.jsonl.xz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["tokenizer"] == published]
    assert len(rows) > 70
    wrong = []
    for row in rows:
        ids = ours(row["input"])["input_ids"][0].tolist()
        framed = (row["decoded"] or "").startswith("[CLS]")
        decoded = ours.decode(ids, skip_special_tokens=not framed)
        if ids != row["ids"] or row["decoded"] not in (None, decoded):
            wrong.append((row["input"], decoded, row["decoded"]))
    assert wrong == []


def test_frames(shared):
    deberta = from_model(model(shared, "deberta"), "deberta")
    row = deberta("a", "b")
    assert [deberta.vocab[i] for i in row["input_ids"][0]] == [
        "[CLS]", "▁a", "[SEP]", "▁b", "[SEP]"]
    assert row["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]
    assert deberta.mask == 128000 == deberta.encode("[MASK]")[0]
    moved = from_model(model(shared, "small"), "xlm-r")
    row = moved("a", "a <mask>")
    assert [moved.vocab[i] for i in row["input_ids"][0]] == [
        "<s>", "▁a", "</s>", "</s>", "▁a", "<mask>", "</s>"]
    assert "token_type_ids" not in row
    assert (moved.pad, moved.unk, moved.mask) == (1, 3, moved.size - 1)


def test_saved_for_others(shared, tmp_path):
    """A file of ours, read by the peer; and by us, who then know what SentencePiece would do."""
    for name in ("albert", "deberta"):
        ours = from_model(model(shared, name), name)
        ours.save(tmp_path / name)
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        texts = lines(shared, "books", 60_000)
        expected = theirs.encode_batch(texts, add_special_tokens=False)
        assert [ours.encode(text) for text in texts] == [row.ids for row in expected]
        again = Unigram.load(tmp_path / name)
        for text in ["no" * 20 + " " + "ha" * 30, "ﬁ\u0301 x", "<0x41> 中😂"]:
            assert name == "albert" or again.trace(text) == ours.trace(text)


# --- Learning -------------------------------------------------------------------------------------

def tokens_per_character(one, texts):
    rows = one.encode_batch(texts, add_special_tokens=False)
    return sum(len(row.ids) for row in rows) / sum(map(len, texts))


@pytest.mark.parametrize("name", ["embedded", "wiki_en_0"])
def test_what_is_learnt_compresses_as_the_peer_does(request, tmp_path, name):
    """Tokens per character of text that was not seen, with as many pieces; at most 1 % more."""
    if name == "embedded":
        texts = [line for document in embedded() for line in document.sentences][:9000]
    else:
        texts = lines(request.getfixturevalue("shared"), name, 800_000)
    border = len(texts) * 4 // 5
    texts, held = texts[:border], texts[border:]
    ours = Unigram.train(texts, 2000)
    assert ours.size == 2000
    ours.save(tmp_path)
    mine = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram())
    theirs.normalizer, theirs.pre_tokenizer = mine.normalizer, mine.pre_tokenizer
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=list(unigram.SPECIAL), unk_token="<unk>",
        show_progress=False)
    theirs.train_from_iterator(texts, trainer)
    assert tokens_per_character(mine, held) <= 1.01 * tokens_per_character(theirs, held)
    # The file of what was learnt says the same to both.
    assert different(ours, mine, held + hostile(20000, 5)[:2000]) == []


def test_scores_are_read_from_text_alike():
    draw = random.Random(6)
    scores = [-draw.random() * 10 ** draw.randint(-3, 3) for _ in range(5000)]
    whole = dict(type="Unigram", unk_id=0, vocab=[[str(i), x] for i, x in enumerate(scores)])
    file = json.loads(tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0)], 0)).to_str())
    theirs = tokenizers.Tokenizer.from_str(json.dumps(dict(file, model=whole)))
    read = [score for _, score in json.loads(theirs.to_str())["model"]["vocab"]]
    assert read == [unigram.as_read(score) for score in scores] != scores
