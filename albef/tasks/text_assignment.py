"""Text assignment, which prepares for NLVR2: which of two images does a caption describe, or neither? (paper §4.1)"""

from __future__ import annotations

from albef.batches import PairBatch
from albef.models.classifier import AlbefForTextAssignment
from albef.objectives.classify import AssignObjective
from albef.recipe import Recipe
from albef.tasks.begin import Saved, say
from albef.tasks.pretrain import words_on_host
from albef.tasks.task import Task
from albef.tasks.training_data import Pairs, open_pairs


def make(recipe: Recipe, saved: Saved) -> Task[AlbefForTextAssignment, AssignObjective, PairBatch]:
    """Returns text assignment on pre-training's pairs. It has no figures of its own; NLVR2 that starts from it has."""
    source, validation = open_pairs(recipe)
    if validation is not None:
        say(["text assignment is not measured by itself: data.validation is not used"])
    return Task(
        recipe,
        saved,
        Pairs(source, recipe),
        AlbefForTextAssignment,
        lambda model, _: AssignObjective(model, recipe.objective.official),
        None,
        call=lambda objective, batch, _: objective(batch),
        on_host=words_on_host,
    )
