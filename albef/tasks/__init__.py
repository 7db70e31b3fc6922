"""One file per task: objective, data and protocol belong together because they change together."""

from __future__ import annotations

from albef.recipe import Recipe


def make_task(recipe: Recipe):
    """The task that `recipe.task` names."""
    from albef.tasks.pretrain import Pretrain

    return {"pretrain": Pretrain}[recipe.task](recipe)
