"""A run, or two, and a page for each task of the generated world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from albef.engine.log import clock
from albef.errors import AlbefValueError
from albef.files import write_atomically
from albef.recipe import Recipe
from albef_demo import recipes, report
from albef_demo.pages import PAGES
from albef_demo.runs import console, learn, seconds_left

RUNS = {
    "retrieval": ("world-retrieval",),
    "vqa": ("world-vqa",),
    "entailment": ("world-entailment",),
    "nlvr2": ("world-assignment", "world-nlvr2"),
    "grounding": ("world-grounding",),
}
LOG_STEPS = 10
READING, MEASURING = 45.0, 30.0  # seconds that a run and a page take besides training, on one core


@dataclass(frozen=True)
class Chapter:
    """A task, and the runs that it takes with their folders, in their order."""

    name: str
    runs: list[tuple[Recipe, Path]]

    def left(self) -> float:
        """The training time that is left, in seconds, at most."""
        return sum(seconds_left(*run) for run in self.runs)


def plan(out: Path, seconds: float, seed: int) -> list[Chapter]:
    """All that is to be done in `out`/world, each run `seconds` long at most.

    ValueError for no time, and if a folder holds another run.
    """
    if seconds <= 0:
        raise AlbefValueError(
            f"the training time of a task is {seconds / 60:g} minutes; it must be above 0 (default: 2)"
        )
    return [Chapter(name, list(_runs(names, out / "world", seconds, seed))) for name, names in RUNS.items()]


def _runs(names: tuple[str, ...], folder: Path, seconds: float, seed: int) -> Iterator[tuple[Recipe, Path]]:
    """Each run begins with the model of the one before; the first with what its recipe says."""
    start: Path | None = None
    for name in names:
        recipe = replace(recipes.RECIPES[name](), max_seconds=seconds, seed=seed, log_steps=LOG_STEPS)
        own = folder / name.removeprefix("world-")
        yield replace(recipe, init=str(start)) if start else recipe, own
        start = (own / "model").resolve()


def outlook(chapters: list[Chapter]) -> tuple[str, float]:
    """The training time that is left of each task in words; the seconds that all of it takes, by estimate."""
    left = {chapter.name: chapter.left() for chapter in chapters}
    words = ", ".join(f"{name} {time_left(seconds)}" for name, seconds in left.items())
    waiting = sum(len(chapter.runs) * READING for chapter in chapters if left[chapter.name])
    return words, sum(left.values()) + waiting + MEASURING * len(chapters)


def time_left(seconds: float) -> str:
    return clock(seconds) if seconds else "is there"


def pages(chapters: list[Chapter], out: Path) -> Iterator[list[report.TaskPage]]:
    """Learns task after task; after each all pages so far, written to `out` and linked to each other."""
    made: list[report.TaskPage] = []
    for number, chapter in enumerate(chapters, 1):
        console.print(f"\n{number} of {len(chapters)}: {chapter.name}")
        for recipe, folder in chapter.runs:
            learn(recipe, folder)
        made.append(PAGES[chapter.name](chapter.runs))
        for page in made:
            write_atomically(out / f"{page.key}.html", report.render_task(page, made))
        console.print(f"{made[-1].line}: {out / chapter.name}.html", soft_wrap=True)
        yield list(made)
