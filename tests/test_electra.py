"""What models/electra.py promises beyond transformers' numbers: the published sizes of both
networks and of the two together, tables that serve both, and plain words for what it cannot do."""
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family import checkpoint
from tinybert_family.engine.nn import Init
from tinybert_family.models import electra
from tinybert_family.models.electra import SIZES, Config, Model, Pair, generator_of

TINY = Config(vocab=50, layers=2, heads=2, width=16, hidden=24, embedding=6, positions=20, seq=20,
              generator_size=0.5)
IDS = np.random.default_rng(0).integers(0, 50, (2, 9))
PLUS = replace(SIZES["small"], generator_size=1.0)      # the small one that was published
# ElectraModel, ForPreTraining; the generator's ElectraModel, ForMaskedLM; both on shared tables
PUBLISHED = [(SIZES["small"], 13_483_008, 13_549_057, 4_580_928, 4_620_026, 14_196_219),
             (PLUS, 13_483_008, 13_549_057, 13_483_008, 13_546_682, 23_122_875),
             (SIZES["base"], 108_891_648, 109_483_009, 33_511_168, 33_740_602, 119_386_427),
             (SIZES["large"], 334_092_288, 335_142_913, 50_999_552, 51_295_290, 354_655_291)]


def size(module):
    return sum(t.size for t in module.named().values())


def settings_of(c, name):
    return dict(model_type="electra", architectures=[name], embedding_size=c.embedding,
                hidden_size=c.width, num_hidden_layers=c.layers, num_attention_heads=c.heads,
                intermediate_size=c.hidden)


@pytest.mark.parametrize("c, bare, discriminator, small, generator, both", PUBLISHED,
                         ids=["small", "small++", "base", "large"])
def test_parameter_counts_are_the_published_ones(c, bare, discriminator, small, generator, both):
    counts = [tbf.count_parameters(settings_of(config, name)) for config, name in
              ((c, "ElectraModel"), (c, "ElectraForPreTraining"),
               (generator_of(c), "ElectraModel"), (generator_of(c), "ElectraForMaskedLM"))]
    assert counts == [bare, discriminator, small, generator]
    assert size(Model(c, Init())) == discriminator
    assert size(Model(generator_of(c), Init(), ("mlm",))) == generator
    assert size(Pair(c, Init())) == both


@pytest.mark.parametrize("name, width, heads", [("small", 64, 1), ("base", 256, 4),
                                                ("large", 256, 4)])
def test_generators_are_the_papers(name, width, heads):
    c, g = SIZES[name], generator_of(SIZES[name])
    assert (g.width, g.heads, g.hidden, g.layers) == (width, heads, 4 * width, c.layers)
    assert (g.embedding, g.vocab, g.positions) == (c.embedding, c.vocab, c.positions)


def test_a_generator_may_be_less_deep():
    assert generator_of(replace(SIZES["base"], generator_depth=0.5)).layers == 6


def test_a_generator_that_cannot_be_is_told():
    c = replace(SIZES["base"], generator_size=0.27)     # 207 wide, 3 heads
    assert generator_of(c).width == 207
    with pytest.raises(tbf.Error, match="generator: width: 200 is not divisible by 3 heads.*"
                                        "another --generator_size"):
        generator_of(replace(c, generator_size=200 / 768))
    with pytest.raises(tbf.Error, match="generator: layers: 0, but"):
        generator_of(replace(c, layers=1, generator_depth=0.1))
    with pytest.raises(tbf.Error, match="generator_size: 0, but it must be at least 0.001"):
        replace(c, generator_size=0)


def test_the_tables_serve_both_and_the_rest_is_each_ones_own():
    pair = Pair(TINY, Init(0, 0.5, np.float64))
    d, g = pair.discriminator, pair.generator
    for name in "word", "position", "type", "norm":
        assert getattr(d.embeddings, name) is getattr(g.embeddings, name)
    assert g.mlm.word is d.embeddings.word
    assert d.embeddings.project.weight.shape == (16, 6)
    assert g.embeddings.project.weight.shape == (8, 6)
    mine = {id(t) for t in d.named().values()}, {id(t) for t in g.named().values()}
    shared = {name for name, t in d.named().items() if id(t) in mine[0] & mine[1]}
    assert shared == {"embeddings.word", "embeddings.position", "embeddings.type",
                      "embeddings.norm.weight", "embeddings.norm.bias"}


