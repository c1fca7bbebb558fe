"""What models/electra.py learns from: guesses that a generator draws, and a discriminator that finds
them; and parts/replaced.py, which DeBERTa v3 has it from."""
from dataclasses import replace
from types import SimpleNamespace

import masks
import numpy as np
import objectives
import pytest
from objectives import chi_square

import tinybert_family as tbf
from tinybert_family.engine.autograd import Tensor
from tinybert_family.engine.nn import Module
from tinybert_family.engine.optim import clip
from tinybert_family.models import electra
from tinybert_family.models.electra import SIZES, Config, Objective
from tinybert_family.models.parts import replaced


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("electra"), Config.vocabulary, size=300)


@pytest.fixture
def made(language):
    return masks.objective(electra, language)


@pytest.fixture(scope="module")
def trainer():
    return objectives.prepared("electra", np.float64, generator_size=0.5)


def losses_of(trainer, b):
    objective = trainer.objective
    return objective.loss(trainer.learner, b, objective.counts(b))


# ---- what the generator says

def test_a_worked_example(monkeypatch):
    """the chef cooked the meal -> the chef [MASK] the [MASK] -> the chef ate the meal"""
    the, chef, cooked, meal, ate, mask = range(10, 16)
    b = dict(ids=np.array([the, chef, mask, the, mask]), asked=np.array([2, 4]),
             mlm_labels=np.array([cooked, meal]), luck=None)
    monkeypatch.setattr(replaced, "guesses", lambda head, x, luck: np.array([ate, meal]))
    objective = SimpleNamespace()
    ids, wrong = Objective.filled(objective, SimpleNamespace(mlm=None), None, b)
    assert ids.tolist() == [the, chef, ate, the, meal]
    assert wrong.tolist() == [False, False, True, False, False]     # meal is no replacement
    assert b["ids"].tolist() == [the, chef, mask, the, mask]        # the generator's own text


@pytest.mark.parametrize("words", [1, 7, 64, 65, 200])
def test_words_are_drawn_as_often_as_the_softmax_has_it(words):
    """A chi-square test over 200,000 draws of the engine's own generator."""
    scores = np.random.default_rng(words).standard_normal(words).astype(np.float32) * 1.5
    n = 200_000
    counter = np.arange(n, dtype=np.uint64), 0, 0, 0
    luck = replaced.bert.objective.philox.philox(np, counter, (words, 1))[0].astype(np.uint32)
    found = np.concatenate([replaced.drawn(np.tile(scores, (len(part), 1)), part)
                            for part in np.split(luck, 20)])
    p = np.exp(scores.astype(np.float64))
    p /= p.sum()
    seen = np.bincount(found, minlength=words)
    if words > 1:
        assert chi_square(seen, p * n) < 3.1
        # and the test would tell: of the largest word always, or of other odds
        assert chi_square(seen, np.roll(p, 1) * n) > 6
    assert seen.sum() == n


