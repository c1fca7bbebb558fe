"""Tokenizers' files in and out: what is saved loads the same, and what is wrong is named."""
import json
import lzma
import shutil

import pytest

import tinybert_family as tbf
from tinybert_family.error import Error
from tinybert_family.text import tokenizer_files
from tinybert_family.text.tokenizer import Added
from tinybert_family.text.wordpiece import SPECIAL, WordPiece

TINY = WordPiece(SPECIAL + list(",.!?'-()[]#") + ["the", "cat", "sat", "##s", "a", "b", "##a"])
GOOD = "\n".join(SPECIAL) + "\n"
NAMES = ("vocab", "roles", "added", "single", "pair", "inputs", "max_length", "padding_side",
         "truncation_side", "clean_up")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("options", [
    {}, {"lower": False}, {"accents": False}, {"chinese": False, "max_length": 64},
    {"padding_side": "left", "truncation_side": "left", "clean_up": True, "closes": False},
    {"inputs": ("input_ids", "attention_mask"), "single": [("$A", 0)],
     "pair": [("$A", 0), ("[SEP]", 0), ("$B", 2)]},
    {"added": [Added(name) for name in SPECIAL] + [Added("the", left=True, normal=True)]},
])
def test_saved_and_loaded_is_the_same(tmp_path, options):
    t = WordPiece(TINY.vocab, **options)
    t.save(tmp_path / "new")
    again = tbf.load_tokenizer(tmp_path / "new")
    for name in (*NAMES, "lower", "accents", "chinese", "closes"):
        ours, theirs = getattr(t, name), getattr(again, name)
        assert sorted(ours) == sorted(theirs) if name == "added" else ours == theirs, name
    first = contents(tmp_path / "new")
    again.save(tmp_path / "new")
    assert first == contents(tmp_path / "new")
    assert sorted(first) == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
                             "vocab.txt"]


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
def test_line_ends_and_odd_pieces_keep_their_place(tmp_path, end):
    lines = SPECIAL + ["\u2028", "cat", "\u3000", " ", "x\u2028y", "dog"]
    (tmp_path / "vocab.txt").write_bytes(("\ufeff" + end.join(lines) + end).encode())
    t = WordPiece.load(tmp_path)
    assert t.size == len(lines) and t.encode("[PAD] cat dog \u2028 \u3000") == [0, 6, 10]
    (tmp_path / "vocab.txt").write_bytes(end.join(lines).encode())         # without a last line end
    assert WordPiece.load(tmp_path).vocab == t.vocab


