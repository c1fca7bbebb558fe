"""The head of a discriminator, in ELECTRA and in DeBERTa v3: replaced-token detection."""
from ...engine import fused
from ...engine.nn import Linear
from .. import bert
from . import heads


class Replaced(heads.Head):
    """Did the generator put this token there? One number each, above 0 for yes.  [T, H] -> [T]"""

    def __init__(self, c, init, model):
        self.config = c
        self.dense = Linear(init, c.width, c.width)
        self.classifier = Linear(init, c.width, 1)

    def forward(self, x):
        y = fused.linear(x, self.dense.weight)
        y = bert.activate(self.config, y, self.dense.bias)              # [T, H]
        return self.classifier(y).reshape(len(x))

    def loss(self, x, labels, weights):
        """Over all tokens, not only those that were hidden: that is the point."""
        return fused.binary_loss(self(x), labels=labels, weights=weights)
