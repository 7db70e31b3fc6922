"""Curves from a run's log. A dashed line is what guessing reaches."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from albef.engine.log import LOG
from albef.recipe import Recipe
from albef_demo.report.chart import Chart, Line

Rows = list[dict[str, Any]]
_WORDS = {"assign": "Text assignment", "classify": "Class", "answer": "Answer"}


def log_rows(folder: Path) -> Rows:
    """The lines of the log of the run in `folder`, in their order."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def loss_chart(rows: Rows, name: str, guess: float | None = None, mark: tuple[float, str] | None = None) -> Chart:
    """A loss over steps. `guess` is what it costs to guess, `mark` a step with its words."""
    steps = max((row["step"] for row in rows), default=1)
    words = _WORDS.get(name, name.upper())
    lines = [Line(words, [(row["step"], row[name]) for row in rows if name in row], 0)]
    lines += [] if guess is None else [_level("guessing", guess, steps)]
    return Chart(f"{words} loss", "step", steps, lines, mark)


def figure_chart(title: str, rows: Rows, paths: Mapping[str, Sequence[str]], guess: tuple[str, float]) -> Chart:
    """Figures over the steps. `paths` has, for each line's label, the keys that lead to its figure in an evaluation."""
    measured = [row for row in rows if "evaluation" in row]
    end = max((row["step"] for row in measured), default=1)
    lines = [
        Line(label, [(row["step"], reduce(getitem, path, row["evaluation"])) for row in measured], colour)
        for colour, (label, path) in enumerate(paths.items())
    ]
    return Chart(title, "step", end, [*lines, _level(*guess, end)])


def guessing_costs(recipe: Recipe) -> dict[str, float]:
    """What it costs to guess, by the name of the loss; losses for which that is not known are left out."""
    return {
        "itc": math.log(recipe.batch_size + recipe.objective.queue_size),
        "itm": math.log(3) - 2 / 3 * math.log(2),  # one pair in three matches
        "assign": math.log(3),
        "classify": math.log(2 if recipe.task == "nlvr2" else len(recipe.data.labels)),
    }


def _level(label: str, y: float, x_max: float) -> Line:
    return Line(label, [(0.0, y), (x_max, y)], 3, dashed=True)
