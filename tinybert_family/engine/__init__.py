"""Arrays and gradients; nothing here knows of language.

Read autograd.py first, then ops.py, then fused.py and attention.py.
"""
