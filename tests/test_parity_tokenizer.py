"""Whole tokenizers of the family against transformers and tokenizers: folders as they are published,
calls as users make them, and files in both directions."""
import base64
import json
import os
import random
import shutil

import pytest
from hostile import hostile

import tinybert_family as tbf
from tinybert_family.text import sentencepiece

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
transformers = pytest.importorskip("transformers", reason="the peer is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the peer is not installed")
AddedToken, Fast = tokenizers.AddedToken, transformers.PreTrainedTokenizerFast
BRACKETS = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
                mask_token="[MASK]")


# --- Folders as they are published, each with the peer that is right about it ---------------------

def bert(data, folder):
    shutil.copy(data / "bert-base-uncased/vocab.txt", folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))


def distilbert_cased(data, folder):
    shutil.copy(data / "bert-base-cased/vocab.txt", folder)
    (folder / "tokenizer_config.json").write_text(
        '{"do_lower_case": false, "tokenizer_class": "DistilBertTokenizer", "strip_accents": null}')
    return transformers.DistilBertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=False)


def roberta(data, folder, **options):
    for name in "vocab.json", "merges.txt":
        shutil.copy(data / "roberta-base" / name, folder)
    # In the published tokenizer.json the mask takes the space before it.
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return transformers.RobertaTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), mask_token=mask,
        **options)


def roberta_with_prefix(data, folder):
    theirs = roberta(data, folder, add_prefix_space=True)
    (folder / "tokenizer_config.json").write_text(
        '{"add_prefix_space": true, "model_max_length": 512, "tokenizer_class": "RobertaTokenizer",'
        ' "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": true}}')
    return theirs


def roberta_in_one_file(data, folder):
    theirs = roberta(data, folder)
    for name in "vocab.json", "merges.txt":
        (folder / name).unlink()
    theirs.save_pretrained(folder)
    return theirs


def deberta(data, folder):
    """DeBERTa v1's vocabulary is RoBERTa's with other names for the special tokens. transformers 5
    puts two [SEP] between a pair and gives it no types; its authors and transformers 4 put one."""
    ids = json.loads((data / "roberta-base/vocab.json").read_text("utf-8"))
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    pieces = sorted(ids, key=ids.get)
    pieces[:4], pieces[ids["<mask>"]] = names, "[MASK]"
    (folder / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(pieces)}), "utf-8")
    shutil.copy(data / "roberta-base/merges.txt", folder)
    theirs = transformers.DebertaTokenizer(vocab=str(folder / "vocab.json"),
                                           merges=str(folder / "merges.txt"))
    theirs.backend_tokenizer.post_processor = one_separator(theirs)
    theirs.add_special_tokens({"mask_token": AddedToken("[MASK]", lstrip=True, special=True)})
    return theirs


def one_separator(theirs):
    return tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", theirs.cls_token_id), ("[SEP]", theirs.sep_token_id)])


def modernbert(data, folder):
    shutil.copy(data / "modernbert-base/tokenizer.json", folder)
    config = dict(BRACKETS, model_max_length=8192, tokenizer_class="PreTrainedTokenizerFast",
                  clean_up_tokenization_spaces=True,
                  model_input_names=["input_ids", "attention_mask"])
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Fast.from_pretrained(folder)


def albert(data, folder):
    """ALBERT cut "2007," before the comma, and its published tokenizer.json does so by lowering the
    scores of such pieces. transformers 5, given the .model, forgets to."""
    shutil.copy(data / "albert-base/spiece.model", folder)
    vocab, charsmap = pieces_of(folder / "spiece.model")
    vocab = [(piece, score - 100 * (piece[-1] == "," and piece[-2:-1].isdigit()))
             for piece, score in vocab]
    theirs = transformers.AlbertTokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap)
    theirs.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]    # as its models
    return theirs


def albert_in_one_file(data, folder):
    theirs = albert(data, folder)
    (folder / "spiece.model").unlink()
    return as_read(theirs, folder)


