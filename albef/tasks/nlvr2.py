"""The task of two images and a statement about them, true or false (paper §4.1, NLVR2; spec §3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from albef.batches import LabelBatch
from albef.data.examples import ExampleSource
from albef.data.processor import Processor
from albef.files import write_atomically
from albef.metrics.nlvr2 import nlvr2_accuracy, nlvr2_consistency
from albef.metrics.pairing import counts
from albef.models.classifier import AlbefForPairs
from albef.objectives.classify import ClassifyObjective
from albef.recipe import Recipe
from albef.tasks.begin import Saved, SavedTeacher, restore_teacher
from albef.tasks.classification import Judged, Statements, chosen_and_true, labelled, objective_of, predict
from albef.tasks.task import Figures, Task

LABELS = ("False", "True")


def make(recipe: Recipe, saved: Saved) -> Task[AlbefForPairs, ClassifyObjective, LabelBatch]:
    """Returns fine-tuning on the pairs of images of `recipe.data.train`."""
    data, validation = labelled("pairs", recipe, LABELS)
    return Task(
        recipe,
        saved,
        data,
        lambda config: AlbefForPairs(config, LABELS),
        lambda model, _: objective_of(model, recipe),
        None if validation is None else Statements(validation, evaluate_pairs),
        unstarted_teacher if recipe.objective.official else restore_teacher,
    )


def unstarted_teacher(objective: ClassifyObjective, saved: SavedTeacher) -> list[str]:
    """Leaves the teacher as it was before the start was loaded, as the original does (#67)."""
    if objective.teacher is None:
        return restore_teacher(objective, saved)
    before = AlbefForPairs(objective.model.config, LABELS)
    before.cls_head.load_state_dict(objective.model.cls_head.state_dict())  # that has no other start
    objective.teacher.copy(before)
    return ["teacher: as it was before the start was loaded"]


def evaluate_pairs(
    model: AlbefForPairs, processor: Processor, source: ExampleSource, tick: Callable[[int], None] | None = None
) -> Figures:
    """Returns the `figures` of what the model says about a source."""
    return figures(predict(model, processor, source, tick=tick), model.labels)


def figures(found: Judged, labels: Sequence[str]) -> Figures:
    """Returns `accuracy` over the examples whose label is known and the official `consistency`, in percent (spec §4.3).

    Consistency is left out unless all labels are known and all examples are named as NLVR2's are.
    """
    chosen, truth = chosen_and_true(found, labels)
    shares = {"accuracy": 100 * nlvr2_accuracy({key: chosen[key] for key in truth}, truth)} if truth else {}
    if truth.keys() == chosen.keys() and all(str(key).count("-") == 3 for key in truth):
        shares["consistency"] = 100 * nlvr2_consistency(chosen, truth)
    return shares | counts("examples", chosen, truth)


def write_results(path: Path, found: Judged, labels: Sequence[str]) -> None:
    """Writes what NLVR2's official script reads: a line `identifier,label` for each pair."""
    chosen, _ = chosen_and_true(found, labels)
    write_atomically(path, "".join(f"{key},{label}\n" for key, label in chosen.items()))
