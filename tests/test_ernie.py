"""What models/ernie.py and models/ernie2.py promise beyond transformers' numbers: their sizes, a
head for each of seven tasks with its gradient, a table of tasks that can be dropped, and plain
words for what they cannot do."""
import json
from dataclasses import replace
from math import factorial

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine.nn import Init
from tinybert_family.models import ernie, ernie2

TINY = dict(vocab=50, layers=2, heads=2, width=16, hidden=24, positions=20, seq=20)
TASKS = [name for name in ernie2.TASKS if name != "mlm"]


def count(module, c, heads):
    return sum(t.size for t in module.Model(c, Init(), heads).named().values())


def a_model(module=ernie2, heads=None, dtype=np.float64, **more):
    return module.Model(module.Config(**{**TINY, **more}), Init(0, 0.5, dtype), heads)


# ---- sizes

def test_parameter_counts_are_the_published_ones():
    pretraining = "pooler", "mlm", "nsp"
    c = ernie.SIZES["base"]
    assert count(ernie, c, ("pooler",)) == 99_866_112
    assert count(ernie, c, ()) == 99_275_520
    assert count(ernie, c, pretraining) == 100_477_778
    c = ernie2.SIZES["base"]
    assert count(ernie2, c, ("pooler",)) == 109_496_064
    c = replace(c, use_tasks=False)                         # as it was published
    assert count(ernie2, c, ("pooler",)) == 109_483_776
    assert count(ernie2, c, pretraining) == 110_107_964
    c = replace(ernie2.SIZES["large"], use_tasks=False)
    assert count(ernie2, c, ("pooler",)) == 335_143_936
    assert count(ernie2, c, pretraining) == 336_228_156
    c = replace(ernie2.SIZES["chinese"], use_tasks=False)
    assert count(ernie2, c, ("pooler",)) == 99_867_648


def test_a_config_json_alone_tells_the_count():
    settings = dict(model_type="ernie", vocab_size=18000, max_position_embeddings=513,
                    hidden_act="relu", layer_norm_eps=1e-5)
    assert tbf.count_parameters(settings) == 99_866_112
    more = dict(settings, architectures=["ErnieForPreTraining"])
    assert tbf.count_parameters(more) == 100_477_778
    tasks = dict(settings, use_task_id=True, task_type_vocab_size=16)
    assert tbf.count_parameters(tasks) == 99_866_112 + 16 * 768


# ---- the heads of the tasks

def test_every_task_has_its_head_and_its_classes():
    model = a_model(heads=("pooler", "mlm", *TASKS), pieces=3, connectives=7)
    ids = np.random.default_rng(0).integers(0, 50, (3, 9))
    out = model(ids)
    shapes = {task: getattr(out, f"{task}_logits").shape for task in TASKS}
    assert shapes == dict(capital=(3, 9, 2), recurs=(3, 9, 2), order=(3, 9), distance=(3, 3),
                          discourse=(3, 7), relevance=(3, 3))


@pytest.mark.parametrize("pieces, classes", [(1, 1), (2, 3), (3, 9), (4, 33)])
def test_a_paragraph_of_up_to_so_many_pieces_has_so_many_orders(pieces, classes):
    model = a_model(heads=("pooler", "order"), pieces=pieces)
    assert model.order.classifier.weight.shape == (classes, 16)
    assert classes == sum(factorial(n) for n in range(1, pieces + 1))


@pytest.mark.parametrize("task", [*TASKS, "dialogue"])
def test_the_gradient_of_every_task_is_the_slope(task):
    """Central differences along a random direction, in all parameters at once."""
    module = ernie if task == "dialogue" else ernie2
    heads = (task,) if task in ("capital", "recurs") else ("pooler", task)
    model = a_model(module, heads, use_tasks=True)
    rng = np.random.default_rng(1)
    ids, tasks = rng.integers(0, 50, (2, 7)), rng.integers(0, 3, (2, 7))
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3])
    seed = rng.standard_normal(getattr(model(ids, mask), f"{task}_logits").shape)

    def loss():
        y = getattr(model(ids, mask, task_type_ids=tasks), f"{task}_logits")
        return (y * seed).sum()

    loss().backward()
    tensors = model.named()
    steps = {name: rng.standard_normal(t.shape) for name, t in tensors.items()}
    slope = sum((t.grad * steps[name]).sum() for name, t in tensors.items())
    assert tensors["embeddings.task"].grad.any()
    values, kept = [], {name: t.data for name, t in tensors.items()}
    for h in 1e-6, -1e-6:
        for name, t in tensors.items():
            t.data = kept[name] + h * steps[name]
        values.append(loss().item())
    assert abs((values[0] - values[1]) / 2e-6 - slope) < 1e-6 * max(1, abs(slope))


