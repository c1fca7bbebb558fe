"""The user's own files: each format as it is documented, and every mistake told by its line."""
import gzip
import lzma

import numpy as np
import pytest

from tinybert_family.error import Error
from tinybert_family.text import resources


def refused(call, *parts):
    with pytest.raises(Error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def put(folder, text, name="file.txt"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


READERS = dict(phrases=lambda p: resources.expressions(p, "phrases"),
               entities=lambda p: resources.expressions(p, "entities"), graph=resources.graph,
               vectors=lambda p: resources.vectors(p, set()),
               dialogues=lambda p: list(resources.dialogues(p)))


@pytest.mark.parametrize("flag", resources.FLAGS)
def test_what_is_no_text_is_told(tmp_path, flag):
    read = READERS[flag]
    refused(lambda: read(tmp_path / "none"), f"--{flag}", "does not exist")
    refused(lambda: read(tmp_path), f"--{flag}", "is no file")
    refused(lambda: read(put(tmp_path, "")), f"--{flag}", "is empty")
    refused(lambda: read(put(tmp_path, "\n \n\t\n")), f"--{flag}", "blank lines")
    refused(lambda: read(put(tmp_path, bytes(range(256)))), f"--{flag}", "is binary")
    refused(lambda: read(put(tmp_path, b"caf\xe9 au\tlait\tx\n")), "is not UTF-8 at byte 3")
    packed = lzma.compress(b"a b\n" * 1000)
    refused(lambda: read(put(tmp_path, packed[:40], "cut.xz")), "cut.xz", "damaged")


@pytest.mark.parametrize("pack, name", [(bytes, "p.tsv"), (gzip.compress, "p.tsv.gz"),
                                        (lzma.compress, "p.tsv.xz")])
def test_phrases_and_names(tmp_path, pack, name):
    text = "phrase\tpos\nNew York\tn\n\nself-help\tn\nx\n".encode()
    path = put(tmp_path, pack(text), name)
    assert resources.expressions(path, "phrases") == [
        (("New", "York"), 2), (("self", "-", "help"), 4), (("x",), 5)]
    found = resources.expressions(put(tmp_path, "name\ttype\r\nAda\tperson\r\n"), "entities")
    assert found == [(("Ada",), 2)]


def test_mistakes_in_lists(tmp_path):
    refused(lambda: READERS["phrases"](put(tmp_path, "a b\n\tn\n")), "line 2", "begin the line")
    refused(lambda: READERS["entities"](put(tmp_path, "name\ttype\n")), "heading alone")


def test_a_graph_of_triples_and_surface_forms(tmp_path):
    triples, forms = resources.graph(put(
        tmp_path, "head\trelation\ttail\nQ1\tis_in\tNew_York\nthe one\tQ1\nQ2\tis\tQ1\n"))
    assert triples == [("Q1", "is_in", "New_York"), ("Q2", "is", "Q1")]
    assert forms == [("the one", "Q1", ""), ("New York", "New_York", ""), ("Q2", "Q2", "")]


@pytest.mark.parametrize("text, parts", [
    ("a\tb\tc\nAda\tQ9\n", ["line 2", "'Q9'", "in no triple"]),
    ("a\tb\tc\n\nonly one\n", ["line 3", "1 columns", "head TAB relation TAB tail"]),
    ("a\tb\tc\td\n", ["line 1", "4 columns"]), ("a\t\tc\n", ["line 1", "one is empty"]),
    ("Ada\tQ9\n", ["no triple"]), ("head\trelation\ttail\n", ["no triple"])])
def test_mistakes_in_graphs(tmp_path, text, parts):
    refused(lambda: resources.graph(put(tmp_path, text)), "--graph", "file.txt", *parts)


@pytest.mark.parametrize("head", ["", "3 2\n"])
def test_vectors_as_glove_and_word2vec_write_them(tmp_path, head):
    text = f"{head}the 1 -2.5\nNew York 3e-1 4\n2000 5 6 \nthe 9 9\n"
    words, rows = resources.vectors(put(tmp_path, text), set())
    assert words == ["the", "New York", "2000"] and rows.dtype == np.float32
    assert np.allclose(rows, [[1, -2.5], [.3, 4], [5, 6]])


def test_of_many_vectors_the_first_and_the_wanted_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "FIRST", 2)
    path = put(tmp_path, "".join(f"w{i} {i} 0\n" for i in range(9)))
    assert resources.vectors(path, {"w7"})[0] == ["w0", "w1", "w7"]


@pytest.mark.parametrize("text, parts", [
    ("a 1 2\nb 1\n", ["line 2", "1 numbers, not 2"]),
    ("a 1 2\nb 1 2 3\n", ["line 2", "3 numbers, not 2"]),
    ("2 3\na 1 2\n", ["line 2", "2 numbers, not 3"]),
    ("a 1 2\nb 1 x\n", ["line 2", "'x' is no number"]),
    ("a 1 2\nb 1 nan\n", ["line 2", "not finite"]),
    ("alone\n", ["line 1", "0 numbers"]), ("4 2\n", ["heading alone"]),
    (" 1 2\n", ["line 1"])])
def test_mistakes_in_vectors(tmp_path, text, parts):
    refused(lambda: READERS["vectors"](put(tmp_path, text)), "--vectors", "file.txt", *parts)


def test_dialogues_of_both_forms(tmp_path):
    path = put(tmp_path, '["a?", "b.", "c."]\n\n{"turns": ["d", "e\\ud800"], "id": 7}\n')
    assert list(resources.dialogues(path)) == [["a?", "b.", "c."], ["d", "e?"]]


@pytest.mark.parametrize("text, parts", [
    ('["a", "b", "c"]\n["a"\n', ["line 2", "not JSON"]),
    ('{"turn": ["a", "b"]}\n', ["line 1", "no list of turns"]), ("7\n", ["line 1"]),
    ('["a", 3]\n', ["line 1", "no list of turns"]), ('["a"]\n', ["line 1", "fewer than two"]),
    ('["a", " ", "b"]\n', ["line 1", "empty turn"]), ('["a", "b"]\n', ["three turns"]),
    ("[" * 100_000 + "\n", ["line 1", "not JSON"])])
def test_mistakes_in_dialogues(tmp_path, text, parts):
    refused(lambda: READERS["dialogues"](put(tmp_path, text)), "--dialogues", "file.txt", *parts)


def test_a_files_fingerprint_is_its_content(tmp_path):
    one = resources.sha_of(put(tmp_path, "a", "a"))
    assert one == resources.sha_of(put(tmp_path, "a", "b"))
    assert one != resources.sha_of(put(tmp_path, "b", "b"))
    refused(lambda: resources.sha_of(tmp_path / "none"), "none")


def test_a_published_graph_with_its_names(shared, tmp_path):
    folder = shared / "data/knowledge"
    with lzma.open(folder / "fb15k237_valid.tsv.xz", "rt") as file:
        triples = file.read()
    ids = {name for line in triples.splitlines()[1:] for name in line.split("\t")[::2]}
    with lzma.open(folder / "fb15k237_entities.tsv.xz", "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    forms = "".join(f"{row[1]}\t{row[0]}\n" for row in rows if row[0] in ids and row[1])
    path = put(tmp_path, lzma.compress((triples + forms).encode()), "graph.tsv.xz")
    found, spelt = resources.graph(path)
    assert len(found) == 17535 and len(spelt) > 9000
    wrong = put(tmp_path, triples + "Nowhere\t/m/nowhere\n")
    refused(lambda: resources.graph(wrong), "line 17537", "/m/nowhere")
