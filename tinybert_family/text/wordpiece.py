"""WordPiece, the tokenizer of BERT: text -> words -> pieces of words -> ids, and back.

A word is cut from the left into the longest pieces that the vocabulary knows; a piece that
continues a word is written "##piece". A word that cannot be cut so is [UNK] as a whole. What a word
is, and what becomes of capitals, accents and signs, stands in characters.py; here are the
tokenizer, its files, and how a vocabulary is learnt.

Why it is fast: language repeats itself, so the answer for each run of text between white space is
kept, and encoding is mostly looking up runs in a dictionary.
"""
import heapq
import math
import re
from collections import Counter, defaultdict

from tinybert_family.error import Error
from tinybert_family.files import read_text
from tinybert_family.text.characters import BertNormalizer, Characters, is_punctuation, within
from tinybert_family.text.characters import WHITE, find_kept, ordered
from tinybert_family.text.tokenizer import BRACKETS, Memo, Tokenizer
from tinybert_family.text.tokenizer import closed, listed, longest, section

SPECIAL = list(BRACKETS.values())
LONGEST_WORD = 100          # characters; a longer word is [UNK] unseen

# --- The tokenizer --------------------------------------------------------------------------------
# str.split() would split at these, but by the rules they vanish.
FALSE_SPACES = dict.fromkeys(map(ord, "\x0b\x0c\x1c\x1d\x1e\x1f\x85"))
split_special = re.compile(f"({longest(SPECIAL)})").split


class WordPiece(Tokenizer):
    KIND = "WordPiece"
    CARE = "".join(map(chr, FALSE_SPACES))

    def __init__(self, vocab, lower=True, accents=None, chinese=True, closes=True, roles=BRACKETS,
                 **common):
        """`accents`: whether to remove them; None: just when lowering, as published models do.
        `chinese`: each Chinese character is a word. `closes`: decoding closes gaps in each piece"""
        vocab = check(list(vocab), "vocabulary: piece", roles, common.get("own"))
        super().__init__(vocab, roles, **common)
        self.lower, self.accents, self.chinese, self.closes = lower, accents, chinese, closes
        # Pieces that continue a word are looked up without their "##": that saves gluing it on.
        self.rest = {piece[2:]: i for piece, i in self.own.items() if piece.startswith("##")}
        options = lower, lower if accents is None else accents, chinese
        self.normal, self.characters = BertNormalizer(*options), Characters(*options, apart=True)
        # Two memories: "(words" is new to the first, but "words" is not to the second.
        self.runs, self.known = Memo(self._run), Memo(self._word)
        self.tails = Memo(self._tail)

    def _easy(self, text):
        ids, runs = [], self.runs
        for run in text.split():
            ids += runs[run]
        return ids

    def _ids(self, text, first=True):
        return self._easy(text.translate(FALSE_SPACES))

    def split(self, run):
        """A run of text between white space -> its words and signs, cleaned."""
        if self.characters.accents and find_kept(run):
            run = ordered(run)
        return run.translate(self.characters).split()

    def _run(self, run):
        words = run.translate(self.characters).split() if run.isascii() else self.split(run)
        if len(words) == 1:
            return self.known[words[0]]
        ids = []
        for word in words:
            ids += self.known[word]
        return tuple(ids)

    def _word(self, word):
        """Longest match first."""
        start, size, ids, known = 0, len(word), [], self.own
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

    # The plain way, with places.

    def words(self, text, spans, first=True):
        """At white space, and before and after every sign."""
        words, start = [], 0
        for i, c in enumerate(text + " "):
            white = within(ord(c), WHITE)
            if white or is_punctuation(c):
                words += [(start, i)] * (start < i) + [(i, i + 1)] * (not white)
                start = i + 1
        return [(text[a:b], spans[a:b]) for a, b in words]

    def cut(self, word):
        ids = self._word(word)
        if ids == (self.unk,):
            return ids, (len(word),)
        return ids, [len(self.vocab[i]) - 2 * (n > 0) for n, i in enumerate(ids)]

    # Pieces -> text. Some signs lose the space before them.

    def text_of(self, pieces):
        # The first piece has nothing to hang on to and keeps its "##".
        first = [closed(piece) if self.closes else piece for piece in pieces[:1]]
        return "".join(first + [self.tails[piece] for piece in pieces[1:]])

    def shown(self, piece):
        return piece

    def _tail(self, piece):
        text = piece[2:] if piece.startswith("##") else " " + piece
        return closed(text) if self.closes else text

    # --- Files ------------------------------------------------------------------------------------

    def to_json(self):
        """The sections of tokenizer.json that are WordPiece's own."""
        model = dict(type="WordPiece", unk_token=self.roles["unk"], continuing_subword_prefix="##",
                     max_input_chars_per_word=LONGEST_WORD, vocab=self.own)
        return dict(normalizer=self.normal.to_json(self.accents),
                    pre_tokenizer=dict(type="BertPreTokenizer"),
                    decoder=dict(type="WordPiece", prefix="##", cleanup=self.closes), model=model)

    @classmethod
    def from_json(cls, whole, where, vocab, **common):
        normalizer = section(whole, "normalizer", where, "BertNormalizer")
        section(whole, "pre_tokenizer", where, "BertPreTokenizer")
        decoder = section(whole, "decoder", where, "WordPiece")
        model = whole["model"]
        fixed = {f"{where}: model.continuing_subword_prefix":
                 (model.get("continuing_subword_prefix", "##"), "##"),
                 f"{where}: model.max_input_chars_per_word":
                 (model.get("max_input_chars_per_word", LONGEST_WORD), LONGEST_WORD),
                 f"{where}: normalizer.clean_text": (normalizer.get("clean_text", True), True),
                 f"{where}: decoder.prefix": (decoder.get("prefix", "##"), "##")}
        for field, (value, only) in fixed.items():
            if value != only:
                raise Error(f"{field} is {value!r}; only {only!r} is known here")
        names = dict(lower="lowercase", accents="strip_accents", chinese="handle_chinese_chars")
        for ours, theirs in names.items():
            value = normalizer.get(theirs)
            if value is not None and not isinstance(value, bool):
                raise Error(f"{where}: normalizer.{theirs} is {value!r}; it must be true or false")
            if value is not None or ours == "accents":
                common.setdefault(ours, value)
        closes = decoder.get("cleanup", True)
        if not isinstance(closes, bool):
            raise Error(f"{where}: decoder.cleanup is {closes!r}; it must be true or false")
        return cls(vocab, closes=closes, **common)

    def files(self):
        return {"vocab.txt": "".join(piece + "\n" for piece in self.own)}

    def options(self):
        return {"tokenizer_class": "BertTokenizer", "do_lower_case": self.lower,
                "strip_accents": self.accents, "tokenize_chinese_chars": self.chinese}

    @classmethod
    def train(cls, texts, size, lower=True, progress=None, likelihood=False):
        """Learn `size` pieces from texts (an iterable of str); fewer only when the text has no more
        that occur twice. `progress(done, size)` is called now and then."""
        texts = [texts] if isinstance(texts, str) else texts
        counts = count_words(cls(SPECIAL, lower=lower), texts)
        pieces = learn(counts, size - len(SPECIAL), progress, likelihood)
        return cls(SPECIAL + pieces, lower=lower)


