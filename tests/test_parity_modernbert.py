"""ModernBERT beside transformers: outputs and every gradient, files in both directions, and
config.json in its old and its new spelling."""
import json

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.checkpoint import read_config
from tinybert_family.engine.nn import Init
from tinybert_family.models import modernbert

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import oracles  # noqa: E402
import peers  # noqa: E402
from peers import close, compare, random_inputs, run_theirs  # noqa: E402

# Seen to each side: 4 tokens. Batches of 17 tokens and more have pairs that no local layer sees.
SMALL = dict(peers.SMALL, num_hidden_layers=4, local_attention=8, bos_token_id=1, eos_token_id=2,
             cls_token_id=1, sep_token_id=2)
CLASSES = dict(bare="ModernBertModel", masked="ModernBertForMaskedLM",
               sequence="ModernBertForSequenceClassification",
               choice="ModernBertForMultipleChoice", token="ModernBertForTokenClassification",
               question="ModernBertForQuestionAnswering")
LONG, NEAR = "full_attention", "sliding_attention"


def bases(global_theta, local_theta):
    return {LONG: dict(rope_type="default", rope_theta=global_theta),
            NEAR: dict(rope_type="default", rope_theta=local_theta)}


CONFIGS = {
    "plain": dict(),
    "one layer": dict(num_hidden_layers=1, num_attention_heads=1),
    "odd": dict(vocab_size=71, hidden_size=30, num_attention_heads=5, intermediate_size=37,
                num_hidden_layers=5, norm_eps=1e-2, hidden_activation="gelu_new"),
    "all local": dict(layer_types=[NEAR] * 3, num_hidden_layers=3, local_attention=5),
    "no pattern": dict(layer_types=[NEAR, LONG, LONG, NEAR], rope_parameters=bases(50.0, 7.5)),
    "itself alone": dict(global_attn_every_n_layers=2, local_attention=1),
}


@pytest.fixture(autouse=True)
def exact():
    torch.set_num_threads(1)
    with oracles.exact():
        yield


def theirs(kind="masked", seed=0, std=0.5, **more):
    return peers.theirs(CLASSES[kind], std, seed, **{**SMALL, **more})


