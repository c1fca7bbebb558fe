"""The kernels of loss.cu against the losses of engine/fused.py, in float64 on what they read."""
import emulated
import numpy as np
import pytest
from emulated import MEETINGS, ROUNDING, Meeting, guarded, numbers, poisoned, stored

from tinybert_family.engine import fused

KINDS = ["float", "bf16", "f16"]


# ---- launching

def vocabulary_loss(kind, logits, bias, labels, weights, scale, losses, hits, words, saving=True,
                    held=True, bias_kind=None, meeting=MEETINGS[0]):
    rows, stride = logits.shape
    name = f"vocabulary_loss<{kind},{bias_kind or kind},{held:d}>"
    call = emulated.kernel("loss.cu", name, meeting)
    call((rows,), (512,), (logits, bias, labels, weights, scale, losses, hits, np.int32(words),
                           np.int32(stride), np.int32(saving)),
         shared=384 + held * stride * logits.itemsize)


def cross_entropy(kind, logits, labels, weights, scale, dlogits, losses, hits, meeting=MEETINGS[0]):
    rows, classes = logits.shape
    call = emulated.kernel("loss.cu", f"cross_entropy<{kind}>", meeting)
    call((-(-rows // 8),), (256,), (logits, labels, weights, scale, dlogits, losses, hits,
                                    np.int32(rows), np.int32(classes)))


def binary_loss(kind, logits, labels, weights, scale, dlogits, losses, hits, meeting=MEETINGS[0]):
    call = emulated.kernel("loss.cu", f"binary_loss<{kind}>", meeting)
    call((-(-len(logits) // 256),), (256,), (logits, labels, weights, scale, dlogits, losses, hits,
                                             np.int32(len(logits))))


def totals(losses, hits, sums, meeting=MEETINGS[0]):
    emulated.kernel("loss.cu", "totals", meeting)((1,), (512,), (
        losses, hits, sums, np.int32(len(losses))), shared=256)


def column_sums(kind, x, sums, partials, columns, adding=False, meeting=MEETINGS[0]):
    rows, stride = x.shape
    slabs, across = len(partials), -(-columns // 256)
    call = emulated.kernel("loss.cu", f"column_partials<{kind}>", meeting)
    call((across, slabs), (256,), (
        x, partials, np.int32(rows), np.int32(columns), np.int32(stride)), shared=8192)
    emulated.kernel("loss.cu", "column_totals", meeting)((across,), (256,), (
        partials, sums, np.int32(slabs), np.int32(columns), np.int32(adding)))


# ---- what is expected

def floats(*x):
    return guarded(np.array(x, np.float32))


def case(kind, rows, words, padded=0, seed=0, size=3.0, biased=True, weighted=True):
    """Logits with NaN in their padding, bias, labels and weights, as they lie in memory."""
    rng = np.random.default_rng(seed)
    z = np.full((rows, words + padded), np.nan)
    z[:, :words] = size * rng.standard_normal((rows, words))
    bias = stored(rng.standard_normal(words), kind) if biased else None
    labels = rng.integers(0, words, rows).astype(np.int32)
    weights = rng.uniform(0.1, 1, rows) if weighted else np.ones(rows)
    return stored(z, kind), bias, guarded(labels), guarded(weights.astype(np.float32))


def expected(logits, bias, labels, weights, words):
    """(loss of each row, gradient, hits) by fused.vocabulary_loss, with x w^T = 1 z."""
    z = numbers(logits)[:, :words]
    b = np.zeros(words) if bias is None else numbers(bias)
    forward = fused.vocabulary_loss.text.forward
    losses, gradients = [], []
    for row, label, weight in zip(z, labels, weights):
        loss, (_, _, dz) = forward(np, np.ones((1, 1)), row[:, None], b, labels=np.array([label]),
                                   weights=np.array([weight], float))
        losses.append(float(loss))
        gradients.append(dz[0])
    return np.array(losses), np.array(gradients).reshape(z.shape), (z + b).argmax(1) == labels


def check_gradient(kind, got, wanted, largest):
    """A probability is off by some roundings of float, and then its type's own; `largest` is what
    it was multiplied by. The smallest numbers of f16 lie 2**-24 apart."""
    room = ROUNDING[kind] * abs(wanted) + 2.0 ** -20 * (abs(wanted) + largest * 2.0 ** -3)
    room += 2.0 ** -25 if kind == "f16" else 0
    assert (abs(got - wanted) <= room).all(), (abs(got - wanted) / room).max()


def check(kind, logits, bias, labels, weights, words, scale=1.0, **how):
    z, n = logits.copy(), len(logits)
    losses, hits = poisoned(n, "f4"), poisoned(n, "f4")
    wanted, gradient, right = expected(logits, bias, labels, weights, words)
    logits = guarded(logits)
    vocabulary_loss(kind, logits, bias, labels, weights, floats(scale), losses, hits, words, **how)
    np.testing.assert_allclose(losses, wanted, rtol=2e-6, atol=2e-6)
    assert np.array_equal(hits, right)
    if how.get("saving", True):
        got = numbers(logits)
        check_gradient(kind, got[:, :words], gradient * scale, (weights * scale)[:, None])
        assert not got[:, words:].any()
    else:
        assert np.array_equal(logits.view(np.uint8), z.view(np.uint8))
    return logits, losses, hits


# ---- over a vocabulary

@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_over_a_vocabulary_and_its_gradient(kind, held):
    for rows, words, padded in (1, 1, 7), (3, 8, 0), (2, 13, 3), (2, 4099, 5), (1, 4096, 8):
        for biased in True, False:
            given = case(kind, rows, words, padded, rows + words, biased=biased)
            check(kind, *given, words, held=held)
    check(kind, *case(kind, 1, 100, 4), 100, held=held, saving=False)


def test_a_vocabulary_as_large_as_they_come():
    check("bf16", *case("bf16", 1, 30522, 6, biased=False), 30522)
    check("bf16", *case("bf16", 1, 50265, 7, 1), 50265, scale=128.0)
    check("bf16", *case("bf16", 1, 128100, 4, 2), 128100, held=False)


def test_no_rows_are_no_work():
    logits, bias, labels, weights = case("bf16", 0, 16)
    nothing = poisoned(0, "f4")
    vocabulary_loss("bf16", logits, bias, labels, weights, floats(1), nothing, nothing, 16)


def test_a_bias_may_be_more_precise_than_the_logits():
    logits, _, labels, weights = case("bf16", 3, 77, 3)
    bias = stored(np.random.default_rng(9).standard_normal(77), "float")
    check("bf16", logits, bias, labels, weights, 77, bias_kind="float")


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("meeting", MEETINGS)
def test_no_order_of_threads_changes_a_bit_of_it(meeting, held):
    given = case("bf16", 2, 4301, 3)
    first = check("bf16", *given, 4301, held=held)
    again = check("bf16", *given, 4301, held=held, meeting=meeting)
    assert all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in zip(first, again))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_weight_0_is_not_looked_at(kind):
    logits, bias, labels, weights = case(kind, 3, 20, 4)
    wanted, gradient, _ = expected(logits, bias, labels, weights, 20)
    logits[1] = stored(np.full(24, np.nan), kind)
    labels[1], weights[1] = -100, 0
    losses, hits = poisoned(3, "f4"), poisoned(3, "f4")
    vocabulary_loss(kind, logits, bias, labels, weights, floats(1), losses, hits, 20)
    assert losses[1] == hits[1] == 0 and not numbers(logits)[1].any()
    np.testing.assert_allclose(losses[[0, 2]], wanted[[0, 2]], rtol=2e-6)
    check_gradient(kind, numbers(logits)[[0, 2], :20], gradient[[0, 2]], 1.0)


def test_large_logits_overflow_nowhere():
    logits, bias, labels, weights = case("f16", 2, 40, weighted=False)
    for x in 60000, -60000:
        logits[:, 5], bias[5] = x, x                # more than f16 holds, as a sum
        check("f16", logits, bias, labels, weights, 40, scale=1024.0)
    logits[:, :] = -60000
    check("f16", logits, None, labels, weights, 40)
    logits[:, ::2] = -np.inf                        # words that nobody may say
    labels[:] = 1, 3
    check("f16", logits, None, labels, weights, 40)


def test_a_gradient_too_large_for_its_type_is_seen_as_infinite():
    logits, bias, labels, weights = case("f16", 1, 40, weighted=False)
    losses, hits = poisoned(1, "f4"), poisoned(1, "f4")
    vocabulary_loss("f16", logits, bias, labels, weights, floats(2.0 ** 20), losses, hits, 40)
    assert np.isfinite(losses[0]) and np.isinf(logits[0, labels[0]])


def test_of_equal_logits_the_first_is_the_answer():
    for held in True, False:
        # in different threads, in one at different times, and at once
        for at, label, hit in ((3, 4093), 3, 1), ((3, 4093), 4093, 0), ((3, 4097), 3, 1), \
                              ((3, 4097), 4097, 0), ((4092, 4093), 4092, 1):
            logits, bias, labels, weights = case("bf16", 1, 5000, biased=False)
            logits[0, list(at)] = stored([50.0], "bf16")[0]
            labels[0] = label
            _, _, hits = check("bf16", logits, bias, labels, weights, 5000, held=held)
            assert hits[0] == hit


# ---- a few classes

def check_classes(kind, rows, classes, meeting=MEETINGS[0], saving=True, seed=0):
    logits, _, labels, weights = case(kind, rows, classes, seed=seed)
    z = numbers(logits)
    dlogits = poisoned(logits.shape, logits.dtype) if saving else None
    losses, hits = poisoned(rows, "f4"), poisoned(rows, "f4")
    cross_entropy(kind, logits, labels, weights, floats(8.0), dlogits, losses, hits, meeting)
    pair, heavy = fused.cross_entropy.text, weights.astype(float)
    loss, saved = pair.forward(np, z, labels=labels, weights=heavy)
    gradient, = pair.backward(np, saved, 8.0, labels=labels, weights=heavy)
    np.testing.assert_allclose(losses.sum(dtype=float), loss, rtol=2e-6, atol=2e-6)
    assert np.array_equal(hits, z.argmax(1) == labels)
    if saving:
        check_gradient(kind, numbers(dlogits), gradient, 8.0)
    return losses, dlogits


@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_over_a_few_classes(kind):
    for rows, classes in (1, 1), (9, 2), (8, 3), (17, 31), (2, 32), (3, 33), (2, 200):
        check_classes(kind, rows, classes, seed=classes)
    check_classes(kind, 5, 3, saving=False)


@pytest.mark.parametrize("meeting", MEETINGS)
def test_no_order_of_threads_changes_a_bit_of_classes(meeting):
    wanted, got = check_classes("bf16", 11, 37), check_classes("bf16", 11, 37, meeting)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, got))


