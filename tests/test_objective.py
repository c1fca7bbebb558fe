"""BERT's data construction: which passages stand together, what is hidden, and what is put in its
place."""
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinybert_family as tbf
from tinybert_family.models.bert import Config, Objective
from tinybert_family.text import corrupt, segments, toy
from tinybert_family.text.corpus import Corpus
from tinybert_family.text.segments import A, A_END, B, B_END, NUMBER
from tinybert_family.text.segments import LABEL as RANDOM
from tinybert_family.text.wordpiece import WordPiece

MARKS = SimpleNamespace(pad=0, unk=4, cls=1, sep=2, mask=3)
RECIPE = Config(vocab=1000, width=8, heads=1, hidden=8, layers=1, positions=128, seq=128,
                tokens=1024)


def a_corpus(sizes, first=10, vocab=1000, seed=0):
    """sizes: for every document the lengths of its sentences. Tokens are random and never
    special."""
    cuts = np.concatenate([[0], np.cumsum([n for document in sizes for n in document])])
    documents = np.concatenate([[0], np.cumsum([len(document) for document in sizes])])
    ids = np.random.default_rng(seed).integers(first, vocab, cuts[-1]).astype(np.uint16)
    return SimpleNamespace(ids=ids, sentences=cuts.astype(np.int64),
                           documents=documents.astype(np.int64))


def pairs_in(corpus, documents, length, short, seed):
    """The table that next_sentence_pairs makes its plan of.  [N, 7]"""
    def pairs(document, rng):
        return segments.pairs_of(corpus, documents, document, length, short, rng)
    return segments.table_of(pairs, documents, seed)


def lengths_of(table):
    return table[:, A_END] - table[:, A] + table[:, B_END] - table[:, B] + 3


def random_sizes(documents, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, longest, rng.integers(1, 12)).tolist() for _ in range(documents)]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    documents = toy.documents(60)
    tokenizer = WordPiece.train([s for d in documents for s in d.sentences], 500)
    return Corpus.build(documents, tokenizer, tmp_path_factory.mktemp("toy") / "corpus"), tokenizer


# ---- pairs: by hand

