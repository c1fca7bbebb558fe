"""TinyBERT's objective: embeddings, states and scores of a teacher, first of a general one and then
of one that knows a task, and last its answers; the task, more texts for it, and the fine-tuning."""
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from objectives import first_batches, language, loss_of, prepared, settings

import tinybert_family as tbf
from tinybert_family.engine import philox
from tinybert_family.engine.nn import Init
from tinybert_family.models import bert, tinybert
from tinybert_family.models.parts import tuning
from tinybert_family.text import toy
from tinybert_family.training import Trainer

QUICK = dict(augmented=0, tuning=1, labels=2)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """What the objective says, instead of on the terminal."""
    said = []
    monkeypatch.setattr(tinybert.Objective, "note", staticmethod(said.append))
    return said


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ---- stages

def test_first_the_language_then_the_task():
    c = replace(tinybert.SIZES["smoke"], steps=1000, intermediate=0.3, prediction=0.1)
    general, reading, answering = c.stages()
    assert [s.steps for s in (general, reading, answering)] == [600, 300, 100]
    assert [s.config.phase for s in c.stages()] == ["general", "intermediate", "prediction"]
    assert reading.rate(0) == reading.rate(299) == c.intermediate_lr
    assert answering.rate(99) == c.prediction_lr and general.rate(599) < c.lr / 100
    base = tinybert.SIZES["base"].stages()
    assert base[1].config.lr == 5e-5 and base[2].config.lr == 3e-5 and base[0].config.lr == 1e-4
    alone = replace(c, intermediate=0.0, prediction=0.0).stages()
    assert [s.steps for s in alone] == [1000, 0, 0]


def test_settings_that_cannot_be():
    for wrong, match in ((dict(phase="late"), "phase: 'late'"), (dict(augmented=-1), "augmented"),
                         (dict(intermediate=0.7, prediction=0.4), "more than all")):
        with pytest.raises(tbf.Error, match=match):
            replace(tinybert.SIZES["smoke"], **wrong)


# ---- general distillation

def in_numpy(student, teacher, objective, batches, c):
    """The three means, one sequence at a time, from what the models' own forward gives."""
    tokens, pairs, _ = sum(objective.counts(b) for b in batches)
    sums = np.zeros(3)
    for b in batches:
        inputs, both = objective.inputs(b), []
        for model in student, teacher:
            states = []
            states.append(model.encode(inputs, None, states))
            scores = [layer.attention.scores(x, inputs).data
                      for layer, x in zip(model.layers, states)]
            both.append(([x.data for x in states], scores))
        (mine, own), (theirs, target) = both
        step = len(teacher.layers) // len(student.layers)
        w, bias = student.fit.hidden.weight.data, student.fit.hidden.bias.data
        for m, x in enumerate(mine):
            d = x @ w.T + bias - theirs[m * step]
            sums[min(m, 1)] += (d * d).sum() / tokens / c.teacher_width
        for m, s in enumerate(own):
            for lo, hi in zip(b["cuts"], b["cuts"][1:]):
                n = hi - lo                             # teacher's layer (m + 1) step - 1, from 0
                d = s[lo:hi, :, :n] - target[(m + 1) * step - 1][lo:hi, :, :n]
                sums[2] += (d * d).sum() / pairs / c.heads
    return sums


@pytest.mark.parametrize("layers", [1, 2])
def test_the_three_losses_again_in_plain_numpy(layers):
    trainer = prepared("tinybert", np.float64, tokens=256, layers=layers, teacher_width=80,
                       width=48, hidden=96, **QUICK)
    objective, batches = trainer.objective, first_batches(trainer, 2)
    assert len(objective.teacher.layers) == 2 * layers
    wanted = in_numpy(trainer.learner, objective.teacher, objective, batches, trainer.stage.config)
    counts = sum(objective.counts(b) for b in batches)
    got = [objective.loss(trainer.learner, b, counts) for b in batches]
    names = "embedding_loss", "states_loss", "scores_loss"
    for name, value in zip(names, wanted):
        assert sum(x[name].item() for x in got) == pytest.approx(value, rel=1e-11)
    assert loss_of(trainer, batches).item() == pytest.approx(wanted.sum(), rel=1e-11)
    lighter = prepared("tinybert", np.float64, tokens=256, layers=layers, teacher_width=80,
                       width=48, hidden=96, on_scores=0.25, on_states=0.0, **QUICK)
    assert loss_of(lighter, batches).item() == pytest.approx(wanted @ [1, 0, 0.25], rel=1e-11)


