"""A small corpus and what is known of it, made by hand: for the tests of what needs knowledge."""
import re
from types import SimpleNamespace

import numpy as np

from tinybert_family.text import toy
from tinybert_family.text.corpus import Corpus
from tinybert_family.text.knowledge import Knowledge, flags
from tinybert_family.text.wordpiece import WordPiece

MARKS = SimpleNamespace(pad=0, unk=4, cls=1, sep=2, mask=3)
WORDS = re.compile(r"\w+|[^\w\s]").findall
PHRASES = {("lives", "in"), ("every", "morning"), ("at", "night"), ("in", "the"), ("all", "day")}
NAMES = [*toy.WOMEN, *toy.MEN, *toy.TOWNS, *toy.PETS]
WIDTH = 16                                      # of the entities' vectors


def a_corpus(sizes, first=10, vocab=1000, seed=0):
    """sizes: for every document the lengths of its sentences. Tokens are random, never special."""
    cuts = np.cumsum([0, *(n for document in sizes for n in document)])
    documents = np.cumsum([0, *map(len, sizes)])
    ids = np.random.default_rng(seed).integers(first, vocab, cuts[-1]).astype(np.uint16)
    everything = np.arange(len(sizes))
    return SimpleNamespace(ids=ids, sentences=cuts, documents=documents, train=everything,
                           held=everything[:0])


def the_toy(folder, documents=120, vocab=500):
    """(corpus, tokenizer, knowledge) of the toy language."""
    texts = toy.documents(documents)
    tokenizer = WordPiece.train([s for d in texts for s in d.sentences], vocab)
    corpus = Corpus.build(texts, tokenizer, folder)
    return corpus, tokenizer, known(texts, tokenizer)


def known(texts, tokenizer, dialogues=None):
    """Phrases are PHRASES, names of two words "town of Milford", mentions those of NAMES."""
    rows = dict(word=[], phrase=[], entity=[], capital=[])
    mentions = []
    for sentence in (s for d in texts for s in d.sentences):
        found, before = WORDS(sentence), ("", "")
        for word in found:
            pieces = len(tokenizer.encode(word))
            low = word.lower()
            joined = (before[1], low) in PHRASES
            town = before == ("town", "of") or before[1] == "town" and low == "of"
            rest = [False] * (pieces - 1)
            rows["word"] += [True, *rest]
            rows["phrase"] += [not joined, *rest]
            rows["entity"] += [not joined and not town, *rest]
            rows["capital"] += [word[0].isupper()] * pieces
            mentions += [NAMES.index(word) if word in NAMES else -1] + [-1] * (pieces - 1)
            before = before[1], low
    vectors = np.random.default_rng(0).standard_normal((len(NAMES), WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Knowledge(flags(**rows), np.array(mentions, np.int32), vectors, NAMES,
                     dialogues=dialogues)


def talk(tokenizer, count=40, turns=5):
    """Dialogues about one thing each, so that a strange turn can be told."""
    things = [*toy.JOBS, *toy.ANIMALS, *toy.WEATHER]
    lines = ["Where is the {0}?", "The {0} is here.", "Who saw the {0}?", "She saw the {0}.",
             "Is the {0} old?"]
    ids, cuts, ends = [], [0], [0]
    for number in range(count):
        for turn in range(turns):
            ids += tokenizer.encode(lines[turn % 5].format(things[number % len(things)]))
            cuts.append(len(ids))
        ends.append(len(cuts) - 1)
    return np.array(ids), np.array(cuts), np.array(ends)
