"""What a trained model knows, asked without training it further.

  probes    a regression, by hand, on states that stay as they are: is what is asked in them?
              topic      which document is this passage from?
              follows    does the second passage follow the first, or is it from elsewhere?
              order      which of two passages in a row came first?
              intact     are all words in their places, or were some shuffled?
              borders    which word stands in the middle of a span, by the states beside it alone?
              typed      is the thing that is named here a module, a class or a function?
  clozes    what stands at these places, by the model's own head for words?
              words      15 % of the tokens, each by itself
              spans      three words in a row, all tokens of them
              pieces     a word of several pieces; all must be right
              names      a name that the rest of the story tells; all of its pieces must be right
              restored   words that others stand for, with no [MASK] to show where

The passages are of held-out text and the same for every model, so scores can be compared even
where objectives cannot. Regressions are fitted on some of these documents and tested on others.
"""
from typing import NamedTuple

import numpy as np

from .engine.autograd import no_grad
from .error import Error
from .text import corrupt, segments, words
from .text.toy import TOWNS

LENGTH, SEED = 32, (0, 0)       # tokens of a passage; what is drawn is drawn alike for all
MOST = 1024                     # passages that a probe looks at
AT_ONCE = 64                    # sequences in a batch


class Subject(NamedTuple):
    """A model, and the text that it is asked about."""
    model: object
    tokenizer: object
    corpus: object
    knowledge: object = None    # of text/knowledge.py, where a measure asks for it


# ---- regressions

PENALTIES = 0.1, 1.0, 10.0, 100.0, 1000.0


def standardized(x, like):
    """Columns of mean 0 and width 1, as they are in `like`, and one of ones."""
    width = like.std(0)
    width[width < 1e-9] = 1.0
    x = (x - like.mean(0)) / width
    return np.column_stack([x, np.ones(len(x))])


def penalties(columns, penalty):
    """Of each column's weight; the last, of ones, is free."""
    found = np.full(columns, float(penalty))
    found[-1] = 1e-6
    return np.diag(found)


def ridge(x, y, penalty):
    """Weights [D, C] that minimise |x w - one-hot(y)|^2 + penalty |w|^2."""
    wanted = np.eye(y.max() + 1)[y] - 0.5                               # [N, C]
    pull = penalties(x.shape[1], penalty)
    return np.linalg.solve(x.T @ x + pull, x.T @ wanted)


def logistic(x, y, penalty, rounds=8):
    """Weights [D, 2] of the likeliest log-odds of class 1, by Newton's method; class 0 has 0."""
    w = np.zeros(x.shape[1])
    pull = penalties(len(w), penalty)
    for _ in range(rounds):
        p = np.tanh(x @ w / 2) / 2 + 0.5                                # [N]
        slope = x.T @ (p - y) + pull @ w
        doubt = p * (1 - p)
        bend = (x.T * doubt) @ x + pull
        w = w - np.linalg.solve(bend, slope)
    return np.column_stack([0 * w, w])


def fitted(x, y, others, penalty):
    """The classes of other states, by a regression on (x, y)."""
    fit = logistic if y.max() == 1 else ridge
    w = fit(standardized(x, x), y, penalty)
    scores = standardized(others, x) @ w                                # [N, C]
    return scores.argmax(1)


def accuracy(x, y, fit):
    """Of a regression on the rows `fit`, tested on the others: the share that is right.

    The penalty is the one that does best on a third of the rows, fitted on two.
    """
    x = x.astype(np.float64)
    known, right = x[fit], y[fit]
    aside = np.arange(len(right)) % 3 == 0

    def tried(penalty):
        found = fitted(known[~aside], right[~aside], known[aside], penalty)
        return np.mean(found == right[aside])
    best = max(PENALTIES, key=tried)
    found = fitted(known, right, x[~fit], best)
    return float(np.mean(found == y[~fit]))


# ---- passages

class Passages(NamedTuple):
    """Padded arrays, and what is asked about each."""
    ids: np.ndarray             # [S, L]
    real: np.ndarray            # [S, L] is there a token?
    types: np.ndarray           # [S, L]
    places: np.ndarray          # [S, L] in the corpus; -1 elsewhere
    labels: np.ndarray          # [S]
    document: np.ndarray        # [S]

    inside = property(lambda self: self.places >= 0)        # [S, L] no special token

    def __getitem__(self, rows):
        return Passages(*[x[rows] for x in self])


