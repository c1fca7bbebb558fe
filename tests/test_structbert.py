"""What models/structbert.py promises: a sentence head of three rows that lies beside the file which
transformers reads, its gradient, and the published sizes."""
import json

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine import autograd, fused
from tinybert_family.engine.nn import Init
from tinybert_family.files import read_safetensors, write_safetensors
from tinybert_family.models import bert
from tinybert_family.models.structbert import SIZES, Config, Model

TINY = Config(vocab=50, layers=2, heads=2, width=16, hidden=24, positions=20, seq=20)
HEAD = {f"{part}.{last}" for part in ("bert.pooler.dense", "cls.seq_relationship")
        for last in ("weight", "bias")}


def a_model(heads=None, dtype=np.float32):
    return Model(TINY, Init(0, 0.5, dtype), heads)


def published(model):
    return {name: tensor.data for name, tensor in model.named_parameters()}


def count(c, heads):
    return sum(t.size for t in Model(c, Init(), heads).named().values())


def test_parameter_counts_are_the_published_ones():
    """The third row of the head is one more vector and one more number than BERT has."""
    heads = "pooler", "mlm", "nsp"
    c = SIZES["large"]
    assert count(c, ("pooler",)) == 335_141_888
    assert count(c, heads) == 336_226_108 + 1_025
    c = SIZES["large-chinese"]
    assert count(c, ("pooler",)) == 325_522_432
    assert count(c, heads) == 326_597_258 + 1_025


def test_three_classes_and_a_gradient_for_all_of_them():
    model, ids = a_model(dtype=np.float64), np.random.default_rng(0).integers(0, 50, (6, 9))
    out = model(ids)
    y = out.seq_relationship_logits
    assert y.shape == (6, 3)
    labels = np.array([0, 1, 2, 2, 1, 0])
    fused.cross_entropy(y, labels=labels, weights=np.full(6, 1 / 6)).backward()
    p = np.exp(y.numpy() - y.numpy().max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    expected = (p - np.eye(3)[labels]).T @ out.pooler_output.numpy() / 6
    np.testing.assert_allclose(model.nsp.classifier.weight.grad, expected, rtol=0, atol=1e-13)


def test_the_head_lies_beside_and_the_rest_is_berts(tmp_path):
    model = a_model()
    tbf.save(model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"] == ["BertForMaskedLM"]
    assert settings["tinybert_family"] == "structbert"
    assert set(read_safetensors(tmp_path / "heads.safetensors")) == HEAD
    rest = set(read_safetensors(tmp_path / "model.safetensors"))
    plain = bert.Model(TINY, Init(0, 0.5), ("mlm",))
    assert rest == {name for name, _ in plain.named_parameters()}
    again = tbf.load(tmp_path)
    assert type(again) is Model
    ids = np.arange(18).reshape(2, 9)
    assert np.array_equal(again(ids).seq_relationship_logits.numpy(),
                          model(ids).seq_relationship_logits.numpy())


def test_a_file_as_the_authors_have_it_is_read(tmp_path):
    """One file for all, three rows, gamma and beta; config.json says BertForPreTraining."""
    model = a_model()
    tbf.save(model, tmp_path)
    old = {}
    for name, x in published(model).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = x
    (tmp_path / "heads.safetensors").unlink()
    write_safetensors(tmp_path / "model.safetensors", old)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    del settings["tinybert_family"]
    path.write_text(json.dumps(dict(settings, architectures=["BertForPreTraining"])))
    again = tbf.load(tmp_path, model="structbert")
    mine = published(model)
    assert all(np.array_equal(x, mine[key]) for key, x in published(again).items())
    with pytest.raises(tbf.Error, match=r"seq_relationship.* shape \(3"):
        tbf.load(tmp_path)                                  # BERT's has two rows, and says so


def test_a_head_of_two_rows_is_refused_by_name_and_shape(tmp_path):
    tbf.save(bert.Model(TINY, Init(0, 0.5)), tmp_path)
    with pytest.raises(tbf.Error, match=r"cls.seq_relationship.weight has shape \(2, 16\)"):
        tbf.load(tmp_path, model="structbert")


def test_shuffled_words_are_a_matter_of_the_masked_word_head():
    """It gives a score for every word at every place, hidden or not."""
    model = a_model(dtype=np.float64)
    x = autograd.Tensor(np.random.default_rng(1).standard_normal((3, 16)))
    loss = model.mlm.loss(x, np.array([4, 9, 7]), np.full(3, 1 / 3))
    y = model.mlm(x).numpy()
    y = y - np.log(np.exp(y).sum(1, keepdims=True))
    assert abs(loss.item() + y[np.arange(3), [4, 9, 7]].mean()) < 1e-12
