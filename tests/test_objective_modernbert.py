"""What models/modernbert.py learns from: three tenths of the tokens, each hidden by a coin of its own,
in batches that grow and texts that become long."""
from dataclasses import replace

import masks
import numpy as np
import objectives
import pytest

import tinybert_family as tbf
from tinybert_family.models import modernbert
from tinybert_family.models.modernbert import SIZES, Config
from tinybert_family.models.parts import growing
from tinybert_family.training import packed


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("modernbert"), Config.vocabulary, size=400)


@pytest.fixture
def made(language):
    return masks.objective(modernbert, language)


# ---- what is hidden

class Draws:
    """An objective's draws, by hand: shares of 2**32."""

    def __init__(self, *shares):
        self.shares = shares

    def __call__(self, s, copy):
        return [(np.array(share) * 2.0 ** 32).astype(np.uint32) for share in self.shares]


def test_a_worked_example(made, monkeypatch):
    """Ten tokens, each with a coin: hidden where it is below 0.3, [CLS] and [SEP] too. Of those
    0.8 become [MASK], 0.1 stay, 0.1 are any word."""
    plan = made.plan(made.corpus.train, 0)[:1]
    s = masks.segments.lay_out(made.corpus, plan)
    n, tok, vocab = len(s.ids), made.tokenizer, made.config.vocab
    coin, kind, word = np.full(n, 0.9), np.zeros(n), np.zeros(n)
    coin[[0, 2, 3, 5, n - 1]] = 0.1, 0.29, 0.05, 0.0, 0.2
    coin[4] = 0.31
    kind[[0, 2, 3, 5, n - 1]] = 0.5, 0.79, 0.81, 0.95, 0.1
    word[5] = 17.5 / vocab
    monkeypatch.setattr(made, "draws", Draws(coin, kind, word, word))
    noisy, hidden = made.noise(s, 0)
    assert hidden.tolist() == [0, 2, 3, 5, n - 1]
    expected = s.ids.copy()
    expected[[0, 2, n - 1]] = tok.mask
    expected[5] = 17
    assert np.array_equal(noisy, expected)


def test_three_tenths_are_hidden_and_of_held_out_text_half_as_many(made):
    """Each token for itself, also the special ones; 80/10/10."""
    hidden = of = special = specials = masked = kept = 0
    for copy in range(10):
        s = masks.laid_out(made, copy)
        noisy, places = made.noise(s, copy)
        assert masks.restored(s, noisy, places)
        hidden, of = hidden + len(places), of + len(s.ids)
        special, specials = special + (s.places[places] < 0).sum(), specials + (s.places < 0).sum()
        masked += (noisy[places] == made.tokenizer.mask).sum()
        kept += (noisy[places] == s.ids[places]).sum()
    assert masks.far_from(hidden / of, 0.3, of) < 4
    assert masks.far_from(special / specials, 0.3, specials) < 4
    chance = 1 / made.config.vocab
    assert masks.far_from(masked / hidden, 0.8 + 0.1 * chance, hidden) < 4
    assert masks.far_from(kept / hidden, 0.1 + 0.1 * chance, hidden) < 5
    hidden = of = 0
    for copy in range(30):
        s = masks.segments.lay_out(made.corpus, made.plan(made.corpus.held, copy))
        hidden, of = hidden + len(made.noise(s, copy)[1]), of + len(s.ids)
    assert masks.far_from(hidden / of, 0.15, of) < 4


def test_coins_fall_apart(made):
    """No budget: how many are hidden in a sequence varies as a binomial does, and neighbours do not
    care for each other."""
    counts, both, pairs = [], 0, 0
    for copy in range(20):
        s = masks.laid_out(made, copy)
        hidden = np.zeros(len(s.ids), bool)
        hidden[made.noise(s, copy)[1]] = True
        full = np.diff(s.cuts) >= 60
        counts += np.add.reduceat(hidden, s.cuts[:-1])[full].tolist()
        both, pairs = both + (hidden[1:] & hidden[:-1]).sum(), pairs + len(hidden) - 1
    assert np.var(counts) == pytest.approx(62 * 0.3 * 0.7, rel=0.15)
    assert masks.far_from(both / pairs, 0.09, pairs) < 4


def test_noise_is_a_function_of_counters(made):
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:6])