def passages(subject, plan):
    """At most MOST sequences of a plan, in the order of their documents."""
    if len(plan) > MOST:
        plan = plan[spread(len(plan), MOST)]
    s = segments.lay_out(subject.corpus, plan)
    shape = len(s.keys), int(s.positions.max(initial=0)) + 1

    def table(values, empty):
        array = np.full(shape, empty, np.int64)
        array[s.sequence, s.positions] = values
        return array
    document, number = s.keys.T
    ids, real = table(s.ids, subject.tokenizer.pad), table(1, 0)
    types, places = table(s.types, 0), table(s.places, -1)
    p = Passages(ids, real, types, places, s.labels, document)
    return p[np.lexsort((number, document))]


def spread(count, most):
    """`most` of so many, evenly."""
    return np.linspace(0, count - 1, most).astype(int)


def single(subject):
    """[CLS] sentences [SEP]"""
    corpus = subject.corpus
    plan = segments.single_blocks(corpus, corpus.held, LENGTH, SEED, subject.tokenizer, least=8)
    return passages(subject, plan)


def pairs(subject, make):
    """[CLS] A [SEP] B [SEP], with a label; of both labels equally many."""
    corpus = subject.corpus
    plan = make(corpus, corpus.held, LENGTH, 0.0, SEED, subject.tokenizer)
    one, = np.nonzero(plan.labels)
    other, = np.nonzero(plan.labels == 0)
    fewer = min(len(one), len(other))
    chosen = [rows[spread(len(rows), fewer)] for rows in (one, other)]
    chosen = np.sort(np.concatenate(chosen))
    return passages(subject, plan[chosen])


def answers(subject, p, of, **more):
    """of(Output, which passages) for all of them, a batch at a time. more: [S, L] for the model,
    or the same for all."""
    model, found = subject.model, []
    count = len(p.ids)
    if model.config.types > 1:
        more["token_type_ids"] = p.types
    for i in range(0, count, AT_ONCE):
        rows = slice(i, i + AT_ONCE)
        given = {}
        for name, x in more.items():
            given[name] = x[rows] if len(x) == count else x
        with no_grad():
            out = model(p.ids[rows], p.real[rows], **given)
            y = of(out, rows)
        found.append(y.astype(np.float32))
    return np.concatenate(found)


def states(subject, p, **more):
    """[S, L, H]"""
    return answers(subject, p, lambda out, rows: out.last_hidden_state.numpy(), **more)


def mean(x, mask):
    """Of the states at some places.  [S, L, H] -> [S, H]"""
    mask = mask[:, :, None].astype(x.dtype)
    return (x * mask).sum(1) / np.maximum(1, mask.sum(1))


def summary(subject, p):
    """The first state, the mean of each passage's, and where the two agree."""
    x = states(subject, p)
    a = mean(x, p.inside & (p.types == 0))
    b = mean(x, p.inside & (p.types == 1))
    return np.column_stack([x[:, 0], a, b, a * b])


def by_document(p):
    """Which passages are fitted on: those of every other document."""
    _, number = np.unique(p.document, return_inverse=True)
    return number % 2 == 0


# ---- probes

def topic(subject, most=12):
    """Among the documents with the most passages; of each, every other passage is fitted on."""
    p = single(subject)
    names, counts = np.unique(p.document, return_counts=True)
    chosen = names[np.argsort(-counts, kind="stable")][:most]
    p = p[np.isin(p.document, chosen)]
    x = mean(states(subject, p), p.inside)
    y = np.searchsorted(np.sort(chosen), p.document)
    return accuracy(x, y, np.arange(len(y)) % 2 == 0)


def follows(subject):
    p = pairs(subject, segments.next_sentence_pairs)
    return accuracy(summary(subject, p), p.labels, by_document(p))


def order(subject):
    p = pairs(subject, segments.order_pairs)
    return accuracy(summary(subject, p), p.labels, by_document(p))


