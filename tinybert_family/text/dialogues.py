"""Talk: dialogues of a user's file, or what is said in a novel.

    "Have you heard the news?" asked Jane.  He had not.  "Tell me." She did. "It is let at last."

In fiction each paragraph of speech is a turn of another speaker. The sentences of a document are
read one by one: what stands between quotation marks in one of them, or begins there and ends in a
later one, is a turn; a turn and the next may be kept apart by a sentence of telling, or two. Speech
that is taken up again within its sentence ("Yes," he said, "I know.") is one turn.
"""
import itertools

import numpy as np
import regex

from ..error import Error
from . import resources, shelf

RULES = 2
APART = 2                       # sentences without speech after which a dialogue has ended
TURNS = 3                       # of a dialogue at least
# A mark that opens stands before a letter and behind none; one that closes, the other way about.
OPEN = r"[“„«「]|(?<![^\s(\[—–-])\"(?=\S)"
CLOSE = r"[”»」]|(?<=\S)\"(?![^\s)\],.;:!?—–-])"
MARK = regex.compile(f"(?P<open>{OPEN})|(?P<close>{CLOSE})")


def spoken(sentences):
    """A document's sentences -> lists of turns, as many words as are said"""
    turns, speech, silent = [], None, 0
    for sentence in sentences:
        said, place, closed = [], 0, False
        for match in MARK.finditer(sentence):
            if match["open"]:
                # The mark opens again in a later paragraph of the same speech.
                speech, place = speech or [], match.end()
            elif speech is not None:
                said += [*speech, sentence[place:match.start()]]
                speech, closed = None, True
        if speech is not None:                      # goes on in the next sentence
            speech.append(sentence[place:])
            if closed:
                said, speech = said + speech, []
        if said:
            turns.append(" ".join(" ".join(said).split()))
        if said or speech is not None:
            silent = 0
            if speech is not None and len(speech) > 50:
                speech = None                       # a mark that never closed
            continue
        silent += 1
        if silent > APART:
            yield from long_enough(turns)
            turns = []
    yield from long_enough(turns)


def long_enough(turns):
    turns = [turn for turn in turns if turn]
    if len(turns) >= TURNS:
        yield turns


def overheard(documents, corpus):
    """(number of the corpus's document, a dialogue in it) of all. Where the end of a document is
    held out, that end is a document of its own."""
    number = {name: i for i, name in enumerate(corpus.names)}
    for name, sentences in documents():
        first, end = number.get(name), number.get(f"{name} (end)")
        cut = len(sentences)
        if first is not None and end is not None:
            cut = int(np.diff(corpus.documents[first:first + 2])[0])
        for at, part in (first, sentences[:cut]), (end, sentences[cut:]):
            yield from ((at, dialogue) for dialogue in spoken(part) if at is not None)


def dialogues_of(documents, corpus, tokenizer, path, folder, key, progress):
    """-> (ids [n], turns [N + 1] cuts into ids, dialogues [D + 1] cuts into turns, the document
    that each is from [D]; -1 where it is from the user's file)"""
    def make(writer):
        if path:
            found = ((-1, dialogue) for dialogue in resources.dialogues(path))
        else:
            found = overheard(documents, corpus)
        writer.append("ids", np.zeros(0, np.uint32))
        writer.append("turns", np.zeros(1, np.int64))
        writer.append("dialogues", np.zeros(1, np.int64))
        writer.append("documents", np.zeros(0, np.int64))
        tokens = turns = 0
        for n, (document, dialogue) in enumerate(found):
            coded = [ids for ids in map(tokenizer.encode, dialogue) if ids]
            if len(coded) < 2:
                continue
            ends = tokens + np.cumsum([len(ids) for ids in coded])
            writer.append("ids", np.fromiter(itertools.chain.from_iterable(coded), np.uint32))
            writer.append("turns", ends.astype(np.int64))
            tokens, turns = int(ends[-1]), turns + len(coded)
            writer.append("dialogues", np.array([turns]))
            writer.append("documents", np.array([document]))
            if n % 100 == 0:
                progress(0, 1)
        if not turns:
            raise Error("the corpus has no dialogues (speech in quotation marks, three turns or "
                        "more); give --dialogues FILE, a JSON list of turns in each line")
    arrays, _ = shelf.kept(folder, "dialogues", [RULES, *key], make)
    return arrays["ids"], arrays["turns"], arrays["dialogues"], arrays["documents"]
