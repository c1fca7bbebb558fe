"""Reverse-mode differentiation in a page and a half.

An op is a pair of pure functions on arrays, `y, saved = forward(xp, *arrays, **static)` and
`grads = backward(xp, saved, dy, **static)`. Called on Tensors, it also leaves a Node: what
it saved, who its parents are, and a birth number. Python has just run the program in an
order where parents come first, so backward visits the reachable Nodes newest first: no
recursion, no sorting of the graph. A Node points only at Nodes, never back at a Tensor, so
there are no cycles and every array dies with its last use.

There is no double backward (no model of this family needs it), and no op changes a Tensor in place.
"""
import contextlib
import inspect
import itertools
import threading
from numbers import Number

from ..error import Error
from . import philox
from .backend import module_of, to_host

OPS = {}                                    # name -> Op; the gradient check walks it
_births = itertools.count()


class _Mode(threading.local):
    recording = True


_mode = _Mode()


class Part:
    """A gradient that is zero but for the rows at `index` (a slice, or distinct numbers)."""
    __slots__ = ("index", "rows", "shape")

    def __init__(self, index, rows, shape):
        self.index, self.rows, self.shape = index, rows, shape


class Node:
    """One step of the program, or a leaf (op None) that keeps the gradient it receives."""
    __slots__ = ("op", "pair", "saved", "static", "parents", "birth", "grad", "state")
    # The state of grad: others may hold it; ours to add into; left over from a step ago.
    SHARED, OWN, STALE = range(3)

    def __init__(self, op=None, pair=None, saved=None, static=None, parents=()):
        self.op, self.pair, self.saved, self.static, self.parents = op, pair, saved, static, parents
        self.birth, self.grad, self.state = next(_births), None, Node.SHARED

    def receive(self, xp, g):
        """Add g to the gradient. The first array to arrive is kept as it is, since op pairs
        return it once and never write to it again; from the second on the sum is our own,
        and the rest is added in place."""
        if type(g) is Part:
            if self.grad is None:
                self.grad = xp.zeros(g.shape, g.rows.dtype)
            elif self.state == Node.STALE:
                self.grad[...] = 0
            elif self.state == Node.SHARED:
                self.grad = self.grad.copy()
            self.grad[g.index] += g.rows
            self.state = Node.OWN
        elif self.grad is None:
            self.grad = g
        elif self.state == Node.STALE:
            self.grad[...] = g
            self.state = Node.OWN
        elif self.state == Node.OWN:
            self.grad += g
        else:
            self.grad, self.state = self.grad + g, Node.OWN

    def current_grad(self):
        if self.state == Node.STALE:        # nothing came since the last step: the gradient is zero
            self.grad[...] = 0
            self.state = Node.OWN
        return self.grad


class Tensor:
    """An array, and the Node that made it (None when no gradient is wanted)."""
    __slots__ = ("data", "node")
    __array_priority__ = 100                # so that `array * tensor` asks us first

    def __init__(self, data, node=None):
        self.data, self.node = data, node

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    grad = property(lambda self: self.node.current_grad() if self.node else None)

    def __len__(self):
        return len(self.data)

    def __repr__(self):
        return f"Tensor({self.data!r})"

    def numpy(self):
        return to_host(self.data)

    def item(self):
        return self.data.item()

    def detach(self):
        return Tensor(self.data)

    def backward(self, seed=None):
        """Give every leaf below this Tensor its share of d(sum of seed * self)."""
        if self.node is None:
            raise Error("backward: nothing below this Tensor wants a gradient "
                        "(was it made under no_grad?)")
        xp = module_of(self.data)
        if seed is None:
            if self.size != 1:
                raise Error(f"backward: the Tensor has shape {self.shape}; "
                            "only a single number needs no seed")
            seed = xp.ones_like(self.data)
        seed = xp.asarray(seed, self.dtype)
        if seed.shape != self.shape:
            raise Error(f"backward: the seed has shape {seed.shape}, but the Tensor {self.shape}")
        self.node.receive(xp, seed)
        waiting = _reachable(self.node)
        for birth in sorted(waiting, reverse=True):
            node = waiting.pop(birth)
            if node.op is None:
                continue                    # a leaf keeps its gradient
            if node.pair is None:
                raise Error("backward: it ran through this result already and freed it; "
                            "compute it again")
            if node.grad is not None:       # None: what stands above it did not use it
                grads = node.pair.backward(xp, node.saved, node.grad, **node.static)
                for parent, g in zip(node.parents, grads):
                    if parent is not None and g is not None:
                        parent.receive(xp, g)
            node.pair = node.saved = node.grad = None
            node.parents = ()               # freed as we go


