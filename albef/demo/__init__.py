"""`albef demo`: pre-train a tiny model, search a drawing style it never saw with a shipped one, and explain both."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from albef import distributed, recipes, report
from albef.data.progress import with_bar
from albef.demo.style import UnseenStyle
from albef.demo.teacher import inspect_teacher
from albef.engine import checkpoint
from albef.engine import train as engine
from albef.engine.log import LOG, clock
from albef.models.albef import AlbefModel
from albef.recipe import Recipe
from albef.report.chart import Chart, Line
from albef.tasks import make_task, ranking

SHIPPED = Path(__file__).parents[1] / "assets" / "models" / "emoji"
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
# picture and text; the last pair is wrong on purpose
MAPPED = (
    ("beach with umbrella", "beach with umbrella"),
    ("smiling face with sunglasses", "smiling face with sunglasses"),
    ("house with garden", "house with garden"),
    ("sun behind rain cloud", "sun behind rain cloud"),
    ("red apple", "red apple"),
    ("house with garden", "smiling face with sunglasses"),
)
FOUND_WITHIN = 10

console = Console(markup=False, highlight=False, emoji=False)


def run(out: Path, seconds: float, seed: int, top: int) -> None:
    """The whole demo; leaves `out`/run (the run) and `out`/report.html."""
    if seconds <= 0:
        raise ValueError(f"the training time is {seconds / 60:g} minutes; it must be above 0 (without --minutes: 4)")
    recipe = replace(recipes.emoji_demo(), max_seconds=seconds, seed=seed)
    console.print(
        f"1. Pre-train a tiny ALBEF from scratch on three drawing styles of emoji: {clock(seconds)}.\n"
        "2. Search the fourth style, never trained on, with the model that comes along.\n"
        f"3. Write {out / 'report.html'}.\n"
        f"About {math.ceil(seconds / 60 * 1.2) + 1} minutes in all. Ctrl-C stops, the same command goes on.\n",
        soft_wrap=True,
    )
    try:
        style = UnseenStyle.load(SHIPPED)  # first: if it can't be had, say so before the minutes of training
        evaluation = _pretrain(recipe, out / "run")
        _tell(style, out, recipe, evaluation, top)
    except (engine.Interrupted, KeyboardInterrupt):
        print(f"stopped; what was learnt is in {out / 'run'}, and the same command goes on", file=sys.stderr)
        sys.exit(130)


def search(queries: list[str], top: int, out: Path) -> None:
    """Searches the unseen style with the shipped model; prints what is found and writes `out`/search.html."""
    style = UnseenStyle.load(SHIPPED)
    found = [style.find(query, top) for query in queries]
    for query in found:
        _print_query(query)
    lead = (
        f"{len(style.names):,} pictures in a drawing style that the model never saw. Below each: its cosine (ITC), the "
        f"probability that it matches (ITM, for the first {style.candidates} by ITC), and the place it came from."
    )
    page = _write(out / "search.html", report.render_search(found, lead))
    console.print(f"pictures: {page}", soft_wrap=True)


def _pretrain(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Runs the recipe to its end, or goes on with it, or takes what a finished run left; the last evaluation."""
    engine.prepare_folder(recipe, folder)
    state = checkpoint.load(folder)
    if state and (state["seconds"] >= recipe.max_seconds or state["step"] >= recipe.steps):
        console.print(
            f"{folder} holds this run already ({state['step']} steps); delete it to train anew", soft_wrap=True
        )
        return state["evaluation"]
    console.print("reading and decoding the pictures, then training")
    with distributed.session() as device:
        return engine.train(make_task(recipe, folder), recipe, folder, device)


def _tell(style: UnseenStyle, out: Path, recipe: Recipe, evaluation: dict[str, Any], top: int) -> None:
    """Everything after the training: evaluate, search, explain, write; then what the user types."""
    made = _explain(style, out / "run", recipe, evaluation, top)
    page = _write(out / "report.html", report.render(made))
    for query in made.queries:
        _print_query(replace(query, by_itc=query.by_itc[:3], by_itm=query.by_itm[:3]))
    _print_figures(made.figures)
    typed = _ask(style, top)
    if typed:
        _write(page, report.render(replace(made, typed=typed)))
    console.print(
        f"\nreport: {page}\n\nnext\n"
        '  albef demo --query "red fruit"    search again, in seconds\n'
        "  albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine\n"
        f"  albef evaluate {out / 'run' / 'model'} --data {recipe.data.validation[0]} --captions 1",
        soft_wrap=True,
    )


