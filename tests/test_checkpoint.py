"""Published folders in and out: every spelling of the names, every damage told in one line, and
transformers' own numbers (stored; live in test_parity_bert.py)."""
import json
import math
import mmap
import os

import numpy as np
import pytest

import stored
import tinybert_family as tbf
from tinybert_family import files
from tinybert_family.engine.nn import Init
from tinybert_family.engine.optim import Arena
from tinybert_family.models.parts import padded
from tinybert_family.models.bert import Config, Layer, Model, Objective

WORD, TIED = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


def single():
    return {name: x.astype(np.float32) for name, x in stored.weights().items()}


def without(tensors, *parts):
    return {name: x for name, x in tensors.items() if not any(part in name for part in parts)}


def bare(tensors):
    """As BertModel's own file spells them."""
    return {name.removeprefix("bert."): x for name, x in tensors.items()
            if name.startswith("bert.")}


def write(folder, tensors=None, **settings):
    """A folder as others leave it. A setting None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: x for name, x in {**stored.CONFIG, **settings}.items() if x is not None}
    (folder / "config.json").write_text(json.dumps(settings))
    if tensors is not None:
        files.write_safetensors(folder / "model.safetensors", tensors)
    return folder


def parameters(model):
    return {name: p.data for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k])
                                        for k in a)


def refused(message, action, *args):
    with pytest.raises(tbf.Error, match=message) as caught:
        action(*args)
    assert "\n" not in str(caught.value)


# ---- transformers' numbers

@pytest.fixture(scope="module")
def kept():
    with np.load(stored.FILE) as file:
        return dict(file)


def relative(x, truth):
    return abs(x - truth).max() / max(abs(truth).max(), 1e-2)


@pytest.mark.parametrize("act", stored.ACTIVATIONS)
@pytest.mark.parametrize("dtype, bar", [(np.float64, 1e-10), (np.float32, 2e-5)])
def test_outputs_are_those_that_transformers_gave(kept, act, dtype, bar, tmp_path):
    model = tbf.load(write(tmp_path, stored.weights(), hidden_act=act), dtype=dtype)
    out = model(kept["input_ids"], kept["attention_mask"], kept["token_type_ids"])
    for name in stored.OUTPUTS:
        x, truth = getattr(out, name).numpy(), kept[f"{act}/{name}"]
        if truth.ndim == 3:
            # it also computes states of padding
            truth = truth * kept["attention_mask"][..., None]
        assert x.dtype == dtype and relative(x, truth) < bar, name


@pytest.mark.parametrize("act", stored.ACTIVATIONS)
@pytest.mark.parametrize("dtype, bar", [(np.float64, 1e-10), (np.float32, 1e-4)])
def test_the_loss_and_every_gradient_are_those_that_transformers_gave(kept, act, dtype, bar,
                                                                      tmp_path):
    """Through the packed path of training: labels picked out, the last layer only where it is
    asked for."""
    model = tbf.load(write(tmp_path, stored.weights(), hidden_act=act), dtype=dtype)
    packed = padded.pack(model.config, kept["input_ids"], kept["attention_mask"],
                         kept["token_type_ids"])
    labels = kept["labels"].reshape(-1)[packed.index]
    hidden = np.flatnonzero(labels != -100)
    asked = np.union1d(packed.firsts(), hidden)
    order = packed.index[packed.firsts()] // kept["labels"].shape[1]
    batch = dict(ids=packed.ids, types=packed.types, positions=packed.positions, cuts=packed.cuts,
                 asked=asked,
                 nsp_at=np.searchsorted(asked, packed.firsts()),
                 mlm_at=np.searchsorted(asked, hidden),
                 mlm_labels=labels[hidden], nsp_labels=kept["next_sentence_label"][order])
    objective = Objective.__new__(Objective)
    loss = sum(objective.loss(model, batch, objective.counts(batch)).values())
    assert relative(loss.item(), kept[f"{act}/loss"]) < bar
    if act != "gelu":
        return
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert {f"grad/{name}" for name in grads} == {name for name in kept if name.startswith("grad/")}
    for name, grad in grads.items():
        assert grad.dtype == dtype and relative(grad, kept[f"grad/{name}"]) < bar, name


# ---- there and back

@pytest.mark.parametrize("heads", [("pooler", "mlm", "nsp"), ("mlm",), ("pooler",),
                                   ("pooler", "nsp"), ()], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_saved_loads_equal_to_the_bit(heads, dtype, tmp_path):
    c = Config(vocab=30, layers=2, heads=3, width=12, hidden=7, positions=40, seq=40, types=3,
               eps=1e-5,
               activation="relu", dropout=0.25, attention_dropout=0.125)
    model = Model(c, Init(1, dtype=dtype), heads)
    tbf.save(model, tmp_path)
    again = tbf.load(tmp_path, dtype=dtype)
    assert same(parameters(model), parameters(again))
    kept = "vocab layers heads width hidden positions types eps activation dropout init"
    kept = kept.split() + ["attention_dropout"]
    assert all(getattr(c, name) == getattr(again.config, name) for name in kept)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert files.read_json(tmp_path / "config.json")["dtype"] == np.dtype(dtype).name


@pytest.mark.parametrize("heads", [("pooler", "mlm", "nsp"), ("mlm",), ("pooler",)], ids=str)
def test_named_parameters_have_the_names_of_the_file(heads, tmp_path):
    model = Model(Config(vocab=30, layers=1, heads=3, width=12, hidden=7), Init(1), heads)
    tbf.save(model, tmp_path)
    header = files.safetensors_header(tmp_path / "model.safetensors")
    expected = {name: shape for name, (_, shape) in header.items()}
    assert {name: p.shape for name, p in model.named_parameters()} == expected


def test_settings_that_are_not_ours_survive_and_ours_are_renewed(tmp_path):
    model = tbf.load(write(tmp_path / "a", single(), custom={"kept": [1, "ü"]},
                           architectures=["BertModel"], pad_token_id=3))
    tbf.save(model, tmp_path / "b")
    settings = files.read_json(tmp_path / "b" / "config.json")
    assert settings["custom"] == {"kept": [1, "ü"]} and settings["pad_token_id"] == 3
    assert settings["architectures"] == ["BertForPreTraining"] and settings["hidden_size"] == 12


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model = tbf.load(write(tmp_path / "a", single()))
    for folder in "b", "c":
        tbf.save(model, tmp_path / folder)
    for name in "config.json", "model.safetensors":
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize("spelling", [lambda x: x, bare], ids=["prefix", "bare"])
def test_saving_over_the_folder_it_was_loaded_from_works(spelling, tmp_path):
    """The weights are views of the very file that is replaced."""
    model = tbf.load(write(tmp_path, spelling(without(single(), "cls."))))
    before = {name: x.copy() for name, x in parameters(model).items()}
    for _ in range(2):
        tbf.save(model, tmp_path)
        assert same(parameters(model), before)
        assert same(parameters(tbf.load(tmp_path)), before)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    model = Model(Config(vocab=9, layers=1, heads=1, width=4, hidden=4), Init(0))
    refused("file.*folder", tbf.save, model, tmp_path / "file")
    refused("file.*folder", tbf.save, model, tmp_path / "file" / "below")


# ---- spellings

def test_a_file_of_a_bare_model_has_no_prefix(tmp_path):
    whole = tbf.load(write(tmp_path / "a", single()))
    alone = tbf.load(write(tmp_path / "b", bare(single())))
    assert alone.mlm is None and alone.nsp is None and alone.pooler is not None
    ids = [[1, 5, 30, 2]]
    assert np.array_equal(whole(ids).pooler_output.numpy(), alone(ids).pooler_output.numpy())


def test_old_names_are_understood(tmp_path):
    """LayerNorm.gamma and .beta, as in the first published files."""
    def old(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta")
    today = tbf.load(write(tmp_path / "a", single()))
    for spelled, folder in (single(), "b"), (bare(single()), "c"):
        renamed = {old(name): x for name, x in spelled.items()}
        assert any("gamma" in name for name in renamed)
        model = tbf.load(write(tmp_path / folder, renamed))
        expected = parameters(today)
        assert all(np.array_equal(x, expected[name if name in expected else "bert." + name])
                   for name, x in parameters(model).items())


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_what_old_files_hold_besides_is_no_harm(prefix, tmp_path):
    """The places 0, 1, 2, ... and the decoder, which is the word table again."""
    extra = {prefix + "embeddings.position_ids": np.arange(10)[None]}
    if prefix:
        extra |= {TIED: single()[WORD],
                  "cls.predictions.decoder.bias": single()["cls.predictions.bias"]}
    tensors = single() if prefix else bare(single())
    model = tbf.load(write(tmp_path / "b", {**tensors, **extra}))
    expected = tbf.load(write(tmp_path / "a", tensors))
    assert same(parameters(model), parameters(expected))


def test_a_decoder_of_its_own_is_refused(tmp_path):
    other = single()[WORD].copy()
    other[3, 4] += 1
    refused("decoder.weight differs from.*word_embeddings", tbf.load,
            write(tmp_path / "a", {**single(), TIED: other}))
    bias = {"cls.predictions.decoder.bias": single()["cls.predictions.bias"] + 1}
    refused("decoder.bias differs", tbf.load, write(tmp_path / "b", {**single(), **bias}))
    refused("decoder.weight differs", tbf.load,
            write(tmp_path / "c", {**single(), TIED: other[:-1]}))


HEADS = {"seq_relationship": ("pooler", "mlm"), "pooler seq_relationship": ("mlm",),
         "cls.": ("pooler",),
         "cls. pooler": (), "predictions": ("pooler", "nsp")}


@pytest.mark.parametrize("left_out", HEADS)
def test_the_model_has_the_heads_that_the_file_has(left_out, tmp_path):
    """Where architectures promises none."""
    model = tbf.load(write(tmp_path, without(single(), *left_out.split()),
                           architectures=["BertModel"]))
    assert tuple(h for h in ("pooler", "mlm", "nsp")
                 if getattr(model, h) is not None) == HEADS[left_out]
    assert model([[1, 2]]).last_hidden_state.shape == (1, 2, 12)


@pytest.mark.parametrize("left_out", HEADS)
def test_a_promised_head_that_the_file_lacks_is_new_and_a_warning_says_so(left_out, tmp_path):
    folder = write(tmp_path, without(single(), *left_out.split()),
                   architectures=["BertForPreTraining"])
    lacks = " and ".join(f"no {h}" for h in ("pooler", "mlm", "nsp") if h not in HEADS[left_out])
    with pytest.warns(UserWarning, match=f"holds {lacks} head; freshly initialised"):
        model, again = tbf.load(folder), tbf.load(folder)
    assert same(parameters(model), parameters(again))
    kept = without(single(), *left_out.split())
    for name, x in parameters(model).items():
        if name in kept:
            assert np.array_equal(x, kept[name]), name
        elif x.ndim == 2:
            assert 0.01 < x.std() < 0.03, name
    assert model([[1, 2]]).seq_relationship_logits.numpy().any()
    assert (model.nsp.pooler is model.pooler) and (model.mlm.word is model.embeddings.word)


@pytest.mark.parametrize("model, head", [("structbert", "nsp"), ("ernie2", "order"),
                                         ("ernie", "dialogue")])
def test_a_head_that_stands_on_the_pooler_brings_it(model, head, tmp_path):
    from tinybert_family import checkpoint
    module = checkpoint.variant(model, "test")
    tbf.save(module.Model(module.SIZES["smoke"], Init(0), ()), tmp_path)
    with pytest.warns(UserWarning, match=f"no pooler and no {head} head; freshly"):
        found = tbf.load(tmp_path, head=head)
    assert found.pooler is not None and getattr(found, head).pooler is found.pooler


def test_the_classifier_of_another_task_is_not_this_ones(tmp_path):
    """They have one name; config.json says whose it is, or else the caller."""
    more = {"classifier.weight": np.ones((2, 12), np.float32),
            "classifier.bias": np.ones(2, np.float32)}
    tensors = {**without(single(), "cls."), **more}
    folder = write(tmp_path / "a", tensors, architectures=["BertForSequenceClassification"])
    with pytest.warns(UserWarning, match="no token head; freshly initialised"):
        model = tbf.load(folder, head="token")
    assert not model.token.classifier.bias.data.any() and model.token.classifier.weight.data.std()
    assert np.array_equal(tbf.load(folder, head="sequence").sequence.classifier.bias.data, [1, 1])
    unsaid = tbf.load(write(tmp_path / "b", tensors), head="token")
    assert np.array_equal(unsaid.token.classifier.bias.data, [1, 1])


def test_a_question_has_two_scores_whatever_the_labels(tmp_path):
    """transformers reads their number from the labels."""
    folder = write(tmp_path / "a", single(), num_labels=5)
    with pytest.warns(UserWarning, match="no question head"):
        model = tbf.load(folder, head="question")
    tbf.save(model, tmp_path / "b")
    settings = files.read_json(tmp_path / "b" / "config.json")
    assert settings["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert settings["label2id"] == {"LABEL_0": 0, "LABEL_1": 1}
    assert tbf.load(tmp_path / "b")([[1, 2, 3]]).end_logits.shape == (1, 3)


def test_candidates_must_come_in_three_axes(tmp_path):
    folder = write(tmp_path, single(), architectures=["BertForPreTraining"])
    with pytest.warns(UserWarning):
        model = tbf.load(folder, head="choice")
    assert model(np.ones((2, 3, 4), int)).logits.shape == (2, 3)
    for bad in [[1, 2]], [[[1, 2], [3]]], np.ones((2, 0, 4), int), 5:
        refused("input_ids: ", model, bad)
    refused("attention_mask: the candidates have different lengths", model, [[[1, 2]]], [[[1], []]])


@pytest.mark.parametrize("head, shape", [("sequence", (2, 5)), ("token", (2, 3, 5)),
                                         ("question", (2, 3, 2)), ("choice", (1, 2))])
def test_a_head_for_a_task_stands_on_what_was_pretrained(head, shape, tmp_path):
    folder = write(tmp_path, single(), architectures=["BertForPreTraining"])
    with pytest.warns(UserWarning, match=f"no {head} head; freshly initialised"):
        model = tbf.load(folder, head=head, labels=5)
    ids = np.array([[1, 5, 30], [2, 7, 2]])
    out = model(ids[None] if head == "choice" else ids)
    if head == "question":
        assert out.start_logits.shape == out.end_logits.shape == (2, 3)
    else:
        assert out.logits.shape == shape
    assert model.mlm is None and (model.pooler is None) == (head in ("token", "question"))
    tbf.save(model, tmp_path / "b")
    again = tbf.load(tmp_path / "b")
    assert same(parameters(model), parameters(again))
    assert again.config.labels == (2 if head == "question" else 5)
    refused("head: 'sentence', but this model knows pooler, mlm", tbf.load, folder, np.float32,
            "sentence")


def test_a_folder_may_be_read_as_another_member_of_the_family(tmp_path):
    """Published StructBERTs say bert, and their sentence head has three rows."""
    from tinybert_family.models import structbert
    three = {name: np.concatenate([x, x[:1]]) if "seq_relationship" in name else x
             for name, x in single().items()}
    folder = write(tmp_path / "a", three)
    refused(r"cls.seq_relationship.weight has shape \(3, 12\), but config.json makes it \(2, 12\)",
            tbf.load, folder)
    model = tbf.load(folder, model="structbert")
    assert type(model) is structbert.Model
    assert model([[1, 2]]).seq_relationship_logits.shape == (1, 3)
    tbf.save(model, tmp_path / "b")
    assert type(tbf.load(tmp_path / "b")) is structbert.Model
    with pytest.raises(tbf.Error, match="model: 'sbert' is no model of this family; these are: b"):
        tbf.load(folder, model="sbert")


def test_a_signature_that_is_no_model_is_refused(tmp_path):
    refused("config.json: tinybert_family: 'os' is no model", tbf.load,
            write(tmp_path / "a", single(), tinybert_family="os"))
    refused("config.json: tinybert_family: 5 is no model", tbf.load,
            write(tmp_path / "b", single(), tinybert_family=5))


def test_a_classifier_of_unknown_purpose_is_refused(tmp_path):
    more = {"classifier.weight": np.zeros((2, 12), np.float32),
            "classifier.bias": np.zeros(2, np.float32)}
    refused("holds classifier.bias, but config.json does not say what for.*BertForTokenClass",
            tbf.load, write(tmp_path, {**without(single(), "cls."), **more}))


def test_heads_without_a_place_in_transformers_have_a_file_of_their_own(tmp_path):
    """A pooler beside masked words alone: no class has both."""
    c = Config(vocab=30, layers=1, heads=3, width=12, hidden=7)
    model = Model(c, Init(1), ("pooler", "mlm"))
    tbf.save(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "heads.safetensors", "model.safetensors"]
    header = files.safetensors_header(tmp_path / "heads.safetensors")
    assert sorted(header) == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert files.read_json(tmp_path / "config.json")["architectures"] == ["BertForMaskedLM"]
    assert same(parameters(model), parameters(tbf.load(tmp_path)))
    tbf.save(Model(c, Init(1), ("mlm",)), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


NARROW = dict(F16=lambda x: x.astype(np.float16), F32=lambda x: x,
              F64=lambda x: x.astype(np.float64),
              BF16=lambda x: (x.view(np.uint32) >> 16).astype(np.uint16))


def widened(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def write_by_hand(path, tensors, dtype):
    """safetensors bytes without our writer, which knows no bfloat16."""
    header, place = {}, 0
    for name, x in tensors.items():
        header[name] = dict(dtype=dtype, shape=x.shape, data_offsets=[place, place + x.nbytes])
        place += x.nbytes
    text = json.dumps(header).encode()
    parts = [len(text).to_bytes(8, "little"), text, *(x.tobytes() for x in tensors.values())]
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("wanted", [np.float32, np.float64])
def test_every_precision_loads_as_the_one_that_is_wanted(dtype, wanted, tmp_path):
    tensors = {name: NARROW[dtype](x) for name, x in single().items()}
    write_by_hand(write(tmp_path) / "model.safetensors", tensors, dtype)
    # A bfloat16 is the upper half of a float32; the others NumPy widens itself.
    wide = widened if dtype == "BF16" else np.asarray
    expected = {name: wide(x).astype(wanted) for name, x in tensors.items()}
    model = tbf.load(tmp_path, dtype=wanted)
    assert same(parameters(model), expected)
    assert model([[1, 2]]).logits.numpy().dtype == wanted


def base_of(x):
    while isinstance(x, np.ndarray) and x.base is not None:
        x = x.base
    return x.obj if isinstance(x, memoryview) else x


def test_loading_copies_only_what_must_be_joined(tmp_path):
    """float32 tensors are views of the mapped file, but for query, key and value, which are one
    matrix here."""
    model = tbf.load(write(tmp_path, single()))
    for name, tensor in model.named().items():
        joined = ".qkv." in name
        assert tensor.data.flags.owndata == joined == tensor.data.flags.writeable, name
        assert isinstance(base_of(tensor.data), mmap.mmap) != joined, name


def test_training_a_loaded_model_leaves_its_file_alone(tmp_path):
    path = write(tmp_path, single()) / "model.safetensors"
    before = path.read_bytes()
    model = tbf.load(tmp_path)
    arena = Arena(model.named().items())
    model([[1, 2, 3]]).logits.sum().backward()
    arena.data -= 0.1 * arena.grad
    assert path.read_bytes() == before
    assert not np.array_equal(model.embeddings.word.data, single()[WORD])


# ---- weights that do not fit

def test_a_missing_tensor_is_named(tmp_path):
    refused("lacks bert.encoder.layer.1.output.dense.bias", tbf.load,
            write(tmp_path / "a", without(single(), "layer.1.output.dense.bias")))
    refused("lacks .* and 12 more", tbf.load, write(tmp_path / "b", without(single(), "layer.0")))
    refused("lacks bert.embeddings|layers", tbf.load, write(tmp_path / "c", {}))
    refused("lacks bert.encoder.layer.2", tbf.load,
            write(tmp_path / "d", single(), num_hidden_layers=3))


def test_a_tensor_too_many_is_named(tmp_path):
    more = {"bert.encoder.layer.2.output.dense.bias": np.zeros(12, np.float32)}
    refused("also holds bert.encoder.layer.2", tbf.load,
            write(tmp_path / "a", {**single(), **more}))
    refused("also holds classifying.weight", tbf.load,
            write(tmp_path / "b", {**single(),
                                   "classifying.weight": np.zeros((2, 12), np.float32)}))
    refused("also holds bert.encoder.layer.1", tbf.load,
            write(tmp_path / "c", single(), num_hidden_layers=1))


def test_everything_that_does_not_fit_is_told_at_once(tmp_path):
    tensors = without(single(), "layer.1.output.dense.bias")
    tensors |= {"more": np.zeros(1, np.float32), WORD: single()[WORD][:-1],
                "cls.predictions.bias": single()["cls.predictions.bias"][:-1]}
    refused(r"lacks bert.encoder.layer.1.output.dense.bias; also holds more; "
            r"bert.*word_embeddings.weight has shape \(30, 12\), but config.json makes it "
            r"\(31, 12\); cls.predictions.bias has shape \(30,\).*belong to it",
            tbf.load, write(tmp_path, tensors))


@pytest.mark.parametrize("name", [WORD, "bert.encoder.layer.0.attention.self.key.weight",
                                  "cls.predictions.bias",
                                  "bert.encoder.layer.1.output.LayerNorm.bias"])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(name, tmp_path):
    x = single()[name]
    for i, other in enumerate((x[:-1], x[None], x.reshape(-1)[:0], np.float32(1).reshape(()))):
        refused(f"{name} has shape .*but config.json makes it .*{x.shape[0]}", tbf.load,
                write(tmp_path / str(i), {**single(), name: other}))


def test_one_parameter_under_two_names_is_refused(tmp_path):
    """Which of the two would it be?"""
    name = "bert.embeddings.LayerNorm.weight"
    twice = {**single(), name.replace("weight", "gamma"): single()[name] + 1}
    refused("LayerNorm.gamma|LayerNorm.weight", tbf.load, write(tmp_path, twice))


def test_a_hostile_name_does_not_break_the_line(tmp_path):
    refused("also holds", tbf.load,
            write(tmp_path, {**single(), "two\nlines\x1b[2J": np.zeros(1, np.float32)}))


def test_a_damaged_file_is_told(tmp_path):
    path = write(tmp_path, single()) / "model.safetensors"
    whole = path.read_bytes()
    for bad in b"", whole[:7], whole[:1000], whole[:-1], whole + b"x", b"\x80\x04" + whole[2:]:
        path.write_bytes(bad)
        refused("model.safetensors", tbf.load, tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    """The message says which file it is and what to do."""
    write(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch harm'\ntR.")
    refused("pytorch_model.bin is a pickle.*save_pretrained", tbf.load, tmp_path)


def test_an_incomplete_folder_is_told(tmp_path):
    refused("nowhere.*config.json", tbf.load, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("empty.*config.json", tbf.load, tmp_path / "empty")
    refused("model.safetensors", tbf.load, write(tmp_path / "a"))
    (write(tmp_path / "b", single()) / "config.json").write_text("[1, 2]")
    refused("config.json: holds no JSON object", tbf.load, tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text('{"model_type": "bert",')
    refused("config.json: not valid JSON", tbf.load, tmp_path / "b")
    (write(tmp_path / "c") / "model.safetensors").mkdir()
    refused("model.safetensors", tbf.load, tmp_path / "c")


# ---- settings that do not fit

@pytest.mark.parametrize("kind", ["gpt2", "roberta-from-mars", None, 5, "", ["bert"], {}], ids=str)
def test_another_model_type_is_refused_with_those_we_know(kind, tmp_path):
    refused("is no model of this family.*bert", tbf.load,
            write(tmp_path, single(), model_type=kind))


@pytest.mark.parametrize("name, value", [("is_decoder", True), ("add_cross_attention", True),
                                         ("position_embedding_type", "relative_key"),
                                         ("hidden_act", "silu")], ids=str)
def test_what_we_do_not_compute_is_refused(name, value, tmp_path):
    folder = write(tmp_path, single())
    settings = files.read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**settings, name: value}))
    refused(f"{name}.*", tbf.load, folder)


FIELDS = """vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size
    max_position_embeddings type_vocab_size layer_norm_eps hidden_act hidden_dropout_prob
    attention_probs_dropout_prob""".split()
JUNK = ("12", "", True, None, [], [12], {}, -1, 0, 1.5, 1e300, 2 ** 40, 100_000, math.nan, math.inf,
        10 ** 50)


@pytest.mark.parametrize("name", FIELDS)
def test_junk_in_a_setting_is_our_error_or_no_matter(name, tmp_path):
    """Both for a folder, and for a dict, which may hold numbers that JSON has no words for."""
    folder = write(tmp_path, single())
    for junk in JUNK:
        settings = {**stored.CONFIG, name: junk}
        (folder / "config.json").write_text(json.dumps(settings))
        for action in lambda: tbf.load(folder), lambda: tbf.count_parameters(settings):
            if name == "num_hidden_layers" and junk == 100_000:     # has a test of its own
                continue
            try:
                action()
            except tbf.Error as problem:
                assert "\n" not in str(problem)
            else:       # a number that fits; or shapes that only the weights could contradict
                assert isinstance(junk, (int, float)) and junk == junk and junk is not True


@pytest.mark.parametrize("value", [5, [], [5], [["BertModel"]], ["BertForSequences"],
                                   {"a": 1}], ids=str)
def test_junk_for_architectures_is_our_error(value):
    if value == []:
        expected = tbf.count_parameters(stored.CONFIG)
        assert tbf.count_parameters({**stored.CONFIG, "architectures": []}) == expected
    else:
        refused("architectures", tbf.count_parameters, {**stored.CONFIG, "architectures": value})


def test_numbers_too_large_for_any_array_are_our_error(tmp_path):
    huge = dict(vocab_size=2 ** 31 - 1, hidden_size=2 ** 31 - 1, num_attention_heads=1)
    refused("config.json|model.safetensors", tbf.load, write(tmp_path, single(), **huge))


def test_a_config_with_far_too_many_layers_is_refused_before_they_are_made(tmp_path, monkeypatch):
    """The file's header knows better: a small file must not cost much time or memory."""
    made = []

    class Counted(Layer):
        def __init__(self, c, init):
            made.append(self)
            super().__init__(c, init)
    monkeypatch.setattr(Model, "Layer", Counted)
    refused("layer", tbf.load, write(tmp_path, single(), num_hidden_layers=1000))
    assert len(made) < 100


