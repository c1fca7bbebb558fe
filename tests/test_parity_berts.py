"""The members of the family whose network is BERT's (SpanBERT, StructBERT, TinyBERT, BERT-wwm,
MacBERT) against transformers' BERT: numbers in the shapes that they were published in, files in
both directions with their own heads laid aside, and counts."""
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family import checkpoint
from tinybert_family.engine.nn import Init
from tinybert_family.models import bert_wwm, macbert, spanbert, structbert, tinybert

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import peers  # noqa: E402
from peers import compare, random_inputs  # noqa: E402

MODULES = [spanbert, structbert, tinybert, bert_wwm, macbert]
# What opens a folder with all of a model's heads for pre-training.
CLASSES = {spanbert: "BertForMaskedLM", structbert: "BertForMaskedLM", tinybert: "BertForSequenceClassification",
           bert_wwm: "BertForPreTraining", macbert: "BertForPreTraining"}


def name_of(module):
    return module.__name__.split(".")[-1]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["BertModel", "BertForSequenceClassification"])
def test_heads_of_26_numbers_agree(name, tmp_path):
    """TinyBERT's shape: 4 layers, 312 wide, 12 heads. (With fewer words.)"""
    c = tinybert.SIZES["base"]
    model = peers.theirs(name, 0.1, vocab_size=300, num_hidden_layers=c.layers,
                         hidden_size=c.width, num_attention_heads=c.heads,
                         intermediate_size=c.hidden, max_position_embeddings=32)
    compare(model, random_inputs(model.config, (3, 17), "right", True), tmp_path)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_folder_with_all_heads_opens_in_transformers_without_a_word(module, tmp_path):
    c = replace(module.SIZES["smoke"], vocab=61, positions=24, seq=24)
    mine = module.Model(c, Init(0, 0.5))
    inputs = random_inputs(transformers.BertConfig(**peers.SMALL), (3, 9), "right", True)
    again = peers.opens_in_transformers(mine, CLASSES[module], tmp_path, inputs)
    assert again.config.architectures == [CLASSES[module]] and again.config.model_type == "bert"
    assert type(tbf.load(tmp_path)) is module.Model


@pytest.mark.parametrize("module", MODULES, ids=name_of)
@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "BertForTokenClassification",
                                  "BertForSequenceClassification", "BertForMultipleChoice"])
def test_a_model_for_a_task_opens_there_too(module, name, tmp_path):
    labels = 2 if "Question" in name else 3
    c = replace(module.SIZES["smoke"], vocab=61, positions=24, seq=24, labels=labels)
    mine = module.Model(c, Init(0, 0.5), module.HF_CLASSES[name])
    shape = (2, 3, 9) if "Choice" in name else (3, 9)
    inputs = random_inputs(transformers.BertConfig(**peers.SMALL), shape, "right", True)
    peers.opens_in_transformers(mine, name, tmp_path, inputs)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_what_transformers_saved_is_read_as_any_of_them(module, tmp_path):
    model = peers.theirs("BertForMaskedLM", **peers.SMALL)
    model.save_pretrained(tmp_path)
    mine = tbf.load(tmp_path, dtype=np.float64, model=name_of(module))
    assert type(mine) is module.Model
    inputs = random_inputs(model.config, (2, 9), "right", True)
    truth = peers.comparable(peers.run_theirs(model, inputs)[0], inputs)
    out = mine(**inputs)
    peers.close(peers.comparable({name: getattr(out, name).numpy() for name in truth}, inputs),
                truth)
    tbf.save(mine, tmp_path / "b")
    peers.loads_without_a_word(transformers.BertForMaskedLM, tmp_path / "b")


def test_spanberts_encoder_has_no_pooler_and_neither_had_the_published_file(tmp_path):
    """transformers makes one up then, as it does for the published checkpoints."""
    c = replace(spanbert.SIZES["smoke"], vocab=61, positions=24, seq=24)
    tbf.save(spanbert.Model(c, Init(0, 0.5), ()), tmp_path)
    model, info = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_the_default_config_of_transformers_is_ours(module):
    peers.defaults_agree(module, transformers.BertConfig)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_counts_of_every_size_are_those_of_transformers(module):
    for size, c in module.SIZES.items():
        for name in "BertModel", "BertForMaskedLM":
            model = module.Model(c, Init(), module.HF_CLASSES[name])
            settings = checkpoint.settings_of(model)
            with torch.device("meta"):
                theirs = getattr(transformers, name)(transformers.BertConfig(**settings))
            count = sum(p.numel() for p in theirs.parameters())
            assert sum(t.size for t in model.named().values()) == count, (size, name)
