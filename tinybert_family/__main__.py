"""What can be done with a tokenizer or a model from the command line.

    python -m tinybert_family tokenize FOLDER "Some text."     see a text as a model sees it
    python -m tinybert_family learn bpe my.txt --out mine       learn a vocabulary from your texts
    python -m tinybert_family tokenize --help                  more of that
"""
import argparse
import difflib
import os
import signal
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Callable, NamedTuple

from .error import Error
from .files import make_writable, read_text
from .text import corpus, tokenizer_files
from .text.bytebpe import ByteBPE
from .text.unigram import Unigram
from .text.wordpiece import WordPiece

PROGRAM = "python -m tinybert_family"


class Command(NamedTuple):
    """A row of COMMANDS. run(args) prints, and raises Error where the user can put it right."""
    about: str
    options: Callable           # adds the command's own to a parser
    run: Callable
    examples: str               # what --help ends with


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are Errors."""

    def error(self, message):
        raise Error(f"{message}; see {self.prog} --help")


# ---- tokenize

TOKENIZE = """
A row for every token: its number, the piece, its id, the token type where the model wants one, and
the characters start:end of the text that it stands for (those of the second text after a +).
Spaces are shown as ␣, what cannot be seen as escapes, an accent without its letter on ◌.

  python -m tinybert_family tokenize runs/mine "A text." "Another one."
  python -m tinybert_family tokenize runs/mine --pair "And its answer?" "A question."
  python -m tinybert_family tokenize runs/mine --file notes.txt --lines --ids > ids.txt
  echo "A text." | python -m tinybert_family tokenize runs/mine
  python -m tinybert_family tokenize runs/mine -- "-- a text that begins with a dash"
