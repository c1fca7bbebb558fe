"""What the tape promises: right sums for any shape of program, no recursion, and memory that goes
when it can."""
import ast
import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import tinybert_family.engine
from tinybert_family.engine import autograd, fused, nn, ops, optim, philox
from tinybert_family.engine.autograd import Node, Part, Tensor, no_grad, parameter, recompute
from tinybert_family.error import Error

FOLDER = tinybert_family.engine.__path__[0]


def leaf(*values):
    return parameter(np.array(values, float))


# ---- programs of any shape

def test_a_shared_input_gets_the_sum_of_its_shares():
    x = leaf(2, 3)
    ops.sum(x * x + x * 4.0 - x).backward()
    assert x.grad.tolist() == [2 * 2 + 3, 2 * 3 + 3]


def test_a_diamond_counts_both_of_its_sides():
    x = leaf(0.5, -1)
    y = ops.exp(x)
    ops.sum(ops.square(y) * (y + 1.0)).backward()               # d(y^3 + y^2)/dx = (3y^2 + 2y) y
    e = np.exp(x.data)
    np.testing.assert_allclose(x.grad, (3 * e * e + 2 * e) * e, rtol=1e-15)


def test_a_ladder_of_diamonds_is_walked_once_and_not_once_for_every_path():
    x = leaf(1.0)
    y = x
    for _ in range(60):                                         # 2**60 paths
        y = y * 0.5 + y * 0.5
    y.backward()
    assert x.grad.tolist() == [1.0]


def test_a_result_used_twice_passes_on_the_sum():
    x = leaf(3.0)
    y = ops.square(x)
    (ops.exp(y * 0.0) * y + y).backward()
    assert x.grad.item() == pytest.approx(2 * 6)


def test_two_losses_add_up_in_the_leaf():
    x = leaf(1, 2)
    ops.sum(x * 2.0).backward()
    first = x.grad
    ops.sum(x * 3.0).backward()
    assert x.grad.tolist() == [5, 5] and first.tolist() == [2, 2]


def test_only_what_is_below_the_result_gets_a_gradient():
    x, y = leaf(1.0), leaf(1.0)
    z = x * 2.0
    w = x * y                                                   # made, but not part of z
    z.backward()
    assert y.grad is None and w.grad is None and x.grad.item() == 2


def test_constants_and_detached_results_get_no_gradient():
    x, constant = leaf(2.0), Tensor(np.array([5.0]))
    y = x * constant + ops.square(x).detach()
    y.backward()
    assert constant.grad is None and x.grad.item() == 5
    assert (constant * constant).node is None


@pytest.mark.parametrize("left", [2, 2.0, np.float64(2), np.array([2.0, 2.0], np.float32)])
def test_numbers_and_arrays_mix_with_tensors_on_either_side_and_keep_float32(left):
    for f in (lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b):
        x = parameter(np.array([1, 4], np.float32))
        for y in f(left, x), f(x, left):
            assert type(y) is Tensor and y.dtype == np.float32
            ops.sum(y).backward()
        assert x.grad.dtype == np.float32
        np.testing.assert_allclose(f(left, x).data, f(np.float32(2), x.data))


def test_the_tensors_small_face():
    x = leaf(1, 2, 3)
    assert (x.shape, x.ndim, x.size, len(x), x.dtype) == ((3,), 1, 3, 3, np.float64)
    assert x.reshape(3, 1).shape == (3, 1) and x.sum().item() == 6 and x.mean().item() == 2
    assert x.sum(0, keepdims=True).shape == x.mean(-1, keepdims=True).shape == (1,)
    assert (-x).numpy().tolist() == [-1, -2, -3] and "1." in repr(x)
    assert (x.reshape(1, 3) @ x.reshape(3, 1)).item() == 14


# ---- depth

def test_ten_thousand_steps_run_backward_without_recursion():
    x = y = leaf(1.0)
    for _ in range(10_000):
        y = y + 1.0
    y.backward()
    assert x.grad.item() == 1


def test_three_hundred_thousand_nodes_die_un_run_without_recursion():
    y = leaf(1.0)
    for _ in range(300_000):
        y = ops.neg(y)
    last = weakref.ref(y.data)
    del y                               # a recursive end would take the interpreter down with it
    assert last() is None


# ---- what is refused

def refused(f):
    with pytest.raises(Error) as caught:
        f()
    message = str(caught.value)
    assert message.startswith("backward: ") and "\n" not in message
    return message


def test_a_second_backward_is_refused():
    x = leaf(1.0)
    y = ops.exp(x)
    y.backward()
    assert "compute it again" in refused(y.backward)
    assert "compute it again" in refused((y * 2.0).backward)     # also below something new


