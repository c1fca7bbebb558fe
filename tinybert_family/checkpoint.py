"""Published checkpoints in and out: Hugging Face's folders, config.json beside model.safetensors.

A model's file in models/ says what its parameters are called there (NAMES) and its settings
(HF_CONFIG); this file does the rest for all of them. Weights are mapped, not read: what is used as
it stands is copied nowhere.
"""
import importlib
import json
import re
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from .engine.nn import Init
from .error import Error
from .files import (make_writable, read_json, read_safetensors, safetensors_header, shown,
                    write_atomically, write_safetensors)
from .models.parts.names import in_its_file, published
from .text import tokenizer_files

# model_type in config.json -> the file in models/ that reads it
TYPES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "albert": "albert",
         "distilbert": "distilbert", "electra": "electra", "deberta": "deberta",
         "deberta-v2": "deberta_v2", "modernbert": "modernbert", "mobilebert": "mobilebert",
         "ernie": "ernie", "ernie_thu": "ernie_thu"}
# The files in models/, in reading order. Those that have no model_type of their own leave their
# name in config.json, where transformers does not mind it.
MODELS = ("bert", "roberta", "albert", "distilbert", "electra", "deberta", "deberta_v2",
          "modernbert", "ernie", "ernie2", "ernie_thu", "spanbert", "tinybert", "mobilebert",
          "bert_wwm", "macbert", "structbert")
SIGNATURE = "tinybert_family"
EXTRA = "heads.safetensors"       # weights that no class of transformers has a place for


def variant(model, where):
    """The file in models/ of this name."""
    if not isinstance(model, str) or model not in MODELS:
        raise Error(f"{where}: {model!r} is no model of this family; these are: "
                    f"{', '.join(MODELS)}")
    return importlib.import_module(f".models.{model}", __package__)


def variant_of(settings, where):
    """The file in models/ that a config.json is for."""
    if SIGNATURE in settings:
        return variant(settings[SIGNATURE], f"{where}: {SIGNATURE}")
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise Error(f"{where}: model_type {kind!r} is no model of this family; these are: "
                    f"{', '.join(sorted(TYPES))}")
    return variant(TYPES[kind], where)


def file_of(model):
    """The module in models/ that a model comes from."""
    return importlib.import_module(type(model).__module__)


def load(folder, dtype=np.float32, head=None, labels=None, seed=0, model=None):
    """The model of a folder as transformers saves it, with the heads that have weights there.

    head: the one to have instead: sequence, choice, token, question (for a task with so many
    labels), mlm, ... One that the file lacks is new, drawn from seed, and a warning says so.
    model: the member of the family to read it as, where config.json says no more than "bert".
    """
    folder = Path(folder)
    where = folder / "config.json"
    settings = read_json(where)
    module = variant(model, "model") if model else variant_of(settings, where)
    path = weights_file(folder)
    extra = folder / EXTRA
    files = [path, extra] if extra.exists() else [path]
    renamed = our_spelling(module, [(file, safetensors_header(file)) for file in files])
    config = read_config(module, settings, where)
    if labels is not None:
        config = replace(config, labels=labels)
    heads = () if head is None else heads_for(module, head)
    found = heads_in(module, renamed, promised(module, settings) or heads, path)
    heads = heads or found
    # Before so many are made. (ALBERT's layers share their tensors.)
    if getattr(config, "groups", config.layers) > len(renamed):
        raise Error(f"{path}: holds {len(renamed)} tensors, too few for the {config.layers} layers "
                    "of config.json; the two files do not belong together")
    model = module.Model(config, Init(dtype=dtype), heads)
    model.settings = settings
    # A head without weights (MobileBERT's summary may be one) lacks none; and the classifier of
    # another task is not this one's, though it has the same name.
    fresh = [name for name in heads if getattr(model, name).named()
             and (name not in found or not weights_of(module, name) & set(renamed))]
    for name in heads if fresh else ():     # all anew: they may share what is fresh
        init = Init(seed, config.init, dtype) if name in fresh else Init(dtype=dtype)
        setattr(model, name, model.HEADS[name](config, init, model))
    fill(model, {name: x for file in files for name, x in read_safetensors(file).items()},
         renamed, path, dtype, fresh)
    if fresh:
        warnings.warn(f"{path}: holds no {' and no '.join(fresh)} head; freshly initialised, it "
                      "knows nothing before it is trained", stacklevel=2)
    return model


def shape_of(folder, config):
    """{field: value} of a recipe, for the network of a folder: what its config.json says of shapes.
    How the network is trained (its dropout, say) stays the recipe's."""
    where = Path(folder) / "config.json"
    settings = read_json(where)
    module = variant_of(settings, where)
    theirs = read_config(module, settings, where)
    shape = [name for name in module.HF_CONFIG if "drop" not in name and name != "init"]
    return {name: getattr(theirs, name) for name in shape if hasattr(config, name)}


