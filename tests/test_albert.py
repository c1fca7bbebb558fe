"""What models/albert.py promises beyond transformers' numbers: the published sizes, one layer that
does the work of many and gets all their gradients, and plain words for what it cannot do."""
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family import checkpoint
from tinybert_family.engine.nn import Init, replica
from tinybert_family.engine.optim import Arena
from tinybert_family.models import albert
from tinybert_family.models.albert import SIZES, Config, Model

TINY = Config(vocab=50, layers=3, heads=2, width=16, hidden=24, embedding=6, positions=20, seq=20)
IDS = np.random.default_rng(0).integers(0, 50, (2, 7))
# AlbertModel, without pooler, ForPreTraining, ForMaskedLM
PUBLISHED = {"base": (11_683_584, 11_092_992, 11_813_810, 11_221_680),
             "large": (17_683_968, 16_634_368, 17_847_474, 16_795_824),
             "xlarge": (58_724_864, 54_528_512, 59_021_490, 54_821_040),
             "xxlarge": (222_595_584, 205_814_272, 223_158_450, 206_368_944)}


def count(c, heads=()):
    return sum(t.size for t in Model(c, Init(), heads).named().values())


def a_model(c=TINY, heads=None, seed=0):
    """Everything random, also gains and biases."""
    model, rng = Model(c, Init(seed, 0.5, np.float64), heads), np.random.default_rng(seed)
    for tensor in model.named().values():
        if tensor.ndim == 1:
            tensor.data += 0.3 * rng.standard_normal(tensor.shape)
    return model


def loss_of(model):
    """A number that depends on every output."""
    out = model(IDS, token_type_ids=IDS % 2)
    seeds = np.random.default_rng(1)
    outputs = out.prediction_logits, out.sop_logits
    return sum((y * seeds.standard_normal(y.shape)).sum() for y in outputs)


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size):
    c = SIZES[size]
    heads = ("pooler",), (), ("pooler", "mlm", "sop"), ("mlm",)
    assert tuple(count(c, has) for has in heads) == PUBLISHED[size]
    settings = dict(model_type="albert", num_hidden_layers=c.layers, hidden_size=c.width,
                    num_attention_heads=c.heads, intermediate_size=c.hidden)
    names = "AlbertModel", "AlbertForPreTraining", "AlbertForMaskedLM"
    counts = [tbf.count_parameters(dict(settings, architectures=[name])) for name in names]
    assert counts == [PUBLISHED[size][i] for i in (0, 2, 3)]


def test_heads_are_as_wide_as_published():
    assert [SIZES[s].width // SIZES[s].heads for s in PUBLISHED] == [64, 64, 128, 64]


def test_depth_is_free_and_groups_are_not():
    assert count(TINY) == count(replace(TINY, layers=48))
    one_layer = count(replace(TINY, groups=2)) - count(TINY)
    assert one_layer == 4 * (16 * 16 + 16) + 4 * 16 + 2 * 16 * 24 + 24 + 16
    assert count(replace(TINY, groups=3, inner=2)) - count(TINY) == 5 * one_layer
    # 12 separate layers of the base model would be 7.7 times as many parameters.
    apart = replace(SIZES["base"], groups=12)
    assert count(apart, ("pooler",)) == 89_650_176


def test_layers_run_group_after_group():
    model = a_model(replace(TINY, layers=5, groups=2, inner=2))
    where = {id(layer): (g, i) for g, group in enumerate(model.groups)
             for i, layer in enumerate(group.layers)}
    first, second = [(0, 0), (0, 1)], [(1, 0), (1, 1)]
    assert [where[id(layer)] for layer in model.layers] == 3 * first + 2 * second
    names = dict(model.named_parameters())
    theirs = "albert.encoder.albert_layer_groups.1.albert_layers.0.ffn.weight"
    assert np.shares_memory(names[theirs].data, model.layers[6].mlp.up.weight.data)
    assert len(names) == len(set(names))


def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_uses():
    """The same network with a copy of the layer for every use."""
    shared = a_model(TINY)
    apart = a_model(replace(TINY, groups=3))
    weights = shared.named()
    for name, tensor in apart.named().items():
        group = name.split(".")[1]
        one = name.replace(f"groups.{group}.", "groups.0.") if "groups" in name else name
        tensor.data[...] = weights[one].data
    losses = loss_of(shared), loss_of(apart)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-13)
    for loss in losses:
        loss.backward()
    total = {}
    for name, tensor in apart.named().items():
        group = name.split(".")[1]
        one = name.replace(f"groups.{group}.", "groups.0.") if "groups" in name else name
        total[one] = total.get(one, 0) + tensor.grad
    for name, tensor in weights.items():
        np.testing.assert_allclose(tensor.grad, total[name], rtol=0,
                                   atol=1e-11 * max(1, abs(total[name]).max()))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_the_slopes(recompute):
    """Finite differences along random directions; recomputed or kept."""
    model = a_model(replace(TINY, recompute=recompute))
    loss_of(model).backward()
    rng, h = np.random.default_rng(2), 1e-6
    for name, tensor in model.named().items():
        way, at = rng.standard_normal(tensor.shape), tensor.data.copy()
        ends = []
        for step in h, -h:
            tensor.data[...] = at + step * way
            ends.append(loss_of(model).item())
        tensor.data[...] = at
        slope = (ends[0] - ends[1]) / (2 * h)
        scale = np.linalg.norm(tensor.grad) + 1
        assert abs(slope - (tensor.grad * way).sum()) < 1e-5 * scale, name


