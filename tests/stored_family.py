"""Numbers of transformers for a class of every family, kept in data/family_hf.npz, so that the
tests need neither torch nor transformers to compare with them. Made by
`python tests/stored_family.py` where both are installed.

Only outputs and gradients are stored, and of a gradient its length and four of its shadows: what
is left of it in four directions (no error escapes all of them). Weights, inputs, directions and the
seeds of backward are formulas that any machine evaluates to the same bits.
"""
import re
import sys
from pathlib import Path

import numpy as np
from stored import numbers

FILE = Path(__file__).resolve().parent / "data" / "family_hf.npz"
VOCAB, LENGTHS = 31, (9, 6, 1, 4)
SMALL = dict(vocab_size=VOCAB, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
             intermediate_size=20, max_position_embeddings=16, type_vocab_size=2, pad_token_id=0)
DEBERTA = dict(SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"], type_vocab_size=0,
               position_biased_input=False, num_hidden_layers=3)
# Nothing holds MobileBERT's numbers near one: with larger weights all its attention is one-sided.
FACTOR = {"MobileBertForPreTraining": 0.25}
# class: its settings
CASES = {
    "BertForQuestionAnswering": SMALL,
    "RobertaForMaskedLM": dict(SMALL, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5),
    "XLMRobertaForSequenceClassification": dict(SMALL, type_vocab_size=1, pad_token_id=1),
    "AlbertForPreTraining": dict(SMALL, embedding_size=8, num_hidden_groups=2, inner_group_num=2,
                                 num_hidden_layers=3, hidden_act="gelu_new"),
    "DistilBertForMaskedLM": dict(vocab_size=VOCAB, dim=12, n_layers=2, n_heads=3, hidden_dim=20,
                                  max_position_embeddings=16, pad_token_id=0),
    "ElectraForPreTraining": dict(SMALL, embedding_size=8),
    "ElectraForMaskedLM": dict(SMALL, embedding_size=8),
    "DebertaForTokenClassification": DEBERTA,
    "DebertaV2ForMaskedLM": dict(DEBERTA, position_buckets=4, norm_rel_ebd="layer_norm",
                                 share_att_key=True, conv_kernel_size=3, conv_act="gelu"),
    "ModernBertForMaskedLM": dict(vocab_size=VOCAB, hidden_size=12, num_hidden_layers=4,
                                  num_attention_heads=3, intermediate_size=20, local_attention=4,
                                  max_position_embeddings=16, pad_token_id=0, bos_token_id=1,
                                  eos_token_id=2, cls_token_id=1, sep_token_id=2),
    "MobileBertForPreTraining": dict(SMALL, embedding_size=8, intra_bottleneck_size=6,
                                     num_feedforward_networks=3),
    "ErnieForPreTraining": dict(SMALL, use_task_id=True, task_type_vocab_size=3,
                                hidden_act="relu"),
}
OUTPUTS = ("last_hidden_state", "pooler_output", "logits", "prediction_logits",
           "seq_relationship_logits", "sop_logits", "start_logits", "end_logits")


def weights(case, shapes):
    """{published name: float64 array} for {name: shape}; gains lie around 1."""
    found = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        x = FACTOR.get(case, 1) * numbers(shape, i + 1)
        gain = re.search(r"norm[\w.]*\.weight$", name, re.I)
        found[name] = 0.5 * x + 1 if gain else x
    return found


def inputs(case, padded=True):
    """A padded batch, the shortest row a single token; MobileBERT's is not padded."""
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    if case.startswith("MobileBert"):
        mask = mask[:1]
    pad = CASES[case].get("pad_token_id", 0)
    ids = (numbers(mask.shape, 999) * 2 ** 24).astype(np.int64) % (VOCAB - 3) + 3
    found = dict(input_ids=np.where(mask, ids, pad), attention_mask=mask)
    if CASES[case].get("type_vocab_size", 0) > 1:
        found["token_type_ids"] = (np.arange(max(LENGTHS)) >= 3) * mask
    if CASES[case].get("use_task_id"):
        found["task_type_ids"] = (np.arange(max(LENGTHS)) % 3) * mask
    return found


def seeds(name, shape, mask):
    """What backward starts from; zero where there is nothing."""
    x = numbers(shape, 2000 + OUTPUTS.index(name))
    if shape[:2] == mask.shape:
        return x * mask.reshape(mask.shape + (1,) * (len(shape) - 2))
    return x


def make():
    import oracles
    kept = {}
    for case in CASES:
        with oracles.exact():
            kept |= made(case)
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **kept)
    print(f"{FILE}: {len(kept)} arrays, {FILE.stat().st_size} bytes")


def shadows(name, x):
    """A gradient's length, and its products with four directions, in units of that length."""
    directions = numbers((4, x.size), 3000 + sum(name.encode()) % 1000)
    length = np.sqrt((x.astype(np.float64) ** 2).sum())
    return np.array([length, *(directions @ x.astype(np.float64).ravel() / (length or 1))])


def made(case):
    import torch
    import transformers
    from peers import with_whole_gradient
    cls = getattr(transformers, case)
    config = cls.config_class(**CASES[case], attn_implementation="eager")
    model = with_whole_gradient(cls(config).double().eval())
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, x in weights(case, shapes).items():
            model.get_parameter(name).copy_(torch.as_tensor(x))
    given = inputs(case)
    out = model(**{k: torch.as_tensor(v) for k, v in given.items()}, output_hidden_states=True)
    values = {name: out[name] for name in OUTPUTS if out.get(name) is not None}
    values.setdefault("last_hidden_state", out.hidden_states[-1])
    sum((x * torch.as_tensor(seeds(name, tuple(x.shape), given["attention_mask"]))).sum()
        for name, x in values.items()).backward()
    kept = {f"{case}/out/{name}": x.detach().numpy() for name, x in values.items()}
    return kept | {f"{case}/grad/{name}": shadows(name, p.grad.numpy())
                   for name, p in model.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    sys.path.insert(0, str(FILE.parents[2]))
    # hides the folder kernels/ from transformers
    import conftest
    make()