def batch_for(kind, rows=2, columns=19):
    return (rows // 2, 3, columns) if kind == "choice" else (rows, columns)


# ---- numbers

@pytest.mark.parametrize("kind, pooling", [*((kind, "cls") for kind in CLASSES),
                                           ("sequence", "mean"), ("choice", "mean")])
def test_outputs_and_every_gradient_of_every_class(kind, pooling, tmp_path):
    labels = 2 if kind == "question" else 3
    model = theirs(kind, classifier_pooling=pooling, num_labels=labels)
    compare(model, random_inputs(model.config, batch_for(kind, 4), "right"), tmp_path,
            what=kind)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_agrees(config, tmp_path):
    model = theirs(seed=1, **CONFIGS[config])
    compare(model, random_inputs(model.config, (3, 20), "right"), tmp_path, what=config)


@pytest.mark.parametrize("mask", ["none", "right", "left"])
@pytest.mark.parametrize("shape", [(3, 18), (1, 7), (2, 1), (1, 1), (2, peers.LIMIT)], ids=str)
def test_every_shape_of_batch_agrees(shape, mask, tmp_path):
    model = theirs("bare", seed=2)
    compare(model, random_inputs(model.config, shape, mask), tmp_path,
            what=f"{shape} {mask}")


def test_long_sequences_are_cut_and_agree(tmp_path):
    """Local layers work stretch by stretch from about 64 tokens on. Weights of this spread keep the
    attention from pointing at single tokens."""
    model = theirs(std=0.08, hidden_size=64, intermediate_size=96, local_attention=64,
                   max_position_embeddings=300, vocab_size=211)
    compare(model, random_inputs(model.config, (2, 300), "right"), tmp_path, what="wide")


def test_unpatched_transformers_rounds_inside_float64():
    """What the patches are for; they do not touch float32."""
    model = theirs("bare")
    inputs = random_inputs(model.config, (2, 19))
    exact, single = (run_theirs(m, inputs)[0] for m in (model, peers.single(model)))
    with oracles.as_it_was():
        rounded, same = (run_theirs(m, inputs)[0] for m in (model, peers.single(model)))
    far = abs(rounded["last_hidden_state"] - exact["last_hidden_state"]).max()
    assert 1e-9 < far < 1e-3
    assert np.array_equal(single["last_hidden_state"], same["last_hidden_state"])


# ---- files

@pytest.mark.parametrize("kind", CLASSES)
def test_files_go_there_and_back(kind, tmp_path):
    inputs = random_inputs(theirs(kind).config, batch_for(kind), "right")
    peers.there_and_back(CLASSES[kind], tmp_path, inputs, **SMALL, classifier_pooling="mean",
                         attention_dropout=0.1, mlp_dropout=0.2, embedding_dropout=0.3,
                         classifier_dropout=0.4)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_goes_there_and_back(config, tmp_path):
    peers.there_and_back(CLASSES["masked"], tmp_path, **{**SMALL, **CONFIGS[config]})


@pytest.mark.parametrize("kind", CLASSES)
def test_a_model_of_our_own_opens_in_transformers(kind, tmp_path):
    c = modernbert.Config(vocab=61, layers=5, heads=2, width=20, hidden=28, positions=30, seq=30,
                          eps=1e-3, pattern="lg", window=6, global_theta=99.0, local_theta=3.0,
                          activation="gelu_new", dropout=0.2, attention_dropout=0.3, init=0.0)
    mine = modernbert.Model(c, Init(3, 0.5), modernbert.HF_CLASSES[CLASSES[kind]])
    config = transformers.ModernBertConfig()
    config.update(dict(vocab_size=61, pad_token_id=0))
    again = peers.opens_in_transformers(mine, CLASSES[kind], tmp_path,
                                        random_inputs(config, batch_for(kind), "right"))
    config = again.config
    assert type(again).__name__ == CLASSES[kind]
    assert config.layer_types == [NEAR, LONG, NEAR, LONG, NEAR]
    assert config.rope_parameters == bases(99.0, 3.0) and config.sliding_window == 3
    assert (config.attention_dropout, config.norm_eps) == (0.3, 1e-3)
    back = tbf.load(tmp_path).config
    assert (back.dropout, back.attention_dropout, back.pattern) == (0.2, 0.3, "lg")


def test_the_bare_models_file_has_no_prefix_and_no_norm_in_layer_0(tmp_path):
    mine = peers.ours(theirs("bare"), tmp_path / "a")
    tbf.save(mine, tmp_path / "b")
    names = set(tbf.checkpoint.safetensors_header(tmp_path / "b" / "model.safetensors"))
    assert "layers.1.attn_norm.weight" in names and "final_norm.weight" in names
    assert not {name for name in names if name.startswith(("model.", "layers.0.attn_norm"))}


# ---- config.json

OLD = dict(global_attn_every_n_layers=2, global_rope_theta=500.0, local_rope_theta=20.0)


@pytest.mark.parametrize("spelling", [
    {}, OLD, dict(global_attn_every_n_layers=1), dict(local_rope_theta=3.5),
    dict(rope_parameters=bases(11.0, 12.0)), dict(rope_parameters={NEAR: dict(rope_theta=9.0)}),
    dict(rope_parameters=None, layer_types=None), dict(layer_types=[LONG] * 4),
    dict(layer_types=[LONG, NEAR, NEAR, LONG], global_attn_every_n_layers=3),
    dict(local_attention=9, attention_dropout=0.2)])
def test_config_json_means_what_it_means_there(spelling, tmp_path):
    """Old files have numbers where new ones have lists; both of us read both."""
    model = theirs("bare")
    model.save_pretrained(tmp_path)
    # as such files are, without what today's transformers adds
    given = {**SMALL, "model_type": "modernbert", "architectures": ["ModernBertModel"], **spelling}
    (tmp_path / "config.json").write_text(json.dumps(given))
    peer = transformers.ModernBertModel.from_pretrained(tmp_path, dtype=torch.float64,
                                                        attn_implementation="eager").eval()
    mine = tbf.load(tmp_path, dtype=np.float64)
    inputs = random_inputs(peer.config, (2, 20), "right")
    truth = peers.comparable(run_theirs(peer, inputs)[0], inputs)
    values = {name: getattr(mine(**inputs), name).numpy() for name in truth}
    close(peers.comparable(values, inputs), truth)
    # what transformers makes of it means the same to us
    full = read_config(modernbert, peer.config.to_dict(), "config")
    assert vars(full) | dict(pattern="") == vars(mine.config) | dict(pattern="")
    assert full.kinds == mine.config.kinds


def test_the_default_config_of_transformers_is_ours():
    peers.defaults_agree(modernbert, transformers.ModernBertConfig)
    published = read_config(modernbert, {}, "config")
    ours = modernbert.Config(dropout=0.0)       # the published file is for use, not for training
    assert published == ours


@pytest.mark.parametrize("name", CLASSES.values())
def test_counts_are_those_of_transformers_without_memory(name):
    config = transformers.ModernBertConfig(
        vocab_size=777, hidden_size=36, num_attention_heads=3, intermediate_size=55,
        num_hidden_layers=5, architectures=[name], pad_token_id=0)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    assert tbf.count_parameters(config.to_dict()) == sum(p.numel() for p in model.parameters())
