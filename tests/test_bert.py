"""What models/bert.py promises: the published sizes, one answer however the tokens are laid out,
exact gradients, plain words for bad input, and a model that learns one batch by heart."""
import math
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.engine import autograd, philox
from tinybert_family.engine.nn import Init
from tinybert_family.engine.optim import AdamW, Arena, clip
from tinybert_family.models.bert import SIZES, Config, Model, Objective
from tinybert_family.models.parts.padded import Packed
from tinybert_family.text import toy
from tinybert_family.text.corpus import Corpus
from tinybert_family.text.wordpiece import WordPiece

TINY = Config(vocab=50, layers=2, heads=2, width=16, hidden=24, positions=24, seq=24, tokens=64,
              predictions=4)
MARKS = SimpleNamespace(cls=1, sep=2, mask=3)


def a_model(c=TINY, seed=0, dtype=np.float64, std=0.5, **more):
    """Weights, gains and biases all random: zeros and ones would hide mistakes."""
    model = Model(c, Init(seed, std, dtype), **more)
    rng = np.random.default_rng(seed + 1)
    for tensor in model.named().values():
        if tensor.ndim == 1:
            tensor.data += (0.3 * rng.standard_normal(tensor.shape)).astype(dtype)
    return model


def a_batch(c=TINY, seed=0, sequences=5):
    """A batch from the objective itself, over documents of random numbers."""
    rng = np.random.default_rng(seed)
    sentences = np.concatenate([[0], np.cumsum(rng.integers(2, 9, 60))])
    corpus = SimpleNamespace(ids=rng.integers(4, c.vocab, sentences[-1]).astype(np.uint16),
                             sentences=sentences,
                             documents=np.arange(0, 61, 12))
    objective = Objective(c, corpus, MARKS, seed)
    return objective, objective.batch(objective.plan(np.arange(5), 0)[:sequences], 0)


def total_loss(objective, model, batch, step=None):
    """The loss that training minimises; with a step, dropout is on."""
    with philox.replay(None if step is None else philox.Key(7, step)):
        return sum(objective.loss(model, batch, objective.counts(batch)).values())


def gradients(model):
    return {name: tensor.grad for name, tensor in model.named().items()}


def encode(model, sequences, columns=None, types=None, **more):
    """Hidden states of a list of sequences."""
    lengths = [len(row) for row in sequences]
    columns = columns or [np.arange(n) for n in lengths]
    types = types or [np.zeros(n, np.int64) for n in lengths]
    cuts = np.concatenate([[0], np.cumsum(lengths)])
    ids, columns, types = map(np.concatenate, (sequences, columns, types))
    return model.encode(Packed(ids, types, columns, cuts), **more)


# ---- sizes

# layers, width, heads, hidden, words: BertModel, without pooler, ForPreTraining, ForMaskedLM
PUBLISHED = {
    "tiny": (2, 128, 2, 512, 30522, 4_385_920, 4_369_408, 4_433_468, 4_416_698),
    "mini": (4, 256, 4, 1024, 30522, 11_170_560, 11_104_768, 11_267_900, 11_201_594),
    "small": (4, 512, 8, 2048, 30522, 28_763_648, 28_500_992, 29_058_876, 28_795_194),
    "medium": (8, 512, 8, 2048, 30522, 41_373_184, 41_110_528, 41_668_412, 41_404_730),
    "base": (12, 768, 12, 3072, 30522, 109_482_240, 108_891_648, 110_106_428, 109_514_298),
    "large": (24, 1024, 16, 4096, 30522, 335_141_888, 334_092_288, 336_226_108, 335_174_458),
    "base-cased": (12, 768, 12, 3072, 28996, 108_310_272, 107_719_680, 108_932_934, 108_340_804),
    "large-cased": (24, 1024, 16, 4096, 28996, 333_579_264, 332_529_664, 334_661_958, 333_610_308),
    "base-multi-cased": (12, 768, 12, 3072, 119547, 177_853_440, 177_262_848, 178_566_653,
                         177_974_523),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones_and_cost_no_memory(name):
    layers, width, heads, hidden, vocab, bare, poolerless, pretraining, masked = PUBLISHED[name]
    settings = dict(model_type="bert", num_hidden_layers=layers, hidden_size=width,
                    num_attention_heads=heads,
                    intermediate_size=hidden, vocab_size=vocab)
    tracemalloc.start()
    try:
        counts = [tbf.count_parameters(dict(settings, architectures=[a])) for a in
                  ("BertModel", "BertForPreTraining", "BertForMaskedLM")]
        c = Config(vocab=vocab, layers=layers, heads=heads, width=width, hidden=hidden)
        alone = sum(t.size for t in Model(c, Init(), heads=()).named().values())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts == [bare, pretraining, masked] and alone == poolerless
    assert tbf.count_parameters(settings) == bare
    assert peak < 2 << 20


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in SIZES])
def test_named_sizes_are_the_published_sizes(name):
    c = SIZES[name]
    assert (c.layers, c.width, c.heads, c.hidden, c.vocab) == PUBLISHED[name][:5]
    assert (c.positions, c.types, c.eps, c.activation) == (512, 2, 1e-12, "gelu")


