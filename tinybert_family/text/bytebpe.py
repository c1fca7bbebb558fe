"""Byte-level BPE, the tokenizer of GPT-2, RoBERTa, DeBERTa (v1) and ModernBERT.

    text        "the naïve"
    words       "the" " naïve"                  a word takes the space before it along
    bytes       t h e   Ġ n a Ã ¯ v e           each of the 256 has a character: Ġ is a space
    merges      th e    Ġn a Ã¯ v e             neighbours are glued, the best pair first ...
    pieces      the     ĠnaÃ¯ ve                ... until no two neighbours are a pair

The vocabulary begins with the 256 bytes, so there is no text that cannot be written, and no
unknown word. Learning glues too: again and again the pair of neighbours that is the most frequent
in the text. In that order the pairs are kept, and a pair's place in it, its rank, is how good it
is: a word is cut by doing to it what learning did to the text. Nothing is glued across the borders
of words, so what is said here of a word holds wherever it stands, and can be remembered.
"""
import heapq
import json
import re
from collections import Counter, defaultdict
from itertools import chain
from operator import add

import regex

from tinybert_family.error import Error
from tinybert_family.files import read_text
from tinybert_family.text.normalize import Normalizer
from tinybert_family.text.tokenizer import ANGLES, BRACKETS, PLAIN, ROLES, WHITE, Added, Memo
from tinybert_family.text.tokenizer import Tokenizer, parts, section

# --- Bytes as characters --------------------------------------------------------------------------
# Bytes that Latin-1 prints stand for themselves; the others, which would be blank or do mischief in
# a file, take the characters from U+0100 on.
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
LETTER = {byte: chr(byte) for byte in PRINTED} | {b: chr(256 + n) for n, b in enumerate(OTHERS)}
BYTE = {letter: byte for byte, letter in LETTER.items()}


def spelt(text):
    """ "é" -> "Ã©": a character for each byte."""
    return text.encode().decode("latin-1").translate(LETTER)


# --- Words ----------------------------------------------------------------------------------------
# What is a letter and what a number is a question of the Unicode version. Published tokenizers say
# it by Unicode 16; the installed `regex` may know Unicode 14 to 18. The characters on which they
# disagree stand here, found by trying every code point. Gaps that hold nothing of the kind are
# bridged: the lists get short and cover what comes.
LETTERS = """
    1C89-1C8A A7CB-A7CD A7DA-A7DC 105C0-105F3 10D4A-10D65 10D6F-10D85 10EC2-10EC4 1123F-11240
    11380-11389 1138B 1138E 11390-113B5 113B7 113D1 113D3 11BC0-11BE0 11F02 11F04-11F10 11F12-11F33
    1342F 13441-13446 13460-143FA 16100-1611D 16D40-16D6C 18CFF 1B132 1B155 1DF25-1DF2A 1E030-1E06D
    1E4D0-1E4EB 1E5D0-1E5ED 1E5F0 2B739 2EBF0-2EE5D 31350-323AF"""
NUMBERS = """
    10D40-10D49 116D0-116E3 11BF0-11BF9 11F50-11F59 16130-16139 16D70-16D79 1CCF0-1CCF9 1D2C0-1D2D3
    1E4F0-1E4F9 1E5F1-1E5FA"""
NEITHER = """
    558 58B-58C 88F C5C CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD-A7F1 AB6C-AB6D 107BB-107BF
    10940-10959 10EC5-10EEE 11B0A 11DB0-11DF1 1246F-1247F 12550-12686 16EA0-16ED3 16FF2-16FF6
    187F8-187FF 18CD6-18CDA 18D09-191D2 1B123-1B128 1B168 1D6A6 1DF1F-1DF24 1DF2B-1DFFF 1E6C0-1E6FF
    2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-3FC3F"""


def listed(spans):
    """ "41-5A 61" -> "A-Za", as it is written in the brackets of a pattern."""
    return "".join("-".join(chr(int(end, 16)) for end in span.split("-")) for span in spans.split())


