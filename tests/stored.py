"""Numbers of transformers' BertForPreTraining, kept in data/bert_hf.npz, so that the tests need
neither torch nor transformers to compare with them. Made by `python tests/stored.py` where both
are installed.

Only inputs, outputs and gradients are stored: the weights are a formula that any machine evaluates
to the same bits.
"""
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parent / "data" / "bert_hf.npz"
CONFIG = dict(model_type="bert", vocab_size=31, hidden_size=12, num_hidden_layers=2,
              num_attention_heads=3, intermediate_size=20, max_position_embeddings=10,
              type_vocab_size=2, hidden_act="gelu", pad_token_id=0)
OUTPUTS = "last_hidden_state", "pooler_output", "prediction_logits", "seq_relationship_logits"
ACTIVATIONS = "gelu", "gelu_new", "relu"


def shapes(vocab=31, width=12, layers=2, hidden=20, positions=10, types=2):
    """{published name: shape} of every parameter."""
    norm = dict(weight=(width,), bias=(width,))
    found = {"embeddings.word_embeddings.weight": (vocab, width),
             "embeddings.position_embeddings.weight": (positions, width),
             "embeddings.token_type_embeddings.weight": (types, width)}
    parts = {"embeddings.LayerNorm": norm, "pooler.dense": linear(width, width)}
    for i in range(layers):
        at = f"encoder.layer.{i}."
        for name in "query", "key", "value":
            parts[f"{at}attention.self.{name}"] = linear(width, width)
        parts.update({at + "attention.output.dense": linear(width, width),
                      at + "attention.output.LayerNorm": norm,
                      at + "intermediate.dense": linear(width, hidden),
                      at + "output.dense": linear(hidden, width),
                      at + "output.LayerNorm": norm})
    found = {"bert." + name: shape for name, shape in (found | dotted(parts)).items()}
    heads = {"cls.predictions.transform.dense": linear(width, width),
             "cls.predictions.transform.LayerNorm": norm}
    return found | dotted(heads) | {"cls.predictions.bias": (vocab,),
                                    "cls.seq_relationship.weight": (2, width),
                    "cls.seq_relationship.bias": (2,)}


def dotted(parts):
    return {f"{part}.{name}": shape for part, both in parts.items()
            for name, shape in both.items()}


def linear(inside, outside):
    return dict(weight=(outside, inside), bias=(outside,))


def numbers(shape, stream):
    """float64 numbers, even between -0.9 and 0.9 in steps of 2**-24: float32 holds them exactly."""
    z = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(stream << 32)
    factors = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15
    for shift, factor in zip((30, 27, 31), factors):
        # wraps round: integers modulo 2**64
        z = (z ^ z >> np.uint64(shift)) * np.uint64(factor)
    steps = int(0.9 * 2 ** 24)
    z = (z >> np.uint64(32)) % np.uint64(2 * steps + 1)
    return (z.astype(np.int64) - steps).reshape(shape) / 2 ** 24


def weights(**sizes):
    """{published name: float64 array}; gains lie around 1."""
    found = {}
    for i, (name, shape) in enumerate(sorted(shapes(**sizes).items())):
        x = numbers(shape, i + 1)
        found[name] = x if "LayerNorm" not in name else 0.5 * x + name.endswith("weight")
    return found


def make():
    import torch
    import transformers
    rng = np.random.default_rng(0)
    mask = (np.arange(9) < np.array([[9], [6], [1], [4]])).astype(np.int64)
    kept = dict(input_ids=rng.integers(0, 31, mask.shape) * mask, attention_mask=mask,
                token_type_ids=(np.arange(9) >= 3) * mask)
    labels = np.where(rng.random(mask.shape) < 0.3, rng.integers(0, 31, mask.shape), -100)
    kept |= dict(labels=np.where(mask, labels, -100), next_sentence_label=np.array([0, 1, 1, 0]))
    inputs = {name: torch.as_tensor(x) for name, x in kept.items()}
    for act in ACTIVATIONS:
        config = transformers.BertConfig(**{**CONFIG, "hidden_act": act},
                                         attn_implementation="eager")
        model = transformers.BertForPreTraining(config).double().eval()
        state = {name: torch.as_tensor(x) for name, x in weights().items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and all("decoder" in name for name in missing)
        model.tie_weights()
        # torch leaves row 0 out of the lookup's gradient; we want the derivative.
        model.bert.embeddings.word_embeddings.padding_idx = None
        out = model(**inputs, output_hidden_states=True)
        out["last_hidden_state"] = out.hidden_states[-1]
        out["pooler_output"] = model.bert.pooler(out.hidden_states[-1])
        out.loss.backward()
        kept |= {f"{act}/{name}": out[name].detach().numpy() for name in OUTPUTS}
        kept[f"{act}/loss"] = out.loss.detach().numpy()
        if act == "gelu":
            kept |= {f"grad/{name}": p.grad.numpy() for name, p in model.named_parameters()}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **kept)
    print(f"{FILE}: {len(kept)} arrays, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    sys.path.insert(0, str(FILE.parents[2]))
    # hides the folder kernels/ from transformers
    import conftest
    make()
