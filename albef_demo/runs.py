"""Runs that are done once: a finished run is used as it is, and one that was stopped is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from albef import distributed
from albef.engine import train as engine
from albef.engine.checkpointer import read_newest
from albef.engine.log import clock
from albef.recipe import Recipe
from albef.tasks import make_task
from albef_demo.screen import console


def learn(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Runs the recipe in `folder` to its end, if it has not been run there already; returns the last evaluation."""
    engine.check_recipe(recipe, folder)
    state = read_newest(folder)
    if state and _left(recipe, state) == 0:
        console.print(
            f"{folder} holds this run already ({state['step']} steps). Delete the folder to train anew.", soft_wrap=True
        )
        return state["evaluation"]
    console.print("Reading and decoding the images, then training.")
    with distributed.session() as device:
        return engine.train(make_task, recipe, folder, device)


def seconds_left(recipe: Recipe, folder: Path) -> float:
    """The longest training time, in seconds, that `learn` would still take.

    AlbefValueError if `folder` holds a run with other settings.
    """
    engine.check_recipe(recipe, folder)
    state = read_newest(folder)
    return _left(recipe, state) if state else recipe.max_seconds


def steps_done(folder: Path) -> tuple[int, str]:
    """The steps of the run in `folder` so far; the steps and the training time in words."""
    state = read_newest(folder) or {"step": 0, "seconds": 0.0}
    return state["step"], f"{state['step']:,} steps in {clock(state['seconds'])} minutes"


def _left(recipe: Recipe, state: dict[str, Any]) -> float:
    return max(0.0, recipe.max_seconds - state["seconds"]) if state["step"] < recipe.steps else 0.0
