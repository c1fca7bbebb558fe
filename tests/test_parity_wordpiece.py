"""WordPiece against transformers' BertTokenizer, live: hostile strings, every code point, files."""
import json
import lzma
import os
import random
import unicodedata
from functools import cache

import pytest

from tinybert_family.text import wordpiece
from tinybert_family.text.characters import find_kept
from tinybert_family.text.wordpiece import SPECIAL, WordPiece

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
transformers = pytest.importorskip("transformers")

CODES = [*range(0xD800), *range(0xE000, 0x110000)]
# Every way of the four rules that an option can change.
OPTIONS = [{}, {"lower": False},
           {"accents": False}, {"lower": False, "accents": True}, {"chinese": False}]


def both(shared, lower=True, accents=None, chinese=True):
    """-> ours and theirs, on the real vocabulary that goes with `lower`."""
    name = "bert-base-uncased" if lower else "bert-base-cased"
    path = shared / "data/tokenizers" / name / "vocab.txt"
    theirs = transformers.BertTokenizer(vocab=str(path), do_lower_case=lower, strip_accents=accents,
                                        tokenize_chinese_chars=chinese)
    return WordPiece(wordpiece.read_vocab(path), lower, accents, chinese), theirs


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
    words = ["hello", "World", *SPECIAL, "[mask]", "[", "naïve", "Σας", "ΟΔΟΣ", "İstanbul", "ǅ",
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ids_of_hostile_strings(shared, options):
    ours, theirs = both(shared, **options)
    texts = hostile(20000, seed=1)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert [text for text, ids in zip(texts, expected) if ours.encode(text) != ids] == []


def words_of_both(ours, theirs, text):
    """What the vocabulary hides as [UNK], the words before the lookup show."""
    normal, cut = theirs.backend_tokenizer.normalizer, theirs.backend_tokenizer.pre_tokenizer
    runs = text.translate(wordpiece.FALSE_SPACES).split()
    expected = [word for word, _ in cut.pre_tokenize_str(normal.normalize_str(text))]
    return [word for run in runs for word in ours.split(run)], expected


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_words_of_hostile_strings(shared, options):
    tokenizers = both(shared, **options)
    for first in range(0, 20000, 10):
        text = " ".join(hostile(20000, seed=1)[first:first + 10])
        words, expected = words_of_both(*tokenizers, text)
        assert words == expected


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_words_of_every_code_point(shared, options):
    tokenizers, different = both(shared, **options), []
    # The first two options see all code points; to the others the empty planes would add nothing.
    codes = CODES if options in OPTIONS[:2] else [c for c in CODES if c < 0x34000 or c >> 16 == 0xE]
    for first in range(0, len(codes), 512):
        text = " ".join(f"a{chr(code)}b\u0338{chr(code)}" for code in codes[first:first + 512])
        words, expected = words_of_both(*tokenizers, text)
        if words != expected:
            different.append(hex(codes[first]))
    assert different == []


def test_ids_of_real_text(shared):
    ours, theirs = both(shared)
    for path in sorted((shared / "data").rglob("*.tsv.xz"))[:6]:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            texts = [line for line, _ in zip(lines, range(1000))]
        expected = theirs(texts, add_special_tokens=False)["input_ids"]
        assert [ours.encode(text) for text in texts] == expected


@pytest.mark.parametrize("limit", [None, 3, 4, 9, 16])
def test_batches_of_texts_and_pairs(shared, limit):
    for options in OPTIONS[:2]:
        ours, theirs = both(shared, **options)
        texts, seconds = hostile(400, seed=5), hostile(400, seed=6)
        for pairs in (None, seconds):
            expected = theirs(texts, pairs, max_length=limit, truncation=limit is not None,
                              padding=True, return_tensors="np")
            out = ours(texts, pairs, max_length=limit)
            assert sorted(out) == sorted(expected)
            for name, array in out.items():
                assert array.tolist() == expected[name].tolist(), name


def test_truncation_of_every_small_pair(shared):
    ours, theirs = both(shared)
    sizes = [(first, second) for first in range(9) for second in range(9)]
    texts, pairs = ["a " * first for first, _ in sizes], ["b " * second for _, second in sizes]
    for limit in range(3, 14):
        expected = theirs(texts, pairs, max_length=limit, truncation=True)["input_ids"]
        out = ours(texts, pairs, max_length=limit)
        rows = zip(out["input_ids"], out["attention_mask"])
        assert [row[:mask.sum()].tolist() for row, mask in rows] == expected


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_decoding_of_random_ids(shared, skip, clean):
    for options in OPTIONS[:2]:
        ours, theirs = both(shared, **options)
        draw = random.Random(3)
        often = [ours.ids[x] for x in [*SPECIAL, *".,'?!st", "don", "do", "not", "m", "##s"]]
        for _ in range(2000):
            ids = draw.choices(often, k=draw.randrange(8)) + draw.choices(range(ours.size), k=6)
            draw.shuffle(ids)
            how = dict(skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
            assert ours.decode(ids, **how) == theirs.decode(ids, **how)
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_we_save_transformers_loads_equal(shared, tmp_path, options):
    t = WordPiece.train(["The cat sat on the Mat, naïve 中文 한국어 Ünïcödé tëxt. " * 3], 200,
                        lower=options.get("lower", True))
    ours = WordPiece(t.vocab, **options, max_length=16)
    ours.save(tmp_path)
    texts = hostile(2000, seed=2) + ["The naïve CAT sat 中文 한국어 Ünïcödé"]
    loaded = [transformers.BertTokenizer.from_pretrained(tmp_path)]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    loaded.append(transformers.AutoTokenizer.from_pretrained(tmp_path))
    for theirs in loaded:
        expected = theirs(texts, truncation=True, padding=True, return_tensors="np")
        for name, array in ours(texts).items():
            assert array.tolist() == expected[name].tolist()
        assert [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id,
                theirs.mask_token_id] == [ours.pad, ours.unk, ours.cls, ours.sep, ours.mask]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_transformers_saves_we_load_equal(shared, tmp_path, options):
    first, theirs = both(shared, **options)
    theirs.save_pretrained(tmp_path)
    ours = WordPiece.load(tmp_path)
    assert ours.vocab == first.vocab
    texts = hostile(2000, seed=2)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert [ours.encode(text) for text in texts] == expected


def test_odd_vocabulary_files_are_read_alike(tmp_path):
    """Line ends, blank lines, white space at line ends, pieces that are white space."""
    lines = [*SPECIAL, "cat", "dog ", "\u2028", "", "\u3000x", "##s\t", "bird\u3000", "a\xa0b", "é"]
    texts = ["cats dogs bird é \u2028 x a\xa0b", "dog\u3000x", "birds"]
    for end in ("\n", "\r\n"):
        (tmp_path / "vocab.txt").write_bytes((end.join(lines) + end).encode())
        theirs = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
        expected = theirs(texts, add_special_tokens=False)["input_ids"]
        ours = WordPiece.load(tmp_path)
        assert [ours.encode(text) for text in texts] == expected


def test_learnt_vocabularies_compress_as_well_as_the_reference():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    pydoc = pytest.importorskip("pydoc_data.topics")
    texts = list(pydoc.topics.values())
    learn, held = [t for i, t in enumerate(texts) if i % 5], texts[::5]
    theirs = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer()
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs.train_from_iterator(learn, trainers.WordPieceTrainer(
        vocab_size=2048, special_tokens=SPECIAL, show_progress=False))
    ours = WordPiece.train(learn, 2048)
    assert ours.size == 2048
    expected = sum(len(row.ids) for row in theirs.encode_batch(held, add_special_tokens=False))
    assert sum(len(ours.encode(text)) for text in held) <= 1.01 * expected