def test_a_draw_is_a_place_on_the_line_of_probabilities():
    """Looked up in two steps, it is what one search in the running sum gives."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((50, 150)) * 3
    luck = rng.integers(0, 2 ** 32, 50, dtype=np.uint32)
    luck[:2] = 0, 2 ** 32 - 1
    ends = np.cumsum(np.exp(scores), 1)
    expected = [np.searchsorted(end, u / 2 ** 32 * end[-1], side="right")
                for end, u in zip(ends, luck)]
    assert replaced.drawn(scores, luck).tolist() == expected
    assert expected[0] == 0 and expected[1] == 149


def test_what_is_impossible_is_never_drawn():
    scores = np.full((1000, 130), -np.inf)
    scores[:, [5, 70, 129]] = 0
    luck = np.linspace(0, 2 ** 32 - 1, 1000).astype(np.uint32)
    assert np.unique(replaced.drawn(scores, luck)).tolist() == [5, 70, 129]
    scores[:, 70:] = -np.inf
    assert np.unique(replaced.drawn(scores, luck)).tolist() == [5]


class Sure(Module):
    """A head whose scores are its states, as the truth would have them."""

    def __init__(self, words):
        self.bias = Tensor(np.zeros(words))
        self.most = 0

    def __call__(self, x):
        self.most = max(self.most, len(x))
        return x


def test_of_a_generator_that_is_always_right_nothing_is_replaced(made):
    _, b = masks.batch(made)
    head = Sure(made.config.vocab)
    truth = Tensor(np.eye(made.config.vocab)[b["mlm_labels"]] * 1e3)
    ids, wrong = made.filled(SimpleNamespace(mlm=head), truth, b)
    assert not wrong.any()
    assert np.array_equal(ids[b["asked"]], b["mlm_labels"])


def test_scores_for_the_vocabulary_exist_for_few_words_at_a_time(made, monkeypatch):
    """And the guesses do not depend on it."""
    _, b = masks.batch(made)
    head = Sure(made.config.vocab)
    scores = np.random.default_rng(0).standard_normal((len(b["asked"]), made.config.vocab))
    whole = replaced.guesses(head, Tensor(scores), b["luck"])
    assert head.most == len(b["asked"]) > 50
    monkeypatch.setattr(replaced, "BLOCK", 10 * made.config.vocab)
    head = Sure(made.config.vocab)
    assert np.array_equal(replaced.guesses(head, Tensor(scores), b["luck"]), whole)
    assert head.most == 10


def test_nothing_is_guessed_where_nothing_is_hidden():
    assert replaced.guesses(Sure(9), Tensor(np.zeros((0, 9))), np.zeros(0, np.uint32)).shape == (0,)


def test_guesses_are_functions_of_counters(made):
    """Equal for the same seed, copy and sequence, whoever else is in the batch; and the draws that
    choose a word are not those that hid it."""
    plan = made.plan(made.corpus.train, 0)[:6]
    assert masks.is_random_function_of(made, plan)
    b, again, other = (made.batch(plan, copy) for copy in (0, 0, 1))
    assert np.array_equal(b["luck"], again["luck"])
    assert not np.array_equal(b["luck"][:20], other["luck"][:20])
    s = masks.laid_out(made)
    luck, order = made.draws(s, 0, made.LUCK)[0], made.draws(s, 0)
    n = len(luck)
    for draws in order:
        assert abs(np.corrcoef(luck, draws)[0, 1]) < 4 / np.sqrt(n)
    spread = np.histogram(luck / 2 ** 32, 10, (0, 1))[0]
    assert chi_square(spread, np.full(10, len(luck) / 10)) < 3.1


# ---- what is hidden from it

def test_eighty_five_percent_are_hidden_and_the_others_seen(made):
    hidden, of, masked = 0, 0, 0
    for copy in range(6):
        s = masks.laid_out(made, copy)
        noisy, places = made.noise(s, copy)
        assert masks.restored(s, noisy, places) and (s.places[places] >= 0).all()
        seen = noisy[places]
        veiled = seen == made.tokenizer.mask
        assert np.array_equal(seen[~veiled], s.ids[places][~veiled])    # never another word
        masked, hidden, of = masked + veiled.sum(), hidden + len(places), of + len(s.ids)
    assert masks.far_from(masked / hidden, 0.85, hidden) < 4
    assert hidden / of == pytest.approx(0.15, abs=0.01)
    # the paper: all of them
    paper = masks.objective(electra, (made.corpus, made.tokenizer), veiled=1.0)
    s = masks.laid_out(paper)
    noisy, places = paper.noise(s, 0)
    assert (noisy[places] == made.tokenizer.mask).all() and len(places)


def test_the_budget_is_the_papers():
    """19 of 128 tokens, 79 of 512, and a quarter of them for the large model."""
    for name, seq, most in ("small", 128, 19), ("base", 512, 79), ("large", 512, 130):
        c = SIZES[name]
        assert (c.seq, c.predictions) == (seq, most) == (seq, int((c.masked + 0.005) * seq))


def test_the_discriminator_reads_a_mask_only_where_one_was_guessed(trainer):
    objective, pair = trainer.objective, trainer.learner
    mask = trainer.objective.tokenizer.mask
    for b in objectives.first_batches(trainer, 4):
        x = objective.states(pair.generator, b)
        ids, wrong = objective.filled(pair.generator, x, b)
        text = b["ids"].copy()
        text[b["asked"]] = b["mlm_labels"]
        assert np.array_equal(ids != text, wrong)
        assert (b["ids"] == mask).any() and set(np.flatnonzero(ids == mask)) <= set(b["asked"])
        assert set(np.flatnonzero(wrong)) <= set(b["asked"])
        drawn = replaced.guesses(pair.generator.mlm, x, b["luck"])
        assert np.array_equal(ids[b["asked"]], drawn)


def test_the_best_guess_is_not_always_drawn(trainer):
    """At random, or the discriminator would see the same few words everywhere."""
    b, = objectives.first_batches(trainer)
    x = trainer.objective.states(trainer.learner.generator, b)
    best = trainer.learner.generator.mlm(x).numpy().argmax(1)
    drawn = replaced.guesses(trainer.learner.generator.mlm, x, b["luck"])
    assert (best != drawn).mean() > 0.5


# ---- the losses

def test_the_discriminators_loss_is_a_mean_over_all_tokens(trainer):
    """Written out: also over [CLS], [SEP] and what was never hidden."""
    b, = objectives.first_batches(trainer)
    objective, pair = trainer.objective, trainer.learner
    x = objective.states(pair.generator, b)
    ids, wrong = objective.filled(pair.generator, x, b)
    inputs = objective.inputs(dict(b, ids=ids))
    z = pair.discriminator.rtd(pair.discriminator.encode(inputs)).numpy()
    assert len(z) == len(b["ids"]) > len(b["asked"])
    p = 1 / (1 + np.exp(-z))
    expected = -np.where(wrong, np.log(p), np.log(1 - p)).mean()
    found = losses_of(trainer, b)
    assert found["rtd_loss"].item() == pytest.approx(expected, rel=1e-12)
    logits = pair.generator.mlm(x).numpy()
    right = logits[np.arange(len(logits)), b["mlm_labels"]]
    expected = (np.log(np.exp(logits).sum(1)) - right).mean()
    assert found["mlm_loss"].item() == pytest.approx(expected, rel=1e-12)
    total = objective.total(found).item()
    assert total == pytest.approx(found["mlm_loss"].item() + 50 * found["rtd_loss"].item())
    assert objective.counts(b).tolist() == [len(b["asked"]), len(b["ids"])]


def reached(trainer, loss):
    """The parameters that a loss moves."""
    pair = trainer.learner
    for tensor in pair.named().values():
        tensor.node.grad[...] = 0
    loss.backward()
    return {name for name, t in pair.named().items() if np.any(t.grad)}


def test_nothing_flows_back_through_what_was_drawn(trainer):
    """The discriminator's loss moves no weight that is the generator's alone, the generator's none
    of the discriminator's; both move the tables they share."""
    b, = objectives.first_batches(trainer)
    shared = {f"discriminator.embeddings.{name}" for name in
              ("word", "position", "type", "norm.weight", "norm.bias")}
    by_rtd = reached(trainer, losses_of(trainer, b)["rtd_loss"])
    by_mlm = reached(trainer, losses_of(trainer, b)["mlm_loss"])
    assert not [name for name in by_rtd if name.startswith("generator")]
    assert {name for name in by_mlm if name.startswith("discriminator")} == shared
    assert shared <= by_rtd and any(name.startswith("discriminator.rtd") for name in by_rtd)