def test_something_is_hidden_even_where_all_coins_fall_high(made, monkeypatch):
    s = masks.laid_out(made, most=1)
    coin = np.full(len(s.ids), 0.5)
    coin[3] = 0.4
    monkeypatch.setattr(made, "draws", Draws(coin, coin, coin, coin))
    noisy, hidden = made.noise(s, 0)
    assert hidden.tolist() == [3] and noisy[3] == made.tokenizer.mask


# ---- packing

def test_batches_are_full_and_no_token_is_lost_or_doubled(made):
    """Every token of the text stands in exactly one sequence of exactly one micro-batch."""
    corpus = made.corpus
    plans = packed(made, corpus.train, 0, np.random.default_rng(0))
    seen = np.zeros(len(corpus.ids), int)
    sizes = []
    for plan in plans:
        s = masks.segments.lay_out(corpus, plan)
        np.add.at(seen, s.places[s.places >= 0], 1)
        sizes.append(len(s.ids))
        starts = s.cuts[:-1]
        assert (s.ids[starts] == made.tokenizer.cls).all() and (s.positions[starts] == 0).all()
        assert len(s.ids) == s.cuts[-1]                     # nothing is padded
    cuts = corpus.sentences[corpus.documents]
    train = np.zeros(len(corpus.ids), bool)
    for document in corpus.train:
        train[cuts[document]:cuts[document + 1]] = True
    assert np.array_equal(seen, train)
    assert max(sizes) <= made.config.tokens
    assert np.median(sizes) > 0.99 * made.config.tokens     # but for the last, which are leftovers


def test_a_sequence_does_not_see_its_neighbours_in_the_batch(made):
    model = masks.a_model(modernbert, made)
    plan = made.plan(made.corpus.train, 0)[:5]
    b = made.batch(plan, 0)
    states = model.encode(made.inputs(b)).numpy()
    lo, hi = b["cuts"][2:4]
    alone = {k: b[k][lo:hi] for k in ("ids", "types", "positions")}
    alone["cuts"] = np.array([0, hi - lo])
    assert abs(model.encode(made.inputs(alone)).numpy() - states[lo:hi]).max() < 1e-12


# ---- the recipe

def test_the_base_run_spends_the_papers_tokens():
    """1.719 trillion on short texts, 250 billion on long ones, 50 billion on the way down."""
    stages = SIZES["base"].stages()
    tokens = [sum(stage.accumulate(t) for t in range(stage.steps)) * stage.config.tokens
              for stage in stages]
    assert np.array(tokens) / 1e9 == pytest.approx([1719, 250, 50], rel=1e-3)
    assert [stage.config.seq for stage in stages] == [1024, 8192, 8192]
    assert [stage.config.global_theta for stage in stages] == [1e4, 1.6e5, 1.6e5]
    assert [stage.config.local_theta for stage in stages] == [1e4] * 3
    assert [stage.rate(0) for stage in stages[1:]] == pytest.approx([3e-4, 3e-4], rel=0.01)
    assert stages[-1].rate(stages[-1].steps - 1) < 1e-7
    # tokens until the rate is up, and until batches are whole
    first = stages[0]
    spent = np.cumsum([first.accumulate(t) for t in range(30_000)]) * first.config.tokens / 1e9
    up = next(t for t in range(30_000) if first.rate(t) == 8e-4)
    whole = next(t for t in range(30_000) if first.accumulate(t) == 576)
    assert spent[up] == pytest.approx(3, rel=0.01) and spent[whole] == pytest.approx(50, rel=0.01)


