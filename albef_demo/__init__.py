"""`albef demo`: pre-train a tiny model, search a drawing style it never saw with a shipped one, and explain both.

And, if asked, fine-tune for every task of a generated world: see `every_task`.
"""

from __future__ import annotations

import math
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from albef.engine import train as engine
from albef.errors import AlbefValueError
from albef.files import MODELS, write_atomically
from albef.models.albef import AlbefModel
from albef.recipe import Recipe
from albef.tasks import ranking
from albef_demo import every_task, recipes, report
from albef_demo.curves import figure_chart, guessing_costs, log_rows, loss_chart
from albef_demo.report.chart import Chart
from albef_demo.runs import console, learn, seconds_left
from albef_demo.style import Unseen, recall_rows
from albef_demo.teacher import inspect_teacher

SHIPPED = MODELS / "emoji"
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
# image and text; the last pair is wrong on purpose
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
    """The whole demo; leaves `out`/run (the run) and `out`/report.html.

    With `task_seconds`, what each run may take, every task of the generated world too: `out`/world and a page for each.
    `seconds` 0 then leaves out the emoji.
    """
    if seconds < 0 or not (seconds or task_seconds):
        raise AlbefValueError(
            f"the training time is {seconds / 60:g} minutes; it must be above 0 (without --minutes: 4)"
        )
    recipe = replace(recipes.emoji_demo(), max_seconds=seconds, seed=seed) if seconds else None
    chapters = [] if task_seconds is None else every_task.plan(out, task_seconds, seed)
    _announce(recipe, chapters, out)
    try:
        if recipe:
            _emoji(recipe, chapters, out, top)
        else:
            _tasks_alone(chapters, out)
    except (engine.Interrupted, KeyboardInterrupt):
        print(f"stopped; what was learnt is in {out}, and the same command goes on", file=sys.stderr)
        sys.exit(130)


def _announce(recipe: Recipe | None, chapters: list[every_task.Chapter], out: Path) -> None:
    """Says what will be done, and how long it takes; ValueError if a folder holds another run."""
    lines, waiting = [], 0.0
    if recipe:
        left = seconds_left(recipe, out / "run")
        waiting += left * 1.2 + 60
        lines += [
            f"Pre-train a tiny ALBEF from scratch on three drawing styles of emoji: {every_task.time_left(left)}.",
            "Search the fourth style, never trained on, with the model that comes along.",
        ]
    if chapters:
        words, seconds = every_task.outlook(chapters)
        waiting += seconds
        lines.append(f"Fine-tune a small model for every task of a generated world, at most: {words}.")
    lines.append(f"Write {out / 'report.html'}{' and a page for each task' if chapters else ''}.")
    for number, line in enumerate(lines, 1):
        console.print(f"{number}. {line}", soft_wrap=True)
    minutes = math.ceil(waiting / 60)
    console.print(
        f"About {minutes} minutes in all. Ctrl-C saves and stops, the same command goes on.\n", soft_wrap=True
    )


def _emoji(recipe: Recipe, chapters: list[every_task.Chapter], out: Path, top: int) -> None:
    style = Unseen.load(SHIPPED, recipe.data.validation, recipe.k_test)  # first: fail before the minutes of training
    evaluation = learn(recipe, out / "run")
    made = _explain(style, out / "run", recipe, evaluation, top)
    page = _write(out / "report.html", report.render(made))
    for tasks in every_task.pages(chapters, out):
        made = replace(made, tasks=tasks)
        _write(page, report.render(made))
    _tell(style, out, recipe, made, top)


def _tasks_alone(chapters: list[every_task.Chapter], out: Path) -> None:
    page = out / "report.html"
    for tasks in every_task.pages(chapters, out):
        _write(page, report.render_tasks(tasks))
    console.print(f"\nreport: {page}", soft_wrap=True)


def search(queries: list[str], top: int, out: Path) -> None:
    """Searches the unseen style with the shipped model; prints what is found and writes `out`/search.html."""
    recipe = recipes.emoji_demo()
    style = Unseen.load(SHIPPED, recipe.data.validation, recipe.k_test)
    found = [style.find(query, top) for query in queries]
    for query in found:
        _print_query(query)
    lead = (
        f"{len(style.names):,} images in a drawing style that the model never saw. Below each: its cosine (ITC), the "
        f"probability that it matches (ITM, for the first {style.candidates} by ITC), and the place it came from."
    )
    page = _write(out / "search.html", report.render_search(found, lead))
    console.print(f"images: {page}", soft_wrap=True)