def words_pattern(letters, numbers, others, white):
    """Letters, or numbers, or signs, each with one space before it. White space that is followed by
    a word leaves its last space to the word. English endings such as 's are words by themselves."""
    return (rf"'(?:[stmd]|re|ve|ll)| ?{letters}+| ?{numbers}+| ?{others}+"
            rf"|[{white}]+(?![^{white}])|[{white}]+")


letters, numbers, neither = listed(LETTERS), listed(NUMBERS), listed(NEITHER)
find_words = regex.compile(words_pattern(
    rf"[[\p{{L}}{letters}]--[{neither}]]", rf"[[\p{{N}}{numbers}]--[{neither}]]",
    rf"[[^{WHITE}\p{{L}}\p{{N}}{letters}{numbers}]{neither}]", WHITE), regex.VERSION1).findall
find_ascii_words = re.compile(words_pattern(
    "[A-Za-z]", "[0-9]", r"[^A-Za-z0-9\t-\r ]", r"\t-\r ")).findall
# No word holds a space after anything but white space: there a text can be cut without a doubt.
cut_at_spaces = re.compile(f"(?<=[^{WHITE}]) ").split


def split(text):
    """A text -> its words, which are all of the text."""
    return find_ascii_words(text) if text.isascii() else find_words(text)


def runs_of(text):
    """A text, cut at single spaces -> runs. Each but the first has lost a space before it."""
    # What is printable holds no white space but the space.
    if "  " not in text and text.isprintable():
        return text.split(" ")
    return cut_at_spaces(text)


def frame(roles):
    """What RoBERTa puts around its texts, and around a pair of them. It has no token types."""
    cls, sep, a, b = [(name, 0) for name in (roles["cls"], roles["sep"], "$A", "$B")]
    return dict(single=[cls, a, sep], pair=[cls, a, sep, sep, b, sep], inputs=PLAIN)


# --- The tokenizer --------------------------------------------------------------------------------
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")      # RoBERTa's, in the order of its ids
BLANK = "Ġ" + "".join(c for c in map(chr, range(0x3001)) if re.match(f"[{WHITE}]", c))
# What BPE of other kinds has in tokenizer.json, and this kind has not.
UNUSED = dict(dropout=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
              byte_fallback=False)
NEVER = 1 << 60             # the rank of a pair that is none
LONG = 150                  # bytes; longer words are cut by a method that scales, but starts slower


