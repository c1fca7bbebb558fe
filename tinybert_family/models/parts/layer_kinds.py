"""What a ModernBERT's config.json says of its layers, in the two spellings that there are.

The older is three numbers: every so many layers one is global, and each kind has a base of angles.
Today's is a list of kinds and an object for each.
"""
from ...error import Error
from .. import bert

EVERY, LAYERS = 3, 22               # where a file is silent

# kind of layer: (our letter, where older files have the base of its angles)
KINDS = dict(full_attention=("g", "global_rope_theta"), sliding_attention=("l", "local_rope_theta"))


def check(c):
    """What these settings need, beside what every Config does."""
    if bert.ACTIVATIONS[c.activation] is None:
        raise Error(f"activation: {c.activation!r}, but its gates are gelu, gelu_new or "
                    "gelu_pytorch_tanh")
    if c.pooling not in ("cls", "mean"):
        raise Error(f"pooling: {c.pooling!r}, but it must be cls or mean")
    if not c.pattern or set(c.pattern) - set("gl"):
        raise Error(f"pattern: {c.pattern!r}, but it must be letters g (global) and l "
                    "(local), such as gll")
    if c.size % 2:
        raise Error(f"width: {c.width} with {c.heads} heads makes {c.size} numbers a "
                    "head, but they are turned in pairs; the quotient must be even")
    if c.near:
        raise Error("near: helps a model to find its neighbours, but this one knows distances; "
                    "leave it out")


def from_published(settings, where):
    """Today a list and nested objects say what three numbers said before. If both speak, they must
    agree."""
    found = dict(settings, layer_types=pattern_of(settings, where))
    rope = settings.get("rope_parameters") or {}
    if type(rope) is not dict or set(rope) - set(KINDS) or set(map(type, rope.values())) - {dict}:
        raise Error(f"{where}: rope_parameters must hold objects {' and '.join(KINDS)} alone")
    for kind, (_, old) in KINDS.items():
        new = {"rope_type": "default", **rope.get(kind, {})}
        theta = new.pop("rope_theta", found.get(old))
        if new != {"rope_type": "default"}:
            raise Error(f"{where}: rope_parameters.{kind} is {new!r}; only rope_type 'default' "
                        "and a rope_theta are supported")
        if theta is not None and found.setdefault(old, theta) != theta:
            raise Error(f"{where}: {old} is {found[old]!r}, but rope_parameters.{kind}.rope_theta "
                        f"is {theta!r}; remove one of them")
    # One number for both dropouts of attention, unless ours for the second is there.
    found.setdefault("attn_out_dropout_prob", settings.get("attention_dropout", 0.0))
    return found


def pattern_of(settings, where):
    """The shortest pattern that gives these layers; of equals that of every so many."""
    every = settings.get("global_attn_every_n_layers", EVERY)
    if type(every) is not int or not 0 < every <= 10**6:
        raise Error(f"{where}: global_attn_every_n_layers is {every!r}, but a number from 1 on is "
                    "wanted")
    pattern, kinds = "g" + "l" * (every - 1), settings.get("layer_types")
    if kinds is None:
        return pattern
    layers = settings.get("num_hidden_layers", LAYERS)
    if type(kinds) is not list or len(kinds) != layers or set(map(str, kinds)) - set(KINDS):
        raise Error(f"{where}: layer_types must be a list of {' and '.join(KINDS)}, one for each "
                    f"of the {layers} layers (num_hidden_layers)")
    letters = "".join(KINDS[kind][0] for kind in kinds)

    def fits(pattern):
        return (pattern * (len(letters) // len(pattern) + 1)).startswith(letters)

    if fits(pattern):
        return pattern
    if "global_attn_every_n_layers" in settings:
        raise Error(f"{where}: global_attn_every_n_layers is {every}, but layer_types says "
                    "otherwise; remove one of them")
    return next(letters[:n] for n in range(1, len(letters) + 1) if fits(letters[:n]))


def to_published(config, values):
    """Both spellings, where the older one can say it."""
    names = {letter: kind for kind, (letter, _) in KINDS.items()}
    values = dict(values, layer_types=[names[letter] for letter in config.kinds])
    values["rope_parameters"] = {kind: dict(rope_type="default", rope_theta=values[old])
                                 for kind, (_, old) in KINDS.items()}
    if config.pattern.rfind("g") == 0:
        values["global_attn_every_n_layers"] = len(config.pattern)
    if config.dropout == config.attention_dropout:
        del values["attn_out_dropout_prob"]
    return values
