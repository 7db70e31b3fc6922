"""`albef demo`: pre-trains a tiny model on three drawing styles of emoji, searches a fourth style, explains both.

If asked, it then fine-tunes for every task of a generated world: see `every_task`.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from albef.engine import train as engine
from albef.engine.log import clock
from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.recipe import Recipe
from albef_demo import every_task, expected, paintings, recipes, report
from albef_demo.curves import figure_chart, guessing_costs, log_rows, loss_chart
from albef_demo.image_search import ImageSearch, recall_rows, recalls
from albef_demo.report.chart import Chart
from albef_demo.runs import learn, seconds_left, steps_done
from albef_demo.screen import ask, console, print_figures, print_paintings, print_query
from albef_demo.shipped import shipped_search, write_page
from albef_demo.teacher import inspect_teacher

QUERIES = (
    "red fruit",
    "flying machine",
    "guitar",
    "dolphin",
    "umbrella rain",
    "red heart",
    "dog face",
    "person running",
)
# The name of an image, and a text. The last pair is wrong on purpose.
MAPPED = (
    ("beach with umbrella", "beach with umbrella"),
    ("smiling face with sunglasses", "smiling face with sunglasses"),
    ("house with garden", "house with garden"),
    ("sun behind rain cloud", "sun behind rain cloud"),
    ("red apple", "red apple"),
    ("house with garden", "smiling face with sunglasses"),
)
FOUND_WITHIN = 10


def run(out: Path, seconds: float, seed: int, top: int, task_seconds: float | None = None) -> None:
    """The whole demonstration; leaves the run in `out`/run and the report in `out`/report.html.

    The run on the emoji ends after the steps of its recipe, or after `seconds` of training if these are over sooner.
    With `task_seconds`, the longest training time of each further run, every task of the generated world follows: its
    runs in `out`/world, and a page for each task. `seconds` 0 then leaves out the emoji. AlbefValueError for times that
    leave nothing to do, and for a folder that holds a run with other settings.
    """
    if seconds < 0 or not (seconds or task_seconds):
        raise AlbefValueError(
            f"the training time is {seconds / 60:g} minutes; it must be above 0 (without --minutes: "
            f"{recipes.emoji_demo().max_seconds / 60:g})"
        )
    recipe = replace(recipes.emoji_demo(), max_seconds=seconds, seed=seed) if seconds else None
    tasks = [] if task_seconds is None else every_task.plan(out, task_seconds, seed)
    _announce(recipe, tasks, out)
    try:
        if recipe:
            _emoji(recipe, tasks, out, top)
        else:
            _tasks_alone(tasks, out)
    except (engine.Interrupted, KeyboardInterrupt):
        print(f"Stopped. The run so far is saved in {out}; the same command continues it.", file=sys.stderr)
        sys.exit(130)


def _announce(recipe: Recipe | None, tasks: list[every_task.TaskRuns], out: Path) -> None:
    """Prints what will be done, what to expect and how long it takes; AlbefValueError if a folder holds another run."""
    lines, waiting = [], 0.0
    if recipe:
        left = seconds_left(recipe, out / "run")
        waiting += left * 1.2 + 90
        lines += [_training_line(recipe, left), *expected.lines()] if left else ["The run on emoji is there."]
        lines.append("Search the fourth style with the model that comes with the package.")
        lines.append(
            paintings.lacking()
            or "Search real paintings by sentences, with the model of photos that comes with the package."
        )
    if tasks:
        words, seconds = every_task.outlook(tasks)
        waiting += seconds
        lines.append(f"Fine-tune a small model for every task of a generated world. Longest times: {words}.")
    lines.append(f"Write {out / 'report.html'}{' and a page for each task' if tasks else ''}.")
    for line in lines:
        console.print(f"- {line}", soft_wrap=True)
    console.print(
        f"This takes at most about {math.ceil(waiting / 60)} minutes in all. Ctrl-C saves the run and stops; the same "
        "command continues it.\n",
        soft_wrap=True,
    )


def _training_line(recipe: Recipe, left: float) -> str:
    return (
        f"Pre-train a tiny ALBEF from scratch on three drawing styles of emoji, and measure it on a fourth: "
        f"{recipe.steps:,} steps, but not longer than {clock(left)}."
    )


def _emoji(recipe: Recipe, tasks: list[every_task.TaskRuns], out: Path, top: int) -> None:
    images = shipped_search()  # before the minutes of training, so that whatever is missing is missed at once
    museum = paintings.Museum.open()
    evaluation = learn(recipe, out / "run")
    made = _explain(images, out / "run", recipe, evaluation, top)
    made = replace(made, paintings=museum.search() if museum else [])
    page = write_page(out / "report.html", report.render(made))
    for pages in every_task.pages(tasks, out):
        made = replace(made, tasks=pages)
        write_page(page, report.render(made))
    _tell(images, out, recipe, made, top)


def _tasks_alone(tasks: list[every_task.TaskRuns], out: Path) -> None:
    page = out / "report.html"
    for pages in every_task.pages(tasks, out):
        write_page(page, report.render_tasks(pages))
    console.print(f"\nreport: {page}", soft_wrap=True)


def _tell(images: ImageSearch, out: Path, recipe: Recipe, made: report.Report, top: int) -> None:
    """Prints the main part of the report, then searches what the user types."""
    for query in made.queries:
        print_query(replace(query, by_itc=query.by_itc[:3], by_odds=query.by_odds[:3]))
    print_figures(made.figures)
    print_paintings(made.paintings)
    typed = ask(images, top)
    if typed:
        write_page(out / "report.html", report.render(replace(made, typed=typed)))
    console.print(
        f"\nreport: {out / 'report.html'}\n\nnext\n"
        '  albef demo --query "red fruit"    search again, in seconds\n'
        "  albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine\n"
        f"  albef evaluate {out / 'run' / 'model'} --data {recipe.data.validation[0]} --captions 1",
        soft_wrap=True,
    )


def _explain(
    images: ImageSearch, folder: Path, recipe: Recipe, evaluation: dict[str, Any], top: int
) -> report.Report:  # fmt: skip
    """What the report says of the run in `folder` and of the shipped model."""
    scores, count = images.scores(), len(images.names)
    step, length = steps_done(folder)
    missed, missed_count = _misses(images, scores["itc"][1], scores["odds"][1], recipe.seed)
    return report.Report(
        lead=f"A tiny ALBEF was pre-trained from scratch on three drawing styles of the emoji: {length}. It and "
        "the small model that comes with albef then searched a fourth style that "
        "neither of them has seen.",
        images=count,
        candidates=images.candidates,
        charts=_charts(folder, recipe, count),
        growth=expected.growth(log_rows(folder)),
        growth_words=expected.words(recipe, step),
        figures=recall_rows(count, {"this run": evaluation, "shipped model": recalls(scores)}),
        queries=[images.find(query, top) for query in QUERIES],
        maps=[images.word_maps(*pair) for pair in MAPPED if pair[0] in images.names],
        teacher=inspect_teacher(folder, recipe),
        missed=missed,
        missed_count=missed_count,
    )


def _charts(folder: Path, recipe: Recipe, images: int) -> list[Chart]:
    """The run's losses and its recall over the steps; the dashed line is what guessing reaches."""
    rows = log_rows(folder)
    vocabulary = AlbefModel.from_pretrained(folder / "model").config.vocab_size
    costs = {**guessing_costs(recipe), "mlm": math.log(vocabulary)}
    alone = [row["step"] for row in rows if "itc" in row and "itm" not in row]
    mark = (max(alone), f"ITM, MLM join: step {max(alone)}") if alone else None
    recall = figure_chart(
        "Unseen style, text → image by ITC, %",
        rows,
        {"R@1": ("itc", "img_r1"), "R@10": ("itc", "img_r10")},
        ("chance R@10", 1000 / images),
    )
    return [*(loss_chart(rows, name, costs[name], mark) for name in ("itc", "itm", "mlm")), recall]


def _misses(images: ImageSearch, itc: Tensor, odds: Tensor, seed: int) -> tuple[list[report.Miss], int]:
    """Eight of the names whose image is not among the first found after re-ranking, and how many such names there are.

    `itc` and `odds` are scores text->image [T, I]; the text and the image of one number belong together. The eight are
    drawn by `seed`.
    """
    right = torch.arange(len(odds))[:, None]
    found = (odds.topk(min(FOUND_WITHIN, odds.shape[1])).indices == right).any(1)
    places = (itc > itc.gather(1, right)).sum(1) + 1
    missed = (~found).nonzero().squeeze(1).tolist()
    shown = random.Random(seed).sample(missed, min(8, len(missed)))
    misses = [
        report.Miss(images.image(i), images.names[i], int(places[i]), images.find(images.names[i], 3).by_odds)
        for i in shown
    ]
    return misses, len(missed)
