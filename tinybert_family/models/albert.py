"""ALBERT (Lan, Chen, Goodman, Gimpel, Sharma, Soricut, 2020) spends parameters where they are
needed: one layer does the work of twelve, and words are looked up in a narrow table.

Unlike BERT: the tables are E = 128 wide and a matrix widens what comes out of them to H, so a large
vocabulary costs V * E instead of V * H; all layers of a group are one and the same layer, whose
gradient is the sum over its uses, so depth costs time but no memory; and the second task is not
which passage follows, which topics give away, but which of two passages came first. What is hidden
are n-grams: one to three whole words in a row.
"""
from dataclasses import dataclass

from ..engine.nn import Linear, Module
from ..text import corrupt, segments, words
from ..text.unigram import Unigram
from . import bert, bert_wwm
from .parts import heads
from .parts.names import tasks_of


@dataclass(frozen=True)
class Config(bert.Config):
    """The defaults are ALBERT-base, version 2. (Version 1 has dropout 0.1; its files say gelu.)"""
    vocab: int = 30000
    embedding: int = 128            # E, of the tables
    groups: int = 1                 # kinds of layers; the layers of a group are one
    inner: int = 1                  # layers that a group runs one after another at each step
    activation: str = "gelu_new"
    dropout: float = 0.0            # so many words cannot be learnt by heart with so few weights
    attention_dropout: float = 0.0
    stranger: bool = False          # as released: a lone sentence is not cut in two, but has a
                                    # passage of another document as its partner, of label 1
    seq: int = 512                  # from the first step to the last
    last_share: float = 0.0
    predictions: int = 77           # 0.15 * 512; the released script's default of 20 is for 128
    copies: int = 40                # four times as many masks as BERT had
    tokens: int = 8192
    accumulate: int = 256           # 4,096 sequences of 512 tokens
    steps: int = 125_000            # of the paper's comparisons; version 2 was trained for longer
    warmup: int = 3125
    lr: float = 0.00176
    optimizer: str = "lamb"         # AdamW with a step for each matrix: made for such batches

    LIMITS = dict(bert.Config.LIMITS, embedding=(1, 10**5), groups=(1, 1000), inner=(1, 1000))

    @staticmethod
    def vocabulary(texts, size, progress=None):
        return Unigram.train(texts, size, progress=progress)


class Embeddings(bert.Embeddings):
    """Words are looked up, summed and normed E wide, and only then widened.  [T, E] -> [T, H]"""

    def __init__(self, c, init):
        super().__init__(c, init, c.embedding)
        self.project = Linear(init, c.embedding, c.width)

    def forward(self, b):
        return self.project(super().forward(b))


class Group(Module):
    """Layers that belong together: where one of them runs, all of them run, in order."""

    def __init__(self, c, init):
        self.layers = [bert.Layer(c, init) for _ in range(c.inner)]


class SentenceOrder(heads.Sequence):
    """0: the two passages stand in their order. 1: they were swapped. (As many rows as a task has
    labels, in transformers: two, unless config.json says otherwise.)"""
    NEEDS = "pooler",


class Output(heads.Output):
    sop_logits = property(lambda self: self._of("sop"))                     # [B, 2]


