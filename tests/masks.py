"""What the tests of several objectives share: a small language with long words, an objective on it,
and what must be true of any noise."""
from dataclasses import replace

import numpy as np

from tinybert_family.engine.nn import Init
from tinybert_family.text import segments, toy
from tinybert_family.text.corpus import Corpus


def language(folder, vocabulary, size=160, count=150):
    """(corpus, tokenizer): so few pieces that many words have two or more."""
    documents = toy.documents(count)
    texts = [s for d in documents for s in d.sentences]
    tokenizer = vocabulary(texts, size)
    return Corpus.build(documents, tokenizer, folder / "corpus"), tokenizer


def objective(module, language, knowledge=None, seed=0, **changes):
    """At smoke size but for some changes; sequences of 64 tokens."""
    corpus, tokenizer = language
    changes = dict(vocab=tokenizer.size, seq=64, predictions=20, **changes)
    if hasattr(module.Config, "pad"):
        changes["pad"] = tokenizer.pad
    c = replace(module.SIZES["smoke"], **changes)
    return module.Objective(c, corpus, tokenizer, seed, knowledge)


def laid_out(objective, copy=0, most=None):
    """Sequences of the training text."""
    plan = objective.plan(objective.corpus.train, copy)
    return segments.lay_out(objective.corpus, plan[:most])


def batch(objective, copy=0, most=40):
    """-> (Sequences, the batch made of them)"""
    plan = objective.plan(objective.corpus.train, copy)[:most]
    return segments.lay_out(objective.corpus, plan), objective.batch(plan, copy)


def a_model(module, objective, seed=0, spread=0.3, dtype=np.float64):
    return module.Model(objective.config, Init(seed, spread, dtype))


def restored(s, noisy, hidden):
    """The noise undone: nothing but the hidden tokens was changed."""
    text = noisy.copy()
    text[hidden] = s.ids[hidden]
    return np.array_equal(text, s.ids) and len(np.unique(hidden)) == len(hidden)


def is_random_function_of(objective, plan):
    """Equal for equal (seed, copy), whoever else is in the batch; other for another copy."""
    one, again, other = (objective.batch(plan, copy) for copy in (3, 3, 4))
    same = all(np.array_equal(one[key], again[key]) for key in one)
    differs = not np.array_equal(one["ids"], other["ids"])
    alone = [objective.batch(plan[[i]], 3)["ids"] for i in range(len(plan))]
    rows = [one["ids"][lo:hi] for lo, hi in zip(one["cuts"], one["cuts"][1:])]
    apart = sorted(map(bytes, rows)) == sorted(map(bytes, alone))
    return same and differs and apart


def far_from(found, truth, n):
    """How many standard deviations a share found in n draws is from the true one."""
    return abs(found - truth) / np.sqrt(truth * (1 - truth) / n)
