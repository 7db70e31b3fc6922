"""`albef evaluate`: a saved model by its task's official rules, on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from albef import distributed
from albef.data.examples import Example, Kind, open_examples
from albef.data.processor import Processor
from albef.data.progress import with_bar
from albef.data.records import Source
from albef.data.sources import open_sources
from albef.errors import AlbefValueError
from albef.files import write_atomically
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.backbone import Backbone
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef.models.start import load_model
from albef.tasks import answers as answers_of
from albef.tasks import classification, grounding, nlvr2, ranking, vqa

PROTOCOLS = {
    "coco": {"image_size": 384, "k": 256},
    "flickr30k": {"image_size": 384, "k": 128},
    "flickr30k-zero-shot": {"image_size": 384, "k": 128},
}
"""Retrieval as the paper measures it: pixels, and candidates that are re-ranked (spec §3.0, §4.1)."""
KINDS: dict[str, Kind] = {"vqa": "vqa", "classification": "classification", "nlvr2": "pairs", "grounding": "phrases"}
TASKS_OF = {
    "protocol": ("retrieval",),
    "captions": ("retrieval",),
    "memory": ("retrieval",),
    "k": ("retrieval", "vqa"),
    "answers": ("vqa",),
    "official": ("vqa",),
    "vg_root": ("vqa",),
    "way": ("vqa",),
    "results": ("vqa", "classification", "nlvr2"),
    "mode": ("grounding",),
    "layer": ("grounding",),
}
"""Options that not every task has, and the tasks that have them."""
ZERO_SHOT = (
    "zero-shot Flickr30k in the paper's sense: the model must have been fine-tuned on COCO (mscoco.pth: TR R@1 94.1, "
    "IR R@1 82.8 in the paper); the raw pre-trained ALBEF.pth gives 88.5 and 75.9 (issues #3, #29 of the original)"
)


def run(options: argparse.Namespace) -> None:
    """Evaluates `options.model` on `options.data`, prints a table, and writes what was asked for."""
    given = [name for name in TASKS_OF if not (getattr(options, name) is None or getattr(options, name) is False)]
    for name in ("k", "captions"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise AlbefValueError(f"--{name} {value}: give at least 1, or leave it out")
    for name, value in PROTOCOLS.get(options.protocol, {}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.k = options.k or 128
    with distributed.session() as device:
        model = load_model(options.model, options.image_size).to(device)
        task = _task(model, options)
        _check_options(given, task, options)
        if options.protocol == "flickr30k-zero-shot" and distributed.rank() == 0:
            print(ZERO_SHOT)
        processor = Processor.from_pretrained(options.model)
        processor.image_size = model.config.image_size
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            figures = _evaluate(model, task, processor, options)
        if distributed.rank() == 0:
            print(table(figures))
            if options.json:
                write_atomically(options.json, json.dumps(figures, indent=2) + "\n")


def _task(model: Backbone, options: argparse.Namespace) -> str:
    """What the model is measured by; ValueError for one that has no task, or not the one that is asked for."""
    if isinstance(model, AlbefModel):
        return options.task or "retrieval"
    tasks = {AlbefForAnswering: "vqa", AlbefForClassification: "classification", AlbefForPairs: "nlvr2"}
    if type(model) not in tasks:
        raise AlbefValueError(f"an {type(model).__name__} is only a start for others; fine-tune it first")
    if options.task:
        raise AlbefValueError(
            f"--task {options.task}: only a model that matches has the choice, and {options.model} is an "
            f"{type(model).__name__}, measured by {tasks[type(model)]}; leave it out"
        )
    return tasks[type(model)]


def _check_options(given: Sequence[str], task: str, options: argparse.Namespace) -> None:
    """ValueError for an option that would do nothing."""
    for name in given:
        if task not in TASKS_OF[name]:
            remedy = " or add --task grounding" if task == "retrieval" and "grounding" in TASKS_OF[name] else ""
            raise AlbefValueError(
                f"--{name.replace('_', '-')}{_shown(getattr(options, name))}: is for {', '.join(TASKS_OF[name])}, but "
                f"{options.model} is measured by the rules of {task}; leave it out{remedy}"
            )
    if options.way and not options.results:
        raise AlbefValueError(
            f"--way {options.way}: says which answers --results writes; add --results FILE, or leave it out"
        )


def _shown(value: Any) -> str:
    """As it stands on the command line after its option."""
    words = value if isinstance(value, list) else [] if value is True else [value]
    return "".join(f" {word}" for word in words)


@torch.no_grad()
def _evaluate(model: Any, task: str, processor: Processor, options: argparse.Namespace) -> dict[str, Any]:
    if task == "retrieval":
        return _retrieval(model, processor, options)
    source = open_examples(KINDS[task], options.data, options.image_root, options.vg_root)
    if task == "grounding":
        return {
            mode: with_bar(
                f"heat maps by {mode.upper()}",
                len(source),
                partial(grounding.evaluate, model, processor, source, mode, options.layer),
            )
            for mode in options.mode or ("itm", "itc")
        }
    truth = "answer" if task == "vqa" else "label"
    if not any(_is_known(source[index]) for index in range(len(source))):
        if not options.results:
            raise AlbefValueError(
                f"{' '.join(options.data)}: no example has its {truth}, so there is nothing to measure by; add "
                f"--results FILE to have the model's written, or give a list with every {truth}"
            )
        if distributed.rank() == 0:
            print(f"no example has its {truth}: no figures but their number")
    return _answers(model, processor, source, options) if task == "vqa" else _labels(model, processor, source, options)


def _is_known(example: Example) -> bool:
    return bool(example.answers) or example.label is not None


def _retrieval(model: AlbefModel, processor: Processor, options: argparse.Namespace) -> dict[str, Any]:
    source = _pairs(options)
    gallery = with_bar(
        "encoding images",
        len(source),
        lambda tick: ranking.encode(
            model, processor, source, options.captions, tick=tick, memory=options.memory or ranking.MEMORY
        ),
    )
    images = len(gallery.z_image)
    if distributed.rank() == 0:
        print(
            f"{images} pictures, {len(gallery.z_text)} texts, up to {options.k} candidates re-ranked"
        )  # 0.1.0's words: scripts read them
    return {
        **with_bar("re-ranking", images, lambda tick: ranking.evaluate(model, gallery, options.k, tick)),
    }


def _pairs(options: argparse.Namespace) -> Source:
    """Images with captions. ValueError or FileNotFoundError where there are none, with the remedy for phrases."""
    try:
        return open_sources(options.data, options.image_root)
    except (ValueError, FileNotFoundError) as error:
        try:
            open_examples("phrases", options.data, options.image_root)
        except (ValueError, FileNotFoundError):
            raise error from None
        raise AlbefValueError(f"{', '.join(options.data)}: phrases, not captions; add --task grounding") from error


def _answers(
    model: AlbefForAnswering, processor: Processor, source: Any, options: argparse.Namespace
) -> dict[str, Any]:
    answers = answers_of.read_answers(options.answers or answers_of.answers_file(options.model))
    figures, given = with_bar(
        "answering",
        len(source),
        lambda tick: vqa.evaluate(model, processor, source, answers, options.k, options.official, tick=tick),
    )
    if options.results and distributed.rank() == 0:
        way = options.way or "ranked"
        vqa.write_results(options.results, given, way)
        print(f"{len(given)} answers, {way}: {options.results}")
    return figures


def _labels(
    model: AlbefForClassification | AlbefForPairs, processor: Processor, source: Any, options: argparse.Namespace
) -> dict[str, Any]:
    rules: Any = nlvr2 if isinstance(model, AlbefForPairs) else classification
    found = with_bar("judging", len(source), lambda tick: classification.predict(model, processor, source, tick=tick))
    figures = rules.figures(found, model.labels)
    if options.results and distributed.rank() == 0:
        rules.write_results(options.results, found, model.labels)
        print(f"{len(found)} labels: {options.results}")
    return figures


def table(figures: Mapping[str, Any]) -> str:
    """Figures as text: recalls with a row per way of scoring, others a line each."""
    if all(isinstance(values, Mapping) and "img_r1" in values for values in figures.values()):
        return _recalls(figures)
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        rows += [(f"{name} {key}", v) for key, v in value.items()] if isinstance(value, Mapping) else [(name, value)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {value:>8.2f}" if isinstance(value, float) else f"{name:<{width}}  {value:>5}"
        for name, value in rows
    )


def _recalls(figures: Mapping[str, dict[str, float]]) -> str:
    heads = ["text->image R@1", "R@5", "R@10", "image->text R@1", "R@5", "R@10"]
    keys = [f"{side}_r{k}" for side in ("img", "txt") for k in (1, 5, 10)]
    widths = [len(head) + 4 for head in heads]
    rows = [" " * 4 + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for name, values in figures.items():
        cells = (f"{values[key]:>{width}.2f}" for key, width in zip(keys, widths, strict=True))
        rows.append(f"{name:<4}" + "".join(cells))
    return "\n".join(rows)