def _reachable(root):
    """Birth number -> Node, for every Node under root."""
    found, stack = {}, [root]
    while stack:
        node = stack.pop()
        if node.birth not in found:
            found[node.birth] = node
            stack += [p for p in node.parents if p is not None]
    return found


def parameter(array):
    """A Tensor that keeps its gradient."""
    return Tensor(array, Node())


class Pair:
    """A forward and its backward.

    saving: the forward skips work when told that nothing will be differentiated.
    """
    __slots__ = ("forward", "backward", "saving")

    def __init__(self, forward):
        self.forward, self.backward = forward, None
        self.saving = "saving" in inspect.signature(forward).parameters


def plain(x):
    """NumPy's numbers as Python's, which take on the type of the array they meet."""
    return x.item() if isinstance(x, Number) and hasattr(x, "item") else x


class Op:
    """A definition in array text, and perhaps a faster pair of kernels under the same contract."""

    def __init__(self, forward):
        self.name, self.__doc__ = forward.__name__, forward.__doc__
        self.text, self.kernel = Pair(forward), None
        OPS[self.name] = self

    def grad(self, backward):
        self.text.backward = backward
        return self

    def gpu(self, forward):
        self.kernel = Pair(forward)
        return self

    def gpu_grad(self, backward):
        self.kernel.backward = backward
        return self

    def __call__(self, *args, **static):
        if any(type(value) is Tensor for value in static.values()):
            raise Error(f"{self.name}: Tensors are given by place, settings by name")
        arrays = [a.data if type(a) is Tensor else plain(a) for a in args]
        parents = tuple([a.node if type(a) is Tensor else None for a in args])
        xp = module_of(next(a for a in arrays if hasattr(a, "dtype")))
        # The only place in the library that asks "GPU?".
        pair = self.kernel if self.kernel and xp.__name__ == "cupy" else self.text
        wanted = _mode.recording and any(parents)
        if pair.saving:
            static["saving"] = wanted
        y, saved = pair.forward(xp, *arrays, **static)
        static.pop("saving", None)
        return Tensor(xp.asarray(y), Node(self, pair, saved, static, parents) if wanted else None)


op = Op


@contextlib.contextmanager
def recorded(wanted):
    before, _mode.recording = _mode.recording, wanted
    try:
        yield
    finally:
        _mode.recording = before


def no_grad():
    """Inside, ops leave no Nodes: nothing is saved and nothing can be differentiated."""
    return recorded(False)


def recording():
    return _mode.recording


class _Again:
    """The backward of recompute: run the function again, with a tape, and differentiate that."""
    @staticmethod
    def backward(xp, saved, dy):
        function, arrays, wanted, position = saved
        leaves = [Tensor(a, Node() if w else None) for a, w in zip(arrays, wanted)]
        with recorded(True), philox.replay(position):   # the same dropout masks as the first time
            y = function(*leaves)
        if y.node is not None:
            y.backward(dy)
        return [leaf.grad for leaf in leaves]


def recompute(function, *inputs):
    """function(*inputs), keeping only its inputs: backward computes the activations again.

    The gradients are equal bit for bit, dropout included: masks are functions of counters, and the
    counters' position is kept with the inputs.
    """
    if not _mode.recording:
        return function(*inputs)
    position = philox.position()
    with no_grad():
        y = function(*inputs)
    parents = tuple([x.node for x in inputs])
    saved = function, [x.data for x in inputs], [p is not None for p in parents], position
    return Tensor(y.data, Node(recompute, _Again, saved, {}, parents))