"""


def tokenize_options(add):
    add("folder", metavar="FOLDER", help="holds tokenizer.json, vocab.txt, vocab.json and "
        "merges.txt, or a model of SentencePiece")
    add("texts", metavar="TEXT", nargs="*", help="without any, standard input is read")
    add("--pair", metavar="TEXT", help="a second text, behind the first one")
    add("--file", metavar="FILE", help="a text file, UTF-8, in place of TEXT")
    add("--lines", action="store_true", help="each line of the file or input is a text of its own")
    add("--max-length", type=int, metavar="N", help="cut to N tokens, those of the frame included")
    add("--no-frame", action="store_true", help="without [CLS], [SEP] and their like around it")
    add("--ids", action="store_true", help="print a line of ids for each text, and nothing else")


def tokenize(args):
    if args.texts and args.file:
        raise Error("TEXT and --file are both given; leave one out")
    if args.max_length is not None and args.max_length < 1:
        raise Error(f"--max-length {args.max_length}: at least 1 is needed")
    tokenizer = tokenizer_files.load(args.folder)
    texts = args.texts or read_texts(args)
    if args.pair is not None and len(texts) != 1:
        raise Error(f"--pair needs one TEXT to stand behind, not {len(texts)}; give a single one")
    how = dict(max_length=args.max_length, truncation=args.max_length is not None,
               add_special_tokens=not args.no_frame)
    pairs = None if args.pair is None else [args.pair]
    if args.ids:
        for text in texts:
            print(*tokenizer([text], pairs, **how)["input_ids"][0].tolist())
        return
    total, longest = Counter(), 0
    for text in texts:
        seen = Seen(tokenizer, text, args.pair, how)
        print_table(seen.rows())
        print()
        total.update(seen.counts())
        longest = max(longest, len(seen.ids))
    print(summary(tokenizer, total, longest))


def read_texts(args):
    if args.file is None:
        if sys.stdin.isatty():
            print("a text, please; Ctrl-D on a line of its own ends it", file=sys.stderr)
        raw = sys.stdin.buffer.read()
        try:
            text = raw.decode()
        except UnicodeDecodeError as e:
            raise Error(f"standard input: not UTF-8 at byte {e.start} (0x{raw[e.start]:02x}); "
                        "convert it first") from None
    else:
        text = read_text(args.file)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
    return text.split("\n") if args.lines else [text]


class Seen:
    """A text, and perhaps a second one, as a model sees it."""

    def __init__(self, tokenizer, text, second, how):
        self.tokenizer, self.texts = tokenizer, [text] + [second] * (second is not None)
        called = tokenizer(*[[each] for each in self.texts], **how, return_token_type_ids=True,
                           return_special_tokens_mask=True, return_offsets_mapping=True)
        self.ids, self.types, self.frame = (
            called[name][0].tolist()
            for name in ("input_ids", "token_type_ids", "special_tokens_mask"))
        self.places = [tuple(place) for place in called["offset_mapping"][0].tolist()]

    def owners(self):
        """For each token the number of its text; None for those of the frame."""
        template = self.tokenizer.pair if len(self.texts) == 2 else self.tokenizer.single
        names, kinds = [name for name, _ in template], dict(template)
        before, passed = names.index("$A"), 0
        for special, kind in zip(self.frame, self.types):
            passed += special
            # Where nothing stands between the two, only their types tell them apart.
            second = passed > before or kind != kinds["$A"]
            yield None if special else int(len(self.texts) == 2 and second)

    def rows(self):
        """[(number, piece, id, type, place, characters of the text)]"""
        vocab, typed = self.tokenizer.vocab, "token_type_ids" in self.tokenizer.inputs
        rows = [("", "piece", "id", "type" * typed, "place", "text")]
        columns = zip(self.ids, self.types, self.owners(), self.places)
        for number, (id_, kind, owner, (start, end)) in enumerate(columns):
            place = text = ""
            if owner is not None:
                place = "+" * owner + f"{start}:{end}"
                text = shown(self.texts[owner][start:end])
            rows.append((str(number), shown(vocab[id_]), str(id_), str(kind) * typed, place, text))
        return rows

    def counts(self):
        """What the summary adds up."""
        tokens, whole = self.frame.count(0), sum(map(len, map(self.tokenizer.encode, self.texts)))
        spans, unknown = {}, 0
        unk, name = self.tokenizer.unk, self.tokenizer.roles["unk"]
        for id_, owner, (start, end) in zip(self.ids, self.owners(), self.places):
            if owner is not None:
                first, last = spans.get(owner, (start, end))
                spans[owner] = min(first, start), max(last, end)
                # The name of the unknown piece may be written in the text; then it is known.
                unknown += id_ == unk and self.texts[owner][start:end] != name
        if tokens == whole:
            characters = sum(map(len, self.texts))
        else:                   # cut: what the tokens reach over, white space between words, too
            characters = sum(last - first for first, last in spans.values())
        return dict(tokens=tokens, whole=whole, characters=characters, unknown=unknown,
                    frame=self.frame.count(1))


def summary(tokenizer, total, longest):
    rate = total["characters"] / max(1, total["tokens"])
    line = f"{tokenizer.KIND} of {tokenizer.size:,} pieces; tokens: {total['tokens']:,}"
    if total["tokens"] < total["whole"]:
        line += f" of {total['whole']:,}"
    line += f", and {total['frame']:,} of the frame; characters a token: {rate:.2f}; "
    line += f"unknown: {total['unknown']:,}"
    if tokenizer.max_length is not None and longest > tokenizer.max_length:
        line += f"; {longest:,} in one text are more than the {tokenizer.max_length:,} of the model"
    return line


# ---- text in columns

def print_table(rows):
    """Numbers to the right, words to the left; columns without anything are left out."""
    columns = [column for column in zip(*rows) if any(column)]
    widths = [max(map(width, column)) for column in columns]
    for row in zip(*columns):
        cells = []
        for cell, size, column in zip(row, widths, columns):
            blank, number = " " * (size - width(cell)), column[-1].isdecimal()
            cells.append(blank + cell if number else cell + blank)
        print("  ".join(cells).rstrip())


UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}


def shown(text):
    """The text with everything visible."""
    found = []
    for i, c in enumerate(text):
        kind = unicodedata.category(c)
        if c == " ":
            found.append("␣")
        elif kind in UNSEEN:
            found.append(c.encode("unicode_escape").decode())
        else:
            found.append("◌" * (i == 0 and kind[0] == "M") + c)
    return "".join(found)


def width(text):
    """How many columns of a terminal a text takes: two for a wide character of East Asia, none
    for an accent upon another, or for a vowel that joins a Korean syllable."""
    size = 0
    for c in text:
        joins = unicodedata.category(c) in ("Mn", "Me") or "\u1160" <= c <= "\u11ff"
        size += 0 if joins else 1 + (unicodedata.east_asian_width(c) in "WF")
    return size


# ---- the commands

# ---- learn

LEARN = """
KIND is wordpiece (BERT, ELECTRA, ERNIE ...), bpe (RoBERTa, DeBERTa, ModernBERT) or unigram (ALBERT,
DeBERTa v2 and v3). Text files, folders of them, .gz, .xz, .bz2, .jsonl with a field "text"; without
any, the texts of Python's own documentation. transformers and train.py --tokenizer load the result.

  python -m tinybert_family learn wordpiece my_texts/ --size 8192 --out mine
  python -m tinybert_family learn unigram my.txt notes.txt.gz --cased --out mine
