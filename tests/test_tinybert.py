"""What models/tinybert.py promises: the published sizes, which layer of the teacher each of its own
follows, a projection that published files may bring, a classifier that reads relu(pooled) where
config.json says so, and everything that the distillation is computed from."""
import json

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine import autograd
from tinybert_family.engine.nn import Init
from tinybert_family.files import read_safetensors, write_safetensors
from tinybert_family.models import bert
from tinybert_family.models.tinybert import SIZES, Config, Model, followed

SHAPE = dict(vocab=50, layers=2, heads=3, width=12, hidden=20, positions=20, seq=20)
TINY = Config(**SHAPE, teacher_width=16)


def a_model(heads=None, dtype=np.float64, **more):
    return Model(Config(**{**SHAPE, "teacher_width": 16, **more}), Init(0, 0.5, dtype), heads)


def count(c, heads):
    return sum(t.size for t in Model(c, Init(), heads).named().values())


def test_parameter_counts_are_the_published_ones():
    pretraining = "pooler", "mlm", "nsp"
    four, six = SIZES["base"], SIZES["six"]
    assert count(four, ("pooler",)) == 14_350_248
    assert count(four, pretraining) == 14_479_676
    assert count(four, (*pretraining, "fit")) == 14_479_676 + 240_384
    assert count(six, ("pooler",)) == 66_955_008
    assert count(six, pretraining) == 67_579_196
    assert count(SIZES["chinese"], ("pooler",)) == 11_419_320


# ---- which layer follows which

@pytest.mark.parametrize("student, teacher, follow, expected", [
    (4, 12, "uniform", [0, 3, 6, 9, 12]), (6, 12, "uniform", [0, 2, 4, 6, 8, 10, 12]),
    (3, 6, "uniform", [0, 2, 4, 6]), (4, 12, "top", [0, 9, 10, 11, 12]),
    (4, 12, "bottom", [0, 1, 2, 3, 4]), (3, 3, "uniform", [0, 1, 2, 3]),
    (4, 6, "top", [0, 3, 4, 5, 6]), (12, 12, "top", list(range(13)))])
def test_every_layer_follows_one_of_the_teachers(student, teacher, follow, expected):
    assert followed(student, teacher, follow) == expected


def test_layers_that_cannot_follow():
    with pytest.raises(tbf.Error, match="student of 4 cannot follow a teacher of 6.*multiple"):
        followed(4, 6)
    with pytest.raises(tbf.Error, match="student of 4 cannot follow a teacher of 3.*as many"):
        followed(4, 3, "bottom")
    with pytest.raises(tbf.Error, match="follow: 'middle', but these are known: uniform, top"):
        Config(follow="middle")


# ---- the projection

def test_one_projection_for_all_states_or_two():
    x = np.random.default_rng(1).standard_normal((5, 12))
    shared = a_model()
    w, b = shared.fit.hidden.weight.data, shared.fit.hidden.bias.data
    for state in range(3):
        np.testing.assert_allclose(shared.fit(autograd.Tensor(x), state).numpy(), x @ w.T + b,
                                   rtol=0, atol=1e-14)
    apart = a_model(fit_shared=False)
    own = apart.fit(autograd.Tensor(x), 0).numpy()
    np.testing.assert_allclose(own, x @ apart.fit.embedding.weight.data.T, rtol=0, atol=1e-14)
    later = [apart.fit(autograd.Tensor(x), state).numpy() for state in (1, 2)]
    assert np.array_equal(*later) and abs(later[0] - own).max() > 0.1


def losses(student, teacher, ids):
    """The three means of general distillation, from what the models give."""
    total, per = 0, []
    for model in student, teacher:
        states, packed = [], model.pack(ids, None, None)
        states.append(model.encode(packed, states=states))      # in front: what layers were given
        per.append((states, [layer.attention.scores(x, packed)
                             for layer, x in zip(model.layers, states)]))
    (mine, scores), (theirs, of_teacher) = per
    for m, g in enumerate(followed(len(student.layers), len(teacher.layers))):
        d = student.fit(mine[m], m) - theirs[g].numpy()
        total = total + (d * d).mean()
        if m:
            d = scores[m - 1] - of_teacher[g - 1].numpy()
            total = total + (d * d).mean()
    return total


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    """Equal weights, equal depth, and a projection that changes nothing: exactly 0."""
    student = a_model(("fit",), teacher_width=12)
    student.fit.hidden.weight.data = np.eye(12)
    teacher = bert.Model(bert.Config(**SHAPE), Init(0, 0.5, np.float64), ())
    ids = np.random.default_rng(2).integers(0, 50, (3, 8))
    assert losses(student, teacher, ids).item() == 0


