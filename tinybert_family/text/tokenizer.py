"""What the three kinds of tokenizer share: text -> ids as a model wants them, and back.

    text     "Hello [MASK] world!"
    parts    "Hello ", [MASK], " world!"            added tokens are found before all else
    normal   "hello ", [MASK], " world!"            capitals, accents, white space: normalize.py
    words    "hello", [MASK], "world", "!"          nothing is ever glued across their borders
    pieces   "he" "##llo", [MASK], "world", "!"     the kind's own algorithm: `cut`
    frame    [CLS] ... [SEP]                        what the model was trained with around a text

A kind (wordpiece.py, bytebpe.py, unigram.py) says what its words are and how one is cut. It does so
twice: `words` and `cut` say it plainly and know where everything stood in the text; `_ids` is the
fast way to the same ids. Language repeats itself, so what was answered once is remembered.
"""
import re
from typing import NamedTuple

import numpy as np
import regex

from tinybert_family.error import Error
from tinybert_family.text import framing

ROLES = ("pad", "unk", "cls", "sep", "mask")
BRACKETS = dict(zip(ROLES, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")))     # BERT's names
ANGLES = dict(zip(ROLES, ("<pad>", "<unk>", "<s>", "</s>", "<mask>")))          # RoBERTa's
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
PLAIN = ("input_ids", "attention_mask")     # of models that do not tell two texts apart
MEMO_RUNS, MEMO_LENGTH = 1 << 17, 64        # runs of text remembered, none longer: 40 MB
# What Unicode calls white space; Python's \s has four signs more.
WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
white_before = regex.compile(f"(?r)[{WHITE}]*").match
white_after = re.compile(f"[{WHITE}]*").match
is_word = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]").match
find_half = re.compile("[\ud800-\udfff]").search
# Spaces that decoding closes: in every piece, and on demand once more in the whole text.
GAPS = [" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"]


class Added(NamedTuple):
    """A token that is found in the text as it is written, before anything is cut."""
    text: str
    special: bool = True        # decoding can leave it out
    left: bool = False          # takes the white space before it
    right: bool = False         # ... and after it
    word: bool = False          # only where no letter touches it
    normal: bool = False        # looked for in the normalised text


class Memo(dict):
    """A dictionary that asks `answer` for what it lacks, and forgets everything when it is full."""

    def __init__(self, answer):
        self.answer = answer

    def __missing__(self, key):
        value = self.answer(key)
        if len(key) <= MEMO_LENGTH:
            if len(self) >= MEMO_RUNS:
                self.clear()
            self[key] = value
        return value


class Tokenizer:
    """`encode` and `decode` one text; call it for a batch as a model wants it.

    A kind adds, besides what the file's head tells of:
    `normal`                a normalizer: a text -> its normal form; `aligned` also says from where
    `text_of(pieces)`       decoding
    `to_json()`             normalizer, pre_tokenizer, decoder and model, as tokenizer.json has them
    `from_json(whole, where, vocab, **common)`      from the whole of tokenizer.json, the path for
                            errors, all pieces by id, and arguments for __init__ below
    """
    KIND = None                 # as tokenizer.json names the algorithm
    CLEANS = True               # whether decoding may close the gaps before punctuation
    CARE = ""                   # characters that `_easy` cannot do

    def __init__(self, vocab, roles, added=None, single=None, pair=None, inputs=INPUTS,
                 max_length=None, padding_side="right", truncation_side="right", clean_up=False,
                 own=None):
        """vocab: every piece in the order of ids. roles: {"pad": piece, ...}, one for each role.
        added: tokens to be found in the text (None: the roles). single, pair: the frames, lists of
        (piece or "$A" or "$B", token type). max_length: where calls truncate unasked. own: how many
        of the pieces words are cut into; behind them stand tokens that are only added (None: all).
        """
        self.vocab, self.roles = vocab, roles
        self.ids = {piece: i for i, piece in enumerate(vocab)}
        self.own = {piece: i for i, piece in enumerate(vocab[:own])}
        lacking = [roles[role] for role in ROLES if roles[role] not in self.ids]
        if lacking:
            raise Error(f"the vocabulary lacks {listed(lacking)}; a {self.KIND} vocabulary needs "
                        f"{listed(roles.values())}")
        self.pad, self.unk, self.cls, self.sep, self.mask = (self.ids[roles[r]] for r in ROLES)
        self.added = [Added(roles[role]) for role in ROLES] if added is None else list(added)
        self.added = list({token.text: token for token in self.added}.values())
        cls, sep = (roles["cls"], 0), (roles["sep"], 0)
        self.single = single or [cls, ("$A", 0), sep]
        self.pair = pair or [cls, ("$A", 0), sep, ("$B", 1), (roles["sep"], 1)]
        self.inputs, self.max_length = tuple(inputs), max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.clean_up, self.finders, self.care = clean_up, None, self._care

    @property
    def size(self):
        return len(self.vocab)

    @property
    def special(self):
        return {token.text for token in self.added if token.special}

    # --- One text ---------------------------------------------------------------------------------

    def encode(self, text):
        """-> ids, without a frame; special tokens written in the text are recognised."""
        if not isinstance(text, str):
            raise Error(f"a tokenizer encodes a str, not {type(text).__name__}; decode bytes first")
        if not self.care(text):
            return self._easy(text)
        raw, normal = self.finders
        if not (raw and raw.search(text) or normal and normal.search(self.normal(text))):
            return self._ids(text)
        ids = []
        for part, start, token in parts(text, raw, self.finder):
            if token is not None:
                ids.append(self.ids[token])
            elif normal is None:
                ids += self._ids(part, start == 0)
            else:
                ids += self._between(part, normal, start == 0)
        return ids

    def _between(self, part, normal, first):
        """A part without tokens of the raw text -> ids; it may hold some of the normalised text."""
        text, spans = self.normal.aligned(part)
        for piece, start, token in parts(text, normal, self.normal_finder):
            where = spans[start:start + len(piece)]
            if token is not None:
                yield self.ids[token]
            elif self.normal(piece) == piece:           # normal already: the fast way may see it
                yield from self._ids(piece, first and where[0][0] == 0)
            else:
                for word, _ in self.words(piece, where, first):
                    yield from self.cut(word)[0]

    def trace(self, text):
        """-> (ids, places): the plain way, which knows the (start, end) of each piece in `text`."""
        if not isinstance(text, str):
            raise Error(f"a tokenizer encodes a str, not {type(text).__name__}; decode bytes first")
        refuse_halves(text)
        raw, normal = self.finders or self._find()
        ids, places = [], []
        for part, start, token in parts(text, raw, self.finder):
            if token is not None:
                ids.append(self.ids[token])
                places.append((start, start + len(part)))
                continue
            clean, spans = self.normal.aligned(part)
            spans = [(a + start, b + start) for a, b in spans]
            for piece, at, token in parts(clean, normal, self.normal_finder):
                where = spans[at:at + len(piece)]
                if token is not None:
                    ids.append(self.ids[token])
                    places.append((where[0][0], where[-1][1]))
                else:
                    self._trace(piece, where, start == 0, ids, places)
        return ids, places

    def _trace(self, piece, where, first, ids, places):
        for word, spans in self.words(piece, where, first):
            found, sizes = self.cut(word)
            at, waiting = 0, 0
            for size in sizes:
                waiting += 1
                if size:                    # else it stands where the next one does
                    places += [(spans[at][0], spans[at + size - 1][1])] * waiting
                    at, waiting = at + size, 0
            ids += found

    def pieces(self, text):
        return [self.vocab[i] for i in self.encode(text)]

    def shown(self, piece):
        """A piece for people, in WordPiece's way: "##" before what continues a word"""
        head = self.vocab[self.cls]
        text = self.text_of([head, piece]).removeprefix(self.text_of([head]))
        if piece in self.special or text[:1].isspace():
            return text.strip()
        return "##" + text

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        """Pieces -> text. What normalising dropped is lost."""
        ids = np.asarray(ids)
        if ids.size == 0:
            return ""
        if ids.dtype.kind not in "iu" or ids.ndim > 1 or ids.min() < 0 or ids.max() >= self.size:
            raise Error(f"decode wants one row of whole numbers from 0 to {self.size - 1}; "
                        "give the rows of a batch one by one")
        self.finders or self._find()
        left_out = self.special if skip_special_tokens else ()
        pieces = [self.vocab[i] for i in np.atleast_1d(ids).tolist()]
        text = self.text_of([self.spelt.get(p, p) for p in pieces if p not in left_out])
        clean = clean_up_tokenization_spaces
        clean = self.clean_up if clean is None else clean
        return closed(text) if clean and self.CLEANS else text

    # --- Added tokens -----------------------------------------------------------------------------

    def _find(self):
        """Two patterns, made when first needed: tokens looked for in the raw and normal text."""
        self.spelt = {}
        for token in self.added:
            if token.normal and (normal := self.normal(token.text)) != token.text:
                if not normal:
                    raise Error(f"the added token {token.text!r} normalises to nothing; remove it "
                                'or give it "normalized": false')
                self.spelt[token.text] = normal
        self.finder = {token.text: token for token in self.added if not token.normal}
        self.normal_finder = {self.spelt.get(token.text, token.text): token
                              for token in self.added if token.normal}
        self.finders = tuple(re.compile(longest(finder)) if finder else None
                             for finder in (self.finder, self.normal_finder))
        begins = "".join({text[0] for text in self.finder}) + self.CARE
        self.care = re.compile(f"[{re.escape(begins)}]").search if begins else lambda text: None
        if self.normal_finder:      # where the normal form is asked for, no text is easy
            self.care = bool
        return self.finders

    def _care(self, text):
        """The first text of all has the patterns made."""
        self._find()
        return self.care(text)

    def _easy(self, text):
        """`_ids` for a text that holds no CARE and nothing that begins an added token"""
        return self._ids(text)

    # --- Batches ----------------------------------------------------------------------------------

    def __call__(self, texts, pairs=None, max_length=None, truncation=True, padding=True,
                 pad_to_multiple_of=None, padding_side=None, add_special_tokens=True,
                 return_token_type_ids=None, return_special_tokens_mask=False,
                 return_offsets_mapping=False):
        """-> {"input_ids", "token_type_ids", "attention_mask"}: int64 arrays [S, longest], a row
        [CLS] text [SEP] or [CLS] text [SEP] pair [SEP]. `padding`: True (to the longest), False
        (all must be equally long) or "max_length". `truncation`: True (the longer of the two),
        False, "only_first" or "only_second". More in framing.py."""
        columns = [framing.texts_of(texts)]
        if pairs is not None:
            columns.append(framing.texts_of(pairs))
            if len(columns[0]) != len(columns[1]):
                raise Error(f"{len(columns[0])} texts but {len(columns[1])} pairs; "
                            "give every text its pair")
        frame = self.single if pairs is None else self.pair
        if not add_special_tokens:
            frame = [step for step in frame if step[0] in framing.TEXTS]
        limit = self.max_length if max_length is None else max_length
        room = framing.room_in(frame, limit, truncation, pad_to_multiple_of)
        rows = []
        for both in zip(*columns):
            both = [framing.Text(*self.trace(text)) if return_offsets_mapping else
                    framing.Text(self.encode(text)) for text in both]
            if room is not None:
                both = framing.fitted(both, room, truncation, self.truncation_side)
            rows.append(framing.framed(both, frame, self.ids))
        width = framing.width_of([len(row.ids) for row in rows], padding, limit, pad_to_multiple_of)
        types = return_token_type_ids
        wanted = dict(input_ids=True,
                      token_type_ids="token_type_ids" in self.inputs if types is None else types,
                      attention_mask=True, special_tokens_mask=return_special_tokens_mask,
                      offset_mapping=return_offsets_mapping)
        return framing.arrays_of(rows, width, self.pad, padding_side or self.padding_side,
                                 [name for name, asked in wanted.items() if asked])

    # --- Files ------------------------------------------------------------------------------------

    def files(self):
        """{name: text} of the kind's own files, beside tokenizer.json"""
        return {}

    def options(self):
        """The kind's own entries in tokenizer_config.json"""
        return {}

    def processors(self):
        """What tokenizer.json does to a text's pieces before it frames them"""
        return []

    def save(self, folder):
        """Write the files by which this library, tokenizers and transformers load it again."""
        from . import tokenizer_files           # it knows the kinds, so they cannot know it
        tokenizer_files.save(self, folder)

    @classmethod
    def load(cls, folder):
        from . import tokenizer_files
        tokenizer = tokenizer_files.load(folder)
        if not isinstance(tokenizer, cls):
            raise Error(f"{folder} holds a {tokenizer.KIND} tokenizer, not {cls.KIND}; "
                        "load it with load_tokenizer")
        return tokenizer


def section(whole, name, where, kind):
    """A section of tokenizer.json, which must be of this type."""
    spec = whole.get(name)
    found = spec.get("type") if isinstance(spec, dict) else spec
    if found != kind or not isinstance(spec, dict):
        raise Error(f"{where}: {name} is {found!r}; a {whole['model'].get('type')} tokenizer of "
                    f"this family has {kind}")
    return spec


def listed(names):
    """Names as they stand in a message, which must remain one line whatever they hold."""
    return " ".join(name if name.isprintable() else repr(name) for name in names)


def refuse_halves(text):
    if half := find_half(text):
        raise Error(f"the text holds U+{ord(half[0]):04X}, half a surrogate pair and no character; "
                    "decode its bytes anew, for instance with errors='replace'")


def closed(text):
    """Without the spaces that written English does not have."""
    for gap in GAPS:
        text = text.replace(gap, gap.strip())
    return text


def longest(words):
    """A pattern that finds the longest of the words at a place: a tree of their characters."""
    if max(map(len, words)) > 100:          # a tree so deep is more than the engine takes
        return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    tree = {}
    for word in words:
        node = tree
        for c in word:
            node = node.setdefault(c, {})
        node[""] = {}

    def written(node):
        ways = [re.escape(c) + written(child) for c, child in node.items() if c]
        if not ways:
            return ""
        whole = ways[0] if len(ways) == 1 and "" not in node else f"(?:{'|'.join(ways)})"
        return whole + "?" * ("" in node)
    return written(tree)


def parts(text, pattern, tokens):
    """Split a text at added tokens -> (part, where it begins, the token's text or None)"""
    done = 0
    for match in pattern.finditer(text) if pattern else ():
        token, (start, end) = tokens[match[0]], match.span()
        if token.word and (start and is_word(text[start - 1]) or is_word(text[end:end + 1])):
            continue
        if token.left:
            start = max(done, white_before(text, 0, start).start())
        if token.right:
            end = white_after(text, end).end()
        if done < start:
            yield text[done:start], done, None
        if start < end:         # another token may have taken the white space
            yield text[start:end], start, token.text
        done = max(done, end)
    if done < len(text):
        yield text[done:], done, None
