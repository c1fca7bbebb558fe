"""The papers' claims in miniature: the verdict, what is kept of runs, what is counted, and probes
that must find what is there and nothing where nothing is."""
import json
import sys
import xml.etree.ElementTree as xml
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from objectives import first_batches, language, prepared

from tinybert_family import Error, checkpoint, claims, feeding, measuring, probes, strips, trials
from tinybert_family.engine.autograd import no_grad
from tinybert_family.text.wordpiece import WordPiece

LITTLE = trials.Scale(steps=4, stories=40)
TOY = dict(corpus="toy")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TINYBERT_CACHE", str(tmp_path_factory.getbasetemp() / "claims-cache"))


# ---- the verdict

@pytest.mark.parametrize("model, control, better, by, expected", [
    ([3, 4, 5], [0, 1, 2], 1, 0, claims.HOLDS),
    ([0, 1, 2], [3, 4, 5], 1, 0, claims.NOT),
    ([0, 1, 4], [3, 4, 5], 1, 0, claims.UNDECIDED),
    ([3, 4, 5], [0, 1, 2], -1, 0, claims.NOT),              # a loss: the lower the better
    ([0, 1, 2], [3, 4, 5], -1, 0, claims.HOLDS),
    ([3, 4, 5], [0, 1, 2], 1, 1.5, claims.UNDECIDED),       # not by so much
    ([3, 4, 5], [0, 1, 2], 1, 6, claims.NOT),
    ([2.0, 2.1], [2.05, 2.1], 1, -0.2, claims.HOLDS),       # as good, within so much
    ([2.0, 2.1], [2.05, 2.1], 1, 0, claims.UNDECIDED),
    ([0.8, 0.9], [0.7], 1, 0, claims.HOLDS),                # a number in place of a control
    ([1, 1], [1, 1], 1, 0, claims.UNDECIDED)])
def test_a_claim_holds_where_the_worst_seed_beats_the_controls_best(model, control, better, by,
                                                                    expected):
    assert claims.verdict(model, control, better, by) == expected


def results(**arms):
    cost = dict(tokens=1e6, flops=2e9, seconds=3.0)
    return {name: [dict(cost, values=values) for values in seeds] for name, seeds in arms.items()}


def a_claim(**more):
    known = dict(name="c", says="it is so", figure="2 against 1", source="a paper", arm="MLM",
                 control="ELECTRA", measure="topic")
    return claims.Claim(**{**known, **more})


def test_a_row_says_all_that_was_found():
    found = results(MLM=[dict(topic=.5), dict(topic=.7)], ELECTRA=[dict(topic=.1), dict(topic=.2)])
    row = claims.judged(a_claim(), found)
    assert (row["verdict"], row["model"], row["beside"]) == ("holds", [.5, .7], [.1, .2])
    assert row["cost"]["MLM"] == dict(tokens=1e6, flops=2e9, seconds=3.0)
    text = "\n".join(claims.lines(row))
    for part in ("holds", "it is so", "2 against 1", "a paper", "60.0% +- 10.0% MLM",
                 "15.0% +- 5.0% ELECTRA", "topics told", "1.00 M tokens, 2 GFLOPs"):
        assert part in text
    assert json.loads(json.dumps(row)) == row
    head, line, cells = claims.table([row])
    assert head.count("|") == line.count("|") == cells.count("|") == 5
    for part in "it is so", "2 against 1 (a paper)", "MLM 60.0% +- 10.0%", "| holds |":
        assert part in cells


def test_scores_may_be_shares_of_a_teachers_and_claims_may_be_that_less_is_known():
    found = results(MLM=[dict(words=.4), dict(words=.3)], ELECTRA=[dict(words=.5), dict(words=.6)])
    row = claims.judged(a_claim(control=.6, measure="words", share_of="ELECTRA"), found)
    assert row["model"] == pytest.approx([.8, .5]) and row["verdict"] == "undecided"
    row = claims.judged(a_claim(control=.45, measure="words", turned=True), found)
    assert row["verdict"] == "holds" and row["better"] == "lower"