def test_a_row_of_weight_0_has_no_class():
    logits, _, labels, weights = case("f16", 2, 3)
    logits[1], labels[1], weights[1] = np.nan, -1, 0
    dlogits, losses, hits = poisoned((2, 3), "f2"), poisoned(2, "f4"), poisoned(2, "f4")
    cross_entropy("f16", logits, labels, weights, floats(1), dlogits, losses, hits)
    assert losses[1] == hits[1] == 0 and not dlogits[1].any() and dlogits[0].any()


# ---- yes or no

@pytest.mark.parametrize("kind", KINDS)
def test_yes_or_no(kind):
    rng = np.random.default_rng(4)
    for count in 1, 255, 300:
        logits = stored(rng.standard_normal(count) * 10, kind)
        logits[0] = stored([-60000.0], kind)[0]
        labels = guarded(rng.integers(0, 2, count).astype(np.float32))
        weights = guarded(rng.uniform(0.1, 1, count).astype(np.float32))
        if count > 9:
            weights[7], logits[7] = 0, logits.dtype.type(0) if kind == "bf16" else np.nan
        losses, hits = poisoned(count, "f4"), poisoned(count, "f4")
        dlogits = poisoned(count, logits.dtype)
        binary_loss(kind, logits, labels, weights, floats(16.0), dlogits, losses, hits)
        z, heavy = np.where(weights > 0, numbers(logits), 0), weights.astype(float)
        pair = fused.binary_loss.text
        for i in range(count):
            one = dict(labels=labels[i:i + 1].astype(float), weights=heavy[i:i + 1])
            loss, saved = pair.forward(np, z[i:i + 1], **one)
            np.testing.assert_allclose(losses[i], loss, rtol=1e-6, atol=1e-7)
            gradient, = pair.backward(np, saved, 16.0, **one)
            check_gradient(kind, numbers(dlogits[i:i + 1]), gradient, 16.0)
        assert np.array_equal(hits, ((z > 0) == (labels > 0)) & (weights > 0))
        wanted = losses.copy()
        binary_loss(kind, logits, labels, weights, floats(16.0), None, losses, hits)
        assert np.array_equal(losses, wanted)


