"""Accuracy of a classifier, SNLI-VE's figure."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from albef.errors import AlbefValueError


def accuracy(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Fraction of rows that are right: logits [N, classes] or classes [N] against classes [N].

    Every row counts once. The original's samplers pad the last batch of several ranks with repeats, which count twice:
    gather the rows of the ranks and drop the repeats first. ValueError for no rows or other shapes.
    """
    guesses, wanted = np.asarray(predictions), np.asarray(targets)
    if guesses.ndim == 2:
        guesses = guesses.argmax(1)
    if wanted.size == 0 or wanted.ndim != 1 or guesses.shape != wanted.shape:
        shapes = f"predictions {list(np.shape(predictions))} and targets {list(wanted.shape)}"
        raise AlbefValueError(
            f"{shapes}: give logits [N, classes] or classes [N], and classes [N], of at least one row"
        )
    return float((guesses == wanted).mean())
