"""Our names and the published ones. A model's NAMES says what each parameter is called in Hugging Face files:

    "layers.#.mlp.up.*": "bert.encoder.layer.#.intermediate.dense.*"       # is a number, * the last word
    "layers.#.attention.qkv.*": [query, key, value]                        our one matrix is published in equal parts
"""
import re


def published(model):
    """(published name, Tensor, the rows of it that carry this name or None for all) for every parameter."""
    rules = [(rule_pattern(ours), theirs) for ours, theirs in model.NAMES.items()]
    for path, tensor in model.named().items():
        theirs, wild = next((theirs, m.groups()) for rule, theirs in rules if (m := rule.fullmatch(path)))
        if isinstance(theirs, str):
            yield fill(theirs, wild), tensor, None
            continue
        size = tensor.shape[0] // len(theirs)
        for i, name in enumerate(theirs):
            yield fill(name, wild), tensor, slice(i * size, (i + 1) * size)


def rule_pattern(ours):
    return re.compile(re.escape(ours).replace(r"\#", r"(\d+)").replace(r"\*", r"(\w+)"))


def fill(name, wild):
    """Put the matched numbers and words into the published name, in order."""
    parts = iter(wild)
    return re.sub(r"[#*]", lambda _: next(parts), name)