def test_a_shared_parameter_is_counted_and_named_once():
    model = a_model()
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names)) and "cls.predictions.decoder.weight" not in names
    assert model.mlm.word is model.embeddings.word
    sizes = [sum(t.size for t in tensors) for tensors in
             (dict(model.named_parameters()).values(), model.named().values())]
    assert sizes[0] == sizes[1]


# ---- settings that make no sense

WRONG = [
    (dict(vocab=0), "vocab: 0.*at least 1"), (dict(layers=0), "layers"), (dict(heads=-1), "heads"),
    (dict(width=0), "width"), (dict(hidden=0), "hidden"), (dict(positions=0), "positions"),
    (dict(types=0), "types"),
    (dict(tokens=0), "tokens"), (dict(steps=0), "steps"), (dict(seq=0), "seq"),
    (dict(width=50, heads=12), "width: 50 is not divisible by 12 heads; nearest are 48 and 60"),
    (dict(width=8, heads=12), "nearest are 12"),
    (dict(activation="swish"), "activation: 'swish'.*gelu.*gelu_new.*relu"),
    (dict(dropout=1.0), "dropout: 1.0"), (dict(attention_dropout=-0.1), "attention_dropout"),
    (dict(dropout=math.nan), "dropout"), (dict(masked=1.5), "masked"), (dict(short=-1.0), "short"),
    (dict(optimizer="sgd"), "optimizer: 'sgd'.*adamw.*lamb.*stableadamw"),
    (dict(schedule="cosine"), "schedule: 'cosine'.*linear.*trapezoidal"),
    (dict(seq=513), "seq: 513.*512 positions.*--seq 512 or --positions 513"),
    (dict(seq=512, tokens=256), "tokens: 256.*512"),
]


@pytest.mark.parametrize("wrong, message", WRONG, ids=lambda x: str(x)[:40])
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(wrong, message):
    with pytest.raises(tbf.Error, match=message) as caught:
        Config(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [dict(accumulate=0), dict(copies=-1), dict(predictions=0),
                                   dict(warmup=-1)], ids=str)
def test_counts_of_the_recipe_are_checked_too(wrong):
    with pytest.raises(tbf.Error, match=next(iter(wrong))):
        Config(**wrong)


@pytest.mark.parametrize("p", [0.0, 0.001, 0.5, 0.99, 0.999])
def test_every_dropout_that_is_accepted_can_be_computed(p):
    c = replace(TINY, dropout=p, attention_dropout=p)
    objective, batch = a_batch(c)
    model = a_model(c, std=0.02)
    loss = total_loss(objective, model, batch, step=0)
    loss.backward()
    assert np.isfinite(loss.item()) and np.isfinite(model.embeddings.word.grad).all()


