"""Baidu's ERNIE, the same numbers as transformers: outputs, every parameter's gradient with and
without the table of tasks, files in both directions. peers.py tells how it is compared."""
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine.nn import Init
from tinybert_family.models import ernie, ernie2

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import peers  # noqa: E402
from peers import LIMIT, close, compare, random_inputs, run_theirs  # noqa: E402

TASKS = 5
SMALL = dict(peers.SMALL, hidden_act="relu", layer_norm_eps=1e-5)
TABLE = dict(use_task_id=True, task_type_vocab_size=TASKS)
CONFIGS = {
    "no table": dict(),
    "a table, four types": dict(TABLE, type_vocab_size=4),
    "gelu": dict(TABLE, hidden_act="gelu", layer_norm_eps=1e-12),
    "odd": dict(vocab_size=71, hidden_size=35, num_attention_heads=5, intermediate_size=37,
                num_hidden_layers=3),
}


@pytest.fixture(scope="module", autouse=True)
def candidates_keep_their_tasks():
    """transformers' ErnieForMultipleChoice lays the candidates of all its inputs side by side but
    those of task_type_ids, and then cannot add them up. Done here for it."""
    torch.set_num_threads(1)
    cls = transformers.ErnieForMultipleChoice
    forward = cls.forward

    def with_tasks(model, *args, task_type_ids=None, **more):
        if task_type_ids is not None:
            task_type_ids = task_type_ids.view(-1, task_type_ids.shape[-1])
        return forward(model, *args, task_type_ids=task_type_ids, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "forward", with_tasks)
        yield


def theirs(name, seed=0, **more):
    return peers.theirs(name, 0.5, seed, **{**SMALL, **more})


def inputs_for(model, shape=(2, 9), mask="right", seed=0, tasks=True):
    if "Choice" in type(model).__name__:
        shape = shape[0], 3, shape[1]
    inputs = random_inputs(model.config, shape, mask, True, seed)
    if tasks and model.config.use_task_id:
        inputs["task_type_ids"] = np.random.default_rng(seed + 1).integers(0, TASKS, shape)
    return inputs


@pytest.mark.parametrize("name", ernie.HF_CLASSES)
@pytest.mark.parametrize("table", [{}, TABLE], ids=["no table", "table"])
def test_outputs_and_every_gradient_are_those_of_transformers(name, table, tmp_path):
    model = theirs(name, **table)
    compare(model, inputs_for(model, (3, 9)), tmp_path)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_agrees(config, tmp_path):
    model = theirs("ErnieForPreTraining", **CONFIGS[config])
    compare(model, inputs_for(model, (3, 13)), tmp_path)


