"""`albef evaluate`: a saved model by its task's official rules, on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from albef import distributed
from albef.data.examples import open_examples
from albef.data.processor import Processor
from albef.data.progress import with_bar
from albef.data.sources import open_sources
from albef.files import ANSWERS, model_folder
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.backbone import Backbone
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef.models.hub import CONFIG, WEIGHTS
from albef.models.start import load_model
from albef.tasks import classification, grounding, nlvr2, ranking, vqa

PROTOCOLS = {
    "coco": {"image_size": 384, "k": 256},
    "flickr30k": {"image_size": 384, "k": 128},
    "flickr30k-zero-shot": {"image_size": 384, "k": 128},
}
"""Retrieval as the paper measures it: pixels, and candidates that are re-ranked (spec §3.0, §4.1)."""
ZERO_SHOT = (
    "zero-shot Flickr30k in the paper's sense: the model must have been fine-tuned on COCO (mscoco.pth: TR R@1 94.1, "
    "IR R@1 82.8 in the paper); the raw pre-trained ALBEF.pth gives 88.5 and 75.9 (issues #3, #29 of the original)"
)


def run(options: argparse.Namespace) -> None:
    """Evaluates `options.model` on `options.data`, prints a table, and writes what was asked for."""
    if options.protocol:
        for name, value in PROTOCOLS[options.protocol].items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        if options.protocol == "flickr30k-zero-shot" and distributed.rank() == 0:
            print(ZERO_SHOT)
    for path in filter(None, (options.results, options.json)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    options.k = 128 if options.k is None else options.k
    if options.k < 1:
        raise ValueError(f"--k {options.k}: at least one candidate must be re-ranked")
    with distributed.session() as device:
        model = load_model(options.model, options.image_size).to(device)
        if options.protocol and not (isinstance(model, AlbefModel) and options.task == "retrieval"):
            raise ValueError(
                f"--protocol {options.protocol} is for retrieval; {options.model} was asked for another task"
            )
        processor = Processor.from_pretrained(options.model)
        processor.image_size = model.config.image_size
        figures = _evaluate(model, processor, options)
        if distributed.rank() == 0:
            print(table(figures))
            if options.json:
                options.json.write_text(json.dumps(figures, indent=2) + "\n")


@torch.no_grad()
def _evaluate(model: Backbone, processor: Processor, options: argparse.Namespace) -> dict[str, Any]:
    if isinstance(model, AlbefModel) and options.task == "retrieval":
        return _retrieval(model, processor, options)
    kind = _kind(model)
    source = open_examples(kind, options.data, options.image_root, options.vg_root)
    if isinstance(model, AlbefModel):
        return {
            mode: with_bar(
                f"heat maps by {mode.upper()}",
                len(source),
                partial(grounding.evaluate, model, processor, source, mode, options.layer),
            )
            for mode in options.mode or ("itm", "itc")
        }
    if isinstance(model, AlbefForAnswering):
        return _answers(model, processor, source, options)
    measure: Any = nlvr2.evaluate if isinstance(model, AlbefForPairs) else classification.evaluate
    return with_bar("judging", len(source), lambda tick: measure(model, processor, source, tick=tick))


def _kind(model: Backbone) -> Any:
    kinds = {AlbefModel: "phrases", AlbefForAnswering: "vqa", AlbefForPairs: "pairs"}
    kinds[AlbefForClassification] = "classification"
    if type(model) not in kinds:
        raise ValueError(f"an {type(model).__name__} is only a start for others; fine-tune it first")
    return kinds[type(model)]


def _retrieval(model: AlbefModel, processor: Processor, options: argparse.Namespace) -> dict[str, Any]:
    source = open_sources(options.data, options.image_root)
    gallery = with_bar(
        "encoding pictures",
        len(source),
        lambda tick: ranking.encode(model, processor, source, options.captions, tick=tick),
    )
    pictures = len(gallery.z_image)
    if distributed.rank() == 0:
        print(f"{pictures} pictures, {len(gallery.z_text)} texts, {options.k} candidates re-ranked")
    return {
        **with_bar("re-ranking", pictures, lambda tick: ranking.evaluate(model, gallery, options.k, tick)),
    }


def _answers(
    model: AlbefForAnswering, processor: Processor, source: Any, options: argparse.Namespace
) -> dict[str, Any]:
    path = options.answers or model_folder(options.model, (CONFIG, WEIGHTS)) / ANSWERS
    answers = vqa.read_answers(path)
    figures, given = with_bar(
        "answering",
        len(source),
        lambda tick: vqa.evaluate(model, processor, source, answers, options.k, options.official, tick=tick),
    )
    if options.results and distributed.rank() == 0:
        vqa.write_results(options.results, given, options.way)
        print(f"{len(given)} answers, {options.way}: {options.results}")
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
    heads = ["text->picture R@1", "R@5", "R@10", "picture->text R@1", "R@5", "R@10"]
    keys = [f"{side}_r{k}" for side in ("img", "txt") for k in (1, 5, 10)]
    widths = [len(head) + 4 for head in heads]
    rows = [" " * 4 + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for name, values in figures.items():
        cells = (f"{values[key]:>{width}.2f}" for key, width in zip(keys, widths, strict=True))
        rows.append(f"{name:<4}" + "".join(cells))
    return "\n".join(rows)
