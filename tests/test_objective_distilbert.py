"""DistilBERT's objective: the teacher's softened answers at every token, the right ones at hidden
tokens, and the direction of the last states; the noise that hides rare words sooner; a student that
begins with some of its teacher's layers."""
from dataclasses import replace

import numpy as np
import pytest
from objectives import first_batches, language, loss_of, prepared, settings

import tinybert_family as tbf
from tinybert_family.engine import philox
from tinybert_family.engine.autograd import parameter
from tinybert_family.engine.nn import Init
from tinybert_family.models import bert, distilbert
from tinybert_family.models.parts import distil
from tinybert_family.models.parts.distil import kept, soft_loss, turning
from tinybert_family.text.corrupt import weighted

rng = np.random.default_rng


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ---- the loss of answers

def soft(z, t, **how):
    """soft_loss of given logits [N, V]: the identity for x, and the logits for w."""
    one = np.eye(len(z))
    nothing = np.zeros(z.shape[1])
    x, w, b = parameter(one), parameter(z.T.copy()), parameter(nothing.copy())
    how.setdefault("weights", np.ones(len(z)))
    loss = soft_loss(x, w, b, teacher=(one, t.T.copy(), nothing), **how)
    return loss, w


def test_a_worked_example_and_which_way_round_it_is():
    """The teacher says 9 to 1, the student 1 to 1: the teacher's logarithms count."""
    t, z = np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])
    there = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    back = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert soft(z, t)[0].item() == pytest.approx(there, abs=1e-15)
    assert soft(t, z)[0].item() == pytest.approx(back, abs=1e-15) and abs(there - back) > 0.1


def test_it_is_a_mean_over_tokens_and_not_over_words():
    z, t = rng(0).standard_normal((2, 3, 7))
    each = (softmax(t) * np.log(softmax(t) / softmax(z))).sum(1)
    assert soft(z, t, weights=np.full(3, 1 / 3))[0].item() == pytest.approx(each.mean(), abs=1e-14)


