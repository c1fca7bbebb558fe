"""python -m tinybert_family: what it shows, to people and to programs, and what it says when
something is wrong."""
import io
import os
import subprocess
import sys
import unicodedata

import pytest
from conftest import ROOT
from hypothesis import given, strategies as st

from tinybert_family import __main__ as program
from tinybert_family.error import Error
from tinybert_family.text import tokenizer_files
from tinybert_family.text.wordpiece import SPECIAL, WordPiece

PIECES = [*SPECIAL, "a", "un", "##aff", "##able", "naive", "你", "好", "!", "b", "c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    WordPiece(PIECES, max_length=12).save(path)
    return str(path)


@pytest.fixture
def told(capsys):
    """Run a command -> what it printed."""
    def run(*argv):
        assert program.main(list(map(str, argv))) == 0
        out, err = capsys.readouterr()
        assert not err
        return out
    return run


@pytest.fixture
def refused(capsys):
    """A command ends with status 2 and one line, in which all these words stand."""
    def run(*argv, words=()):
        assert program.main(list(map(str, argv))) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith("error: ") and err.count("\n") == 1
        assert all(str(word) in err for word in words), err
    return run


def typed(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))


def run(*argv, **how):
    command = [sys.executable, "-m", "tinybert_family", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, **how)


# ---- tokenize

TABLE = """\
    piece   id  type  place  text
 0  [CLS]    2     0
 1  un       6     0  0:2    Un
 2  ##aff    7     0  2:5    aff
 3  ##able   8     0  5:9    able
 4  naive    9     0  10:15  naïve
 5  你      10     0  16:17  你
 6  [UNK]    1     0  17:18  x
 7  !       12     0  18:19  !
 8  [SEP]    3     0
 9  好      11     1  +0:1   好
10  [MASK]   4     1  +2:8   [MASK]
11  [UNK]    1     1  +9:14  e\u0301\\x01a\u0e33
12  [SEP]    3     1

WordPiece of 15 pieces; tokens: 10, and 3 of the frame; characters a token: 3.30; unknown: 2; \
13 in one text are more than the 12 of the model
"""


def test_a_text_and_its_pair_are_shown_in_columns_and_one_line_sums_up(told, folder):
    out = told("tokenize", folder, "Unaffable naïve 你x!", "--pair", "好 [MASK] e\u0301\x01a\u0e33")
    assert out == TABLE


def test_every_text_has_a_table_and_options_may_stand_anywhere(told, folder):
    for argv in ([folder, "a b", "c"], ["--max-length", "9", folder, "a b", "c"],
                 [folder, "a b", "--max-length", "9", "c"], [folder, "--", "a b", "c"]):
        blocks = told("tokenize", *argv).split("\n\n")
        assert [len(block.splitlines()) for block in blocks] == [5, 4, 1]
        assert "tokens: 3, and 4 of the frame; characters a token: 1.33; unknown: 0" in blocks[2]


def test_a_text_is_cut_on_demand_alone(told, folder):
    whole = "a " * 20
    assert "tokens: 20, and 2 of the frame; characters a token: 2.00; " in told(
        "tokenize", folder, whole)
    out = told("tokenize", folder, whole, "--max-length", 5)
    assert "tokens: 3 of 20, and 2 of the frame; characters a token: 1.67; " in out
    assert len(out.splitlines()) == 1 + 5 + 2 and "more than" not in out


def test_ids_alone_are_for_programs(told, folder):
    assert told("tokenize", folder, "a b", "", "unaff!", "--ids") == "2 5 13 3\n2 3\n2 6 7 12 3\n"
    assert told("tokenize", folder, "a", "--pair", "b", "--ids") == "2 5 3 13 3\n"
    assert told("tokenize", folder, "a b", "", "--ids", "--no-frame") == "5 13\n\n"
    assert told("tokenize", "--ids", folder, "--", "--ids") == "2 1 1 1 3\n"


def test_without_a_frame_the_types_tell_two_texts_apart(told, folder):
    rows = told("tokenize", folder, "a b", "--pair", "c", "--no-frame").splitlines()
    assert [row.split()[-2] for row in rows[1:4]] == ["0:1", "2:3", "+0:1"]


