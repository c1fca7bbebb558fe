"""What models/roberta.py promises beyond transformers' numbers: the published sizes, positions that
do not mind where the padding stands, and plain words for what it cannot do."""
import json

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family import checkpoint
from tinybert_family.engine.nn import Init
from tinybert_family.models import roberta
from tinybert_family.models.roberta import SIZES, Config, Model, counted

TINY = Config(vocab=50, layers=2, heads=2, width=16, hidden=24, positions=20, seq=20)
# RobertaModel, without pooler, ForMaskedLM
PUBLISHED = {"base": (124_645_632, 124_055_040, 124_697_433),
             "large": (355_359_744, 354_310_144, 355_412_057),
             "distil": (82_118_400, 81_527_808, 82_170_201)}


def count(c, heads):
    return sum(t.size for t in Model(c, Init(), heads).named().values())


def a_model(c=TINY, heads=("pooler", "mlm")):
    return Model(c, Init(0, 0.5, np.float64), heads)


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size):
    c = SIZES[size]
    assert tuple(count(c, heads) for heads in (("pooler",), (), ("mlm",))) == PUBLISHED[size]
    settings = dict(model_type="roberta", max_position_embeddings=514, type_vocab_size=1,
                    layer_norm_eps=1e-5, num_hidden_layers=c.layers, hidden_size=c.width,
                    num_attention_heads=c.heads, intermediate_size=c.hidden)
    names = ["RobertaModel"], ["RobertaForMaskedLM"]
    counts = [tbf.count_parameters(dict(settings, architectures=name)) for name in names]
    assert counts == [PUBLISHED[size][0], PUBLISHED[size][2]]
    read = checkpoint.read_config(roberta, settings, "config")
    assert (read.positions, read.eps, read.types, read.pad) == (512, 1e-5, 1, 1)


def test_positions_begin_after_the_pad_token_and_pads_are_not_counted():
    ids = np.array([[0, 31414, 232, 2, 1, 1], [1, 1, 0, 31414, 232, 2], [0, 7, 1, 8, 9, 2]])
    expected = [[2, 3, 4, 5, 1, 1], [1, 1, 2, 3, 4, 5], [2, 3, 1, 4, 5, 6]]
    assert counted(ids, pad=1).tolist() == expected
    assert counted(np.array([[0, 3, 0, 4]]), pad=0).tolist() == [[0, 1, 0, 2]]
    assert counted(np.zeros((2, 0), int), pad=1).shape == (2, 0)


def test_padding_may_stand_left_or_right():
    """A BERT sees other positions then; this one does not."""
    model = a_model()
    right = np.array([[0, 5, 6, 7, 2, 1, 1]])
    left = np.roll(right, 2)
    a, b = (model(ids, (ids != 1).astype(int)).last_hidden_state.numpy() for ids in (right, left))
    assert np.array_equal(a[:, :5], b[:, 2:])
    alone = model(right[:, :5]).last_hidden_state.numpy()
    np.testing.assert_allclose(a[:, :5], alone, rtol=0, atol=1e-13)


def test_it_is_the_token_that_counts_and_not_the_mask():
    """A token behind the mask is counted, a pad token in front of it is not."""
    model = a_model()
    ids = np.array([[0, 5, 6, 1, 8, 2]])
    hidden = model.pack(ids, [[1, 0, 1, 1, 1, 1]], None)
    assert hidden.ids.tolist() == [0, 6, 1, 8, 2] and hidden.positions.tolist() == [2, 4, 1, 5, 6]


def test_the_longest_sequence_fits_and_one_token_more_does_not():
    model = a_model()
    assert model.embeddings.position.shape == (22, 16)
    ids = np.full((1, 20), 5)
    assert model.pack(ids, None, None).positions.max() == 21
    assert np.isfinite(model(ids).last_hidden_state.numpy()).all()
    with pytest.raises(tbf.Error, match="21 tokens, but this model was built for 20 positions"):
        model(np.full((1, 21), 5))