@pytest.mark.parametrize("heat", [1.0, 2.0, 5.0])
def test_the_gradient_is_the_difference_of_softened_answers(heat):
    """With heat^2 in the weights: d/dz = heat (softmax(z / heat) - softmax(t / heat)) / N."""
    z, t = rng(1).standard_normal((2, 4, 9))
    loss, w = soft(z, t, heat=heat, weights=np.full(4, heat ** 2 / 4))
    loss.backward()
    wanted = heat * (softmax(z / heat) - softmax(t / heat)) / 4
    np.testing.assert_allclose(w.grad.T, wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("gold", [0.0, 0.3, 1.0])
def test_targets_can_be_mixed_with_right_answers(gold):
    z, t = rng(2).standard_normal((2, 5, 6))
    labels, weights = rng(3).integers(0, 6, 5), rng(4).random(5)
    loss, w = soft(z, t, labels=labels, gold=gold, weights=weights)
    target = gold * np.eye(6)[labels] + (1 - gold) * softmax(t)
    each = -gold * np.log(softmax(z)[np.arange(5), labels])
    each += (1 - gold) * (softmax(t) * np.log(softmax(t) / softmax(z))).sum(1)
    assert loss.item() == pytest.approx(weights @ each, abs=1e-13)
    loss.backward()
    np.testing.assert_allclose(w.grad.T, weights[:, None] * (softmax(z) - target), atol=1e-15)


def test_the_gradients_of_soft_loss_are_its_slopes():
    r = rng(5)
    arrays = [r.standard_normal(s) for s in ((4, 3), (7, 3), (7,))]
    teacher = [r.standard_normal(s) for s in ((4, 2), (7, 2), (7,))]
    how = dict(teacher=teacher, weights=r.random(4), heat=1.7, gold=0.2,
               labels=r.integers(0, 7, 4))
    leaves = [parameter(a) for a in arrays]
    soft_loss(*leaves, **how).backward()
    for i, leaf in enumerate(leaves):
        way = r.standard_normal(leaf.shape)
        at = [soft_loss(*[a + h * way if j == i else a for j, a in enumerate(arrays)], **how).item()
              for h in (1e-6, -1e-6)]
        assert (at[0] - at[1]) / 2e-6 == pytest.approx((leaf.grad * way).sum(), rel=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_answers_cost_exactly_nothing_and_large_ones_do_not_overflow(dtype):
    z = (rng(6).standard_normal((3, 50)) * 1e4).astype(dtype)
    one, zero = np.eye(3, dtype=dtype), np.zeros(50, dtype)
    loss = soft_loss(one, z.T.copy(), zero, teacher=(one, z.T.copy(), zero),
                     weights=np.ones(3, dtype), heat=2.0)
    assert loss.item() == 0 and loss.dtype == dtype


def test_directions():
    x = np.array([[1.0, 0.0], [3.0, 4.0], [2.0, 0.0]])
    t = np.array([[0.0, 2.0], [3.0, 4.0], [-1.0, 0.0]])
    assert turning(parameter(x), t, 1.0).item() == pytest.approx(1 + 0 + 2, abs=1e-12)
    assert turning(parameter(10 * x), t, 0.5).item() == pytest.approx(1.5, abs=1e-12)


# ---- the whole of it

def test_the_three_terms_again_in_plain_numpy():
    trainer = prepared("distilbert", np.float64, tokens=256)
    c, objective, student = trainer.stage.config, trainer.objective, trainer.learner
    batches = first_batches(trainer, 2)
    masked, tokens = sum(objective.counts(b) for b in batches)
    terms = np.zeros(3)
    for b in batches:
        hidden = b["asked"][b["mlm_at"]]
        states = [model.encode(objective.inputs(b)).data for model in (student, objective.teacher)]
        logits = [model.mlm(x).data for model, x in zip((student, objective.teacher), states)]
        p, q = (softmax(z / c.heat) for z in logits)
        mine, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in states)
        right = softmax(logits[0])[hidden, b["mlm_labels"]]
        terms += [c.heat ** 2 * (q * np.log(q / p)).sum() / tokens, -np.log(right).sum() / masked,
                  (1 - (mine * theirs).sum(1)).sum() / tokens]
    assert loss_of(trainer, batches).item() == pytest.approx(terms @ [5, 2, 1], rel=1e-11)
    assert tokens == sum(len(b["ids"]) for b in batches)        # every token, not the hidden alone


def a_pair(layers=2, dtype=np.float64, **more):
    """A student's Config and a teacher of as many layers, whose segments add nothing."""
    corpus, tokenizer, _ = language(distilbert.Config.vocabulary)
    c = replace(settings(distilbert, layers=layers), vocab=tokenizer.size, **more)
    own = dict(distil.teacher_like(c, types=2, layers=layers).__dict__)
    teacher = bert.Model(bert.Config(**own), Init(1, c.init, dtype))
    teacher.embeddings.type.data[...] = 0
    objective = distilbert.Objective(c, corpus, tokenizer, teacher=teacher)
    return objective, distilbert.Model(c, Init(0, c.init, dtype))


def some(objective, rows=8):
    return objective.batch(objective.plan(objective.corpus.train, 0)[:rows], 0)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it():
    objective, student = a_pair(dropout=0.1, attention_dropout=0.1)
    objective.begin(student)
    b = some(objective)
    losses = objective.loss(student, b, objective.counts(b))
    assert losses["soft_loss"].item() == 0
    assert losses["turned_loss"].item() == pytest.approx(0, abs=1e-13)
    assert losses["mlm_loss"].item() > 1


def test_the_teacher_sees_the_same_words_and_drops_nothing():
    objective, student = a_pair(dropout=0.3, attention_dropout=0.3)
    b, seen = some(objective), []
    encode = objective.teacher.encode
    objective.teacher.encode = lambda inputs, *a: seen.append(inputs.ids) or encode(inputs, *a)
    quiet = objective.asked(b)[0]
    with philox.at(0, 0):
        objective.loss(student, b, objective.counts(b))
        np.testing.assert_array_equal(objective.asked(b)[0], quiet)
    assert all(np.array_equal(ids, b["ids"]) for ids in seen) and len(seen) == 3


def test_the_teacher_learns_nothing():
    trainer = prepared("distilbert")
    before = {n: t.data.copy() for n, t in trainer.objective.teacher.named().items()}
    moved = trainer.arena.data.copy()
    for _, _ in zip(range(3), trainer.run()):
        pass
    assert abs(trainer.arena.data - moved).max() > 1e-4
    for name, tensor in trainer.objective.teacher.named().items():
        np.testing.assert_array_equal(tensor.data, before[name])
        assert tensor.node.grad is None


# ---- how the student begins

@pytest.mark.parametrize("student, teacher, layers", [
    (6, 12, [0, 2, 4, 7, 9, 11]), (2, 4, [0, 3]), (3, 6, [0, 3, 5]), (1, 4, [0]),
    (4, 4, [0, 1, 2, 3]), (12, 24, [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23])])
def test_layers_that_are_taken_over(student, teacher, layers):
    assert kept(student, teacher) == layers


def test_everything_it_begins_with_is_the_teachers():
    trainer = prepared("distilbert", layers=2, positions=40, seq=32)
    teacher = trainer.objective.teacher
    assert len(teacher.layers) == 4
    for name, tensor in trainer.learner.named().items():
        source = name.replace("layers.1.", "layers.3.")
        wanted = teacher.named()[source].data[:len(tensor.data)]
        np.testing.assert_array_equal(tensor.data, wanted)
    other = prepared("distilbert", layers=2, begun=False)
    name = "layers.0.mlp.up.weight"
    assert abs(other.learner.named()[name].data - teacher.named()[name].data).max() > 0.01


# ---- the noise

def test_rare_words_are_hidden_sooner():
    """[CLS] and [SEP] never; of the batch an exact share; a word seen n times as n^-0.7."""
    objective, _ = a_pair()
    plan = objective.plan(objective.corpus.train, 0)[:40]
    counts, hidden = np.zeros(objective.config.vocab), np.zeros(objective.config.vocab)
    for copy in range(60):
        b = objective.batch(plan, copy)
        places = b["asked"][b["mlm_at"]]
        assert len(places) == np.ceil(0.15 * len(b["ids"])) == len(set(places))
        hidden += np.bincount(b["mlm_labels"], minlength=len(hidden))
        restored = b["ids"].copy()
        restored[places] = b["mlm_labels"]
        counts += np.bincount(restored, minlength=len(counts))
    tok = objective.tokenizer
    assert not hidden[[tok.cls, tok.sep]].any() and counts[tok.cls] == 60 * len(plan)
    seen = (counts > 0) & (np.arange(len(counts)) != tok.cls) & (np.arange(len(counts)) != tok.sep)
    rate = hidden[seen] / counts[seen]
    order = np.argsort(objective.rarity[seen])
    often, rare = rate[order[:20]].mean(), rate[order[-20:]].mean()
    expected = objective.rarity[seen][order]
    wanted = expected[-20:].mean() / expected[:20].mean()
    assert often < 0.15 < rare and 0.4 * wanted < rare / often < wanted


def test_a_draw_in_proportion_to_weights():
    """Of one place: exactly in proportion. Of all: everyone with a weight, and nobody else."""
    weights = np.array([0.0, 1.0, 2.0, 4.0, 0.0, 1.0])
    draws = rng(0).integers(0, 2 ** 32, (20_000, 6)).astype(np.uint32)
    found = np.bincount([int(weighted(d, weights, 1)[0]) for d in draws], minlength=6) / len(draws)
    np.testing.assert_allclose(found, weights / 8, atol=0.012)
    assert weighted(draws[0], weights, 4).tolist() == [1, 2, 3, 5]
    assert weighted(draws[0], weights, 9).tolist() == [1, 2, 3, 5]
    two = [tuple(weighted(d, weights, 2)) for d in draws]          # 2 first, then 3 of the rest, ...
    assert two.count((2, 3)) / len(two) == pytest.approx(2 / 8 * 4 / 6 + 4 / 8 * 2 / 4, abs=0.012)


def test_eighty_ten_ten_and_undoing_it_restores_the_text():
    objective, _ = a_pair()
    plan = objective.plan(objective.corpus.train, 0)
    text = {tuple(objective.corpus.ids[lo:hi].tolist())
            for lo, hi, _ in plan.pieces if lo >= 0}
    kinds = np.zeros(3)
    for copy in range(3):
        b = objective.batch(plan, copy)
        places, labels = b["asked"][b["mlm_at"]], b["mlm_labels"]
        seen = b["ids"][places]
        masked, same = seen == objective.tokenizer.mask, seen == labels
        kinds += [masked.sum(), same.sum(), len(places)]
        restored = b["ids"].copy()
        restored[places] = labels
        for lo, hi in zip(b["cuts"], b["cuts"][1:]):
            row = restored[lo:hi].tolist()
            inner = row[1:-1]
            while inner:                                # whole sentences, one after another
                n = next(n for n in range(1, len(inner) + 1) if tuple(inner[:n]) in text)
                inner = inner[n:]
    assert kinds[0] / kinds[2] == pytest.approx(0.8, abs=0.02)
    assert kinds[1] / kinds[2] == pytest.approx(0.1, abs=0.02)


def test_masks_are_new_in_every_pass_and_functions_of_the_seed():
    objective, _ = a_pair()
    plan = objective.plan(objective.corpus.train, 0)[:10]
    one, again, other = (objective.batch(plan, copy) for copy in (0, 0, 1))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["ids"], other["ids"])
    assert distilbert.Config().copies == 0


