"""The folder that train.py leaves is one that transformers loads, with the same numbers."""
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import tinybert_family as tbf
from tinybert_family.text import toy

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def test_transformers_loads_a_run_and_computes_what_we_compute(tmp_path):
    text, out = tmp_path / "toy.txt", tmp_path / "run"
    text.write_text("\n\n".join("\n".join(d.sentences) for d in toy.documents(60)))
    command = [sys.executable, str(ROOT / "train.py"), "bert", "--data", str(text), "--out",
               str(out), "--vocab", "300", "--steps", "20"]
    environment = dict(os.environ, TINYBERT_CACHE=str(tmp_path / "cache"))
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model, info = transformers.AutoModelForPreTraining.from_pretrained(
        out, output_loading_info=True)
    assert type(model).__name__ == "BertForPreTraining"
    assert not info["missing_keys"] and not info["unexpected_keys"]

    sentences = ["Maria has a white [MASK] called Coco.", "The streets were wet."]
    theirs = tokenizer(sentences, padding=True, return_tensors="pt")
    ours = tbf.load_tokenizer(out)(sentences)
    assert np.array_equal(ours["input_ids"], theirs["input_ids"].numpy())
    expected = model.eval()(**theirs).prediction_logits.detach().numpy()
    seen = ours["attention_mask"].astype(bool)
    actual = tbf.load(out)(**ours).logits.numpy()
    np.testing.assert_allclose(actual[seen], expected[seen], atol=1e-4)