def begin_from(learner, folder):
    """Give a learner the weights of a folder, of its own kind or of one much like it. -> the names
    of what is not there, and so new.

    Of what the folder holds besides (upper layers, heads for a task) nothing is taken.
    """
    new = []
    for part, ours in learner.parts().items():
        place = Path(folder) / part
        if part and not place.exists():
            new.append(f"the {part}")
            continue
        theirs, taken = load(place).named(), 0
        for name, tensor in ours.named().items():
            head = name.split(".")[0] in ours.HEADS
            if name not in theirs or head and theirs[name].shape != tensor.shape:
                kind = re.sub(r"\.\d+\.", ".#.", name)
                new.append(re.sub(r"\.(weight|bias)$", "", kind))
            elif theirs[name].shape != tensor.shape:
                raise Error(f"--from {place}: its {name} has shape {theirs[name].shape}, but "
                            f"{tensor.shape} is to be trained; give the folder of a model of the "
                            "same kind, and leave the settings of its shape out")
            else:
                tensor.data[...] = theirs[name].data
                taken += tensor.size
        share = taken / sum(tensor.size for tensor in ours.named().values())
        if share < 0.5:
            raise Error(f"--from {place}: only {share:.0%} of the network to be trained is there; "
                        "give the folder of a model of the same kind")
    learner.settle()
    return list(dict.fromkeys(new))


def save(model, folder):
    """Write config.json and model.safetensors; transformers loads the result.

    Heads that its classes have no place for go to a file of their own.
    """
    folder = Path(folder)
    make_writable(folder)
    ours, extra = published_files(model)
    write_safetensors(folder / "model.safetensors", ours)
    if extra:
        write_safetensors(folder / EXTRA, extra)
    else:
        (folder / EXTRA).unlink(missing_ok=True)
    write_config(model, folder)


def published_arrays(model):
    """{name in the published file: array}"""
    return {name: tensor.data if rows is None else tensor.data[rows]
            for name, tensor, rows in in_its_file(model)}


def published_files(model):
    """The same in two: what the transformers class of config.json knows, and what it does not."""
    known = set(file_of(model).HF_CLASSES.get(architecture(model), ()))
    # A head without weights has no names of its own.
    own = {head for head in model.HEADS if (x := getattr(model, head)) is not None and x.named()}
    unknown = {name for head in own - known for name in weights_of(file_of(model), head)}
    for head in known:
        unknown -= weights_of(file_of(model), head)
    arrays = published_arrays(model)
    extra = {name: arrays.pop(name) for name in unknown & set(arrays)}
    return arrays, extra


def load_tokenizer(folder):
    return tokenizer_files.load(folder)


def count_parameters(config):
    """How many parameters a config.json describes, given as its dict, its path or its folder.

    Shapes only; no memory is taken for the parameters themselves.
    """
    where = "config"
    if not isinstance(config, dict):
        where = Path(config) / "config.json" if Path(config).is_dir() else Path(config)
        config = read_json(where)
    module = variant_of(config, where)
    heads = module.HF_CLASSES[known_class(module, config, where)]
    model = module.Model(read_config(module, config, where), Init(), heads)
    return sum(tensor.size for tensor in model.named().values())


# ---- config.json

def known_class(module, settings, where):
    """The class that `architectures` names, or the bare model."""
    names = settings.get("architectures") or [next(iter(module.HF_CLASSES))]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or name not in module.HF_CLASSES:
        raise Error(f"{where}: architectures {name!r}, but these are known: "
                    f"{', '.join(module.HF_CLASSES)}")
    return name


def promised(module, settings):
    """The heads of the class that `architectures` names, if it is one that we know.

    Bare models are promised nothing: whether there is a pooler, their files decide.
    """
    names = settings.get("architectures") or [None]
    name = names[0] if isinstance(names, list) else names
    known = isinstance(name, str) and name in module.HF_CLASSES and not name.endswith("Model")
    return module.HF_CLASSES[name] if known else ()


