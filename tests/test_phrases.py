"""Matching, counting, phrases and names, each against the plain way to do it."""
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from texts import Text

from tinybert_family.error import Error
from tinybert_family.text import entities, lexicon, matching, phrases
from tinybert_family.text.matching import Trie

# ------------------------------------------------------------------------------------- matching

WORDS = st.integers(0, 3)
EXPRESSIONS = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(tuple), max_size=6, unique=True)


def plainly(expressions, words, left):
    """At each place the longest, from left to right, as one would write it for a single text."""
    found, i = [], 0
    while i < len(words):
        fits = [e for e in expressions
                if len(e) <= left[i] and tuple(words[i:i + len(e)]) == e]
        if fits:
            best = max(fits, key=len)
            found.append((i, len(best), expressions.index(best)))
            i += len(best)
        else:
            i += 1
    return found


@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS, st.lists(st.lists(WORDS, min_size=1, max_size=9), min_size=1, max_size=4))
def test_a_trie_finds_the_longest_at_each_place_and_none_across_sentences(expressions, sentences):
    words = np.array([w for s in sentences for w in s])
    left = np.array([len(s) - i for s in sentences for i in range(len(s))])
    found = Trie(expressions, 4).find(words, left)
    assert list(zip(*(a.tolist() for a in found))) == plainly(expressions, words, left)


def test_single_words_are_found_where_they_may_be_one():
    trie, words = Trie([(1,), (1, 2)], 3), np.array([1, 2, 1, 0])
    begins, lengths, _ = trie.find(words, np.array([4, 3, 2, 1]), np.zeros(4, bool))
    assert (begins.tolist(), lengths.tolist()) == ([0], [2])


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), max_size=8))
def test_spans_that_share_no_word(spans):
    taken, known = set(), []
    for begin, length in sorted(spans):
        own = set(range(begin, begin + length))
        if not own & taken:
            known.append((begin, length))
            taken |= own
    others = np.array([s for s in sorted(spans) if s not in known], np.int64).reshape(-1, 2)
    held = np.array(known, np.int64).reshape(-1, 2)
    begins, lengths = matching.outside(*others.T, *held.T, 30)
    free = [(b, n) for b, n in others.tolist() if not set(range(b, b + n)) & taken]
    assert list(zip(begins.tolist(), lengths.tolist())) == free


# ------------------------------------------------------------------------------------- counting

@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=5))
def test_a_tally_counts(parts):
    tally = lexicon.Tally()
    for part in parts:
        tally.add(np.array(part, np.int64))
    keys, counts = tally.settle()
    every = [x for part in parts for x in part]
    assert dict(zip(keys.tolist(), counts.tolist())) == {x: every.count(x) for x in set(every)}


def test_a_tally_that_is_full_forgets_the_rarest(monkeypatch):
    monkeypatch.setattr(lexicon, "SETTLED", 1000)
    tally = lexicon.Tally(most=100)
    rng = np.random.default_rng(0)
    for _ in range(60):
        rare = rng.integers(1000, 10**9, 500)
        tally.add(np.concatenate([np.repeat(np.arange(50), 3), rare]))
    keys, counts = tally.settle()
    assert len(keys) < 2000 and set(range(50)) <= set(keys.tolist())
    assert (counts[np.searchsorted(keys, np.arange(50))] == 180).all()


def test_npmi_is_one_for_the_inseparable_and_zero_by_chance():
    assert lexicon.npmi(10, 10, 10, 1000) == pytest.approx(1)
    assert lexicon.npmi(10, 100, 100, 1000) == pytest.approx(0)
    x = math.log(20 * 1000 / (50 * 40)) / -math.log(20 / 1000)
    assert lexicon.npmi(20, 50, 40, 1000) == pytest.approx(x)


# -------------------------------------------------------------------------------------- phrases

def noise(count, seed=0):
    """Sentences in which no two words belong together."""
    rng = random.Random(seed)
    words = [a + b for a in "bdfgklmnprst" for b in ("ana", "elo", "imu", "ora")]
    return [" ".join(rng.choices(words, k=8)) for _ in range(count)]


def found_phrases(text):
    found = phrases.found_in(text, text.lexicon)
    return {" ".join(text.lexicon.lowers[w] for w in words) for words in found}


def test_words_that_stay_together_are_found_and_others_are_not():
    plain = noise(300)
    rng = random.Random(1)
    told = [f"{s} machine learning {rng.choice(plain).split()[0]}" for s in plain[:40]]
    told += [f"Machine Learning {s}" for s in plain[40:60]]
    assert found_phrases(Text(plain + told)) == {"machine learning"}


def test_phrases_grow_over_the_passes_to_four_words():
    text = Text([f"{s} big red barn door here" if i % 3 else s for i, s in enumerate(noise(200))])
    found = found_phrases(text)
    assert {"big red", "big red barn door"} <= found
    assert max(len(phrase.split()) for phrase in found) == 4