def test_there_is_one_type_of_token():
    with pytest.raises(tbf.Error, match="token_type_ids: 1 at row 0 column 1"):
        a_model()([[5, 6]], token_type_ids=[[0, 1]])


@pytest.mark.parametrize("switch, value", [("is_decoder", True), ("add_cross_attention", True),
                                           ("position_embedding_type", "relative_key"),
                                           ("tie_word_embeddings", False)])
def test_a_switch_that_would_change_the_numbers_is_refused_by_name(switch, value):
    with pytest.raises(tbf.Error, match=f"config.json: {switch} is {value!r}; only"):
        checkpoint.read_config(roberta, {switch: value}, "config.json")


@pytest.mark.parametrize("settings, words", [
    (dict(pad_token_id=None), "pad_token_id is None, but a number"),
    (dict(pad_token_id="1"), "pad_token_id is '1', but a number"),
    (dict(max_position_embeddings="514"), "max_position_embeddings is '514', but a number"),
    (dict(max_position_embeddings=2), "max_position_embeddings: 0, but it must be at least 1"),
    (dict(pad_token_id=-1), "pad_token_id: -1, but it must be at least 0")])
def test_nonsense_in_config_json_is_told_in_one_line(settings, words):
    with pytest.raises(tbf.Error, match=words) as problem:
        checkpoint.read_config(roberta, settings, "config.json")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("family, kind", [("Roberta", "roberta"), ("XLMRoberta", "xlm-roberta")])
def test_what_was_loaded_is_saved_as_what_it_was(family, kind, tmp_path):
    model = a_model(heads=("mlm",))
    tbf.save(model, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["model_type"] == "roberta" and config["max_position_embeddings"] == 22
    config |= dict(model_type=kind, architectures=[f"{family}ForMaskedLM"])
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    again = tbf.load(tmp_path / "a")
    tbf.save(again, tmp_path / "b")
    saved = json.loads((tmp_path / "b" / "config.json").read_text())
    assert saved["model_type"] == kind and saved["architectures"] == [f"{family}ForMaskedLM"]
    with pytest.warns(UserWarning, match="no pooler and no choice head"):
        chooser = tbf.load(tmp_path / "a", head="choice")
    tbf.save(chooser, tmp_path / "c")
    saved = json.loads((tmp_path / "c" / "config.json").read_text())
    assert saved["model_type"] == kind and saved["architectures"] == [f"{family}ForMultipleChoice"]


def test_a_classifier_reads_the_first_token_through_its_own_layer():
    """Written out in NumPy."""
    model = a_model(heads=("sequence",))
    head = model.sequence
    for tensor in head.dense.bias, head.classifier.bias:
        tensor.data += 0.5
    out = model([[0, 5, 6, 2], [0, 7, 2, 1]], [[1, 1, 1, 1], [1, 1, 1, 0]])
    first = out.last_hidden_state.numpy()[:, 0]
    y = np.tanh(first @ head.dense.weight.data.T + head.dense.bias.data)
    expected = y @ head.classifier.weight.data.T + head.classifier.bias.data
    np.testing.assert_allclose(out.logits.numpy(), expected, rtol=0, atol=1e-12)


def test_dropout_of_the_classifier_is_before_both_of_its_layers():
    from dataclasses import replace

    from tinybert_family.engine import philox
    c = replace(TINY, dropout=0.0, attention_dropout=0.0, head_dropout=0.5)
    head = a_model(c, heads=("sequence",)).sequence
    x = tbf.Tensor(np.ones((4000, 16)))
    head.dense.weight.data[...] = np.eye(16)
    head.classifier.weight.data[...] = np.eye(16)[:2]
    with philox.replay(philox.Key(1, 0)):
        y = head(x).numpy()
    # A number arrives if it is kept twice, and then it is 2 * tanh(2 * 1).
    kept = y != 0
    assert abs(kept.mean() - 0.25) < 0.02
    np.testing.assert_allclose(y[kept], 2 * np.tanh(2))
