"""Sentences with a hidden word, and what a model puts there: the plainest way to see it learn."""
import numpy as np

from .engine.autograd import no_grad


def choose(corpus, tokenizer, most, count=8):
    """`count` held-out sentences, each with one whole word to hide: [(ids, place, answer)].

    The ids have [CLS] and [SEP]. The sentences are spread evenly over the held-out documents, so
    that they are the same in every run on this corpus.
    """
    found = []
    for document in corpus.held:
        first, last = corpus.documents[document:document + 2]
        for s in range(first, last):
            lo, hi = corpus.sentences[s:s + 2]
            ids = corpus.ids[lo:hi].astype(np.int64)
            if not 7 <= len(ids) <= min(18, most - 2):
                continue
            if places := hideable(ids, tokenizer):
                place = places[len(places) // 2]
                whole = np.concatenate([[tokenizer.cls], ids, [tokenizer.sep]])
                found.append((whole, place + 1, int(ids[place])))
                break
    step = max(1, len(found) // count)
    return found[::step][:count]


def hideable(ids, tokenizer):
    """Places whose piece is a whole word: letters, and not continued by the next piece.

    Not the first, which is easy.
    """
    pieces = shown(tokenizer, ids) + [""]
    return [i for i in range(1, len(ids))
            if pieces[i].isalpha() and len(pieces[i]) > 1
            and not pieces[i + 1].startswith("##")]


def guess(model, tokenizer, chosen, veil, most=5):
    """The model's guesses for each hidden word, as rows for fillings.jsonl.

    veil(ids, place) hides a word as the model knows it, by [MASK] or otherwise.
    """
    rows = []
    for ids, place, answer in chosen:
        asked = veil(ids, place)
        with no_grad():
            logits = model(asked[None]).logits.numpy()              # [1, T, V]
        scores = logits[0, place].astype(np.float64)                # [V]
        probability = np.exp(scores - scores.max())                 # softmax in float64
        probability /= probability.sum()
        best = np.argsort(-probability, kind="stable")[:most]
        names = shown(tokenizer, [answer, *best])
        guesses = [[name, round(float(probability[i]), 4)] for name, i in zip(names[1:], best)]
        words = shown(tokenizer, asked[1:-1])
        words[0] = words[0].removeprefix("##")      # a text may begin without a space
        rows.append(dict(words=words, at=[int(place - 1)], answers=names[:1], guesses=[guesses]))
    return rows


def shown(tokenizer, ids):
    return [tokenizer.shown(tokenizer.vocab[i]) for i in ids]


def as_lines(rows):
    """For the terminal: the sentence, the guesses, and whether the first of them is right."""
    for row in rows:
        guesses = [word for word, _ in row["guesses"][0]]
        answer = row["answers"][0]
        verdict = "right" if guesses[0] == answer else f"it was: {answer}"
        yield f"  {joined(row['words'])}\n      {', '.join(guesses)}   ({verdict})"


def joined(pieces):
    """Word pieces as readable text."""
    text = " ".join(pieces).replace(" ##", "")
    for mark in ".,;:!?)'":
        text = text.replace(f" {mark}", mark)
    for mark in "('":
        text = text.replace(f"{mark} ", mark)
    return text
