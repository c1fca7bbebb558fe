"""WordPiece against transformers' BertTokenizer, live: hostile strings, every code point, files."""
import json
import lzma
import os
import random

import pytest
from hostile import CODES, hostile

from tinybert_family.error import Error
from tinybert_family.text import wordpiece
from tinybert_family.text.wordpiece import SPECIAL, WordPiece

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
transformers = pytest.importorskip("transformers")

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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ids_of_hostile_strings(shared, options):
    ours, theirs = both(shared, **options)
    texts = hostile(20000, seed=1)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert [text for text, ids in zip(texts, expected) if ours.encode(text) != ids] == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_places_of_hostile_strings(shared, options):
    ours, theirs = both(shared, **options)
    texts = hostile(20000, seed=11)[:20000 if options in OPTIONS[:1] else 4000]
    expected = theirs(texts, add_special_tokens=False, return_offsets_mapping=True)
    for text, ids, places in zip(texts, expected["input_ids"], expected["offset_mapping"]):
        assert ours.trace(text) == (ids, places), text


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


@pytest.mark.parametrize("strategy", ["only_first", "only_second"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_of_one_of_two(shared, strategy, side):
    """What leaves nothing of the text that is cut, both refuse (they panic in some cases)."""
    ours, theirs = both(shared)
    ours.truncation_side = theirs.truncation_side = side
    for first in range(7):
        for second in range(7):
            for limit in range(3, 14):
                # In lists: of a lone pair "" they say that there is none.
                call = ["a b c d e f g"[:2 * first]], ["h i j k l m n"[:2 * second]]
                options = dict(max_length=limit, truncation=strategy)
                try:
                    expected = theirs(*call, **options)["input_ids"]
                except BaseException:       # a panic of theirs is no Exception
                    with pytest.raises(Error):
                        ours(*call, **options)
                else:
                    assert ours(*call, **options)["input_ids"].tolist() == expected


@pytest.mark.parametrize("options", [
    dict(padding_side="left"), dict(pad_to_multiple_of=8), dict(padding="max_length"),
    dict(pad_to_multiple_of=10, padding_side="left"), dict(add_special_tokens=False),
    dict(truncation="only_second", padding="max_length", pad_to_multiple_of=8),
    dict(return_offsets_mapping=True, return_special_tokens_mask=True, padding_side="left"),
    dict(return_token_type_ids=False),
], ids=str)
def test_batches_with_every_option(shared, options):
    ours, theirs = both(shared)
    texts = hostile(300, seed=8)
    seconds = [text + " and more words" for text in hostile(300, seed=9)]
    long = [("only_first words " * 9)[:n] for n in range(300)]
    for first, second in (texts, None), (texts, seconds), (seconds, long):
        call = dict(padding=True, truncation=True, max_length=120) | options
        if call["truncation"] == "only_second" and second is None:
            continue
        expected = theirs(first, second, return_tensors="np", **call)
        out = ours(first, second, **call)
        assert sorted(out) == sorted(expected)
        for name, array in out.items():
            assert array.tolist() == expected[name].tolist(), name


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
    loaded.append(transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path))
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
    lines = [*SPECIAL, "cat", "dog ", "\u2028", " ", "\u3000x", "##s\t", "bird\u3000", "a\xa0b", "é"]
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
