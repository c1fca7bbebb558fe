"""Answers that stand in a text itself, for questions that nobody has labelled.

  discourse    which connective joined two sentences? It stood at the head of the second.
  relevance    is this the title of the section that these words are from?
  recurring    does a word of one part of a document stand in other parts, too?
"""
import numpy as np

from tinybert_family.text import passages
from tinybert_family.text.segments import ranges

# What sentences begin with to say how they follow from the one before. The class of each is its
# place in the row; none is the beginning of another.
LIST = """
    if | when | then | but | otherwise | because | however | also | therefore | thus | and | so | or
    | while | although | though | since | after | before | until | unless | once | instead | still
    | yet | hence | finally | first | second | next | for example | for instance | in addition
    | moreover | furthermore | in fact | in particular | in general | in this case | in other words
    | as a result | on the other hand | by default | usually | normally | typically | similarly
    | alternatively | 但是 | 因此 | 所以 | 然而 | 而且 | 此外 | 例如 | 因为 | 如果 | 虽然 | 同时 | 另外
    | 不过 | 于是 | 然后 | 最后"""
CONNECTIVES = " ".join(LIST.split()).split(" | ")


# ---------------------------------------------------------------------------------------- discourse
class Connectives:
    """The connectives as pieces of a vocabulary, and which sentences begin with one."""

    def __init__(self, tokenizer, begins, count):
        """begins: bool [V], does a piece begin a word? count: only the first so many."""
        known = CONNECTIVES[:count]
        self.number = {}
        self.begins = begins
        self.heads = np.zeros(len(begins), bool)
        for number, words in enumerate(known):
            for head in words[0], words[0].upper():
                pieces = tokenizer.encode(head + words[1:])
                if tokenizer.unk not in pieces:
                    self.number[tuple(pieces)] = number
                    self.heads[pieces[0]] = True
        self.commas = [
            *tokenizer.encode(",")[-1:],
            *tokenizer.encode("，")[-1:]]

    def found(self, corpus, sentences):
        """For these sentences: (the connective's number or -1, where what follows it begins)."""
        ids = corpus.ids
        lo = corpus.sentences[sentences]
        hi = corpus.sentences[sentences + 1]
        rest = lo.copy()
        number = np.full(len(lo), -1)
        likely = np.flatnonzero(self.heads[ids[lo]])
        for pieces, connective in self.number.items():
            after = lo + len(pieces)
            at = likely[(after < hi)[likely]]                   # something must follow
            for i, piece in enumerate(pieces):
                at = at[ids[lo[at] + i] == piece]
            at = at[self.begins[ids[after[at]]]]                # "iffy" is no "if"
            number[at] = connective
            rest[at] = after[at]
        comma = np.isin(ids[rest], self.commas)
        comma &= (number >= 0) & (rest + 1 < hi)
        return number, rest + comma


def followers(corpus, documents):
    """Sentences that follow another of their document, and the documents. [N], [N]"""
    documents = np.asarray(documents, np.int64)
    first = corpus.documents[documents] + 1
    count = corpus.documents[documents + 1] - first
    count = np.maximum(count, 0)
    return ranges(first, count), np.repeat(documents, count)


def discourse(corpus, documents, connectives, length, seed, marks, kind):
    """[CLS] a sentence [SEP] the next without its connective [SEP]; the label is what is missing.

    A frequent connective is taken at most as often as all are on average, so that the commonest is
    no answer to everything; which of its sentences is left to chance.
    """
    rng = np.random.default_rng([*seed, len(documents)])
    sentence, document = followers(corpus, documents)
    label, rest = connectives.found(corpus, sentence)
    at = rng.permutation(np.flatnonzero(label >= 0))
    at = at[np.argsort(label[at], kind="stable")]               # by label, in random order
    kinds = len(np.unique(label[at]))
    most = len(at) / max(1, kinds)
    at = np.sort(at[rank_in(label[at]) < most])
    sentence = sentence[at]
    table = np.column_stack([
        corpus.sentences[sentence - 1],
        corpus.sentences[sentence],
        rest[at],
        corpus.sentences[sentence + 1],
        label[at],
        document[at],
        sentence])
    return passages.pairs(table, length, marks, kind)


def rank_in(group):
    """group [N] ascending -> 0, 1, 2, ... in each. [N]"""
    return np.arange(len(group)) - np.searchsorted(group, group)


# ---------------------------------------------------------------------------------------- relevance
QUERY, SECTION = 5, 128         # words in a query, tokens in a section
STIR, ONE = np.uint64(0x9E3779B97F4A7C15), np.uint64(1)


def words_of(corpus, lo, hi, begins, letters):
    """The words with letters of the passages ids[lo:hi]: [W, 4] of passage, key, lo, hi.

    Equal words have equal keys: a polynomial of a word's pieces, modulo 2^64.
    """
    sizes = hi - lo
    places = ranges(lo, sizes)
    passage = np.repeat(np.arange(len(lo)), sizes)
    ids = corpus.ids[places].astype(np.uint64)
    heads = np.flatnonzero(begins[ids] | begins_run(passage))
    sizes = np.diff(heads, append=len(ids))
    power = ranges(0 * heads, sizes)                            # of each piece in its word
    base = np.full(1 + power.max(initial=0), STIR)
    terms = (ids + ONE) * np.cumprod(base)[power]
    place = places[heads]
    table = np.column_stack([
        passage[heads],
        np.add.reduceat(terms, heads).view(np.int64),
        place,
        place + sizes])
    return table[letters[ids[heads]]]