def intact(subject, share=0.15):
    """Every other passage has shuffled words: three at a time, none of them in its place."""
    p = single(subject)
    rng = np.random.default_rng(SEED)
    ids = p.ids.copy()
    shuffled = np.arange(len(ids)) % 2
    for s in np.flatnonzero(shuffled):
        at, = np.nonzero(p.inside[s])
        several = max(1, round(share * len(at) / 3))
        groups = at[:len(at) // 3 * 3].reshape(-1, 3)
        for group in rng.permutation(groups)[:several]:
            turned = np.roll(group, rng.integers(1, 3))
            ids[s, group] = ids[s, turned]
    p = p._replace(ids=ids)
    x = states(subject, p)
    x = np.column_stack([x[:, 0], mean(x, p.inside)])
    return accuracy(x, shuffled, by_document(p))


def borders(subject, classes=30):
    """Spans of three tokens that are not hidden; the word is one of the commonest."""
    p = single(subject)
    counts = np.bincount(p.ids[p.inside])
    common = np.argsort(-counts, kind="stable")[:classes]
    s, at = np.nonzero(p.inside & np.isin(p.ids, common))
    last = p.real.sum(1)[s] - 1
    fits = (at >= 2) & (at + 2 <= last)             # [CLS] and [SEP] may be borders
    s, at = s[fits], at[fits]
    x = states(subject, p)
    left, right = x[s, at - 2], x[s, at + 2]
    y = np.searchsorted(np.sort(common), p.ids[s, at])
    x = np.column_stack([left, right])
    return accuracy(x, y, by_document(p)[s])


def kind_of(name):
    """Of an entity of Python's graph: open() is a function, io.StringIO a class, json neither."""
    if name.endswith("()"):
        return 2
    last = name.rpartition(".")[2]
    return int(last[:1].isupper() or name.startswith("builtins."))


def typed(subject):
    """By the state of the first piece of its name. Things that are tested were not fitted on.

    A model that was trained without the vectors of things (`unlinked`) goes without them."""
    known = subject.knowledge
    p = single(subject)
    found = known.mentions(p.places)                                    # [S, L]
    s, at = np.nonzero(found >= 0)
    if not len(s):
        raise Error("typed: nothing of the graph is named in the held-out text")
    blind = subject.model.config.unlinked == 1
    ids = np.full_like(found, -1) if blind else found
    vectors = np.asarray(known.vectors, np.float32)
    x = states(subject, p, entity_ids=ids, entity_vectors=vectors)[s, at]
    thing = found[s, at]
    y = np.array([kind_of(known.names[i]) for i in thing])
    if len(np.unique(y)) < 2:
        raise Error("typed: the graph's entities are all of one kind; this probe is made for that "
                    "of Python's own sources")
    return accuracy(x, y, thing % 2 == 0)


# ---- clozes

def guesses(subject, p, ids, where):
    """Scores of all words at the places `where` [S, L] of ids.  -> [K, V]"""
    def scores(out, rows):
        return out.prediction_logits.numpy()[where[rows]]
    return answers(subject, p._replace(ids=ids), scores)


def hidden(subject, p, where):
    return np.where(where, subject.tokenizer.mask, p.ids)


def surprise(scores, right):
    """-log probability, the mean."""
    z = scores.astype(np.float64)
    z -= z.max(1, keepdims=True)
    total = np.log(np.exp(z).sum(1))
    return float(np.mean(total - z[np.arange(len(z)), right]))


def words_hidden(subject):
    """(scores, the right answers) of 15 % of the tokens."""
    p = single(subject)
    coin = np.random.default_rng(SEED).random(p.ids.shape)
    where = p.inside & (coin < 0.15)
    scores = guesses(subject, p, hidden(subject, p, where), where)
    return scores, p.ids[where]


def loss(subject):
    return surprise(*words_hidden(subject))


def words_right(subject):
    scores, right = words_hidden(subject)
    return float((scores.argmax(1) == right).mean())


def units(subject, p):
    """The words of every passage: [[(begin, end), ...], ...]"""
    begins = words.begins_word(subject.tokenizer)[p.ids]
    found = []
    for starts, inside in zip(begins, p.inside):
        at, = np.nonzero(inside)
        cuts = [i for i in at if starts[i] or i == at[0]]
        ends = [*cuts[1:], *at[-1:] + 1]
        found.append(list(zip(cuts, ends)))
    return found


def one_of_each(p, chances):
    """One stretch of each passage that has any, drawn. -> bool [S, L]"""
    rng = np.random.default_rng(SEED)
    where = np.zeros(p.ids.shape, bool)
    for row, found in zip(where, chances):
        if found:
            begin, end = found[rng.integers(len(found))]
            row[begin:end] = True
    return where


def right_of(subject, p, where):
    """Is the likeliest word the right one, at each of the hidden places? [K]"""
    ids = hidden(subject, p, where)
    scores = guesses(subject, p, ids, where)
    return scores.argmax(1) == p.ids[where]


def wholly(right, where):
    """The share of the passages where all of a stretch is right."""
    s, _ = np.nonzero(where)
    wrong = np.bincount(s, ~right, len(where))
    asked = np.unique(s)
    return float(np.mean(wrong[asked] == 0))


def spans(subject, several=3):
    """Of tokens in spans of so many words."""
    p = single(subject)
    runs = []
    for found in units(subject, p):
        pairs = zip(found, found[several - 1:])         # the first word of a span, and its last
        runs.append([(begin, end) for (begin, _), (_, end) in pairs])
    where = one_of_each(p, runs)
    return float(right_of(subject, p, where).mean())


def pieces(subject):
    p = single(subject)
    long = []
    for found in units(subject, p):
        long.append([(a, b) for a, b in found if b - a > 1])
    where = one_of_each(p, long)
    return wholly(right_of(subject, p, where), where)


LANDS = {land for land, *_ in TOWNS.values()}


def names(subject):
    """Towns and lands of the toy language: they stay the same through a story."""
    encode = subject.tokenizer.encode
    known = {tuple(encode(name)) for name in [*TOWNS, *LANDS]}
    p = single(subject)
    named = []
    for row, found in zip(p.ids, units(subject, p)):
        named.append([(a, b) for a, b in found if tuple(row[a:b]) in known])
    where = one_of_each(p, named)
    return wholly(right_of(subject, p, where), where)


def restored(subject, share=0.15):
    """Words that similar ones stand for; the model's head says what should be there."""
    p = single(subject)
    ids, special = p.ids.reshape(-1), ~p.inside.reshape(-1)
    sequence = np.repeat(np.arange(len(p.ids)), p.ids.shape[1])
    begins = words.begins_word(subject.tokenizer)[ids]
    unit = corrupt.units(begins, special, sequence)                     # [S L]
    rng = np.random.default_rng(SEED)
    draws = rng.integers(0, 1 << 32, len(ids), np.uint32)
    other = subject.knowledge.similar.replace(ids, unit, draws)
    coin = rng.random(len(ids))[corrupt.first_of(unit)]                 # one for each word
    replaced = (coin < share) & ~special & (other >= 0) & (other != ids)
    seen = np.where(replaced, other, ids)
    where = replaced.reshape(p.ids.shape)
    scores = guesses(subject, p, seen.reshape(p.ids.shape), where)
    return float(np.mean(scores.argmax(1) == p.ids[where]))


# ---- by name: the function, which end is good, and how it is printed

class Measure(NamedTuple):
    of: object                  # Subject -> number
    better: int                 # 1: the higher, -1: the lower
    form: str                   # how it is printed
    told: str                   # in words


SHARE, NATS = ".1%", ".3f"
MEASURES = dict(
    topic=Measure(topic, 1, SHARE, "topics told"),
    follows=Measure(follows, 1, SHARE, "pairs told to follow or not"),
    order=Measure(order, 1, SHARE, "orders told"),
    intact=Measure(intact, 1, SHARE, "shuffled told from intact"),
    borders=Measure(borders, 1, SHARE, "words told from a span's borders"),
    typed=Measure(typed, 1, SHARE, "kinds of named things told"),
    loss=Measure(loss, -1, NATS, "loss at hidden words"),
    words=Measure(words_right, 1, SHARE, "hidden words right"),
    spans=Measure(spans, 1, SHARE, "words of hidden spans right"),
    pieces=Measure(pieces, 1, SHARE, "words of several pieces right"),
    names=Measure(names, 1, SHARE, "hidden names right"),
    restored=Measure(restored, 1, SHARE, "replaced words restored"))
