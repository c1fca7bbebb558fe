"""What models/bert_wwm.py and models/macbert.py promise: the published sizes, a network that is
BERT's to the bit, and files that remember what they are."""
from dataclasses import replace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine.nn import Init
from tinybert_family.models import bert, bert_wwm, macbert

BOTH = dict(bert_wwm=bert_wwm, macbert=macbert)
PRETRAINING = "pooler", "mlm", "nsp"
# with a pooler, and with the heads of pre-training
COUNTS = {(bert_wwm, "base"): (102_267_648, 102_882_442),
          (bert_wwm, "roberta"): (102_267_648, 102_882_442),
          (bert_wwm, "roberta-large"): (325_522_432, 326_597_258),
          (bert_wwm, "rbt3"): (38_476_800, 39_091_594),
          (bert_wwm, "rbtl3"): (61_001_728, 62_076_554),
          (bert_wwm, "large-uncased"): (335_141_888, 336_226_108),
          (bert_wwm, "large-cased"): (333_579_264, 334_661_958),
          (bert_wwm, "ext"): (102_267_648, 102_882_442),
          (macbert, "base"): (102_267_648, 102_882_442),
          (macbert, "large"): (325_522_432, 326_597_258)}


def count(module, c, heads):
    return sum(t.size for t in module.Model(c, Init(), heads).named().values())


@pytest.mark.parametrize("module, size", COUNTS, ids=lambda x: getattr(x, "__name__", x))
def test_parameter_counts_are_the_published_ones(module, size):
    c = module.SIZES[size]
    assert tuple(count(module, c, h) for h in (("pooler",), PRETRAINING)) == COUNTS[module, size]


def test_every_published_size_is_counted_here():
    named = {(module, size) for module in BOTH.values() for size in module.SIZES}
    ours = {(module, size) for module in BOTH.values() for size in ("smoke", "tiny")}
    assert named - ours == set(COUNTS)
    assert count(macbert, macbert.SIZES["large"], ()) == 324_472_832


@pytest.mark.parametrize("name", BOTH)
def test_it_is_bert_to_the_bit(name, tmp_path):
    """One file, read as what it is and as a BERT."""
    c = replace(BOTH[name].SIZES["smoke"], vocab=50)
    model = BOTH[name].Model(c, Init(0, 0.5), PRETRAINING)
    tbf.save(model, tmp_path)
    assert not (tmp_path / "heads.safetensors").exists()
    own, plain = tbf.load(tmp_path), tbf.load(tmp_path, model="bert")
    assert type(own) is BOTH[name].Model and type(plain) is bert.Model
    ids = np.random.default_rng(0).integers(0, 50, (3, 9))
    a, b = own(ids), plain(ids)
    for answer in "prediction_logits", "seq_relationship_logits":
        assert np.array_equal(getattr(a, answer).numpy(), getattr(b, answer).numpy())


def test_the_recipes_are_those_of_their_readmes():
    """Sequences in a step: as many as were published."""
    def sequences(c):
        return c.tokens * c.accumulate // c.seq

    wwm, mac = bert_wwm.SIZES, macbert.SIZES
    three = [wwm[size] for size in ("base", "roberta", "roberta-large")]
    assert [sequences(c) for c in three] == [2560, 384, 512]
    assert [c.steps for c in three] == [2 * 10**5, 10**6, 2 * 10**6]
    assert [sequences(mac[size]) for size in ("base", "large")] == [512, 512]
    assert mac["large"].steps == 2 * mac["base"].steps == 2 * 10**6
    assert wwm["base"].optimizer == mac["base"].optimizer == "lamb"
