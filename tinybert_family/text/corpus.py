"""Files -> documents -> sentences -> token ids in memory-mapped files.

Everything streams: a document is read, cut into sentences, encoded (encoders.py) and written before
the next is looked at, or a few megabytes later where several processes share the work; so a corpus
may be larger than memory. What is held out is decided here too.

  read(paths)    plain text, .jsonl, folders of both, also packed as .gz .xz .bz2
  embedded()     the corpus of a machine without one: the documentation that every CPython brings
  Corpus         the ids on disk, mapped into memory when opened
"""
import ast
import bz2
import codecs
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import shutil
import sys
import sysconfig
import tokenize
import zlib
from pathlib import Path

import numpy as np
import regex

from tinybert_family.error import Error
from tinybert_family.files import cache_folder
from tinybert_family.text import encoders, toy
from tinybert_family.text.encoders import characters
from tinybert_family.text.toy import Document

# ---------------------------------------------------------------------------------------- sentences
# A sentence ends at . ! or ? (and closing quotes) before a space and a capital, digit or opening
# quote, but not after short words with a full stop of their own, nor after initials (J. S. Bach).
# The space stands first in the expression, for then a search leaps from space to space. Repeats are
# bounded, so hostile text costs no more.
SENTENCE_END = regex.compile(r"""
    [ ] (?<= [.!?…] ["'”’»)\]]{0,3} [ ] )
        (?<! \b (?: Mr | Mrs | Ms | Dr | Prof | St | vs | cf | e\.g | i\.e | \p{Lu} ) \. [ ] )
        (?= ["'“‘«(\[]{0,3} [\p{Lu}\p{Lo}\p{N}] )
    """, regex.VERBOSE | regex.VERSION1)
# Chinese and Japanese write no space there.
HAS_WIDE_STOP = regex.compile("[。！？]").search
WIDE_END = regex.compile("(?<= [。！？] [”’」』）]{0,3} ) (?= [^”’」』）。！？ ] )",
                         regex.VERBOSE | regex.VERSION1)


def sentences(paragraph):
    """A paragraph's sentences. White space of every kind (tabs, U+2028, ...) becomes one space."""
    found = SENTENCE_END.split(" ".join(paragraph.split()))
    if HAS_WIDE_STOP(paragraph):
        found = [s for part in found for s in WIDE_END.split(part)]
    return [s for s in found if s]


# ------------------------------------------------------------------------------------------ reading
OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
DAMAGED = (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError)
HEAD = 1 << 16                      # bytes by which a file is judged
LONGEST = 1 << 20                   # characters after which a document without blank lines is cut
CONTROL = regex.compile(r"[\x01-\x08\x0E-\x1A\x1C-\x1F\x7F]")


