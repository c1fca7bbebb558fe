"""WordPiece, the tokenizer of BERT: text -> words -> pieces of words -> ids, and back.

A word is cut from the left into the longest pieces that the vocabulary knows; a piece that
continues a word is written "##piece". A word that cannot be cut so is [UNK] as a whole. What a word
is, and what becomes of capitals, accents and signs, stands in characters.py; here are the
tokenizer, its files, and how a vocabulary is learnt.

Why it is fast: language repeats itself, so the answer for each run of text between white space is
kept, and encoding is mostly looking up runs in a dictionary.
"""
import heapq
import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from tinybert_family.error import Error
from tinybert_family.text.characters import Characters, find_kept, ordered

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LONGEST_WORD = 100          # characters; a longer word is [UNK] unseen
MEMO_RUNS, MEMO_LENGTH = 1 << 17, 64        # runs of text remembered, none longer: 40 MB

# --- The tokenizer --------------------------------------------------------------------------------
# str.split() would split at these, but by the rules they vanish.
FALSE_SPACES = dict.fromkeys(map(ord, "\x0b\x0c\x1c\x1d\x1e\x1f\x85"))
# A text without them and without "[", which begins all special tokens, goes the short way.
needs_care = re.compile(r"[\x0b\x0c\x1c-\x1f\x85\[]").search
split_special = re.compile("(%s)" % "|".join(map(re.escape, SPECIAL))).split
# Spaces that decoding closes: in every piece, and on demand once more in the whole text.
GAPS = [" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"]


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