"""
KINDS = dict(wordpiece=WordPiece, bpe=ByteBPE, unigram=Unigram)


def learn_options(add):
    add("kind", metavar="KIND", help="wordpiece, bpe or unigram")
    add("paths", metavar="PATH", nargs="*", help="what to learn from")
    add("--out", metavar="FOLDER", required=True, help="where the tokenizer's files go")
    add("--size", type=int, default=8192, metavar="N", help="how many pieces (8192)")
    add("--cased", action="store_true", help="keep capitals and accents (bpe always does)")
    add("--encoding", default="utf-8", metavar="NAME", help="of the text files (utf-8)")


def learn(args):
    from .console import bar            # it draws with tqdm, which nothing else here needs
    kind, out = KINDS.get(args.kind), Path(args.out)
    if kind is None:
        raise Error(f"KIND {args.kind!r}: choose one of {', '.join(KINDS)}")
    if (out / "tokenizer.json").exists():
        raise Error(f"{out} holds a tokenizer already; choose another folder for --out")
    documents = corpus.read(args.paths, args.encoding) if args.paths else corpus.embedded()
    make_writable(out)
    texts = ("\n".join(document.sentences) for document in documents)
    progress = bar("pieces", "piece")
    cased = {} if kind is ByteBPE else {"lower": not args.cased}
    tokenizer = kind.train(texts, args.size, progress=progress, **cased)
    tokenizer.save(out)
    print(f"{kind.KIND} of {tokenizer.size:,} pieces in {out}; see it with\n"
          f'    {PROGRAM} tokenize {out} "Some text."')
    if tokenizer.size < args.size:
        print(f"fewer than the {args.size:,} that were asked for: the text has no more that repeat")


COMMANDS = {
    "tokenize": Command("see a text as a model sees it: pieces, ids and their places",
                        tokenize_options, tokenize, TOKENIZE),
    "learn": Command("learn a vocabulary from texts", learn_options, learn, LEARN),
}


def overview():
    rows = "\n".join(f"    {name:10}{command.about}" for name, command in COMMANDS.items())
    return (f"{__doc__.strip()}\n\ncommands:\n{rows}\n\n"
            "Each has a --help of its own, with examples. TINYBERT_DEBUG=1 shows where an error "
            "came from.")


def run(argv):
    if not argv or argv[0] in ("-h", "--help"):
        return print(overview())
    name, command = argv[0], COMMANDS.get(argv[0])
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise Error(f"{PROGRAM} {name}: there is no such command; {hint}")
    parser = Parser(prog=f"{PROGRAM} {name}", description=command.about.capitalize() + ".",
                    epilog=command.examples, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    command.options(parser.add_argument)
    # Intermixed: options may stand before, between and after the texts.
    command.run(parser.parse_intermixed_args(argv[1:]))


def main(argv):
    for stream in sys.stdout, sys.stderr:               # what a terminal cannot show is escaped
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        run(argv)
        sys.stdout.flush()
        return 0
    except Error as problem:
        if os.environ.get("TINYBERT_DEBUG"):
            raise
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:                             # as behind `| head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