def _tell(style: Unseen, out: Path, recipe: Recipe, made: report.Report, top: int) -> None:
    """Prints the main part of the report, then searches what the user types."""
    for query in made.queries:
        _print_query(replace(query, by_itc=query.by_itc[:3], by_itm=query.by_itm[:3]))
    _print_figures(made.figures)
    typed = _ask(style, top)
    if typed:
        _write(out / "report.html", report.render(replace(made, typed=typed)))
    console.print(
        f"\nreport: {out / 'report.html'}\n\nnext\n"
        '  albef demo --query "red fruit"    search again, in seconds\n'
        "  albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine\n"
        f"  albef evaluate {out / 'run' / 'model'} --data {recipe.data.validation[0]} --captions 1",
        soft_wrap=True,
    )


def _explain(style: Unseen, folder: Path, recipe: Recipe, evaluation: dict[str, Any], top: int) -> report.Report:
    """What the report says of the run in `folder` and of the shipped model."""
    scores = style.scores()
    shipped = {name: ranking.recalls(*both, style.gallery.image_of_text) for name, both in scores.items()}
    missed, missed_count = _misses(style, scores["itc"][1], scores["itm"][1], recipe.seed)
    return report.Report(
        lead=f"A tiny ALBEF was pre-trained from scratch for {recipe.max_seconds / 60:.3g} minutes on three drawing "
        "styles of the emoji. It and the small model that comes with albef then search a fourth style that neither "
        "has seen.",
        images=len(style.names),
        candidates=style.candidates,
        charts=_charts(folder, recipe, len(style.names)),
        figures=recall_rows(len(style.names), {"this run": evaluation, "shipped model": shipped}),
        queries=[style.find(query, top) for query in QUERIES],
        maps=[style.word_maps(*pair) for pair in MAPPED if pair[0] in style.names],
        teacher=inspect_teacher(folder, recipe),
        missed=missed,
        missed_count=missed_count,
    )


def _print_figures(figures: dict[str, dict[str, float]]) -> None:
    console.print("\nfound in the unseen style, %: images for a text, then texts for an image")
    table = Table("", box=None, header_style="dim")
    keys = [f"{side}_r{k}" for side in ("img", "txt") for k in (1, 5, 10)]
    for key in keys:
        table.add_column(key.replace("img_r", "R@").replace("txt_r", "R@"), justify="right")
    for name, values in figures.items():
        table.add_row(name, *(f"{values[key]:.2f}" for key in keys))
    console.print(table)


def _print_query(query: report.Query) -> None:
    table = Table(title=f"“{query.text}”", title_justify="left", title_style="bold", box=None, header_style="dim")
    for head, width in (("by ITC", 26), ("ITC", 5), ("re-ranked by ITM", 26), ("ITC", 5), ("match", 5)):  # fits in 80
        table.add_column(head, max_width=width, no_wrap=True, justify="left" if width > 5 else "right")
    for before, after in zip(query.by_itc, query.by_itm, strict=True):
        table.add_row(before.name, f"{before.itc:.2f}", after.name, f"{after.itc:.2f}", f"{after.match:.0%}")
    console.print(table)


def _ask(style: Unseen, top: int) -> list[report.Query]:
    """Queries that the user types, until an empty line; none where nobody can type."""
    typed: list[report.Query] = []
    if not sys.stdin.isatty() or os.environ.get("CI"):
        return typed
    console.print("\nSearch the unseen style: type a query, an empty line ends.")
    try:
        while text := input("query> ").strip():
            typed.append(style.find(text, top))
            _print_query(typed[-1])
    except (EOFError, KeyboardInterrupt):
        print()
    return typed


def _charts(folder: Path, recipe: Recipe, images: int) -> list[Chart]:
    """Losses over steps and recall over seconds, from the run's log; dashed is guessing."""
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


def _misses(style: Unseen, itc: Tensor, itm: Tensor, seed: int) -> tuple[list[report.Miss], int]:
    """Eight of the names whose image isn't among the first found after re-ranking, by chance, and how many there are.

    `itc`, `itm`: scores text->image [T, I]; text and image of one number belong together.
    """
    right = torch.arange(len(itm))[:, None]
    found = (itm.topk(min(FOUND_WITHIN, itm.shape[1])).indices == right).any(1)
    places = (itc > itc.gather(1, right)).sum(1) + 1
    missed = (~found).nonzero().squeeze(1).tolist()
    shown = random.Random(seed).sample(missed, min(8, len(missed)))
    misses = [
        report.Miss(style.image(i), style.names[i], int(places[i]), style.find(style.names[i], 3).by_itm) for i in shown
    ]
    return misses, len(missed)


def _write(path: Path, page: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path
