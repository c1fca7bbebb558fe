"""What models/deberta_v2.py learns from: v3 as ELECTRA does, but with a table of words that two
networks share without pulling at each other; v2 as v1."""
from dataclasses import replace

import masks
import numpy as np
import objectives
import pytest

import tinybert_family as tbf
from tinybert_family import checkpoint
from tinybert_family.engine.nn import Init
from tinybert_family.models import deberta, deberta_v2
from tinybert_family.models.deberta_v2 import SIZES, Config, Learner, generator_of
from tinybert_family.models.parts import padded

OWN, THEIRS = "discriminator.embeddings.word", "generator.embeddings.word"


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return masks.language(tmp_path_factory.mktemp("deberta"), Config.vocabulary, size=300)


@pytest.fixture
def made(language):
    return masks.objective(deberta_v2, language)


@pytest.fixture(scope="module")
def gdes():
    return objectives.prepared("deberta_v2", np.float64)


def grads(trainer, task):
    """{name: gradient} of one task's loss."""
    named = trainer.learner.named()
    for tensor in named.values():
        tensor.node.grad[...] = 0
    b, = objectives.first_batches(trainer)
    losses = trainer.objective.loss(trainer.learner, b, trainer.objective.counts(b))
    losses[f"{task}_loss"].backward()
    return {name: t.grad.copy() for name, t in named.items()}


def moved(trainer, task):
    return {name for name, g in grads(trainer, task).items() if g.any()}


# ---- what is hidden

def test_all_words_to_guess_are_hidden(made):
    """100 % [MASK], one in six tokens or fewer, each for itself."""
    hidden = of = 0
    for copy in range(4):
        s = masks.laid_out(made, copy)
        noisy, places = made.noise(s, copy)
        assert masks.restored(s, noisy, places)
        assert (noisy[places] == made.tokenizer.mask).all() and (s.places[places] >= 0).all()
        hidden, of = hidden + len(places), of + len(s.ids)
    assert hidden / of == pytest.approx(0.15, abs=0.01)
    assert masks.is_random_function_of(made, made.plan(made.corpus.train, 0)[:6])


def test_no_two_hidden_tokens_share_a_window_of_six(made):
    """n-grams of one: so hidden words are strewn evenly, and each window has one at most."""
    s = masks.laid_out(made)
    _, places = made.noise(s, 0)
    window = (s.positions[places] - 1) // 6
    assert len(set(zip(s.sequence[places], window))) == len(places)


