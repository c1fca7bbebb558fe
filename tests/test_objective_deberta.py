"""What models/deberta.py learns from: n-grams strewn evenly over a text without borders, guessed
through the mask decoder, which only hidden words ask."""
from collections import Counter
from types import SimpleNamespace

import masks
import numpy as np
import pytest

from tinybert_family.engine import ops
from tinybert_family.models import deberta
from tinybert_family.models.deberta import SIZES, Config, Objective
from tinybert_family.text import segments
from tinybert_family.text.bytebpe import ByteBPE
from tinybert_family.text.wordpiece import WordPiece

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] the old mill ##er by lake".split()


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("deberta"), Config.vocabulary, size=400)


@pytest.fixture
def made(language):
    return masks.objective(deberta, language)


def by_hand(ids, **changes):
    corpus = SimpleNamespace(ids=np.array(ids, np.uint16))
    c = Config(vocab=11, layers=2, heads=1, width=8, hidden=8, positions=64, seq=64, **changes)
    objective = Objective(c, corpus, WordPiece(PIECES))
    table = np.array([[0, len(ids), 0, 0, 0, 0, 0]])
    return objective, segments.lay_out(corpus, segments.framed(table, objective.tokenizer))


# ---- what is hidden

def test_a_worked_example():
    """Twelve tokens, eleven words, n-grams of one: a word of the first six, one of the others."""
    objective, s = by_hand([5, 6, 7, 8, 9, 5, 10, 9, 5, 6, 7, 10], gram=1, masked=0.15)
    assert objective.budget(s).tolist() == [2]
    found = {tuple(objective.chosen(s, copy).tolist()) for copy in range(300)}
    # tokens are words here, so a piece of miller may be hidden without the other
    assert found == {(a, b) for a in range(1, 7) for b in range(7, 13)}
    objective, s = by_hand([5, 6, 7, 8, 9, 5, 10, 9, 5, 6, 7, 10], gram=3, masked=0.15)
    for copy in range(100):
        hidden = objective.chosen(s, copy).tolist()
        assert (3 in hidden) == (4 in hidden) and 1 <= len(hidden) <= 3


def test_n_grams_are_in_proportion_to_one_over_n_and_one_word_in_six_begins_or_is_in_one(made):
    """Of the first window of each sequence, which nothing can disturb."""
    count = Counter()
    for copy in range(10):
        s = masks.laid_out(made, copy)
        size, where, _, _ = made.draws(s, copy)
        unit = made.words(s)
        made_all = masks.replace(made.config, predictions=10**6, masked=0.15)
        for first in np.flatnonzero(s.positions == 1):
            count[1 + int(np.searchsorted(np.cumsum([6, 3, 2]) / 11, size[first] / 2**32))] += 1
        hidden = made.chosen(s, copy)
        assert np.array_equal(np.flatnonzero(np.isin(unit, unit[hidden])), hidden)
    n = count.total()
    for size, share in (1, 6 / 11), (2, 3 / 11), (3, 2 / 11):
        assert masks.far_from(count[size] / n, share, n) < 4
    assert made_all.predictions == 10**6


def rates(objective, copies=12):
    """How often the tokens of a full sequence are hidden, by tenths of it."""
    found, of = np.zeros(10), np.zeros(10)
    for copy in range(copies):
        s = masks.laid_out(objective, copy)
        full = np.diff(s.cuts)[s.sequence] == objective.config.seq
        text = full & (s.places >= 0)
        tenth = (s.positions - 1) * 10 // (objective.config.seq - 2)
        hidden = np.zeros(len(s.ids), bool)
        hidden[objective.chosen(s, copy)] = True
        found += np.bincount(tenth[text & hidden], minlength=10)[:10]
        of += np.bincount(tenth[text], minlength=10)[:10]
    return found / of, of


def test_every_part_of_a_text_is_hidden_as_often_and_the_released_bias_is_a_switch(language):
    """Ten windows of six tokens in a text of sixty: a tenth is a window."""
    sixty = dict(gram=1, short=0.0)
    made = masks.objective(deberta, language, **sixty)
    made.config = masks.replace(made.config, seq=62)
    rate, of = rates(made)
    assert abs(rate - 0.15).max() < 0.01 and of.min() > 5000
    biased = masks.objective(deberta, language, tail_bias=True, **sixty)
    biased.config = made.config.__class__(**{**vars(made.config), "tail_bias": True})
    rate, _ = rates(biased)
    assert rate[:5].mean() > 0.16 and rate[-1] < 0.1


