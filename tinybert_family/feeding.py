"""How fast the data of every objective is made: planned, laid out and corrupted, on one core.

A GPU that trains BERT-base reads some hundred thousand tokens in a second; who makes its batches
must be quicker, and by so much that a core has time for the rest.
"""
from dataclasses import replace

from . import checkpoint
from .engine.nn import Init
from .training import packed
from .trials import facts_of

# Tokens a second that are wanted: where tokens are hidden one by one, and where words, spans or
# names are.
TOKENS, WORDS = 1_500_000, 500_000
WHOLE = set("albert bert_wwm spanbert macbert deberta ernie ernie2 ernie_thu".split())
BATCH = 8192                    # tokens


def goal(name):
    return WORDS if name in WHOLE else TOKENS


def objective_of(name, text, size="base"):
    """A model's Objective, with the lengths of this size; the network is never built. Where there
    is a teacher, it is a small one that knows nothing."""
    module = checkpoint.variant(name, "--model")
    small, real = module.SIZES["smoke"], module.SIZES[size]
    changes = dict(seq=real.seq, predictions=real.predictions, vocab=text.tokenizer.size,
                   pad=text.tokenizer.pad, positions=max(real.seq, small.positions), copies=0,
                   tokens=max(BATCH, real.seq))
    known = vars(small)
    config = replace(small, **{k: v for k, v in changes.items() if k in known})
    teacher, wanted = None, module.Objective.teacher_of(config)
    if wanted:
        other, settled = wanted
        teacher = checkpoint.variant(other, "teacher").Model(settled, Init(0, settled.init))
    stage = next(iter(config.stages()))
    return module.Objective(stage.config, text.corpus, text.tokenizer,
                            knowledge=facts_of(module, config, text), teacher=teacher)


def feeder(objective, most=400_000):
    """(a call that makes the batches of a pass over some documents, how many tokens these have)"""
    corpus = objective.corpus
    starts = corpus.sentences[corpus.documents]
    sizes = starts[corpus.train + 1] - starts[corpus.train]
    documents = corpus.train[sizes.cumsum() - sizes < most]

    def run(copy=1):
        plans = packed(objective, documents, copy)
        return sum(len(objective.batch(plan, copy)["ids"]) for plan in plans)
    return run, run()
