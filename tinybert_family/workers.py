"""Several cores at one step's work."""
import itertools
from concurrent.futures import ThreadPoolExecutor

from .engine import philox
from .engine.autograd import no_grad
from .engine.nn import replica
from .engine.optim import Arena


class Workers:
    """Threads that share the micro-batches of a step, each with a replica of the model: the same
    weights, gradients of its own. NumPy lets go of the interpreter while it computes, so two cores
    do nearly twice the work.

    Which worker takes which micro-batch is fixed, and so is the order in which their gradients
    are added.
    """

    def __init__(self, model, arena, objective, count):
        self.objective, self.arena = objective, arena
        self.models = [model] + [replica(model) for _ in range(count - 1)]
        self.tensors = [[m.named()[name] for name in arena.names] for m in self.models]
        self.grads = [arena.grad] + [arena.gradients_of(t) for t in self.tensors[1:]]
        self.pool = ThreadPoolExecutor(count)

    def gradients(self, batches, seed, step):
        """Leave the gradient of a step in arena.grad; return its losses by name."""
        counts = sum(self.objective.counts(b) for b in batches)
        losses = {}
        shares = self.pool.map(lambda w: self.share(w, batches, counts, seed, step),
                               range(len(self.models)))
        for share in shares:
            for name, value in share:
                losses[name] = losses.get(name, 0.0) + value
        for grad in self.grads[1:]:
            self.arena.grad += grad
        return losses

    def share(self, w, batches, counts, seed, step):
        Arena.forget(self.tensors[w])
        losses = []
        for i in range(w, len(batches), len(self.models)):
            with philox.at(seed, step, part=i):
                parts = self.objective.loss(self.models[w], batches[i], counts)
                self.objective.total(parts).backward()
            losses += [(name, float(part.item())) for name, part in parts.items()]
        Arena.settle(self.tensors[w])
        return losses

    def scores(self, batches):
        """Means over held-out batches by name."""
        def of(w):
            with no_grad():
                mine = batches[w::len(self.models)]
                return [self.objective.scores(self.models[w], b) for b in mine]
        sums = {}
        done = self.pool.map(of, range(len(self.models)))
        for scores in itertools.chain.from_iterable(done):
            for name, (value, count) in scores.items():
                total = sums.setdefault(name, [0.0, 0])
                total[0] += float(value)
                total[1] += count
        means = {name: value / max(1, n)
                 for name, (value, n) in sums.items()}
        return means
