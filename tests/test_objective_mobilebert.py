"""MobileBERT's objective: parameters that are pulled more, less or not at all; layers that are
taught one after another; maps and looks that are compared; answers that are half the teacher's."""
from dataclasses import replace

import numpy as np
import pytest
from objectives import first_batches, language, loss_of, prepared, settings

import tinybert_family as tbf
from tinybert_family.engine import optim, philox
from tinybert_family.engine.autograd import Tensor, parameter
from tinybert_family.engine.nn import Init
from tinybert_family.engine.optim import LAMB, AdamW, Arena, StableAdamW
from tinybert_family.models import mobilebert
from tinybert_family.models.parts import transfer
from tinybert_family.models.parts.distil import NOBODY, looking, squares

rng = np.random.default_rng


# ---- pulls: a multiple of the learning rate for each parameter

SHAPES = dict(first=(9, 4), second=(5,), third=(3, 7), fourth=(6,))
KINDS = {"AdamW": AdamW, "LAMB": LAMB, "StableAdamW": StableAdamW}


def an_optimizer(kind, dtype=np.float64, **how):
    named = [(name, parameter(rng(i).standard_normal(shape).astype(dtype)))
             for i, (name, shape) in enumerate(SHAPES.items())]
    arena = Arena(named)
    return KINDS[kind](arena, eps=1e-6, decay=0.1, **how), arena


def walked(kind, steps=4, lr=0.01, pulls=None, dtype=np.float64):
    """{name: array} after some steps, and the optimiser."""
    optimizer, arena = an_optimizer(kind, dtype)
    for step in range(steps):
        arena.grad[...] = rng(50 + step).standard_normal(len(arena.grad))
        optimizer.step(lr, *([] if pulls is None else [pulls]))
    return dict(zip(arena.names, [t.data for t in arena.tensors])), optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [7, 1 << 15])
def test_equal_pulls_are_a_rate(kind, block, monkeypatch):
    monkeypatch.setattr(optim, "BLOCK", block)
    plain, _ = walked(kind)
    for pulls, lr in ([1] * 4, 0.01), ([2.0] * 4, 0.005), ([0.25] * 4, 0.04):
        same, _ = walked(kind, lr=lr, pulls=pulls)
        for name in SHAPES:
            np.testing.assert_array_equal(same[name], plain[name])


