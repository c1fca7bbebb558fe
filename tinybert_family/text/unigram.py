"""Unigram, the tokenizer of SentencePiece, ALBERT, DeBERTa (v2, v3) and XLM-R.

    text        "Hello wörld"
    normal      "hello world"               capitals, accents, signs: normalize.py
    words       "▁hello" "▁world"           a space is written "▁" and belongs to the word after it
    pieces      "▁hello" "▁wor" "ld"        of all ways to cut a word, the most probable

The model is simple: pieces are drawn one by one, each with a probability of its own, whatever stood
before it. So a way to cut a word is as probable as its pieces' product, and a sum of logarithms,
the scores, decides. Two hundred characters have more ways to be cut than there are atoms, yet one
walk finds the best: the best way to a place is the best way to an earlier place, and one piece more
(Viterbi, 1967).

         ▁     w     o     r     l     d            best[end] = max over start of
      0 --- 1 --- 2 --- 3 --- 4 --- 5 --- 6             best[start] + score(word[start:end])
      |-------- ▁wor --------|--- ld ----|

A character that no piece covers is unknown. It costs more than any piece, so it is never chosen for
its own sake; neighbours that are unknown make one unknown token, or are spelt in bytes where the
vocabulary has pieces for these. How pieces and scores are learnt: unigram_training.py.
"""
import math
import re
from collections import Counter
from ctypes import c_float
from decimal import Decimal

import regex

from tinybert_family.error import Error
from tinybert_family.text import sentencepiece, unigram_training
from tinybert_family.text.metaspace import Decoder, Metaspace, Punctuation, SentencePiece
from tinybert_family.text.metaspace import WhitespaceSplit, read_decoder, read_rules
from tinybert_family.text.normalize import Charsmap, Form, Lowercase, Normalizer
from tinybert_family.text.normalize import Precompiled, Replace, StripAccents, normalizer_of
from tinybert_family.text.tokenizer import ANGLES, BRACKETS, INPUTS, ROLES, Added, Memo, Tokenizer
from tinybert_family.text.tokenizer import parts

PENALTY = 10.0              # an unknown character is so much worse than the worst piece
SPECIAL = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")            # ALBERT's names
COUNTED = 1 << 22           # different runs held while counting; beyond, those seen once go


# --- The tokenizer --------------------------------------------------------------------------------
BLANKS = [c for c in map(chr, range(0x3001)) if c.isspace()]            # where str.split() cuts
# What may be one sign with white space before it, or (Prepend) behind it.
find_joined = r"\s[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}\p{M}]|\p{GCB=Prepend}"