def test_an_arena_and_a_replica_hold_a_shared_layer_once():
    model = a_model()
    arena = Arena(model.named().items())
    assert len(arena.data) == sum(t.size for t in model.named().values())
    twin = replica(model)
    assert twin.layers[0] is twin.layers[2] and twin.layers[0] is twin.groups[0].layers[0]
    assert twin.layers[0] is not model.layers[0]


def test_the_tables_are_narrow_and_so_is_the_norm():
    model = a_model()
    tables = model.embeddings
    assert [x.shape for x in (tables.word, tables.position, tables.type, tables.norm.weight,
                              tables.project.weight)] == [(50, 6), (20, 6), (2, 6), (6,), (16, 6)]
    assert model.mlm.transform.weight.shape == (6, 16) and model.mlm.word is tables.word
    packed = model.pack(IDS, None, None)
    x = tables.word.data[IDS] + tables.position.data[:7] + tables.type.data[0]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    x = x * tables.norm.weight.data + tables.norm.bias.data
    x = x @ tables.project.weight.data.T + tables.project.bias.data
    np.testing.assert_allclose(tables(packed).numpy(), x.reshape(14, 16), rtol=0, atol=1e-12)


def test_it_says_in_which_order_two_passages_stand():
    out = a_model()(IDS)
    pooled = out.pooler_output.numpy()
    head = out.model.sop.classifier
    expected = pooled @ head.weight.data.T + head.bias.data
    np.testing.assert_allclose(out.sop_logits.numpy(), expected, rtol=0, atol=1e-12)
    assert out.logits.shape == (2, 7, 50)
    with pytest.raises(tbf.Error, match="without the sop head"):
        a_model(heads=("mlm",))(IDS).sop_logits


def test_the_activation_is_the_config_files():
    """Version 1 of the published files says gelu, version 2 gelu_new; they differ by up to 5e-4."""
    first, second = (checkpoint.read_config(albert, dict(hidden_act=act), "config")
                     for act in ("gelu", "gelu_new"))
    assert (first.activation, second.activation) == ("gelu", "gelu_new")
    small = replace(TINY, activation="gelu")
    a, b = (a_model(c)(IDS).last_hidden_state.numpy() for c in (small, TINY))
    assert 1e-6 < abs(a - b).max() < 1e-1
    with pytest.raises(tbf.Error, match="hidden_act: 'swish', but this model knows gelu"):
        checkpoint.read_config(albert, dict(hidden_act="swish"), "config.json")


@pytest.mark.parametrize("switch, value", [("position_embedding_type", "relative_key"),
                                           ("tie_word_embeddings", False)])
def test_a_switch_that_would_change_the_numbers_is_refused_by_name(switch, value):
    with pytest.raises(tbf.Error, match=f"config.json: {switch} is {value!r}; only"):
        checkpoint.read_config(albert, {switch: value}, "config.json")


@pytest.mark.parametrize("name", ["embedding", "groups", "inner"])
def test_a_size_of_nothing_is_told(name):
    with pytest.raises(tbf.Error, match=f"{name}: 0, but it must be at least 1"):
        replace(TINY, **{name: 0})


def test_a_deep_model_comes_back_from_its_folder(tmp_path):
    """More layers than tensors."""
    model = a_model(replace(TINY, layers=40), ())
    tbf.save(model, tmp_path)
    again = tbf.load(tmp_path, dtype=np.float64)
    assert len(again.layers) == 40 and again.layers[0] is again.layers[39]
    found, expected = (m(IDS).last_hidden_state.numpy() for m in (again, model))
    assert np.array_equal(found, expected)


def test_the_order_head_has_as_many_rows_as_labels():
    """As transformers builds it."""
    settings = dict(model_type="albert", num_labels=4, hidden_size=8, num_attention_heads=2,
                    intermediate_size=8, vocab_size=20, embedding_size=4, num_hidden_layers=1)
    two, four = (tbf.count_parameters(dict(settings, num_labels=n,
                                           architectures=["AlbertForPreTraining"])) for n in (2, 4))
    assert four == 2820 and four - two == 2 * 9
