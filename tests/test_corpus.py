"""Text in, ids out: the generated language, reading, the embedded corpus, the mapped files."""
import argparse
import bz2
import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings, strategies as st

from tinybert_family import files
from tinybert_family.error import Error
from tinybert_family.text import corpus, toy
from tinybert_family.text.corpus import Corpus, Document, read
from tinybert_family.text.wordpiece import SPECIAL, WordPiece

ROOT = Path(__file__).resolve().parent.parent


class Words:
    """A tokenizer of the least kind: every new word is the next id."""
    def __init__(self, size=65536):
        self.size, self.ids = size, {}

    def encode(self, text):
        return [self.ids.setdefault(word, len(self.ids)) for word in text.split()]


def refused(call, *parts):
    """The call raises Error, in one line that has all the parts."""
    with pytest.raises(Error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def texts(path, **options):
    return [d.sentences for d in read(path, **options)]


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# ---------------------------------------------------------------------------------------------- toy

def test_toy_is_the_same_on_every_machine():
    text = "".join(map(corpus.as_text, toy.documents(200)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "52ea5ce1f6f0c5b1827e3ec2d351d827b6ea94dddfcb7a755e9617d2a15a2f51"


def test_a_larger_toy_begins_with_the_smaller_one_and_another_seed_is_another_toy():
    assert toy.documents(30)[:10] == toy.documents(10)
    assert toy.documents(10, seed=1) != toy.documents(10, seed=0)
    assert toy.documents(2, seed=-1) != toy.documents(2, seed=1)


def test_toy_is_small_full_and_never_repeats_a_document():
    documents = toy.documents(200)
    words = [w.strip(".,").lower() for d in documents for s in d.sentences for w in s.split()]
    assert 200 <= len(set(words)) <= 300
    assert len({tuple(d.sentences) for d in documents}) == 200
    assert all(len(d.sentences) >= 10 and "{" not in " ".join(d.sentences) for d in documents)
    assert all(corpus.sentences(s) == [s] for d in documents for s in d.sentences)


def test_a_toy_document_is_true_to_its_own_facts():
    for document in toy.documents(200):
        text = " ".join(document.sentences)
        [town] = [town for town in toy.TOWNS if town in text]
        assert f" {toy.TOWNS[town][0]}" in text             # Milford lies in Norland, always
        [animal] = [animal for animal in toy.ANIMALS if f" {animal} called" in text]
        assert f" {toy.ANIMALS[animal][2]}" in text
        for *_, one, many in toy.JOBS.values():             # never "one loaves", never "two loaf"
            assert f"one {many} " not in text and f"two {one} " not in text


# ---------------------------------------------------------------------------------------- sentences

@pytest.mark.parametrize("paragraph, expected", [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    ("Mr. Bennet said so. Dr. Who, too.", ["Mr. Bennet said so.", "Dr. Who, too."]),
    ("J. S. Bach wrote it. He did.", ["J. S. Bach wrote it.", "He did."]),
    ("Use e.g. This one.", ["Use e.g. This one."]),
    ('He said "Go." Then "Stay!" she said.', ['He said "Go."', 'Then "Stay!" she said.']),
    ("It is 3.5 or so. 4 are more...", ["It is 3.5 or so.", "4 are more..."]),
    ("and so on. no capital follows", ["and so on. no capital follows"]),
    ("你好。他说“走吧！”我们走。", ["你好。", "他说“走吧！”", "我们走。"]),
    ("A\u2028line\x0b and\ta \u3000 tab. \u00a0 Next\r\n", ["A line and a tab.", "Next"]),
    ("", []), (" \t\n", []), ("a", ["a"])])
def test_sentences_end_where_a_reader_ends_them(paragraph, expected):
    assert corpus.sentences(paragraph) == expected


@given(st.text(st.characters() | st.sampled_from(".!?。\"') A"), max_size=200))
def test_cutting_loses_no_character_but_white_space(text):
    cut = corpus.sentences(text)
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert all(s and s == " ".join(s.split()) for s in cut)


# The rules as one expression, as slow as it is plain.
PLAIN = regex.compile(r"""
      (?<= [.!?…] ["'”’»)\]]{0,3} )
      (?<! \b (?: Mr | Mrs | Ms | Dr | Prof | St | vs | cf | e\.g | i\.e | \p{Lu} ) \. )
      \s (?= ["'“‘«(\[]{0,3} [\p{Lu}\p{Lo}\p{N}] )
    | (?<= [。！？] [”’」』）]{0,3} ) (?= [^”’」』）。！？\s] )
    """, regex.VERBOSE | regex.VERSION1)
BITS = [*".!?…。！？\"'”’»)]」』）“‘«([ \u3000\x1c", "A", "É", "9", "的", "a", "Mr", "e.g", "vs"]


@settings(max_examples=500)
@given(st.text(st.characters()) | st.lists(st.sampled_from(BITS)).map("".join))
def test_the_quick_search_cuts_where_the_plain_rules_do(text):
    assert corpus.sentences(text) == [s for s in PLAIN.split(" ".join(text.split())) if s]


@pytest.mark.parametrize("unit", ["a", ")", ".", "。", '."', "A. ", "! ", "Mr. "])
def test_400_kb_of_one_thing_are_cut_without_delay(unit):
    text = unit * (400_000 // len(unit))
    assert "".join(corpus.sentences(text)).replace(" ", "") == text.replace(" ", "")


# ------------------------------------------------------------------------------------------ reading

def test_a_line_is_a_paragraph_and_a_blank_line_ends_a_document(tmp_path):
    path = put(tmp_path / "a.txt", "One. Two.\nThree.\n\n  \nFour.\n")
    assert list(read(path)) == [Document("a.txt#1", ["One.", "Two.", "Three."]),
                                Document("a.txt#2", ["Four."])]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_and_a_byte_order_mark_read_the_same(tmp_path, ends):
    text = ends.join(["One.", "", "Two\u2028too."])
    for mark in b"", b"\xef\xbb\xbf":
        path = put(tmp_path / "a.txt", mark + text.encode())
        assert texts(path) == [["One."], ["Two too."]]


@pytest.mark.parametrize("suffix, pack", [("gz", gzip.compress), ("xz", lzma.compress),
                                          ("bz2", bz2.compress)])
def test_packed_files_read_like_plain_ones(tmp_path, suffix, pack):
    plain = put(tmp_path / "a.txt", "One. Two.\n\nÄpfel.")
    packed = put(tmp_path / f"a.txt.{suffix}", pack(plain.read_bytes()))
    assert texts(packed) == texts(plain)
    record = put(tmp_path / f"b.jsonl.{suffix}", pack(b'{"text": "One. Two."}'))
    assert texts(record) == [["One.", "Two."]]
    cut = put(tmp_path / f"cut.txt.{suffix}", packed.read_bytes()[:-9])
    refused(lambda: texts(cut), cut, "damaged")
    refused(lambda: texts(put(tmp_path / f"not.{suffix}", b"plain text")), f"not.{suffix}")


def test_a_packed_file_damaged_far_inside_is_refused_by_name(tmp_path):
    words = "\n".join(hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(20_000))
    path = put(tmp_path / "a.gz", gzip.compress(words.encode())[:-1000])
    refused(lambda: texts(path), path, "damaged after line")


def test_jsonl_gives_a_document_a_line(tmp_path):
    lines = ['{"text": "One. Two.\\nThree."}', "",
             '{"sentences": ["A b. C", " d  e "], "name": "x"}',
             '{"text": ""}', '{"text": "\\ud800 half"}']
    path = put(tmp_path / "a.jsonl", "\n".join(lines))
    assert list(read(path)) == [Document("a.jsonl#1", ["One.", "Two.", "Three."]),
                                Document("x", ["A b. C", "d e"]), Document("a.jsonl#5", ["? half"])]


@pytest.mark.parametrize("line", [
    '{"text": "cut', "{'text': 1}", "[" * 100_000, "9" * 5000, '{"other": "x"}', '["text"]',
    '"text"', '{"text": 3}', '{"text": null}', '{"sentences": [1]}', '{"sentences": {}}'])
def test_wrong_json_names_file_and_line(tmp_path, line):
    path = put(tmp_path / "a.jsonl", '{"text": "Fine."}\n\n' + line)
    refused(lambda: texts(path), path, "line 3")


def test_a_folder_is_read_in_sorted_order_whatever_lies_in_it(tmp_path):
    for name in "b.txt", "a/z.txt", "a/y.md", "c.jsonl":
        put(tmp_path / "data" / name, json.dumps({"text": name}) if "json" in name else name)
    put(tmp_path / "data" / "picture.png", b"\x89PNG\0\0\0")
    put(tmp_path / "data" / "empty.txt", b"")
    put(tmp_path / "data" / ".git" / "config", "hidden")
    put(tmp_path / "data" / ".hidden", "hidden")
    os.symlink(tmp_path / "data", tmp_path / "data" / "loop")
    os.mkfifo(tmp_path / "data" / "pipe")
    notes = []
    found = list(read([tmp_path / "data"], note=notes.append))
    assert [d.sentences for d in found] == [["a/y.md"], ["a/z.txt"], ["b.txt"], ["c.jsonl"]]
    assert [d.name for d in found] == ["a/y.md#1", "a/z.txt#1", "b.txt#1", "c.jsonl#1"]
    assert len(notes) == 2
    assert "empty.txt: it is empty" in notes[0] and "png: it is binary" in notes[1]


def test_notes_go_to_standard_error(tmp_path, capsys):
    put(tmp_path / "a.txt", "text"), put(tmp_path / "b.bin", b"\0")
    list(read(tmp_path))
    assert "b.bin: it is binary" in capsys.readouterr().err


def test_a_folder_without_text_lists_what_it_has(tmp_path):
    folder = tmp_path / "my_texts"
    folder.mkdir()
    refused(lambda: texts(folder), folder, "0 file", "--data")
    put(folder / "a.pdf", b"%PDF\0"), put(folder / "b.txt", b""), put(folder / "d.txt", " \n")
    put(folder / "c.txt", b"a" * 1042 + b"\xe4")
    refused(lambda: texts(folder, note=str), folder, "4 file", "a.pdf is binary", "b.txt is empty",
            "c.txt is not UTF-8 at byte 1042 (try --encoding cp1252)")
    for i in range(20):
        put(folder / f"e{i}", b"\0")
    refused(lambda: texts(folder, note=str), "and 15 more")


def test_files_named_outright_must_be_text(tmp_path):
    refused(lambda: read(tmp_path / "none.txt"), "none.txt", "no such file")
    refused(lambda: texts(put(tmp_path / "a", b"")), tmp_path / "a", "is empty")
    refused(lambda: texts(put(tmp_path / "b", b" \r\n\n")), tmp_path / "b", "no usable text")
    refused(lambda: texts(put(tmp_path / "c", b"text\0text")), tmp_path / "c", "is binary")
    refused(lambda: texts(put(tmp_path / "d", bytes(range(1, 256)))), tmp_path / "d", "is binary")
    far = put(tmp_path / "e", b"text\n" * 20_000 + b"\0")
    refused(lambda: texts(far), far, "line 20001", "NUL")
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: read(tmp_path / "pipe"), tmp_path / "pipe", "not a regular file")


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=1, max_size=2000))
def test_random_bytes_are_read_or_refused_in_one_line(tmp_path_factory, data):
    path = put(tmp_path_factory.mktemp("random") / "a", data)
    try:
        assert all(texts(path))
    except Error as e:
        assert str(path) in str(e) and "\n" not in str(e)


@pytest.mark.parametrize("at", [0, 5, 65_535, 65_536, 200_003])
def test_the_first_invalid_byte_is_named(tmp_path, at):
    # Two-byte characters lie across the ends of blocks.
    data = (b"x" * (at % 2) + "é".encode() * (at // 2)) + b"\xff more"
    path = put(tmp_path / "a.txt", data)
    refused(lambda: texts(path), path, f"not UTF-8 at byte {at} ", "--encoding cp1252")
    packed = put(tmp_path / "a.txt.gz", gzip.compress(data))
    refused(lambda: texts(packed), packed, f"byte {at} ")
    assert texts(path, encoding="latin-1")[0][0].endswith("ÿ more")


def test_a_character_cut_off_at_the_end_is_invalid_too(tmp_path):
    refused(lambda: texts(put(tmp_path / "a", b"abc\xc3")), "byte 3 ")


def test_other_encodings_are_read_when_named(tmp_path):
    path = put(tmp_path / "a.txt", "Äpfel. Öl.\n\nÜbel.".encode("utf-16"))
    refused(lambda: texts(path), path, "UTF-16", "--encoding utf-16")
    assert texts(path, encoding="utf-16") == [["Äpfel.", "Öl."], ["Übel."]]
    for name in "utf-9", "hex", "rot13", "":
        refused(lambda: read(path, encoding=name), f"--encoding {name}", "try utf-8")
    undefined = put(tmp_path / "b.txt", b"abc\x81")
    refused(lambda: texts(undefined, encoding="cp1252"), undefined, "byte 3 ", "--encoding utf-8")


def test_text_without_blank_lines_becomes_documents_of_bounded_size(tmp_path):
    path = put(tmp_path / "a.txt", "All work and no play.\n" * 150_000)
    found = list(read(path))
    assert len(found) == 4 and sum(len(d.sentences) for d in found) == 150_000
    assert [d.name for d in found] == [f"a.txt#{n}" for n in (1, 2, 3, 4)]
    endless = put(tmp_path / "b.txt", "a" * 3_000_000)
    assert [len(d.sentences[0]) for d in read(endless)] == [1 << 20, 1 << 20, 3_000_000 - (2 << 20)]


def test_reading_takes_the_memory_of_a_document_not_of_the_file(tmp_path):
    path = put(tmp_path / "a.txt.gz", gzip.compress(b"Some words in a line.\n\n" * 150_000))
    tracemalloc.start()
    count = sum(len(d.sentences) for d in read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 150_000 and peak < 1e6              # of 3.4 MB


# ------------------------------------------------------------------------------ the embedded corpus

@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of this file's own, so that the embedded corpus is really made once here."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYBERT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def embedded(cache):
    documents, info = corpus.embedded_with_info()
    if "toy" in info["name"]:
        pytest.skip(f"this Python carries no documentation: {info['line']}")
    return documents, info


def test_the_embedded_corpus_is_large_enough_to_learn_from(embedded):
    documents, info = embedded
    words = sum(len(s.split()) for d in documents for s in d.sentences)
    assert len(documents) >= 300 and words >= 150_000
    assert info["line"].startswith(f"{info['name']}: {len(documents)} documents")
    assert info["sha256"][:8] in info["line"]


def test_the_embedded_corpus_is_clean(embedded):
    documents, _ = embedded
    cut = [s for d in documents for s in d.sentences]
    assert all(s == " ".join(s.split()) and s for s in cut)
    assert not any(s.startswith((">>>", "* ", "- ")) or "::=" in s or "``" in s for s in cut)
    letters = sum(map(str.isalpha, "".join(cut))) / sum(map(len, cut))
    assert letters > 0.75
    assert len({d.name for d in documents}) == len(documents)


def test_a_damaged_cache_is_made_anew(embedded, cache, monkeypatch):
    documents, info = embedded
    made = []
    monkeypatch.setattr(corpus, "first_source", lambda: made.append(1) or (info["name"], documents))
    [file] = cache.iterdir()
    before = file.read_bytes()
    assert corpus.embedded() == documents and not made
    for damage in before[:-100], before.replace(b"the", b"teh", 1), b"\xff" + before, b"":
        file.write_bytes(damage)
        assert corpus.embedded_with_info() == (documents, info)
        assert made.pop() and file.read_bytes() == before
    assert [f.name for f in cache.iterdir()] == [file.name]


def test_the_hash_does_not_depend_on_the_process(embedded):
    code = ("from tinybert_family.text import corpus as c; "
            "print(''.join(map(c.as_text, c.first_source()[1])))")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True,
                         env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONUTF8": "1"}).stdout
    made = out.decode().replace("\r\n", "\n").removesuffix("\n")
    assert hashlib.sha256(made.encode()).hexdigest() == embedded[1]["sha256"]


def test_a_tenth_of_the_embedded_corpus_is_held_out(embedded, tmp_path):
    documents, info = embedded
    made = Corpus.build(documents, Words(), tmp_path / "c", name=info["name"])
    assert made.info["sha256"] == info["sha256"] and made.info["held_out"] == "whole documents"
    assert set(made.train) | set(made.held) == set(range(len(documents)))
    assert not set(made.train) & set(made.held)
    assert 0.06 < len(made.held) / len(documents) < 0.16
    held = {s for d in made.held for s in documents[d].sentences if len(s.split()) > 12}
    train = {s for d in made.train for s in documents[d].sentences}
    assert len(held) > 300 and len(held & train) < 0.02 * len(held)


def test_twins_are_on_the_same_side(embedded, tmp_path):
    pairs = [("io", "_pyio"), ("decimal", "_pydecimal"), ("abc", "_abc"), ("wave", "sunau"),
             ("datetime", "_pydatetime"), ("pdb", "help on debugger"), ("bz2", "lzma")]
    for one, other in pairs:
        assert corpus.share(one) == corpus.share(other)
    assert len({corpus.share(f"module {i}") for i in range(1000)}) == 1000
    many = [Document(f"{mark}m{i}", ["One."]) for i in range(100) for mark in ("", "_", "_py")]
    made = Corpus.build(many, Words(), tmp_path / "c")
    held = {int(d) for d in made.held}
    assert held and all({3 * i, 3 * i + 1, 3 * i + 2} <= held for i in {d // 3 for d in held})


def test_without_sources_numpy_serves_and_without_anything_the_toy(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(corpus, "topics", list)
    name, documents = corpus.first_source()
    assert "what there is" in name and len(documents) > 20
    assert all(d.name.startswith("numpy.") for d in documents)
    monkeypatch.setattr(corpus.np, "__file__", str(tmp_path / "numpy" / "__init__.py"))
    monkeypatch.setenv("TINYBERT_CACHE", str(tmp_path / "cache"))
    documents, info = corpus.embedded_with_info()
    assert documents == toy.documents(2000) and info["line"].startswith("toy language")


def test_sources_that_do_not_parse_are_passed_over(tmp_path):
    good = '"""Words of the module."""\nif 1:\n  class A:\n    def f():\n      "Its words"'
    files = {"good.py": good, "latin.py": b'# coding: latin-1\n"""\xe4"""', "bad.py": "def",
             "nul.py": b"\0", "wrong.py": b'"\xff"', "deep.py": "(" * 5000, "notes.txt": "No.",
             "test/skipped.py": '"""No."""', "pack/__init__.py": "async def g():\n  'g'"}
    for name, data in files.items():
        put(tmp_path / name, data)
    found = {name: text.split() for name, text in corpus.docstrings(tmp_path)}
    good = "Words of the module. Its words".split()
    assert found == {"good": good, "latin": ["ä"], "pack": ["g"]}


def test_prose_is_kept_and_code_tables_and_grammar_are_not():
    text = """A heading
=========

This is **very** good ``text`` that *goes* on
over two lines, with *args kept.

- a first point of five words
- a second point of five words
  that goes on

    x = f(1, 2) + g[3]; y += 2 ** 7

>>> this looks like words of English
| one | two words here and there |
too few words

name ::= this is grammar and no English text
left column words        right column words here
"""
    assert list(corpus.prose(text)) == [
        "This is very good text that goes on over two lines, with *args kept.",
        "a first point of five words", "a second point of five words that goes on"]


def test_the_cache_goes_where_it_may(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYBERT_CACHE", str(tmp_path / "own" / "deep"))
    assert corpus.cache_folder() == tmp_path / "own" / "deep"
    monkeypatch.delenv("TINYBERT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert corpus.cache_folder() == tmp_path / "xdg" / "tinybert_family"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path)), monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert corpus.cache_folder() == tmp_path / ".cache" / "tinybert_family"
    blocked = put(tmp_path / "a file", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    assert corpus.cache_folder() == tmp_path / "tmp" / "tinybert_family"
    monkeypatch.setenv("TINYBERT_CACHE", str(blocked / "x"))
    refused(corpus.cache_folder, blocked / "x", "TINYBERT_CACHE")


def test_a_full_disk_costs_only_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYBERT_CACHE", str(tmp_path))
    monkeypatch.setattr(corpus, "first_source", lambda: ("small", toy.documents(3)))
    monkeypatch.setattr(corpus.os, "fsync", full)
    assert corpus.embedded() == toy.documents(3)
    assert list(tmp_path.iterdir()) == []


def full(file):
    raise OSError(28, "No space left on device")


# ----------------------------------------------------------------------------- ids in mapped memory

def words_of(made, number):
    """The ids of a document, sentence by sentence."""
    cuts = made.sentences[made.documents[number]:made.documents[number + 1] + 1]
    return [made.ids[a:b].tolist() for a, b in zip(cuts[:-1], cuts[1:])]


def check(made, documents, tokenizer):
    """What is true of every corpus."""
    assert made.sentences[0] == made.documents[0] == 0
    assert made.sentences[-1] == len(made.ids) and made.documents[-1] == len(made.sentences) - 1
    assert (np.diff(made.sentences) > 0).all() and (np.diff(made.documents) > 0).all()
    assert len(made.names) == len(made.documents) - 1
    assert len(made.train) and len(made.held)
    coded = [ids for d in documents for s in d.sentences if (ids := tokenizer.encode(s))]
    assert [ids for d in range(len(made.names)) for ids in words_of(made, d)] == coded
    json.dumps(made.info)
    kept = [s for d in documents for s in d.sentences if s.split()]
    assert made.info["tokens"] == made.info["words"] == sum(len(s.split()) for s in kept)
    assert made.info["sentences"] == len(kept) and made.info["characters"] == sum(map(len, kept))
    assert made.info["documents"] == sum(any(s.split() for s in d.sentences) for d in documents)
    both = set(made.train.tolist()) & set(made.held.tolist())
    assert not both or made.info["sentences"] == 1
    assert set(made.train.tolist()) | set(made.held.tolist()) == set(range(len(made.names)))


sentence_texts = st.lists(st.sampled_from(["a", "b", "ccc"]), max_size=4).map(" ".join)
document_lists = st.lists(st.builds(Document, st.text("ab_ #\n", max_size=4),
                                    st.lists(sentence_texts, max_size=12)), max_size=30)


@settings(deadline=None, max_examples=60)
@given(document_lists)
def test_any_documents_become_a_whole_corpus_with_two_sides(tmp_path_factory, documents):
    folder, tokenizer = tmp_path_factory.mktemp("any") / "c", Words()
    if not any(s.split() for d in documents for s in d.sentences):
        refused(lambda: Corpus.build(documents, tokenizer, folder, name="mine"), "mine", "no text")
        assert list(folder.parent.iterdir()) == []
    else:
        check(Corpus.build(documents, tokenizer, folder), documents, tokenizer)


def test_ids_are_mapped_not_read_and_survive_reopening(tmp_path):
    documents, tokenizer = toy.documents(50), Words()
    made = Corpus.build(documents, tokenizer, tmp_path / "c", name="toy")
    check(made, documents, tokenizer)
    again = Corpus.open(str(tmp_path / "c"))
    for what in corpus.ARRAYS:
        array = getattr(again, what)
        assert isinstance(array, np.memmap) and not array.flags.writeable
        assert (array == getattr(made, what)).all()
    assert again.names == made.names == [d.name for d in documents] and again.info == made.info
    assert again.sentences.dtype == again.documents.dtype == again.train.dtype == np.int64


def test_ids_take_two_bytes_where_the_vocabulary_fits_and_four_elsewhere(tmp_path):
    for size, kind in (65536, np.uint16), (65537, np.uint32):
        made = Corpus.build([Document("d", ["w"])], Constant(size - 1, size), tmp_path / str(size))
        assert made.ids.dtype == kind and made.ids[0] == size - 1


class Constant:
    def __init__(self, value, size):
        self.value, self.size = value, size

    def encode(self, text):
        return [self.value]


@pytest.mark.parametrize("value", [-1, 10, 70_000])
def test_ids_out_of_range_are_refused_and_leave_nothing_behind(tmp_path, value):
    refused(lambda: Corpus.build(toy.documents(1), Constant(value, 10), tmp_path / "c"),
            f"token id {value}", "toy 0", "10 entries")
    assert list(tmp_path.iterdir()) == []


def test_the_same_documents_give_the_same_bytes(tmp_path):
    for folder in "one", "two":
        Corpus.build(toy.documents(40), Words(), tmp_path / folder, name="toy")
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == sorted([f"{a}.bin" for a in corpus.ARRAYS] + ["corpus.json"])
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_few_documents_each_give_their_end_to_the_held_out_side(tmp_path):
    lengths = {"long": 50, "one": 1, "two": 2}
    documents = [Document(name, ["w"] * length) for name, length in lengths.items()]
    made = Corpus.build(documents, Words(), tmp_path / "c")
    assert made.names == ["long", "long (end)", "one", "two", "two (end)"]
    assert np.diff(made.documents).tolist() == [45, 5, 1, 1, 1]
    assert made.held.tolist() == [1, 4] and made.train.tolist() == [0, 2, 3]
    assert made.info["documents"] == 3 and made.info["held_out"] == "the end of each document"


def test_one_token_is_a_corpus_and_says_what_it_is_tested_on(tmp_path):
    made = Corpus.build([Document("d", ["w"])], Words(), tmp_path / "c")
    assert made.train.tolist() == made.held.tolist() == [0] and len(made.ids) == 1
    assert "training text" in made.info["held_out"]


def test_a_document_keeps_its_side_when_others_come(tmp_path):
    few = Corpus.build(toy.documents(100), Words(), tmp_path / "few")
    many = Corpus.build(toy.documents(150), Words(), tmp_path / "many")
    assert many.held[many.held < 100].tolist() == few.held.tolist()


def test_building_streams(tmp_path):
    """A generator is drawn from one document at a time, and memory does not grow with the text."""
    drawn, done = [], []

    def endless(count):
        for number in range(count):
            assert number == 0 or len(done) == number   # the one before is finished
            drawn.append(number)
            yield Document(f"d{number}", [f"w{number % 7} " * 500] * 8)

    tracemalloc.start()
    made = Corpus.build(endless(300), Words(), tmp_path / "c", progress=done.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(made.ids) == 1_200_000 and peak < 1e6     # 3.6 MB of text, 2.4 MB of ids
    assert len(drawn) == 300 and done == sorted(done) and done[-1] == made.info["characters"]


def test_a_build_that_fails_leaves_what_was_there(tmp_path):
    before = Corpus.build(toy.documents(20), Words(), tmp_path / "c")

    def broken():
        yield from toy.documents(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Corpus.build(broken(), Words(), tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert Corpus.open(tmp_path / "c").info == before.info


def test_an_older_corpus_is_replaced_and_other_folders_are_not(tmp_path):
    Corpus.build(toy.documents(20), Words(), tmp_path / "c")
    made = Corpus.build(toy.documents(30), Words(), tmp_path / "c")
    assert made.info["documents"] == 30 and not (tmp_path / "c" / "older").exists()
    (tmp_path / "empty").mkdir()
    assert Corpus.build(toy.documents(3), Words(), tmp_path / "empty").info["documents"] == 3
    mine = put(tmp_path / "letters" / "a.txt", "dear")
    refused(lambda: Corpus.build(toy.documents(3), Words(), mine.parent), mine.parent, "no corpus")
    refused(lambda: Corpus.build(toy.documents(3), Words(), mine), mine, "no corpus")
    assert mine.read_text() == "dear"


def test_a_full_disk_and_a_forbidden_folder_are_told_in_a_line(tmp_path, monkeypatch):
    blocked = put(tmp_path / "file", "") / "c"
    refused(lambda: Corpus.build(toy.documents(3), Words(), blocked), blocked, "another folder")
    monkeypatch.setattr(corpus.os, "fsync", full)
    wanted = tmp_path / "c"
    refused(lambda: Corpus.build(toy.documents(3), Words(), wanted), wanted, "No space")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_every_damage_to_a_corpus_is_told_when_it_is_opened(tmp_path):
    folder = tmp_path / "c"
    refused(lambda: Corpus.open(folder), folder, "does not exist")
    Corpus.build(toy.documents(20), Words(), folder)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        half, twice = whole[:len(whole) // 2], whole + whole
        for damage in (whole[:-1], whole[:-8], half, twice, b"", None):
            path.unlink() if damage is None else path.write_bytes(damage)
            refused(lambda: Corpus.open(folder), folder, "is damaged", "build it again")
            path.write_bytes(whole)
    for text in "[]", "{}", "[" * 100_000, '{"arrays": 3}', "\0", '{"arrays": {"ids": ["O", 1]}}':
        (folder / "corpus.json").write_text(text)
        refused(lambda: Corpus.open(folder), folder, "is damaged")


def test_the_real_texts_beside_the_checkout_read_whole(shared):
    path = shared / "data" / "text" / "wikitext2_valid.txt.xz"
    found, text = list(read([path])), lzma.decompress(path.read_bytes()).decode()
    assert len(found) == sum(bool(block.strip()) for block in text.split("\n\n"))
    assert " ".join(s for d in found for s in d.sentences).split() == text.split()


# -------------------------------------------------------------------------- what train.py makes of it

def test_a_corpus_is_made_once_for_a_text_and_a_tokenizer_whatever_its_vocabulary(
        monkeypatch, tmp_path):
    import train
    monkeypatch.setenv("TINYBERT_CACHE", str(tmp_path))
    path = put(tmp_path / "text" / "a.txt", "An a. A b.")
    made = []

    def documents():
        made.append(1)
        return read(path)

    def ids(**options):
        tokenizer = WordPiece([*SPECIAL, "a", "b", "an", "."], **options)
        args = argparse.Namespace(data=[str(path)], encoding="utf-8", workers=None)
        return train.corpus_of(documents, "mine", args, tokenizer).ids.tolist()

    assert ids() == ids() == [7, 5, 8, 5, 6, 8] and len(made) == 1
    assert ids(lower=False) == [1, 5, 8, 1, 6, 8] and len(made) == 2        # An and A are unknown
    assert ids(lower=False) == [1, 5, 8, 1, 6, 8] and len(made) == 2
    put(path, "A b.")
    assert ids() == [5, 6, 8] and len(made) == 3


def test_a_long_text_tells_now_and_then_how_far_it_is(monkeypatch, tmp_path, capsys):
    import train
    monkeypatch.setenv("TINYBERT_CACHE", str(tmp_path))
    times = iter(range(0, 1000, 4))
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(times))
    args = argparse.Namespace(data=None, encoding="utf-8", workers=1)
    tokenizer = WordPiece([*SPECIAL, "a"])
    train.corpus_of(lambda: toy.documents(9), "toy", args, tokenizer)
    told = capsys.readouterr().out.splitlines()
    assert told == ["data   0 million characters are numbers now"] * 3     # after 12 seconds each