# ---- sums

@pytest.mark.parametrize("meeting", MEETINGS)
def test_the_rows_of_a_loss_are_added(meeting):
    for rows in 0, 1, 513, 2458:
        rng = np.random.default_rng(rows)
        losses = guarded(rng.uniform(0, 9, rows).astype(np.float32))
        hits = guarded(rng.integers(0, 2, rows).astype(np.float32))
        sums, again = poisoned(2, "f4"), poisoned(2, "f4")
        totals(losses, hits, sums, meeting)
        np.testing.assert_allclose(sums, [losses.sum(dtype=float), hits.sum()], rtol=1e-6)
        totals(losses, hits, again)
        assert np.array_equal(sums, again)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_added_whatever_their_number(kind):
    shapes = (0, 5, 8, 2), (1, 1, 8, 1), (37, 300, 304, 3), (70, 513, 520, 16)
    for rows, columns, stride, slabs in shapes:
        x = np.random.default_rng(columns).standard_normal((rows, stride))
        x[:, columns:] = np.nan
        x = stored(x, kind)
        wanted = fused.column_sums(np, numbers(x)[:, :columns])
        sums, partials = poisoned(columns, "f4"), poisoned((slabs, columns), "f4")
        column_sums(kind, x, sums, partials, columns)
        # every addition may round the sum so far: at most sqrt(rows) in size, or a few times that
        np.testing.assert_allclose(sums, wanted, rtol=0, atol=1e-6 * max(1, rows))
        column_sums(kind, x, sums, partials, columns, adding=True)
        np.testing.assert_allclose(sums, 2 * wanted, rtol=0, atol=2e-6 * max(1, rows))


def test_no_order_of_threads_changes_a_bit_of_the_columns():
    x = stored(np.random.default_rng(0).standard_normal((90, 304)), "bf16")
    found = []
    for meeting in MEETINGS[0], MEETINGS[1], Meeting("random", seed=7):
        sums = poisoned(300, "f4")
        column_sums("bf16", x, sums, poisoned((4, 300), "f4"), 300, meeting=meeting)
        found.append(sums)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
