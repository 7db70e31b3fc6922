"""What a user can mend: one family of errors, each also the built-in error that a Python program would expect.

The command line shows an `AlbefError` as one line; anything else is a defect of ours and shows where it happened.
"""

from __future__ import annotations


class AlbefError(Exception):
    """The message gives the value, the rule that it breaks, and the remedy."""


class AlbefValueError(AlbefError, ValueError):
    """A value, a file's content or a combination of options that cannot be used."""


class AlbefTypeError(AlbefError, TypeError):
    """A model or a value of a kind that cannot do what is asked."""


class AlbefFileNotFoundError(AlbefError, FileNotFoundError):
    """Something that is named and is not there."""


class AlbefRuntimeError(AlbefError, RuntimeError):
    """Something that the machine, the data or a missing package makes impossible."""


class AlbefFloatingPointError(AlbefError, FloatingPointError):
    """A number that is not finite where learning needs one."""
