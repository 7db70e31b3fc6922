"""What the pages of the tasks show: figures and examples of the test part of the generated world."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from albef import pipeline as api
from albef.data.examples import Example, ExampleSource, Kind, open_examples
from albef.data.images import open_image
from albef.data.progress import with_bar
from albef.engine.checkpointer import newest
from albef.metrics import boxes
from albef.recipe import Recipe
from albef.results import Region, Verdict
from albef.tasks import classification, grounding, nlvr2, vqa
from albef_demo import report, world
from albef_demo.curves import figure_chart, guessing_costs, log_rows, loss_chart
from albef_demo.image_search import ImageSearch, recall_rows, recalls
from albef_demo.report.chart import Chart
from albef_demo.report.tasks import Block, Found, JudgedExample, Named, Pointed, Spot
from albef_demo.runs import steps_done

TEST = ("world:test",)
DRAW = 1  # seed of the draw
SHOWN, MORE_WRONG, LOOKED_AT = 12, 4, 200
WITHOUT_ASSIGNMENT = "nlvr2-direct"
Runs = Sequence[tuple[Recipe, Path]]
Made = TypeVar("Made", Found, JudgedExample, Pointed)


def retrieval_page(runs: Runs) -> report.TaskPage:
    """The page of retrieval, from its finished runs."""
    recipe, folder = runs[-1]
    images = ImageSearch.load(folder / "model", TEST, recipe.k_test)
    scores, count = images.scores(), len(images.names)
    figures = recalls(scores)
    odds = scores["odds"][1]  # [T, I]

    def found(index: int) -> Found:
        name = images.names[index]
        place = int((odds[index] > odds[index, index]).sum()) + 1
        listed = odds[index, index].isfinite()
        return Found((images.image(index), name), images.find(name, 5), place if listed else None)

    rows, guess = log_rows(folder), 100 / count
    chart = figure_chart(
        "Text → image R@1, %", rows, {"ITC": ("itc", "img_r1"), "ITM": ("itm", "img_r1")}, ("guessing", guess)
    )
    return _page(
        "retrieval", runs, f"R@1 {figures['odds']['img_r1']:.1f} % of {count} images (guessing {guess:.1f} %)",
        [chart, *_losses(runs)], recall_rows(count, {"this run": figures}), _draw(count, found),
    )  # fmt: skip


def vqa_page(runs: Runs) -> report.TaskPage:
    """The page of visual question answering, from its finished runs."""
    recipe, folder = runs[-1]
    one, source = _opened(folder, "vqa")
    measure = partial(vqa.evaluate_questions, one.model, one.processor, source, one.answers, recipe.k_test)
    figures = with_bar("answering", len(source), lambda tick: measure(tick=tick))[0]
    answers = Counter(answer for index in range(len(source)) for answer in source[index].answers)
    guess = 100 * answers.most_common(1)[0][1] / len(source)

    def answered(index: int) -> JudgedExample:
        example = source[index]
        ranked = [(found.text, found.probability) for found in one.answer(example.images[0], example.text, 3)]
        written = one.answer(example.images[0], example.text, 1, free=True)[0].text
        (truth,) = example.answers
        return JudgedExample(_images(example), example.text, ranked, truth, ranked[0][0] == truth, written)

    chart = figure_chart(
        "Accuracy, %", log_rows(folder), {"ranked": ("ranked",), "written": ("generated",)}, ("commonest", guess)
    )
    table = {"guessing": guess, "ranked": figures["ranked"], "written freely": figures["generated"]}
    return _page(
        "vqa", runs, f"accuracy {figures['ranked']:.1f} % ranked, {figures['generated']:.1f} % written freely "
        f"(guessing {guess:.1f} %)",
        [chart, *_losses(runs)], {name: {"accuracy": value} for name, value in table.items()},
        _draw(len(source), answered),
    )  # fmt: skip


def entailment_page(runs: Runs) -> report.TaskPage:
    """The page of visual entailment, from its finished runs."""
    _, folder = runs[-1]
    one, source = _opened(folder, "classification")
    figures = _judging(classification.evaluate_statements, one, source)
    guess = 100 / len(one.model.labels)
    chart = figure_chart("Accuracy, %", log_rows(folder), {"accuracy": ("accuracy",)}, ("guessing", guess))
    return _page(
        "entailment", runs, f"accuracy {figures['accuracy']:.1f} % (guessing {guess:.1f} %)", [chart, *_losses(runs)],
        {"guessing": {"accuracy": guess}, "this run": {"accuracy": figures["accuracy"]}},
        _draw(len(source), lambda index: _verdict(source[index], lambda e: one.entails(e.images[0], e.text))),
    )  # fmt: skip


def nlvr2_page(runs: Runs) -> report.TaskPage:
    """The page of reasoning about two images, from its finished runs."""
    _, folder = runs[-1]
    one, source = _opened(folder, "pairs")
    after = _judging(nlvr2.evaluate_pairs, one, source)
    rows = {"guessing": {"accuracy": 50.0, "consistency": 100 / 2**4}, "after text assignment": after}
    other = folder.parent / WITHOUT_ASSIGNMENT
    if newest(other):
        rows["without text assignment"] = _judging(nlvr2.evaluate_pairs, _opened(other, "pairs")[0], source)
    paths = {"accuracy": ("accuracy",), "consistency": ("consistency",)}
    chart = figure_chart("Accuracy and consistency, %", log_rows(folder), paths, ("guessing", 50.0))
    kept = {name: {key: own[key] for key in ("accuracy", "consistency")} for name, own in rows.items()}
    return _page(
        "nlvr2", runs,
        f"accuracy {after['accuracy']:.1f} %, consistency {after['consistency']:.1f} % (guessing 50 and 6.3 %)",
        [chart, *_losses(runs)], kept,
        _draw(len(source), lambda index: _verdict(source[index], lambda e: one.compare(*e.images, e.text))),
        _assignment_note(runs, other),
    )  # fmt: skip


def _assignment_note(runs: Runs, other: Path) -> str:
    """What the row without text assignment stands for, or, where there is none, how to get it."""
    if newest(other):
        return (
            f"Without text assignment: the run in {other}, trained for {steps_done(other)[1]}. Text "
            "assignment took its own time besides, and there is one run of each: small differences mean nothing."
        )
    recipe = runs[-1][0]
    return (
        "What does text assignment bring? This command makes a run without it: albef train world-nlvr2 --max-seconds "
        f"{recipe.max_seconds:g} --seed {recipe.seed} --out {other}. Then run the demo again."
    )


def grounding_page(runs: Runs) -> report.TaskPage:
    """The page of grounding, from its finished runs."""
    _, folder = runs[-1]
    one, source = _opened(folder, "phrases")
    measured = {mode: _measure_maps(one, source, mode) for mode in ("itm", "itc")}
    guess = _blind(source)
    keys = ("pointing", "boxes", "free")
    rows = {f"by {mode.upper()}": {key: own[key] for key in keys} for mode, own in measured.items()}
    paths = {mode.upper(): (mode, "pointing") for mode in ("itm", "itc")}
    chart = figure_chart("Pointing, %", log_rows(folder), paths, ("guessing", guess["pointing"]))
    return _page(
        "grounding", runs,
        f"pointing {measured['itm']['pointing']:.1f} % by ITM, {measured['itc']['pointing']:.1f} % by ITC "
        f"(guessing {guess['pointing']:.1f} %)",
        [chart, *_losses(runs)], {"guessing": guess, **rows},
        _draw(len(source), lambda index: _pointed(one, source[index])),
    )  # fmt: skip


def _measure_maps(one: Any, source: ExampleSource, mode: grounding.Mode) -> dict[str, Any]:
    measure = partial(grounding.evaluate_phrases, one.model, one.processor, source, mode)
    return with_bar(f"heat maps by {mode.upper()}", len(source), lambda tick: measure(tick=tick))


def _blind(source: ExampleSource) -> dict[str, float]:
    """What pointing anywhere in the image reaches, and choosing any of the candidates, in percent."""
    examples = [source[index] for index in range(len(source))]
    shares = [e.boxes[0][2] * e.boxes[0][3] / (world.SIDE * world.SIDE) for e in examples]
    choices = [1 / len(e.candidates) for e in examples]
    return {"pointing": 100 * sum(shares) / len(examples), "boxes": 100 * sum(choices) / len(examples)}


def _pointed(one: Any, example: Example) -> Pointed:
    seen = {mode.upper(): one.ground(example.images[0], example.text, mode) for mode in ("itm", "itc")}
    itm, (truth,) = seen["ITM"], example.boxes
    spots = [_spot(way, region) for way, region in seen.items()]
    right = itm.points and boxes.contains(truth, itm.point)
    return Pointed(_images(example)[0], example.text, truth, spots, list(itm.words.items()), right)


def _spot(way: str, region: Region) -> Spot:
    if not region.points:
        return Spot(way, region.heat_map, None, None)
    return Spot(way, region.heat_map, region.point, region.box)


def _verdict(example: Example, judge: Callable[[Example], Verdict]) -> JudgedExample:
    verdict, truth = judge(example), str(example.label)
    shares = list(verdict.probabilities.items())
    return JudgedExample(_images(example), example.text, shares, truth, verdict.label == truth)


def _judging(measure: Any, one: Any, source: ExampleSource) -> dict[str, Any]:
    return with_bar("judging", len(source), lambda tick: measure(one.model, one.processor, source, tick=tick))


def _opened(folder: Path, kind: Kind) -> tuple[Any, ExampleSource]:
    return api.load(folder / "model"), open_examples(kind, TEST)


def _images(example: Example) -> list[Named]:
    """Each image of the example with words that describe it."""
    opened = [open_image(image) for image in example.images]
    if len(opened) == 2:
        return list(zip(opened, ("the left image", "the right image"), strict=True))
    split, number = example.name.removeprefix(world.PREFIX).split("/")
    return [(opened[0], world.scene(split, int(number)).captions()[0])]


def _draw(count: int, make: Callable[[int], Made]) -> tuple[list[Made], list[Made], int]:
    """Examples drawn by chance, the next wrong ones of the draw, and how many examples were looked at."""
    order = random.Random(DRAW).sample(range(count), min(count, LOOKED_AT))
    drawn = [make(index) for index in order[:SHOWN]]
    wrong: list[Made] = []
    looked = len(drawn)
    while looked < len(order) and len(wrong) < MORE_WRONG:
        block = make(order[looked])
        looked += 1
        wrong += [] if block.right else [block]
    return drawn, wrong, looked


def _losses(runs: Runs) -> list[Chart]:
    """A chart of every loss, in the order of the runs."""
    charts = []
    for recipe, folder in runs:
        rows, costs = log_rows(folder), guessing_costs(recipe)
        names = [name for name in ("assign", "classify", "answer", "itc", "itm") if any(name in row for row in rows)]
        charts += [loss_chart(rows, name, costs.get(name)) for name in names]
    return charts


def _page(
    key: str, runs: Runs, line: str, charts: list[Chart], figures: dict[str, dict[str, float]],
    shown: tuple[Sequence[Block], Sequence[Block], int], note: str = "",
) -> report.TaskPage:  # fmt: skip
    lengths = ", then for ".join(steps_done(folder)[1] for _, folder in runs)
    run = (
        f"Trained for {lengths}, from a small model that knows this world. This is one run with one seed "
        f"({runs[-1][0].seed}). Figures and examples are of the test part, which no training saw."
    )
    return report.TaskPage(key, run, line, charts, figures, *shown, note)


PAGES: dict[str, Callable[[Runs], report.TaskPage]] = {
    "retrieval": retrieval_page,
    "vqa": vqa_page,
    "entailment": entailment_page,
    "nlvr2": nlvr2_page,
    "grounding": grounding_page,
}