def test_eighty_ten_ten_by_the_token(made):
    kinds, mixed = Counter(), 0
    for copy in range(8):
        s = masks.laid_out(made, copy)
        noisy, hidden = made.noise(s, copy)
        assert masks.restored(s, noisy, hidden) and (s.places[hidden] >= 0).all()
        unit, seen = made.words(s)[hidden], noisy[hidden]
        masked = seen == made.tokenizer.mask
        kinds += Counter(mask=int(masked.sum()), kept=int((seen == s.ids[hidden]).sum()),
                         all=len(hidden))
        mixed += len(np.intersect1d(unit[masked], unit[~masked]))
    n, size = kinds["all"], made.config.vocab
    assert n > 10_000 and mixed > 100
    assert masks.far_from(kinds["mask"] / n, 0.8 + 0.1 / size, n) < 4
    assert masks.far_from(kinds["kept"] / n, 0.1 + 0.1 / size, n) < 4


def test_masks_are_drawn_anew_in_every_pass_and_only_then(made):
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:30])
    assert made.config.copies == 0


# ---- sequences

def test_all_text_comes_once_in_full_sequences(made):
    plan = made.plan(made.corpus.train, 0)
    lengths = plan.lengths()
    assert (lengths[:-1] == made.config.seq).all()
    places = np.concatenate([segments.lay_out(made.corpus, plan[[i]]).places[1:-1]
                             for i in range(len(plan))])
    wanted = [np.arange(*made.corpus.sentences[made.corpus.documents[d:d + 2]])
              for d in made.corpus.train]
    wanted = np.concatenate(wanted)
    assert np.array_equal(places, wanted[:len(places)]) and len(wanted) - len(places) < 64
    s = masks.laid_out(made)
    assert not s.types.any() and list(made.TASKS) == ["mlm"]


# ---- the mask decoder

def test_only_hidden_words_ask_the_decoder(made):
    s, b = masks.batch(made)
    noisy, hidden = made.noise(s, 0)
    assert np.array_equal(b["asked"], hidden) and np.array_equal(b["ids"], noisy)
    assert np.array_equal(b["mlm_labels"], s.ids[hidden])
    model, asked = masks.a_model(deberta, made), []
    layer = model.layers[-1].attention
    again = layer.again
    layer.again = lambda kv, asking, *more: asked.append(len(asking)) or again(kv, asking, *more)
    layer.forward = None                            # the ordinary pass of the last layer: never
    loss = made.loss(model, b, made.counts(b))["mlm_loss"]
    assert asked == [len(hidden)] * 2
    loss.backward()
    assert model.emd.position.grad.any() and model.layers[-1].mlp.up.weight.grad.any()


def test_the_loss_is_that_of_the_answers_that_a_user_gets(made):
    """Of the masked-word head's output of an ordinary call."""
    s, b = masks.batch(made)
    model = masks.a_model(deberta, made)
    loss = made.loss(model, b, made.counts(b))["mlm_loss"].item()
    width = int(np.diff(b["cuts"]).max())
    ids, mask = np.zeros((2, len(b["cuts"]) - 1, width), int)
    ids[s.sequence, s.positions], mask[s.sequence, s.positions] = b["ids"], 1
    y = model(ids, mask).logits.numpy()[s.sequence, s.positions][b["asked"]]
    y = y - np.log(np.exp(y).sum(1, keepdims=True))
    assert loss == pytest.approx(-y[np.arange(len(y)), b["mlm_labels"]].mean(), rel=1e-10)


def test_with_positions_in_the_words_there_is_no_decoder(language):
    made = masks.objective(deberta, language, position_biased=True)
    b = masks.batch(made)[1]
    model = masks.a_model(deberta, made)
    assert not model.decoding
    x = model.encode(made.inputs(b), b["asked"])
    (_, head, states, _), = made.answers(model, b)
    assert np.array_equal(states.numpy(), x.numpy()) and head is model.mlm
    assert isinstance(states, type(ops.take(x, index=np.arange(2))))


def test_the_recipe_is_the_published_one():
    for size in "base", "large", "xlarge":
        c = SIZES[size]
        assert c.tokens * c.accumulate // c.seq == 2048 and len(c.stages()) == 1
        assert (c.lr, c.steps, c.warmup, c.gram) == (2e-4, 10**6, 10**4, 3)
        assert not c.correct and not c.tail_bias and c.predictions == 80
    tokenizer = Config.vocabulary(["The old mill. The lake."] * 9, 300)
    assert isinstance(tokenizer, ByteBPE) and tokenizer.pad == 0 and tokenizer.cls == 1