def read_config(module, settings, where):
    """Our Config from a config.json's dict; what the file leaves out has the published default."""
    for name, accepted in module.HF_REFUSED.items():
        if settings.get(name, accepted) != accepted:
            raise Error(f"{where}: {name} is {settings[name]!r}; only {accepted!r} is supported")
    flat = dict(settings, num_labels=labels_in(settings, where))
    if hasattr(module, "from_published"):           # nested or historical spellings
        flat = module.from_published(flat, where)
    kinds = {f.name: type(f.default) for f in fields(module.Config)}
    values = dict(module.HF_DEFAULTS)
    for ours, theirs in dict(module.HF_CONFIG, labels="num_labels").items():
        if theirs in flat and not (ours == "head_dropout" and flat[theirs] is None):
            values[ours] = typed(flat[theirs], kinds[ours], f"{where}: {theirs}")
    # A classifier without a dropout of its own has that of the hidden states.
    values.setdefault("head_dropout", values.get("dropout", module.Config.dropout))
    # The recipe's sequences must not be longer than a small model's positions.
    seq = min(module.Config.seq, values.get("positions", module.Config.positions))
    try:
        return module.Config(**values, seq=seq)
    except Error as problem:                        # which names the field as we do
        name, _, told = str(problem).partition(":")
        raise Error(f"{where}: {module.HF_CONFIG.get(name, name)}:{told}") from None


def labels_in(settings, where):
    """How many classes a task has: by their names, or as a number, or two."""
    names = settings.get("id2label")
    if names is None:
        return settings.get("num_labels", 2)
    if not isinstance(names, dict):
        raise Error(f"{where}: id2label is {names!r}, but an object of labels is wanted")
    return len(names)


def typed(value, kind, what):
    """A number where a number belongs: 512.0 may stand for 512, true and "512" may not."""
    if kind in (str, bool) and isinstance(value, kind):
        return value
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    # NaN is below nothing, so the size is asked first.
    if kind in (int, float) and numeric and abs(value) < 2 ** 31:
        if kind is float or value == int(value):
            return kind(value)
    raise Error(f"{what} is {value!r}, but {WANTED.get(kind, 'a number')} is wanted")


WANTED = {str: "a word", bool: "true or false"}


def write_config(model, folder):
    write_atomically(folder / "config.json", json_bytes(settings_of(model)))


def settings_of(model):
    """config.json as a dict: what was loaded, if anything was, with this model's values over it."""
    module = file_of(model)
    values = {theirs: getattr(model.config, ours) for ours, theirs in module.HF_CONFIG.items()}
    # 0 is our word for 1 / sqrt(fan-in); the published one has no such value.
    if "init" in module.HF_CONFIG:
        values[module.HF_CONFIG["init"]] = model.config.init or 0.02
    loaded = dict(getattr(model, "settings", getattr(module, "HF_NEW", {"pad_token_id": 0})))
    name = architecture(model)
    # A question's two scores are labels, too, for transformers.
    labels = 2 if name.endswith("ForQuestionAnswering") else model.config.labels
    if labels != labels_in(loaded, "config"):
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        loaded |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    if hasattr(module, "to_published"):
        values = module.to_published(model.config, values)
    kind = loaded.get("model_type")
    own = {"model_type": kind if kind in module.HF_TYPES else module.HF_TYPES[0],
           "architectures": [name], "dtype": str(model.embeddings.word.dtype)}
    loaded.pop(SIGNATURE, None)
    ours = module.__name__.split(".")[-1]
    if TYPES.get(own["model_type"]) != ours:
        own[SIGNATURE] = ours
    return {**loaded, **values, **own}


def json_bytes(value):
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def architecture(model):
    """The transformers class with the most of this model's heads, and with no other."""
    module = file_of(model)
    heads = {head for head in model.HEADS if getattr(model, head) is not None}
    bare = next(iter(module.HF_CLASSES))
    fits = [name for name, has in module.HF_CLASSES.items() if set(has) <= heads] or [bare]
    before = getattr(model, "settings", {}).get("architectures") or [""]
    family = str(before[0]).partition("For")[0].removesuffix("Model")

    def rank(name):
        has = set(module.HF_CLASSES[name])
        # Of equals, the one that was loaded, or one of its family; then the first.
        known = name == before[0], bool(family) and name.startswith(family)
        return len(has - {"pooler"}), len(has), *known

    return max(fits, key=rank)


# ---- weights

def weights_file(folder):
    path = folder / "model.safetensors"
    if not path.exists() and (old := sorted(folder.glob("*.bin"))):
        raise Error(f"{path}: not there, and {old[0].name} is a pickle, which can run any program; "
                    "load it with transformers and call save_pretrained, which writes "
                    "model.safetensors")
    return path


