"""`albef demo --all-tasks`: a run, or two, and a page for each task of the generated world."""

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
from albef_demo.runs import learn, seconds_left
from albef_demo.screen import console

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
class TaskRuns:
    """A task with its runs in their order; each run is its recipe and its folder."""

    name: str
    runs: list[tuple[Recipe, Path]]

    def left(self) -> float:
        """The longest training time that is left, in seconds."""
        return sum(seconds_left(*run) for run in self.runs)


def plan(out: Path, seconds: float, seed: int) -> list[TaskRuns]:
    """The runs of every task in `out`/world, each with `seconds` as its longest training time.

    AlbefValueError if `seconds` is not above 0.
    """
    if seconds <= 0:
        raise AlbefValueError(
            f"the training time of a task is {seconds / 60:g} minutes; it must be above 0 (default: 2)"
        )
    return [TaskRuns(name, list(_runs(names, out / "world", seconds, seed))) for name, names in RUNS.items()]


def _runs(names: tuple[str, ...], folder: Path, seconds: float, seed: int) -> Iterator[tuple[Recipe, Path]]:
    """Yields the runs of a task. The first starts as its recipe says, each other from the model of the run before."""
    start: Path | None = None
    for name in names:
        recipe = replace(recipes.RECIPES[name](), max_seconds=seconds, seed=seed, log_steps=LOG_STEPS)
        own = folder / name.removeprefix("world-")
        yield replace(recipe, init=str(start)) if start else recipe, own
        start = (own / "model").resolve()


def outlook(tasks: list[TaskRuns]) -> tuple[str, float]:
    """The training time left for each task in words, and an estimate of the seconds that all tasks take.

    AlbefValueError if a folder holds a run with other settings.
    """
    left = {task.name: task.left() for task in tasks}
    words = ", ".join(f"{name} {time_left(seconds)}" for name, seconds in left.items())
    waiting = sum(len(task.runs) * READING for task in tasks if left[task.name])
    return words, sum(left.values()) + waiting + MEASURING * len(tasks)


def time_left(seconds: float) -> str:
    """The time in words; "is there" for a run that is finished."""
    return clock(seconds) if seconds else "is there"


def pages(tasks: list[TaskRuns], out: Path) -> Iterator[list[report.TaskPage]]:
    """Runs task after task; after each, yields all pages so far, written to `out` with links to each other."""
    made: list[report.TaskPage] = []
    for number, task in enumerate(tasks, 1):
        console.print(f"\n{number} of {len(tasks)}: {task.name}")
        for recipe, folder in task.runs:
            learn(recipe, folder)
        made.append(PAGES[task.name](task.runs))
        for page in made:
            write_atomically(out / f"{page.key}.html", report.render_task(page, made))
        console.print(f"{made[-1].line}: {out / task.name}.html", soft_wrap=True)
        yield list(made)