def _explain(style: UnseenStyle, folder: Path, recipe: Recipe, evaluation: dict[str, Any], top: int) -> report.Report:
    """What the report says of the run in `folder` and of the shipped model."""
    scores = with_bar(
        "re-ranking with ITM",
        len(style.names),
        lambda tick: ranking.two_stage_scores(style.model, style.gallery, style.candidates, tick),
    )
    shipped = {name: ranking.recalls(*both, style.gallery.image_of_text) for name, both in scores.items()}
    missed, missed_count = _misses(style, scores["itc"][1], scores["itm"][1], recipe.seed)
    return report.Report(
        lead=f"A tiny ALBEF was pre-trained from scratch for {recipe.max_seconds / 60:.3g} minutes on three drawing "
        "styles of the emoji. It and the small model that comes with albef then search a fourth style that neither "
        "has seen.",
        pictures=len(style.names),
        candidates=style.candidates,
        charts=_charts(folder, recipe, len(style.names)),
        figures=_figure_rows(len(style.names), {"this run": evaluation, "shipped model": shipped}),
        queries=[style.find(query, top) for query in QUERIES],
        maps=[style.word_maps(*pair) for pair in MAPPED if pair[0] in style.names],
        teacher=inspect_teacher(folder, recipe),
        missed=missed,
        missed_count=missed_count,
    )


def _figure_rows(pictures: int, models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Recalls by row name, chance first."""
    chance = {f"{side}_r{k}": min(100.0, 100.0 * k / pictures) for side in ("img", "txt") for k in (1, 5, 10)}
    ways = {"itc": "ITC", "itm": "ITM", "sum": "ITC + ITM"}
    rows = {f"{model}, {ways[way]}": values for model, found in models.items() for way, values in found.items()}
    return {"chance": chance, **rows}


def _print_figures(figures: dict[str, dict[str, float]]) -> None:
    console.print("\nfound in the unseen style, %: pictures for a text, then texts for a picture")
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


def _ask(style: UnseenStyle, top: int) -> list[report.Query]:
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


def _charts(folder: Path, recipe: Recipe, pictures: int) -> list[Chart]:
    """Losses over steps and recall over seconds, from the run's log; dashed is guessing."""
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    vocabulary = AlbefModel.from_pretrained(folder / "model").config.vocab_size
    guesses = {
        "itc": math.log(recipe.batch_size + recipe.objective.queue_size),
        "itm": math.log(3) - 2 / 3 * math.log(2),  # one pair in three matches
        "mlm": math.log(vocabulary),
    }
    steps = max((row["step"] for row in rows), default=1)
    alone = [row["step"] for row in rows if "itc" in row and "itm" not in row]
    mark = (max(alone), f"ITM, MLM join: step {max(alone)}") if alone else None
    charts = []
    for colour, (name, guess) in enumerate(guesses.items()):
        points = [(row["step"], row[name]) for row in rows if name in row]
        lines = [Line(name.upper(), points, colour), _level("guessing", guess, steps)]
        charts.append(Chart(f"{name.upper()} loss", "step", steps, lines, mark))
    return [*charts, _recall_chart([row for row in rows if "evaluation" in row], pictures)]


def _recall_chart(rows: list[dict[str, Any]], pictures: int) -> Chart:
    lines = [
        Line(f"R@{k}", [(row["seconds"], row["evaluation"]["itc"][f"img_r{k}"]) for row in rows], colour)
        for k, colour in ((1, 0), (10, 1))
    ]
    end = max((row["seconds"] for row in rows), default=1.0)
    chance = _level("chance R@10", 1000 / pictures, end)
    return Chart("Unseen style, text → picture by ITC, %", "seconds of training", end, [*lines, chance])


def _level(label: str, y: float, x_max: float) -> Line:
    return Line(label, [(0.0, y), (x_max, y)], 3, dashed=True)


def _misses(style: UnseenStyle, itc: Tensor, itm: Tensor, seed: int) -> tuple[list[report.Miss], int]:
    """Eight of the names whose picture isn't among the first found after re-ranking, by chance, and how many there are.

    `itc`, `itm`: scores text->picture [T, I]; text and picture of one number belong together.
    """
    right = torch.arange(len(itm))[:, None]
    found = (itm.topk(min(FOUND_WITHIN, itm.shape[1])).indices == right).any(1)
    places = (itc > itc.gather(1, right)).sum(1) + 1
    missed = (~found).nonzero().squeeze(1).tolist()
    shown = random.Random(seed).sample(missed, min(8, len(missed)))
    misses = [
        report.Miss(style.picture(i), style.names[i], int(places[i]), style.find(style.names[i], 3).by_itm)
        for i in shown
    ]
    return misses, len(missed)


def _write(path: Path, page: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
