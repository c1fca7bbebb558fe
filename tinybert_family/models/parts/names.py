"""Our names and the published ones.

A model's NAMES says what each parameter is called in Hugging Face files:

    "layers.#.mlp.up.*": "bert.encoder.layer.#.intermediate.dense.*"
    "layers.#.attention.qkv.*": [query, key, value]

# is a number, * the last word; what stands against a list is published in equal parts.
"""
import re


def published(model):
    """(published name, Tensor, rows) for every parameter.

    rows: the part of the Tensor that carries this name, or None for all of it.
    """
    rules = [(rule_pattern(ours), theirs) for ours, theirs in model.NAMES.items()]
    for path, tensor in model.named().items():
        theirs, wild = next((theirs, match.groups()) for rule, theirs in rules
                            if (match := rule.fullmatch(path)))
        if isinstance(theirs, str):
            yield fill(theirs, wild), tensor, None
            continue
        size = tensor.shape[0] // len(theirs)
        for i, name in enumerate(theirs):
            yield fill(name, wild), tensor, slice(i * size, (i + 1) * size)


def renamed(rules, old, new):
    """The rules whose published names begin with old, which is new in another family's files."""
    found = {}
    for ours, theirs in rules.items():
        several = theirs if isinstance(theirs, list) else [theirs]
        if several[0].startswith(old):
            several = [new + name.removeprefix(old) for name in several]
            found[ours] = several if isinstance(theirs, list) else several[0]
    return found


def tasks_of(family, pooler=("pooler",)):
    """{class: its heads} for the tasks that every published family has classes for."""
    return {f"{family}ForSequenceClassification": (*pooler, "sequence"),
            f"{family}ForMultipleChoice": (*pooler, "choice"),
            f"{family}ForTokenClassification": ("token",),
            f"{family}ForQuestionAnswering": ("question",)}


def in_its_file(model):
    """The same, as this model's own file has it: without heads, also without their prefix."""
    prefix = model.PREFIX if model.bare() else ""
    for name, tensor, rows in published(model):
        yield name.removeprefix(prefix), tensor, rows


def rule_pattern(ours):
    escaped = re.escape(ours)
    return re.compile(escaped.replace(r"\#", r"(\d+)").replace(r"\*", r"(\w+)"))


def fill(name, wild):
    """Put the matched numbers and words into the published name, in order."""
    parts = iter(wild)
    return re.sub(r"[#*]", lambda _: next(parts), name)