@pytest.mark.parametrize("kind", KINDS)
def test_each_parameter_moves_as_far_as_it_is_pulled(kind):
    names = an_optimizer(kind)[1].names
    pulls = dict(first=1.0, second=0.1, third=3.0, fourth=0.5)
    mixed, _ = walked(kind, pulls=[pulls[name] for name in names])
    for name in names:
        alone, _ = walked(kind, lr=0.01 * pulls[name])
        np.testing.assert_allclose(mixed[name], alone[name], rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stands_still_and_forgets(kind):
    """Not even decay moves it, and when its time comes it begins with moments of zero."""
    names = an_optimizer(kind)[1].names
    frozen = [0 if name in ("first", "fourth") else 1 for name in names]
    begin, _ = walked(kind, steps=0)
    moved, optimizer = walked(kind, pulls=frozen)
    plain, _ = walked(kind)
    for name, pull, lo, hi in zip(names, frozen, optimizer.arena.cuts, optimizer.arena.cuts[1:]):
        if pull:
            np.testing.assert_array_equal(moved[name], plain[name])
        else:
            np.testing.assert_array_equal(moved[name], begin[name])
            assert not optimizer.m[lo:hi].any() and not optimizer.v[lo:hi].any()
    optimizer.step(0.01)                                # awake: what was there does not count
    optimizer.step(0.01, frozen)
    assert not optimizer.m[optimizer.arena.cuts[0]:optimizer.arena.cuts[1]].any()


def test_as_many_pulls_as_parameters():
    optimizer, _ = an_optimizer("AdamW")
    with pytest.raises(tbf.Error, match="pulls: 3 of them, but the arena has 4"):
        optimizer.step(0.1, [1, 1, 1])


# ---- stages

LITTLE = replace(mobilebert.SIZES["smoke"], layers=3, steps=1000, transfer_share=0.6)


def test_phases_one_after_another_then_answers():
    stages = LITTLE.stages()
    assert [s.name for s in stages] == ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3", "answers"]
    assert [s.steps for s in stages] == [200, 200, 200, 400]
    assert [s.config.phase for s in stages] == [0, 1, 2, 3]
    base = mobilebert.SIZES["base"].stages()
    assert [s.steps for s in base] == [10_000] * 24 + [500_000]
    assert base[3].config.lr == 1.5e-3 and base[3].config.optimizer == "lamb"


def test_the_layer_in_hand_moves_and_those_below_by_a_tenth():
    stage = replace(LITTLE, pull=3.0).stages()[1]
    names = ["embeddings.word", "layers.0.mlp.up.weight", "layers.1.mlp.up.bias",
             "layers.2.attention.qk.weight", "mlm.bias", "nsp.classifier.weight"]
    for t, background in (0, 10 / 200), (9, 0.5), (19, 0.9 + 0.1 * 0.9 ** 0.5), (199, 0.9):
        assert stage.background(t) == pytest.approx(background, abs=1e-12)
        assert stage.pulls(names, t) == pytest.approx(
            [0, 0.3 * background, 3 * background, 0, 0, 0], abs=1e-12)
        assert stage.rate(t) == LITTLE.lr
    last = LITTLE.stages()[-1]
    assert last.pulls(names, 5) is None and last.rate(300) < last.rate(200) < LITTLE.lr


def test_eleven_layers_are_told_from_one():
    stage = replace(LITTLE, layers=12).stages()[1]
    assert stage.pulls(["layers.1.a", "layers.10.a", "layers.11.a"], 20)[1:] == [0, 0]


def test_the_other_ways():
    ways = {way: replace(LITTLE, transfer=way).stages() for way in transfer.TRANSFERS}
    assert [s.name for s in ways["joint"]] == ["all layers", "answers"]
    names = ["embeddings.word", "layers.0.a", "layers.2.a", "mlm.bias"]
    pulls = ways["joint"][0].pulls(names, 300)
    assert pulls[0] == pulls[3] == 0 and pulls[1] == pulls[2] > 0.9
    for way in "auxiliary", "answers", "alone":
        (stage,) = ways[way]
        assert stage.steps == 1000 and stage.pulls(names, 0) is None
    assert all(sum(s.steps for s in stages) == 1000 for stages in ways.values())
    for field, value in dict(transfer="sudden", transfer_share=1.5, gold=-0.1).items():
        with pytest.raises(tbf.Error, match=field):
            replace(LITTLE, **{field: value})


def test_a_run_moves_what_the_schedule_says_and_nothing_else():
    trainer = prepared("mobilebert", layers=3, steps=16, transfer_share=0.75)
    begin = {n: t.data.copy() for n, t in trainer.learner.named().items()}
    run, moving = trainer.run(), [{"0"}, {"0", "1"}, {"0", "1", "2"}]
    for allowed in moving:
        for _ in range(4):
            next(run)
        moved = {n for n, t in trainer.learner.named().items() if (t.data != begin[n]).any()}
        assert {n.split(".")[1] for n in moved if n.startswith("layers.")} == allowed
        assert all(n.startswith("layers.") for n in moved), moved
    next(run)
    moved = {n for n, t in trainer.learner.named().items() if (t.data != begin[n]).any()}
    assert {"embeddings.word", "mlm.more", "nsp.classifier.weight"} <= moved


# ---- maps and looks

def test_looks_by_hand():
    """Two queries of one head; of the second's keys the last is not there."""
    s = np.array([[[0.0, 1.0, 2.0]], [[1.0, 1.0, NOBODY]]])
    t = np.array([[[1.0, 1.0, 1.0]], [[0.0, np.log(3), NOBODY]]])
    p = np.exp(s[0, 0]) / np.exp(s[0, 0]).sum()
    first = sum(1 / 3 * np.log((1 / 3) / p))
    second = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    x = parameter(s)
    loss = looking(x, t, 0.5)
    assert loss.item() == pytest.approx(0.5 * (first + second), abs=1e-14)
    loss.backward()
    q = np.array([[1 / 3] * 3, [0.25, 0.75, 0]])
    p = np.array([p, [0.5, 0.5, 0]])
    np.testing.assert_allclose(x.grad[:, 0], 0.5 * (p - q), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_looks_cost_nothing_however_large_the_scores(dtype):
    s = (1e6 * rng(0).standard_normal((3, 2, 5))).astype(dtype)
    s[:, :, 4] = NOBODY
    x = parameter(s)
    loss = looking(x, s, 1.0)
    loss.backward()
    assert loss.item() == 0 and not x.grad.any() and loss.dtype == dtype


def test_squares_are_means_with_the_right_weight():
    x, t = rng(1).standard_normal((2, 5, 4))
    assert squares(parameter(x), t, 1 / 20).item() == pytest.approx(((x - t) ** 2).mean(), 1e-14)


def test_decomposed_maps():
    """Equal but for mean and size: the form costs nothing, mean and variance do."""
    t = rng(2).standard_normal((6, 8))
    x = 3 * t + 1.5
    mean, var = t.mean(1), t.var(1)
    wanted = 5000 * ((3 * mean + 1.5 - mean) ** 2).sum() + 5 * abs(9 * var - var).sum()
    got = transfer.decomposed(parameter(x), t, 1.0, 24).item()
    assert got == pytest.approx(wanted / 24, rel=1e-11)
    assert transfer.decomposed(parameter(t.copy()), t, 1.0, 24).item() == pytest.approx(0, abs=1e-12)
    centred = t - t.mean(1, keepdims=True)
    form = lambda x: (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    other = rng(3).standard_normal((6, 8))
    other -= other.mean(1, keepdims=True)
    other *= centred.std(1, keepdims=True) / other.std(1, keepdims=True)    # mean and size agree
    got = transfer.decomposed(parameter(other), centred, 1.0, 1).item()
    assert got == pytest.approx(100 * ((form(other) - form(centred)) ** 2).sum() / 8, rel=1e-10)


# ---- the whole of it

def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("phase", [0, 1])
def test_a_phase_again_in_plain_numpy(phase):
    trainer = prepared("mobilebert", np.float64, tokens=256, phase=phase)
    objective, student = trainer.objective, trainer.learner
    objective.layers = [phase]
    batches, c = first_batches(trainer, 2), trainer.stage.config
    tokens = sum(len(b["ids"]) for b in batches)
    wanted = np.zeros(2)
    for b in batches:
        inputs, both = objective.inputs(b), []
        for model in student, objective.teacher:
            states = []
            states.append(model.encode(inputs, None, states))
            scores = model.layers[phase].attention.scores(states[phase], inputs).data
            both.append((states[phase + 1].data, scores))
        (mine, seen), (theirs, target) = both
        wanted[0] += ((mine - theirs) ** 2).sum() / tokens / c.width
        for lo, hi in zip(b["cuts"], b["cuts"][1:]):
            p, q = softmax(seen[lo:hi, :, :hi - lo]), softmax(target[lo:hi, :, :hi - lo])
            wanted[1] += (q * np.log(q / p)).sum() / tokens / c.heads
    counts = sum(objective.counts(b) for b in batches)
    got = [objective.loss(student, b, counts) for b in batches]
    assert sum(x["map_loss"].item() for x in got) == pytest.approx(wanted[0], rel=1e-11)
    assert sum(x["looks_loss"].item() for x in got) == pytest.approx(wanted[1], rel=1e-11)


def answering(dtype=np.float64, **more):
    return prepared("mobilebert", dtype, tokens=256, transfer="answers", **more)


@pytest.mark.parametrize("gold", [0.0, 0.5, 1.0])
def test_answers_again_in_plain_numpy(gold):
    trainer = answering(gold=gold)
    objective, batches = trainer.objective, first_batches(trainer, 2)
    words, pairs, _ = sum(objective.counts(b) for b in batches)
    wanted = 0
    for b in batches:
        logits = []
        for model in trainer.learner, objective.teacher:
            x = model.encode(objective.inputs(b)).data[b["asked"]]
            logits.append(model.mlm(Tensor(x[b["mlm_at"]])).data)
            if model is trainer.learner:
                order = softmax(model.nsp(Tensor(x[b["nsp_at"]])).data)
        p, q = map(softmax, logits)
        here = np.arange(len(p))
        wanted += gold * -np.log(p[here, b["mlm_labels"]]).sum() / words
        wanted += (1 - gold) * (q * np.log(q / p)).sum() / words
        wanted -= np.log(order[np.arange(len(order)), b["nsp_labels"]]).sum() / pairs
    assert loss_of(trainer, batches).item() == pytest.approx(wanted, rel=1e-11)


def a_twin(way, phase=0, **more):
    """An objective whose teacher has the student's own shape, and that student."""
    corpus, tokenizer, _ = language(mobilebert.Config.vocabulary)
    c = replace(settings(mobilebert), vocab=tokenizer.size, transfer=way, phase=phase, **more)
    teacher = mobilebert.Model(c, Init(1, c.init, np.float64))
    objective = mobilebert.Objective(c, corpus, tokenizer, teacher=teacher)
    student = mobilebert.Model(c, Init(0, c.init, np.float64))
    return objective, student, objective.batch(objective.plan(corpus.train, 0)[:8], 0)


@pytest.mark.parametrize("way, phase", [("progressive", 0), ("progressive", 1), ("joint", 0),
                                        ("auxiliary", 2), ("progressive", 2)])
@pytest.mark.parametrize("apart", [False, True])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(way, phase, apart):
    objective, student, b = a_twin(way, phase, gold=0.0, decomposed=apart)
    for name, tensor in student.named().items():
        tensor.data[...] = objective.teacher.named()[name].data
    losses = objective.loss(student, b, objective.counts(b))
    losses.pop("nsp_loss", None)
    assert losses and all(loss.item() == 0 for loss in losses.values())
    objective.total(losses).backward()
    assert not any(t.node.grad is not None and abs(t.node.grad).max() > 1e-15
                   for t in student.named().values())


def test_what_is_learnt_in_which_way():
    def names(*given):
        objective, student, b = a_twin(*given)
        return set(objective.loss(student, b, objective.counts(b)))
    maps, answers = {"map_loss", "looks_loss"}, {"mixed_loss", "nsp_loss"}
    assert names("progressive", 0) == names("progressive", 1) == names("joint", 0) == maps
    assert names("progressive", 2) == names("joint", 2) == names("answers", 2) == answers
    assert names("auxiliary", 2) == maps | answers
    assert names("alone", 2) == {"mlm_loss", "nsp_loss"}


def test_nobody_drops_anything_while_there_is_a_teacher():
    for way, phase in ("progressive", 0), ("progressive", 2), ("alone", 2):
        objective, student, b = a_twin(way, phase, attention_dropout=0.5, dropout=0.5)
        quiet = objective.total(objective.loss(student, b, objective.counts(b))).item()
        with philox.at(0, 0):
            loud = objective.total(objective.loss(student, b, objective.counts(b))).item()
        assert (quiet == loud) == (way != "alone")


def test_words_and_heads_begin_as_the_teachers():
    trainer = prepared("mobilebert")
    teacher = trainer.objective.teacher.named()
    for name, tensor in trainer.learner.named().items():
        if not name.startswith("layers."):
            np.testing.assert_array_equal(tensor.data, teacher[name].data)
    c = trainer.objective.teacher.config
    assert (c.inner, c.hidden, c.norm, c.mlps, c.transfer) == (128, 512, "layer_norm", 1, "alone")


def test_the_teacher_of_the_published_size():
    name, teacher = mobilebert.Objective.teacher_of(mobilebert.SIZES["base"])
    size = mobilebert.SIZES["teacher"]
    own = "inner hidden shared mlps norm pooled activation dropout transfer embedding".split()
    assert name == "mobilebert" and [getattr(teacher, f) for f in own] == [getattr(size, f)
                                                                          for f in own]
    assert mobilebert.Objective.teacher_of(size) is None


def test_held_out_scores_show_words_even_while_layers_are_taught():
    trainer = prepared("mobilebert")
    scores, chance = trainer.scores(), trainer.chance()
    assert scores["eval_loss"] == pytest.approx(scores["map_loss"] + scores["looks_loss"])
    assert {"mlm_loss", "mlm_accuracy", "nsp_accuracy"} <= set(scores)
    assert 0 < chance["looks_loss"] and 0 < chance["map_loss"]


def test_teachers_that_do_not_fit():
    objective, _, _ = a_twin("progressive")
    c, corpus, tokenizer = objective.config, objective.corpus, objective.tokenizer

    def refused(match, heads=None, **changes):
        teacher = mobilebert.Model(replace(c, **changes), Init(0, 0.1), heads)
        with pytest.raises(tbf.Error, match=match):
            made = mobilebert.Objective(c, corpus, tokenizer, teacher=teacher)
            made.begin(mobilebert.Model(c, Init(0, 0.1)))

    refused("layers is 3, but the student's is 2.*--layers 3", layers=3)
    two = replace(c, heads=2)
    with pytest.raises(tbf.Error, match="heads is 2, but the student's is 4.*--heads 2"):
        mobilebert.Objective(c, corpus, tokenizer, teacher=mobilebert.Model(two, Init(0, 0.1)))
    refused("width is 32, but the student's is 64", width=32)
    refused("no nsp head", heads=("mlm",))
    refused(r"table of words has shape \(\d+, 16\).*--embedding 16", embedding=16)
    with pytest.raises(tbf.Error, match="has none; give one with --teacher"):
        mobilebert.Objective(c, corpus, tokenizer)