def test_a_claim_of_an_arm_that_failed_has_no_row():
    assert claims.judged(a_claim(), results(MLM=[dict(topic=.5)])) is None


# ---- the table

def test_every_arm_is_used_and_every_claim_is_of_arms_and_measures_that_exist():
    used = set()
    for claim in claims.CLAIMS:
        assert claim.arm in claims.ARMS and claim.figure and claim.source
        assert claim.control in claims.ARMS or isinstance(claim.control, float)
        better, form, told = claims.form_of(claim.measure)
        assert better in (1, -1) and told and format(0.5, form)
        used |= {claim.arm, claim.control, claim.share_of}
    teachers = {arm.teacher for arm in claims.ARMS.values()}
    likes = {arm.like for arm in claims.ARMS.values()}
    assert set(claims.ARMS) <= used | teachers | likes
    for name, arm in claims.ARMS.items():
        assert {arm.teacher, arm.like, arm.teaches} - {""} <= set(claims.ARMS)
        assert bool(arm.model) != bool(arm.teaches)
        if arm.teacher:
            assert claims.ARMS[arm.teacher].teaches


def test_all_claims_that_were_asked_for_have_a_name():
    wanted = "dynamic nsp sop sharing replaced distilbert tinybert mobilebert deberta unpadding " \
        "spans names knowledge continual wwm correction structure thirty windows"
    assert set(claims.NAMES) == set(wanted.split())


@pytest.mark.parametrize("name", list(claims.ARMS))
def test_every_arms_settings_are_settings_of_its_model(name):
    tokenizer = SimpleNamespace(size=300, pad=0)
    module, config = trials.config_of(claims.ARMS, name, LITTLE, tokenizer)
    assert (config.steps, config.vocab) == (4, 300) and config.tokens == 2048
    for key, value in claims.ARMS[name].changes.items():
        assert getattr(config, key) == value
    tasks = trials.objective_of(claims.ARMS[name], module).TASKS
    assert not set(claims.ARMS[name].without) & set(tasks)


def test_a_setting_that_a_model_does_not_have_is_an_error():
    arms = dict(a=trials.Arm("bert", dict(depth=3)))
    with pytest.raises(Error, match="depth"):
        trials.config_of(arms, "a", LITTLE, SimpleNamespace(size=300, pad=0))


def test_an_arm_is_asked_all_that_any_claim_asks_it_whichever_claim_is_chosen():
    few, every = claims.wanted(["replaced"]), claims.wanted(claims.NAMES)
    assert set(few) == {"ELECTRA", "ELECTRA 15 %", "Replace MLM", "MLM"}
    assert all(every[name] == measures for name, measures in few.items())
    assert set(claims.wanted(["nsp"])) == {"NSP", "tokens", "full sentences"}


# ---- work

def flops_by_hand(c, n, asked, labels):
    """24 H^2 a token and 4 H n for its keys, in the last layer but for keys and values only where
    it is asked; then the head for words. n: lengths of the sequences."""
    tokens, h = n.sum(), c.width
    whole = (c.layers - 1) * (24 * tokens * h ** 2 + 4 * h * (n ** 2).sum())
    last = 4 * tokens * h ** 2 + 20 * asked.sum() * h ** 2 + 4 * h * (n * asked).sum()
    return whole + last + 2 * labels * h * (h + c.vocab)


def counted(trainer, b):
    objective = trainer.objective

    def step():
        losses = objective.loss(trainer.learner, b, objective.counts(b))
        objective.total(losses).backward()
    return measuring.operations(measuring.products(step))


def asked_of(b):
    return np.histogram(b["asked"], b["cuts"])[0]