def read_vocab(path):
    """vocab.txt -> its pieces, one a line"""
    # Lines end at "\n" alone: str.splitlines() would also cut at pieces such as U+2028. White space
    # at the end of a line is dropped, as published readers do; with it a piece could never match.
    lines = read_text(path).removeprefix("\ufeff").removesuffix("\n").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    if len(lines) > 1 and "" in lines:
        number = lines.index("") + 1
        raise Error(f"{path}: line {number} is empty; if an id belongs to it, put [unused{number}] "
                    "there, else remove it")
    # White space alone does occur. It holds a place, under a name that matches nothing.
    return [line.rstrip() or f"[blank{n}]" for n, line in enumerate(lines)]


def check(vocab, where, roles=BRACKETS, own=None):
    """Refuse what is no list of different pieces with the special tokens among them."""
    own = len(vocab) if own is None else own
    numbers = {}
    for number, piece in enumerate(vocab, 1):
        if not isinstance(piece, str) or not piece or "\n" in piece and number <= own:
            raise Error(f"{where} {number} is {piece!r}; a piece is a str without line breaks")
        if piece in numbers:
            raise Error(f"{where} {number} repeats {piece!r} of {numbers[piece]}; remove one")
        numbers[piece] = number
    missing = [piece for piece in roles.values() if piece not in numbers]
    if missing:
        raise Error(f"{where.rpartition(':')[0]}: lacks {listed(missing)}; "
                    "a vocabulary of BERT has one piece a line, these among them")
    return vocab


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


