"""More examples out of few (TinyBERT, Algorithm 1): words are replaced by others that could stand
there, and the label stays.

    the queue    is    often   [MASK]  by  threads   [SEP]  the queue is often used by threads
                  what a masked-word model puts there, seeing the whole text beside it: used, shared
    "instantiates"                      of several pieces: its neighbours among word vectors

A word of one piece gets the model's guesses, a longer one its neighbours; stop words, and words
with anything but letters, stay. The choices of a word are found once, in the text as it was
written. Each copy then replaces every word that has choices with probability `share`, from the
original anew.

Neither model nor vectors are known here: `guess` and `near` are functions of the caller.
"""
import numpy as np

from tinybert_family.text.lexicon import STOP
from tinybert_family.text.words import begins_word

SHARE, MOST = 0.4, 15           # how many words are replaced, and by how many choices


class Augmenter:
    """guess(queries, count): for each (ids with one masked, ids, place) the `count` best pieces
    there, best first, [N, count]. near(word, count): [(word, cosine)], best first."""

    def __init__(self, tokenizer, guess, near=None, share=SHARE, most=MOST):
        self.tokenizer, self.guess, self.near = tokenizer, guess, near
        self.share, self.most = share, most
        # What no guess may be: a piece that continues a word, or a token that is no word.
        self.begins = begins_word(tokenizer)
        self.refused = ~self.begins
        self.refused[[tokenizer.ids[piece] for piece in tokenizer.special]] = True
        self.known = {}

    def words(self, ids):
        """[(lo, hi)]: the pieces of each word."""
        starts = np.flatnonzero(self.begins[ids]).tolist()
        if len(ids) and (not starts or starts[0]):
            starts = [0, *starts]
        return list(zip(starts, [*starts[1:], len(ids)]))

    def replaceable(self, pieces):
        word = self.text(pieces)
        return word.isalpha() and word.lower() not in STOP

    def text(self, pieces):
        return self.tokenizer.decode(pieces, clean_up_tokenization_spaces=False).strip()

    def choices(self, texts):
        """For each text a list of (its words' pieces, what may stand there instead)."""
        cut = [self.words(ids) for ids in texts]
        queries, asked = [], []
        for t, (ids, words) in enumerate(zip(texts, cut)):
            for w, (lo, hi) in enumerate(words):
                if hi - lo == 1 and self.replaceable(ids[lo:hi]):
                    hidden = ids.copy()
                    hidden[lo] = self.tokenizer.mask
                    queries.append((hidden, ids, lo))
                    asked.append((t, w))
        found = {}
        if queries:
            for where, best in zip(asked, self.guess(queries, self.most)):
                found[where] = [[int(i)] for i in best if not self.refused[i]]
        rows = []
        for t, (ids, words) in enumerate(zip(texts, cut)):
            row = []
            for w, (lo, hi) in enumerate(words):
                pieces = ids[lo:hi].tolist()
                others = found.get((t, w), [])
                if hi - lo > 1 and self.near and self.replaceable(pieces):
                    others = self.neighbours(self.text(pieces))
                row.append((pieces, others))
            rows.append(row)
        return rows

    def neighbours(self, word):
        if word not in self.known:
            near = self.near(word, self.most)
            self.known[word] = [self.tokenizer.encode(other) for other, _ in near]
        return self.known[word]

    def copies(self, texts, count, seed):
        """At most `count` new versions of an example (one text or two): a list of lists of ids.
        None is the example itself, and no two are equal."""
        return self.drawn(self.choices(texts), texts, count, seed)

    def drawn(self, rows, texts, count, seed):
        rng = np.random.default_rng(seed)
        seen, made = {tuple(tuple(ids.tolist()) for ids in texts)}, []
        for _ in range(count):
            new = [self.one(row, rng) for row in rows]
            key = tuple(map(tuple, new))
            if key not in seen:
                seen.add(key)
                made.append([np.array(ids, np.int64) for ids in new])
        return made

    def one(self, row, rng):
        ids = []
        for pieces, others in row:
            replaced = others and rng.random() < self.share
            ids += others[rng.integers(len(others))] if replaced else pieces
        return ids


def augmented(rows, augmenter, count, seed, length, shorten, group=64):
    """The rows, and behind each its copies; some at a time, so that the model is asked for many."""
    found = []
    for lo in range(0, len(rows), group):
        some = rows[lo:lo + group]
        texts = [ids for row in some for ids in (row.a, row.b)]
        choices = augmenter.choices(texts)
        for i, row in enumerate(some):
            found.append(row)
            two = slice(2 * i, 2 * i + 2)
            for a, b in augmenter.drawn(choices[two], texts[two], count, [*seed, lo + i]):
                a, b = shorten(a, b, length)
                found.append(row._replace(a=a, b=b))
    return found
