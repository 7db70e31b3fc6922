"""Runs that are done once: what is there is taken up, or gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from albef import distributed
from albef.engine import train as engine
from albef.engine.checkpointer import read_newest
from albef.recipe import Recipe
from albef.tasks import make_task

console = Console(markup=False, highlight=False, emoji=False)


def learn(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Runs the recipe to its end, or goes on with it, or takes what a finished run left; the last evaluation."""
    engine.check_recipe(recipe, folder)
    state = read_newest(folder)
    if state and _left(recipe, state) == 0:
        console.print(
            f"{folder} holds this run already ({state['step']} steps); delete it to train anew", soft_wrap=True
        )
        return state["evaluation"]
    console.print("reading and decoding the images, then training")
    with distributed.session() as device:
        return engine.train(make_task, recipe, folder, device)


def seconds_left(recipe: Recipe, folder: Path) -> float:
    """The training time that `learn` would still take at most. ValueError if the folder holds another run."""
    engine.check_recipe(recipe, folder)
    state = read_newest(folder)
    return _left(recipe, state) if state else recipe.max_seconds


def _left(recipe: Recipe, state: dict[str, Any]) -> float:
    return max(0.0, recipe.max_seconds - state["seconds"]) if state["step"] < recipe.steps else 0.0
