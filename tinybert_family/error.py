"""The one exception for bad files and bad input.

Its message is one line: what is wrong, where, and what to do.
"""


class Error(ValueError):
    """Raised for anything a user can put right; a program prints it and exits with status 2."""
