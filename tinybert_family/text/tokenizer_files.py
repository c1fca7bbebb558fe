"""A tokenizer's files, as published checkpoints carry them, in and out.

    tokenizer.json                  everything in one file; used first where it is there
    vocab.txt                       WordPiece: a piece a line, in the order of ids
    vocab.json and merges.txt       byte-level BPE: {piece: id}, and what is glued, best first
    *.model                         Unigram: SentencePiece's own format (sentencepiece.py)
    tokenizer_config.json           beside each of them: names of special tokens, options, limits
    special_tokens_map.json         the older places of such names, read where the newer is silent
    added_tokens.json
"""
import json
import os
from pathlib import Path

from tinybert_family.error import Error
from tinybert_family.files import make_writable, read_json, shown, write_atomically
from tinybert_family.text import bytebpe, sentencepiece, unigram, wordpiece
from tinybert_family.text.framing import SIDES
from tinybert_family.text.tokenizer import ANGLES, BRACKETS, PLAIN, ROLES, Added, listed

KINDS = {kind.KIND: kind for kind in (wordpiece.WordPiece, bytebpe.ByteBPE, unigram.Unigram)}
# Models that were made without token types, by the tokenizer's class in tokenizer_config.json.
UNTYPED = ("Roberta", "XLMRoberta", "DistilBert", "ModernBert", "Camembert")
FLAGS = dict(special="special", left="lstrip", right="rstrip", word="single_word",
             normal="normalized")


# --- Reading --------------------------------------------------------------------------------------

def load(folder):
    """The tokenizer in a folder, by whichever of the files above it holds."""
    folder = Path(folder)
    readers = {"tokenizer.json": from_tokenizer_json, "vocab.txt": from_vocab_txt,
               "vocab.json": from_vocab_json, **dict.fromkeys(unigram.FAMILIES, from_model)}
    for name, read_it in readers.items():
        if os.path.lexists(folder / name):
            try:
                return read_it(folder / name, options_of(folder))
            except Error as e:
                known = str(folder) in str(e)
                raise Error(str(e) if known else f"{shown(folder / name)}: {e}") from None
    if not folder.is_dir():
        raise Error(f"{folder} is no folder; name one that holds {', '.join(readers)}")
    raise Error(f"{folder} holds no tokenizer: none of {', '.join(readers)} is there")