def learn(words, room, progress=None, likelihood=False):
    """{word: count} -> at most `room` pieces: the alphabet, then glued pairs of neighbours.

    How BERT's own vocabulary was learnt was never published. Two readings are told, and both are
    here: glue the pair with the highest count, or the one whose gluing raises the likelihood of the
    text the most (Schuster and Nakajima, 2012). The second prefers pieces that seldom go apart; it
    makes texts of 1 to 4 % more pieces (English, 2,048 and 8,192 pieces). The first is what other
    libraries do under this name, and the default. Either costs little, since after each gluing only
    the words that hold the pair are counted anew.
    """
    vocab = alphabet(words, room)
    ids = {piece: i for i, piece in enumerate(vocab)}
    spelt = [(spell(word), n) for word, n in words.items()]
    known = [([ids[x] for x in word], n) for word, n in spelt if all(x in ids for x in word)]
    counts = (Likelihood if likelihood else Counts)(known)
    # Equal scores go by ids, so the order of the texts decides nothing. Scores in the heap may be
    # outdated: one that grew was pushed again, one that fell is put right when it comes up.
    heap = [(-counts.score(pair), pair) for pair in counts.pairs]
    heapq.heapify(heap)
    while heap and len(vocab) < room:
        score, pair = heapq.heappop(heap)
        now = -counts.score(pair)
        if counts.pairs[pair] < 2 or now >= 0:      # what occurs once is not worth a piece
            continue
        if now > score:
            heapq.heappush(heap, (now, pair))
            continue
        piece = vocab[pair[0]] + vocab[pair[1]].removeprefix("##")
        new = ids.setdefault(piece, len(vocab))         # it may exist: a+bc and ab+c are one piece
        if new == len(vocab):
            vocab.append(piece)
            if progress and len(vocab) % 256 == 0:
                progress(len(vocab), room)
        for pair in counts.glue(pair, new):
            heapq.heappush(heap, (-counts.score(pair), pair))
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


class Counts:
    """How often pieces stand side by side in the words as they are cut now; the score is that."""

    def __init__(self, known):
        """known: [(a word's pieces, how often it occurs)]"""
        self.known, self.pairs, self.where = known, Counter(), defaultdict(set)
        for at, (word, n) in enumerate(known):
            for pair in zip(word, word[1:]):
                self.pairs[pair] += n
                self.where[pair].add(at)

    def score(self, pair):
        return self.pairs[pair]

    def glue(self, pair, new):
        """Put `new` in the place of `pair` in all words -> the pairs whose score rose."""
        moved = Counter()
        for at in self.where.pop(pair):
            word, n = self.known[at]
            glued, i = [], 0
            while i < len(word):
                found = (word[i], *word[i + 1:i + 2]) == pair
                glued.append(new if found else word[i])
                i += 2 if found else 1
            for old in zip(word, word[1:]):
                moved[old] -= n
            for young in zip(glued, glued[1:]):
                moved[young] += n
                self.where[young].add(at)
            self.known[at] = glued, n
        for changed, n in moved.items():
            self.pairs[changed] += n
        return [changed for changed, n in moved.items() if n > 0]


class Likelihood(Counts):
    """The score of a pair ab: by how much gluing it raises the log-likelihood of the text.

    Pieces are taken as drawn one by one, each as often as it occurs, so the log-likelihood is
    the sum of f(count) over all pieces less f(total), with f(n) = n log n. Gluing ab n times over
    takes n from the counts of a, of b and of the total, and makes a new piece with count n."""

    def __init__(self, known):
        super().__init__(known)
        self.single, self.beside = Counter(), defaultdict(set)
        for word, n in known:
            for piece in word:
                self.single[piece] += n
        for pair in self.pairs:
            for piece in pair:
                self.beside[piece].add(pair)
        self.total, self.scored = sum(self.single.values()), self.single.copy()

    def score(self, pair):
        n, total = self.pairs[pair], self.total
        gain = change(total, n) - change(0, -n)         # f(total) - f(total - n) + f(n)
        if pair[0] == pair[1]:                          # in "aaa" neighbours overlap
            return gain - change(self.single[pair[0]], min(2 * n, self.single[pair[0]]))
        return gain - sum(change(self.single[piece], n) for piece in pair)

    def glue(self, pair, new):
        holds = {at: self.known[at] for at in self.where[pair]}
        rose = super().glue(pair, new)
        for at, (word, n) in holds.items():
            times = n * (len(word) - len(self.known[at][0]))
            for piece in pair:
                self.single[piece] -= times
            self.single[new] += times
            self.total -= times
        self.scored[new] = self.single[new]
        for young in rose:
            for piece in young:
                self.beside[piece].add(young)
        # The rarer a piece, the likelier its pairs: those beside a piece that lost a tenth of its
        # count since they were last scored are scored anew.
        for piece in set(pair):
            if self.single[piece] < 0.9 * self.scored[piece]:
                self.scored[piece] = self.single[piece]
                rose += [p for p in self.beside[piece] if self.pairs[p] > 1]
        return rose


def change(count, n):
    """f(count) - f(count - n), with f(n) = n log n"""
    return sum(sign * x * math.log(x) for sign, x in ((1, count), (-1, count - n)) if x > 0)