class Coins:
    """Draws in the order they are wanted, each with what it is for."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self):
        return self.draws.pop(0)

    def integers(self, low, high=None):
        low, high = (0, low) if high is None else (low, high)
        x = self.draws.pop(0)
        assert low <= x < high, (low, x, high)
        return x


def test_a_worked_example():
    """Two documents; tokens are numbered through, so a passage can be read off its cuts.

        document 0: sentences of 3, 4, 2, 5 tokens = [0:3] [3:7] [7:9] [9:14]
        document 1: sentences of 3, 4, 2 tokens    = [14:17] [17:21] [21:23]
        length 13, so ten tokens beside [CLS] A [SEP] B [SEP]
    """
    corpus = a_corpus([[3, 4, 2, 5], [3, 4, 2]])
    coins = Coins(0.5,              # not a short one: ten tokens are wanted
                  1,                # sentences 0-3 are 3 + 4 + 2 + 5 >= 10; A is the first alone
                  0.3,              # below a half: B from elsewhere, 10 - 3 = 7 tokens of it
                  0, 1,             # first try: document 0, which is this one; second: document 1
                  # from the corpus's sentence 5, its second: 4 + 2 tokens, and there it ends
                  5,
                  # the next is not short either; sentences 1-3 were put back: 4 + 2 + 5 >= 10
                  0.5,
                  # A is [3:7] [7:9], B is what follows, [9:14]; eleven tokens, one too many
                  3, 0.7,
                  0.2,              # A is longer: it loses one, from its front
                  0.05, 10)         # a "short" one of the most it may be, for whatever comes next
    pairs = segments.pairs_of(corpus, np.array([0, 1]), 0, 13, 0.1, coins)
    assert pairs == [(0, 3, 17, 23, True), (4, 9, 9, 14, False)]
    assert not coins.draws


def test_short_sequences_by_hand():
    corpus = a_corpus([[3, 4, 2, 5], [3]])
    coins = Coins(0.05, 2,          # a short one: two tokens
                  # sentence 0 has three of its own; it is alone, so B is document 1, whatever a
                  # coin says
                  1, 4,
                  0.05, 6,          # six tokens
                  2, 0.5,           # sentences 1 and 2; B is the second
                  0.99, 1, 4,       # ten tokens: sentence 3 is alone again
                  0.5)
    pairs = segments.pairs_of(corpus, np.array([0, 1]), 0, 13, 0.1, coins)
    assert pairs == [(0, 3, 14, 17, True), (3, 7, 7, 9, False), (9, 14, 14, 17, True)]
    assert not coins.draws


def test_the_longer_passage_loses_a_token_at_a_time_from_either_end():
    def cut(*coins):
        return segments.shorten(0, 6, 10, 14, 6, Coins(*coins))
    # 6 + 4: A front, A back; then 4 + 4, a tie: B front; then A (4 > 3) back.
    assert cut(0.4, 0.6, 0.4, 0.6) == (1, 4, 11, 14)
    assert cut(0.9, 0.9, 0.9, 0.9) == (0, 3, 10, 13)


def test_a_sequence_reads_cls_a_sep_b_sep():
    corpus = a_corpus([[3, 4], [2]])
    plan = segments.framed(np.array([[0, 3, 7, 9, 1, 0, 4]]), MARKS)
    s = segments.lay_out(corpus, plan)
    assert s.ids.tolist() == [1, *corpus.ids[:3], 2, *corpus.ids[7:9], 2]
    assert s.types.tolist() == [0] * 5 + [1] * 3
    assert s.places.tolist() == [-1, 0, 1, 2, -1, 7, 8, -1]
    assert plan.lengths().tolist() == [8] and s.cuts.tolist() == [0, 8]
    assert s.labels.tolist() == [1] and s.keys.tolist() == [[0, 4]]


# ---- pairs: what always holds

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=9), min_size=1, max_size=8),
       st.integers(8, 70),
       st.sampled_from([0.0, 0.1, 0.9]), st.integers(0, 5))
def test_every_plan_is_sound(sizes, length, short, copy):
    """Sequences fit, passages lie inside documents, B follows A just when the label says so."""
    corpus = a_corpus(sizes)
    documents = np.arange(len(sizes))
    plan = pairs_in(corpus, documents, length, short, [7, copy])
    n = lengths_of(plan)
    assert np.all(n <= length) and len(np.unique(plan[:, 5:], axis=0)) == len(plan)
    assert np.all((plan[:, NUMBER] == 0) | (plan[:, NUMBER] == np.roll(plan[:, NUMBER], 1) + 1))
    assert np.all(plan[:, A_END] > plan[:, A])
    ends = corpus.sentences[corpus.documents]
    def owner(places):
        return np.searchsorted(ends, places, side="right") - 1
    for row in plan:
        first, second = owner(row[A]), owner(row[B]) if row[B_END] > row[B] else None
        assert row[A_END] <= ends[first + 1]
        if row[RANDOM]:
            assert second is not None and row[B_END] <= ends[second + 1]
            assert second != first or len(sizes) < 6        # ten tries, as in the released code
        elif second is not None:
            assert second == first and row[B_END] <= ends[first + 1] and row[B] >= row[A_END]
        else:
            assert len(sizes) == 1                          # a lone sentence of a lone document


def test_a_document_is_told_from_itself_almost_always():
    """Ten tries to find another: with two documents one in 1024 fails."""
    corpus = a_corpus([[5] * 9] * 2)
    ends = corpus.sentences[corpus.documents]
    same = total = 0
    for copy in range(300):
        plan = pairs_in(corpus, np.arange(2), 64, 0.1, [0, copy])
        plan = plan[plan[:, RANDOM] == 1]
        same += (np.searchsorted(ends, plan[:, A], side="right")
                 == np.searchsorted(ends, plan[:, B], side="right")).sum()
        total += len(plan)
    assert total > 500 and same < 0.01 * total


def used_tokens(corpus, plan):
    """Which tokens stand in a sequence of their own document."""
    used = np.zeros(len(corpus.ids), bool)
    for row in plan:
        used[row[A]:row[A_END]] = True
        if not row[RANDOM]:
            used[row[B]:row[B_END]] = True
    return used


@pytest.mark.parametrize("seq", [8, 16, 40, 128])
def test_no_sentence_is_lost_in_any_copy(seq, monkeypatch):
    """Sentences whose place was given to another document are put back. All tokens are there
    before the cut to length; after it, in sequences much longer than sentences, still some of
    every sentence."""
    corpus = a_corpus(random_sizes(80, longest=12))
    for copy in range(3):
        if seq == 128:
            plan = pairs_in(corpus, np.arange(80), seq, 0.1, [3, copy])
            assert np.logical_or.reduceat(used_tokens(corpus, plan), corpus.sentences[:-1]).all()
        with monkeypatch.context() as patch:
            patch.setattr(segments, "shorten", lambda *cuts_room_rng: cuts_room_rng[:4])
            plan = pairs_in(corpus, np.arange(80), seq, 0.1, [3, copy])
        assert used_tokens(corpus, plan).all()


def test_a_corpus_of_one_document_has_random_pairs_too():
    """As in the released code, whose search for another document ends after ten tries: else a
    model trained on one long book would see no second label."""
    corpus = a_corpus([[20] * 400])
    plan = pairs_in(corpus, np.arange(1), 128, 0.0, [0, 0])
    assert plan[:, RANDOM].mean() > 0.3
    lone = pairs_in(a_corpus([[20]]), np.arange(1), 128, 0.0, [0, 0])
    assert np.all(lone[:, B_END] > lone[:, B])


def test_b_is_random_half_the_time_and_always_after_a_lone_sentence():
    """So the rate is 1 - (1 - lone) / 2, lone being the share of sequences that begin with all
    that is left."""
    # never alone but at the end of a document
    sizes = [[20] * 30] * 60
    short = [[20]] * 300                                    # always alone
    for documents, low, high in ((sizes, 0.5, 0.56), (short, 1.0, 1.0)):
        corpus = a_corpus(documents)
        plan = np.concatenate([pairs_in(corpus, np.arange(len(documents)), 128,
                                                            0.0, [1, copy])
                               for copy in range(8)])
        assert low <= plan[:, RANDOM].mean() <= high

    # Exactly: with two sentences in all, a sequence of both is random for half, and then the
    # second comes alone.
    corpus = a_corpus([[20, 20]] * 2000)
    plan = pairs_in(corpus, np.arange(2000), 128, 0.0, [1, 0])
    n = len(plan)
    lone = 1 - (plan[:, A] % 40 == 0).mean()
    assert abs(lone - 1 / 3) < 0.02 and abs(plan[:, RANDOM].mean() - 2 / 3) < 0.02
    assert abs(plan[:, RANDOM].mean() - (1 - (1 - lone) / 2)) < 3 / np.sqrt(n)


def test_the_label_is_1_for_random_and_0_for_next(language):
    """The reverse of intuition, and what the published head was trained on."""
    corpus, tokenizer = language
    c = replace(RECIPE, vocab=tokenizer.size, masked=0.0)
    objective = Objective(c, corpus, tokenizer)
    batch = objective.batch(objective.plan(corpus.train, 0)[:64], 0)
    table = pairs_in(corpus, corpus.train, c.seq, c.short, (0, 0))[:64]
    order = np.argsort(-lengths_of(table), kind="stable")
    follows = table[order, A_END] == table[order, B]
    assert 5 < follows.sum() < 60
    assert np.all(batch["nsp_labels"][follows] == 0)
    cut = table[order, B] > table[order, A_END]             # next, but shortened at the seam
    assert np.all(batch["nsp_labels"][~follows & ~cut] == 1)


def test_the_share_of_short_sequences_is_about_short():
    corpus = a_corpus([[4] * 4000] * 3)
    for share in 0.0, 0.1, 0.5:
        plan = np.concatenate([pairs_in(corpus, np.arange(3), 128, share,
                                                            [2, copy])
                               for copy in range(12)])
        n = lengths_of(plan[plan[:, RANDOM] == 0])    # these are as long as was wanted
        # Of the short ones, lengths 2..125 are alike; sentences of four tokens hide those above
        # 120.
        found = (n < 120).mean()
        assert abs(found - share * 115 / 124) < 0.025
    short = n[n < 120] - 3
    assert short.min() <= 8 and np.ptp(np.histogram(short, 4, (5, 117))[0]) < 0.25 * len(short)


def test_a_plan_is_a_function_of_seed_copy_and_documents():
    corpus = a_corpus(random_sizes(30))
    def plan(documents=np.arange(30), seed=(0, 0)):
        return pairs_in(corpus, documents, 64, 0.1, list(seed))
    assert np.array_equal(plan(), plan())
    assert not np.array_equal(plan(), plan(seed=(0, 1)))
    assert not np.array_equal(plan(), plan(seed=(1, 0)))
    some = plan(np.arange(5, 12))
    ends = corpus.sentences[corpus.documents[[5, 12]]]
    # held-out text stays out
    assert np.all((some[:, [A, B]] >= ends[0]) & (some[:, [A_END, B_END]] <= ends[1]))


# ---- hiding: by hand

def test_the_budget_counts_special_tokens_and_rounds_as_python_does():
    n = np.arange(3, 513)
    assert corrupt.budget(n, 0.15, 20).tolist() == [min(20, max(1, round(0.15 * int(k))))
                                                    for k in n]
    few = np.array([3, 10, 30, 50, 128, 512])
    assert corrupt.budget(few, 0.15, 20).tolist() == [1, 2, 4, 8, 19, 20]
    assert corrupt.budget(np.array([512]), 0.15, 77).tolist() == [77]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_smallest_draws_of_each_sequence_are_chosen(data):
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    total = sum(lengths)
    rng = np.random.default_rng(data.draw(st.integers(0, 2 ** 32)))
    # ties too
    draws = rng.integers(0, data.draw(st.sampled_from([3, 2 ** 32])), total).astype(np.uint32)
    able = rng.random(total) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    counts = rng.integers(0, 8, len(lengths))
    chosen = corrupt.choose(draws, able, sequence, counts)
    assert np.all(np.diff(chosen) > 0) and able[chosen].all()
    for s in range(len(lengths)):
        mine = [i for i in chosen if sequence[i] == s]
        all_able = np.flatnonzero(able & (sequence == s))
        assert len(mine) == min(counts[s], len(all_able))
        assert sorted(draws[mine]) == sorted(draws[all_able])[:len(mine)]


def test_a_worked_example_of_eighty_ten_ten():
    ids, chosen = np.arange(10, 20), np.array([1, 3, 5, 7])
    at = lambda share: np.uint32(share * 2 ** 32)
    draws, others = np.zeros(10, np.uint32), np.zeros(10, np.uint32)
    draws[chosen] = at(0.7999), at(0.8001), at(0.8999), at(0.9001)
    others[7] = at(0.5)
    noisy = corrupt.eighty_ten_ten(ids, chosen, draws, others, mask=3, vocab=1000)
    assert noisy.tolist() == [10, 3, 12, 13, 14, 15, 16, 500, 18, 19]
    assert ids.tolist() == list(range(10, 20))              # not written to


def test_random_words_are_even_over_the_whole_vocabulary():
    draws = np.random.default_rng(0).integers(0, 2 ** 32, 200_000).astype(np.uint32)
    found = np.bincount(corrupt.below(draws, 7), minlength=7)
    assert len(found) == 7 and abs(found / 200_000 - 1 / 7).max() < 0.004
    assert corrupt.below(np.array([0, 2 ** 32 - 1], np.uint32), 30522).tolist() == [0, 30521]


# ---- hiding: statistics of real batches

@pytest.fixture(scope="module")
def many():
    """Batches with well over 1e5 hidden tokens, with their sequences put together again."""
    corpus = a_corpus(random_sizes(2500, longest=40))
    objective = Objective(RECIPE, corpus, MARKS, seed=5)
    pieces = []
    for copy in range(2):
        plan = objective.plan(np.arange(2500), copy)
        for lo in range(0, len(plan), 500):
            rows = plan[lo:lo + 500]
            original = segments.lay_out(corpus, rows).ids
            batch = objective.batch(rows, copy)
            hidden = batch["asked"][batch["mlm_at"]]
            pieces.append((batch, original, hidden))
    assert sum(len(hidden) for *_, hidden in pieces) > 100_000
    return pieces


def test_labels_restore_the_original(many):
    for batch, original, hidden in many:
        restored = batch["ids"].copy()
        restored[hidden] = batch["mlm_labels"]
        assert np.array_equal(restored, original)
        changed = np.flatnonzero(batch["ids"] != original)
        assert np.isin(changed, hidden).all()


def test_no_special_token_is_ever_hidden(many):
    for batch, original, hidden in many:
        assert not np.isin(original[hidden], [MARKS.cls, MARKS.sep]).any()
        ids, cuts = batch["ids"], batch["cuts"]
        assert np.all(ids[cuts[:-1]] == MARKS.cls) and np.all(ids[cuts[1:] - 1] == MARKS.sep)


def test_each_sequence_hides_as_many_as_the_rule_says(many):
    for batch, original, hidden in many:
        lengths = np.diff(batch["cuts"])
        found = np.diff(np.searchsorted(hidden, batch["cuts"]))
        assert found.tolist() == [min(20, max(1, round(0.15 * int(n)))) for n in lengths]


def test_a_sequence_of_few_words_hides_no_more_than_it_has():
    corpus = a_corpus([[1], [1]])
    objective = Objective(replace(RECIPE, masked=0.9), corpus, MARKS)
    batch = objective.batch(objective.plan(np.arange(2), 0), 0)
    assert np.diff(batch["cuts"]).tolist() == [5, 5]
    # round(0.9 * 5) = 4 were allowed, two words are there
    assert len(batch["mlm_labels"]) == 4


def test_the_share_of_hidden_tokens_is_15_percent_until_the_limit():
    corpus = a_corpus(random_sizes(1500, longest=40))
    for limit, low, high in (77, 0.148, 0.152), (20, 0.14, 0.152), (5, 0, 0.08):
        objective = Objective(replace(RECIPE, predictions=limit), corpus, MARKS)
        batch = objective.batch(objective.plan(np.arange(1500), 0), 0)
        assert low < len(batch["mlm_labels"]) / len(batch["ids"]) < high


def test_hidden_tokens_are_80_percent_masked_10_random_10_kept(many):
    masked = kept = total = 0
    random = Counter()
    for batch, original, hidden in many:
        noisy, truth = batch["ids"][hidden], original[hidden]
        masked += (noisy == MARKS.mask).sum()
        kept += (noisy == truth).sum()
        random.update(noisy[(noisy != MARKS.mask) & (noisy != truth)].tolist())
        total += len(hidden)
    other = sum(random.values())
    assert abs(masked / total - 0.8) < 0.005
    assert abs(kept / total - 0.1) < 0.005 and abs(other / total - 0.1) < 0.005
    # Any word of the vocabulary, special ones too.
    assert set(random) >= {MARKS.pad, MARKS.cls, MARKS.sep, MARKS.unk}
    assert max(random) < RECIPE.vocab
    assert len(random) > 995 and max(random.values()) < 5 * other / RECIPE.vocab


def test_every_place_is_hidden_alike(many):
    """No place in a sequence is favoured, the last ones least of all."""
    shares = []
    for batch, original, hidden in many:
        cuts = batch["cuts"]
        full = np.flatnonzero(np.diff(cuts) == 128)
        owner = np.searchsorted(cuts, hidden, side="right") - 1
        inside = np.isin(owner, full)
        shares.append((np.bincount((hidden - cuts[owner])[inside], minlength=128), len(full)))
    counts, sequences = sum(c for c, _ in shares), sum(n for _, n in shares)
    share = counts / sequences
    assert share[0] == 0 and share[127] == 0                # [CLS], the last [SEP]
    middle = share[1:127].reshape(9, 14).mean(1)            # one in 126 is the [SEP] between
    expected = 19 / 125 * 125 / 126
    assert sequences > 500 and abs(middle / expected - 1).max() < 0.12


# ---- batches

@pytest.fixture(scope="module")
def objective(language):
    corpus, tokenizer = language
    return Objective(replace(RECIPE, vocab=tokenizer.size, seq=64), corpus, tokenizer, seed=9)


def by_sequence(batch):
    """{number of words, labels, ids of a sequence: ...}: what each sequence became, without its
    place in the batch."""
    hidden, cuts = batch["asked"][batch["mlm_at"]], batch["cuts"]
    found = []
    for s, (lo, hi) in enumerate(zip(cuts, cuts[1:])):
        mine = (hidden >= lo) & (hidden < hi)
        found.append((tuple(batch["ids"][lo:hi]), tuple(batch["types"][lo:hi]),
                      tuple(batch["positions"][lo:hi]),
                      tuple(hidden[mine] - lo), tuple(batch["mlm_labels"][mine]),
                      int(batch["nsp_labels"][s])))
    return found


def test_a_batch_is_sound(objective, language):
    corpus, tokenizer = language
    plan = objective.plan(corpus.train, 0)
    for rows in plan[:1], plan[:9], plan[20:60]:
        b = objective.batch(rows, 0)
        total, cuts = len(b["ids"]), b["cuts"]
        assert cuts[0] == 0 and cuts[-1] == total == rows.lengths().sum()
        # the longest first
        assert np.all(np.diff(cuts) > 0) and np.all(np.diff(cuts, 2) <= 0)
        assert np.diff(cuts).max() <= 64
        for lo, hi in zip(cuts, cuts[1:]):
            assert np.array_equal(b["positions"][lo:hi], np.arange(hi - lo))
        assert np.array_equal(b["asked"][b["nsp_at"]], cuts[:-1])
        assert np.all(np.diff(b["asked"]) > 0) and len(b["mlm_labels"]) == len(b["mlm_at"])
        assert len(b["nsp_labels"]) == len(rows) and set(b["types"]) == {0, 1}
        assert b["ids"].max() < tokenizer.size
        assert objective.counts(b).tolist() == [len(b["mlm_labels"]), len(rows)]
        assert all(x.dtype.kind == "i" for x in b.values())


def test_the_masks_of_a_copy_never_change(objective, language):
    """Whatever batch, order or objective they come in: each is a function of (seed, copy, its own
    number)."""
    corpus, tokenizer = language
    plan = objective.plan(corpus.train, 3)
    together = by_sequence(objective.batch(plan[:40], 3))
    alone = [by_sequence(objective.batch(plan[i:i + 1], 3))[0] for i in range(40)]
    assert sorted(together) == sorted(alone)
    shuffled = by_sequence(objective.batch(plan[:40][np.random.default_rng(0).permutation(40)], 3))
    assert sorted(shuffled) == sorted(together)
    another = Objective(objective.config, corpus, tokenizer, seed=9)
    another.batch(another.plan(corpus.train, 5)[:7], 5)
    assert by_sequence(another.batch(another.plan(corpus.train, 3)[:40], 3)) == together


def test_copies_and_seeds_differ_in_their_masks(objective, language):
    corpus, tokenizer = language
    plan = objective.plan(corpus.train, 0)[:40]
    first = objective.batch(plan, 0)
    other = Objective(objective.config, corpus, tokenizer, seed=10)
    for batch in objective.batch(plan, 1), other.batch(plan, 0):
        a, b = (set(x["asked"][x["mlm_at"]].tolist()) for x in (first, batch))
        # of the same text, by chance alone about the share hidden
        overlap = len(a & b) / len(a)
        assert 0.05 < overlap < 0.3
    neighbours = [set(places) for _, _, _, places, _, _ in by_sequence(first)]
    assert len({frozenset(p) for p in neighbours}) == 40    # nor do sequences share masks


@pytest.mark.parametrize("seed", [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 1])
def test_any_seed_will_do(language, seed):
    corpus, tokenizer = language
    c = replace(RECIPE, vocab=tokenizer.size, seq=64)
    batch, again = (o.batch(o.plan(corpus.train, 0)[:20], 0)
                    for o in (Objective(c, corpus, tokenizer, seed),) * 2)
    assert all(np.array_equal(batch[k], again[k]) for k in batch)
    share = (batch["ids"][batch["asked"][batch["mlm_at"]]] == tokenizer.mask).mean()
    assert 0.65 < share < 0.93


def test_a_batch_leaves_its_rows_and_the_corpus_alone(objective, language):
    corpus, _ = language
    plan = objective.plan(corpus.train, 0)[:8]
    pieces, ids = plan.pieces.copy(), corpus.ids[:1000].copy()
    objective.batch(plan, 0)
    assert np.array_equal(plan.pieces, pieces) and np.array_equal(corpus.ids[:1000], ids)


def test_too_short_a_sequence_is_refused_with_the_remedy(language):
    corpus, tokenizer = language
    with pytest.raises(tbf.Error, match="seq: 7.*--seq 8"):
        Objective(replace(RECIPE, seq=7), corpus, tokenizer)
    objective = Objective(replace(RECIPE, seq=8, vocab=tokenizer.size), corpus, tokenizer)
    plan = objective.plan(corpus.train, 0)
    assert plan.lengths().max() == 8 and len(objective.batch(plan[:10], 0)["mlm_labels"]) == 10


# ---- losses

def test_the_losses_are_means_over_hidden_words_and_over_pairs(objective, language):
    """By the definition, from the logits; and scores() agrees."""
    from tinybert_family.engine.nn import Init
    from tinybert_family.models.bert import Model
    corpus, _ = language
    b = objective.batch(objective.plan(corpus.train, 0)[:12], 0)
    model = Model(replace(objective.config, width=16, heads=2, hidden=16), Init(0, 0.5, np.float64))
    states = {task: x for task, _, x, _ in objective.answers(model, b)}
    def cross_entropy(logits, labels):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return -np.log(p[np.arange(len(p)), labels]).mean()
    words, order = model.mlm(states["mlm"]).numpy(), model.nsp(states["nsp"]).numpy()
    losses = objective.loss(model, b, objective.counts(b))
    scores = {name: value / count for name, (value, count) in objective.scores(model, b).items()}
    for name, expected in (("mlm_loss", cross_entropy(words, b["mlm_labels"])),
                           ("nsp_loss", cross_entropy(order, b["nsp_labels"]))):
        assert abs(losses[name].item() - expected) < 1e-12 and abs(scores[name] - expected) < 1e-12
    assert scores["mlm_accuracy"] == (words.argmax(1) == b["mlm_labels"]).mean()
    assert scores["nsp_accuracy"] == (order.argmax(1) == b["nsp_labels"]).mean()
    doubled = objective.loss(model, b, 2 * objective.counts(b))
    assert all(abs(2 * doubled[name].item() - losses[name].item()) < 1e-12 for name in losses)