def test_the_papers_controls():
    """ELECTRA 15 %: judge only what was hidden. Replace MLM: guess it, from the generator's text."""
    few = objectives.prepared("electra", np.float64, goal="hidden")
    b, = objectives.first_batches(few)
    assert few.objective.counts(b).tolist() == [len(b["asked"])] * 2
    few.objective.config = replace(few.objective.config, goal="all")
    x = few.objective.states(few.learner.generator, b)
    ids, wrong = few.objective.filled(few.learner.generator, x, b)
    every = few.learner.discriminator.encode(few.objective.inputs(dict(b, ids=ids)))
    z = few.learner.discriminator.rtd(every).numpy()[b["asked"]]
    expected = np.log1p(np.exp(np.where(wrong[b["asked"]], -z, z))).mean()
    few.objective.config = replace(few.objective.config, goal="hidden")
    assert losses_of(few, b)["rtd_loss"].item() == pytest.approx(expected, rel=1e-12)

    words = objectives.prepared("electra", np.float64, goal="words")
    pair = words.learner
    assert pair.discriminator.rtd is None and pair.discriminator.mlm is not None
    b, = objectives.first_batches(words)
    x = words.objective.states(pair.generator, b)
    ids, _ = words.objective.filled(pair.generator, x, b)
    inputs = words.objective.inputs(dict(b, ids=ids))
    logits = pair.discriminator.mlm(pair.discriminator.encode(inputs, b["asked"])).numpy()
    right = logits[np.arange(len(logits)), b["mlm_labels"]]
    expected = (np.log(np.exp(logits).sum(1)) - right).mean()
    losses = losses_of(words, b)
    assert losses["restored_loss"].item() == pytest.approx(expected, rel=1e-12)
    assert words.objective.total(losses).item() == pytest.approx(
        losses["mlm_loss"].item() + losses["restored_loss"].item())
    chance = words.chance()
    assert chance["restored_loss"] == chance["mlm_loss"] > 3
    assert set(words.scores()) == {"eval_loss", "mlm_loss", "mlm_accuracy", "restored_loss",
                                   "restored_accuracy"}


# ---- how well it does

def test_recalls_by_hand():
    """Probabilities 0.9 0.4 0.1 0.1 0.1, 0.32 on average: the first two are called replaced."""
    p = np.array([0.9, 0.4, 0.1, 0.1, 0.1])
    found = replaced.recalls(np.log(p / (1 - p)), np.array([True, False, True, False, False]))
    assert found["rtd_recall_replaced"] == (1, 2)
    assert found["rtd_recall_original"] == (2, 3)
    assert found["rtd_balanced_accuracy"] == (pytest.approx((1 / 2 + 2 / 3) / 2), 1)
    none = replaced.recalls(np.zeros(4), np.zeros(4, bool))
    assert list(none) == ["rtd_recall_original"]