def test_whole_numbers_may_be_written_with_a_point(tmp_path):
    model = tbf.load(write(tmp_path, single(), hidden_size=12.0, layer_norm_eps=1,
                           hidden_dropout_prob=0))
    assert (model.config.width, model.config.eps, model.config.dropout) == (12, 1.0, 0.0)
    assert type(model.config.width) is int


def test_what_config_json_leaves_out_has_the_published_default(tmp_path):
    model = tbf.load(write(tmp_path, single(), hidden_act=None, type_vocab_size=None,
                           pad_token_id=None))
    assert (model.config.activation, model.config.eps, model.config.types) == ("gelu", 1e-12, 2)


# ---- counting

def test_counting_takes_a_dict_a_path_or_a_folder(tmp_path):
    folder = write(tmp_path / "a", architectures=["BertForMaskedLM"])
    expected = sum(x.size for x in without(single(), "pooler", "seq_relationship").values())
    for form in folder, str(folder), folder / "config.json", str(folder / "config.json"):
        assert tbf.count_parameters(form) == expected
    settings = files.read_json(folder / "config.json")
    assert tbf.count_parameters(settings) == expected
    assert settings == files.read_json(folder / "config.json")          # not written to


def test_counting_says_what_is_wrong(tmp_path):
    refused("config: model_type 'gpt2'", tbf.count_parameters, dict(model_type="gpt2"))
    refused("config: vocab_size is 'many', but a number", tbf.count_parameters,
            dict(stored.CONFIG, vocab_size="many"))
    refused("config: vocab_size is True", tbf.count_parameters,
            dict(stored.CONFIG, vocab_size=True))
    refused("config: hidden_size: 13.*3 heads", tbf.count_parameters,
            dict(stored.CONFIG, hidden_size=13))
    refused("nothing.json", tbf.count_parameters, tmp_path / "nothing.json")
    refused("config.json: architectures 'T5Model'.*BertModel", tbf.count_parameters,
            write(tmp_path / "a", architectures=["T5Model"]))
