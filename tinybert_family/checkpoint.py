"""Published checkpoints in and out: Hugging Face's folders, config.json beside model.safetensors.

A model's file in models/ says what its parameters are called there (NAMES) and its settings
(HF_CONFIG); this file does the rest for all of them. Weights are mapped, not read: what is used as
it stands is copied nowhere.
"""
import importlib
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np

from .engine.nn import Init
from .error import Error
from .files import (make_writable, read_json, read_safetensors, safetensors_header, shown,
                    write_atomically, write_safetensors)
from .models.names import in_its_file, published
from .text.wordpiece import WordPiece

VARIANTS = dict(bert="bert")                # model_type in config.json -> file in models/


def variant(model_type, where):
    if not isinstance(model_type, str) or model_type not in VARIANTS:
        raise Error(f"{where}: {model_type!r} is no model of this family; these are: "
                    f"{', '.join(sorted(VARIANTS))}")
    return importlib.import_module(f".models.{VARIANTS[model_type]}", __package__)


def file_of(model):
    """The module in models/ that a model comes from."""
    return importlib.import_module(type(model).__module__)


def load(folder, dtype=np.float32):
    """The model of a folder as transformers saves it, with the heads that have weights there."""
    folder = Path(folder)
    where = folder / "config.json"
    settings = read_json(where)
    module = variant(settings.get("model_type"), where)
    path = weights_file(folder)
    renamed = our_spelling(module, safetensors_header(path), path)
    config, heads = read_config(module, settings, where), heads_in(module, renamed)
    if config.layers > len(renamed):        # before so many are made
        raise Error(f"{path}: holds {len(renamed)} tensors, too few for the {config.layers} layers "
                    "of config.json; the two files do not belong together")
    model = module.Model(config, Init(dtype=dtype), heads)
    model.settings = settings
    fill(model, read_safetensors(path), renamed, path, dtype)
    return model


def save(model, folder):
    """Write config.json and model.safetensors; transformers loads the result."""
    folder = Path(folder)
    make_writable(folder)
    write_safetensors(folder / "model.safetensors", published_arrays(model))
    write_config(model, folder)


def published_arrays(model):
    """{name in the published file: array}"""
    return {name: tensor.data if rows is None else tensor.data[rows]
            for name, tensor, rows in in_its_file(model)}


def load_tokenizer(folder):
    return WordPiece.load(folder)


def count_parameters(config):
    """How many parameters a config.json describes, given as its dict, its path or its folder.

    Shapes only; no memory is taken for the parameters themselves.
    """
    where = "config"
    if not isinstance(config, dict):
        where = Path(config) / "config.json" if Path(config).is_dir() else Path(config)
        config = read_json(where)
    module = variant(config.get("model_type"), where)
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


def read_config(module, settings, where):
    """Our Config from a config.json's dict; what the file leaves out has the published default."""
    for name, accepted in module.HF_REFUSED.items():
        if settings.get(name, accepted) != accepted:
            raise Error(f"{where}: {name} is {settings[name]!r}; only {accepted!r} is supported")
    kinds = {f.name: type(f.default) for f in fields(module.Config)}
    values = {}
    for ours, theirs in module.HF_CONFIG.items():
        if theirs in settings:
            values[ours] = typed(settings[theirs], kinds[ours], f"{where}: {theirs}")
    # The recipe's sequences must not be longer than a small model's positions.
    seq = min(module.Config.seq, values.get("positions", module.Config.positions))
    try:
        return module.Config(**values, seq=seq)
    except Error as problem:
        raise Error(f"{where}: {problem}") from None


def typed(value, kind, what):
    """A number where a number belongs: 512.0 may stand for 512, true and "512" may not."""
    if kind is str and isinstance(value, str):
        return value
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    # NaN is below nothing, so the size is asked first.
    if kind in (int, float) and numeric and abs(value) < 2 ** 31:
        if kind is float or value == int(value):
            return kind(value)
    raise Error(f"{what} is {value!r}, but {'a word' if kind is str else 'a number'} is wanted")


def write_config(model, folder):
    """config.json: what was loaded, if anything was, with this model's values over it."""
    module = file_of(model)
    values = {theirs: getattr(model.config, ours) for ours, theirs in module.HF_CONFIG.items()}
    # 0 is our word for 1 / sqrt(fan-in); the published one has no such value.
    values["initializer_range"] = values.get("initializer_range") or 0.02
    loaded = getattr(model, "settings", {"pad_token_id": 0})
    own = {"model_type": module.HF_TYPE, "architectures": [architecture(model)],
           "dtype": str(model.embeddings.word.dtype)}
    write_atomically(folder / "config.json", json_bytes({**loaded, **values, **own}))


def json_bytes(value):
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def architecture(model):
    """The transformers class with this model's heads."""
    module = file_of(model)
    heads = {head for head in model.HEADS if getattr(model, head) is not None}
    fits = [name for name, has in module.HF_CLASSES.items() if heads <= set(has)]
    return min(fits, key=lambda name: len(module.HF_CLASSES[name]))


# ---- weights

def weights_file(folder):
    path = folder / "model.safetensors"
    if not path.exists() and (old := sorted(folder.glob("*.bin"))):
        raise Error(f"{path}: not there, and {old[0].name} is a pickle, which can run any program; "
                    "load it with transformers and call save_pretrained, which writes "
                    "model.safetensors")
    return path


def our_spelling(module, names, path):
    """{the name as it is spelled today: the name in the file}.

    Old files say gamma and beta, and a bare model's file leaves out the prefix that a model with
    heads has.
    """
    prefix = module.Model.PREFIX
    bare = not any(name.startswith(prefix) for name in names)
    spelled = {}
    for name in names:
        today = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        today = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", today)
        if bare and not today.startswith(module.HF_HEAD_PREFIX):
            today = prefix + today
        if today in spelled:
            raise Error(f"{path}: holds both {shown(spelled[today])} and {shown(name)}, which are "
                        "one parameter; remove one of them")
        if not re.fullmatch(module.HF_IGNORED, today):
            spelled[today] = name
    return spelled


def heads_in(module, names):
    """The heads that a file has any weights for."""
    found = []
    for head in module.Model.HEADS:
        theirs = [name for ours, name in module.Model.NAMES.items() if ours.split(".")[0] == head]
        if any(name.replace("*", "weight") in names for name in theirs):
            found.append(head)
    return tuple(found)


def fill(model, arrays, renamed, path, dtype):
    """Give every parameter its array.

    Anything missing, left over or of another shape is an Error that says so.
    """
    wanted = {name: (tensor, rows) for name, tensor, rows in published(model)}
    complain(path, "lacks", set(wanted) - set(renamed))
    tied = file_of(model).HF_TIED if model.mlm is not None else {}
    complain(path, "also holds", set(renamed) - set(wanted) - set(tied))
    for name, (tensor, rows) in wanted.items():
        array = arrays[renamed[name]]
        shape = tensor.data[slice(None) if rows is None else rows].shape
        if array.shape != shape:
            raise Error(f"{path}: {renamed[name]} has shape {array.shape}, but config.json makes "
                        f"it {shape}; the two files do not belong together")
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


def complain(path, verb, names):
    if names:
        some = ", ".join(shown(name) for name in sorted(names)[:4])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise Error(f"{path}: {verb} {some}{more}; does its config.json belong to it?")