def read(paths, encoding="utf-8", note=lambda line: print(line, file=sys.stderr)):
    """Files and folders -> an iterator of Documents.

    Plain text: a paragraph per line, a blank line between documents; without blank lines, documents
    of a million characters. .jsonl: a document per line, {"text": "..."} or {"sentences": ["..."]},
    perhaps with a "name". A folder is read recursively in sorted order, hidden files aside; what is
    no text in it is skipped and told to note(line). A file that is named outright must be text.
    """
    try:
        io.TextIOWrapper(io.BytesIO(), encoding)    # refuses what is no encoding of text, as hex
        encoding = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise Error(f"--encoding {encoding} does not exist; try utf-8, cp1252, latin-1") from None
    paths = [Path(p) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    return stream(paths, listed(paths), encoding, note)


def listed(paths):
    """[(path, name, from a folder?)]: a name must not depend on where a folder lies."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            inside = {p.relative_to(path).as_posix(): p for p in path.rglob("*")}
            seen = [n for n in sorted(inside) if not regex.search(r"(^|/)\.", n)]
            found += [(inside[n], n, True) for n in seen if os.path.isfile(inside[n])]
        elif os.path.isfile(path):
            found.append((path, path.name, False))
        elif os.path.exists(path):
            raise Error(f"{path} is not a regular file; save it as a file first")
        else:
            raise Error(f"{path}: no such file or folder; give text files or folders to --data")
    return found


def stream(paths, files, encoding, note):
    """The documents of all files, and an Error if there is none."""
    usable, skipped = 0, []
    for path, name, in_folder in files:
        fault = judge(path, encoding)
        if fault and not in_folder:
            raise Error(f"{path} {fault}; give text or .jsonl, or either packed as .gz .xz .bz2")
        if fault:
            skipped.append(f"{name} {fault}")
            note(f"skipped {path}: it {fault}")
            continue
        jsonl = regex.search(r"\.jsonl(\.gz|\.xz|\.bz2)?$", name)
        for document in (from_jsonl if jsonl else from_text)(path, name, encoding):
            usable += 1
            yield document
    if not usable:
        why = skipped[:8] + [f"and {len(skipped) - 8} more"] * (len(skipped) > 8)
        raise Error(f"no usable text in {', '.join(map(str, paths))}: {len(files)} file(s)"
                    f"{', ' * bool(why)}{', '.join(why)}; give text or .jsonl to --data")


def open_bytes(path):
    return OPENERS.get(path.suffix, open)(path, "rb")


def judge(path, encoding):
    """What keeps a file from being read as text, by its first 64 kB; None if nothing does."""
    try:
        with open_bytes(path) as file:
            head = file.read(HEAD)
    except (*DAMAGED, OSError) as e:
        return f"cannot be read or is damaged ({e})"
    if not head:
        return "is empty"
    if encoding == "utf-8" and head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "is not UTF-8 at byte 0 but looks like UTF-16 (try --encoding utf-16)"
    # No text has control characters; bytes that fail to decode may just be another encoding's.
    text = head.decode(encoding, "replace")
    if "\0" in text or len(CONTROL.findall(text)) > len(text) / 100:
        return "is binary"
    return wrong_byte(io.BytesIO(head), encoding, whole=len(head) < HEAD)


def wrong_byte(file, encoding, whole=True):
    """Where a file stops being valid, in words for the user; None if it is valid throughout."""
    decoder, seen, block = codecs.getincrementaldecoder(encoding)(), 0, True
    while block:
        block = file.read(HEAD)
        seen += len(block)
        try:
            decoder.decode(block, final=whole and not block)
        except UnicodeError as e:
            # e.object ends where reading stopped and starts with what the last block left over.
            at = seen - len(e.object) + e.start if isinstance(e, UnicodeDecodeError) else 0
            other = "utf-8" if encoding != "utf-8" else "cp1252"
            return f"is not {encoding.upper()} at byte {at} (try --encoding {other})"


def lines(path, encoding, limit=-1):
    """(number, line) of a text file, without byte order mark, whatever ends its lines."""
    encoding, number = "utf-8-sig" if encoding == "utf-8" else encoding, 1
    try:
        with io.TextIOWrapper(open_bytes(path), encoding) as file:
            while line := file.readline(limit):     # a longer line comes in pieces
                if "\0" in line:
                    raise Error(f"{path} line {number} has a NUL, which no text has; mend the file")
                yield number, line
                number += line.endswith("\n")
    except UnicodeError:
        with open_bytes(path) as file:
            fault = wrong_byte(file, encoding.removesuffix("-sig"))
        raise Error(f"{path} {fault}") from None
    except (*DAMAGED, OSError) as e:
        raise Error(f"{path} is damaged after line {number} ({e}); copy it anew") from None


def from_text(path, name, encoding):
    part, found, size = 1, [], 0
    for _, line in lines(path, encoding, LONGEST):
        found += sentences(line)
        size += len(line)
        if found and (line.isspace() or size >= LONGEST):
            yield Document(f"{name}#{part}", found)
            part, found, size = part + 1, [], 0
    if found:
        yield Document(f"{name}#{part}", found)


def from_jsonl(path, name, encoding):
    for number, line in lines(path, encoding):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:   # also numbers of 5,000 digits, deep brackets
            raise Error(f"{path} line {number} is not JSON ({e}); mend the line") from None
        record = record if isinstance(record, dict) else {}
        found = record.get("sentences", record.get("text"))
        if isinstance(found, str):
            found = [s for paragraph in found.split("\n") for s in sentences(paragraph)]
        if not isinstance(found, list) or not all(isinstance(s, str) for s in found):
            raise Error(f'{path} line {number} lacks a text; write {{"text": "..."}} in each line')
        # JSON can spell half a character (a lone surrogate), which no encoding writes: "?".
        found = [" ".join(s.encode("utf-8", "replace").decode().split()) for s in found]
        if any(found):
            yield Document(str(record.get("name", f"{name}#{number}")), [s for s in found if s])


# ------------------------------------------------------------------------------ the embedded corpus
RULES = 1                           # raised when the cleaning changes: caches are made anew
ENOUGH = 200_000                    # characters below which the next source is tried
NOT_DOCUMENTATION = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages",
                     "pydoc_data", "_bundled", "__pycache__"}


def embedded():
    """The default corpus, a list of Documents."""
    return embedded_with_info()[0]


def embedded_with_info():
    """(documents, {name, line, sha256}); the line tells the user which source it came from."""
    key = hashlib.sha256(f"{RULES} {sys.version} {sysconfig.get_path('stdlib')}".encode())
    path = cache_folder() / f"python-{sys.version.split()[0]}-{key.hexdigest()[:8]}.txt"
    try:
        name, sha, text = path.read_text("utf-8").split("\n", 2)
        if hashlib.sha256(text.encode()).hexdigest() != sha:
            raise ValueError
    except (OSError, ValueError):                   # not there yet, or damaged
        name, documents = first_source()
        text = "".join(map(as_text, documents))
        sha = hashlib.sha256(text.encode()).hexdigest()
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            save(temporary, f"{name}\n{sha}\n{text}".encode())
            os.replace(temporary, path)
        except OSError:                             # a full disk costs no more than the cache
            temporary.unlink(missing_ok=True)
    blocks = [block.split("\n") for block in text.split("\n\n")[:-1]]
    line = f"{name}: {len(blocks)} documents, {len(text) / 1e6:.2f} MB, sha256 {sha[:8]}"
    return [Document(name, rest) for name, *rest in blocks], dict(name=name, line=line, sha256=sha)


def as_text(document):
    """The form that is cached and hashed: the name, a line for each sentence, a blank line."""
    return "\n".join([document.name, *document.sentences, "", ""])


def first_source():
    """(name, documents) of the first source with enough text: some Pythons carry no sources."""
    python = f"documentation of CPython {sys.version.split()[0]}"
    texts = [*docstrings(sysconfig.get_path("stdlib")), *topics()]
    found = clean(texts)
    if sum(map(characters, found)) >= ENOUGH:
        return python, found
    found = clean([*texts, *docstrings(os.path.dirname(np.__file__), "numpy.")])
    if sum(map(characters, found)) >= ENOUGH:
        return f"{python} (what there is) and NumPy {np.__version__}", found
    return "toy language (this Python carries no documentation)", toy.documents(2000)


def topics():
    """Python's own help pages: [(name, text)]."""
    try:
        from pydoc_data.topics import topics as pages
    except ImportError:
        return []
    return [(f"help on {name}", pages[name]) for name in sorted(pages)]


def docstrings(root, prefix=""):
    """Every docstring below a folder of sources, one text a module: yields (name, text)."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - NOT_DOCUMENTATION)
        for path in sorted(Path(folder, file) for file in files if file.endswith(".py")):
            try:
                with tokenize.open(path) as source:     # knows of coding: lines
                    tree = ast.parse(source.read())
            except (SyntaxError, ValueError, OSError, RecursionError):
                continue                                # what does not parse is no loss
            parts = path.relative_to(root).with_suffix("").parts
            name = prefix + ".".join(part for part in parts if part != "__init__")
            yield name, "\n\n".join(docs_of(tree))


def docs_of(node):
    """The docstrings of a tree as written. Only statements that hold statements are entered."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield ast.get_docstring(node) or ""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            yield from docs_of(child)


# Lines that are no prose: sessions, directives, tables and fields; grammar; underlines; columns.
NOT_PROSE = regex.compile(
    r"^\s*(>>>|\.\.\.?\s|[|+]|:\w+:)|::=|^\s*([^\w\s])(\s?\2){2,}\s*$|\S {4,}\S")
BULLET = regex.compile(r"^\s*([-*+•o]|\(?[\da-zA-Z][.)])\s+")
# ``code``, `code', **strong** and *strong*; but not *args.
MARKUP = regex.compile(
    r"(`+)([^`]+)\1|`+([^`']+)'+|\*\*([^*]+)\*\*|(?<!\w)\*(\w[^*]*\w|\w)\*(?!\w)")


def prose(text):
    """The paragraphs of a docstring that are English, each as one line without its markup."""
    words = []
    for line in [*text.splitlines(), ""]:
        bullet = BULLET.match(line)
        if bullet or not line.strip():              # either begins something new
            # Five words, and letters for four characters in five: no heading, table or code.
            letters = "".join(words)
            if len(words) >= 5 and sum(map(str.isalpha, letters)) >= 0.8 * len(letters):
                yield MARKUP.sub(r"\2\3\4\5", " ".join(words))
            words = []
        if not NOT_PROSE.search(line):
            words += line[bullet.end() if bullet else 0:].split()


def clean(texts):
    """[(name, text)] -> Documents. A paragraph that was seen before, anywhere, is dropped."""
    seen, documents = set(), []
    for name, text in texts:
        new = [p for p in dict.fromkeys(prose(text)) if p not in seen]
        seen.update(new)
        found = [sentence for paragraph in new for sentence in sentences(paragraph)]
        if len(found) > 1:                          # a sentence alone has no neighbour
            documents.append(Document(name, found))
    return documents


# ----------------------------------------------------------------------------- ids in mapped memory
ARRAYS = "ids sentences documents train held".split()


class Corpus:
    """Documents as numbers on disk. Sentence s is ids[sentences[s]:sentences[s + 1]]; document d
    is the sentences documents[d] to documents[d + 1]; train and held are document numbers."""

    def __init__(self, arrays, names, info, folder=None):
        self.ids = arrays["ids"]                    # uint16 or uint32 [N]
        self.sentences = arrays["sentences"]        # int64 [n + 1], cuts into ids
        self.documents = arrays["documents"]        # int64 [d + 1], cuts into sentences
        self.train, self.held = arrays["train"], arrays["held"]
        self.names, self.info, self.folder = names, info, folder

    @staticmethod
    def build(documents, tokenizer, folder, name="", progress=None, processes=None):
        """Encode documents as they come, a long text in several `processes` (None: one a core).
        After each document progress(characters done) is called."""
        folder = Path(folder).absolute()
        work = folder.with_name(f".{folder.name}-{os.urandom(4).hex()}")
        try:
            mine = not folder.exists() or (folder / "corpus.json").is_file()
            if not mine and (not folder.is_dir() or any(folder.iterdir())):
                raise Error(f"{folder} exists and is no corpus; give a folder that is new or empty")
            # Written under another name: a build that dies leaves no half corpus under this one.
            work.mkdir(parents=True)
            found = encoders.encoded(documents, tokenizer, work, processes)
            with contextlib.closing(found):         # which ends the processes, too
                write(work, found, encoders.kind_of(tokenizer), name, progress)
            if folder.exists():                     # what was there steps aside, and is deleted
                os.rename(folder, work / "older")
            os.rename(work, folder)
            shutil.rmtree(folder / "older", ignore_errors=True)
        except OSError as e:
            raise Error(f"cannot write the corpus {folder} ({e}); give another folder") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return Corpus.open(folder)

    @staticmethod
    def open(folder):
        """Map a corpus that was built before. Sizes and cuts are checked; the ids are not read."""
        folder = Path(folder)
        try:
            about = json.loads((folder / "corpus.json").read_text("utf-8"))
            arrays = {}
            for what in ARRAYS:
                kind, length = about["arrays"][what]
                arrays[what] = np.memmap(folder / f"{what}.bin", kind, "r")
                if len(arrays[what]) != length:
                    raise ValueError(f"{what}.bin holds {len(arrays[what])} numbers, not {length}")
            corpus = Corpus(arrays, about["names"], about["info"], folder)
            ends = corpus.sentences[-1], corpus.documents[-1], len(corpus.names)
            fits = ends == (len(corpus.ids), len(corpus.sentences) - 1, len(corpus.documents) - 1)
            if not fits or max(corpus.train.max(), corpus.held.max()) >= len(corpus.names):
                raise ValueError("its files do not fit each other")
            return corpus
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as e:
            what = "is damaged" if folder.exists() else "does not exist"
            raise Error(f"the corpus {folder} {what} ({e}); build it again from its text") from None


def write(folder, found, kind, name, progress):
    """Stream (document, Encoded) into a corpus's files. In memory stay only the documents' names
    and cuts. A sentence of which no token is left is left out."""
    names, cuts, sha = [], [0], hashlib.sha256()
    words = size = tokens = done = 0
    with open(folder / "ids.bin", "wb") as ids_file, open(folder / "sentences.bin", "wb") as ends:
        ends.write(bytes(8))                        # the first sentence starts at 0
        for document, (ids, lengths, own_words) in found:
            kept = Document(document.name, [*itertools.compress(document.sentences, lengths)])
            if kept.sentences:
                ids_file.write(ids.tobytes())
                ends.write((tokens + np.cumsum(lengths[lengths > 0], dtype="<i8")).tobytes())
                sha.update(as_text(kept).encode("utf-8", "replace"))
                names.append(kept.name)
                cuts.append(cuts[-1] + len(kept.sentences))
                tokens += len(ids)
                words += own_words
                size += characters(kept)
            done += characters(document)
            if progress:
                progress(done)
        sync(ids_file)
        sync(ends)
    if not names:
        raise Error(f"{name or 'the corpus'} holds no text at all; give more to --data")
    info = dict(name=name, documents=len(names), sentences=cuts[-1], words=words, characters=size,
                tokens=tokens, sha256=sha.hexdigest())
    cuts, names, train, held, info["held_out"] = split(np.array(cuts), names)
    arrays = {"ids": (kind, tokens), "sentences": ("<i8", info["sentences"] + 1)}
    for what, array in ("documents", cuts), ("train", train), ("held", held):
        save(folder / f"{what}.bin", array.astype("<i8").tobytes())
        arrays[what] = "<i8", len(array)
    about = json.dumps(dict(info=info, arrays=arrays, names=names), indent=1)
    save(folder / "corpus.json", about.encode())


def save(path, data):
    with open(path, "wb") as file:
        file.write(data)
        sync(file)


def sync(file):                     # a folder is renamed only when the disk has all of it
    file.flush()
    os.fsync(file.fileno())


# --------------------------------------------------------------------------------- what is held out
HELD = 0.1                          # share of the documents
FEW = 10                            # documents below which each gives its own last tenth instead
# Modules copied from one another belong on one side (io and _pyio are told by their names).
TWINS = {"help on debugger": "pdb", "sunau": "aifc", "wave": "aifc", "lzma": "bz2", "gzip": "bz2",
         "asyncio.locks": "threading", "asyncio.queues": "queue", "tkinter.tix": "tkinter",
         "wsgiref.headers": "email.message", "email.quoprimime": "email.base64mime"}


def share(name):
    """A number in [0, 1) drawn from a name; io and _pyio, abc and _abc draw the same."""
    name = regex.sub(r"^_(py)?", "", name)
    key = f"held out {TWINS.get(name, name)}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.sha256(key).digest()[:6], "big") / 2**48


def split(cuts, names):
    """(cuts, names, train, held, in words): which documents are held out. No side is ever empty.

    Normally those whose name draws a number below HELD: stable when documents are added.
    With fewer than FEW documents chance would give a poor share; the last tenth of each becomes a
    document of its own, and those are held. One sentence alone serves both sides.
    """
    lengths = np.diff(cuts)
    long = lengths > 1
    if len(names) < FEW and long.any():
        tails = cuts[1:][long] - np.maximum(1, lengths[long] // 10)
        names = [part for n, two in zip(names, long) for part in [n, f"{n} (end)"][:1 + two]]
        cuts = np.sort(np.concatenate([cuts, tails]))
        held, how = np.isin(cuts[:-1], tails), "the end of each document"
    else:
        shares, how = np.array([share(name) for name in names]), "whole documents"
        held = shares < HELD
        if not held.any() or held.all():
            held = shares == shares.min()
        if held.all() and len(names) > 1:           # all go by one name
            held[:-1] = False
    held, train = np.flatnonzero(held), np.flatnonzero(~held)
    if not len(train):
        return cuts, names, held, held, "the training text, for it is one sentence"
    return cuts, names, train, held, how