def test_models_without_token_types_have_no_column_for_them(told, tmp_path):
    single = [("[CLS]", 0), ("$A", 0), ("[SEP]", 0)]
    pair = [*single, ("[SEP]", 0), ("$B", 0), ("[SEP]", 0)]
    tokenizer = WordPiece(PIECES, single=single, pair=pair, inputs=("input_ids", "attention_mask"))
    tokenizer.save(tmp_path)
    for first, places in ("a b", ["0:1", "2:3", "+0:1"]), ("", ["+0:1"]):
        out = told("tokenize", tmp_path, first, "--pair", "c")
        rows = [row.split() for row in out.splitlines()]
        assert rows[0] == ["piece", "id", "place", "text"]
        assert [row[3] for row in rows if len(row) == 5 and row[0].isdecimal()] == places


def test_an_unknown_piece_that_is_written_out_is_known(told, folder):
    assert told("tokenize", folder, "[UNK] x").endswith("unknown: 1\n")


def test_text_comes_from_a_file_or_from_standard_input(told, folder, monkeypatch, tmp_path):
    data = "\ufeffa\r\n你\n\nb\n".encode()
    for source in "file", "input":
        options = []
        if source == "file":
            (tmp_path / "text").write_bytes(data)
            options = ["--file", tmp_path / "text"]
        typed(monkeypatch, data)
        assert told("tokenize", folder, *options, "--ids") == "2 5 10 13 3\n"
        typed(monkeypatch, data)
        each = told("tokenize", folder, *options, "--ids", "--lines")
        assert each == "2 5 3\n2 10 3\n2 3\n2 13 3\n"


def test_everything_is_visible(told, folder):
    assert program.shown("a b") == "a\u2423b"
    assert program.shown("\t\n\u200d\ufeff\u3000\u202e\\") == r"\t\n\u200d\ufeff\u3000\u202e" + "\\"
    assert program.shown("\u0301e\u0301") == "\u25cc\u0301e\u0301"
    assert program.shown("\U000e0001\ue000\U0010ffff") == r"\U000e0001\ue000\U0010ffff"


@given(st.text(st.characters(), max_size=30))
def test_nothing_that_is_shown_moves_the_cursor(text):
    for c in program.shown(text):
        assert unicodedata.category(c)[0] not in "CZ"


def test_wide_characters_take_two_columns_and_marks_none():
    assert program.width("ab") == 2 and program.width("你好") == program.width("한국") == 4
    assert program.width("e\u0301") == 1 and program.width("\u1100\u1161\u11a8") == 2
    assert program.width("ｱ") == 1 and program.width("！") == 2 and program.width("👍") == 2


@pytest.mark.parametrize("kind", ["bert-base-cased", "roberta-base", "modernbert-base",
                                  "albert-base", "deberta-v3"])
def test_every_kind_of_published_tokenizer_is_shown(told, shared, kind):
    path = shared / "data" / "tokenizers" / kind
    text = "Hello world, naïve 你好!  e\u0301"
    tokenizer = tokenizer_files.load(path)
    out = told("tokenize", path, text)
    ids = tokenizer([text])["input_ids"][0].tolist()
    rows = [line.split() for line in out.splitlines()[1:1 + len(ids)]]
    assert [int(row[2]) for row in rows] == ids
    assert tokenizer.KIND in out.splitlines()[-1]


# ---- what goes wrong

def test_wrong_commands_and_options_are_told_in_a_line(refused, folder, tmp_path):
    refused("tokenise", folder, "a", words=["tokenise", "did you mean tokenize?"])
    refused("xyz", words=["xyz", "there are tokenize"])
    refused("tokenize", words=["FOLDER", "tokenize --help"])
    refused("tokenize", folder, "a", "--idz", words=["--idz", "tokenize --help"])
    refused("tokenize", folder, "a", "--max-length", "x", words=["--max-length", "'x'"])
    refused("tokenize", folder, "a", "--max-length", "0", words=["--max-length 0"])
    refused("tokenize", folder, "a", "--max-length", "1", words=["max_length 1"])
    refused("tokenize", folder, "a", "--file", "b", words=["--file"])
    refused("tokenize", folder, "a", "b", "--pair", "c", words=["--pair", "2"])
    refused("tokenize", tmp_path / "none", "a", words=[tmp_path / "none"])
    refused("tokenize", tmp_path, "a", words=[tmp_path, "tokenizer.json"])
    refused("tokenize", folder, "--file", tmp_path / "none", words=[tmp_path / "none"])
    refused("tokenize", folder, "half \udc80", words=["U+DC80"])


def test_bytes_that_are_no_text_are_told(refused, folder, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"fine\nb\xff")
    refused("tokenize", folder, "--file", tmp_path / "a", words=[tmp_path / "a", "line 2", "0xff"])
    typed(monkeypatch, b"b\xff")
    refused("tokenize", folder, words=["standard input", "byte 1", "0xff"])


