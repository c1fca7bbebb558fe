"""Where words begin, as each kind of tokenizer shows it: for noise that hides whole words.

    WordPiece       "play" "##ing" "," "but"        ## continues a word
    Unigram         "▁play" "ing" "," "▁but"        ▁ is the space before a word
    byte-level BPE  "Ġplay" "ing" "," "Ġbut"        Ġ is the same

A piece is all that is asked, not what stands before it. So after a sign, as in "(but", a word of
the last two kinds shows no beginning: it counts as a part of the sign's, as in DeBERTa's code.
"""
import string

import numpy as np

from tinybert_family.error import Error
from tinybert_family.text.characters import is_punctuation

# Signs that ALBERT counts with the letters of English: all of ASCII but ' < = >
SIGNS = set(string.punctuation) - set("'<=>")
ENGLISH = SIGNS | set(string.ascii_letters)


def begins_word(tokenizer, foreign=False):
    """For every piece of the vocabulary: does it begin a word? -> bool [V]

    A piece after a space does, and a single sign; so do special tokens. foreign: ALBERT's rule for
    what is not English: a piece with anything but letters a-z and common signs is a word of its
    own.
    """
    if tokenizer.KIND not in KINDS:
        raise Error(f"where words begin is not known of a {tokenizer.KIND} tokenizer; use one of "
                    f"{', '.join(KINDS)}")
    begins = KINDS[tokenizer.KIND]
    other = tokenizer.special | set(tokenizer.vocab[len(tokenizer.own):])   # cut from no word
    found = [piece in other or begins(tokenizer, piece) or foreign and is_foreign(piece)
             for piece in tokenizer.vocab]
    return np.array(found, bool)


def of_wordpiece(tokenizer, piece):
    return not piece.startswith("##")


def of_unigram(tokenizer, piece):
    return piece.startswith(tokenizer.mark) or is_sign(piece)


def of_bytes(tokenizer, piece):
    text = tokenizer.text_of([piece])
    return text[:1].isspace() or is_sign(text)


KINDS = dict(WordPiece=of_wordpiece, Unigram=of_unigram, BPE=of_bytes)


def is_sign(text):
    return len(text) == 1 and is_punctuation(text)


def is_foreign(piece):
    return not ENGLISH.issuperset(piece)