# ---- the beginning

@pytest.mark.parametrize("std", [0.02, 0.0])
def test_the_first_loss_is_that_of_guessing_evenly(std):
    c = replace(TINY, vocab=2000, width=64, hidden=128)
    objective, batch = a_batch(c, sequences=20)
    losses = objective.loss(Model(c, Init(0, std)), batch, objective.counts(batch))
    # With fan-in initialisation the scores have variance 1, which costs 1/2 on average.
    assert abs(losses["mlm_loss"].item() - math.log(2000) - (0 if std else 0.5)) < 0.25
    assert abs(losses["nsp_loss"].item() - math.log(2)) < 0.25


def test_new_weights_are_a_cut_normal_and_a_function_of_the_seed():
    c = replace(TINY, vocab=3000)
    first, again, other = (Model(c, Init(seed)).named() for seed in (1, 1, 2))
    for name, tensor in first.items():
        x = tensor.data
        assert x.dtype == np.float32 and np.array_equal(x, again[name].data)
        if tensor.ndim > 1:
            assert abs(x).max() <= 0.04 and not np.array_equal(x, other[name].data)
        else:
            assert np.all(x == (1 if "norm.weight" in name else 0))
    # of a normal cut at two deviations
    assert abs(first["embeddings.word"].data.std() / 0.02 - 0.8796) < 0.02


# ---- gradients

@pytest.mark.parametrize("change", [
    dict(), dict(activation="gelu_new"), dict(activation="relu", recompute=True),
    dict(layers=1, heads=1), dict(types=5, recompute=True)], ids=str)
def test_the_gradient_of_the_whole_loss_is_its_slope(change):
    """Central differences in float64, dropout on, for some numbers of every tensor and along one
    direction of it."""
    c = replace(TINY, **change)
    objective, batch = a_batch(c)
    model, rng = a_model(c), np.random.default_rng(3)
    total_loss(objective, model, batch, step=2).backward()
    grads = gradients(model)

    def slope(tensor, direction, h=1e-5):
        kept, values = tensor.data, []
        for sign in 1, -1:
            tensor.data = kept + sign * h * direction
            values.append(total_loss(objective, model, batch, step=2).item())
        tensor.data = kept
        return (values[0] - values[1]) / (2 * h)

    for name, tensor in model.named().items():
        grad = grads[name]
        assert grad is not None and grad.shape == tensor.shape, name
        scale = abs(grad).max() + 1e-3
        for _ in range(4):
            one = np.zeros(tensor.shape)
            # Half of the time a number that matters: most rows of the word table are not in the
            # batch.
            matters = np.flatnonzero(grad) if rng.random() < 0.5 else grad.size
            place = rng.choice(matters)
            one.flat[place] = 1
            assert abs(slope(tensor, one) - grad.flat[place]) < 1e-6 * scale, name
        every = rng.standard_normal(tensor.shape) / math.sqrt(tensor.size)
        assert abs(slope(tensor, every) - (every * grad).sum()) < 1e-6 * scale, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recomputed_is_kept_bit_for_bit_dropout_on(dtype):
    objective, batch = a_batch()
    kept, again = a_model(dtype=dtype), a_model(replace(TINY, recompute=True), dtype=dtype)
    losses = [total_loss(objective, model, batch, step=4) for model in (kept, again)]
    assert losses[0].item() == losses[1].item() != total_loss(objective, kept, batch, step=5).item()
    for loss in losses:
        loss.backward()
    second = gradients(again)
    for name, grad in gradients(kept).items():
        assert np.array_equal(grad, second[name]), name


def test_dropout_is_on_inside_philox_at_and_nowhere_else():
    objective, batch = a_batch()
    model = a_model()
    with philox.at(7, 1):
        on = objective.loss(model, batch, objective.counts(batch))["mlm_loss"].item()
    with philox.at(7, 1):
        again = objective.loss(model, batch, objective.counts(batch))["mlm_loss"].item()
    off = [objective.loss(model, batch, objective.counts(batch))["mlm_loss"].item()
           for _ in range(2)]
    assert on == again != off[0] == off[1]