def test_to_call_everything_original_is_worth_nothing():
    rng = np.random.default_rng(0)
    labels = rng.random(20_000) < 0.15
    same = replaced.recalls(np.full(20_000, -2.0), labels)
    guessed = replaced.recalls(rng.standard_normal(20_000), labels)
    assert same["rtd_balanced_accuracy"][0] == 0.5
    assert guessed["rtd_balanced_accuracy"][0] == pytest.approx(0.5, abs=0.02)


def test_chance_by_hand(made):
    """Two tokens of ten hidden; the generator would hit them with 1/2 and 1/4."""
    b = dict(ids=np.arange(10), asked=np.array([1, 5]), mlm_labels=np.array([0, 1]))
    frequency = np.array([2.0, 1.0, 1.0])
    found = made.chance([b], frequency)
    q = (1 / 2 + 3 / 4) / 10
    assert found["rtd_accuracy"] == pytest.approx(1 - q)
    assert found["rtd_loss"] == pytest.approx(-q * np.log(q) - (1 - q) * np.log(1 - q))
    assert found["mlm_loss"] == pytest.approx(np.log([2, 4]).mean())
    assert found["rtd_balanced_accuracy"] == 0.5


def test_scores_agree_with_the_loss(trainer):
    found = trainer.objective.scores(trainer.learner, trainer.tests[0])
    b = trainer.tests[0]
    losses = losses_of(trainer, b)
    for task in "mlm", "rtd":
        total, n = found[f"{task}_loss"]
        assert total / n == pytest.approx(losses[f"{task}_loss"].item(), rel=1e-9)
    asked = sum(found[f"rtd_recall_{kind}"][1] for kind in ("replaced", "original"))
    tok = trainer.objective.tokenizer       # [CLS] and [SEP] are never replaced: no merit to say so
    assert asked == len(b["ids"]) - np.isin(b["ids"], [tok.cls, tok.sep]).sum()


def test_one_batch_is_learnt_by_heart():
    """With the generator frozen its guesses stay, and the discriminator tells every one of them."""
    trainer = objectives.prepared("electra", generator_size=0.5)
    b, = objectives.first_batches(trainer)
    frozen = [0 if name.startswith("generator") else 1 for name in trainer.arena.names]
    before = trainer.objective.scores(trainer.learner, b)
    for step in range(90):
        trainer.workers.gradients([b], 0, step)
        clip(trainer.arena.grad, 1.0)
        trainer.optimizer.step(4e-3 * min(1, (step + 1) / 20), frozen)
    after = trainer.objective.scores(trainer.learner, b)
    hits, n = after["rtd_accuracy"]
    assert n == len(b["ids"]) and hits / n > 0.98 > before["rtd_accuracy"][0] / n
    assert after["rtd_balanced_accuracy"][0] > 0.95


def test_it_learns():
    """Held-out text, 100 steps: both networks are better than they were, and the discriminator than
    a coin."""
    trainer = objectives.prepared("electra", steps=100, warmup=15, lr=1e-3)
    first = trainer.scores()
    for _ in trainer.run():
        pass
    last, chance = trainer.scores(), trainer.chance()
    assert last["rtd_balanced_accuracy"] > 0.57
    assert last["rtd_loss"] < chance["rtd_loss"] - 0.02
    assert last["mlm_loss"] < first["mlm_loss"] - 0.5


# ---- what is kept

def test_both_are_published(trainer, tmp_path):
    parts = trainer.learner.published()
    assert set(parts) == {"", "generator"}
    assert parts["generator"].config == electra.generator_of(trainer.learner.config)
    for part, model in parts.items():
        tbf.save(model, tmp_path / part)
    ids = np.random.default_rng(0).integers(5, 100, (2, 9))
    again, generator = tbf.load(tmp_path, np.float64), tbf.load(tmp_path / "generator", np.float64)
    pair = trainer.learner
    assert np.array_equal(again(ids).logits.numpy(), pair.discriminator(ids).logits.numpy())
    assert np.array_equal(generator(ids).logits.numpy(), pair.generator(ids).logits.numpy())
    assert trainer.objective.filler(pair) is pair.generator


@pytest.mark.parametrize("changes, told", [
    (dict(goal="some"), "goal: 'some', but these are known: all, hidden, words"),
    (dict(veiled=1.5), "veiled: 1.5, but it must be at least 0 and at most 1"),
    (dict(rtd_weight=-1), "rtd_weight: -1, but it must be at least 0")])
def test_bad_settings_are_told(changes, told):
    with pytest.raises(tbf.Error, match=told):
        replace(SIZES["smoke"], **changes)
