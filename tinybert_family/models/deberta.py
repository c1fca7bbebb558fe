"""DeBERTa (He, Liu, Gao, Chen, 2020): what a word is and where it stands are kept apart.

Unlike BERT: no position is added to the words. A score is a sum of three products,

    score_ij = (q_i . k_j  +  q_i . K[i-j]  +  Q[i-j] . k_j) / sqrt(3 D)

of which the second says how far away a token looks (c2p, content to position), the third from how
far away it is looked at (p2c). K and Q are projections of a table with a row for every distance,
which all layers share. Distances alone do not tell "a new store" from "a new mall" in "a new store
beside the new mall"; so where hidden words are guessed, and only there, absolute positions come in.
parts/disentangled.py has the attention, and the decoder that adds them.
"""
import copy
from dataclasses import dataclass

from ..engine import fused
from ..engine.nn import Norm, dropout
from ..error import Error
from ..text import corrupt, segments
from ..text.bytebpe import ByteBPE
from . import bert, bert_wwm
from .parts import disentangled, heads, padded
from .parts.names import tasks_of


@dataclass(frozen=True)
class Config(bert.Config):
    vocab: int = 50265
    types: int = 0                  # segments; 0: they are not told apart
    eps: float = 1e-7
    relative: bool = True           # scores know how far apart two tokens stand
    terms: str = "c2p|p2c"          # by which products
    distances: int = -1             # so many each way are told apart; below 1: as many as positions
    position_biased: bool = False   # positions are added to the words, as BERT does
    pooler_dropout: float = 0.0
    legacy: bool = False            # give the masked-word head transformers' name, not the authors'
    gram: int = 3                   # words in a row that are hidden together, at most
    tail_bias: bool = False         # as released: the last tenth of a text is hardly ever hidden
    seq: int = 512                  # from the first step to the last
    last_share: float = 0.0
    predictions: int = 80           # 0.15 * 512, rounded up to a ten
    copies: int = 0                 # masks are dynamic
    tokens: int = 8192
    accumulate: int = 128           # 2048 sequences of 512 tokens in a step
    lr: float = 2e-4

    LIMITS = dict(bert.Config.LIMITS, types=(0, 1000), distances=(-1, 10**6), gram=(1, 100))

    def __post_init__(self):
        super().__post_init__()
        if sorted(self.products) not in ([], ["c2p"], ["p2c"], ["c2p", "p2c"]):
            raise Error(f"terms: {self.terms!r}, but these are known: c2p, p2c, c2p|p2c")
        if self.near:
            raise Error("near: for models that have to learn what a neighbour is; leave it out")

    @staticmethod
    def vocabulary(texts, size, progress=None):
        """RoBERTa's kind, with BERT's names of special tokens. A sentence begins with a space, so
        that its first word is seen to be one."""
        names = "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"
        return ByteBPE.train(texts, size, names, prefix_space=True, progress=progress)

    # the products beside q . k, and how far the table of distances reaches to either side
    products = property(lambda self: [term for term in self.terms.split("|") if term])
    span = property(lambda self: self.distances if self.distances > 0 else self.positions)


class Embeddings(bert.Embeddings):
    """LayerNorm(word), with position and type in models that have them"""

    def __init__(self, c, init):
        self.config = c
        self.word = init.normal((c.vocab, c.width))
        self.position = init.normal((c.positions, c.width)) if c.position_biased else None
        self.type = init.normal((c.types, c.width)) if c.types else None
        self.norm = Norm(init, c.width, c.eps)

    def forward(self, b):
        pairs = (self.word, b.ids), (self.position, b.positions), (self.type, b.types)
        tables, ids = zip(*[pair for pair in pairs if pair[0] is not None])
        x = fused.embed(*tables, ids=ids)                               # [T, H]
        return dropout(self.norm(x), self.config.dropout)


class Layer(bert.Layer):
    Attention = disentangled.Attention


class Masked(heads.Head):
    """BERT's, by the name that the authors gave it or by transformers' own."""

    def __init__(self, c, init, model):
        head = bert.MaskedHead(c, init, model)
        self.lm_head, self.predictions = (None, head) if c.legacy else (head, None)

    def forward(self, x):
        return (self.lm_head or self.predictions)(x)

    def loss(self, x, labels, weights):
        return (self.lm_head or self.predictions).loss(x, labels, weights)


