"""The BERT family from scratch on NumPy and CuPy.

    import tinybert_family as tbf
    model, tok = tbf.load(folder), tbf.load_tokenizer(folder)
    out = model(**tok(["Paris is the [MASK] of France."]))
    out.last_hidden_state, out.logits
"""
from .checkpoint import count_parameters, load, load_tokenizer, save
from .engine.autograd import Tensor, no_grad
from .error import Error

__version__ = "0.1.0"
__all__ = ["Error", "Tensor", "count_parameters", "load", "load_tokenizer", "no_grad", "save"]
