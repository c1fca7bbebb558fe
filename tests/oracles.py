"""transformers rounds to float32 in places, whatever a model's type: 1e-7 off, in float64. Here it
keeps the type; nothing else is changed, and float32 is as it was.

ModernBERT does so in its angles, its rotation and its softmax; DeBERTa in the scale of its scores,
its first version also in LayerNorm and in two biases when it loads them.
"""
import contextlib

import torch
from transformers.models.deberta import modeling_deberta as v1
from transformers.models.deberta_v2 import modeling_deberta_v2 as v2
from transformers.models.modernbert import modeling_modernbert as modeling


# ---- ModernBERT

def exact_angles(rounding):
    def forward(self, x, position_ids, layer_type):
        if x.dtype != torch.float64:
            return rounding(self, x, position_ids, layer_type)
        c = self.config
        size = c.hidden_size // c.num_attention_heads
        power = torch.arange(0, size, 2, dtype=torch.float64) / size
        angle = position_ids[..., None] / c.rope_parameters[layer_type]["rope_theta"] ** power
        both = torch.cat((angle, angle), dim=-1)
        return both.cos(), both.sin()
    return forward


def exact_rotation(rounding):
    def apply(q, k, cos, sin, unsqueeze_dim=1):
        if q.dtype != torch.float64:
            return rounding(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return tuple(x * cos + modeling.rotate_half(x) * sin for x in (q, k))
    return apply


def exact_attention(rounding):
    def forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        if query.dtype != torch.float64:
            return rounding(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
        scores = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights
    return forward


# ---- DeBERTa

def exact_scale(rounding):
    def scale(queries, terms):
        return torch.tensor(float(queries.size(-1) * terms), dtype=torch.float64).sqrt()
    return scale


def exact_norm(rounding):
    def norm(self, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x + self.bias
    return norm


def exact_biases(made):
    def attention(self, config):
        made(self, config)
        for name in "q_bias", "v_bias":
            bias = getattr(self, name).to(self.in_proj.weight.dtype)
            setattr(self, name, torch.nn.Parameter(bias))
    return attention


# ---- all of it, for a while

PATCHES = [(v1.DisentangledSelfAttention, "__init__", exact_biases),
           (v1, "scaled_size_sqrt", exact_scale), (v2, "scaled_size_sqrt", exact_scale),
           (v1.DebertaLayerNorm, "forward", exact_norm),
           (modeling.ModernBertRotaryEmbedding, "forward", exact_angles),
           (modeling, "apply_rotary_pos_emb", exact_rotation),
           (modeling, "eager_attention_forward", exact_attention)]
ROUNDING = [(owner, name, getattr(owner, name)) for owner, name, _ in PATCHES]


@contextlib.contextmanager
def replaced(functions):
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in functions]
    for owner, name, function in functions:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def exact():
    changed = zip(PATCHES, ROUNDING)
    return replaced([(owner, name, patch(old)) for (owner, name, patch), (_, _, old) in changed])


def as_it_was():
    return replaced(ROUNDING)