class Model(bert.Model):
    Embeddings, Output = Embeddings, Output
    HEADS = dict(pooler=heads.Pooler, mlm=bert.MaskedHead, sop=SentenceOrder, **heads.TASKS)
    PRETRAINING = "pooler", "mlm", "sop"
    PREFIX = "albert."
    LAYER = "albert.encoder.albert_layer_groups.#.albert_layers.#."
    NAMES = {
        "embeddings.word": "albert.embeddings.word_embeddings.weight",
        "embeddings.position": "albert.embeddings.position_embeddings.weight",
        "embeddings.type": "albert.embeddings.token_type_embeddings.weight",
        "embeddings.norm.*": "albert.embeddings.LayerNorm.*",
        "embeddings.project.*": "albert.encoder.embedding_hidden_mapping_in.*",
        "groups.#.layers.#.attention.qkv.*": [LAYER + "attention.query.*",
                                              LAYER + "attention.key.*",
                                              LAYER + "attention.value.*"],
        "groups.#.layers.#.attention.out.*": LAYER + "attention.dense.*",
        "groups.#.layers.#.attention.norm.*": LAYER + "attention.LayerNorm.*",
        "groups.#.layers.#.mlp.up.*": LAYER + "ffn.*",
        "groups.#.layers.#.mlp.down.*": LAYER + "ffn_output.*",
        "groups.#.layers.#.mlp.norm.*": LAYER + "full_layer_layer_norm.*",
        "pooler.dense.*": "albert.pooler.*",
        "mlm.transform.*": "predictions.dense.*",
        "mlm.norm.*": "predictions.LayerNorm.*",
        "mlm.bias": "predictions.bias",
        "sop.classifier.*": "sop_classifier.classifier.*",
        "sequence.classifier.*": "classifier.*",
        "choice.classifier.*": "classifier.*",
        "token.classifier.*": "classifier.*",
        "question.classifier.*": "qa_outputs.*",
    }

    def make_layers(self, c, init):
        """The layers in the order in which they run, each of them several times.

        The groups come first in the tree: a parameter has the first name under which it is met.
        """
        self.groups = [Group(c, init) for _ in range(c.groups)]
        # The quotient first: in another order some are rounded into another group.
        turns = [int(i / (c.layers / c.groups)) for i in range(c.layers)]
        return [layer for turn in turns for layer in self.groups[turn].layers]


# ---- the published file's config.json

HF_TYPES = "albert",
HF_CONFIG = dict(bert.HF_CONFIG, embedding="embedding_size", groups="num_hidden_groups",
                 inner="inner_group_num", head_dropout="classifier_dropout_prob")
# AlbertConfig() is the largest.
HF_DEFAULTS = dict(width=4096, heads=64, hidden=16384, head_dropout=0.1)
HF_CLASSES = {"AlbertModel": ("pooler",), "AlbertForMaskedLM": ("mlm",),
              "AlbertForPreTraining": ("pooler", "mlm", "sop"), **tasks_of("Albert")}
HF_REFUSED = dict(position_embedding_type="absolute", tie_word_embeddings=True)
HF_TIED = {"predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
           "predictions.decoder.bias": "predictions.bias"}
HF_IGNORED = r"albert\.embeddings\.position_ids"


# ---- the objective

class Objective(bert_wwm.Objective):
    """Hidden n-grams, and which passage comes first.

        [CLS] the second half [SEP] the first half [SEP]        swapped: 1, in order: 0

    Both halves are of one document, so the topic gives nothing away.
    """
    TASKS = dict(mlm="mlm", sop="sop")
    GRAMS = 6, 3, 2                 # one word, two or three: in proportion to 1/n

    def __init__(self, c, corpus, tokenizer, *args, **kwargs):
        super().__init__(c, corpus, tokenizer, *args, **kwargs)
        self.begins = words.begins_word(tokenizer, foreign=True)

    def plan(self, documents, copy):
        c, seed = self.config, (self.seed, copy)
        return segments.order_pairs(self.corpus, documents, c.seq, c.short, seed, self.tokenizer,
                                    c.stranger)

    def batch(self, plan, copy):
        s = segments.lay_out(self.corpus, plan)
        noisy, hidden = self.noise(s, copy)
        sentences = s.cuts[:-1], s.labels
        return self.arrays(s, noisy, mlm=(hidden, s.ids[hidden]), sop=sentences)

    def chosen(self, s, copy):
        """An n-gram that would exceed the budget loses words, and is passed over when it touches
        one that was chosen before."""
        order, size, _, _ = self.draws(s, copy)
        hidden, _ = corrupt.ngrams(order, size, self.words(s), s.sequence, self.budget(s),
                                   self.GRAMS)
        return hidden


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, embedding=32, positions=128,
                 steps=800, warmup=80, lr=5e-3, optimizer="adamw", **bert.SMALL),
    tiny=Config(layers=2, heads=2, width=128, hidden=512, embedding=64, steps=3000, warmup=300,
                lr=3e-3, optimizer="adamw", **dict(bert.SMALL, seq=64, predictions=10)),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096),
    xlarge=Config(layers=24, heads=16, width=2048, hidden=8192),
    xxlarge=Config(heads=64, width=4096, hidden=16384),
)