def test_several_numbers_without_a_seed_are_refused():
    assert "(2,)" in refused(leaf(1, 2).backward)
    assert "()" not in refused((leaf(1, 2) * 1.0).backward)


def test_a_result_that_nothing_wants_is_refused():
    assert "no_grad" in refused(Tensor(np.ones(1)).backward)


def test_a_seed_of_another_shape_is_refused():
    x = leaf(1, 2, 3)
    refused(lambda: (x * 2.0).backward(np.ones(2)))
    refused(lambda: (x * 2.0).backward(1.0))                    # would leave a gradient of shape ()
    assert x.grad is None


def test_a_seed_weighs_the_parts_of_the_result():
    x = parameter(np.array([1, 2, 3], np.float32))
    (x * 2.0).backward([1, 0, -1])
    assert x.grad.tolist() == [2, 0, -2] and x.grad.dtype == np.float32


def test_a_tensor_given_by_name_is_refused_and_not_taken_for_a_static_argument():
    x, w, b = leaf(1, 2).reshape(1, 2), leaf(1, 2).reshape(1, 2), leaf(1)
    with pytest.raises((Error, TypeError)):
        fused.linear(x, w, b=b)             # as an array of objects it would lose b's gradient


# ---- recompute

def layer(x, w, key_p=0.5):
    h = fused.linear(x, w)
    h = fused.gelu(nn.dropout(h, key_p))
    return nn.dropout(h, key_p) + x


def train(wrap, depth=4):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((depth + 1, 16, 16)).astype(np.float32)
    x, *weights = map(parameter, arrays)
    with philox.at(1, 2):
        y = x
        for w in weights:
            y = wrap(y, w)
        y = nn.dropout(y, 0.5)          # its place in the stream must not have moved
    ops.sum(y).backward()
    return [y.data, x.grad, *(w.grad for w in weights)]