class WordPiece:
    """`encode` and `decode` one text; call it for a batch as a model wants it."""

    def __init__(self, vocab, lower=True, accents=None, chinese=True, max_length=None):
        """`accents`: whether to remove them; None: just when lowering, as published models do.
        `chinese`: each Chinese character is a word. `max_length`: where calls truncate unasked."""
        self.vocab = check(list(vocab), "vocabulary: piece")
        self.lower, self.accents, self.chinese = lower, accents, chinese
        self.max_length = max_length
        self.ids = {piece: i for i, piece in enumerate(self.vocab)}
        self.pad, self.unk, self.cls, self.sep, self.mask = (self.ids[piece] for piece in SPECIAL)
        # Pieces that continue a word are looked up without their "##": that saves gluing it on.
        self.rest = {piece[2:]: i for piece, i in self.ids.items() if piece.startswith("##")}
        self.characters = Characters(lower, lower if accents is None else accents, chinese)
        # Two memories: "(words" is new to the first, but "words" is not to the second.
        self.runs, self.words = Memo(self._run), Memo(self._word)
        self.tails = None

    @property
    def size(self):
        return len(self.vocab)

    def encode(self, text):
        """-> ids, without [CLS] and [SEP]; special tokens written in the text are recognised."""
        ids, runs = [], self.runs
        try:
            care = needs_care(text)
        except TypeError:
            kind = type(text).__name__
            raise Error(f"a tokenizer encodes a str, not {kind}; decode bytes first") from None
        if not care:
            for run in text.split():
                ids += runs[run]
            return ids
        for part in split_special(text):
            if part in SPECIAL:
                ids.append(self.ids[part])
            else:
                for run in part.translate(FALSE_SPACES).split():
                    ids += runs[run]
        return ids

    def pieces(self, text):
        return [self.vocab[i] for i in self.encode(text)]

    def split(self, run):
        """A run of text between white space -> its words and signs, cleaned."""
        if self.characters.accents and find_kept(run):
            run = ordered(run)
        return run.translate(self.characters).split()

    def _run(self, run):
        words = run.translate(self.characters).split() if run.isascii() else self.split(run)
        if len(words) == 1:
            return self.words[words[0]]
        ids = []
        for word in words:
            ids += self.words[word]
        return tuple(ids)

    def _word(self, word):
        """Longest match first."""
        start, size, ids, known = 0, len(word), [], self.ids
        if size > LONGEST_WORD:
            return (self.unk,)
        while start < size:
            end = size
            while (piece := known.get(word[start:end])) is None:
                end -= 1
                if end == start:
                    return (self.unk,)
            ids.append(piece)
            start, known = end, self.rest
        return tuple(ids)

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=False):
        """Pieces -> text. Some signs lose the space before them; what encoding dropped is lost."""
        ids = np.asarray(ids)
        if ids.size == 0:
            return ""
        if ids.dtype.kind not in "iu" or ids.ndim > 1 or ids.min() < 0 or ids.max() >= self.size:
            raise Error(f"decode wants one row of whole numbers from 0 to {self.size - 1}; "
                        "give the rows of a batch one by one")
        ids = np.atleast_1d(ids).tolist()
        if skip_special_tokens:
            special = {self.ids[piece] for piece in SPECIAL}
            ids = [i for i in ids if i not in special]
        if self.tails is None:
            self.tails = [closed(piece[2:] if piece.startswith("##") else " " + piece)
                          for piece in self.vocab]
        # The first piece has nothing to hang on to and keeps its "##".
        text = "".join([self.vocab[i] for i in ids[:1]] + [self.tails[i] for i in ids[1:]])
        return closed(text) if clean_up_tokenization_spaces else text

    # --- Batches ----------------------------------------------------------------------------------

    def __call__(self, texts, pairs=None, max_length=None, truncation=True, padding=True):
        """-> {"input_ids", "token_type_ids", "attention_mask"}: int64 arrays [S, longest], a row
        [CLS] text [SEP] or [CLS] text [SEP] pair [SEP]. `padding`: True (to the longest), False
        (all must be equally long) or "max_length". Truncation shortens the longer of the two."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = [pairs] if isinstance(pairs, str) else pairs
        limit = self.max_length if max_length is None else max_length
        firsts = [self.encode(text) for text in texts]
        seconds = [None] * len(texts) if pairs is None else [self.encode(text) for text in pairs]
        if len(seconds) != len(firsts):
            raise Error(f"{len(firsts)} texts but {len(seconds)} pairs; give every text its pair")
        if truncation and limit is not None:
            room = limit - (2 if pairs is None else 3)
            if room < 0:
                raise Error(f"max_length {limit} has no room for [CLS] and [SEP]; "
                            f"give at least {limit - room}")
            both = [truncated(*row, room) for row in zip(firsts, seconds)]
            firsts, seconds = [first for first, _ in both], [second for _, second in both]
        heads = [[self.cls, *first, self.sep] for first in firsts]
        tails = [[] if second is None else [*second, self.sep] for second in seconds]
        sizes = [len(head) + len(tail) for head, tail in zip(heads, tails)]
        if not padding and len(set(sizes)) > 1:
            raise Error("texts of several lengths make no array without padding; set padding=True")
        width = max(sizes, default=0)
        if padding == "max_length" and limit is not None:
            width = max(width, limit)
        ids = np.full((len(heads), width), self.pad, np.int64)         # [S, longest]
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, (head, tail) in enumerate(zip(heads, tails)):
            ids[row, :sizes[row]] = head + tail
            types[row, len(head):sizes[row]] = 1
            mask[row, :sizes[row]] = 1
        return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}

    # --- Files ------------------------------------------------------------------------------------

    def save(self, folder):
        """Write vocab.txt, and two small files by which transformers loads the same tokenizer."""
        roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        names = dict(zip(roles, SPECIAL))
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": self.lower,
                  "strip_accents": self.accents, "tokenize_chinese_chars": self.chinese, **names}
        if self.max_length is not None:
            config["model_max_length"] = self.max_length
        folder = Path(folder)
        write(folder / "vocab.txt", "".join(piece + "\n" for piece in self.vocab))
        write(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
        write(folder / "special_tokens_map.json", json.dumps(names, indent=2) + "\n")

    @classmethod
    def load(cls, folder):
        """Read vocab.txt (a piece a line, in the order of ids), or tokenizer.json where there is
        none, and the options in tokenizer_config.json."""
        folder = Path(folder)
        path, options = folder / "tokenizer_config.json", {}
        if path.exists():
            options = parse(path)
            refuse_added((options.get("added_tokens_decoder") or {}).values(), path)
        if (folder / "vocab.txt").exists() or not (folder / "tokenizer.json").exists():
            vocab = read_vocab(folder / "vocab.txt")
        else:
            vocab, normalizer = read_tokenizer(folder / "tokenizer.json")
            options = {**normalizer, **options}
        length = options.get("model_max_length")
        if not isinstance(length, int) or length > 1 << 40:        # 1e30 is written for "no limit"
            length = None
        flags = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
        for name, default in flags.items():
            flags[name] = options.get(name, default)
            if flags[name] not in (True, False, default):
                raise Error(f"{path}: {name} is {flags[name]!r}; it must be true or false")
        return cls(vocab, *flags.values(), max_length=length)

    @classmethod
    def train(cls, texts, size, lower=True, progress=None):
        """Learn `size` pieces from texts (an iterable of str); fewer only when the text has no more
        that occur twice. `progress(done, size)` is called now and then."""
        texts = [texts] if isinstance(texts, str) else texts
        counts = count_words(cls(SPECIAL, lower=lower), texts)
        return cls(SPECIAL + learn(counts, size - len(SPECIAL), progress), lower=lower)


def truncated(first, second, room):
    """The shorter of the two is cut only where it alone takes more than half of the room."""
    if second is None:
        return first[:room], None
    if len(first) + len(second) <= room:
        return first, second
    short = min(len(first), len(second), room // 2)
    if len(first) <= len(second):
        return first[:short], second[:room - short]
    return first[:room - short], second[:short]


def closed(text):
    """Without the spaces that written English does not have."""
    for gap in GAPS:
        text = text.replace(gap, gap.strip())
    return text


def check(vocab, where):
    """Refuse what is no list of different pieces with the special tokens among them."""
    numbers = {}
    for number, piece in enumerate(vocab, 1):
        if not isinstance(piece, str) or "\n" in piece:
            raise Error(f"{where} {number} is {piece!r}; a piece is a str without line breaks")
        # Blank lines do occur in published files. They hold a place and match nothing.
        if piece and piece in numbers:
            raise Error(f"{where} {number} repeats {piece!r} of {numbers[piece]}; remove one")
        numbers[piece] = number
    missing = [piece for piece in SPECIAL if piece not in numbers]
    if missing:
        raise Error(f"{where.rpartition(':')[0]}: lacks {' '.join(missing)}; "
                    "a vocabulary of BERT has one piece a line, these among them")
    return vocab


def refuse_added(tokens, path):
    for token in tokens:
        name = token.get("content") if isinstance(token, dict) else token
        if name not in SPECIAL:
            raise Error(f"{path}: added token {name!r}: only {' '.join(SPECIAL)} are known here")


def read_vocab(path):
    # Lines end at "\n" alone: str.splitlines() would also cut at pieces such as U+2028. White space
    # at the end of a line is dropped, as published readers do; with it a piece could never match.
    lines = read(path).removeprefix("\ufeff").removesuffix("\n").split("\n")
    vocab = [line.rstrip() for line in lines]
    return check(vocab, f"{path}: line")


def read_tokenizer(path):
    """tokenizer.json, the file of newer releases of transformers -> (vocabulary, options)"""
    whole = parse(path)
    model, normalizer = whole.get("model"), whole.get("normalizer")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not isinstance(normalizer, dict):
        raise Error(f"{path} describes no WordPiece tokenizer; put a vocab.txt beside it")
    refuse_added(whole.get("added_tokens") or [], path)
    if sorted(vocab.values(), key=str) != sorted(range(len(vocab)), key=str):
        raise Error(f"{path}: the ids in model.vocab are not 0 to {len(vocab) - 1}, each once")
    names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
             "tokenize_chinese_chars": "handle_chinese_chars"}
    options = {ours: normalizer[theirs] for ours, theirs in names.items() if theirs in normalizer}
    return check(sorted(vocab, key=vocab.get), f"{path}: piece"), options


def read(path):
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise Error(f"{path} does not exist; name a folder that holds it") from None
    except OSError as e:
        raise Error(f"{path} cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        raise Error(f"{path}: line {line} is not UTF-8 (byte 0x{e.object[e.start]:02x}); "
                    "is this a text file?") from None


def parse(path):
    text = read(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Error(f"{path} is not JSON: {e}") from None
    if not isinstance(value, dict):
        raise Error(f"{path} is a JSON {type(value).__name__}; it must be an object in braces")
    return value


def write(path, text):
    """Under another name first: whoever looks sees the old file or the new one, never a half."""
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(text.encode())
        os.replace(new, path)
    except OSError as e:
        raise Error(f"{path} cannot be written: {e.strerror}") from None


# --- Learning a vocabulary ------------------------------------------------------------------------
COVERAGE = 0.9999       # of a text's characters are in its alphabet; words with another are [UNK]
COUNTED = 1 << 22       # different runs held while counting; beyond, those seen once are forgotten


def count_words(tokenizer, texts):
    """-> {word: count}. Runs are counted first, for they repeat; then each is split only once."""
    runs, words = Counter(), Counter()
    for text in texts:
        if not isinstance(text, str):
            raise Error(f"a vocabulary is learnt from texts (str), not from {type(text).__name__}")
        for part in split_special(text):
            if part not in SPECIAL:
                runs.update(part.translate(FALSE_SPACES).split())
        if len(runs) > COUNTED:
            runs = Counter({run: n for run, n in runs.items() if n > 1})
    for run, n in runs.items():
        for word in tokenizer.split(run):
            words[word] += n
    return {word: n for word, n in words.items() if len(word) <= LONGEST_WORD}


def learn(words, room, progress=None):
    """{word: count} -> at most `room` pieces: the alphabet, then glued pairs of neighbours.

    How BERT's own vocabulary was learnt was never published. Two readings are told: glue the pair
    ab with the highest count(ab), or the one whose gluing raises the likelihood of the text most,
    the highest count(ab) / (count(a) count(b)). The second spends pieces on rare things that always
    come together; the first makes shorter texts and is what other libraries do under this name. It
    costs little, since after each gluing only the words that hold the pair are counted anew.
    """
    vocab = alphabet(words, room)
    ids = {piece: i for i, piece in enumerate(vocab)}
    spelt = [(spell(word), n) for word, n in words.items()]
    known = [([ids[x] for x in word], n) for word, n in spelt if all(x in ids for x in word)]
    pairs, where = Counter(), defaultdict(set)
    for at, (word, n) in enumerate(known):
        for pair in zip(word, word[1:]):
            pairs[pair] += n
            where[pair].add(at)
    # Equal counts go by ids, so the order of the texts decides nothing. Counts in the heap may be
    # outdated: one that grew was pushed again, one that fell is put right when it comes up.
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    while heap and len(vocab) < room:
        count, pair = heapq.heappop(heap)
        n = pairs[pair]
        if n < 2:           # what occurs once is not worth a piece
            continue
        if n != -count:
            heapq.heappush(heap, (-n, pair))
            continue
        piece = vocab[pair[0]] + vocab[pair[1]].removeprefix("##")
        new = ids.setdefault(piece, len(vocab))         # it may exist: a+bc and ab+c are one piece
        if new == len(vocab):
            vocab.append(piece)
            if progress and len(vocab) % 256 == 0:
                progress(len(vocab), room)
        for pair in glue(pair, new, known, pairs, where):
            heapq.heappush(heap, (-pairs[pair], pair))
    if progress:
        progress(len(vocab), room)
    return vocab


def spell(word):
    return [word[0], *("##" + c for c in word[1:])]


def alphabet(words, room):
    """The commonest characters, each as it occurs: at the beginning of words, inside, or both."""
    pieces, counts = Counter(), Counter()
    for word, n in words.items():
        for piece in spell(word):
            pieces[piece] += n
    for piece, n in pieces.items():
        counts[piece[-1]] += n
    if not counts:
        raise Error("no words to learn a vocabulary from: the text is empty, or holds nothing "
                    "but white space and words of over 100 characters")
    enough, seen, chosen = COVERAGE * sum(counts.values()), 0, set()
    for c, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if seen < enough:
            chosen.add(c)
            seen += n
    letters = sorted(piece for piece in pieces if piece[-1] in chosen)
    needed = len(letters) + len(SPECIAL)
    if len(letters) > room:
        raise Error(f"{room + len(SPECIAL)} pieces are too few for this text: its alphabet and the "
                    f"special tokens take {needed}; ask for {needed} or, better, many more")
    return letters


def glue(pair, new, known, pairs, where):
    """Put `new` in the place of `pair` in all words -> the pairs that became more frequent."""
    change = Counter()
    for at in where.pop(pair):
        word, n = known[at]
        glued, i = [], 0
        while i < len(word):
            found = (word[i], *word[i + 1:i + 2]) == pair
            glued.append(new if found else word[i])
            i += 2 if found else 1
        for old in zip(word, word[1:]):
            change[old] -= n
        for young in zip(glued, glued[1:]):
            change[young] += n
            where[young].add(at)
        known[at] = glued, n
    for changed, n in change.items():
        pairs[changed] += n
    return [changed for changed, n in change.items() if n > 0]