class Model(bert.Model):
    Embeddings, Layer, Relative = Embeddings, Layer, disentangled.Relative
    HEADS = dict(pooler=disentangled.Pooler, mlm=Masked, emd=disentangled.Enhanced, **heads.TASKS)
    PRETRAINING = "mlm", "emd"
    PREFIX = "deberta."
    NAMES = {
        **{ours: theirs.replace("bert.", "deberta.") for ours, theirs in bert.Model.NAMES.items()
           if isinstance(theirs, str)},                                 # but for these:
        "relative.table": "deberta.encoder.rel_embeddings.weight",
        "layers.#.attention.qkv.in_proj.*": "deberta.encoder.layer.#.attention.self.in_proj.*",
        "layers.#.attention.qkv.*": "deberta.encoder.layer.#.attention.self.*",
        "layers.#.attention.key_at.*": "deberta.encoder.layer.#.attention.self.pos_proj.*",
        "layers.#.attention.query_at.*": "deberta.encoder.layer.#.attention.self.pos_q_proj.*",
        "pooler.dense.*": "pooler.dense.*",
        "emd.position": "deberta.embeddings.position_embeddings.weight",
        "mlm.lm_head.transform.*": "lm_predictions.lm_head.dense.*",
        "mlm.lm_head.norm.*": "lm_predictions.lm_head.LayerNorm.*",
        "mlm.lm_head.bias": "lm_predictions.lm_head.bias",
        "mlm.predictions.transform.*": "cls.predictions.transform.dense.*",
        "mlm.predictions.norm.*": "cls.predictions.transform.LayerNorm.*",
        "mlm.predictions.bias": "cls.predictions.bias",
    }

    def make_layers(self, c, init):
        self.relative = self.Relative(c, init) if c.relative else None
        layers = super().make_layers(c, init)
        for layer in layers:
            layer.attention.relative = self.relative
        return layers

    def pack(self, input_ids, attention_mask, token_type_ids):
        c = self.config
        types = token_type_ids if c.types else None
        longest = c.positions if c.position_biased else c.LIMITS["positions"][1]
        return padded.pack(c, input_ids, attention_mask, types, longest=longest, holes=False)

    def below(self):
        """This model without its last layer."""
        twin = copy.copy(self)
        twin.layers = self.layers[:-1]
        return twin

    # does the masked-word head read something else than the last hidden states?
    decoding = property(lambda self: self.emd is not None and self.emd.position is not None)

    def decode(self, b, rows=None):
        """What the masked-word head reads [R, H]."""
        if not self.decoding:
            return self.encode(b, rows)
        return self.emd(self.layers[-1], self.below().encode(b), b, rows)

    def forward(self, *inputs, **more):
        if not self.decoding:
            return super().forward(*inputs, **more)
        out = bert.Model.forward(self.below(), *inputs, **more)
        return disentangled.Output(self, out.x, out.inputs, out.choices)


# ---- the published file's config.json

HF_TYPES = "deberta",
HF_CONFIG = dict(bert.HF_CONFIG, head_dropout="cls_dropout", relative="relative_attention",
                 terms="pos_att_type", distances="max_relative_positions", legacy="legacy",
                 position_biased="position_biased_input", pooler_dropout="pooler_dropout")
HF_DEFAULTS = dict(relative=False, terms="", position_biased=True, legacy=True)
HF_CLASSES = {"DebertaModel": (), "DebertaForMaskedLM": ("mlm",), **tasks_of("Deberta")}
del HF_CLASSES["DebertaForMultipleChoice"]      # transformers has none
HF_REFUSED = dict(talking_head=False, pooler_hidden_act="gelu", tie_word_embeddings=True)
HF_TIED = {"cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
           "cls.predictions.decoder.bias": "cls.predictions.bias"}
HF_IGNORED = r"deberta\.embeddings\.position_ids"


def from_published(settings, where):
    """Lists as words, and the authors' files, which do not say what their head is called."""
    flat = dict(settings)
    width, count = flat.get("hidden_size", 768), flat.get("num_attention_heads", 12)
    sizes = dict(embedding_size=width, pooler_hidden_size=width)
    if type(width) is type(count) is int and count > 0:
        sizes["attention_head_size"] = width // count
    for name, size in sizes.items():
        if flat.get(name, size) != size:
            raise Error(f"{where}: {name} is {flat[name]!r}; only {size} is supported")
    terms = flat.get("pos_att_type") or []
    words = "|".join(map(str, terms)) if isinstance(terms, list) else terms
    flat["pos_att_type"] = words.lower().replace(" ", "") if isinstance(words, str) else words
    if "model_type" in flat and not flat.get("architectures"):
        flat.setdefault("legacy", False)
    return flat


def to_published(config, values):
    return values | dict(pos_att_type=config.products or None)


# ---- the objective

class Objective(bert_wwm.Objective):
    """Hidden n-grams, evenly strewn over the text, and guessed through the mask decoder: only what
    is hidden asks it."""
    TASKS = dict(mlm="mlm")

    def plan(self, documents, copy):
        """All documents in one row, cut without regard to where a sentence ends."""
        seed = self.seed, copy
        return segments.single_blocks(self.corpus, documents, self.config.seq, seed, self.tokenizer,
                                      whole=False)

    def words(self, s):
        """With n-grams of one, tokens are words."""
        if self.config.gram > 1:
            return super().words(s)
        special = s.places < 0
        return corrupt.units(~special, special, s.sequence)

    def chosen(self, s, copy):
        c, (size, where, order, _) = self.config, self.draws(s, copy)
        window = int(1 / max(c.masked, 0.01))               # of six words one is hidden
        return corrupt.windows(size, where, order, self.words(s), s.sequence, self.budget(s),
                               c.gram, window, c.tail_bias)

    def answers(self, model, b):
        yield "mlm", model.mlm, model.decode(self.inputs(b), b["asked"]), b["mlm_labels"]


# ---- sizes

SIZES = dict(
    smoke=Config(vocab=2048, layers=2, heads=4, width=64, hidden=256, positions=128,
                 steps=550, warmup=60, lr=5e-3, **dict(bert.SMALL, near=False, tokens=1024)),
    tiny=Config(layers=2, heads=2, width=128, hidden=512, steps=1500, warmup=150, lr=3e-3,
                **dict(bert.SMALL, near=False, seq=64, predictions=10)),
    base=Config(),
    large=Config(layers=24, heads=16, width=1024, hidden=4096),
    xlarge=Config(layers=48, heads=16, width=1024, hidden=4096),
)