def options_of(folder):
    """tokenizer_config.json and its elders in one dict; special tokens also under "roles"."""
    options, path, said = {}, folder / "tokenizer_config.json", {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if os.path.lexists(folder / name):
            more = read_json(folder / name)
            options.update(more)
            said.update(dict.fromkeys(more, folder / name))
    options["path"] = path
    roles, tokens = {}, {}
    for role in ROLES:
        if (token := options.get(role + "_token")) is not None:
            where = f"{said[role + '_token']}: {role}_token"
            added = added_of(token, where, normal=False)
            roles[role] = added.text
            if isinstance(token, dict):
                tokens[added.text] = added
    options["roles"] = roles
    decoder = options.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise Error(f"{path}: added_tokens_decoder must be an object, from ids to tokens")
    extra = {}
    for number, token in decoder.items():
        added = added_of(token, f"{path}: added_tokens_decoder {number!r}", special=False)
        extra[added.text] = whole_number(number, path, f"added_tokens_decoder {number!r}")
        tokens[added.text] = added
    if (folder / "added_tokens.json").exists():
        path = folder / "added_tokens.json"
        for text, number in read_json(path).items():
            added = added_of(text, f"{path}: {text!r}", special=False, normal=False)
            extra.setdefault(text, whole_number(number, path, f"the id of {text!r}"))
            tokens.setdefault(text, added)
    options["tokens"], options["extra"] = tokens, extra
    return options


def from_tokenizer_json(path, options):
    whole = read_json(path)
    kind, pieces = pieces_in(whole.get("model"), path)
    options["own"] = len(pieces)
    pieces = extended(pieces, {**options["extra"], **added_in(whole, options, path)}, path)
    if (unk := unknown_of(whole["model"], pieces, options["own"], path)) is not None:
        options["roles"]["unk"] = unk
    frame = frame_of(whole.get("post_processor"), dict(enumerate(pieces)), path)
    common = common_of(pieces, options, path) | frame
    if not any(kind for _, kind in frame["pair"]):
        common.setdefault("inputs", PLAIN)
    if kind == "BPE":
        check_prefixes(whole, path)
    else:
        common.pop("trim")
    if kind == "WordPiece":
        common |= wordpiece_options(options)
    return KINDS[kind].from_json(whole, path, pieces, **common)


def pieces_in(model, path):
    """-> (the kind of tokenizer, the pieces of its own model in the order of ids)"""
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise Error(f"{path}: model.vocab is missing; this is no tokenizer of the tokenizers "
                    "library")
    kind, vocab = model.get("type"), model["vocab"]
    if not kind:                        # older files do not name it
        kind = "Unigram" if isinstance(vocab, list) else "WordPiece"
        kind = "BPE" if "merges" in model else kind
    if not isinstance(kind, str) or kind not in KINDS:
        raise Error(f"{path}: model.type is {kind!r}; known are {', '.join(KINDS)}")
    if (kind == "Unigram") != isinstance(vocab, list):
        raise Error(f"{path}: model.vocab must be {'a list' if kind == 'Unigram' else 'an object'}"
                    f" for a {kind} model")
    if kind == "Unigram":
        return kind, [unigram.read_entry(entry, n, path)[0] for n, entry in enumerate(vocab)]
    return kind, in_order(vocab, f"{path}: model.vocab")


def added_in(whole, options, path):
    """Takes the added tokens over into options -> {text: id}"""
    tokens, ids = whole.get("added_tokens") or [], {}
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise Error(f"{path}: added_tokens must be a list of objects")
    for n, token in enumerate(tokens):
        added = added_of(token, f"{path}: added_tokens[{n}]", special=False)
        ids[added.text] = whole_number(token.get("id"), path, f"added_tokens[{n}].id")
        options["tokens"][added.text] = added
    return ids


def unknown_of(model, pieces, own, path):
    """The piece for what no piece covers, where the model itself says which that is"""
    number, name = model.get("unk_id"), model.get("unk_token")
    if isinstance(model["vocab"], list):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < own:
            raise Error(f"{path}: model.unk_id is {number!r}; it must be the number of the piece "
                        "for what no piece covers")
        return pieces[number]
    if name is None or "merges" in model:       # bytes are never unknown
        return None
    if not isinstance(name, str) or name not in pieces:
        raise Error(f"{path}: model.unk_token is {name!r}, which is not in the vocabulary")
    return name


def from_vocab_txt(path, options):
    vocab = wordpiece.read_vocab(path)
    wordpiece.check(vocab, f"{path}: line", roles={})
    options["own"] = len(vocab)
    vocab = extended(vocab, options["extra"], path)
    common = common_of(vocab, options, path, roles={**BRACKETS, **options["roles"]})
    return wordpiece.WordPiece(vocab, **common, **wordpiece_options(options))


def wordpiece_options(options):
    names = dict(lower="do_lower_case", accents="strip_accents", chinese="tokenize_chinese_chars")
    found = flags_of(options, names)
    if "strip_accents" in options:              # null is an answer, too: just when lowering
        found.setdefault("accents", None)
    return found


def flags_of(options, names):
    """{ours: its name in tokenizer_config.json} -> {ours: True or False}; null: as if not there"""
    found = {ours: options[theirs] for ours, theirs in names.items()
             if options.get(theirs) is not None}
    for ours, value in found.items():
        if not isinstance(value, bool):
            raise Error(f"{options['path']}: {names[ours]} is {value!r}; it must be true or false")
    return found


def from_vocab_json(path, options):
    vocab = read_json(path)
    options["own"] = len(vocab)
    pieces = extended(in_order(vocab, str(path)), options["extra"], path)
    merges = bytebpe.read_merges(path.with_name("merges.txt"), vocab)
    common = common_of(pieces, options, path)
    mask, stated = common["roles"]["mask"], options["tokens"]
    # Both models that publish these files let the mask take the space before it.
    common["added"] = [token._replace(left=True) if token.text == mask not in stated else token
                       for token in common["added"]]
    prefix = flags_of(options, dict(prefix_space="add_prefix_space"))
    # RoBERTa's places leave out the space before a word; DeBERTa's do not.
    trim = common["roles"]["cls"] == ANGLES["cls"]
    return bytebpe.ByteBPE(pieces, merges, trim=trim, **prefix, **common)


def from_model(path, options):
    model = sentencepiece.read(path)
    names = "do_lower_case", "keep_accents", "split_by_punct"
    settings = flags_of(options, {name: name for name in names})
    return unigram.from_model(model, unigram.FAMILIES[path.name], path, settings,
                              **limits_of(options))


# What the formats have in common.

def common_of(vocab, options, path, roles=None):
    """The arguments that every kind hands to Tokenizer."""
    known = set(vocab)
    roles = dict(roles or options["roles"])
    for role in ROLES:          # not named: BERT's name where the vocabulary has it, or RoBERTa's
        usual = [name for name in (BRACKETS[role], ANGLES[role]) if name in known]
        roles.setdefault(role, (usual or [BRACKETS[role]])[0])
    if lacking := [roles[role] for role in ROLES if roles[role] not in known]:
        raise Error(f"{path}: the vocabulary lacks {listed(lacking)}; each of "
                    f"{', '.join(role + '_token' for role in ROLES)} must be in it "
                    "(tokenizer_config.json can name others)")
    tokens = {text: token for text, token in options["tokens"].items() if text in known}
    for name in roles.values():
        tokens[name] = tokens.get(name, Added(name))._replace(special=True)
    return dict(roles=roles, added=list(tokens.values()), own=options["own"], **limits_of(options))


def limits_of(options):
    path, length = options["path"], options.get("model_max_length")
    # 1e30 is written for "no limit"
    bounded = isinstance(length, int) and not isinstance(length, bool) and length < 1 << 40
    limits = dict(max_length=length if bounded else None)
    inputs = options.get("model_input_names")
    if inputs is None and str(options.get("tokenizer_class")).startswith(UNTYPED):
        inputs = PLAIN
    if inputs is not None:
        if not isinstance(inputs, (list, tuple)) or not all(isinstance(x, str) for x in inputs):
            raise Error(f"{path}: model_input_names is {inputs!r}; it must be a list of names")
        limits["inputs"] = tuple(inputs)
    for name in ("padding_side", "truncation_side"):
        limits[name] = options.get(name, "right")
        if limits[name] not in SIDES:
            raise Error(f'{path}: {name} is {limits[name]!r}; it must be "left" or "right"')
    return dict(limits, clean_up=bool(options.get("clean_up_tokenization_spaces", False)))


def added_of(token, where, special=True, normal=True):
    """A token as a JSON file has it (its text, or an object with flags) -> Added"""
    if isinstance(token, str):
        token = {"content": token, "normalized": normal, "special": special}
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise Error(f"{where} must be a text, or an object with \"content\"")
    if not token["content"]:
        raise Error(f"{where} is empty; remove it")
    default = dict(special=special, normal=not token.get("special", special))
    flags = {ours: token.get(theirs, default.get(ours, False)) for ours, theirs in FLAGS.items()}
    for ours, value in flags.items():
        if not isinstance(value, bool):
            raise Error(f"{where}: {FLAGS[ours]} is {value!r}; it must be true or false")
    return Added(token["content"], **flags)


def in_order(vocab, where):
    """{piece: id} -> pieces in the order of ids, of which none may be missing"""
    for piece, number in vocab.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 31:
            raise Error(f"{where}: the id of {piece!r} is {number!r}; ids are whole numbers from 0")
    pieces = sorted(vocab, key=vocab.get)
    for i, piece in enumerate(pieces):
        if vocab[piece] != i:
            what = "is missing" if vocab[piece] > i else "is given twice"
            raise Error(f"{where}: the id {min(i, vocab[piece])} {what}; "
                        f"{len(vocab)} pieces must have the ids 0 to {len(vocab) - 1}")
    return pieces


def extended(pieces, extra, path):
    """Pieces, and after them the added tokens that are not among them, each at its id."""
    pieces, known = list(pieces), {piece: i for i, piece in enumerate(pieces)}
    for text, number in sorted(extra.items(), key=lambda item: item[1]):
        if known.setdefault(text, number) != number:
            raise Error(f"{path}: the added token {text!r} has the id {number}, but the vocabulary "
                        f"has it as {known[text]}")
        if number >= len(pieces):
            if number > len(pieces):
                raise Error(f"{path}: the added token {text!r} has the id {number}, but nothing "
                            f"has the id {len(pieces)}")
            pieces.append(text)
        elif pieces[number] != text:
            raise Error(f"{path}: the added token {text!r} has the id {number}, which belongs to "
                        f"{pieces[number]!r}")
    return pieces


def whole_number(value, path, what):
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise Error(f"{path}: {what} is {value!r}; it must be a whole number from 0")
    return value


# --- The frame ------------------------------------------------------------------------------------

def frame_of(spec, names, path):
    """The post_processor of tokenizer.json -> single, pair, and whether places are trimmed"""
    bare = dict(single=[("$A", 0)], pair=[("$A", 0), ("$B", 1)], trim=False)
    if spec is None:
        return bare
    kind = spec.get("type") if isinstance(spec, dict) else None
    where = f"{path}: post_processor"
    if kind == "Sequence":
        inner = spec.get("processors")
        if not isinstance(inner, list) or not all(isinstance(part, dict) for part in inner):
            raise Error(f"{where}.processors must be a list of objects")
        for part in inner:
            found = frame_of(part, names, path)
            if part.get("type") != "ByteLevel":
                bare |= dict(single=found["single"], pair=found["pair"])
            bare["trim"] |= found["trim"]
        return bare
    trim = isinstance(spec, dict) and spec.get("trim_offsets", True)
    if not isinstance(trim, bool):
        raise Error(f"{where}.trim_offsets is {trim!r}; it must be true or false")
    if kind == "ByteLevel":
        return bare | dict(trim=trim)
    if kind == "TemplateProcessing":
        special = spec.get("special_tokens") or {}
        if not isinstance(special, dict) or not all(isinstance(x, dict) for x in special.values()):
            raise Error(f"{where}.special_tokens must be an object of objects")
        ids = {name: x.get("ids") for name, x in special.items()}
        return bare | {which: template(spec.get(which), ids, names, f"{where}.{which}")
                       for which in ("single", "pair")}
    if kind in ("BertProcessing", "RobertaProcessing"):
        try:
            roles = {role: names[spec[role][1]] for role in ("cls", "sep")}
        except (LookupError, TypeError):
            raise Error(f"{where}: cls and sep must be [token, id] of this vocabulary") from None
        if kind == "RobertaProcessing":
            frame = bytebpe.frame(roles)
            return dict(single=frame["single"], pair=frame["pair"],
                        trim=trim)
        cls, sep = (roles["cls"], 0), (roles["sep"], 0)
        return bare | dict(single=[cls, ("$A", 0), sep],
                           pair=[cls, ("$A", 0), sep, ("$B", 1), (roles["sep"], 1)])
    raise Error(f"{where}.type is {kind!r}; known are TemplateProcessing, BertProcessing, "
                "RobertaProcessing, ByteLevel and a Sequence of them")


def check_prefixes(whole, path):
    """Whether texts begin with a space is said in two places, and then must be said alike."""
    said = {}
    for name, steps in ("pre_tokenizer", "pretokenizers"), ("post_processor", "processors"):
        spec = whole.get(name)
        inner = spec.get(steps) if isinstance(spec, dict) else None
        for part in inner if isinstance(inner, list) else [spec]:
            if isinstance(part, dict) and part.get("type") in ("ByteLevel", "RobertaProcessing"):
                said[f"{name}.add_prefix_space"] = part.get("add_prefix_space", True)
    if len(set(map(str, said.values()))) > 1:
        raise Error(f"{path}: {' and '.join(said)} differ; give both the same value")


def template(steps, ids, names, where):
    frame = []
    try:
        for step in steps:
            (kind, x), = step.items()
            if kind == "Sequence":
                frame.append(({"A": "$A", "B": "$B"}[x["id"]], x["type_id"]))
            else:
                frame += [(names[i], x["type_id"]) for i in ids[x["id"]]]
        wrong = not all(isinstance(kind, int) and 0 <= kind < 1 << 31 for _, kind in frame)
    except (LookupError, TypeError, ValueError, AttributeError):
        wrong = True
    texts = [name for name, _ in frame if name in ("$A", "$B")]
    if wrong or texts != (["$A"] if where.endswith("single") else ["$A", "$B"]):
        raise Error(f"{where} must be a list of the texts A (and B), each once and in order, and "
                    "of special tokens that special_tokens gives ids of this vocabulary")
    return frame


# --- Writing --------------------------------------------------------------------------------------

def save(tokenizer, folder):
    """Write tokenizer.json, the kind's own files, and what transformers wants to know besides."""
    folder = Path(folder)
    config = config_of(tokenizer)
    names = {role + "_token": config[role + "_token"] for role in ROLES}
    files = {**tokenizer.files(), "tokenizer.json": as_json(whole_of(tokenizer)),
             "tokenizer_config.json": as_json(config), "special_tokens_map.json": as_json(names)}
    make_writable(folder)
    for name, text in files.items():
        write_atomically(folder / name, text.encode())


def whole_of(tokenizer):
    """Everything in one JSON object, as the tokenizers library reads it."""
    ids = tokenizer.ids
    added = sorted((ids[token.text], json_of(token)) for token in tokenizer.added)
    own = tokenizer.to_json()
    special = {name: dict(id=name, ids=[ids[name]], tokens=[name])
               for frame in (tokenizer.single, tokenizer.pair) for name, _ in frame if name in ids}
    processor = dict(type="TemplateProcessing", single=steps_of(tokenizer.single),
                     pair=steps_of(tokenizer.pair), special_tokens=special)
    if before := tokenizer.processors():
        processor = dict(type="Sequence", processors=[*before, processor])
    return dict(version="1.0", truncation=None, padding=None,
                added_tokens=[dict(id=i, **token) for i, token in added],
                normalizer=own["normalizer"], pre_tokenizer=own["pre_tokenizer"],
                post_processor=processor, decoder=own["decoder"], model=own["model"])


def json_of(token):
    return dict(content=token.text, **{FLAGS[name]: getattr(token, name) for name in FLAGS})


def steps_of(frame):
    return [{"Sequence": dict(id=name[1], type_id=kind)} if name in ("$A", "$B") else
            {"SpecialToken": dict(id=name, type_id=kind)} for name, kind in frame]


def config_of(tokenizer):
    # Classes of transformers that build a tokenizer from parts may build another one than this.
    # The general class takes tokenizer.json as it stands.
    config = dict(tokenizer_class="PreTrainedTokenizerFast", padding_side=tokenizer.padding_side,
                  truncation_side=tokenizer.truncation_side,
                  clean_up_tokenization_spaces=tokenizer.clean_up,
                  model_input_names=list(tokenizer.inputs),
                  added_tokens_decoder={str(tokenizer.ids[token.text]): json_of(token)
                                        for token in tokenizer.added})
    if tokenizer.max_length is not None:
        config["model_max_length"] = tokenizer.max_length
    flags = {token.text: token for token in tokenizer.added}
    for role, name in tokenizer.roles.items():
        token = flags.get(name, Added(name))
        plain = token == Added(name)
        config[role + "_token"] = name if plain else {"__type": "AddedToken", **json_of(token)}
    return config | tokenizer.options()


def as_json(value):
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
