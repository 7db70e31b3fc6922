"""One file per task: objective, data and protocol belong together because they change together."""

from __future__ import annotations

from pathlib import Path

from albef.recipe import Recipe


def make_task(recipe: Recipe, folder: Path):
    """The task that `recipe.task` names, to be run in `folder`."""
    from albef.tasks.pretrain import Pretrain

    return {"pretrain": Pretrain}[recipe.task](recipe, folder)