class ByteBPE(Tokenizer):
    KIND, CLEANS = "BPE", False

    def __init__(self, vocab, merges, roles=ANGLES, prefix_space=False, trim=True, normal=None,
                 use_regex=True, unk_token=None, ignore_merges=False, **common):
        """merges: pairs of pieces, the best first. prefix_space: every text begins with a space, so
        that its first word is like any other. trim: the place of a piece is told without the space
        before it. unk_token: stands for bytes that the vocabulary lacks; None: they are dropped.
        use_regex=False: a text is one word. ignore_merges: a word that is a piece is not cut."""
        if roles["cls"] == ANGLES["cls"]:
            common = {**frame(roles), **common}
        if common.get("added") is None:
            # The models' own masks take the space before them: "a <mask>" is filled with " word".
            common["added"] = [Added(roles[role], left=role == "mask") for role in ROLES]
        super().__init__(list(vocab), roles, **common)
        self.prefix_space, self.trim, self.use_regex = prefix_space, trim, use_regex
        self.unk_token, self.ignore_merges = unk_token, ignore_merges
        self.normal = normal or Normalizer()
        self.merges, ids = checked(merges, self.own, "merges[{}]".format), self.own
        self.ranks = {(ids[a], ids[b]): rank for rank, (a, b) in enumerate(self.merges)}
        self.glued = [ids[a + b] for a, b in self.merges]
        self.unknown = None if unk_token is None else self.ids[unk_token]
        self.bytes = [self.own.get(LETTER[byte], self.unknown) for byte in range(256)]
        self.lacks_bytes = None in self.bytes
        # Two memories: "(words" is new to the first, but " words" is not to the second. The first
        # words of texts have no space before them and are remembered apart.
        self.heads = Memo(lambda text: self._words(self._split(text, True)))
        self.runs, self.known, self.raw = Memo(self._run), Memo(self._word), Memo(self._raw)

    def _ids(self, text, first=True):
        text = self.normal(text)
        runs = runs_of(text) if self.use_regex else [text]
        ids = list(self.heads[runs[0]])
        ids.extend(chain.from_iterable(map(self.runs.__getitem__, runs[1:])))
        return ids

    def _split(self, text, first=False):
        if first and self.prefix_space and text and text[0] != " ":
            text = " " + text
        return split(text) if self.use_regex else [text]

    def _run(self, run):
        if run.isascii() and run.isalpha():
            return self.known[" " + run]
        return self._words(split(" " + run))

    def _words(self, words):
        return tuple(chain.from_iterable(map(self.known.__getitem__, words)))

    def _word(self, word):
        if self.ignore_merges and (whole := self.own.get(spelt(word))) is not None:
            return (whole,)
        return tuple(self.glue([self.bytes[byte] for byte in word.encode()]))

    def glue(self, ids):
        """The ids of single bytes -> the ids of the pieces that are made of them. The pair of the
        best rank is glued first; of equal ones the leftmost."""
        if self.lacks_bytes and None in ids:
            ids = [i for i in ids if i is not None]
        if len(ids) > LONG:
            return self._glue_long(ids)
        rank_of, glued = self.ranks.get, self.glued
        ranks = [rank_of(pair, NEVER) for pair in zip(ids, ids[1:])]
        while ranks and (best := min(ranks)) != NEVER:
            at = ranks.index(best)
            ids[at] = new = glued[best]
            del ids[at + 1], ranks[at]
            # The new piece makes new pairs with its two neighbours.
            if at > 0:
                ranks[at - 1] = rank_of((ids[at - 1], new), NEVER)
            if at < len(ranks):
                ranks[at] = rank_of((new, ids[at + 1]), NEVER)
        return ids

    def _glue_long(self, ids):
        """The same for words without end, where to look at all pairs after each step would take
        hours. The places of pairs wait in a list for each rank. A pair may lose a part to a
        neighbour while it waits; that shows when its turn comes."""
        rank_of, glued, end = self.ranks.get, self.glued, len(ids)
        after, before = [*range(1, end + 1), end], [end, *range(end)]
        ids = [*ids, None]          # at both ends the neighbour is this None, which no pair holds
        places = defaultdict(list)
        for at, pair in enumerate(zip(ids, ids[1:])):
            if (rank := rank_of(pair)) is not None:
                places[rank].append(at)
        heap = list(places)
        heapq.heapify(heap)
        while heap:
            best = heapq.heappop(heap)
            queue = sorted(places.pop(best), reverse=True)
            while queue and not (heap and heap[0] <= best):
                at = queue.pop()
                right = after[at]
                if ids[at] is None or rank_of((ids[at], ids[right])) != best:
                    continue
                ids[at], ids[right] = glued[best], None
                after[at] = after[right]
                before[after[at]] = at
                for left in (before[at], at):
                    rank = rank_of((ids[left], ids[after[left]]))
                    if rank is not None:
                        if rank not in places:
                            heapq.heappush(heap, rank)
                        places[rank].append(left)
            if queue:               # a better pair came up: the others wait again
                if best not in places:
                    heapq.heappush(heap, best)
                places[best] += queue
        return [i for i in ids if i is not None]

    # The plain way, with places.

    def words(self, text, spans, first=True):
        words = self._split(text, True)
        if sum(map(len, words)) > len(text):            # a space was put before it
            spans = [spans[0], *spans]
        spans, found = iter(spans), []
        for word in words:              # the bytes of a character all stand where it stands
            places = [[next(spans)] * len(c.encode()) for c in word]
            found.append((spelt(word), list(chain.from_iterable(places))))
        return found

    def cut(self, word):
        if self.ignore_merges and word in self.own:
            return [self.own[word]], [len(word)]
        ids = self.glue([self.bytes[BYTE[letter]] for letter in word])
        return ids, [1 if i == self.unknown else len(self.vocab[i]) for i in ids]

    def trace(self, text):
        ids, places = super().trace(text)
        if self.trim:
            # An added token is what it took of the text, with the spaces that it ate.
            found = {self.ids[token.text]: token.text for token in self.added}
            pieces = [text[a:b] if i in found and found[i] in text[a:b] else self.vocab[i]
                      for i, (a, b) in zip(ids, places)]
            places = [self._trimmed(piece, *place, n == 0)
                      for n, (piece, place) in enumerate(zip(pieces, places))]
        return ids, places

    def _trimmed(self, piece, start, end, first):
        """A place without the spaces at its ends. A space that was put before the text takes no
        place; so the first piece may keep the one it has."""
        before, after = (len(piece) - len(cut(BLANK)) for cut in (piece.lstrip, piece.rstrip))
        if not (before == 1 and self.prefix_space and (first or start == 0)):
            start = min(start + before, end)
        return start, max(end - after, start) if after <= end else end

    # Pieces -> text.

    def text_of(self, pieces):
        return b"".join([self.raw[piece] for piece in pieces]).decode(errors="replace")

    def _raw(self, piece):
        if all(c in BYTE for c in piece):
            return bytes([BYTE[c] for c in piece])
        return piece.encode()           # an added token that is not spelt in bytes

    # --- Files ------------------------------------------------------------------------------------

    def to_json(self):
        """The sections of tokenizer.json that are BPE's own."""
        level = dict(type="ByteLevel", add_prefix_space=self.prefix_space, trim_offsets=True,
                     use_regex=self.use_regex)
        merges = [list(pair) for pair in self.merges]
        model = dict(type="BPE", unk_token=self.unk_token, ignore_merges=self.ignore_merges,
                     **UNUSED, vocab=self.own, merges=merges)
        return dict(normalizer=self.normal.to_json(), pre_tokenizer=level, decoder=level,
                    model=model)

    def processors(self):
        return [self.to_json()["decoder"]] if self.trim else []

    def files(self):
        merges = "\n".join(["#version: 0.2", *map(" ".join, self.merges), ""])
        return {"vocab.json": json.dumps(self.own, ensure_ascii=False), "merges.txt": merges}

    def options(self):
        return {"add_prefix_space": self.prefix_space, "trim_offsets": self.trim}

    @classmethod
    def from_json(cls, whole, where, vocab, **common):
        # A sequence of one step is that step.
        for name, steps in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
            spec = whole.get(name)
            inner = spec.get(steps) if isinstance(spec, dict) else None
            if isinstance(inner, list) and len(inner) == 1:
                whole = {**whole, name: inner[0]}
        level = section(whole, "pre_tokenizer", where, "ByteLevel")
        section(whole, "decoder", where, "ByteLevel")
        model, known = whole["model"], set(vocab)
        for name in UNUSED:
            if value := model.get(name):
                raise Error(f"{where}: model.{name} is {value!r}; a byte-level BPE of this family "
                            "has none")
        unk = model.get("unk_token")
        if unk is not None and (not isinstance(unk, str) or unk not in known):
            raise Error(f"{where}: model.unk_token is {unk!r}, which is not in the vocabulary")
        flags = {name: level.get(name, True) for name in ("add_prefix_space", "use_regex")}
        flags["ignore_merges"] = model.get("ignore_merges", False)
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise Error(f"{where}: {name} is {value!r}; it must be true or false")
        merges = model.get("merges")
        if not isinstance(merges, list):
            raise Error(f"{where}: model.merges must be a list of pairs of pieces")
        merges = checked(merges, known, lambda n: f"{where}: model.merges[{n}]")
        normal = Normalizer.from_json(whole.get("normalizer"), where)
        prefix = flags.pop("add_prefix_space")
        return cls(vocab, merges, prefix_space=prefix, normal=normal, unk_token=unk, **flags,
                   **common)

    @classmethod
    def train(cls, texts, size, special=SPECIAL, prefix_space=False, normal=None, progress=None,
              **common):
        """Learn `size` pieces from texts (an iterable of str): the special tokens, the bytes, and
        what is glued of them; fewer only when the text has no more pairs that occur twice.
        special: RoBERTa's or BERT's names, and more of your own. progress(done, size) is called
        now and then."""
        texts = [texts] if isinstance(texts, str) else texts
        names = {name: role for usual in (BRACKETS, ANGLES) for role, name in usual.items()}
        roles = {names[name]: name for name in special if name in names}
        if lacking := [role for role in ROLES if role not in roles]:
            raise Error(f"the special tokens lack {' '.join(lacking)}; give "
                        f"{' '.join(BRACKETS.values())} or {' '.join(ANGLES.values())}")
        added = [Added(name, left=name == roles["mask"]) for name in special]
        common = dict(roles=roles, prefix_space=prefix_space, normal=normal, added=added) | common
        vocab = list(dict.fromkeys([*special, *sorted(BYTE)]))
        if not len(vocab) <= size <= MOST:
            raise Error(f"a vocabulary of {size} pieces: choose from {len(vocab)}, which are the "
                        f"special tokens and the 256 bytes, to {MOST}")
        counts = count_words(cls(vocab, [], **common), texts)
        return cls(vocab, learn(counts, vocab, size, progress), **common)


