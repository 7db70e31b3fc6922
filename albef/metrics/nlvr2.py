"""NLVR2's two figures by the official rule (lil-lab/nlvr)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from albef.errors import AlbefValueError
from albef.metrics.pairing import check_ids

Labels = Mapping[Any, str | bool]  # by identifier


def nlvr2_accuracy(predictions: Labels, truths: Labels) -> float:
    """Fraction of the examples that are right; labels are "True" or "False" in any case, or booleans.

    ValueError naming identifiers that only one side has, or if there are none.
    """
    right = _right(predictions, truths)
    return sum(right.values()) / len(right)


def nlvr2_consistency(predictions: Labels, truths: Labels) -> float:
    """Fraction of the sentences for which every pair of images is right.

    Identifiers are `split-set-pair-sentence`: examples that differ in the pair alone share their sentence. ValueError
    for other identifiers, and where `nlvr2_accuracy` raises it.
    """
    consistent: dict[str, bool] = {}
    for identifier, right in _right(predictions, truths).items():
        sentence = sentence_of(str(identifier))
        consistent[sentence] = consistent.get(sentence, True) and right
    return sum(consistent.values()) / len(consistent)


def sentence_of(identifier: str) -> str:
    """`identifier` without its pair: "test1-0-3-1" -> "test1-0-1"."""
    parts = identifier.split("-")
    if len(parts) != 4:
        raise AlbefValueError(
            f"identifier {identifier!r}: the form is split-set-pair-sentence, e.g. test1-0-3-1; keep NLVR2's"
        )
    return "-".join([*parts[:2], parts[3]])


def _right(predictions: Labels, truths: Labels) -> dict[Any, bool]:
    check_ids(predictions, truths)
    return {key: _spelt(predictions[key]) == _spelt(label) for key, label in truths.items()}


def _spelt(label: str | bool) -> str:
    return str(label).strip().lower()