class Unigram(Tokenizer):
    KIND = "Unigram"

    def __init__(self, vocab, scores, roles, normal=None, rules=None, byte_fallback=False,
                 decoder=None, from_text=False, **common):
        """scores: of the pieces, in the order of ids; added tokens at the end may have none.
        rules: how a text is cut into words. byte_fallback: what is unknown is spelt in bytes.
        decoder: how pieces become text, see `Decoder`; None: so that `rules` are undone.
        from_text: scores are those that the published tokenizers read from a file, see `as_read`.

        There are two readings of such vocabularies. The published tokenizers cut word by word and
        add scores in double precision. SentencePiece, if `rules` end so, adds them in single
        precision along the whole text. In "aaaaaaa" the ways aaa + aaa + a and a + aaa + aaa are
        equally good, and then the rounding of all that stands before decides.
        """
        super().__init__(list(vocab), roles, **{**common, "own": len(scores)})
        if len(self.ids) < len(self.vocab):
            twice = Counter(self.vocab).most_common(1)[0][0]
            raise Error(f"the vocabulary holds {twice!r} twice; remove one")
        self.scores = [float(score) for score in scores]
        if not all(map(math.isfinite, self.scores)) or not 0 < len(scores) <= len(self.vocab):
            raise Error("each piece needs a finite score, the added tokens at the end aside")
        self.normal = normal or Normalizer()
        self.rules = list(rules or [WhitespaceSplit(), Metaspace()])
        last = self.rules[-1]
        self.mark, self.whole_text = last.mark, isinstance(last, SentencePiece)
        self.rounded = single_precision if self.whole_text else float
        silent = set(last.silent) if self.whole_text else ()
        values = self.scores
        if from_text and not self.whole_text:
            values = [as_read(score) for score in values]
        self.code = {piece: i for i, piece in enumerate(self.vocab[:len(self.scores)])
                     if piece and i not in silent}
        self.tree = tree_of({piece: values[i] for piece, i in self.code.items()})
        self.longest = max(map(len, self.code))
        self.letters = {piece for piece in self.code if len(piece) == 1}
        least = min([values[i] for i in self.code.values()] if silent else values)
        self.unknown = self.rounded(least - PENALTY)
        self.byte_fallback = byte_fallback
        self.decoder = decoder or Decoder(last.mark, last.prepend != "never", byte_fallback)
        self.bytes = [self.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        self.hard = self._hard()
        # Two characters that stand together in no piece are always cut apart.
        self.pairs = {pair for piece in self.code for pair in zip(piece, piece[1:])}
        # Two memories: "(words" is new to the first, but "words" is not to the second.
        self.known = Memo(self._best)
        self.runs = Memo(self._run if self.careful else lambda run: self._run(run)[0])

    # --- The plain way ----------------------------------------------------------------------------

    def words(self, text, spans, first=True):
        found = [(text, spans)]
        for rule in self.rules:
            found = [part for text, spans in found
                     for part in rule(text, spans, first and (not spans or spans[0][0] == 0))]
        return [part for part in found if part[0]]

    def cut(self, word):
        """-> (ids, sizes): the most probable pieces, and how many characters each covers. Of
        equally good ways to a place the first is kept, the one whose last piece is the longest."""
        rounded, end = self.rounded, len(word)
        best, back = [0.0] + [-math.inf] * end, [0] * (end + 1)
        for start in range(end):
            found = list(self.fitting(word, start))
            if word[start] not in self.letters:
                found.append((start + 1, self.unknown))
            for stop, score in found:
                ways = rounded(best[start] + score)
                if ways > best[stop]:
                    best[stop], back[stop] = ways, start
        return self.named(word, back)

    def fitting(self, word, start):
        """The pieces that fit into a word from `start` on -> (where they end, score)"""
        node = self.tree
        for stop in range(start, len(word)):
            if (entry := node.get(word[stop])) is None:
                return
            score, node = entry
            if score > -math.inf:
                yield stop + 1, score

    def named(self, word, back):
        """The way, from the end back to the beginning -> (ids, sizes)"""
        cuts = [len(word)]
        while cuts[-1]:
            cuts.append(back[cuts[-1]])
        cuts.reverse()
        ids, sizes, begin = [], [], None        # begin: of the unknown run that we are in
        for start, stop in zip(cuts, cuts[1:]):
            code = self.code.get(word[start:stop], self.unk)
            if code == self.unk:
                begin = start if begin is None else begin
                continue
            if begin is not None:
                self.spell(word[begin:start], ids, sizes)
                begin = None
            ids.append(code)
            sizes.append(stop - start)
        if begin is not None:
            self.spell(word[begin:], ids, sizes)
        return ids, sizes

    def spell(self, run, ids, sizes):
        """What no piece covers: one unknown token, or a token for each byte. Of these only the last
        has a size; all stand where the whole run does."""
        codes = [self.code.get(run, self.unk)]          # as a whole it may be known after all
        if self.byte_fallback and run not in self.code:
            spelt = [self.bytes[byte] for byte in run.encode()]
            codes = codes if None in spelt else spelt
        ids += codes
        sizes += [0] * (len(codes) - 1) + [len(run)]

    def text_of(self, pieces):
        return self.decoder(pieces)

    # --- The fast way -----------------------------------------------------------------------------
    # A text is cut at white space and each run normalised, cut and remembered by itself. That is
    # right where neighbours do not matter. Where they may, the plain way decides.

    def _ids(self, text, first=True):
        unlike = not first and self.rules[-1].prepend == "first"
        if unlike or self.hard is None or self.hard(text):
            return self._plain(text, first)
        ids, runs = [], self.runs
        if not self.careful:
            for run in text.split():
                ids += runs[run]
            return ids
        total = 0.0
        for run in text.split():
            more, score, safe = runs[run]
            if total < safe:
                return self._plain(text, first)
            ids += more
            total += score
        return ids

    def _plain(self, text, first):
        if self.rules[-1].prepend == "first":                   # which word is the first one?
            text, spans = self.normal.aligned(text)
        else:
            text, spans = self.normal(text), None
        ids = []
        for word, _ in self.words(text, spans, first):
            ids += self.cut(word)[0]
        return ids

    def _hard(self):
        """-> a search for what forbids the fast way; None: everything does"""
        *others, last = self.rules
        self.split = bool(others) and isinstance(others[0], WhitespaceSplit)
        steps = self.normal.steps
        makers = [i for i, step in enumerate(steps) if step.name in MAKERS]
        self.early = Normalizer(steps[:makers[-1] + 1 if makers else 0])
        self.late = Normalizer(steps[len(self.early.steps):])
        # Whether white space is nothing but a border, however much of it there is.
        self.apart = self.split or last.prepend == "always" and self.late(" a  b ") == "a b"
        self.careful = self.whole_text or not self.apart
        usual = last.split or self.whole_text
        begins = last.prepend == "first" and not others and not steps
        usual = usual and (last.prepend == "always" or begins)
        usual = usual and (self.split or not others) and max(self.scores) <= 0
        if not usual or not all(map(is_local, steps)):
            return None
        odd, hard = [c for c in BLANKS if c != " "], []
        if self.apart:
            space = self._words_of("a b")
            odd = [c for c in odd if self._words_of(f"a{c}b") != space]
        else:
            hard += ["  ", r"\A ", r" \Z"]
        if odd:
            hard.append(f"[{''.join(odd)}]")
        if not self.split:
            hard.append(re.escape(self.mark))
        plain = re.compile("|".join(hard or ["(?!)"])).search
        deep = regex.compile("|".join([*hard, find_joined])).search
        return lambda text: plain(text) if text.isascii() else deep(text)

    def _words_of(self, text):
        return [word for word, _ in self.words(self.normal(text), None)]

    def run_words(self, run):
        """The words of a run of text between white space; None if its neighbours matter."""
        if self.split:
            text = self.normal(run)
            if not text.isprintable() or self.mark in text or " " in text or len(self.rules) > 2:
                return [word for word, _ in self.words(text, None)]
            return [self.mark + text] if text else []
        early = self.early(run)
        words = self.late(early).split(" ")
        if not self.apart and ("" in words or early.strip() != early):
            return None
        return [self.mark + word for word in words if word]

    def _run(self, run):
        """-> (ids, score, safe): if the scores before it sum up to less than `safe`, rounding may
        decide how this run is cut."""
        words = self.run_words(run)
        if words is None:
            return (), 0.0, math.inf
        ids, total, margin = [], 0.0, math.inf
        for word in words:
            more, score, lead = self._word(word)
            ids += more
            total += score
            margin = min(margin, lead / len(word))
        # A sum S is rounded by at most S 2^-24. Two ways to cut n characters have at most 2n sums.
        return tuple(ids), total, -total - margin * 2.0 ** 22 if self.whole_text else -math.inf

    def _word(self, word):
        """The word, in the parts that no piece joins -> as `_best`"""
        if word[1:].isalpha():                              # letters join nearly always
            return self.known[word]
        begin, ids, total, least, pairs = 0, [], 0.0, math.inf, self.pairs
        borders = [i for i, pair in enumerate(zip(word, word[1:]), 1) if pair not in pairs]
        for border in (*borders, len(word)):
            more, score, lead = self.known[word[begin:border]]
            if ids and ids[-1] == more[0] == self.unk:      # neighbours make one token
                return self._best(word)
            begin = border
            ids += more
            total += score
            least = min(least, lead)
        if least < CLOSE and borders and not self.whole_text:
            return self._best(word)
        return ids, total, least

    def _best(self, word):
        """As `cut` in double precision -> (ids, score, by how much it beats any other way)"""
        end, letters, longest, code = len(word), self.letters, self.longest, self.code.get
        best, back, tree = [0.0] + [-math.inf] * end, [0] * (end + 1), self.tree
        second = best[:]
        for start in range(end):
            here, stop, node = best[start], start, tree
            for c in word[start:start + longest]:
                if c not in node:
                    break
                score, node = node[c]
                stop += 1
                ways = here + score
                if ways > best[stop]:
                    second[stop] = best[stop]
                    best[stop] = ways
                    back[stop] = start
                elif ways > second[stop]:
                    second[stop] = ways
            if word[start] not in letters and (ways := here + self.unknown) > best[start + 1]:
                second[start + 1] = best[start + 1]
                best[start + 1], back[start + 1] = ways, start
        ids, lead, stop = [], math.inf, end
        while stop:
            start = back[stop]
            ids.append(code(word[start:stop], self.unk))
            if best[stop] - second[stop] < lead:
                lead = best[stop] - second[stop]
            stop = start
        ids.reverse()
        return ids if self.unk not in ids else self.named(word, back)[0], best[end], lead

    # --- Files ------------------------------------------------------------------------------------

    def to_json(self):
        """The sections of tokenizer.json that are Unigram's own."""
        rules = [rule.to_json() for rule in self.rules]
        rule = rules[0] if len(rules) == 1 else {"type": "Sequence", "pretokenizers": rules}
        vocab = [[piece, score] for piece, score in zip(self.vocab, self.scores)]
        model = dict(type="Unigram", unk_id=self.unk, vocab=vocab, byte_fallback=self.byte_fallback)
        return dict(normalizer=self.normal.to_json(), pre_tokenizer=rule,
                    decoder=self.decoder.to_json(), model=model)

    @classmethod
    def from_json(cls, whole, where, vocab, **common):
        model, field = whole["model"], f"{where}: model"
        scores = [read_entry(entry, n, where)[1] for n, entry in enumerate(model["vocab"])]
        unk, fallback = model.get("unk_id"), model.get("byte_fallback", False)
        if isinstance(unk, bool) or not isinstance(unk, int) or not 0 <= unk < len(scores):
            raise Error(f"{field}.unk_id is {unk!r}; it must be the number of the piece for what "
                        "no piece covers")
        if not isinstance(fallback, bool):
            raise Error(f"{field}.byte_fallback is {fallback!r}; it must be true or false")
        rules = read_rules(whole.get("pre_tokenizer"), f"{where}: pre_tokenizer")
        decoder = read_decoder(whole.get("decoder"), f"{where}: decoder")
        normal = Normalizer.from_json(whole.get("normalizer"), where)
        return cls(vocab, scores, normal=normal, rules=rules, byte_fallback=fallback,
                   decoder=decoder, from_text=True, **common)

    @classmethod
    def train(cls, texts, size, lower=True, special=SPECIAL, progress=None):
        """Learn a vocabulary of `size` pieces from texts (an iterable of str); fewer only when the
        text has no more that come again. special: names for ROLES, and more if need be.
        `progress(done, size)` is called now and then."""
        texts = [texts] if isinstance(texts, str) else texts
        special = list(special)
        common = dict(roles=dict(zip(ROLES, special)), added=[Added(name) for name in special],
                      normal=Normalizer(plain_steps() if lower else [Form("NFKC")]))
        blank = cls(special, [0.0] * len(special), **common)
        room = size - len(special)
        learnt = unigram_training.learn(count_words(blank, texts), room, progress, special)
        scores = [0.0] * len(special) + [score for _, score in learnt]
        return cls(special + [piece for piece, _ in learnt], scores, **common)


def single_precision(x):
    return c_float(x).value


def as_read(score):
    """A score as the published tokenizers read it: the digits as one whole number, divided by a
    power of ten. With 17 digits that can be one bit off, and among equals a bit decides."""
    sign, digits, exponent = Decimal(repr(score)).as_tuple()
    value = float(int("".join(map(str, digits))))
    value = value * 10.0 ** exponent if exponent >= 0 else value / 10.0 ** -exponent
    return -value if sign else value


CLOSE = 1e-6                # double precision errs less; ways that differ by less may be equal


def tree_of(scores):
    """{piece: score} -> a tree of their characters, so that one walk along a text finds all pieces
    that begin at a place. A node: {character: [score of the piece that ends here or -inf, node]}"""
    tree = {}
    for piece, score in sorted(scores.items()):         # in memory, too, neighbours stand together
        node = tree
        for c in piece:
            if (entry := node.get(c)) is None:
                node[c] = entry = [-math.inf, {}]
            node = entry[1]
        entry[0] = score
    return tree


MAKERS = ("NFKC", "NFKD", "Nmt", "Precompiled")         # steps that make spaces of other signs
SPACE_RULES = (" {2,}", r"\A +", r"\s{2,}|[\n\r\t]",
               *(rf"(?<!{space}){space}+\z" for space in ("[ ]", "[ \u2581]")))


def is_local(step):
    """Whether what a step makes of a character has to do with nothing beyond white space."""
    if isinstance(step, Replace):
        (kind, pattern), = step.options["pattern"].items()
        inner = kind == "String" and not any(c in pattern + step.content for c in BLANKS)
        return inner or pattern in SPACE_RULES
    return step.name != "Prepend" and (not isinstance(step, Precompiled) or step.chunks)


def plain_steps(accents=False, lower=True):
    """How ALBERT writes all that means the same in the same way."""
    steps = [Replace({"String": "``"}, '"'), Replace({"String": "''"}, '"')]
    steps += [] if accents else [Form("NFKD"), StripAccents()]
    return steps + [Lowercase()] * lower


def count_words(tokenizer, texts):
    """-> {word: count}. Runs are counted first, for they repeat; then each is cut only once."""
    runs, words = Counter(), Counter()
    finder = tokenizer._find()[0]
    for text in texts:
        if not isinstance(text, str):
            raise Error(f"a vocabulary is learnt from texts (str), not from {type(text).__name__}")
        for part, _, token in parts(text, finder, tokenizer.finder):
            if token is None:
                runs.update([part] if tokenizer.hard(part) else part.split())
        if len(runs) > COUNTED:
            runs = Counter({run: n for run, n in runs.items() if n > 1})
    for run, n in runs.items():
        for word in tokenizer._words_of(run):
            words[word] += n
    return words


def read_entry(entry, n, path):
    """[piece, score] -> (piece, score)"""
    good = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
    if not good or isinstance(entry[1], bool) or not isinstance(entry[1], (int, float)):
        raise Error(f"{path}: model.vocab[{n}] is {entry!r}; it must be [piece, score]")
    return entry[0], float(entry[1])


# --- SentencePiece's own files --------------------------------------------------------------------
# File name -> the family that publishes its vocabulary so.
FAMILIES = {"spiece.model": "albert", "spm.model": "deberta", "sentencepiece.bpe.model": "xlm-r"}


def from_model(model, family, where="model", settings=None, **common):
    """A sentencepiece.Model, as `family` uses it -> Unigram. settings: do_lower_case, keep_accents
    and split_by_punct, as tokenizer_config.json has them."""
    settings = settings or {}
    if model.model_type != sentencepiece.UNIGRAM or model.space_behind or not model.escape_spaces:
        raise Error(f"{where}: only Unigram models are known here that write a space as '\u2581', "
                    "in front of a word")
    vocab = [piece.text for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    silent = [i for i, piece in enumerate(model.pieces)
              if piece.type not in (sentencepiece.NORMAL, sentencepiece.USER)]
    control = [piece.text for piece in model.pieces if piece.type == sentencepiece.CONTROL]
    unk = vocab[model.unk_id]
    lower = settings.get("do_lower_case", family == "albert")
    prepend = "always" if model.dummy_prefix else "never"
    normal, rules = normalizer_of(model, where), [SentencePiece(prepend, silent)]
    if family == "albert":
        # Published as the steps of another normaliser, in front of the model's own.
        roles = dict(zip(ROLES, SPECIAL), unk=unk)
        # ALBERT cuts the comma from "2007,". Published files do so by pieces that never win.
        scores = [score - 100 * bool(re.search(r"\d,\Z", piece))
                  for piece, score in zip(vocab, scores)]
        steps = plain_steps(bool(settings.get("keep_accents")), lower)
        steps += [Precompiled(Charsmap(model.charsmap, where))] * bool(model.charsmap)
        normal, rules = Normalizer(steps), [WhitespaceSplit(), Metaspace(prepend=prepend)]
    elif family == "deberta":
        roles = dict(BRACKETS, unk=unk)
        normal.steps[:0] = [Lowercase()] * lower
        if settings.get("split_by_punct"):
            rules = [Punctuation(), Metaspace(prepend=prepend)]
    else:
        # The ids are those of another library, which moved the first four pieces.
        roles = ANGLES
        vocab = [roles[role] for role in ("cls", "pad", "sep", "unk")] + vocab[3:]
        scores, silent = [0.0] * 4 + scores[3:], [0, 1, 2, *(i + 1 for i in silent if i > 1)]
        rules = [SentencePiece(prepend, silent)]
        common["inputs"] = tuple(name for name in INPUTS if name != "token_type_ids")
        cls, sep, a, b = [(name, 0) for name in (roles["cls"], roles["sep"], "$A", "$B")]
        common |= dict(single=[cls, a, sep], pair=[cls, a, sep, sep, b, sep])
    vocab = vocab + [roles["mask"]] * (roles["mask"] not in vocab)
    tokens = dict.fromkeys([*control, *roles.values()])
    return Unigram(vocab, scores, roles, normal, rules, model.byte_fallback,
                   added=[Added(text) for text in tokens if text in set(vocab)], **common)
