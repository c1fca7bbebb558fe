"""Sentences with a hidden word, and what a model puts in its place: the plainest way to see it learn."""
import numpy as np

from .engine.autograd import no_grad


def choose(corpus, tokenizer, most, count=8):
    """`count` held-out sentences, each with one whole word hidden: [(ids with [CLS] and [SEP], place, answer)].

    Spread evenly over the held-out documents, so that they are the same in every run on this corpus.
    """
    found = []
    for document in corpus.held:
        first, last = corpus.documents[document:document + 2]
        for s in range(first, last):
            ids = corpus.ids[corpus.sentences[s]:corpus.sentences[s + 1]].astype(np.int64)
            if 7 <= len(ids) <= min(18, most - 2) and (places := hideable(ids, tokenizer)):
                place = places[len(places) // 2]
                found.append((np.concatenate([[tokenizer.cls], ids, [tokenizer.sep]]), place + 1, int(ids[place])))
                break
    step = max(1, len(found) // count)
    return found[::step][:count]


def hideable(ids, tokenizer):
    """Places whose piece is a whole word: letters, and not continued by the next piece. Not the first, which is easy."""
    pieces = [tokenizer.vocab[i] for i in ids] + [""]
    return [i for i in range(1, len(ids)) if pieces[i].isalpha() and len(pieces[i]) > 1
            and not pieces[i + 1].startswith("##")]


def guess(model, tokenizer, chosen, most=5):
    """The model's guesses for each hidden word, as rows for fillings.jsonl."""
    rows = []
    for ids, place, answer in chosen:
        asked = ids.copy()
        asked[place] = tokenizer.mask
        with no_grad():
            scores = model(asked[None]).logits.numpy()[0, place].astype(np.float64)
        probability = np.exp(scores - scores.max())
        probability /= probability.sum()
        best = np.argsort(-probability, kind="stable")[:most]
        rows.append(dict(words=[tokenizer.vocab[i] for i in asked[1:-1]], at=[int(place - 1)],
                         answers=[tokenizer.vocab[answer]],
                         guesses=[[[tokenizer.vocab[i], round(float(probability[i]), 4)] for i in best]]))
    return rows


def as_lines(rows):
    """For the terminal: the sentence, the guesses, and a check mark where the first is right."""
    for row in rows:
        guesses = ", ".join(word for word, _ in row["guesses"][0])
        right = "right" if row["guesses"][0][0][0] == row["answers"][0] else f"it was: {row['answers'][0]}"
        yield f"  {joined(row['words'])}\n      {guesses}   ({right})"


def joined(pieces):
    """Word pieces as readable text."""
    text = " ".join(pieces).replace(" ##", "")
    for mark in ".,;:!?)'":
        text = text.replace(f" {mark}", mark)
    return text.replace("( ", "(").replace("' ", "'")