def checked(merges, vocab, where):
    """Merges, each "a b" or [a, b] -> pairs, of which none is impossible. `where`: a merge's number
    -> where it stands."""
    found = {}
    for n, merge in enumerate(merges):
        try:
            left, right = pair = tuple(merge.split(" ") if isinstance(merge, str) else merge)
            if left in vocab and right in vocab and left + right in vocab and pair not in found:
                found[pair] = n
                continue
        except (TypeError, ValueError):
            pair = None
        if pair is None or "" in pair or not all(isinstance(piece, str) for piece in pair):
            raise Error(f"{where(n)} is {merge!r}; a merge is two pieces with a space between them")
        if pair in found:
            raise Error(f"{where(n)}, {merge!r}, repeats {where(found[pair])}; remove one")
        lacking = next(piece for piece in (left, right, left + right) if piece not in vocab)
        raise Error(f"{where(n)}, {merge!r}: {lacking!r} is not in the vocabulary; merges and "
                    "vocabulary must be of the same model")
    return list(found)


def read_merges(path, vocab):
    """merges.txt: a pair a line, the best first, under a line with the version of the format"""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    if lines[0].startswith("#version"):
        lines[0] = ""
    numbers = [n for n, line in enumerate(lines) if line]
    return checked([lines[n] for n in numbers], vocab, lambda n: f"{path}: line {numbers[n] + 1}")