def test_every_part_of_a_student_learns_from_a_deeper_and_wider_teacher():
    student = a_model(("fit",), fit_shared=False, teacher_width=15)
    shape = dict(SHAPE, layers=4, width=15)
    ids = np.random.default_rng(2).integers(0, 50, (3, 8))
    losses(student, bert.Model(bert.Config(**shape), Init(1, 0.5, np.float64), ()), ids).backward()
    assert all(t.grad.any() for t in student.named().values())
    five = bert.Model(bert.Config(**dict(shape, heads=5)), Init(1, 0.5, np.float64), ())
    with pytest.raises(ValueError, match="broadcast"):      # three heads are not five
        losses(student, five, ids)


# ---- the classifier

def test_the_classifier_reads_relu_where_config_json_says_so(tmp_path):
    ids = np.random.default_rng(3).integers(0, 50, (4, 8))
    for relu in False, True:
        model = a_model(("pooler", "sequence"), np.float32, classifier_relu=relu)
        tbf.save(model, tmp_path)
        again = tbf.load(tmp_path)
        assert again.config.classifier_relu is relu
        out = again(ids)
        pooled = out.pooler_output.numpy()
        pooled = np.maximum(pooled, 0) if relu else pooled
        head = again.sequence.classifier
        np.testing.assert_allclose(out.logits.numpy(), pooled @ head.weight.data.T, rtol=0,
                                   atol=1e-5)
        assert (pooled < 0).any() != relu


# ---- files

def a_published_folder(folder, fit=True):
    """As the authors' are: stray settings, no word of this family, a projection for training."""
    model = a_model(("pooler", "mlm", "nsp"), np.float32)
    tbf.save(model, folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for ours in "tinybert_family", "teacher_hidden_size", "fit_shared", "teacher_layers":
        del settings[ours]
    stray = dict(cell={}, emb_size=12, pre_trained="", structure=[])
    path.write_text(json.dumps({**settings, **stray}))
    kept = read_safetensors(folder / "model.safetensors")
    arrays = {name: np.array(x) for name, x in kept.items()}
    rng = np.random.default_rng(4)
    if fit:
        arrays["fit_dense.weight"] = rng.standard_normal((768, 12)).astype(np.float32)
        arrays["fit_dense.bias"] = rng.standard_normal(768).astype(np.float32)
    write_safetensors(folder / "model.safetensors", arrays)
    return model, arrays


@pytest.mark.parametrize("bare", [False, True])
def test_published_files_are_read_with_and_without_their_projection(bare, tmp_path):
    model, arrays = a_published_folder(tmp_path)
    if bare:
        arrays = {name.removeprefix("bert."): x for name, x in arrays.items() if "cls." not in name}
        write_safetensors(tmp_path / "model.safetensors", arrays)
        path = tmp_path / "config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(dict(settings, architectures=["BertModel"])))
    ids = np.arange(16).reshape(2, 8)
    truth = model(ids).pooler_output.numpy()
    plain = tbf.load(tmp_path)
    assert type(plain) is bert.Model and np.array_equal(plain(ids).pooler_output.numpy(), truth)
    wanted = tbf.load(tmp_path, model="tinybert")
    assert np.array_equal(wanted.fit.hidden.weight.data, arrays["fit_dense.weight"])
    assert np.array_equal(wanted(ids).pooler_output.numpy(), truth)
    ignored = tbf.load(tmp_path, model="tinybert", head="pooler")
    assert ignored.fit is None and np.array_equal(ignored(ids).pooler_output.numpy(), truth)


def test_the_projection_is_kept_beside_what_transformers_reads(tmp_path):
    model = a_model(dtype=np.float32, fit_shared=False)
    tbf.save(model, tmp_path)
    beside = set(read_safetensors(tmp_path / "heads.safetensors"))
    assert beside == {f"{name}.{last}" for name in ("fit_dense", "fit_dense_embedding")
                      for last in ("weight", "bias")}
    again = tbf.load(tmp_path)
    assert type(again) is Model and again.config == model.config
    assert np.array_equal(again.fit.embedding.weight.data, model.fit.embedding.weight.data)


def test_a_projection_of_another_width_is_told_by_name(tmp_path):
    a_published_folder(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(dict(settings, teacher_hidden_size=16)))
    with pytest.raises(tbf.Error, match=r"fit_dense.* has shape \(768"):
        tbf.load(tmp_path, model="tinybert")