def test_the_flops_of_a_step_are_thrice_those_of_a_forward():
    trainer = prepared("bert", tokens=256)
    b, = first_batches(trainer)
    n = np.diff(b["cuts"])
    nsp = 2 * len(n) * (64 ** 2 + 2 * 64)               # pooler, and two classes
    c = trainer.objective.config
    hand = flops_by_hand(c, n, asked_of(b), len(b["mlm_labels"])) + nsp
    # sums over columns are products with ones, here and there
    assert 3 * hand <= counted(trainer, b) < 3.01 * hand


def test_a_teacher_adds_its_forward_once():
    trainer = prepared("distilbert", tokens=256)
    b, = first_batches(trainer)
    n, c = np.diff(b["cuts"]), trainer.objective.config
    teacher, tokens, h = trainer.objective.teacher.config, n.sum(), c.width
    layer = 24 * tokens * h ** 2 + 4 * h * (n ** 2).sum()       # every token is asked
    features = 2 * tokens * h ** 2
    answers, right = 2 * tokens * h * c.vocab, 2 * len(b["mlm_labels"]) * h * c.vocab
    theirs = teacher.layers * layer + features + answers
    mine = c.layers * layer + features + answers + right
    assert teacher.layers == 2 * c.layers
    assert theirs + 3 * mine <= counted(trainer, b) < 1.01 * (theirs + 3 * mine)


def test_a_generator_and_what_it_draws_are_counted():
    trainer = prepared("electra", tokens=256)
    b, = first_batches(trainer)
    pair, inputs = trainer.learner, trainer.objective.inputs(b)

    def forward(model, rows=None):
        with no_grad():
            return measuring.operations(measuring.products(lambda: model.encode(inputs, rows)))
    generator, discriminator = forward(pair.generator, b["asked"]), forward(pair.discriminator)
    g, d, k = pair.generator.config, pair.discriminator.config, len(b["asked"])
    head = 2 * k * d.embedding * (g.width + d.vocab)
    judge = 2 * len(b["ids"]) * d.width * (d.width + 1)
    # what is drawn is asked of the head a second time, and not learnt from
    hand = 3 * (generator + head + discriminator + judge) + head
    assert abs(counted(trainer, b) / hand - 1) < 0.01


def test_an_arm_like_another_takes_steps_for_the_same_flops():
    arms = dict(wide=trials.Arm("bert", FEW | dict(width=128, hidden=512), **TOY),
                thin=trials.Arm("bert", FEW, like="wide", **TOY))
    steps = trials.steps_for(arms, "thin", LITTLE)
    wide, each = trials.flops_of(arms, "wide", LITTLE)[0], trials.flops_of(arms, "thin", LITTLE)[0]
    assert steps > LITTLE.steps and abs(steps * each / LITTLE.steps / wide - 1) < 0.5 / steps + .01
    assert trials.steps_for(arms, "wide", LITTLE) is None


# ---- runs are kept

FEW = dict(tokens=256)
ARMS = {"student": trials.Arm("distilbert", FEW, teacher="teacher", **TOY),
        "teacher": trials.Arm(teaches="student", **TOY),
        "bert": trials.Arm("bert", FEW, without=("nsp",), **TOY)}


def ran(folder, wanted, seeds=1, scale=LITTLE):
    said = []
    return trials.run(ARMS, wanted, seeds, scale, folder, 1, said.append), said