def a_twin(phase="general", dtype=np.float64, **more):
    """An objective whose teacher is as deep and wide as the student, and the student."""
    corpus, tokenizer, _ = language(tinybert.Config.vocabulary)
    c = settings(tinybert, teacher_width=64, width=64, layers=2, phase=phase, **{**QUICK, **more})
    c = replace(c, vocab=tokenizer.size)
    shape = dict(vocab=c.vocab, layers=c.layers, heads=c.heads, width=c.width, hidden=c.hidden,
                 positions=c.positions, seq=c.seq, dropout=c.dropout,
                 attention_dropout=c.attention_dropout, labels=c.labels, last_share=0.0)
    heads = "pooler", "mlm", "sequence"
    teacher = bert.Model(bert.Config(**shape), Init(1, 0.2, dtype), heads)
    objective = tinybert.Objective(c, corpus, tokenizer, teacher=teacher)
    return objective, tinybert.Model(c, Init(0, 0.2, dtype))


def some(objective, rows=8):
    return objective.batch(objective.plan(objective.corpus.train, 0)[:rows], 0)


@pytest.mark.parametrize("phase", tinybert.PHASES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(phase):
    objective, student = a_twin(phase)
    arrays = objective.teacher.named()
    for name, tensor in student.named().items():
        if name in arrays:
            tensor.data[...] = arrays[name].data
    student.fit.hidden.weight.data[...] = np.eye(64)
    b = some(objective)
    losses = objective.loss(student, b, objective.counts(b))
    assert all(loss.item() == 0 for loss in losses.values())
    assert len(losses) == (1 if phase == "prediction" else 3)


def test_nothing_is_hidden_and_the_teacher_drops_nothing():
    objective, student = a_twin(dropout=0.4, attention_dropout=0.4)
    b = some(objective)
    assert not (b["ids"] == objective.tokenizer.mask).any()
    assert tinybert.Config().masked == 0 and "mlm_labels" not in b
    places = [lo for lo, _, _ in objective.plan(objective.corpus.train, 0)[:8].pieces if lo >= 0]
    assert set(objective.corpus.ids[places].tolist()) <= set(b["ids"].tolist())
    seen = []
    encode = objective.teacher.encode
    objective.teacher.encode = lambda *a: seen.append(encode(*a)) or seen[-1]
    monkey = [objective.loss(student, b, objective.counts(b))["embedding_loss"].item()]
    for step in range(2):
        with philox.at(0, step):
            losses = objective.loss(student, b, objective.counts(b))
            monkey.append(losses["embedding_loss"].item())
    assert len(set(monkey)) == 3                        # the student does, anew in every step


def test_a_sequence_costs_the_same_in_any_company():
    """Nothing is padded: sums over sequences that came alone are the sums of the batch."""
    objective, student = a_twin()
    plan = objective.plan(objective.corpus.train, 0)[:6]
    whole = objective.batch(plan, 0)
    counts = objective.counts(whole)
    together = objective.loss(student, whole, counts)
    alone = [objective.loss(student, objective.batch(plan[i:i + 1], 0), counts) for i in range(6)]
    for name, value in together.items():
        assert sum(x[name].item() for x in alone) == pytest.approx(value.item(), rel=1e-12)


# ---- the task

def labelled_file(folder):
    """First sentences of the toy language: does somebody of the first jobs live there?"""
    jobs, lines = list(toy.JOBS), []
    for d in toy.documents(500):
        first = d.sentences[0]
        job = next(job for job in jobs if job in first)
        lines.append(f"{'early' if jobs.index(job) < len(jobs) // 2 else 'late'}\t{first}")
    path = folder / "jobs.tsv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def trained(folder, **more):
    """A Trainer on a labelled file, after `done` of its steps."""
    given = dict(QUICK, task=labelled_file(folder), steps=12, dropout=0.0, tokens=1024, seq=32)
    return prepared("tinybert", **{**given, **more})


def test_the_teacher_learns_the_task_first_and_says_so(tmp_path, quiet):
    trainer = trained(tmp_path, phase="prediction", tuning=10)
    objective = trainer.objective
    assert "jobs.tsv" in quiet[0] and "always the commonest" in quiet[0]
    assert "the teacher has learnt it" in quiet[1]
    held = objective.batch(objective.plan(trainer.corpus.held, 0), 0)
    right = (objective.told(held).argmax(1) == held["task_labels"]).mean()
    assert right > 0.9 and f"{right:.1%} of what is held out" in quiet[1]
    before = len(quiet)
    trainer.enter(trainer.stages[-1])                   # the stages share the lesson
    assert len(quiet) == before and trainer.objective.teacher is objective.teacher


def test_predictions_again_in_plain_numpy(tmp_path):
    trainer = trained(tmp_path, phase="prediction", heat=1.5)
    objective, batches = trainer.objective, first_batches(trainer, 1)
    (b,) = batches
    logits = []
    for model in trainer.learner, objective.teacher:
        first = model.encode(objective.inputs(b)).data[b["cuts"][:-1]]
        pooled = np.tanh(first @ model.pooler.dense.weight.data.T + model.pooler.dense.bias.data)
        head = model.sequence.classifier
        logits.append((pooled @ head.weight.data.T + head.bias.data) / 1.5)
    p, q = map(softmax, logits)
    wanted = (q * np.log(q / p)).sum(1).mean()          # over texts, not over texts and labels
    assert loss_of(trainer, batches).item() == pytest.approx(wanted, rel=1e-4)
    counts = objective.counts(b)
    assert counts[2] == len(b["cuts"]) - 1


def test_the_student_learns_what_its_teacher_answers(tmp_path):
    trainer = trained(tmp_path, intermediate=0.0, prediction=0.99, prediction_lr=3e-3,
                      tuning=10)
    trainer = rerun(trainer, 60)
    scores, chance = trainer.scores(), trainer.chance()
    assert scores["task_accuracy"] > 0.9 > 0.7 > chance["task_accuracy"]
    assert scores["task_loss"] < 0.2 * chance["task_loss"]


def rerun(trainer, steps):
    config = replace(trainer.stage.config, steps=steps)
    again = Trainer(tinybert, config, *trainer.given, **trainer.more)
    for _ in again.run():
        pass
    return again


def test_a_run_that_was_stopped_in_the_last_stage_goes_on_to_the_same_bits(tmp_path):
    shares = dict(intermediate=0.3, prediction=0.1)
    whole, part, again = (trained(tmp_path, **shares) for _ in range(3))
    losses = [done.loss for done in whole.run()]
    assert [s.steps for s in whole.stages] == [7, 4, 1]
    taken = [done.loss for done in islice(part.run(), 9)]
    for mine, its in zip((again.arena.data, again.optimizer.m, again.optimizer.v),
                         (part.arena.data, part.optimizer.m, part.optimizer.v)):
        mine[:] = its
    again.optimizer.steps, again.step = part.optimizer.steps, part.step
    again.position = part.position
    taken += [done.loss for done in again.run()]
    assert taken == losses
    np.testing.assert_array_equal(again.arena.data, whole.arena.data)


def test_a_teacher_with_a_classifier_knows_the_task_already(quiet):
    objective, _ = a_twin("intermediate", labels=2)
    assert "the teacher knows it" in quiet[1] and objective.teacher.sequence is not None
    with pytest.raises(tbf.Error, match="tells 2 labels apart, the student 3; use --labels 2"):
        c = replace(objective.config, labels=3)
        tinybert.Objective(c, objective.corpus, objective.tokenizer, teacher=objective.teacher)


def test_held_out_texts_are_never_learnt_from(tmp_path):
    trainer = trained(tmp_path, phase="intermediate")
    task, corpus = trainer.objective.source, trainer.corpus
    rows = [tuple(r.a.tolist()) for r in task.of(corpus.held)]
    plan = trainer.objective.plan(corpus.train, 0)
    assert len(plan) == len(task.of(corpus.train)) > 100 and len(rows) >= 10
    assert not set(plan.keys[:, 0]) & set(corpus.held.tolist())


def test_copies_with_other_words_are_learnt_from(tmp_path, quiet):
    knowledge = SimpleNamespace(similar=SimpleNamespace(neighbours=lambda w, k: [("town", 0.5)]))
    trainer = trained(tmp_path)
    objective = trainer.objective
    c = replace(trainer.stage.config, augmented=3, phase="intermediate")
    more = tinybert.Objective(c, objective.corpus, objective.tokenizer, knowledge=knowledge,
                              teacher=trainer.more["teacher"])
    plain = replace(c, augmented=0)
    less = tinybert.Objective(plain, objective.corpus, objective.tokenizer,
                              teacher=trainer.more["teacher"])
    corpus = objective.corpus
    mine, its = (len(x.source.of(corpus.train)) for x in (more, less))
    assert 3 * its < mine <= 4 * its
    assert len(more.source.of(corpus.held)) == len(less.source.of(corpus.held))
    assert "have become" in quiet[2]
    assert tinybert.Objective.needs(c, set()) == {"similar"}
    assert tinybert.Objective.needs(plain, set()) == set()


def test_guesses_are_the_models_best_for_the_pair():
    """[CLS] masked [SEP] original [SEP], types 0 and 1; queries of several lengths keep order."""
    corpus, tokenizer, _ = language(tinybert.Config.vocabulary)
    c = bert.Config(vocab=tokenizer.size, layers=1, heads=2, width=16, hidden=32, positions=40,
                    seq=32, last_share=0.0)
    model = bert.Model(c, Init(3, 0.5))
    r, queries = np.random.default_rng(0), []
    for n in (5, 12, 3, 17, 30):
        ids = r.integers(5, tokenizer.size, n)
        hidden, place = ids.copy(), int(r.integers(n))
        hidden[place] = tokenizer.mask
        queries.append((hidden, ids, place))
    found = tuning.guesser(model, tokenizer)(queries, 4)
    for (hidden, ids, place), best in zip(queries, found):
        row = [tokenizer.cls, *hidden, tokenizer.sep, *ids, tokenizer.sep]
        types = [0] * (len(hidden) + 2) + [1] * (len(ids) + 1)
        if len(row) > 40:                               # too long for both: the first alone
            row, types = row[:len(hidden) + 2], types[:len(hidden) + 2]
        logits = model([row], token_type_ids=[types]).prediction_logits.numpy()[0, place + 1]
        assert best.tolist() == np.argsort(-logits, kind="stable")[:4].tolist()


# ---- teachers that do not fit

def test_teachers_that_do_not_fit():
    objective, _ = a_twin()
    c, corpus, tokenizer = objective.config, objective.corpus, objective.tokenizer

    def refused(match, heads=None, phase="general", **changes):
        teacher = bert.Model(replace(objective.teacher.config, **changes), Init(0, 0.1), heads)
        with pytest.raises(tbf.Error, match=match):
            settled = replace(c, phase=phase, augmented=2 if heads else 0)
            tinybert.Objective(settled, corpus, tokenizer, teacher=teacher)

    refused("states are 32 wide.*use --teacher-width 32", width=32)
    refused("student of 2 cannot follow a teacher of 3", layers=3)
    refused("knows 50 word pieces", vocab=50)
    refused("no mlm head to find other words with.*--augmented 0", heads=("pooler",),
            phase="intermediate")
    two = bert.Model(replace(objective.teacher.config, heads=2), Init(0, 0.1))
    with pytest.raises(tbf.Error, match="heads is 2, but the student's is 4.*head by head"):
        tinybert.Objective(c, corpus, tokenizer, teacher=two)
    with pytest.raises(tbf.Error, match="--teacher FOLDER"):
        tinybert.Objective(c, corpus, tokenizer)


def test_the_teacher_that_is_trained_where_none_is_given():
    for size, layers in dict(base=12, six=12, smoke=2).items():
        c = tinybert.SIZES[size]
        name, teacher = tinybert.Objective.teacher_of(c)
        assert (name, teacher.layers, teacher.width) == ("bert", layers, c.teacher_width)
        assert teacher.masked == 0.15 and teacher.heads == c.heads
    assert teacher.steps == c.teacher_steps
    assert tinybert.Objective.teacher_of(tinybert.SIZES["base"])[1] == bert.SIZES["base"]