def test_options_beside_the_vocabulary_are_read(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(TINY.vocab))
    config = {"do_lower_case": False, "tokenize_chinese_chars": False, "model_max_length": 10 ** 30,
              "tokenizer_class": "DistilBertTokenizer", "padding_side": "left"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    t = WordPiece.load(tmp_path)
    assert (t.lower, t.accents, t.chinese, t.max_length) == (False, None, False, None)
    assert t.padding_side == "left" and "token_type_ids" not in t("a")
    (tmp_path / "tokenizer_config.json").unlink()
    t = WordPiece.load(tmp_path)
    assert t.lower is True and "token_type_ids" in t("a")


def test_added_tokens_of_the_older_files_are_read(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(TINY.vocab).replace("[MASK]", "<mask>"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(
        {"mask_token": {"content": "<mask>", "lstrip": True}, "pad_token": "[PAD]"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": TINY.size}))
    t = tbf.load_tokenizer(tmp_path)
    assert t.vocab[t.mask] == "<mask>" and t.size == TINY.size + 1
    assert t.trace("cat  <mask><new>") == ([t.ids["cat"], t.mask, TINY.size],
                                           [(0, 3), (3, 11), (11, 16)])
    assert t.decode([TINY.size, t.mask], skip_special_tokens=True) == "<new>"


def whole(**changes):
    """A small tokenizer.json, with some of its parts replaced."""
    good = tokenizer_files.whole_of(TINY)
    return json.dumps({**good, **changes})


def test_words_are_not_cut_into_what_is_only_added(tmp_path):
    added = [{"id": TINY.size, "content": "keyword", "normalized": False}]
    (tmp_path / "tokenizer.json").write_text(whole(added_tokens=added))
    t = tbf.load_tokenizer(tmp_path)
    t.save(tmp_path / "new")
    for t in t, tbf.load_tokenizer(tmp_path / "new"):
        assert t.encode("keyword Keyword") == [TINY.size, t.unk]
        assert t.trace("keyword Keyword")[0] == [TINY.size, t.unk]
    model = json.loads((tmp_path / "new/tokenizer.json").read_text())["model"]
    assert "keyword" not in model["vocab"]


def test_a_line_break_can_be_added_as_a_token(tmp_path):
    (tmp_path / "vocab.txt").write_text(GOOD + "cat\n")
    (tmp_path / "added_tokens.json").write_text('{"\\n": 6}')
    t = tbf.load_tokenizer(tmp_path)
    t.save(tmp_path / "new")
    for t in t, tbf.load_tokenizer(tmp_path / "new"):
        assert t.encode("cat\ncat") == [5, 6, 5]


def test_lines_of_white_space_survive_saving(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "\u3000", "cat", " ", "dog"]))
    t = tbf.load_tokenizer(tmp_path)
    t.save(tmp_path / "new")
    assert tbf.load_tokenizer(tmp_path / "new").vocab == t.vocab
    assert t.encode("cat dog [blank5]")[:2] == [6, 8] and 5 not in t.encode("[blank5] blank5")


def test_tokenizer_json_alone_is_enough(tmp_path):
    normalizer = {"type": "BertNormalizer", "lowercase": False, "strip_accents": None}
    added = [{"id": TINY.size, "content": "<new>"}]
    (tmp_path / "tokenizer.json").write_text(whole(normalizer=normalizer, added_tokens=added))
    t = WordPiece.load(tmp_path)
    assert t.vocab == TINY.vocab + ["<new>"] and t.lower is False
    assert t.encode("cat<new>[MASK]")[1:] == [TINY.size, t.mask]


MODEL = tokenizer_files.whole_of(TINY)["model"]
STEPS = [{"Sequence": {"id": "A", "type_id": 0}}]
TEMPLATE = {"type": "TemplateProcessing", "single": STEPS, "pair": [], "special_tokens": {}}


@pytest.mark.parametrize("files, message", [
    ({}, "holds no tokenizer: none of tokenizer.json, vocab.txt"),
    ({"vocab.txt": ""}, r"vocab.txt: the vocabulary lacks \[PAD\] \[UNK\]"),
    ({"vocab.txt": b"\x00\x01\xff\xfe" * 9}, r"vocab.txt: line 1 is not UTF-8 \(byte 0xff\)"),
    ({"vocab.txt": GOOD.encode() + b"caf\xe9\n"}, "vocab.txt: line 6 is not UTF-8"),
    ({"vocab.txt": GOOD + "cat\n\ndog\n"}, "vocab.txt: line 7 is empty"),
    ({"vocab.txt": GOOD + "cat\n\n"}, "vocab.txt: line 7 is empty"),
    ({"vocab.txt": GOOD + "cat\ndog\ncat\n"}, "vocab.txt: line 8 repeats 'cat' of 6"),
    ({"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\ncat\n"}, r"vocab.txt: the vocabulary lacks \[MASK\];"),
    ({"vocab.txt": GOOD, "tokenizer_config.json": "{"}, "tokenizer_config.json: not valid JSON"),
    ({"vocab.txt": GOOD, "tokenizer_config.json": "[" * 100000}, "config.json: .*nested too dee"),
    ({"vocab.txt": GOOD, "tokenizer_config.json": "[]"}, "tokenizer_config.json: holds no JSON ob"),
    ({"vocab.txt": GOOD, "tokenizer_config.json": '{"do_lower_case": "no"}'}, "_case is 'no'"),
    ({"vocab.txt": GOOD, "tokenizer_config.json": '{"padding_side": "up"}'}, "side is 'up'"),
    ({"vocab.txt": GOOD, "tokenizer_config.json": '{"mask_token": 7}'}, "mask_token must be a te"),
    ({"vocab.txt": GOOD, "tokenizer_config.json": '{"mask_token": "<m>"}'}, "lacks <m>"),
    ({"vocab.txt": GOOD, "tokenizer_config.json": '{"model_input_names": 3}'}, "_names is 3"),
    ({"vocab.txt": GOOD, "tokenizer_config.json":
      '{"added_tokens_decoder": {"9": {"content": "<e>"}}}'}, "'<e>' has the id 9, but nothing"),
    ({"vocab.txt": GOOD, "tokenizer_config.json":
      '{"added_tokens_decoder": {"x": {"content": "<e>"}}}'}, "'x' is 'x'; it must be a whole"),
    ({"vocab.txt": GOOD, "added_tokens.json": '{"<e>": 2}'}, r"id 2, which belongs to '\[CLS\]'"),
    ({"vocab.txt": GOOD, "added_tokens.json": '{"[CLS]": 5}'}, "id 5, but the vocabulary has it"),
    ({"vocab.txt": GOOD, "added_tokens.json": '{"<e>": -1}'}, "'<e>' is -1; it must be"),
    ({"tokenizer.json": "{}"}, "model.vocab is missing"),
    ({"tokenizer.json": '{"model": {"type": "WordLevel", "vocab": {}}}'}, "'WordLevel'; known are"),
    ({"tokenizer.json": '{"model": {"type": "BPE", "vocab": []}}'}, "must be an object for a BPE"),
    ({"tokenizer.json": whole(model={**MODEL, "vocab": {"a": 1}})}, "id 0 is missing; 1 pieces"),
    ({"tokenizer.json": whole(model={**MODEL, "vocab": {"a": 0, "b": 0}})}, "0 is given twice"),
    ({"tokenizer.json": whole(model={**MODEL, "vocab": {"a": "0"}})}, "the id of 'a' is '0'"),
    ({"tokenizer.json": whole(model={**MODEL, "vocab": {"[UNK]": 0}}, added_tokens=[],
                              post_processor=None)}, "lacks .*PAD"),
    ({"tokenizer.json": whole(model={**MODEL, "vocab": {"a": 0}})}, "id 0, which belongs to 'a'"),
    ({"tokenizer.json": whole(model={**MODEL, "unk_token": "?!"})}, "unk_token is '\\?!'"),
    ({"tokenizer.json": whole(model={**MODEL, "continuing_subword_prefix": "@"})}, "prefix is '@'"),
    ({"tokenizer.json": whole(normalizer={"type": "NFC"})}, "normalizer is 'NFC'; a WordPiece"),
    ({"tokenizer.json": whole(pre_tokenizer=None)}, "pre_tokenizer is None; a WordPiece"),
    ({"tokenizer.json": whole(decoder={"type": "ByteLevel"})}, "decoder is 'ByteLevel'"),
    ({"tokenizer.json": whole(post_processor={"type": "X"})}, "post_processor.type is 'X'"),
    ({"tokenizer.json": whole(post_processor=TEMPLATE)}, "post_processor.pair must be a list"),
    ({"tokenizer.json": whole(added_tokens=[{"content": "<e>"}])}, r"added_tokens\[0\].id is None"),
    ({"tokenizer.json": whole(added_tokens=[{"id": 0}])}, r"added_tokens\[0\] must be a text"),
    ({"tokenizer.json": '{"model": {"vocab": {"a": 0, "a": 1}}}'}, "'a' appears twice"),
    ({"tokenizer.json": whole(added_tokens=1)}, "added_tokens must be a list of objects"),
    ({"tokenizer.json": whole(added_tokens=["x"])}, "added_tokens must be a list of objects"),
    ({"tokenizer.json": whole(model={**MODEL, "type": [{}]})}, r"model.type is \[{}\]"),
    ({"tokenizer.json": whole(normalizer="BertNormalizer")}, "normalizer is 'BertNormalizer'"),
    ({"tokenizer.json": whole(post_processor={"type": "Sequence", "processors": 1})}, "a list of"),
    ({"tokenizer.json": whole(post_processor={**TEMPLATE, "special_tokens": {"x": 1}})}, "objects"),
    ({"tokenizer.json": whole(post_processor={"type": "ByteLevel", "trim_offsets": 3})}, "is 3; it"),
    ({"tokenizer.json": whole(decoder={"type": "WordPiece", "cleanup": 3})}, "cleanup is 3"),
    ({"vocab.txt": GOOD, "added_tokens.json": '{"": 5}'}, "added_tokens.json: '' is empty"),
    ({"vocab.txt": GOOD, "special_tokens_map.json": '{"sep_token": ""}'}, "map.json: sep_token is"),
    ({"vocab.txt": GOOD, "special_tokens_map.json": '{"sep_token": "a\\nb"}'}, r"lacks 'a\\nb'"),
    ({"vocab.json": "{}", "merges.txt": "a b"}, "merges.txt: line 1, 'a b'"),
    ({"vocab.json": '{"a": 0}'}, "merges.txt"),
])
def test_bad_files_are_named_in_one_line(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Error, match=message) as caught:
        tbf.load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_folder_that_is_none_is_an_error(tmp_path):
    with pytest.raises(Error, match="is no folder; name one that holds tokenizer.json"):
        tbf.load_tokenizer(tmp_path / "none")


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path):
    (tmp_path / "vocab.txt").mkdir()
    with pytest.raises(Error, match="vocab.txt: not a regular file"):
        tbf.load_tokenizer(tmp_path)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="choose a folder that can be written"):
        TINY.save(tmp_path / "file")


def test_a_tokenizer_of_another_kind_is_refused_by_its_class(tmp_path):
    class Other(WordPiece):
        KIND = "Other"
    TINY.save(tmp_path)
    with pytest.raises(Error, match="holds a WordPiece tokenizer, not Other"):
        Other.load(tmp_path)


# --- Published checkpoints ------------------------------------------------------------------------

def published(shared, name, folder):
    """The tokenizer of a published model from the files at hand."""
    data = shared / "data/tokenizers"
    if name == "deberta-v1-base":       # RoBERTa's vocabulary with other names for special tokens
        ids = json.loads((data / "roberta-base/vocab.json").read_text("utf-8"))
        pieces = sorted(ids, key=ids.get)
        pieces[:4], pieces[ids["<mask>"]] = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[MASK]"
        whole = json.dumps({piece: i for i, piece in enumerate(pieces)})
        (folder / "vocab.json").write_text(whole, "utf-8")
        shutil.copy(data / "roberta-base/merges.txt", folder)
        return tbf.load_tokenizer(folder)
    if name == "bert-base-cased":       # only its vocabulary is at hand, not what stood beside it
        shutil.copy(data / name / "vocab.txt", folder)
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        return tbf.load_tokenizer(folder)
    return tbf.load_tokenizer(data / name) if (data / name).exists() else None


@pytest.mark.parametrize("name, rows", [
    ("bert-base-uncased", 80), ("bert-base-cased", 82), ("roberta-base", 79), ("albert-base", 78),
    ("deberta-v3", 79), ("modernbert-base", 59)])
def test_published_vectors(shared, tmp_path, name, rows):
    t, seen = published(shared, name, tmp_path), 0
    with lzma.open(shared / "data/tokenizers/vectors.jsonl.xz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["tokenizer"] == name:
                assert t(row["input"], truncation=False)["input_ids"].tolist() == [row["ids"]]
                seen += 1
    assert seen == rows


def test_where_published_readings_differ(shared, tmp_path):
    """BERT: as the published tokenizer does today, on whose rules every model has been used.
    DeBERTa v1: as its authors', with special tokens of its own. DeBERTa v3: as SentencePiece does,
    which spells unknown characters in bytes; the readings listed for v3 forget that."""
    contested = json.loads((shared / "data/tokenizers/contested.json").read_text("utf-8"))
    followed = {}
    for row in contested:
        name = row["tokenizer"]
        (tmp_path / name).mkdir(exist_ok=True)
        if (t := published(shared, name, tmp_path / name)) is not None:
            ids = t(row["input"], truncation=False)["input_ids"][0].tolist()
            ways = [str(way["source"]) for way in row["readings"] if way["ids"] == ids]
            followed.setdefault(name, []).append("".join(ways)[:14])
    assert followed == {
        "bert-base-uncased": ["transformers 5"] * 2, "bert-base-cased": ["transformers 5"],
        "deberta-v3": [""] * 3, "deberta-v1-base": ["['querycatai/f"] * 4}
    t = published(shared, "deberta-v3", tmp_path)
    assert t.pieces("1\x002\ufffd3") == ["▁1", "<0x00>", "2", "▁3"]