def test_an_error_shows_where_it_came_from_on_demand(monkeypatch):
    monkeypatch.setenv("TINYBERT_DEBUG", "1")
    with pytest.raises(Error):
        program.main(["xyz"])


def test_an_interruption_is_quiet(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt
    monkeypatch.setitem(program.COMMANDS, "tokenize",
                        program.COMMANDS["tokenize"]._replace(run=interrupted))
    assert program.main(["tokenize", "x", "y"]) == 130
    assert capsys.readouterr() == ("", "")


# ---- from outside

def test_help_teaches_and_is_where_people_look_for_it(capsys):
    for argv in [], ["-h"], ["--help"]:
        assert program.main(argv) == 0
        out = capsys.readouterr().out
        assert all(f"    {name} " in out for name in program.COMMANDS) and "TINYBERT_DEBUG" in out
    for name, command in program.COMMANDS.items():
        with pytest.raises(SystemExit) as left:
            program.main([name, "--help"])
        out = capsys.readouterr().out
        assert left.value.code == 0 and f"python -m tinybert_family {name} " in command.examples
        assert command.examples.strip() in out
        assert max(map(len, out.splitlines())) <= 100


def test_it_runs_as_a_program_on_a_terminal_that_knows_no_accents(folder):
    done = run("tokenize", folder, "naïve 你", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and not done.stderr
    assert rb"na\xefve" in done.stdout and rb"\u4f60" in done.stdout
    done = run("tokenize", folder, "--max-length", "0", "a")
    assert done.returncode == 2 and done.stderr.startswith(b"error: --max-length 0")


def test_a_reader_who_has_seen_enough_is_no_error(folder, tmp_path):
    (tmp_path / "long").write_text("a\n" * 20_000)
    command = [sys.executable, "-m", "tinybert_family", "tokenize", folder, "--lines", "--ids",
               "--file", str(tmp_path / "long")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"2 5 3\n"
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_it_needs_numpy_and_regex_alone():
    code = """
import sys
sys.modules["tqdm"] = None
import tinybert_family.__main__
print(*{name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"numpy", "regex", "tinybert_family"} <= set(done.stdout.split())
    assert not {"torch", "transformers", "tokenizers"} & set(done.stdout.split())


# ---- learn

TEXT = "The cat sat on the mat, and the naïve dog sat on the log.\n" * 20


@pytest.mark.parametrize("kind, size", [("wordpiece", 40), ("bpe", 280), ("unigram", 30)])
def test_a_learnt_vocabulary_is_saved_and_shown(told, tmp_path, kind, size):
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    out = told("learn", kind, tmp_path / "text.txt", "--size", size, "--out", tmp_path / "new")
    assert f"of {size} pieces" in out and "tokenize" in out
    t = tokenizer_files.load(tmp_path / "new")
    assert t.size == size and t.KIND.lower().startswith(kind[:3])
    assert len(t.encode("the cat sat")) < len("the cat sat")
    text = t.decode(t.encode("The naïve cat"))
    assert text == ("The naïve cat" if kind == "bpe" else "the naive cat")


def test_capitals_are_kept_when_asked(told, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    for kind in "wordpiece", "unigram":
        told("learn", kind, tmp_path / "text.txt", "--size", 60, "--out", tmp_path / kind,
             "--cased")
        t = tokenizer_files.load(tmp_path / kind)
        assert t.decode(t.encode("The naïve")) == "The naïve"


def test_a_text_that_gives_no_more_is_told(told, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    out = told("learn", "wordpiece", tmp_path / "text.txt", "--out", tmp_path / "new")
    assert "fewer than the 8,192" in out


def test_what_learn_refuses(refused, told, tmp_path):
    text, new = tmp_path / "text.txt", tmp_path / "new"
    text.write_text(TEXT)
    refused("learn", "bpee", text, "--out", new, words=["'bpee'", "wordpiece, bpe, unigram"])
    refused("learn", "bpe", tmp_path / "none", "--out", new, words=["none", "no such file"])
    refused("learn", "bpe", text, "--size", 100, "--out", new, words=["100", "261"])
    refused("learn", "bpe", text, "--out", text, words=["text.txt"])
    refused("learn", "bpe", text, words=["--out"])
    told("learn", "bpe", text, "--size", 270, "--out", new)
    before = {path.name: path.read_bytes() for path in new.iterdir()}
    refused("learn", "bpe", text, "--size", 280, "--out", new, words=["already", "another folder"])
    assert before == {path.name: path.read_bytes() for path in new.iterdir()}