def deberta_v3_of_version_4(data, folder):
    """tokenizer.json as transformers 4 made it from spm.model, and as most repositories have it."""
    vocab, charsmap = pieces_of(data / "deberta-v3/spm.model")
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=3, byte_fallback=False))
    steps = tokenizers.normalizers
    made.normalizer = steps.Sequence([steps.Strip(), steps.Precompiled(charsmap), steps.Replace(
        tokenizers.Regex(" {2,}"), " ")])
    space = dict(replacement="▁", prepend_scheme="always")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(**space)
    made.decoder = tokenizers.decoders.Metaspace(**space)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False)
                             for name in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")])
    theirs = Fast(tokenizer_object=made, **BRACKETS)
    theirs.backend_tokenizer.post_processor = one_separator(theirs)
    return as_read(theirs, folder)


def deberta_v3_of_version_5(data, folder):
    vocab, _ = pieces_of(data / "deberta-v3/spm.model")
    return as_read(transformers.DebertaV2Tokenizer(vocab=vocab, unk_id=3), folder)


def xlm_roberta(data, folder):
    """No vocabulary of XLM-R is at hand; ALBERT's pieces with XLM-R's ids and rules are."""
    vocab, charsmap = pieces_of(data / "albert-base/spiece.model")
    first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    theirs = transformers.XLMRobertaTokenizer(
        vocab=[*first, *vocab[5:], ("<mask>", 0.0)], _spm_precompiled_charsmap=charsmap)
    return as_read(theirs, folder)


def as_read(theirs, folder):
    """The tokenizers library does not read every score in tokenizer.json to the last bit, so that
    which of two equally good ways wins depends on whether it comes from there. Ours reads alike."""
    theirs.save_pretrained(folder)
    loaded = Fast.from_pretrained(folder)
    loaded.model_input_names = theirs.model_input_names
    if type(theirs) is Fast:        # version 5 forgets the types that version 4 had
        loaded.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return loaded


def pieces_of(path):
    model = sentencepiece.read(path)
    return [(piece.text, piece.score) for piece in model.pieces], model.charsmap


FOLDERS = [bert, distilbert_cased, roberta, roberta_with_prefix, roberta_in_one_file, deberta,
           modernbert, albert, albert_in_one_file, deberta_v3_of_version_4, deberta_v3_of_version_5,
           xlm_roberta]
MADE = {}


@pytest.fixture(params=FOLDERS, ids=lambda make: make.__name__)
def made(request, shared, tmp_path_factory):
    """(ours, theirs, the folder), made once for all tests"""
    if request.param not in MADE:
        folder = tmp_path_factory.mktemp(request.param.__name__)
        theirs = request.param(shared / "data/tokenizers", folder)
        MADE[request.param] = tbf.load_tokenizer(folder), theirs, folder
    return MADE[request.param]


def texts_for(theirs, count, seed):
    """Hostile strings with the tokenizer's own added tokens among them."""
    draw = random.Random(seed)
    names = [str(token) for token in theirs.added_tokens_decoder.values()]
    texts = []
    for text in hostile(count, seed):
        for _ in range(draw.choice([0, 0, 1, 3])):
            at = draw.randint(0, len(text))
            text = text[:at] + draw.choice(["", " ", "  "]) + draw.choice(names) + text[at:]
        texts.append(text)
    return texts


# --- Tests ----------------------------------------------------------------------------------------

def test_the_vocabularies_are_one(made):
    ours, theirs, _ = made
    assert ours.ids == theirs.get_vocab()
    for role in tbf.text.tokenizer.ROLES:
        assert getattr(ours, role) == getattr(theirs, f"{role}_token_id"), role
        assert ours.roles[role] == getattr(theirs, f"{role}_token")


def test_ids_and_places(made):
    ours, theirs, _ = made
    texts = texts_for(theirs, 4000, seed=1)
    expected = theirs(texts, add_special_tokens=False, return_offsets_mapping=True)
    for text, ids, places in zip(texts, expected["input_ids"], expected["offset_mapping"]):
        assert ours.encode(text) == ids, text
        assert ours.trace(text) == (ids, places), text


