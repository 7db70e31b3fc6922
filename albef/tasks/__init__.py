"""One file per task: objective, data and protocol belong together because they change together."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from albef.recipe import Recipe
from albef.tasks.begin import check_batch


def make_task(recipe: Recipe, saved: dict[str, Any] | None = None) -> Any:
    """The task that `recipe.task` names, a `tasks.task.Task`: its file has the same name, and in it `make`.

    A run that goes on gives what the task's `state_dict` was: `saved`.
    """
    check_batch(recipe)
    return import_module(f"albef.tasks.{recipe.task.replace('-', '_')}").make(recipe, saved)