def our_spelling(module, files):
    """{the name as it is spelled today: the name in its file}, for (path, header) pairs.

    Old files say gamma and beta, and a bare model's file leaves out the prefix that a model with
    heads has.
    """
    spellings = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias",
                 **getattr(module, "HF_SPELLINGS", {})}
    prefixes = (module.Model.PREFIX, *getattr(module, "HF_PREFIXES", ()))
    heads = {name.split(".")[0] for head in module.Model.HEADS
             for name in weights_of(module, head)} - {prefixes[0].rstrip(".")}
    found = []
    for path, names in files:
        for name in names:
            today = name
            for old, new in spellings.items():
                today = re.sub(old, new, today)
            found.append((path, name, today))
    bare = not any(today.startswith(prefixes) for _, _, today in found)
    spelled = {}
    for path, name, today in found:
        for prefix in prefixes[1:]:
            if today.startswith(prefix):
                today = prefixes[0] + today.removeprefix(prefix)
        if bare and today.split(".")[0] not in heads:
            today = prefixes[0] + today
        if today in spelled:
            raise Error(f"{path}: holds both {shown(spelled[today])} and {shown(name)}, which are "
                        "one parameter; remove one of them")
        if not re.fullmatch(module.HF_IGNORED, today):
            spelled[today] = name
    return spelled


def weights_of(module, head):
    """The names in a file by which a head is known to be there."""
    rules = [theirs for ours, theirs in module.Model.NAMES.items() if ours.split(".")[0] == head]
    names = [name for theirs in rules for name in ([theirs] if type(theirs) is str else theirs)]
    return {name.replace("*", last) for name in names for last in ("weight", "bias")}


def heads_in(module, names, wanted, path):
    """The heads that a file has any weights for, and those that its class promises."""
    held = {head: weights_of(module, head) & set(names) for head in module.Model.HEADS}
    found = {head for head, has in held.items() if has} | set(wanted)
    # A classifier's name is the same whatever it classifies: architectures decides.
    for head in found - set(wanted):
        rivals = [other for other in found if other != head and held[other] & held[head]]
        if set(rivals) & set(wanted):
            found = found - {head}
        elif rivals:
            raise Error(f"{path}: holds {min(held[head])}, but config.json does not say what for; "
                        f"its architectures should be one of {', '.join(module.HF_CLASSES)}")
    return tuple(head for head in module.Model.HEADS if head in found)


def heads_for(module, head):
    """What a model needs to have this head: itself, and perhaps a pooler under it."""
    if head not in module.Model.HEADS:
        raise Error(f"head: {head!r}, but this model knows {', '.join(module.Model.HEADS)}")
    fits = [has for has in module.HF_CLASSES.values() if head in has]
    return min(fits, key=len, default=(*module.Model.HEADS[head].NEEDS, head))


def fill(model, arrays, renamed, path, dtype, fresh=()):
    """Give every parameter its array.

    Whatever is missing, left over or of another shape is told in one Error.
    """
    module = file_of(model)
    new = {name for head in fresh for name in weights_of(module, head)}
    wanted = {name: (tensor, rows) for name, tensor, rows in published(model) if name not in new}
    # Known heads that are not wanted are left where they are.
    aside = {name for head in model.HEADS for name in weights_of(module, head)}
    tied = {theirs: ours for theirs, ours in module.HF_TIED.items() if ours in wanted}
    aside |= set(module.HF_TIED)
    lost, more = set(wanted) - set(renamed), set(renamed) - set(wanted) - aside
    problems = [*listed("lacks", [shown(name) for name in lost]),
                *listed("also holds", [shown(name) for name in more]),
                *listed("", misshapen(arrays, renamed, wanted), "; ", 20)]
    if problems:
        raise Error(f"{path}: {'; '.join(problems)}; does its config.json belong to it?")
    for name, (tensor, rows) in wanted.items():
        array = arrays[renamed[name]]
        if rows is None:
            tensor.data = array.astype(dtype, copy=False)
        else:
            if not tensor.data.flags.writeable:
                tensor.data = np.empty(tensor.shape, dtype)
            tensor.data[rows] = array
    for name, ours in tied.items():
        if name in renamed and not np.array_equal(arrays[renamed[name]], arrays[renamed[ours]]):
            raise Error(f"{path}: {renamed[name]} differs from {renamed[ours]}; "
                        "a decoder of its own is not supported")


def listed(verb, found, between=", ", most=4):
    if found:
        some = between.join(sorted(found)[:most])
        more = f" and {len(found) - most} more" if len(found) > most else ""
        yield f"{verb} {some}{more}".strip()


def misshapen(arrays, renamed, wanted):
    """Every tensor whose shape is not what config.json makes it."""
    found = []
    for name, (tensor, rows) in wanted.items():
        shape = tensor.data[slice(None) if rows is None else rows].shape
        if name in renamed and (has := arrays[renamed[name]].shape) != shape:
            found.append(f"{shown(renamed[name])} has shape {has}, but config.json makes it "
                         f"{shape}")
    return found
