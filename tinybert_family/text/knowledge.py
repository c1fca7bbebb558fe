"""What a corpus knows beside its tokens: phrases, entities, capitals, a graph, similar words, talk.

    made = build({"phrases", "entities"}, documents, corpus, tokenizer, files, folder)
    made.starts(places, "phrase")       -> bool [T], does a phrase (or a single word) begin here

Phrases, names and similar words are found in all of a text, as its vocabulary is; facts only in
what is trained on. An objective asks by `places`, the numbers of tokens in corpus.ids (-1 for
special tokens, of which nothing is known). In a test it takes a Knowledge that is made by hand:

    Knowledge(flags(word=[1, 0, 1], phrase=[1, 0, 0], capital=[0, 0, 1]), mentions=[-1, -1, 0],
              vectors=np.eye(1), names=["Ada"])
"""
import functools
import hashlib
import json
import sys
import sysconfig
from pathlib import Path

import numpy as np

from ..error import Error
from ..files import shown
from . import dialogues, entities, marks, phrases, python_graph, resources, shelf, similar, surface
from . import graph as graphs
from . import transe, vectors
from .lexicon import Lexicon
from .marks import BITS, flags
from .matching import Trie

__all__ = ["Knowledge", "build", "flags"]
PARTS = ("phrases", "entities", "capitals", "graph", "similar", "dialogues")


class Knowledge:
    """All arrays may be mapped files. What was not asked for is None."""

    def __init__(self, flags=None, mentions=None, vectors=None, names=(), similar=None,
                 dialogues=None, info=None):
        self.flags = flags                  # uint8 [tokens], see BITS
        self.entities = mentions            # int32 [tokens], see mentions()
        self.vectors = vectors              # float32 [E, He], unit length, of TransE
        self.names = names                  # [E], the entities' names
        self.similar = similar              # see similar.py: replace() and neighbours()
        # ids [n], turns [N + 1] cuts into ids, dialogues [D + 1] cuts into turns, documents [D]
        self.dialogues = dialogues
        self.info = info or {}              # what was found, in numbers, for the report

    def starts(self, places, level):
        """Does a unit begin at this token? -> bool [T]; False at special tokens

        "word": every word a unit; "phrase": phrases, else words; "entity": entities, else phrases
        where they were asked for, else words. Each level divides a sentence without rest.
        """
        return self._flag(places, BITS[level])

    def capital(self, places):
        """Does the word that this token belongs to begin with a capital in the raw text?"""
        return self._flag(places, BITS["capital"])

    def mentions(self, places):
        """-> int64 [T]: the number of an entity at the first token of each mention, -1 elsewhere"""
        places = np.asarray(places)
        found = np.asarray(self.entities)[np.maximum(places, 0)]
        return np.where(places < 0, -1, found).astype(np.int64)

    def _flag(self, places, bit):
        places = np.asarray(places)
        found = np.asarray(self.flags)[np.maximum(places, 0)]
        return (found & bit > 0) & (places >= 0)


# --- making it -----------------------------------------------------------------------------------

def build(needs, documents, corpus, tokenizer, files=None, folder=None, progress=None, width=100):
    """Make what an objective needs, or open what was made before. -> Knowledge

    needs: some of PARTS. documents: a function that begins the raw Documents of `corpus` anew.
    files: the user's own, phrases= entities= vectors= graph= dialogues= (a path or None); their
    formats are told in resources.py. folder: where things are kept (None: with the corpus).
    progress(done, total) is called now and then. width: of the entities' vectors.
    """
    wrong = sorted(set(needs) - set(PARTS))
    if wrong:
        raise Error(f"there is no knowledge of {', '.join(wrong)}; there is {', '.join(PARTS)}")
    maker = Maker(documents, corpus, tokenizer, files or {}, folder, width)
    todo, made, most = maker.parts(set(needs)), {}, 0

    for i, part in enumerate(todo):
        def told(done, total, i=i):
            nonlocal most
            most = max(most, round(1000 * (i + min(1, done / max(1, total)))))
            if progress:
                progress(most, 1000 * len(todo))
        maker.told = told
        made.update(part())
        told(1, 1)
    return Knowledge(**made, info=maker.info)