@pytest.mark.parametrize("mask", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("shape", [(3, 8), (1, 7), (1, 1), (2, LIMIT)], ids=str)
def test_every_shape_of_batch_agrees(shape, mask, tmp_path):
    model = theirs("ErnieModel", seed=1, **TABLE)
    compare(model, inputs_for(model, shape, mask), tmp_path)


def test_without_task_ids_it_is_task_0(tmp_path):
    model = theirs("ErnieModel", **TABLE)
    inputs = inputs_for(model, tasks=False)
    compare(model, inputs, tmp_path)
    out = tbf.load(tmp_path, dtype=np.float64)
    zeros = np.zeros_like(inputs["input_ids"])
    a, b, c = (out(**inputs, **more).last_hidden_state.numpy()
               for more in ({}, dict(task_type_ids=zeros), dict(task_type_ids=zeros + 1)))
    assert np.array_equal(a, b) and abs(a - c).max() > 0.01


# ---- files, in both directions

@pytest.mark.parametrize("name", ernie.HF_CLASSES)
def test_files_go_there_and_back_to_the_bit(name, tmp_path):
    model = theirs(name)
    peers.there_and_back(name, tmp_path, inputs_for(model), **SMALL)


def test_the_table_of_tasks_comes_back_too(tmp_path):
    model = theirs("ErnieForPreTraining", **TABLE)
    peers.there_and_back("ErnieForPreTraining", tmp_path, inputs_for(model), **SMALL, **TABLE)


@pytest.mark.parametrize("module", [ernie, ernie2], ids=["ernie", "ernie2"])
@pytest.mark.parametrize("name", ["ErnieModel", "ErnieForMaskedLM", "ErnieForPreTraining"])
def test_a_model_of_our_own_opens_in_transformers(module, name, tmp_path):
    c = module.Config(vocab=61, layers=2, heads=2, width=20, hidden=28, positions=30, seq=30,
                      eps=1e-3, task_types=TASKS, use_tasks=module is ernie2)
    mine = module.Model(c, Init(3, 0.5), ernie.HF_CLASSES[name])
    model = theirs(name, type_vocab_size=c.types, vocab_size=61, use_task_id=c.use_tasks)
    again = peers.opens_in_transformers(mine, name, tmp_path, inputs_for(model))
    assert (again.config.use_task_id, again.config.type_vocab_size) == (c.use_tasks, c.types)
    assert type(tbf.load(tmp_path)) is module.Model


def test_the_heads_of_seven_tasks_lie_beside_and_the_rest_opens_in_transformers(tmp_path):
    c = replace(ernie2.SIZES["smoke"], vocab=61, positions=LIMIT, seq=LIMIT)
    everything = [name for name in ernie2.Model.HEADS if name not in ("choice", "token",
                                                                      "sequence", "question")]
    mine = ernie2.Model(c, Init(0, 0.5), everything)
    model = theirs("ErnieForPreTraining", type_vocab_size=4, **TABLE)
    peers.opens_in_transformers(mine, "ErnieForPreTraining", tmp_path, inputs_for(model))
    again = tbf.load(tmp_path)
    assert {name for name in again.HEADS if getattr(again, name) is not None} == set(everything)


def test_a_model_without_its_table_of_tasks_is_the_one_that_transformers_knows(tmp_path):
    """As the published English models are: use_task_id false, and no table in the file."""
    c = replace(ernie2.SIZES["smoke"], vocab=61, positions=LIMIT, seq=LIMIT)
    mine = ernie2.Model(c, Init(0, 0.5, np.float64), ("pooler", "mlm", "nsp"))
    model = theirs("ErnieForPreTraining", type_vocab_size=4, **TABLE)
    inputs = inputs_for(model, tasks=False)
    tasks = np.full_like(inputs["input_ids"], 3)
    before = mine(**inputs, task_type_ids=tasks)
    tbf.save(ernie2.without_tasks(mine, 3), tmp_path)
    again = peers.loads_without_a_word(transformers.ErnieForPreTraining, tmp_path,
                                       dtype=torch.float64)
    assert not again.config.use_task_id and again.config.type_vocab_size == 4
    truth = peers.comparable(run_theirs(again.eval(), inputs)[0], inputs)
    found = peers.comparable({name: getattr(before, name).numpy() for name in truth}, inputs)
    close(found, truth, 1e-12)


@pytest.mark.parametrize("prefix", ["ernie.", "bert.", ""])
@pytest.mark.parametrize("spelling", [("weight", "bias"), ("gamma", "beta")], ids="-".join)
def test_old_spellings_of_the_names_are_read(prefix, spelling, tmp_path):
    """A conversion may say bert. where config.json says ernie, or nothing, or gamma and beta."""
    from tinybert_family.files import read_safetensors, write_safetensors
    model = theirs("ErnieModel" if not prefix else "ErnieForMaskedLM")
    model.save_pretrained(tmp_path)
    path, inputs = tmp_path / "model.safetensors", inputs_for(model)
    renamed = {}
    for name, x in read_safetensors(path).items():
        if prefix and name.startswith("ernie."):
            name = prefix + name.removeprefix("ernie.")
        for today, old in zip(("weight", "bias"), spelling):
            name = name.replace(f"LayerNorm.{today}", f"LayerNorm.{old}")
        renamed[name] = np.array(x)
    write_safetensors(path, renamed)
    mine = tbf.load(tmp_path, dtype=np.float64)
    truth = peers.comparable(run_theirs(model, inputs)[0], inputs)
    out = mine(**inputs)
    close(peers.comparable({name: getattr(out, name).numpy() for name in truth}, inputs), truth)


def test_counts_are_those_of_transformers_without_memory():
    for name in ernie.HF_CLASSES:
        for table in {}, TABLE:
            config = transformers.ErnieConfig(vocab_size=777, hidden_size=36,
                                              num_attention_heads=3, intermediate_size=55,
                                              num_hidden_layers=5, architectures=[name], **table)
            with torch.device("meta"):
                model = getattr(transformers, name)(config)
            truth = sum(p.numel() for p in model.parameters())
            assert tbf.count_parameters(config.to_dict()) == truth


@pytest.mark.parametrize("module", [ernie, ernie2], ids=["ernie", "ernie2"])
def test_the_default_config_of_transformers_is_ours(module):
    peers.defaults_agree(module, transformers.ErnieConfig)