def test_a_step_in_two_micro_batches_has_the_gradient_of_one():
    """Each part weighs by the counts of the whole step, so unequal parts add up to the mean."""
    c = replace(TINY, tokens=200)
    objective, _ = a_batch(c)
    rows = objective.plan(np.arange(5), 0)[:7]
    counts = objective.counts(objective.batch(rows, 0))
    whole, parts = a_model(c), a_model(c)
    for model, pieces in (whole, [rows]), (parts, [rows[:2], rows[2:]]):
        for piece in pieces:
            sum(objective.loss(model, objective.batch(piece, 0), counts).values()).backward()
    second = gradients(parts)
    for name, grad in gradients(whole).items():
        np.testing.assert_allclose(second[name], grad, rtol=1e-9, atol=1e-12, err_msg=name)


def test_float32_stays_float32_everywhere(monkeypatch):
    """Forward, backward and all that is kept between: one forgotten NumPy scalar would double the
    memory."""
    kinds = set()

    def note(x):
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            kinds.add(x.dtype)
        elif isinstance(x, autograd.Part):
            note(x.rows)
        elif isinstance(x, (tuple, list)):
            for item in x:
                note(item)

    make, receive, begin = autograd.Node.__init__, autograd.Node.receive, autograd.Tensor.__init__

    def noted(self, op=None, pair=None, saved=None, *rest, **more):
        note(saved)
        make(self, op, pair, saved, *rest, **more)
    monkeypatch.setattr(autograd.Node, "__init__", noted)
    def received(self, xp, g):
        note(g)
        receive(self, xp, g)

    def begun(self, data, node=None):
        note(data)
        begin(self, data, node)
    monkeypatch.setattr(autograd.Node, "receive", received)
    monkeypatch.setattr(autograd.Tensor, "__init__", begun)
    for change in dict(), dict(activation="gelu_new"), dict(activation="relu", recompute=True):
        c = replace(TINY, **change)
        objective, batch = a_batch(c)
        model = a_model(c, dtype=np.float32)
        total_loss(objective, model, batch, step=1).backward()
        out = model([[1, 5, 6, 2], [1, 7, 2, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]])
        for x in out.last_hidden_state, out.logits, out.pooler_output, out.seq_relationship_logits:
            assert x.numpy().dtype == np.float32
    assert kinds == {np.dtype(np.float32)}


# ---- one answer, however the tokens are laid out

def test_packed_sequences_do_not_see_each_other():
    model, rng = a_model(), np.random.default_rng(0)
    rows = [rng.integers(0, 50, n) for n in (24, 9, 9, 9, 5, 1, 1)]
    types = [rng.integers(0, 2, len(row)) for row in rows]
    together = encode(model, rows, types=types).numpy()
    alone = [encode(model, [row], types=[t]).numpy() for row, t in zip(rows, types)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_last_layer_at_some_rows_is_the_full_one_there(layers, recompute):
    model = a_model(replace(TINY, layers=layers, recompute=recompute))
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 50, n) for n in (12, 12, 7, 3, 1)]
    every = encode(model, rows).numpy()
    for asked in [0], [0, 12, 24, 31, 34], [3, 4, 5, 13, 33], list(range(35)):
        some = encode(model, rows, rows=np.array(asked)).numpy()
        np.testing.assert_allclose(some, every[asked], rtol=1e-12, atol=1e-12)


MASKS = {
    "right": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]],
    "holes": [[1, 0, 1, 0, 1, 1], [0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 1]],
    "nothing in one row": [[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]],
    "nothing at all": [[0] * 6] * 3,
}