class Maker:
    """A method for each part, which returns what Knowledge is made with. What several of them need
    is made once, and only if one of them is not kept yet."""

    def __init__(self, documents, corpus, tokenizer, files, folder, width):
        self.documents, self.corpus, self.tokenizer = documents, corpus, tokenizer
        self.files = {name: path for name, path in files.items() if path}
        self.folder = Path(corpus.folder if folder is None else folder)
        self.width, self.info, self.told = width, {}, None
        # What everything depends on: the text, and where the tokenizer's pieces stand in it.
        own = json.dumps(tokenizer.to_json(), sort_keys=True) + "\n".join(tokenizer.vocab)
        own = hashlib.sha256(own.encode("utf-8", "replace")).hexdigest()
        self.key = [corpus.info["sha256"], len(corpus.ids), own]
        self.is_python = python_graph.describes(corpus)

    def parts(self, needs):
        found = []
        if needs & {"phrases", "entities", "capitals"}:
            found.append(lambda: self.flags(needs))
        if "graph" in needs:
            found += [self.entities, self.mentions]
        if "similar" in needs:
            found.append(self.similar)
        if "dialogues" in needs:
            found.append(self.dialogues)
        return found

    def file(self, name):
        """A file's content in 64 letters, None where the user gave none: part of a key."""
        return resources.sha_of(self.files[name]) if name in self.files else None

    @functools.cached_property
    def surface(self):
        return surface.surface_of(self.documents, self.corpus, self.tokenizer, self.folder,
                                  self.key, self.told)

    @functools.cached_property
    def lexicon(self):
        return Lexicon(self.surface.vocabulary)

    @functools.cached_property
    def runs(self):
        return entities.Runs(self.surface, self.lexicon)

    def flags(self, needs):
        own = self.is_python and "entities" not in self.files
        levels = sorted(needs & {"phrases", "entities"})
        used = [self.file(name) for name in levels]
        names = [self.graph_key, entities.RULES] if own else entities.RULES
        key = [marks.RULES, phrases.RULES, names, levels, used, self.key]

        def make(writer):
            common = self.phrases() if "phrases" in needs else None
            named = self.names(own) if "entities" in needs else None
            found = marks.write_flags(writer, self.surface, self.lexicon, common, named, self.told)
            if named and not found["entities"]:
                raise Error("no entities found in the corpus (names are known by their capitals); "
                            "give --entities FILE, a name in each line")
            writer.note(**{name: found[name] for name in levels})
        arrays, notes = shelf.kept(self.folder, "flags", key, make)
        self.info.update(notes)
        return dict(flags=arrays["flags"])

    def phrases(self):
        """A Trie of the user's phrases or of the corpus's own"""
        if "phrases" in self.files:
            lines = resources.expressions(self.files["phrases"], "phrases")
            found = phrases.listed(lines, self.lexicon, f"--phrases {shown(self.files['phrases'])}")
        else:
            found = phrases.found_in(self.surface, self.lexicon, self.told)
        return Trie(found, len(self.lexicon.lowers))

    def names(self, own):
        """What finds the names: a list, or their capitals, and in Python's documentation the things
        that are written in code, too."""
        if "entities" in self.files:
            where = f"--entities {shown(self.files['entities'])}"
            lines = resources.expressions(self.files["entities"], "entities")
            return entities.Gazetteer(lines, self.runs, where)
        if own:
            things = graphs.Mentions(self.graph, self.runs, self.surface)
            return entities.Both(things, self.runs)
        return self.runs

    @functools.cached_property
    def graph_key(self):
        """Of the user's file, of Python's own sources, or of the text"""
        rules = [graphs.RULES, python_graph.RULES, entities.RULES]
        if "graph" in self.files:
            return [rules, self.file("graph")]
        if self.is_python:
            return [rules, sys.version, sysconfig.get_path("stdlib"), self.key[0]]
        return [rules, self.file("entities"), self.key]

    @functools.cached_property
    def graph(self):
        def make(writer):
            if "graph" in self.files:
                found = graphs.graph_of(*resources.graph(self.files["graph"]))
            else:
                found = python_graph.read(progress=self.told) if self.is_python else None
                if not found or len(found.triples) < python_graph.FEW:
                    names = self.names(False)
                    found = graphs.from_text(self.surface, self.lexicon, names, self.told)
            graphs.write(writer, found)
        return graphs.read(*shelf.kept(self.folder, "graph", self.graph_key, make))

    def entities(self):
        """A vector for every entity of the graph"""
        def make(writer):
            graph = self.graph
            model = transe.TransE(len(graph.names), len(graph.relations), self.width)
            model.fit(graph.triples, progress=self.told)
            writer.append("vectors", model.vectors)
            writer.texts("names", graph.names)
            writer.note(graph_entities=len(graph.names), triples=len(graph.triples))
        key = [transe.RULES, self.width, self.graph_key]
        arrays, notes = shelf.kept(self.folder, "entities", key, make)
        self.info.update(notes)
        return dict(vectors=arrays["vectors"], names=shelf.lines_of(arrays["names.txt"]))

    def mentions(self):
        """Where the corpus speaks of the graph's entities"""
        def make(writer):
            found = graphs.Mentions(self.graph, self.runs, self.surface)
            count = marks.write_mentions(writer, self.surface, found, self.told)
            if not count:
                raise Error(f"none of the graph's {len(self.graph.names)} entities occurs in the "
                            "corpus; add lines of surface forms (text TAB entity) to --graph")
            writer.note(mentions=count)
        key = [marks.RULES, self.graph_key, self.key]
        arrays, notes = shelf.kept(self.folder, "mentions", key, make)
        self.info.update(notes)
        return dict(mentions=arrays["mentions"])

    def similar(self):
        def make(writer):
            number, common = similar.chosen(self.lexicon, self.surface, self.tokenizer)
            words = common
            if "vectors" in self.files:
                words, rows = resources.vectors(self.files["vectors"], set(common))
                rows = vectors.unit(rows)
            else:
                rows = vectors.from_text(self.surface, number, self.told)
            pieces, nearest = similar.table(words, rows, common, self.tokenizer, self.told)
            writer.append("vectors", rows)
            writer.append("pieces", similar.padded(pieces, similar.PIECES))
            writer.append("nearest", nearest)
            writer.texts("words", words)
        key = [similar.RULES, vectors.RULES, self.file("vectors"), self.key]
        arrays, _ = shelf.kept(self.folder, "similar", key, make)
        words = shelf.lines_of(arrays["words.txt"])
        found = similar.Similar(words, arrays["vectors"], arrays["pieces"], arrays["nearest"])
        if "vectors" in self.files and not (found.counts > 0).any():
            raise Error(f"--vectors {shown(self.files['vectors'])}: no two of the text's words are "
                        "similar by it; give vectors in the language of the text")
        self.info.update(similar=int((found.counts > 0).sum()))
        return dict(similar=found)

    def dialogues(self):
        own, key = self.files.get("dialogues"), [self.file("dialogues"), self.key]
        found = dialogues.dialogues_of(self.documents, self.corpus, self.tokenizer, own,
                                       self.folder, key, self.told)
        self.info.update(dialogues=len(found[2]) - 1, turns=len(found[1]) - 1)
        return dict(dialogues=found)
