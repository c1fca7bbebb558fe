"""The user's own knowledge: what the files look like, and every mistake in them told by its line.

All are UTF-8 text, perhaps packed as .gz .xz .bz2; blank lines are skipped.

--phrases FILE      a phrase of two words or more in each line, without regard to capitals; what
                    follows a tab is ignored. A first line that begins with `phrase` is a heading.
--entities FILE     a name in each line, written as in the text, capitals and all; what follows a
                    tab (a type, a number) is ignored. A first line that begins with `name` is a
                    heading.
--vectors FILE      word vectors as GloVe and word2vec write them: a word and its numbers in each
                    line, spaces between; perhaps a first line of two numbers, how many, how wide.
--graph FILE        lines of three columns are triples, head TAB relation TAB tail; lines of two are
                    surface forms, text TAB entity: how a text may write a head or tail. Entities
                    without one are looked for by their own names (underscores read as spaces). A
                    form of several entities is left out. A first line of `head`, `relation` and
                    `tail` is a heading.
--dialogues FILE    .jsonl: a dialogue in each line, ["Where are you?", "Here.", "Good."] or
                    {"turns": [...]}, at least one of them of three turns or more.
"""
import hashlib
import json
import math
from pathlib import Path

import numpy as np

from ..error import Error
from ..files import shown, told
from . import corpus, surface

FLAGS = ("phrases", "entities", "vectors", "graph", "dialogues")
FIRST = 100_000                 # of a file of vectors; of those behind, only the corpus's words
MOST = 10**5                    # numbers in a vector


def sha_of(path):
    """What a file holds, in 64 letters."""
    sha = hashlib.sha256()
    with told(path, "check the path"), open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def lines_of(path, flag):
    """(line number, line without its end); an Error if there is no such file or it is no text"""
    where = f"--{flag} {shown(path)}"
    path = Path(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise Error(f"{where} {what}; give a file of text, perhaps packed as .gz .xz .bz2")
    fault = corpus.judge(path, "utf-8")
    if fault:
        raise Error(f"{where} {fault}; give UTF-8 text, perhaps packed as .gz .xz .bz2")
    empty = True
    for number, line in corpus.lines(path, "utf-8"):
        line = line.rstrip("\r\n")
        if line and not line.isspace():
            empty = False
            yield number, line
    if empty:
        raise Error(f"{where} holds nothing but blank lines; give a file that says something")


def expressions(path, flag):
    """--phrases and --entities -> [(words, line number)]"""
    heading, found = dict(phrases="phrase", entities="name")[flag], []
    for number, line in lines_of(path, flag):
        text = line.split("\t")[0]
        if number == 1 and text == heading:
            continue
        words = tuple(surface.words_of(text))
        if not words:
            raise Error(f"--{flag} {shown(path)} line {number}: nothing stands before the tab; "
                        f"begin the line with the {heading}")
        found.append((words, number))
    if not found:
        raise Error(f"--{flag} {shown(path)} holds a heading alone; add a {heading} in each line")
    return found


def graph(path):
    """--graph -> ([(head, relation, tail)], [(text, entity, "")])"""
    where, triples, forms = f"--graph {shown(path)}", [], []
    for number, line in lines_of(path, "graph"):
        columns = [column.strip() for column in line.split("\t")]
        if number == 1 and columns == ["head", "relation", "tail"]:
            continue
        if len(columns) not in (2, 3) or not all(columns):
            raise Error(f"{where} line {number} has {len(columns)} columns"
                        f"{' and one is empty' * (not all(columns))}; write head TAB relation TAB "
                        "tail, or text TAB entity")
        if len(columns) == 3:
            triples.append(tuple(columns))
        else:
            forms.append((*columns, number))
    if not triples:
        raise Error(f"{where} has no triple; write head TAB relation TAB tail in each line")
    entities = dict.fromkeys(entity for h, _, t in triples for entity in (h, t))
    for text, entity, number in forms:
        if entity not in entities:
            raise Error(f"{where} line {number}: {entity!r:.80} is in no triple; correct the name "
                        "or add a triple of it")
    spelt = {entity for _, entity, _ in forms}
    own = [(entity.replace("_", " "), entity, "") for entity in entities if entity not in spelt]
    return triples, [(text, entity, "") for text, entity, _ in forms] + own


def vectors(path, wanted):
    """--vectors -> (words, float32 [n, width]): the FIRST ones and, of the rest, those `wanted`"""
    where, width, rows = f"--vectors {shown(path)}", None, {}
    for number, line in lines_of(path, "vectors"):
        parts = line.rstrip().split(" ")
        if number == 1 and len(parts) == 2 and all(map(str.isdecimal, parts)):
            width = int(parts[1])
            continue
        width = len(parts) - 1 if width is None else width
        # Some published words hold spaces; but a number before the numbers is one too many.
        extra = len(parts) > width + 1 and number_of(parts[-width - 1]) is not None
        if not 0 < width <= MOST or len(parts) <= width or not parts[0] or extra:
            raise Error(f"{where} line {number} has {len(parts) - 1} numbers, not {width}; each "
                        "line must be a word and as many numbers as the first has")
        word, row = " ".join(parts[:-width]), [number_of(part) for part in parts[-width:]]
        if None in row:
            wrong = parts[row.index(None) - width]
            raise Error(f"{where} line {number}: {wrong!r:.40} is no number; write a word and its "
                        "numbers, spaces between")
        if not all(map(math.isfinite, row)):
            raise Error(f"{where} line {number} has a number that is not finite; remove the line")
        if (len(rows) < FIRST or word in wanted) and word not in rows:
            rows[word] = np.array(row, np.float32)
    if not rows:
        raise Error(f"{where} holds a heading alone; add a word and its numbers in each line")
    return list(rows), np.stack(list(rows.values()))


def number_of(text):
    try:
        return float(text)
    except ValueError:
        return None


def dialogues(path):
    """--dialogues: yields lists of turns"""
    where, long = f"--dialogues {shown(path)}", False
    for number, line in lines_of(path, "dialogues"):
        try:
            turns = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise Error(f"{where} line {number} is not JSON ({e}); mend the line") from None
        turns = turns.get("turns") if isinstance(turns, dict) else turns
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise Error(f'{where} line {number} has no list of turns; write ["...", "..."] or '
                        '{"turns": ["...", "..."]}')
        if len(turns) < 2 or not all(turn.strip() for turn in turns):
            what = "an empty turn" if len(turns) > 1 else "fewer than two turns"
            raise Error(f"{where} line {number} has {what}; each dialogue needs two texts or more")
        long |= len(turns) > 2
        # JSON can spell half a character (a lone surrogate), which no encoding writes: "?".
        yield [turn.encode("utf-8", "replace").decode() for turn in turns]
    if not long:
        raise Error(f"{where} has no dialogue of three turns, and three are read at a time; "
                    "give longer ones")
