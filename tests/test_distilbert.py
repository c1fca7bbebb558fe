"""What models/distilbert.py promises beyond transformers' numbers: the published sizes, its own
heads and their dropout, and plain words for what it cannot do."""
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family import checkpoint
from tinybert_family.engine import philox
from tinybert_family.engine.nn import Init
from tinybert_family.models import bert, distilbert
from tinybert_family.models.distilbert import SIZES, Config, Model

TINY = Config(vocab=50, layers=2, heads=2, width=16, hidden=24, positions=20, seq=20)
IDS = np.array([[5, 6, 7, 8], [9, 10, 11, 12]])
# DistilBertModel, ForMaskedLM
PUBLISHED = {"base": (66_362_880, 66_985_530), "base-cased": (65_190_912, 65_812_036),
             "multilingual": (134_734_080, 135_445_755)}


def count(c, heads=()):
    return sum(t.size for t in Model(c, Init(), heads).named().values())


def a_model(heads, c=TINY):
    return Model(c, Init(0, 0.5, np.float64), heads)


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size):
    c = SIZES[size]
    assert (count(c), count(c, ("mlm",))) == PUBLISHED[size]
    settings = dict(model_type="distilbert", vocab_size=c.vocab)
    names = "DistilBertModel", "DistilBertForMaskedLM"
    counts = [tbf.count_parameters(dict(settings, architectures=[name])) for name in names]
    assert tuple(counts) == PUBLISHED[size]


def test_it_is_two_fifths_smaller_than_its_teacher():
    teacher = bert.Model(bert.SIZES["base"], Init(), ("pooler",))
    whole = sum(t.size for t in teacher.named().values())
    assert round(count(SIZES["base"]) / whole, 3) == 0.606


def test_its_names_of_the_settings_are_read_and_written():
    settings = dict(n_layers=3, n_heads=4, dim=32, hidden_dim=40, dropout=0.2,
                    attention_dropout=0.3, activation="relu", seq_classif_dropout=0.4,
                    qa_dropout=0.5, sinusoidal_pos_embds=True, max_position_embeddings=20,
                    vocab_size=50)
    c = checkpoint.read_config(distilbert, settings, "config")
    assert (c.layers, c.heads, c.width, c.hidden, c.activation) == (3, 4, 32, 40, "relu")
    assert (c.dropout, c.attention_dropout, c.head_dropout, c.question_dropout) \
        == (0.2, 0.3, 0.4, 0.5)
    assert c.sinusoidal and c.types == 0
    written = checkpoint.settings_of(Model(c, Init(), ()))
    assert {name: written[name] for name in settings} == settings
    assert "layer_norm_eps" not in written and "type_vocab_size" not in written


def test_there_is_no_type_of_token_and_no_summary():
    model = a_model(("mlm",))
    assert {"type", "pooler"}.isdisjoint(vars(model.embeddings) | vars(model))
    assert np.array_equal(model(IDS, token_type_ids=IDS * 0).logits.numpy(),
                          model(IDS).logits.numpy())
    with pytest.raises(tbf.Error, match="token_type_ids: 1 at row 0 column 0"):
        model(IDS, token_type_ids=IDS ** 0)
    with pytest.raises(tbf.Error, match="without the pooler head"):
        model(IDS).pooler_output


@pytest.mark.parametrize("change, words", [
    (dict(eps=1e-5), "eps: 1e-05, but this model's is 1e-12"),
    (dict(types=2), "types: 2, but it must be at least 0 and at most 0"),
    (dict(question_dropout=1.0), "question_dropout: 1.0, but it must be")])
def test_what_its_files_cannot_say_is_refused(change, words):
    with pytest.raises(tbf.Error, match=words):
        replace(TINY, **change)


@pytest.mark.parametrize("switch", ["tie_word_embeddings", "tie_weights_"])
def test_a_decoder_of_its_own_is_refused_by_name(switch):
    with pytest.raises(tbf.Error, match=f"config.json: {switch} is False; only True"):
        checkpoint.read_config(distilbert, {switch: False}, "config.json")


def test_a_classifier_reads_the_first_token_through_a_relu():
    """Written out in NumPy."""
    model = a_model(("sequence",))
    head = model.sequence
    head.dense.bias.data += 0.5
    out = model(IDS)
    first = out.last_hidden_state.numpy()[:, 0]
    y = first @ head.dense.weight.data.T + head.dense.bias.data
    assert (y < 0).any()
    expected = np.maximum(y, 0) @ head.classifier.weight.data.T
    np.testing.assert_allclose(out.logits.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head, kept", [("sequence", 0.9), ("choice", 0.9), ("token", 0.7),
                                        ("question", 0.5)])
def test_every_head_has_the_dropout_that_its_class_has(head, kept):
    c = replace(TINY, width=64, dropout=0.3, attention_dropout=0.0, head_dropout=0.1,
                question_dropout=0.5)
    head = getattr(a_model((head,), c), head)
    if hasattr(head, "dense"):
        head.dense.weight.data[...] = np.eye(64)
    head.classifier.weight.data[...] = np.eye(64)[:len(head.classifier.weight.data)]
    x = tbf.Tensor(np.ones((4000, 64)))
    with philox.replay(philox.Key(1, 0)):
        y = head(x).numpy()
    assert abs((y != 0).mean() - kept) < 0.02
    np.testing.assert_allclose(y[y != 0], 1 / kept, rtol=0.01)
    np.testing.assert_allclose(head(x).numpy(), 1)


def test_positions_begin_as_sines_where_the_config_says_so():
    c = replace(TINY, sinusoidal=True)
    table = Model(c, Init(0), ()).embeddings.position.data
    angle = np.arange(20)[:, None] / 10_000 ** (np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(table[:, 0::2], np.sin(angle), rtol=0, atol=1e-6)
    np.testing.assert_allclose(table[:, 1::2], np.cos(angle), rtol=0, atol=1e-6)
    drawn = Model(TINY, Init(0), ()).embeddings.position.data
    assert abs(drawn).max() < 0.05
