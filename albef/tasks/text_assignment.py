"""Text assignment, which prepares for NLVR2: which of two images does a caption describe, or neither? (paper §4.1)"""

from __future__ import annotations

from torch import Tensor, nn

from albef.batches import Inputs
from albef.models.classifier import AlbefForTextAssignment
from albef.objectives.classify import AssignObjective
from albef.recipe import Recipe
from albef.tasks.begin import say
from albef.tasks.pretrain import words_on_host
from albef.tasks.task import Saved, Task, compose
from albef.tasks.training_data import Pairs, open_pairs


def make(recipe: Recipe, saved: Saved) -> Task[AlbefForTextAssignment]:
    """Learns from pre-training's pairs. It has no figures of its own: NLVR2, which starts from it, has."""
    source, validation = open_pairs(recipe)
    if validation is not None:
        say(["text assignment is not measured by itself: data.validation is not used"])
    return compose(
        recipe,
        saved,
        Pairs(source, recipe),
        AlbefForTextAssignment,
        lambda model, _: AssignObjective(model, recipe.objective.official),
        None,
        call=without_teacher,
        on_host=words_on_host,
    )


def without_teacher(
    objective: nn.Module, batch: Inputs, alpha: float, fuse: bool, hardness: float
) -> dict[str, Tensor]:
    return objective(batch)
