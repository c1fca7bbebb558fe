"""A graph of knowledge: triples such as (Ada Lovelace, is_a, mathematician), and where a text
speaks of its entities.

It comes from the user's file, from Python's own sources for the embedded corpus (python_graph.py),
or from the text itself:

    is_a        "X is a Y", "X was the Y": Y's last word before the phrase ends (Hearst, 1992)
    co_occurs   two names that share sentences more often than chance would have it (npmi)
"""
from typing import NamedTuple

import numpy as np

from ..error import Error
from . import shelf
from . import surface as surfaces
from .lexicon import Tally, npmi
from .matching import Trie

RULES = 2
CLOSE, TWICE = 0.3, 2           # npmi and count from which two names belong together
FAR = 5                         # words after "is a" in which Y's noun must come
VERBS, ARTICLES = ("is", "was", "are", "were"), ("a", "an", "the")


class Form(NamedTuple):
    """How a text may write an entity."""
    text: str
    entity: int
    scope: str = ""             # the document in which it means this; everywhere if empty


class Graph(NamedTuple):
    names: list                 # [E] of entities
    relations: list             # [R] their names
    triples: np.ndarray         # int64 [N, 3]: head, relation, tail
    forms: list                 # of Form


class Numbering(dict):
    """name -> number, in the order in which they are first asked for"""

    def __missing__(self, name):
        self[name] = len(self)
        return self[name]


def graph_of(triples, forms, where=""):
    """[(head, relation, tail)] and [(text, entity, scope)], all words -> Graph"""
    names, relations = Numbering(), Numbering()
    rows = {(names[h], relations[r], names[t]): None for h, r, t in triples}
    table = np.array(list(rows), np.int64).reshape(-1, 3)
    known = [form for form in forms if form[1] in names]
    known = [Form(text, names[name], scope) for text, name, scope in known]
    return Graph(list(names), list(relations), table, known)


def write(writer, graph):
    """Keep a graph with a shelf.Writer; `read` takes what was kept."""
    writer.append("triples", graph.triples)
    writer.texts("names", graph.names)
    writer.texts("relations", graph.relations)
    writer.texts("forms", (f"{text}\t{entity}\t{scope}" for text, entity, scope in graph.forms))


def read(arrays, _):
    names, relations, forms = (shelf.lines_of(arrays[f"{what}.txt"])
                               for what in ("names", "relations", "forms"))
    forms = [Form(text, int(entity), scope)
             for text, entity, scope in (line.split("\t") for line in forms)]
    return Graph(names, relations, np.asarray(arrays["triples"]), forms)


# --- where a text speaks of them -----------------------------------------------------------------

class Mentions:
    """Finds a graph's entities in a text. A form that means several entities is dropped, but in the
    document that is one entity's own scope it means that one."""

    def __init__(self, graph, runs, surface):
        self.surface, self.runs = surface, runs
        lexicon = runs.lexicon
        known = {word: i for i, word in enumerate(lexicon.words)}
        meanings = {}
        for form in graph.forms:
            words = surfaces.words_of(form.text)
            words = tuple(known.get(word, -1) for word in words)
            if words and min(words) >= 0:
                meanings.setdefault(words, []).append(form)
        expressions, values, self.local = [], [], []
        for words, forms in meanings.items():
            entities = {form.entity for form in forms}
            scoped = {form.scope: form.entity for form in forms if form.scope}
            if len(entities) == 1 and not all(form.scope for form in forms):
                values.append(entities.pop())
            elif scoped:
                values.append(len(graph.names) + len(self.local))
                self.local.append(scoped)
            else:
                continue
            expressions.append(words)
        self.count = len(graph.names)
        self.trie = Trie(expressions, len(lexicon.words), values)

    def find(self, block):
        """-> (begins, lengths, entities) of a block"""
        alone = self.runs.alone(block)
        begins, lengths, values = self.trie.find(block.words, block.left, alone)
        for i in np.flatnonzero(values >= self.count).tolist():
            sentence = block.sentences.start + int(block.sentence[begins[i]])
            document = int(np.searchsorted(self.surface.documents, sentence, "right")) - 1
            meant = self.local[int(values[i]) - self.count]
            values[i] = meant.get(self.surface.names[document], -1)
        known = values >= 0
        return begins[known], lengths[known], values[known]


# --- a graph out of the text ---------------------------------------------------------------------

def from_text(surface, lexicon, finder, progress=None):
    """The graph that a plain text's names make -> Graph, or an Error. finder: see entities.py

    What is held out says nothing: else its facts would come back as vectors.
    """
    is_a, pairs = [], Tally()
    names, single, sentences = Numbering(), Tally(), 0
    for block in surface.blocks():
        begins, lengths = finder.find(block)
        trained = surface.trained(block)
        mine = trained[block.sentence[begins]]
        begins, lengths = begins[mine], lengths[mine]
        spans = zip(begins.tolist(), lengths.tolist())
        found = [names[tuple(block.words[i:i + n].tolist())] for i, n in spans]
        found = np.array(found, np.int64)
        is_a += list(hearst(block, begins, lengths, found, lexicon))
        sentence = block.sentence[begins]
        keys = np.unique(sentence * 2**32 + found)          # a name once in a sentence
        sentence, found = np.divmod(keys, 2**32)
        single.add(found)
        sentences += int(trained.sum())
        for x, y in neighbours(sentence, found):
            pairs.add(np.minimum(x, y) * 2**32 + np.maximum(x, y))
        if progress:
            progress(block.sentences.stop, len(surface.cuts) - 1)
    counts = np.zeros(len(names) + 1)
    numbers, many = single.settle()
    counts[numbers] = many
    keys, both = pairs.settle()
    keys, both = keys[both >= TWICE], both[both >= TWICE]
    x, y = np.divmod(keys, 2**32)
    close = npmi(both, counts[x], counts[y], sentences) >= CLOSE
    spelt = [" ".join(map(lexicon.words.__getitem__, words)) for words in names]
    triples = [(spelt[a], "is_a", lexicon.lowers[noun]) for a, noun in is_a]
    for a, b in zip(x[close].tolist(), y[close].tolist()):
        triples.append((spelt[a], "co_occurs", spelt[b]))
    if not triples:
        raise Error("no entities found in the text that anything is said of (names by their "
                    "capitals, such as \"Ada Lovelace was a mathematician\"); give --graph FILE")
    return graph_of(triples, [(name, name, "") for name in spelt])


def neighbours(sentence, found):
    """All pairs of entries with the same sentence, which ascends: by distance 1, 2, ..."""
    for distance in range(1, len(found)):
        same = sentence[distance:] == sentence[:-distance]
        if not same.any():
            return
        yield found[:-distance][same], found[distance:][same]


def hearst(block, begins, lengths, found, lexicon):
    """"X is a Y" -> (X, number of Y's noun in lower case)"""
    verbs = [lexicon.number.get(word, -1) for word in VERBS]
    articles = [lexicon.number.get(word, -1) for word in ARTICLES]
    words = lexicon.lower[block.words]
    end = begins + lengths
    fits = (lengths > 0) & (block.left[begins] > lengths + 2)
    end, found = end[fits], found[fits]
    fits = np.isin(words[end], verbs)
    fits &= np.isin(words[end + 1], articles)
    for place, x in zip(end[fits].tolist(), found[fits].tolist()):
        stop = place + 2 + min(FAR, int(block.left[place]) - 2)
        noun = -1
        for w in block.words[place + 2:stop].tolist():
            if not lexicon.alphabetic[w] or lexicon.stop[w]:
                break
            noun = int(lexicon.lower[w])
        if noun >= 0:
            yield x, noun