def test_each_ones_loss_reaches_its_own_weights_and_the_tables():
    pair = Pair(TINY, Init(0, 0.5, np.float64))
    pair.discriminator(IDS).logits.sum().backward()
    reached = {name for name, t in pair.named().items() if t.grad is not None}
    assert reached == {name for name in pair.named() if name.startswith("discriminator")}
    before = pair.discriminator.embeddings.word.grad.copy()
    pair.generator(IDS).logits.sum().backward()
    assert all(t.grad is not None for t in pair.named().values())
    assert abs(pair.generator.embeddings.word.grad - before).max() > 1e-3


def test_the_discriminator_says_one_number_for_every_token():
    """Written out in NumPy; no norm stands between the two layers."""
    model = Model(replace(TINY, activation="relu"), Init(0, 0.5, np.float64))
    head, mask = model.rtd, np.array([[1] * 9, [1] * 4 + [0] * 5])
    head.dense.bias.data += 0.3
    head.classifier.bias.data += 0.2
    out = model(IDS, mask)
    x = out.last_hidden_state.numpy()
    y = np.maximum(x @ head.dense.weight.data.T + head.dense.bias.data, 0)
    expected = (y @ head.classifier.weight.data.T + head.classifier.bias.data)[:, :, 0] * mask
    assert out.logits.shape == (2, 9)
    np.testing.assert_allclose(out.logits.numpy(), expected, rtol=0, atol=1e-12)


def test_its_loss_is_the_surprise_at_every_label():
    model = Model(TINY, Init(0, 0.5, np.float64))
    x = tbf.Tensor(np.random.default_rng(1).standard_normal((6, 16)))
    labels = np.array([0, 1, 0, 0, 1, 1])
    z = model.rtd(x).numpy()
    chance = 1 / (1 + np.exp(-z))
    expected = -np.log(np.where(labels, chance, 1 - chance)).mean()
    found = model.rtd.loss(x, labels, np.full(6, 1 / 6))
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_the_generators_head_is_gelu_whatever_the_layers_have(name):
    """As the original code has it, and transformers."""
    model = Model(replace(TINY, activation=name), Init(0, 0.5, np.float64), ("mlm",))
    plain = Model(TINY, Init(0, 0.5, np.float64), ("mlm",))
    x = tbf.Tensor(np.random.default_rng(1).standard_normal((6, 16)))
    assert np.array_equal(model.mlm(x).numpy(), plain.mlm(x).numpy())


def test_there_is_a_projection_only_where_the_widths_differ():
    assert Model(replace(TINY, embedding=16), Init()).embeddings.project is None
    with_one, without = (Model(replace(TINY, embedding=e), Init()) for e in (6, 16))
    name = "electra.embeddings_project.weight"
    assert name in dict(with_one.named_parameters())
    assert name not in dict(without.named_parameters())


def test_a_file_that_lacks_a_projection_it_needs_is_told(tmp_path):
    from tinybert_family import files
    tbf.save(Model(TINY, Init(0)), tmp_path)
    arrays = dict(files.read_safetensors(tmp_path / "model.safetensors"))
    kept = {name: np.array(x) for name, x in arrays.items() if "project" not in name}
    files.write_safetensors(tmp_path / "model.safetensors", kept)
    with pytest.raises(tbf.Error, match="lacks electra.embeddings_project.bias"):
        tbf.load(tmp_path)


@pytest.mark.parametrize("switch, value", [
    ("summary_type", "mean"), ("summary_use_proj", False), ("summary_activation", "tanh"),
    ("summary_proj_to_labels", True), ("summary_first_dropout", 0.1), ("is_decoder", True),
    ("position_embedding_type", "relative_key"), ("tie_word_embeddings", False)])
def test_a_switch_that_would_change_the_numbers_is_refused_by_name(switch, value):
    with pytest.raises(tbf.Error, match=f"config.json: {switch} is {value!r}; only"):
        checkpoint.read_config(electra, {switch: value}, "config.json")


def test_a_generator_can_become_a_discriminator_and_the_other_way_round(tmp_path):
    """The encoder stays; the head is new, and a warning says so."""
    model = Model(TINY, Init(0, 0.5))
    tbf.save(model, tmp_path)
    with pytest.warns(UserWarning, match="no mlm head"):
        other = tbf.load(tmp_path, head="mlm")
    assert other.rtd is None and other(IDS).logits.shape == (2, 9, 50)
    assert np.array_equal(other(IDS).last_hidden_state.numpy(),
                          model(IDS).last_hidden_state.numpy())
