"""One file per task: objective, data and protocol belong together because they change together."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

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


def make_task(recipe: Recipe, folder: Path):
    """The task that `recipe.task` names, to be run in `folder`."""
    module, name = _TASKS[recipe.task].split(".")
    return getattr(import_module(f"albef.tasks.{module}"), name)(recipe, folder)