def test_what_was_trained_is_not_trained_again(tmp_path, monkeypatch):
    wanted = dict(student=("loss",), bert=("loss",))
    first, said = ran(tmp_path, wanted)
    assert set(first) == {"student", "teacher", "bert"}         # the teacher comes of itself
    trained = [line.split(": ")[2] for line in said[1:]]
    assert trained == ["teacher, seed 0", "student, seed 0", "bert, seed 0"]
    run, = first["bert"]
    assert run["steps"] == 4 and 800 < run["tokens"] <= 1024 and run["flops"] > 1e8
    assert {"loss", "parameters", "held mlm_loss"} <= set(run["values"])
    assert "held nsp_loss" not in run["values"]
    trial, again = trials.trial, []
    monkeypatch.setattr(trials, "trial", lambda *a: again.append(a[1:3]) or trial(*a))
    assert ran(tmp_path, wanted)[0] == first and again == []
    ran(tmp_path, dict(bert=("loss",)), seeds=2)
    assert again == [("bert", 1)]                               # only what is new
    ran(tmp_path, dict(bert=("loss", "words")))
    assert again == [("bert", 1), ("bert", 0)]                  # asked for something else
    ran(tmp_path, dict(bert=("loss",)), scale=replace(LITTLE, steps=5))
    assert again[-1] == ("bert", 0) and len(again) == 3


def test_a_run_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    trial, again = trials.trial, []

    def interrupted(*given):
        if given[1] == "student":
            raise KeyboardInterrupt
        return trial(*given)
    monkeypatch.setattr(trials, "trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, dict(student=("loss",), bert=("loss",)))
    assert [name.split()[0] for name in json.loads((tmp_path / "results.json").read_text())] == [
        "teacher"]
    monkeypatch.setattr(trials, "trial", lambda *a: again.append(a[1]) or trial(*a))
    found, _ = ran(tmp_path, dict(student=("loss",), bert=("loss",)))
    assert again == ["student", "bert"] and set(found) == {"student", "teacher", "bert"}


def test_an_arm_that_cannot_be_trained_is_said_and_the_others_go_on(tmp_path, monkeypatch):
    trial = trials.trial

    def lacking(*given):
        if given[1] == "teacher":
            raise Error("no text")
        return trial(*given)
    monkeypatch.setattr(trials, "trial", lacking)
    found, said = ran(tmp_path, dict(student=(), bert=()))
    assert set(found) == {"bert"}
    assert any("teacher cannot be trained: no text" in line for line in said)


def test_the_same_seed_comes_to_the_same_numbers_in_a_process_of_its_own(tmp_path):
    one, two = ran(tmp_path / "a", dict(bert=("loss",)), seeds=2)[0]["bert"]
    assert one["values"] != two["values"] and one["flops"] > 1e8
    served = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n" \
        "import test_claims; test_claims.trials.serve(test_claims.ARMS)"
    found = trials.run(ARMS, dict(bert=("loss",)), 2, LITTLE, tmp_path / "b", 2, print,
                       [sys.executable, "-c", served])["bert"]
    for there, here in zip(found, (one, two)):
        assert {**there, "seconds": 0} == {**here, "seconds": 0}


def test_a_process_that_dies_is_told_and_the_others_go_on(tmp_path):
    said, dies = [], [sys.executable, "-c", "import sys; sys.exit('killed')"]
    found = trials.run(ARMS, dict(bert=("loss",)), 2, LITTLE, tmp_path, 2, said.append, dies)
    assert found == {} and any("status 1 (killed)" in line for line in said)


def test_what_there_is_to_know_beside_the_text_is_found_before_the_runs(tmp_path, monkeypatch):
    said, arms = [], dict(mac=trials.Arm("macbert", **TOY))
    monkeypatch.setattr(trials, "trial", lambda *a: said.append("trial") or dict(seconds=1))
    trials.run(arms, dict(mac=()), 1, LITTLE, tmp_path, 1, said.append)
    known = next(i for i, line in enumerate(said) if "to know beside the text" in line)
    assert 0 < known < said.index("trial")


# ---- regressions and probes

def test_regressions_find_what_is_there():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 10))
    y = (x[:, 3] - x[:, 5] > 0).astype(int)
    assert probes.accuracy(x, y, np.arange(600) < 400) > 0.95
    y = x[:, :4].argmax(1)                                      # of four classes
    assert probes.accuracy(x, y, np.arange(600) < 400) > 0.85
    y = rng.integers(0, 2, 600)
    assert abs(probes.accuracy(x, y, np.arange(600) < 400) - 0.5) < 0.1


