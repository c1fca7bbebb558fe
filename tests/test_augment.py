"""Labelled texts and more of them: which words may be replaced and by what, that labels and
originals stay, the files that a user may bring, and the tasks that a corpus sets itself."""
from types import SimpleNamespace

import numpy as np
import pytest
from objectives import language

import tinybert_family as tbf
from tinybert_family.models import bert
from tinybert_family.text import labelled
from tinybert_family.text.augment import Augmenter, augmented
from tinybert_family.text.corpus import Corpus
from tinybert_family.text.labelled import Row, Task, shortened
from tinybert_family.text.toy import Document
from tinybert_family.text.wordpiece import WordPiece

PIECES = ("[PAD] [UNK] [CLS] [SEP] [MASK] the is queue often used shared by threads ##s thread "
          "socket 3 . instant ##iate make build").split()


@pytest.fixture
def tokenizer():
    return WordPiece(PIECES)


class Guess:
    """Always the same pieces, and a note of what was asked."""

    def __init__(self, tokenizer, *pieces):
        self.best, self.asked = [tokenizer.ids[p] for p in pieces], []

    def __call__(self, queries, count):
        self.asked += queries
        return np.tile((self.best * count)[:count], (len(queries), 1))


def text(tokenizer, words):
    return np.array([tokenizer.ids[w] for w in words.split()])


def test_a_worked_example(tokenizer):
    """Stop words, signs, numbers and what continues a word are never touched; a word of one piece
    gets the model's guesses, one of two its neighbours among the vectors."""
    ids = text(tokenizer, "the queue is shared 3 . instant ##iate thread ##s")
    guess = Guess(tokenizer, "socket", "##s", "[SEP]", "shared")
    near = {"instantiate": [("make", 0.9), ("build", 0.8)], "threads": []}
    helper = Augmenter(tokenizer, guess, lambda word, count: near[word], most=4)
    (row,) = helper.choices([ids])
    shown = [(" ".join(PIECES[i] for i in pieces),
              [" ".join(PIECES[i] for i in other) for other in others]) for pieces, others in row]
    choice = ["socket", "shared"]                       # no ##s, no [SEP]
    assert shown == [("the", []), ("queue", choice), ("is", []), ("shared", choice), ("3", []),
                     (".", []), ("instant ##iate", ["make", "build"]), ("thread ##s", [])]
    assert [place for _, _, place in guess.asked] == [1, 3]
    for hidden, whole, place in guess.asked:            # one word hidden, the others as they are
        assert hidden[place] == tokenizer.mask and np.array_equal(whole, ids)
        assert np.array_equal(np.delete(hidden, place), np.delete(ids, place))


def test_without_vectors_words_of_several_pieces_stay(tokenizer):
    helper = Augmenter(tokenizer, Guess(tokenizer, "socket"))
    ((_, others),) = helper.choices([text(tokenizer, "instant ##iate")])[0]
    assert others == []


def test_copies_begin_with_the_original_and_are_all_different(tokenizer):
    ids = text(tokenizer, "the queue is shared by thread ##s")
    helper = Augmenter(tokenizer, Guess(tokenizer, "socket", "build"), most=2)
    made = helper.copies([ids], 300, (0, 1))
    texts = [tuple(one.tolist()) for (one,) in made]
    assert len(texts) == len(set(texts)) == 8 and tuple(ids.tolist()) not in texts
    for one in texts:                                   # two words, three possibilities each
        for at, before, now in zip(range(7), ids, one):
            assert now == before or at in (1, 3) and PIECES[now] in ("socket", "build")
    again = helper.copies([ids], 300, (0, 1))
    assert all(np.array_equal(a, b) for (a,), (b,) in zip(made, again))
    assert len(helper.copies([ids], 3, (0, 2))) <= 3


def test_four_words_in_ten_are_replaced(tokenizer):
    ids = text(tokenizer, " ".join(["queue"] * 50))
    helper = Augmenter(tokenizer, Guess(tokenizer, "socket"), most=1)
    made = helper.copies([ids], 200, (0, 3))
    share = np.mean([(one != ids).mean() for (one,) in made])
    assert share == pytest.approx(0.4, abs=0.02)