# --- Learning a vocabulary ------------------------------------------------------------------------
MOST = 1 << 20          # pieces, for each is written as a character while learning
LEAST = 2               # what occurs less often is not worth a piece
COUNTED = 1 << 21       # different words held while counting; beyond, those seen once are forgotten


def count_words(tokenizer, texts):
    """-> {word: count}. Runs are counted first, for they repeat; then each is split only once."""
    pattern, _ = tokenizer.finders or tokenizer._find()
    words, runs, heads = Counter(), Counter(), Counter()

    def fold():
        for counts, space in ((heads, ""), (runs, " ")):
            for run, n in counts.items():
                for word in tokenizer._split(space + run, not space):
                    words[word] += n
            counts.clear()
        if len(words) > COUNTED:
            for word in [word for word, n in words.items() if n == 1]:
                del words[word]

    for text in texts:
        if not isinstance(text, str):
            raise Error(f"a vocabulary is learnt from texts (str), not from {type(text).__name__}")
        for part, _, token in parts(text, pattern, tokenizer.finder):
            if token is None:
                part = tokenizer.normal(part)
                first, *rest = runs_of(part) if tokenizer.use_regex else [part]
                heads[first] += 1
                runs.update(rest)
        if len(runs) + len(heads) > COUNTED:
            fold()
    fold()
    return words