@pytest.mark.parametrize("name", MASKS)
def test_what_the_mask_leaves_out_does_not_exist(name):
    """Kept tokens have the position of their column and the states they would have alone; the rest
    is zero."""
    model, rng = a_model(), np.random.default_rng(2)
    ids, types = rng.integers(0, 50, (3, 6)), rng.integers(0, 2, (3, 6))
    mask = np.array(MASKS[name])
    out = model(ids, mask, types)
    with np.errstate(all="raise"):
        outputs = [out.last_hidden_state, out.logits, out.pooler_output,
                   out.seq_relationship_logits]
    hidden, logits, pooled, order = [x.numpy() for x in outputs]
    assert (hidden.shape, logits.shape) == ((3, 6, 16), (3, 6, 50))
    assert (pooled.shape, order.shape) == ((3, 16), (3, 2))
    for row in range(3):
        kept = np.flatnonzero(mask[row])
        assert np.all(hidden[row][mask[row] == 0] == 0) and np.all(logits[row][mask[row] == 0] == 0)
        if not len(kept):
            assert np.all(pooled[row] == 0) and np.all(order[row] == 0)
            continue
        alone = encode(model, [ids[row, kept]], [kept], [types[row, kept]])
        np.testing.assert_allclose(hidden[row, kept], alone.numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(logits[row, kept], model.mlm(alone).numpy(), rtol=1e-12,
                                   atol=1e-12)
        first = autograd.Tensor(alone.numpy()[:1])
        summary = model.pooler(first).numpy()[0]
        np.testing.assert_allclose(pooled[row], summary, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(order[row], model.nsp(first).numpy()[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 24), (3, 1), (2, 24), (0, 5), (2, 0)])
def test_the_smallest_and_the_longest_batches_work(shape):
    model = a_model()
    out = model(np.ones(shape, int))
    assert out.last_hidden_state.shape == (*shape, 16) and out.logits.shape == (*shape, 50)
    assert out.pooler_output.shape == (shape[0], 16) and np.isfinite(out.logits.numpy()).all()


@pytest.mark.parametrize("name", MASKS)
def test_gradients_pass_through_the_door(name):
    """The gradient of padded outputs is the slope of them; what is left out has none."""
    model, rng = a_model(), np.random.default_rng(4)
    ids, mask = rng.integers(0, 50, (3, 6)), np.array(MASKS[name])
    seeds = {what: rng.standard_normal(getattr(model(ids, mask), what).shape)
             for what in ("last_hidden_state", "logits", "pooler_output",
                          "seq_relationship_logits")}

    def value():
        out = model(ids, mask)
        return sum((getattr(out, what) * seed).sum() for what, seed in seeds.items())
    value().backward()
    qkv = model.layers[0].attention.qkv.weight
    for tensor in model.embeddings.word, qkv, model.pooler.dense.bias, model.mlm.bias:
        grad, kept = tensor.grad, tensor.data
        direction, sides = rng.standard_normal(tensor.shape), []
        for h in 1e-6, -1e-6:
            tensor.data = kept + h * direction
            sides.append(value().item())
        tensor.data = kept
        slope = (sides[0] - sides[1]) / 2e-6
        assert abs(slope - (direction * grad).sum()) < 1e-5 * (1 + abs(slope))
    if not mask.any():
        assert not np.any(model.embeddings.word.grad)


def test_under_no_grad_nothing_is_recorded_even_when_a_head_is_looked_at_later():
    model = a_model()
    with tbf.no_grad():
        out = model([[1, 2, 3]])
    assert out.logits.node is None and out.pooler_output.node is None
    recorded = model([[1, 2, 3]])
    with tbf.no_grad():
        assert recorded.logits.node is not None


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 12), (400, 12)])
def test_without_gradients_a_batch_goes_in_parts_and_gives_the_same_numbers(shape, monkeypatch):
    """A large batch is cut between its sequences; nobody can tell from the outputs."""
    model, rng = a_model(), np.random.default_rng(0)
    ids = rng.integers(0, TINY.vocab, shape)
    mask = np.arange(shape[1]) < rng.integers(0, shape[1] + 1, (shape[0], 1))
    sizes, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda b: sizes.append(len(b.ids)) or encode(b))
    whole = model(ids, mask)
    with tbf.no_grad():
        parts = model(ids, mask)
    np.testing.assert_allclose(parts.logits.numpy(), whole.logits.numpy(), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(parts.pooler_output.shape, whole.pooler_output.shape)
    kept = int(mask.sum())
    assert sizes[0] == sum(sizes[1:]) == kept
    assert max(sizes[1:]) <= 1024 + shape[1] and (len(sizes) > 2) == (kept > 1024)


def test_a_missing_head_says_so():
    out = a_model(heads=())([[1, 2]])
    assert out.last_hidden_state.shape == (1, 2, 16)
    for what, head in (("logits", "mlm"), ("pooler_output", "pooler"),
                       ("seq_relationship_logits", "nsp")):
        with pytest.raises(tbf.Error, match=f"without the {head} head"):
            getattr(out, what)


def test_a_model_with_the_next_sentence_head_alone_calls_its_scores_logits():
    out = a_model(heads=("pooler", "nsp"))([[1, 2]])
    assert out.logits.shape == (1, 2) and out.logits is out.seq_relationship_logits


# ---- kinds of input

IDS = [[1, 5, 49, 2], [1, 7, 2, 0]]
MASK = [[1, 1, 1, 1], [1, 1, 1, 0]]


def frozen(x):
    x.flags.writeable = False
    return x


KINDS = {
    "lists": lambda x: [list(row) for row in x], "tuples": lambda x: tuple(map(tuple, x)),
    "int32": lambda x: np.array(x, np.int32), "uint8": lambda x: np.array(x, np.uint8),
    "int64": lambda x: np.array(x), "uint64": lambda x: np.array(x, np.uint64),
    "fortran": lambda x: np.array(x, order="F"),
    "big endian": lambda x: np.array(x, ">i4"), "read-only": lambda x: frozen(np.array(x)),
    "reversed": lambda x: np.array([row[::-1] for row in x])[:, ::-1],
    "strided": lambda x: np.repeat(np.array(x), 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_integers_gives_the_same_bits(kind):
    model, make = a_model(dtype=np.float32), KINDS[kind]
    first = model(np.array(IDS), np.array(MASK), np.array(MASK))
    other = model(make(IDS), make(MASK), make(MASK))
    for what in "last_hidden_state", "logits", "pooler_output", "seq_relationship_logits":
        assert np.array_equal(getattr(first, what).numpy(), getattr(other, what).numpy())


def test_a_mask_of_truth_values_will_do():
    model = a_model()
    expected = model(IDS, MASK).logits.numpy()
    assert np.array_equal(model(IDS, np.array(MASK, bool)).logits.numpy(), expected)


def test_inputs_and_weights_are_never_written_to():
    model = a_model()
    arrays = [np.array(IDS), np.array(MASK), np.array(MASK)]
    before = [a.copy() for a in arrays]
    weights = {name: t.data.copy() for name, t in model.named().items()}
    out = model(*arrays)
    out.logits.sum().backward()
    out = model(*arrays)
    out.pooler_output.sum().backward()
    assert all(map(np.array_equal, arrays, before))
    assert all(np.array_equal(t.data, weights[name]) for name, t in model.named().items())
    objective, batch = a_batch()
    copy = {name: x.copy() for name, x in batch.items()}
    total_loss(objective, model, batch, step=1).backward()
    assert all(np.array_equal(batch[name], x) for name, x in copy.items())


BAD = {
    "negative id": (([[1, 2], [3, -1]],), r"input_ids: -1 at row 1 column 1.*50"),
    "id too large": (([[1, 2], [50, 3]],), r"input_ids: 50 at row 1 column 0.*50"),
    "id beyond int64": ((np.array([[1, 2 ** 63]], np.uint64),), r"input_ids: .*row 0 column 1"),
    "id under the mask": (([[1, 99]], [[1, 0]]), r"input_ids: 99 at row 0 column 1"),
    "too long": ((np.ones((1, 25), int),), r"input_ids: 25 tokens.*24 positions.*max_length=24"),
    "one axis": (([1, 2, 3],), r"input_ids: shape \(3,\).*\[batch, tokens\]"),
    "three axes": (([[[1]]],), r"input_ids: shape \(1, 1, 1\)"),
    "one number": ((3,), r"input_ids: shape \(\)"),
    "nothing": (([],), r"input_ids: shape \(0,\)"),
    "ragged": (([[1, 2], [3]],), r"input_ids: .*lengths.*pad"),
    "floats": (([[1.0, 2.0]],), r"input_ids: float64.*integers"),
    "words": (([["a", "b"]],), r"input_ids: .*integers"),
    "None inside": (([[1, None]],), r"input_ids: .*integers"),
    "None": ((None,), r"input_ids"),
    "mask shape": (([[1, 2]], [[1]]), r"attention_mask: shape \(1, 1\).*\(1, 2\)"),
    "mask value": (([[1, 2]], [[1, 2]]), r"attention_mask: 2 at row 0 column 1"),
    "mask negative": (([[1, 2]], [[-1, 1]]), r"attention_mask: -1 at row 0 column 0"),
    "mask of floats": (([[1, 2]], [[1.0, 0.0]]), r"attention_mask: float64"),
    "mask ragged": (([[1, 2], [1, 2]], [[1, 1], [1]]), r"attention_mask: .*lengths"),
    "types shape": (([[1, 2]], None, [[0, 1, 1]]), r"token_type_ids: shape \(1, 3\).*\(1, 2\)"),
    "types value": (([[1, 2]], None, [[0, 2]]), r"token_type_ids: 2 at row 0 column 1.*2"),
    "types negative": (([[1, 2]], None, [[0, -1]]), r"token_type_ids: -1 at row 0 column 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line_with_its_place(name):
    inputs, message = BAD[name]
    with pytest.raises(tbf.Error, match=message) as caught:
        a_model()(*inputs)
    assert "\n" not in str(caught.value)


# ---- it learns

@pytest.fixture(scope="module")
def language(tmp_path_factory):
    documents = toy.documents(40)
    tokenizer = WordPiece.train([s for d in documents for s in d.sentences], 400)
    return Corpus.build(documents, tokenizer, tmp_path_factory.mktemp("toy") / "corpus"), tokenizer


@pytest.mark.parametrize("std, dropout", [(0.02, 0.0), (0.0, 0.1)])
def test_one_batch_of_the_toy_language_is_learnt_by_heart(language, std, dropout):
    """Both tasks reach 99 % on the batch: a falling loss alone can hide labels that are half
    wrong."""
    corpus, tokenizer = language
    c = Config(vocab=tokenizer.size, layers=2, heads=4, width=64, hidden=128, positions=64, seq=64,
               tokens=1024,
               dropout=dropout, attention_dropout=dropout, init=std, correct=True)
    objective, model = Objective(c, corpus, tokenizer), Model(c, Init(0, std))
    batch = objective.batch(objective.plan(corpus.train, 0)[:10], 0)
    assert 2 < batch["nsp_labels"].sum() < 8
    arena = Arena(model.named().items())
    optimizer = AdamW(arena, (c.beta1, c.beta2), c.adam_eps, c.decay, c.correct)
    for step in range(130):
        Arena.forget(arena.tensors)
        with philox.at(0, step):
            losses = objective.loss(model, batch, objective.counts(batch))
            sum(losses.values()).backward()
        Arena.settle(arena.tensors)
        clip(arena.grad, c.clip)
        optimizer.step(3e-3 * min(1, (step + 1) / 20))
    with tbf.no_grad():
        sums = objective.scores(model, batch)
    scores = {name: value / count for name, (value, count) in sums.items()}
    assert scores["mlm_accuracy"] >= 0.99 and scores["nsp_accuracy"] >= 0.99, scores
    assert scores["mlm_loss"] < 0.1 and scores["nsp_loss"] < 0.1, scores