def test_english_pretraining_has_the_heads_of_the_english_tasks():
    model = a_model()
    has = {name for name in model.HEADS if getattr(model, name) is not None}
    assert has == {"pooler", "mlm", "capital", "recurs", "order", "discourse"}
    assert set(ernie2.TASKS) == {*ernie2.ENGLISH, *ernie2.CHINESE}
    assert len(set(ernie2.TASKS.values())) == 7 and ernie2.TASKS["mlm"] == 0


def test_they_come_back_from_a_folder_each_by_its_own_name(tmp_path):
    model = a_model(heads=("pooler", "mlm", *TASKS), dtype=np.float32)
    tbf.save(model, tmp_path)
    again = tbf.load(tmp_path)
    ids = np.arange(18).reshape(2, 9)
    for task in TASKS:
        name = f"{task}_logits"
        assert np.array_equal(getattr(model(ids), name).numpy(), getattr(again(ids), name).numpy())


# ---- the table of tasks

def test_the_table_may_be_dropped_for_any_one_task():
    model = a_model(heads=("pooler",))
    ids = np.random.default_rng(2).integers(0, 50, (2, 8))
    types = np.random.default_rng(3).integers(0, 4, (2, 8))
    before = model(ids, token_type_ids=types, task_type_ids=np.full((2, 8), 5))
    after = ernie2.without_tasks(model, 5)(ids, token_type_ids=types)
    np.testing.assert_allclose(after.pooler_output.numpy(), before.pooler_output.numpy(), rtol=0,
                               atol=1e-13)
    assert not model.config.use_tasks and "embeddings.task" not in model.named()


def test_tasks_are_packed_with_their_tokens():
    """A task belongs to its token, whatever the mask leaves out and however rows are ordered."""
    model = a_model(heads=())
    rng = np.random.default_rng(4)
    ids, tasks = rng.integers(0, 50, (3, 9)), rng.integers(0, 16, (3, 9))
    mask = (np.arange(9) < np.array([[2], [9], [5]])).astype(int)
    with tbf.no_grad():
        out = model(ids, mask, task_type_ids=tasks).last_hidden_state.numpy()
        for row, n in enumerate([2, 9, 5]):
            alone = model(ids[row:row + 1, :n], task_type_ids=tasks[row:row + 1, :n])
            np.testing.assert_allclose(out[row, :n], alone.last_hidden_state.numpy()[0], rtol=0,
                                       atol=1e-12)


# ---- plain words

def test_tasks_that_cannot_be():
    with pytest.raises(tbf.Error, match="task_type_ids.*no table of tasks.*use_task_id"):
        a_model(ernie, ())([[1, 2]], task_type_ids=[[0, 0]])
    model = a_model(heads=())
    with pytest.raises(tbf.Error, match="task_type_ids: 16 at row 0 column 1.*number of tasks"):
        model([[1, 2]], task_type_ids=[[0, 16]])
    with pytest.raises(tbf.Error, match="task_type_ids: shape"):
        model([[1, 2]], task_type_ids=[[0, 1, 2]])
    with pytest.raises(tbf.Error, match="task_types: 0"):
        ernie.Config(task_types=0)
    with pytest.raises(tbf.Error, match="pieces: 9"):
        ernie2.Config(pieces=9)


def test_what_it_does_not_do_is_refused(tmp_path):
    tbf.save(a_model(ernie, ("pooler",), np.float32), tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(dict(settings, is_decoder=True)))
    with pytest.raises(tbf.Error, match="is_decoder is True; only False"):
        tbf.load(tmp_path)
    path.write_text(json.dumps(dict(settings, use_task_id="yes")))
    with pytest.raises(tbf.Error, match="use_task_id.*true or false"):
        tbf.load(tmp_path)
    path.write_text(json.dumps(dict(settings, use_task_id=True)))
    with pytest.raises(tbf.Error, match="lacks ernie.embeddings.task_type_embeddings.weight"):
        tbf.load(tmp_path)
