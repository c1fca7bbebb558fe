"""What the tests of objectives share: a small corpus with everything that any of the sixteen asks
for, and a learner on it, ready to be trained for a few steps."""
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import numpy as np

from tinybert_family import checkpoint
from tinybert_family.engine import philox
from tinybert_family.engine.nn import Init
from tinybert_family.text import knowledge, toy
from tinybert_family.text.corpus import Corpus
from tinybert_family.training import Trainer

# A Config that is learnt in seconds; what a model has none of is left out.
LITTLE = dict(vocab=300, steps=100, warmup=10, seq=32, tokens=512, accumulate=1, positions=64)


def settings(module, **changes):
    """The model's smoke Config, smaller."""
    known = vars(module.SIZES["smoke"])
    wanted = {k: v for k, v in {**LITTLE, **changes}.items() if k in known}
    return replace(module.SIZES["smoke"], **wanted)


@lru_cache(None)
def language(vocabulary, size=300, documents=60):
    """(corpus, tokenizer, a function that begins the documents) of the toy language."""
    found = toy.documents(documents)
    tokenizer = vocabulary(["\n".join(d.sentences) for d in found], size)
    folder = Path(mkdtemp()) / "corpus"
    return Corpus.build(found, tokenizer, folder, "toy", processes=1), tokenizer, lambda: iter(found)


def facts(module, config, corpus, tokenizer, documents):
    """What the objective asks of the corpus beside its tokens."""
    needs = module.Objective.needs(config, set())
    if not needs:
        return None
    return knowledge.build(needs, documents, corpus, tokenizer, {}, corpus.folder,
                           width=getattr(config, "entity_width", 100))


def teacher_for(module, config, dtype=np.float32):
    """A teacher that was never trained, of the kind that the objective asks for."""
    wanted = module.Objective.teacher_of(config)
    if not wanted:
        return None
    name, settled = wanted
    settled = replace(settled, vocab=config.vocab)
    return checkpoint.variant(name, "teacher").Model(settled, Init(7, settled.init, dtype))


def prepared(name, dtype=np.float32, seed=0, workers=1, **changes):
    """A Trainer for a model's smoke Config on the toy language, in its first stage."""
    module = checkpoint.variant(name, "test")
    config = settings(module, **changes)
    corpus, tokenizer, documents = language(type(config).vocabulary)
    pad = dict(pad=tokenizer.pad) if hasattr(config, "pad") else {}
    config = replace(config, vocab=tokenizer.size, **pad)
    more = dict(knowledge=facts(module, config, corpus, tokenizer, documents),
                teacher=teacher_for(module, config, dtype))
    trainer = Trainer(module, config, corpus, tokenizer, seed, workers, dtype=dtype, **more)
    trainer.enter(trainer.begun()[0])
    return trainer


def first_batches(trainer, count=1, documents=None):
    """The first micro-batches of the stage that the trainer is in."""
    from tinybert_family.training import micro_batches
    documents = trainer.corpus.train if documents is None else documents
    stream = micro_batches(trainer.objective, documents, trainer.seed, trainer.position)
    return [next(stream)[0] for _ in range(count)]


def loss_of(trainer, batches, step=0):
    """The loss of a step over these micro-batches, as one Tensor."""
    objective = trainer.objective
    counts = sum(objective.counts(b) for b in batches)
    total = 0
    for part, b in enumerate(batches):
        with philox.at(trainer.seed, step, part=part):
            total = objective.total(objective.loss(trainer.learner, b, counts)) + total
    return total


MARKS = SimpleNamespace(pad=0, unk=4, cls=1, sep=2, mask=3)


def chi_square(seen, expected):
    """How many standard deviations too far from the law these counts are: above 3.1 once in a
    thousand times (the cube root of chi-square is nearly normal: Wilson and Hilferty, 1931)."""
    seen, expected = np.asarray(seen, float), np.asarray(expected, float)
    k = len(seen) - 1
    x = ((seen - expected) ** 2 / expected).sum() / k
    return (x ** (1 / 3) - (1 - 2 / (9 * k))) / np.sqrt(2 / (9 * k))