def test_each_copy_of_a_pair_is_made_of_the_original(tokenizer):
    """The released code changes the second text of a row that keeps its last first text."""
    a, b = text(tokenizer, "queue . queue"), text(tokenizer, "the thread is shared")
    helper = Augmenter(tokenizer, Guess(tokenizer, "socket"), most=1)
    rows = [Row(a, b, 1, 7)]
    found = augmented(rows, helper, 300, (0,), 64, shortened)
    pairs = {(tuple(r.a.tolist()), tuple(r.b.tolist())) for r in found}
    assert found[0] is rows[0] and len(pairs) == len(found)
    assert all(r.label == 1 and r.document == 7 for r in found)
    # Both words of A and both of B change or do not, in every combination.
    assert len(pairs) == 2 ** 2 * 2 ** 2


def test_copies_are_no_longer_than_a_sequence(tokenizer):
    near = {"instantiate": [("make", 1.0), ("instantiate instantiate", 0.5)]}
    helper = Augmenter(tokenizer, Guess(tokenizer, "socket"), lambda w, n: near[w])
    ids = text(tokenizer, "instant ##iate " * 3 + "queue")
    found = augmented([Row(ids, ids[:0], 0, 0)], helper, 40, (0,), 9, shortened)
    assert len(found) > 5 and all(len(r.a) <= 7 for r in found)


# ---- files

@pytest.fixture
def sides():
    return SimpleNamespace(train=np.arange(18), held=np.array([18, 19]))


def written(folder, *lines):
    path = folder / "task.tsv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def test_a_file_of_labels_and_texts(tmp_path, tokenizer, sides):
    lines = [f"{'yes' if i % 3 else 'no'}\tthe queue is used" + " ." * (i % 4) for i in range(40)]
    task = labelled.read(written(tmp_path, *lines), tokenizer, sides, 2, 32)
    assert task.labels == ["no", "yes"] and len(task.rows) == 40
    assert [r.label for r in task.rows] == [int(i % 3 > 0) for i in range(40)]
    assert tokenizer.decode(task.rows[0].a) == "the queue is used"
    held = task.of(sides.held)
    assert len(held) == 4 and held[0] is task.rows[9]           # every tenth
    assert "40 examples, 2 labels; always the commonest: 65.0%" in task.about


def test_pairs_and_a_first_line_that_names_the_columns(tmp_path, tokenizer, sides):
    path = written(tmp_path, "question\tsentence\tlabel", "the queue\tis used .\tentails",
                   "the thread\tby threads\tnot")
    task = labelled.read(path, tokenizer, sides, 2, 8)
    assert task.labels == ["entails", "not"]
    assert [tokenizer.decode(r.b) for r in task.rows] == ["is used.", "by threads"]
    plan = task.plan(np.arange(20), tokenizer)
    assert plan.lengths().tolist() == [8, 7] and plan.labels.tolist() == [0, 1]
    assert plan.pieces[plan.pieces[:, 2] == 1].tolist()[1] == [-1 - 3, -3, 1]   # [SEP], type 1


def test_the_longer_text_loses_its_end_first():
    a, b = shortened(np.arange(10), np.arange(3), 11)
    assert len(a) == 5 and len(b) == 3 and a[-1] == 4
    a, b = shortened(np.arange(10), np.arange(0), 8)
    assert len(a) == 6 and len(b) == 0


@pytest.mark.parametrize("lines, match", [
    (["a\tx", "b\ty", "c\tz"], r"3 different labels \(a, b, c\).*use --labels 3"),
    (["a\tx", "b"], "line 2: 1 columns; write a label, a tab"),
    (["a\tx", "b\tx\ty\tz"], "line 2: 4 columns"),
    (["a\tx", "b\t "], "line 2: 2 columns"),
    ([""], "nothing but blank lines"),
])
def test_bad_files(tmp_path, tokenizer, sides, lines, match):
    with pytest.raises(tbf.Error, match=match):
        labelled.read(written(tmp_path, *lines), tokenizer, sides, 2, 32)