def test_the_likeliest_weights_are_found():
    """At the end the slope is zero: the penalty pulls as hard as the errors push."""
    rng = np.random.default_rng(0)
    x = probes.standardized(rng.standard_normal((200, 5)), rng.standard_normal((200, 5)))
    y = (x[:, 0] + rng.standard_normal(200) > 0).astype(int)
    w = probes.logistic(x, y, 2.0)[:, 1]
    p = 1 / (1 + np.exp(-x @ w))
    np.testing.assert_allclose(x[:, :5].T @ (p - y) + 2.0 * w[:5], 0, atol=1e-8)
    w = probes.ridge(x, y, 2.0)
    slope = x[:, :5].T @ (x @ w - (np.eye(2)[y] - 0.5)) + 2.0 * w[:5]
    np.testing.assert_allclose(slope, 0, atol=1e-8)


class Knowing:
    """A model made by hand: states and answers are functions of what it is given."""
    config = SimpleNamespace(types=2, unlinked=0.0)

    def __init__(self, states=None, answers=None):
        self.states, self.answers = states, answers

    def __call__(self, ids, real, token_type_ids=None, **more):
        wrap = SimpleNamespace(numpy=lambda: 0)
        out = SimpleNamespace(last_hidden_state=wrap, prediction_logits=wrap)
        if self.states:
            found = self.states(ids, token_type_ids, **more)
            out.last_hidden_state = SimpleNamespace(numpy=lambda: found)
        if self.answers:
            words = self.answers(ids)
            out.prediction_logits = SimpleNamespace(numpy=lambda: np.eye(300)[words] * 9.0)
        return out


def subject(**model):
    corpus, tokenizer, _ = language(WordPiece.train)
    return probes.Subject(Knowing(**model), tokenizer, corpus)


def noise(ids, types):
    return np.random.default_rng(ids.sum()).standard_normal((*ids.shape, 8)).astype(np.float32)


def originals(some):
    """{what a passage begins with, less what is hidden: the whole}, as a look-up by length"""
    return [tuple(row) for row in probes.single(some).ids.tolist()]


def recall(some):
    """Who has learnt all passages by heart, and finds the one that fits best."""
    known = np.array(originals(some))

    def answers(ids):
        best = [(known[:, :len(row)] == row).sum(1).argmax() for row in ids]
        return known[best][:, :ids.shape[1]]
    return answers


def test_clozes_are_solved_by_who_knows_the_text_by_heart_and_by_nobody_else():
    blank = subject()
    knows = subject(answers=recall(blank))
    silent = subject(answers=lambda ids: 0 * ids)
    for name in "words", "spans", "pieces", "names":
        assert probes.MEASURES[name].of(knows) > 0.97, name
        assert probes.MEASURES[name].of(silent) == 0.0, name
    assert probes.loss(knows) < 0.3 < 5 < probes.loss(silent)


def test_what_is_hidden_is_hidden():
    some, seen = subject(), []
    some.model.answers = lambda ids: seen.append(ids.copy()) or 0 * ids
    p, mask = probes.single(some), some.tokenizer.mask
    probes.pieces(some)
    ids = np.concatenate(seen)
    where = ids == mask
    assert where.any(1).mean() > 0.5 and np.array_equal(ids[~where], p.ids[~where])
    for row, hidden, found in zip(p.ids, where, probes.units(some, p)):
        if hidden.any():                                # one whole word, of several pieces
            assert (hidden.argmax(), hidden.argmax() + hidden.sum()) in found
            assert hidden.sum() > 1
    seen.clear()
    probes.words_hidden(some)
    share = (np.concatenate(seen) == mask).sum() / (p.places >= 0).sum()
    assert abs(share - 0.15) < 0.02