def learn(counts, vocab, size, progress=None):
    """{word: count} -> the merges, the most frequent first. The pieces they make join `vocab`.

    Gluing a pair changes only the words that hold it, and there only the pairs on its two sides. So
    every pair is counted once, each count is kept up to date, and with it the list of words where
    the pair was seen. Counts in the heap may be outdated: a pair that grew was pushed again, and
    one that fell is put right when it comes up. Of equal counts the pair with the lower ids goes
    first, so the order of the texts decides nothing.

    A word is written as a str here, each piece the character whose number is its id. To glue is
    then to split at the pair and to join by the new character, both at the speed of C.
    """
    ids = {piece: i for i, piece in enumerate(vocab)}
    alphabet = {byte: chr(ids[LETTER[byte]]) for byte in range(256)}
    words = [word.encode().decode("latin-1").translate(alphabet) for word in counts]
    counts = list(counts.values())
    where = defaultdict(list)
    for at, word in enumerate(words):
        for pair in map(add, word, word[1:]):
            where[pair].append(at)
    pairs, heap, merges = defaultdict(int), [], {}
    for pair, found in where.items():
        pairs[pair] = sum(map(counts.__getitem__, found))
        heapq.heappush(heap, entry(pair, pairs[pair], found))
    while heap and len(vocab) < size:
        _, count, pair, found = heapq.heappop(heap)
        if pairs[pair] != count:
            heapq.heappush(heap, entry(pair, pairs[pair], found))
            continue
        if count < LEAST:
            break
        left, right = pair
        piece = vocab[ord(left)] + vocab[ord(right)]
        new = ids.setdefault(piece, len(vocab))         # it may exist: a+bc and ab+c are one piece
        vocab += [piece] * (new == len(vocab))
        if progress and new % 256 == 0:
            progress(new, size)
        merges.pop(pair, None)      # a pair that an old piece brought back ranks where it came last
        merges[pair] = True
        for grown, found in glue(pair, chr(new), found, words, counts, pairs).items():
            if pairs[grown] > 0:
                heapq.heappush(heap, entry(grown, pairs[grown], found))
    if progress:
        progress(len(vocab), size)
    return [(vocab[ord(left)], vocab[ord(right)]) for left, right in merges]


def entry(pair, count, found):
    """What the heap sorts: the highest count first, then the lowest ids, all in one number."""
    return (ord(pair[0]) << 21) + ord(pair[1]) - (count << 42), count, pair, found


def glue(pair, new, found, words, counts, pairs):
    """Put `new` in the place of `pair` in the words -> {pair that became more frequent: words}"""
    left, right = pair
    befores, afters = defaultdict(list), defaultdict(list)
    for at in found:
        between = words[at].split(pair)
        if len(between) == 2:
            before, after = between
            words[at] = before + new + after
            if before:
                befores[before[-1]].append(at)
            if after:
                afters[after[0]].append(at)
        elif len(between) > 2:
            # From the left: before it stands what was just glued, behind it what will be next.
            words[at] = new.join(between)
            for n, (before, after) in enumerate(zip(between, between[1:])):
                if before or n > 0:
                    befores[before[-1:] or new].append(at)
                if after or n < len(between) - 2:
                    afters[after[:1] or left].append(at)
    grown = {}
    for before, found in befores.items():
        n = sum(map(counts.__getitem__, found))
        pairs[before + left] -= n
        pairs[before + new] += n
        grown[before + new] = found
    for after, found in afters.items():
        n = sum(map(counts.__getitem__, found))
        pairs[right + after] -= n
        pairs[new + after] += n
        grown[new + after] = grown.get(new + after, []) + found
    return grown