def test_sequences_are_single_texts_of_at_least_twelve_tokens():
    objective, _ = a_pair()
    plan = objective.plan(objective.corpus.train, 0)
    b = objective.batch(plan, 0)
    assert not b["types"].any() and np.diff(b["cuts"]).min() >= 12
    assert "nsp_labels" not in b and "nsp" not in objective.TASKS


# ---- teachers that do not fit

def test_teachers_that_do_not_fit():
    objective, _ = a_pair()
    c, corpus, tokenizer = objective.config, objective.corpus, objective.tokenizer

    def refused(match, heads=None, **changes):
        own = replace(objective.teacher.config, **changes)
        teacher = bert.Model(own, Init(0, 0.1), heads)
        with pytest.raises(tbf.Error, match=match):
            distilbert.Objective(c, corpus, tokenizer, teacher=teacher)

    refused(f"knows 77 word pieces, but the tokenizer here has {tokenizer.size}.*--tokenizer",
            vocab=77)
    refused("width is 32, but the student's is 64.*--width 32", width=32)
    refused("16 positions, too few for sequences of 32 tokens; use --seq 16", positions=16, seq=16)
    refused("no mlm head", heads=("pooler",))
    with pytest.raises(tbf.Error, match="learns from a teacher and has none.*--teacher FOLDER"):
        distilbert.Objective(c, corpus, tokenizer)
    thin = bert.Model(replace(objective.teacher.config, hidden=32), Init(0, 0.1))
    fitting = distilbert.Objective(c, corpus, tokenizer, teacher=thin)
    with pytest.raises(tbf.Error, match="layers.0.mlp.up.weight has shape.*--begun false"):
        fitting.begin(distilbert.Model(c, Init(0, 0.1)))


def test_the_teacher_that_is_trained_where_none_is_given():
    name, teacher = distilbert.Objective.teacher_of(distilbert.SIZES["base"])
    assert name == "bert" and teacher == bert.SIZES["base"]
    smoke = distilbert.SIZES["smoke"]
    name, teacher = distilbert.Objective.teacher_of(smoke)
    assert (teacher.layers, teacher.width, teacher.steps) == (2, 64, smoke.teacher_steps)