@pytest.mark.parametrize("options", [
    dict(), dict(max_length=12, padding="max_length"), dict(padding_side="left", max_length=25),
    dict(pad_to_multiple_of=8, truncation=False, return_special_tokens_mask=True,
         return_offsets_mapping=True), dict(truncation=False, add_special_tokens=False),
], ids=str)
def test_batches(made, options):
    ours, theirs, _ = made
    texts, seconds = texts_for(theirs, 300, seed=2), texts_for(theirs, 300, seed=3)
    for pairs in None, seconds:
        call = dict(padding=True, truncation="max_length" in options) | options
        expected = theirs(texts, pairs, return_tensors="np", **call)
        out = ours(texts, pairs, **call)
        assert sorted(out) == sorted(expected)
        for name, array in out.items():
            assert array.tolist() == expected[name].tolist(), name


@pytest.mark.parametrize("how", [{}, {"skip_special_tokens": True}], ids=str)
def test_decoding(made, how):
    ours, theirs, _ = made
    draw = random.Random(4)
    special = [ours.pad, ours.unk, ours.cls, ours.sep, ours.mask, ours.size - 1]
    rows = [draw.choices(range(ours.size), k=draw.randint(0, 9)) for _ in range(1000)]
    rows += [row + draw.choices(special, k=2) + row[:3] for row in rows[:300]]
    rows += [ours.encode(text) for text in texts_for(theirs, 1000, seed=5)]
    for ids in rows:
        assert ours.decode(ids, **how) == theirs.decode(ids, **how)


def test_what_we_save_the_peers_load_equal(made, tmp_path):
    ours, theirs, _ = made
    ours.save(tmp_path)
    again = tbf.load_tokenizer(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == plain.get_vocab() == again.ids == ours.ids
    texts, seconds = texts_for(theirs, 1000, seed=6), texts_for(theirs, 1000, seed=7)
    for pairs in None, seconds:
        expected = theirs(texts, pairs, return_offsets_mapping=True)
        both = texts if pairs is None else list(zip(texts, pairs))
        for row, ids in zip(plain.encode_batch(both), expected["input_ids"]):
            assert row.ids == ids
        found = loaded(texts, pairs, return_offsets_mapping=True)
        assert found["input_ids"] == expected["input_ids"]
        assert found["offset_mapping"] == expected["offset_mapping"]
        out = again(texts, pairs, truncation=False, padding_side="right")
        sizes = out["attention_mask"].sum(1)
        rows = [row[:size].tolist() for row, size in zip(out["input_ids"], sizes)]
        assert rows == expected["input_ids"]
    assert sorted(loaded("a", "b")) == sorted(ours("a", "b"))
    for role in tbf.text.tokenizer.ROLES:
        assert getattr(loaded, f"{role}_token") == ours.roles[role]
    rows = [ours.encode(text) for text in texts]
    assert [loaded.decode(ids) for ids in rows] == [theirs.decode(ids) for ids in rows]


def test_real_text(made, shared):
    import lzma
    ours, theirs, _ = made
    for name in "wiki_en_0.txt.xz", "tinyshakespeare.txt.xz", "botchan.txt.xz":
        with lzma.open(shared / "data/text" / name, "rt", encoding="utf-8") as lines:
            texts = [line for line, _ in zip(lines, range(1500))]
        expected = theirs(texts, add_special_tokens=False)["input_ids"]
        assert [ours.encode(text) for text in texts] == expected


def test_charsmaps_pass_through_files_unchanged(shared, tmp_path):
    path = shared / "data/tokenizers/deberta-v3/spm.model"
    shutil.copy(path, tmp_path)
    tbf.load_tokenizer(tmp_path).save(tmp_path / "new")
    whole = json.loads((tmp_path / "new/tokenizer.json").read_text("utf-8"))
    maps = [base64.b64decode(step["precompiled_charsmap"]) for step in
            whole["normalizer"]["normalizers"] if step["type"] == "Precompiled"]
    assert maps == [sentencepiece.read(path).charsmap]
