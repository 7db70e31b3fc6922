"""One file per task: objective, data and protocol belong together because they change together."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from albef.recipe import Recipe

_TASKS = {
    "pretrain": "pretrain.Pretrain",
    "retrieval": "retrieval.Retrieval",
    "vqa": "vqa.Vqa",
    "classification": "classification.Classification",
    "nlvr2": "nlvr2.Nlvr2",
    "text-assignment": "nlvr2.TextAssignment",
    "grounding": "grounding.Grounding",
}


def make_task(recipe: Recipe, saved: dict[str, Any] | None = None):
    """The task that `recipe.task` names; for a run that goes on, from what the task's `state_dict` gave before."""
    module, name = _TASKS[recipe.task].split(".")
    return getattr(import_module(f"albef.tasks.{module}"), name)(recipe, saved)
