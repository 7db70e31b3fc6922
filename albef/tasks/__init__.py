"""Each task is one file: objective, data and protocol belong together because they change together."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from albef.recipe import Recipe
from albef.tasks.begin import Saved, check_batch

if TYPE_CHECKING:
    from torch import nn

    from albef.batches import Inputs
    from albef.models.backbone import Backbone
    from albef.tasks.task import Task


def make_task(recipe: Recipe, saved: Saved = None) -> Task[Backbone, nn.Module, Inputs]:
    """Returns the task that `recipe.task` names, made by `make` of the file with the same name.

    `saved` is what the task's `state_dict` returned, for a run that goes on. Raises ValueError if `data.train` is empty
    or the batch cannot be split evenly over the ranks.
    """
    check_batch(recipe)
    return import_module(f"albef.tasks.{recipe.task.replace('-', '_')}").make(recipe, saved)