def test_the_large_run_is_restarted_at_a_tenth_of_the_rate():
    stages = SIZES["large"].stages()
    tokens = [sum(stage.accumulate(t) for t in range(stage.steps)) * stage.config.tokens
              for stage in stages]
    assert np.array(tokens) / 1e9 == pytest.approx([900, 800, 250, 50], rel=2e-3)
    assert [stage.rate(stage.steps // 2) for stage in stages[:3]] == [5e-4, 5e-5, 5e-5]
    assert [stage.config.seq for stage in stages] == [1024, 1024, 8192, 8192]
    spent = sum(stages[0].accumulate(t) for t in range(1454)) * 8192 / 1e9
    assert spent == pytest.approx(2, rel=0.01)


def test_every_batch_size_is_used_for_as_many_steps():
    sizes = [growing.grown(t, 96, 576, 480 * 7) for t in range(480 * 7 + 10)]
    values, counts = np.unique(sizes[:480 * 7], return_counts=True)
    assert values.tolist() == list(range(96, 576)) and set(counts) == {7}
    assert sizes[480 * 7:] == [576] * 10
    assert [growing.grown(t, 1, 3, 5) for t in range(7)] == [1, 1, 1, 2, 2, 3, 3]
    assert [growing.grown(t, 4, 4, 5) for t in range(7)] == [4] * 7


def test_the_rate_is_a_trapezoid_whose_end_is_one_minus_a_root():
    """Its integral in closed form: warm-up w / 2, level, and the end's third."""
    c = replace(SIZES["smoke"], steps=10_000, warmup=1000, growth=0.0, last_share=0.3, ending=0.2,
                lr=1.0, last_lr=1.0)
    rates = np.concatenate([[s.rate(t) for t in range(s.steps)] for s in c.stages()])
    assert len(rates) == 10_000
    assert rates.sum() == pytest.approx(500 + 7000 + 2000 / 3, rel=1e-3)
    assert rates[:1000] == pytest.approx(np.arange(1, 1001) / 1000)
    assert (rates[1000:8000] == 1).all()
    x = np.arange(2000) / 2000
    assert rates[8000:] == pytest.approx(1 - np.sqrt(x))


def test_a_run_goes_through_its_stages():
    """Angles, lengths and rates are those of the stage; weights go on."""
    trainer = objectives.prepared("modernbert", np.float64, steps=12, warmup=2, last_seq=64,
                                  last_share=0.5, ending=0.25, last_lr=1e-3, lr=2e-3, tokens=256,
                                  first_accumulate=1, accumulate=3, growth=0.25, first_theta=50.0,
                                  global_theta=500.0)
    found = []
    for done in trainer.run():
        c = trainer.learner.config
        longest = max(np.diff(b["cuts"]).max() for b in trainer.tests)
        found.append((c.seq, c.global_theta, round(done.lr, 6), done.tokens > 500, longest))
    assert [row[:2] for row in found] == [(32, 50.0)] * 6 + [(64, 500.0)] * 6
    down = [1e-3 * (1 - np.sqrt(i / 3)) for i in range(3)]
    rates = [1e-3] + [2e-3] * 5 + [1e-3] * 3 + down
    assert [row[2] for row in found] == pytest.approx(rates, abs=1e-6)
    assert [row[3] for row in found] == [False, False] + [True] * 10    # 1, 1, 2 and then 3
    assert max(row[4] for row in found[:6]) <= 32 < max(row[4] for row in found[6:])
    assert modernbert.HF_CONFIG["global_theta"] == "global_rope_theta"
    assert trainer.learner.published()[""].config.global_theta == 500.0


def test_slower_angles_are_another_model(made):
    """The change of theta is felt where sequences are long: it is no setting without effect."""
    model = masks.a_model(modernbert, made)
    b = made.batch(made.plan(made.corpus.train, 0)[:3], 0)
    before = model.encode(made.inputs(b)).numpy()
    model.config = replace(model.config, global_theta=20.0)
    assert abs(model.encode(made.inputs(b)).numpy() - before).max() > 1e-2


def test_one_stage_where_nothing_becomes_long():
    c = replace(SIZES["smoke"], last_share=0.0, ending=0.1, steps=100)
    stages = c.stages()
    assert {s.config.seq for s in stages} == {c.seq} and sum(s.steps for s in stages) == 100
    assert {s.config.global_theta for s in stages} == {c.global_theta}
    assert stages[-1].rate(9) < 0.1 * c.lr


@pytest.mark.parametrize("changes, told", [
    (dict(again_share=0.9, last_share=0.2), "again_share: 0.9, but with 0.2 of the steps after it"),
    (dict(last_share=0.1, ending=0.2), "ending: 0.2, but the last sequences have 0.1"),
    (dict(first_theta=0.0), "first_theta: 0.0, but it must be at least 1"),
    (dict(growth=1.5), "growth: 1.5, but it must be at least 0 and at most 1"),
    (dict(first_accumulate=9, accumulate=8), "first_accumulate: 9, but a whole step has 8")])
def test_bad_settings_are_told(changes, told):
    with pytest.raises(tbf.Error, match=told):
        replace(SIZES["smoke"], **changes)


def test_it_learns():
    trainer = objectives.prepared("modernbert", steps=220, warmup=15, lr=5e-3)
    first = trainer.scores()
    for _ in trainer.run():
        pass
    last, chance = trainer.scores(), trainer.chance()
    assert last["mlm_loss"] < chance["mlm_loss"] - 1 < first["mlm_loss"] - 1
    assert last["mlm_accuracy"] > chance["mlm_accuracy"] + 0.2