def test_the_vocabulary_keeps_capitals_and_its_names(language):
    _, tokenizer = language
    assert tokenizer.vocab[:5] == list(deberta_v2.SPECIAL)
    assert (tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (0, 2, 3, 4)
    text = tokenizer.decode(tokenizer(["Ada and ada"])["input_ids"][0])
    assert "Ada" in text and "ada" in text


# ---- two networks, one table

def test_rtd_does_not_move_the_generators_table_nor_mlm_the_difference(gdes):
    """GDES: d RTD / d E_G == 0 and d MLM / d E_delta == 0, exactly."""
    by_rtd, by_mlm = moved(gdes, "rtd"), moved(gdes, "mlm")
    assert OWN in by_rtd and THEIRS in by_mlm
    assert not [name for name in by_rtd if name.startswith("generator")]
    assert not [name for name in by_mlm if name.startswith("discriminator")]


def test_with_one_table_both_pull_at_it():
    es = objectives.prepared("deberta_v2", np.float64, sharing="es")
    pair = es.learner
    assert pair.discriminator.embeddings.word is pair.generator.embeddings.word
    assert OWN in moved(es, "rtd") & moved(es, "mlm") and THEIRS not in pair.named()
    # and the sum is not what either wants
    rtd, mlm = grads(es, "rtd")[OWN], grads(es, "mlm")[OWN]
    assert abs(rtd).max() > 0 and abs(mlm).max() > 0


def test_with_two_tables_they_share_nothing():
    nes = objectives.prepared("deberta_v2", np.float64, sharing="nes")
    d, g = nes.learner.discriminator, nes.learner.generator
    assert not {id(t) for t in d.named().values()} & {id(t) for t in g.named().values()}
    assert OWN in moved(nes, "rtd") and OWN not in moved(nes, "mlm")
    assert THEIRS in moved(nes, "mlm") and THEIRS not in moved(nes, "rtd")
    assert abs(d.embeddings.word.data).max() > 0


def states(model, b):
    return model.encode(padded.Packed(b["ids"], b["types"], b["positions"], b["cuts"])).numpy()


def test_after_some_steps_the_discriminator_is_their_sum():
    """E_D == E_G + E_delta, in what it computes and in what is published; both have moved."""
    trainer = objectives.prepared("deberta_v2", np.float64, steps=6, warmup=1)
    pair = trainer.learner
    before = {name: t.data.copy() for name, t in pair.named().items()}
    assert not before[OWN].any()
    for _ in trainer.run():
        pass
    named = pair.named()
    assert abs(named[OWN].data).max() > 1e-3
    assert abs(named[THEIRS].data - before[THEIRS]).max() > 1e-3
    alone = pair.published()[""]
    expected = named[OWN].data + named[THEIRS].data
    assert np.array_equal(alone.embeddings.word.data, expected)
    b = trainer.tests[0]
    assert abs(states(alone, b) - states(pair.discriminator, b)).max() < 1e-12
    # what was published is a copy: the training goes on as it was
    assert pair.discriminator.embeddings.given[0] is pair.generator.embeddings.word
    assert set(alone.named()) == {name.removeprefix("discriminator.") for name in named
                                  if name.startswith("discriminator")}


def test_workers_read_the_table_as_it_is_now():
    """A replica's E_G is that of the arena, before and after a step."""
    trainer = objectives.prepared("deberta_v2", np.float64, workers=2, accumulate=2, steps=3)
    for _ in trainer.run():
        pass
    for model in trainer.workers.models:
        given, = model.discriminator.embeddings.given
        assert np.shares_memory(given.data, trainer.arena.data)
        assert np.array_equal(given.data, trainer.learner.generator.embeddings.word.data)


def test_a_run_that_begins_from_another_ones_folder_begins_where_that_ended(tmp_path):
    """E_delta is no part of a folder: it is the discriminator's table less the generator's."""
    ended = objectives.prepared("deberta_v2", np.float64, steps=6, warmup=1)
    for _ in ended.run():
        pass
    for part, model in ended.learner.published().items():
        tbf.save(model, tmp_path / part)
    pair = objectives.prepared("deberta_v2", np.float64, steps=6, seed=1).learner
    assert checkpoint.begin_from(pair, tmp_path) == []
    wanted = ended.learner.named()
    for name, tensor in pair.named().items():
        assert abs(tensor.data - wanted[name].data).max() < 1e-6, name     # a file has float32
    assert abs(wanted[OWN].data).max() > 1e-3
    alone = objectives.prepared("deberta_v2", np.float64, steps=6, seed=1).learner
    files = [path for path in (tmp_path / "generator").iterdir()]
    for path in files:
        path.unlink()
    (tmp_path / "generator").rmdir()
    assert checkpoint.begin_from(alone, tmp_path) == ["the generator"]
    made = alone.published()[""].embeddings.word.data
    assert abs(made - ended.learner.published()[""].embeddings.word.data).max() < 1e-6


def test_both_are_published_and_read_again(tmp_path):
    trainer = objectives.prepared("deberta_v2", np.float64, steps=3, warmup=1)
    for _ in trainer.run():
        pass
    for part, model in trainer.learner.published().items():
        tbf.save(model, tmp_path / part)
    ids = np.random.default_rng(0).integers(5, 100, (2, 9))
    found = tbf.load(tmp_path, np.float64, head="rtd")
    b = found.pack(ids, None, None)
    theirs, = trainer.learner.discriminator.embeddings.given
    assert np.array_equal(found.embeddings.word.data,
                          theirs.data + trainer.learner.discriminator.embeddings.word.data)
    x = trainer.learner.discriminator.encode(b)
    head = trainer.learner.discriminator.rtd
    expected = head(head.select(x, b)).numpy()
    again = found.rtd(found.rtd.select(found.encode(b), b)).numpy()
    assert abs(expected - again).max() < 1e-12
    generator = tbf.load(tmp_path / "generator", np.float64)
    assert generator.config.layers == 2 and generator.decoding
    expected = trainer.learner.generator(ids).logits.numpy()
    assert np.array_equal(generator(ids).logits.numpy(), expected)


# ---- the generator

@pytest.mark.parametrize("name, layers", [("xsmall", 6), ("small", 3), ("base", 6), ("large", 12)])
def test_generators_are_half_as_deep_and_as_wide(name, layers):
    c, g = SIZES[name], generator_of(SIZES[name])
    assert (g.layers, g.width, g.heads, g.hidden) == (layers, c.width, c.heads, c.hidden)


def test_a_generator_has_the_two_layers_that_its_decoder_needs():
    assert generator_of(replace(SIZES["base"], layers=2)).layers == 2


def test_published_counts():
    """The spec's: a discriminator with its head, and a generator's encoder; under GDES both tables
    are trained."""
    pair = Learner(SIZES["base"], Init())
    size = {name: sum(t.size for t in model.named().values())
            for name, model in (("d", pair.discriminator), ("g", pair.generator))}
    assert size["d"] == 184_424_449
    heads = [pair.generator.mlm, pair.generator.emd]
    alone = {id(t) for head in heads for t in head.named().values()}
    encoder = sum(t.size for t in pair.generator.named().values() if id(t) not in alone)
    word = pair.generator.embeddings.word
    assert encoder + word.size * (id(word) in alone) == 141_304_320
    assert sum(t.size for t in pair.named().values()) == size["d"] + size["g"]


def test_hidden_words_are_guessed_through_the_mask_decoder(gdes):
    b, = objectives.first_batches(gdes)
    g, objective = gdes.learner.generator, gdes.objective
    x = objective.states(g, b)
    inputs = objective.inputs(b)
    assert np.array_equal(x.numpy(), g.decode(inputs, b["asked"]).numpy())
    assert abs(x.numpy() - g.encode(inputs, b["asked"]).numpy()).max() > 1e-3
    assert any(name.startswith("generator.emd.position") for name in moved(gdes, "mlm"))


def test_the_discriminator_has_no_positions_and_adds_the_first_tokens_state(gdes):
    """Its loss written out, over all tokens."""
    assert gdes.learner.discriminator.emd is None
    b, = objectives.first_batches(gdes)
    objective, pair = gdes.objective, gdes.learner
    x = objective.states(pair.generator, b)
    ids, wrong = objective.filled(pair.generator, x, b)
    inputs = objective.inputs(dict(b, ids=ids))
    h = pair.discriminator.encode(inputs).numpy()
    first = np.repeat(b["cuts"][:-1], np.diff(b["cuts"]))
    z = pair.discriminator.rtd(tbf.Tensor(h + h[first])).numpy()
    expected = np.log1p(np.exp(np.where(wrong, -z, z))).mean()
    losses = objective.loss(pair, b, objective.counts(b))
    assert losses["rtd_loss"].item() == pytest.approx(expected, rel=1e-12)
    total = objective.total(losses).item()
    assert total == pytest.approx(losses["mlm_loss"].item() + 50 * expected)


def test_it_learns():
    """Held-out text, 160 steps: better than at the start, and the discriminator than a coin."""
    trainer = objectives.prepared("deberta_v2", steps=160, warmup=20, lr=1e-3, tokens=1024)
    first = trainer.scores()
    for _ in trainer.run():
        pass
    last, chance = trainer.scores(), trainer.chance()
    assert last["rtd_balanced_accuracy"] > 0.53
    assert last["rtd_loss"] < chance["rtd_loss"] - 0.01 < first["rtd_loss"] - 0.1
    assert last["mlm_loss"] < first["mlm_loss"] - 0.5


# ---- v2, and settings

def test_v2_learns_as_v1_does():
    trainer = objectives.prepared("deberta_v2", np.float64, replaced=False, gram=3)
    assert type(trainer.learner) is deberta_v2.Model
    assert type(trainer.objective) is deberta.Objective
    assert trainer.learner.decoding and trainer.learner.rtd is None
    b, = objectives.first_batches(trainer)
    assert set(trainer.objective.loss(trainer.learner, b, trainer.objective.counts(b))) == {
        "mlm_loss"}
    for name in "xlarge", "xxlarge":
        assert (SIZES[name].replaced, SIZES[name].gram) == (False, 3)
    assert all(SIZES[name].replaced and SIZES[name].gram == 1 for name in ("base", "mdeberta"))


def test_decoupled_each_network_is_clipped_for_itself():
    """As if it had an optimiser of its own: the weight of 50 then means nothing to Adam, and the
    discriminator's long gradient does not shorten the generator's."""
    joint = objectives.prepared("deberta_v2", np.float64, workers=1)
    apart = objectives.prepared("deberta_v2", np.float64, decoupled=True)
    for trainer in joint, apart:
        batches = objectives.first_batches(trainer)
        trainer.workers.gradients(batches, 0, 0)
    lengths = {}
    for name, trainer in dict(joint=joint, apart=apart).items():
        whole = np.linalg.norm(trainer.arena.grad)
        assert trainer.learner.clip(trainer.arena, 0.5) == pytest.approx(whole)
        pieces = trainer.arena.views(trainer.arena.grad)
        for part in "discriminator", "generator":
            mine = [x for x, n in zip(pieces, trainer.arena.names) if n.startswith(part)]
            lengths[name, part] = np.sqrt(sum((x ** 2).sum() for x in mine))
    assert lengths["apart", "generator"] == pytest.approx(0.5)
    assert lengths["apart", "discriminator"] == pytest.approx(0.5)
    assert np.hypot(lengths["joint", "generator"], lengths["joint", "discriminator"]) == \
        pytest.approx(0.5)
    assert lengths["joint", "generator"] < 0.25


@pytest.mark.parametrize("changes, told", [
    (dict(sharing="some"), "sharing: 'some', but these are known: gdes, es, nes"),
    (dict(generator_depth=0), "generator_depth: 0, but it must be at least 0.001")])
def test_bad_settings_are_told(changes, told):
    with pytest.raises(tbf.Error, match=told):
        replace(SIZES["smoke"], **changes)


def test_gdes_is_for_words_alone():
    with pytest.raises(tbf.Error, match="sharing: gdes is for words alone; use --sharing es"):
        Learner(replace(SIZES["smoke"], types=2), Init())
    pair = Learner(replace(SIZES["smoke"], types=2, sharing="es"), Init())
    assert pair.discriminator.embeddings.type is not pair.generator.embeddings.type