def test_probes_find_labels_that_states_tell_and_none_in_noise():
    blank = subject()
    p = probes.single(blank)
    owner = {tuple(row): d for row, d in zip(p.ids.tolist(), p.document)}

    def tells(ids, types):
        number = np.array([owner[tuple(row)] for row in ids.tolist()])
        x = noise(ids, types)
        return x + 8 * np.eye(8)[number % 8][:, None].astype(np.float32)
    assert probes.topic(subject(states=tells), most=5) == 1.0
    assert probes.topic(subject(states=noise), most=5) < 0.6

    def order(ids, types):
        """The first word of A and of B, as far as [CLS] is told: enough for nothing here."""
        return noise(ids, types)
    assert 0.2 < probes.order(subject(states=order)) < 0.8


def test_a_pair_probe_sees_equally_many_of_both_and_tests_on_other_documents():
    some = subject()
    p = probes.pairs(some, probes.segments.next_sentence_pairs)
    assert p.labels.mean() == 0.5
    fit = probes.by_document(p)
    assert fit.any() and not set(p.document[fit]) & set(p.document[~fit])
    assert set(p.document) <= set(some.corpus.held)


def test_shuffled_words_are_seen_by_who_knows_the_text():
    blank = subject()
    known = set(originals(blank))

    def tells(ids, types):
        same = np.array([tuple(row) in known for row in ids.tolist()])
        return noise(ids, types) + 8 * same[:, None, None].astype(np.float32)
    assert probes.intact(subject(states=tells)) == 1.0
    assert 0.2 < probes.intact(subject(states=noise)) < 0.8


def test_replaced_words_are_restored_by_who_knows_the_text():
    blank = subject()

    class Similar:
        @staticmethod
        def replace(ids, unit, draws):
            return np.where(unit >= 0, 7, -1)           # the same word for every one
    knowledge = SimpleNamespace(similar=Similar)
    knows = subject(answers=recall(blank))._replace(knowledge=knowledge)
    assert probes.restored(knows) > 0.97
    assert probes.restored(knows._replace(model=Knowing(answers=lambda ids: ids))) == 0.0


@pytest.mark.parametrize("name, kind", [("open()", 2), ("io.StringIO", 1), ("os.path", 0),
                                        ("builtins.dict", 1), ("json", 0)])
def test_kinds_of_things(name, kind):
    assert probes.kind_of(name) == kind


# ---- the picture, and the data's speed

def test_the_picture_is_a_drawing_with_a_dot_for_every_seed():
    found = results(MLM=[dict(topic=.5), dict(topic=.7)], ELECTRA=[dict(topic=.1), dict(topic=.1)])
    rows = [claims.judged(a_claim(says="a < b & c"), found), claims.judged(a_claim(control=.6), found)]
    root = xml.fromstring(strips.svg(rows))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 2 + 4 + 3
    at = [[float(e.get("cx")) for e in circles if e.get("cy") == y and e.get("fill") != "#fff"]
          for y in sorted({e.get("cy") for e in circles}, key=float)]
    assert at[1] == sorted(at[1]) and len(at[1]) == 2
    assert "a < b & c" in "".join(root.itertext())


def test_a_lower_loss_stands_to_the_right():
    found = results(MLM=[dict(loss=4.0)], ELECTRA=[dict(loss=5.0)])
    root = xml.fromstring(strips.svg([claims.judged(a_claim(measure="loss"), found)]))
    dots = {e.get("fill"): float(e.get("cx")) for e in root.iter()
            if e.tag.endswith("circle") and list(e)}
    assert dots.pop("#fff") < next(iter(dots.values()))


@pytest.mark.parametrize("name", list(checkpoint.MODELS))
def test_the_data_of_every_objective_can_be_timed(name):
    text = trials.text_of("toy", replace(LITTLE, stories=60))
    objective = feeding.objective_of(name, text, "smoke")
    run, tokens = feeding.feeder(objective, most=4000)
    assert tokens == run() > 100
    assert feeding.goal(name) in (500_000, 1_500_000)