def test_stop_words_signs_and_the_rare_join_nothing():
    told = [f"{s} out of order - x . y" for s in noise(50, 1)]
    told += [f"{s} zeta omega" for s in noise(4, 2)]
    assert found_phrases(Text(noise(200) + told)) == set()


def test_listed_phrases_are_those_that_can_occur():
    text = Text(["Open the garden gate."])
    lines = [(("garden", "gate"), 1), (("Garden", "shed"), 2), (("gate",), 3)]
    found = phrases.listed(lines, text.lexicon, "--phrases x")
    assert [[text.lexicon.lowers[w] for w in p] for p in found] == [["garden", "gate"]]
    with pytest.raises(Error, match="--phrases x: none of its 1 phrases"):
        phrases.listed(lines[1:2], text.lexicon, "--phrases x")


# ---------------------------------------------------------------------------------------- names

ABOUT = ["In 1815 Vincent van Gogh met Ada Lovelace at the University of California.",
         "There Ada Lovelace saw O'Brien at the Bank of the West.",
         "Nobody saw Paris but I went to Paris.", "We like the sun.", "Sun and rain fell.",
         "Once Lima was small.", "Mark my words, you mark them.", "Some day we met Mark Twain."]


def names(text, finder=None):
    finder = finder or entities.Runs(text, text.lexicon)
    return text.spelt(*finder.find(text.block())[:2])


def test_names_are_runs_of_capitals_with_small_words_inside():
    assert names(Text(ABOUT)) == [
        "Vincent van Gogh", "Ada Lovelace", "University of California", "Ada Lovelace",
        "O ' Brien", "Bank of the West", "Paris", "Paris", "Mark Twain"]


def test_the_first_word_counts_when_it_is_a_name_elsewhere():
    text = Text(["Paris is old.", "We saw Paris.", "Green is a colour.", "It is green.",
                 "Then came Green and green and green and green."])
    assert names(text) == ["Paris", "Paris"]


def test_a_sign_before_the_first_word_does_not_make_it_a_second_one():
    assert names(Text(['"Nobody came." Nobody saw.', "( Nobody ) saw that nobody came."])) == []


def test_names_do_not_cross_sentences_and_headlines_are_none():
    text = Text(["They saw Ada", "I saw Ada", "He saw Lovelace", "Lovelace saw Ada Lovelace.", "see " + "Old " * 9 + "long"])
    assert names(text) == ["Ada", "Ada", "Lovelace", "Lovelace", "Ada Lovelace"]


def test_a_gazetteers_names_are_found_as_they_are_written():
    text = Text(ABOUT)
    lines = [(("Ada",), 1), (("Ada", "Lovelace"), 2), (("Mark",), 3), (("sun",), 4),
             (("Atlantis",), 5)]
    finder = entities.Gazetteer(lines, entities.Runs(text, text.lexicon), "--entities x")
    assert names(text, finder) == ["Ada Lovelace", "Ada Lovelace", "sun", "Mark"]
    with pytest.raises(Error, match="--entities x: none of its 1 names"):
        entities.Gazetteer(lines[-1:], entities.Runs(text, text.lexicon), "--entities x")


def test_two_finders_do_not_touch_each_other():
    text = Text(ABOUT)
    runs = entities.Runs(text, text.lexicon)
    first = entities.Gazetteer([(("van", "Gogh"), 1), (("sun",), 2)], runs, "")
    assert names(text, entities.Both(first, runs)) == [
        "van Gogh", "Ada Lovelace", "University of California", "Ada Lovelace",
        "O ' Brien", "Bank of the West", "Paris", "Paris", "sun", "Mark Twain"]


# -------------------------------------------------------------------------------- real resources

def test_published_phrases_and_names_in_a_published_text(shared, tmp_path):
    from tinybert_family.text import corpus, resources
    folder = shared / "data"
    read = corpus.read(folder / "text/wikitext2_valid.txt.xz")
    text = Text(*(d.sentences for d in read))
    lines = resources.expressions(folder / "knowledge/phrases_en.tsv.xz", "phrases")
    assert len(lines) == 58130
    found = phrases.listed(lines, text.lexicon, "")
    words = [" ".join(text.lexicon.lowers[w] for w in p) for p in found]
    assert {"united states"} <= set(words)
    lines = resources.expressions(folder / "knowledge/gazetteer.tsv.xz", "entities")
    runs = entities.Runs(text, text.lexicon)
    listed = set(names(text, entities.Gazetteer(lines, runs, "")))
    assert {"London", "Japan"} <= listed
    # Most of what the list knows of this text is also told by capitals alone.
    mine = " | ".join(set(names(text, runs)))
    assert sum(name in mine for name in listed) > 0.8 * len(listed)
