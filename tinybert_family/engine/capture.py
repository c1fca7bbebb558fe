"""Run a step twice, capture it, replay it. On NumPy, simply run it.

Every shape in a training step is static and no step asks the device a question, so on a GPU the
whole of forward, backward and update is one fixed list of kernels. Launched one by one from Python
they cost microseconds each; captured as a CUDA graph and replayed, the list costs one launch.
"""
import numpy as np

from .backend import module_of


class Captured:
    """step(arrays: dict) -> dict of arrays, made faster where that can be.

    The first two calls run as they are, so that every kernel is compiled and every lazily made
    array exists. The third is captured. From then on a call copies its inputs into the captured
    step's own input arrays and replays; what it returns is overwritten by the next call.
    """
    WARM = 2

    def __init__(self, step):
        self.step, self.calls, self.graph = step, 0, None

    def __call__(self, arrays):
        xp = module_of(next(iter(arrays.values())))
        if xp is np:
            return self.step(arrays)
        self.calls += 1
        if self.calls <= self.WARM:
            return self.step(arrays)
        if self.graph is None:
            self.capture(xp, arrays)
        else:
            for name, array in arrays.items():
                self.inputs[name][...] = array
        self.graph.launch(self.stream)
        return self.outputs

    def capture(self, xp, arrays):
        # Memory handed out during capture belongs to the graph for good: it comes from a pool that
        # nobody else draws from.
        self.inputs = {name: array.copy() for name, array in arrays.items()}
        self.stream = xp.cuda.Stream(non_blocking=True)
        self.memory = xp.cuda.MemoryPool()
        xp.cuda.get_current_stream().synchronize()
        with xp.cuda.using_allocator(self.memory.malloc), self.stream:
            self.step(self.inputs)      # fills the pool: a miss inside capture would be an error
            self.stream.synchronize()
            self.stream.begin_capture()
            self.outputs = self.step(self.inputs)
            self.graph = self.stream.end_capture()