def test_a_file_that_is_not_there_or_no_text(tmp_path, tokenizer, sides):
    with pytest.raises(tbf.Error, match="nothing.tsv"):
        labelled.read(str(tmp_path / "nothing.tsv"), tokenizer, sides, 2, 32)
    (tmp_path / "zero.tsv").write_bytes(b"a\tb\0c\n")
    with pytest.raises(tbf.Error, match="binary"):
        labelled.read(str(tmp_path / "zero.tsv"), tokenizer, sides, 2, 32)


# ---- tasks that a corpus sets

@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Documents of four packages, whose texts mention their own name."""
    rng, documents = np.random.default_rng(0), []
    words = dict(email="letter sender header", tkinter="window button colour",
                 json="number string list", rare="one two three")
    for package, own in words.items():
        for i in range(3 if package == "rare" else 40):
            sentences = [" ".join([*rng.choice(own.split(), 6), "in", package]) + "."
                         for _ in range(6)]
            documents.append(Document(f"{package}.part{i}", sentences))
    texts = [" ".join(d.sentences) for d in documents]
    tokenizer = WordPiece.train(texts, 300)
    folder = tmp_path_factory.mktemp("modules") / "corpus"
    return Corpus.build(documents, tokenizer, folder, processes=1), tokenizer


def test_packages_are_balanced_and_held_out_by_document(modules):
    corpus, tokenizer = modules
    task = labelled.of_corpus(corpus, tokenizer, 3, 32)
    assert task.labels == ["email", "json", "tkinter"] and "always the same: 33.3%" in task.about
    for side in corpus.train, corpus.held:
        counts = np.bincount([r.label for r in task.of(side)])
        assert len(set(counts.tolist())) == 1 and counts[0] > 3
    assert not {r.document for r in task.of(corpus.train)} & set(corpus.held.tolist())
    for row in task.rows:                               # the true answer, and no word of it
        name = corpus.names[row.document]
        assert name.startswith(task.labels[row.label] + ".")
        assert task.labels[row.label] not in tokenizer.decode(row.a)
        assert 10 <= len(row.a) <= 30


def test_where_there_are_no_packages_passages_are_compared():
    corpus, tokenizer, _ = language(bert.Config.vocabulary)
    task = labelled.of_corpus(corpus, tokenizer, 4, 32)
    assert task.labels == ["one document", "two"]
    for side in corpus.train, corpus.held:
        counts = np.bincount([r.label for r in task.of(side)])
        assert abs(counts[0] - counts[1]) < 0.15 * counts.sum()
    where = {}
    for ids, document in labelled.passages(corpus, tokenizer, 16):
        where.setdefault(ids.tobytes(), set()).add(document)
    for row in task.rows[:200]:
        same = where[row.a.tobytes()] & where[row.b.tobytes()]
        assert bool(same) >= (row.label == 0)
        if len(where[row.a.tobytes()] | where[row.b.tobytes()]) > 1 and not same:
            assert row.label == 1


def test_a_corpus_that_sets_no_task(tmp_path):
    documents = [Document("one", ["a b c d e f g h i j k l m n.", "o p q."])]
    tokenizer = WordPiece.train(["a b c d e f g h i j k l m n o p q ."], 60)
    corpus = Corpus.build(documents, tokenizer, tmp_path / "corpus", processes=1)
    with pytest.raises(tbf.Error, match="sets no task.*--task FILE"):
        labelled.of_corpus(corpus, tokenizer, 2, 32)


def test_a_task_lays_out_its_own_texts(tokenizer):
    from tinybert_family.text import segments
    rows = [Row(np.array([5, 6]), np.array([], int), 0, 0), Row(np.array([7]), np.array([8]), 1, 3)]
    task = Task(rows, ["a", "b"], "")
    s = segments.lay_out(task, task.plan(np.array([0, 3]), tokenizer))
    assert s.ids.tolist() == [2, 7, 3, 8, 3, 2, 5, 6, 3] and s.labels.tolist() == [1, 0]
    assert s.types.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert len(task.plan(np.array([3]), tokenizer)) == 1
