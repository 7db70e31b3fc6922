"""Predictions and truths that belong to the same things."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from albef.errors import AlbefValueError

Id = TypeVar("Id", bound=Hashable)


def check_ids(predictions: Mapping[Id, Any], truths: Mapping[Id, Any]) -> None:
    """ValueError unless both have the same ids and at least one: a figure over some of a set compares with nothing."""
    if not truths:
        raise AlbefValueError("no truths: a score needs at least one; check which split was read")
    wrong = [("no prediction for", sorted(truths.keys() - predictions.keys(), key=repr))]
    wrong += [("no truth for", sorted(predictions.keys() - truths.keys(), key=repr))]
    found = [f"{what} {len(ids)} ids, e.g. {ids[:5]}" for what, ids in wrong if ids]
    if found:
        rule = "every id of the split must be predicted once and no other; 1 and '1' are different ids"
        raise AlbefValueError(f"{'; '.join(found)}: {rule}. Score the split that was predicted, whole")


def counts(name: str, predictions: Mapping[Id, Any], truths: Mapping[Id, Any]) -> dict[str, int]:
    """How many predictions there are, as `name`, and how many a figure is over, as `measured`, unless that is all."""
    return {name: len(predictions)} | ({"measured": len(truths)} if len(truths) < len(predictions) else {})