def begins_run(x):
    """Is it another than the one before? [N] -> bool [N]"""
    found = np.ones(len(x), bool)
    found[1:] = x[1:] != x[:-1]
    return found


def queries(corpus, lo, hi, begins, letters):
    """For each passage its most telling words: (lo, hi) [N, QUERY], empty where there are fewer.

    tf * idf: how often a word stands in the passage, times the logarithm of how rare it is among
    the passages. So a query is what a reader might search this passage by.
    """
    table = words_of(corpus, lo, hi, begins, letters)
    passage, key, place, _ = table.T
    table = table[np.lexsort((place, key, passage))]
    passage, key, *_ = table.T
    new = begins_run(passage) | begins_run(key)
    at = np.flatnonzero(new)                                    # one for each word of a passage
    often = np.diff(at, append=len(table))
    passage, key, *place = table[at].T
    _, which, among = np.unique(key, return_inverse=True, return_counts=True)
    rare = np.log(len(lo) / among)
    score = often * rare[which]
    best = np.lexsort((place[0], -score, passage))
    owner = passage[best]
    rank = rank_in(owner)
    first = rank < QUERY
    best, owner, rank = best[first], owner[first], rank[first]
    found = np.zeros((2, len(lo), QUERY), np.int64)
    found[:, owner, rank] = np.array(place)[:, best]
    return found


class Sections:
    """Sections of some documents, each about SECTION tokens, its title the first sentence, and the
    query that would find it."""

    def __init__(self, corpus, documents, begins, letters):
        rows = []
        for document in map(int, documents):
            found = passages.runs(corpus, document, SECTION, least=2)
            rows += [(*run, document, i) for i, run in enumerate(found)]
        table = passages.table_of(rows, 4)
        first, last, document, _ = table.T
        self.keys = table[:, 2:]
        cuts = corpus.sentences
        lo, hi = cuts[first], cuts[last]
        self.title = lo, cuts[first + 1]
        self.query = queries(corpus, lo, hi, begins, letters)
        # Those of a document stand side by side: from lo to hi.
        self.lo = np.searchsorted(document, document)
        self.hi = np.searchsorted(document, document, side="right")

    def __len__(self):
        return len(self.keys)


def relevance(sections, length, seed, marks, kind):
    """[CLS] query [SEP] title [SEP]. The query is of 0: the title's own section, 1: another one of
    the document, 2: another document; each as often as the others, where there is any."""
    n, lo, hi = len(sections), sections.lo, sections.hi
    rng = np.random.default_rng([*seed, n])
    size = hi - lo
    able = np.column_stack([size > 0, size > 1, size < n])
    wish = rng.random((n, 3)) * able                            # the highest of those that can be
    label = np.argmax(wish, axis=1)
    draw = rng.random(n)

    def steps(most):                                            # 0 .. most - 1
        return (draw * most).astype(np.int64)
    here = np.arange(n)
    step = here - lo + 1 + steps(size - 1)
    near = lo + step % size
    far = (hi + steps(n - size)) % max(1, n)
    asked = np.choose(label, [here, near, far])
    lo, hi = (np.column_stack([query[asked], title])
              for query, title in zip(sections.query, sections.title))
    size = passages.fit(hi - lo, length - 3)
    types = np.zeros_like(lo)
    types[:, -1] = 1
    closed = np.zeros(lo.shape, bool)
    closed[:, -2:] = True                       # behind the query's last word, and the title
    return passages.framed(lo, lo + size, types, label, sections.keys, marks, kind,
                           closed)


# ---------------------------------------------------------------------------- what stands elsewhere
REACH = 1 << 14                 # tokens to look at on either side, for a document may be a book


def recurring(corpus, s, unit, size):
    """Does a word stand in another part of its document? -> bool [T]; False at special tokens

    s: segments.Sequences, each one passage of one document; unit [T]: which word a token is of;
    size: of the vocabulary. A word of several pieces recurs where each of its pieces does.
    """
    found = np.zeros(len(s.ids), bool)
    bounds = corpus.sentences[corpus.documents]
    for i, (document, _) in enumerate(s.keys):
        inside = slice(s.cuts[i] + 1, s.cuts[i + 1] - 1)        # but for [CLS] and [SEP]
        own = s.places[inside]
        lo, hi = own[0], own[-1] + 1
        first = max(bounds[document], lo - REACH)
        last = min(bounds[document + 1], hi + REACH)
        known = np.zeros(size, bool)
        known[corpus.ids[first:lo]] = True
        known[corpus.ids[hi:last]] = True
        found[inside] = known[s.ids[inside]]
    words = unit >= 0
    lacking = np.bincount(unit[words], ~found[words])
    return words & (np.append(lacking, 1)[unit] == 0)


def letters(tokenizer):
    """Does a piece hold a letter? -> bool [V]"""
    shown = map(tokenizer.shown, tokenizer.vocab)
    found = [any(map(str.isalpha, piece)) for piece in shown]
    return np.array(found)