def test_recomputed_gradients_are_the_same_bits_with_dropout_on():
    kept = train(layer)
    again = train(lambda x, w: recompute(layer, x, w))
    nested = train(lambda x, w: recompute(lambda x, w: recompute(layer, x, w), x, w))
    assert all(np.array_equal(a, b) for a, b in zip(kept, again, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(kept, nested, strict=True))
    assert any((a == 0).any() for a in kept)                    # dropout was on


def test_recompute_gives_gradients_to_weights_the_function_holds_itself():
    w = leaf(1, 2)
    x = Tensor(np.array([3.0, 4.0]))
    ops.sum(recompute(lambda x: x * w, x)).backward()
    assert w.grad.tolist() == [3, 4]


def bytes_held(wrap):
    """Between forward and backward."""
    w = parameter(np.full((64, 64), 1 / 64, np.float32))
    x = parameter(np.ones((256, 64), np.float32))
    tracemalloc.start()
    try:
        y = x
        for _ in range(8):
            y = wrap(y, w)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_recompute_keeps_only_what_goes_in():
    activation = 256 * 64 * 4
    assert bytes_held(layer) > 2 * 8 * activation
    assert bytes_held(lambda x, w: recompute(layer, x, w)) < 1.2 * 8 * activation


def test_recompute_passes_over_an_input_the_function_does_not_use():
    x, unused = leaf(3.0), leaf(1.0)
    y = recompute(lambda x, other: ops.square(x), x, ops.exp(unused))
    y.backward()
    assert x.grad.item() == 6
    assert unused.grad is None or unused.grad.item() == 0


def test_recompute_of_constants_stays_a_constant():
    x = leaf(3.0)
    (recompute(ops.square, Tensor(np.array([2.0]))) * x).backward()
    assert x.grad.item() == 4


def test_recompute_runs_backward_under_no_grad_too():
    x = leaf(3.0)
    y = recompute(ops.square, x)
    with no_grad():
        y.backward()
    assert x.grad.item() == 6


def test_recompute_under_no_grad_is_the_function():
    with no_grad():
        y = recompute(ops.square, leaf(3.0))
    assert y.item() == 9 and y.node is None


# ---- memory

def step(x, w, norm):
    with philox.at(1, 2):
        h = fused.linear(x, w)
        h = fused.norm(h, norm, norm, x, p=0.5, key=nn.dropout_key(0.5))
        h = h + fused.attention(ops.concat(h, h, h, axis=1), cuts=np.array([0, 3, 8]), heads=2)
        h = recompute(fused.gelu, h)
        ops.sum(ops.take(h, index=np.array([0, 1, 1])) * 2.0).backward()


def test_steps_leave_no_cyclic_garbage():
    rng = np.random.default_rng(0)
    x, w, norm = (parameter(rng.standard_normal(shape)) for shape in ((8, 4), (4, 4), (4,)))
    step(x, w, norm)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            step(x, w, norm)
        y = ops.exp(fused.linear(x, w))     # and one that is never run backward
        del y
        assert gc.collect() == 0
    finally:
        gc.enable()


class Watch:
    """An op to put into a program: its backward notes which of its arrays are still alive."""

    def __init__(self):
        self.seen = []
        self.pair = self

    def forward(self, x, *arrays):
        references = [weakref.ref(a) for a in arrays]
        return Tensor(x.data, Node(self, self, references, {}, (x.node,)))

    def backward(self, xp, references, dy):
        self.seen.append([r() is not None for r in references])
        return dy,


def test_backward_frees_what_it_has_passed():
    watch, x = Watch(), leaf(1, 2)
    early = ops.exp(x)
    early_data = early.data
    middle = watch.forward(early, early_data)
    late = ops.exp(middle * 1.0)
    middle.node.saved.append(weakref.ref(late.data))    # saved by exp, let go when we are run
    loss = ops.sum(late)
    del early, early_data, middle, late
    loss.backward()
    assert watch.seen == [[True, False]]


def test_a_gradient_that_was_passed_on_is_freed():
    watch, x = Watch(), leaf(1, 2)
    made = []

    def note(xp, saved, dy):
        made.append(dy * 2)
        references.append(weakref.ref(made[0]))
        return made.pop(),

    first = watch.forward(x)
    references = first.node.saved
    noting = Tensor(first.data, Node(None, None, None, {}, (ops.exp(first * 1.0).node,)))
    noting.node.op = noting.node.pair = type("Noting", (), dict(backward=staticmethod(note)))
    noting.backward(np.ones(2))
    assert watch.seen == [[False]]


def test_what_a_result_saved_dies_with_the_result():
    x = leaf(1, 2)
    y = ops.exp(x)
    z = ops.exp(y)
    saved = weakref.ref(y.data)
    del y
    assert saved() is not None              # z's step still wants it
    del z
    assert saved() is None


def test_a_result_that_outlives_backward_lets_go_of_what_it_saved():
    x = leaf(1, 2)
    y = ops.exp(x)
    loss = ops.sum(ops.square(y))
    saved = weakref.ref(y.data)
    del y
    loss.backward()                         # the loss stays, to be printed
    assert saved() is None and loss.node.parents == () and loss.node.saved is None


def test_no_op_keeps_more_than_it_saves():
    """The output of a sum, and the inputs of an addition, die at once."""
    x = leaf(1, 2)
    y = ops.exp(x) * 1.0
    summand = weakref.ref(y.data)
    total = ops.sum(y + 1.0)
    del y
    assert summand() is None and total.item() > 0


def test_twenty_five_steps_grow_by_nothing():
    rng = np.random.default_rng(0)
    x, w, norm = (parameter(rng.standard_normal(shape)) for shape in ((8, 4), (4, 4), (4,)))
    step(x, w, norm)
    gc.disable()
    tracemalloc.start()
    try:
        step(x, w, norm)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(25):
            step(x, w, norm)
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()
        gc.enable()


# ---- no_grad

def test_no_grad_leaves_no_nodes_and_ends_with_its_block():
    x = leaf(1.0)
    with no_grad():
        assert ops.exp(x).node is None and not autograd.recording()
        with no_grad():
            pass
        assert ops.exp(x).node is None
    assert ops.exp(x).node is not None
    with pytest.raises(KeyError):
        with no_grad():
            raise KeyError
    assert autograd.recording()


def test_no_grad_is_of_one_thread():
    x, nodes = leaf(1.0), []

    def work():
        nodes.append(ops.exp(x).node)
        with no_grad():
            barrier.wait()
            barrier.wait()

    barrier = threading.Barrier(2)
    with no_grad():
        thread = threading.Thread(target=work)
        thread.start()
        barrier.wait()                      # now the thread is inside a block of its own
    nodes.append(ops.exp(x).node)
    barrier.wait()
    thread.join()
    assert None not in nodes


def test_threads_can_run_backward_at_once_on_replicas():
    rng = np.random.default_rng(0)
    model = nn.Linear(nn.Init(0, dtype=np.float64), 5, 3)
    inputs = [rng.standard_normal((6, 5)) for _ in range(4)]
    twins = [nn.replica(model) for _ in inputs]

    def work(twin, x):
        for _ in range(50):
            ops.sum(ops.tanh(twin(Tensor(x)))).backward()

    threads = [threading.Thread(target=work, args=pair) for pair in zip(twins, inputs)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for twin, x in zip(twins, inputs):
        alone = nn.replica(model)
        work(alone, x)
        assert np.array_equal(twin.weight.grad, alone.weight.grad)


# ---- gradients that are zero but for some rows

ROWS = np.array([[1.0, 2.0], [3.0, 4.0]])
WHOLE = np.arange(8.0).reshape(4, 2)


def parts():
    return Part(np.array([2, 0]), ROWS, (4, 2)), Part(slice(1, 3), ROWS, (4, 2))


def spread(part):
    whole = np.zeros(part.shape)
    whole[part.index] = part.rows
    return whole


@pytest.mark.parametrize("start", ["nothing", "shared", "own", "stale"])
@pytest.mark.parametrize("order", [
    (0,), (1,), (0, 1), (1, 0), ("whole", 0), (0, "whole"), (0, "whole", 1), ("whole", "whole", 0),
    (0, 1, 0, "whole", "whole", 1)])
def test_parts_and_whole_gradients_add_up_in_every_state(start, order):
    node, before, old = Node(), np.zeros((4, 2)), np.full((4, 2), 10.0)
    if start != "nothing":
        node.grad, node.state = old, getattr(Node, start.upper())
        before = np.zeros((4, 2)) if start == "stale" else old.copy()
    arrivals = [WHOLE.copy() if i == "whole" else parts()[i] for i in order]
    for g in arrivals:
        node.receive(np, g)
    expected = before + sum(spread(g) if type(g) is Part else g for g in arrivals)
    assert np.array_equal(node.current_grad(), expected)
    assert start != "shared" or (old == 10).all(), "others may hold it"
    assert start in ("nothing", "shared") or node.grad is old, "its place in the arena is lost"
    assert all(np.array_equal(g, WHOLE) for g in arrivals if type(g) is not Part), "written into"


def test_a_stale_gradient_that_nothing_arrives_at_is_zero():
    node = Node()
    node.grad, node.state = np.ones(3), Node.STALE
    assert node.current_grad().tolist() == [0, 0, 0]


def test_leaves_in_an_arena_take_several_parts_step_after_step():
    table, other = parameter(np.zeros((6, 2))), parameter(np.ones((3, 2)))
    arena = optim.Arena([("table", table), ("other", other)])
    for _ in range(3):
        arena.forget(arena.tensors)
        rows = fused.embed(table, ids=[np.array([0, 5, 5])]) + ops.part(table, lo=1, hi=4)
        ops.sum(rows + ops.take(table, index=np.array([5, 1, 1]))).backward()
        arena.settle(arena.tensors)
        assert arena.grad.reshape(9, 2)[:, 0].tolist() == [1, 3, 1, 1, 0, 3, 0, 0, 0]
        assert table.grad.base is not None and np.shares_memory(table.grad, arena.grad)


# ---- modules

class Block(nn.Module):
    def __init__(self, init):
        self.first = nn.Linear(init, 3, 4)
        self.norm = nn.Norm(init, 4, 1e-12)
        self.tied = self.first.weight
        self.rest = [nn.Linear(init, 4, 4, bias=False), nn.Norm(init, 4, 1e-5)]

    def forward(self, x):
        return self.rest[1](self.rest[0](self.norm(self.first(x))))


def test_parameters_are_named_by_their_path_in_the_order_of_construction_each_once():
    assert list(Block(nn.Init(0)).named()) == [
        "first.weight", "first.bias", "norm.weight", "norm.bias",
        "rest.0.weight", "rest.1.weight", "rest.1.bias"]


def test_a_replica_shares_values_and_not_gradients():
    block = Block(nn.Init(0, dtype=np.float64))
    twin = nn.replica(block)
    assert twin.tied is twin.first.weight
    assert twin.tied is not block.tied and twin.rest is not block.rest
    assert list(twin.named()) == list(block.named())
    x = np.random.default_rng(0).standard_normal((5, 3))
    ops.sum(ops.square(twin(Tensor(x)))).backward()
    for name, tensor in block.named().items():
        copy = twin.named()[name]
        assert copy.data is tensor.data and tensor.grad is None and copy.grad is not None
    block.first.bias.data += 1
    assert np.array_equal(block(Tensor(x)).data, twin(Tensor(x)).data)


def test_new_weights_lie_within_two_deviations_and_repeat_with_the_seed():
    a, b, c = (nn.Init(seed).normal((300, 40)).data for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert abs(a).max() <= 0.04 and a.dtype == np.float32
    # 0.88 is left of a deviation when its tails are cut.
    assert a.std() == pytest.approx(0.02 * 0.88, rel=0.02)


def test_shapes_without_a_seed_take_no_memory():
    x = nn.Init().normal((10**9, 10**6))
    assert x.shape == (10**9, 10**6) and x.data.strides == (0, 0)


def test_rows_of_a_linear_are_the_same_rows_of_its_output():
    linear = nn.Linear(nn.Init(0, std=1, dtype=np.float64), 3, 6)
    linear.bias.data[:] = np.arange(6)
    x = Tensor(np.random.default_rng(0).standard_normal((5, 3)))
    np.testing.assert_allclose(linear.rows(x, 1, 4).data, linear(x).data[:, 1:4], rtol=1e-14)
    ops.sum(linear.rows(x, 1, 4)).backward()
    assert linear.bias.grad.tolist() == [0, 5, 5, 5, 0, 0]


def test_a_linear_without_bias_gives_its_rows_too():
    linear = nn.Linear(nn.Init(0, dtype=np.float64), 3, 6, bias=False)
    x = Tensor(np.ones((5, 3)))
    np.testing.assert_allclose(linear.rows(x, 1, 4).data, linear(x).data[:, 1:4], rtol=1e-14)


def test_a_norm_may_go_without_a_shift():
    plain, full = nn.Norm(nn.Init(0), 4, 1e-5, shift=False), nn.Norm(nn.Init(0), 4, 1e-5)
    assert plain.bias is None and list(plain.named()) == ["weight"]
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    assert np.array_equal(plain(Tensor(x)).data, full(Tensor(x)).data)


def test_a_norm_that_is_none_scales_and_shifts():
    norm = nn.NoNorm(nn.Init(0, dtype=np.float64), 3)
    assert list(norm.named()) == ["weight", "bias"]
    rng = np.random.default_rng(0)
    norm.weight.data[:], norm.bias.data[:] = rng.standard_normal((2, 3))
    x, residual = rng.standard_normal((2, 200, 3))
    bias = np.array([1.0, 2.0, 3.0])
    y = norm(Tensor(x), residual=Tensor(residual), bias=Tensor(bias), p=0.5).data
    np.testing.assert_allclose(y, norm.weight.data * (residual + x + bias) + norm.bias.data)
    with philox.at(1, 2):
        z = norm(Tensor(x), residual=Tensor(residual), bias=Tensor(bias), p=0.5).data
    kept = (z - norm.bias.data) / norm.weight.data - residual
    dropped = abs(kept) < 1e-9
    assert 0.4 < dropped.mean() < 0.6
    np.testing.assert_allclose(kept[~dropped], (2 * (x + bias))[~dropped])


# ---- which library: read from the text

def tree(name):
    with open(f"{FOLDER}/{name}.py", encoding="utf-8") as file:
        return ast.parse(file.read())


def names_in(name):
    nodes = list(ast.walk(tree(name)))
    used = {n.id for n in nodes if isinstance(n, ast.Name)}
    imports = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
    imported = {a.name for n in imports for a in n.names}
    return used | imported | {getattr(n, "module", None) for n in imports}


@pytest.mark.parametrize("name", [
    "ops", "tiles", "distances", "attention", "fused", "philox", "autograd"])
def test_the_text_of_ops_names_neither_library(name):
    assert not names_in(name) & {"np", "numpy", "cupy"}


def test_only_backend_imports_cupy():
    assert "cupy" in names_in("backend")
    assert not any("cupy" in names_in(name) for name in ("nn", "optim", "capture"))


def asked_of_xp():
    """Every dotted name that begins with xp, without it."""
    found = set()
    texts = "ops tiles distances attention fused philox autograd optim backend"
    for name in texts.split():
        for node in ast.walk(tree(name)):
            path = []
            while isinstance(node, ast.Attribute):
                path.insert(0, node.attr)
                node = node.value
            root = getattr(node, "id", None)
            if path and root == "xp" and path != ["__name__"]:
                found.add(".".join(path))
    return found


def missing_from(module):
    def holds(path):
        thing = module
        for name in path.split("."):
            thing = getattr(thing, name, None)
        return thing is not None
    return {path for path in asked_of_xp() if not holds(path)}


def test_all_that_is_asked_of_the_library_is_in_numpy():
    assert {"exp", "matmul", "zeros"} <= asked_of_xp()
    assert missing_from(np) == set()


def test_all_that_is_asked_of_the_library_is_in_cupy_too():
    cupy = pytest.importorskip("cupy", reason="cupy is not here for its names to be looked up")
    assert missing_from(cupy) == set()
