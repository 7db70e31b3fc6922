"""Two images and a statement, true or false (paper §4.1, NLVR2; spec §3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from albef.data.examples import ExampleSource
from albef.data.processor import Processor
from albef.files import write_atomically
from albef.metrics.nlvr2 import nlvr2_accuracy, nlvr2_consistency
from albef.metrics.pairing import counts
from albef.models.classifier import AlbefForPairs
from albef.recipe import Recipe
from albef.tasks.begin import SavedTeacher, restore_teacher
from albef.tasks.classification import Judged, Statements, chosen_and_true, labelled, objective_of, predict
from albef.tasks.task import Saved, Task, compose

LABELS = ("False", "True")


def make(recipe: Recipe, saved: Saved) -> Task[AlbefForPairs]:
    """Fine-tuning on pairs of images."""
    data, validation = labelled("pairs", recipe, LABELS)
    return compose(
        recipe,
        saved,
        data,
        lambda config: AlbefForPairs(config, LABELS),
        lambda model, _: objective_of(model, recipe),
        None if validation is None else Statements(validation, evaluate_pairs),
        unstarted_teacher if recipe.objective.official else restore_teacher,
    )


def unstarted_teacher(objective: Any, saved: SavedTeacher) -> list[str]:
    """Leaves the teacher as it was before the start was loaded, as the original does (#67)."""
    if objective.teacher is None:
        return restore_teacher(objective, saved)
    before = AlbefForPairs(objective.model.config, LABELS)
    before.cls_head.load_state_dict(objective.model.cls_head.state_dict())  # that has no other start
    objective.teacher.copy(before)
    return ["teacher: as it was before the start was loaded"]


def evaluate_pairs(
    model: AlbefForPairs, processor: Processor, source: ExampleSource, tick: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """`figures` of what the model says of a source."""
    return figures(predict(model, processor, source, tick=tick), model.labels)


def figures(found: Judged, labels: Sequence[str]) -> dict[str, Any]:
    """`accuracy` over the examples whose label is known, and the official `consistency`, in percent (spec §4.3).

    Consistency is left out unless all labels are known and all examples named as NLVR2's.
    """
    chosen, truth = chosen_and_true(found, labels)
    shares = {"accuracy": 100 * nlvr2_accuracy({key: chosen[key] for key in truth}, truth)} if truth else {}
    if truth.keys() == chosen.keys() and all(str(key).count("-") == 3 for key in truth):
        shares["consistency"] = 100 * nlvr2_consistency(chosen, truth)
    return shares | counts("examples", chosen, truth)


def write_results(path: Path, found: Judged, labels: Sequence[str]) -> None:
    """What NLVR2's official script reads: a line `identifier,label` for each pair."""
    chosen, _ = chosen_and_true(found, labels)
    write_atomically(path, "".join(f"{key},{label}\n" for key, label in chosen.items()))
