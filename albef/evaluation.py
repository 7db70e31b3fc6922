"""`albef.evaluate`: a saved model by its task's official rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from albef import distributed
from albef.data.broken import BrokenCounter
from albef.data.examples import ExampleSource, Kind, open_examples
from albef.data.processor import Processor
from albef.data.progress import with_bar
from albef.data.records import Source
from albef.data.sources import open_sources
from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.backbone import Backbone
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef.pipeline import Pipeline, load
from albef.protocols import PROTOCOLS, TASKS_OF, Rules
from albef.tasks import answers as answers_of
from albef.tasks import classification, grounding, nlvr2, ranking, vqa

KINDS: dict[str, Kind] = {"vqa": "vqa", "classification": "classification", "nlvr2": "pairs", "grounding": "phrases"}
ZERO_SHOT = (
    "zero-shot Flickr30k in the paper's sense: the model must have been fine-tuned on COCO (mscoco.pth: TR R@1 94.1, "
    "IR R@1 82.8 in the paper); the raw pre-trained ALBEF.pth gives 88.5 and 75.9 (issues #3, #29 of the original)"
)
Figures = dict[str, Any]
Say = Callable[[str], None]
Inputs = tuple[Any, Processor, ExampleSource]  # the model first


def evaluate(
    model: Pipeline | str | Path, data: str | Path | Sequence[str | Path], protocol: str | None = None, **rules: Any
) -> Figures:
    """Figures of a model on its task's data, in percent, e.g. `{"itm": {"txt_r1": 94.1, ...}, ...}` of retrieval.

    `data` are the task's JSON lists, or for retrieval also tar shards and folders; `protocol` is one of
    `albef.PROTOCOLS`. `rules` are the fields of `albef.protocols.Rules`, such as `k` or `image_root`. A model that is
    given by its name is loaded at the protocol's size, a pipeline keeps its own. ValueError for rules that the task
    doesn't have, or values they can't have; RuntimeError if too many images can't be read.
    """
    chosen = Rules(protocol=protocol, **rules)  # type: ignore[arg-type]
    pipeline = model if isinstance(model, Pipeline) else load(model, image_size=size_of(chosen))
    return measure(pipeline, [str(one) for one in ([data] if isinstance(data, (str, Path)) else data)], chosen)


def size_of(rules: Rules) -> int | None:
    """The size in pixels that a protocol asks for."""
    return PROTOCOLS[rules.protocol]["image_size"] if rules.protocol else None


def measure(pipeline: Pipeline, data: Sequence[str], rules: Rules, say: Say = lambda text: None) -> Figures:
    """As `evaluate`, of all ranks together; what is worth knowing on the way is said by the first of them."""
    for name in ("k", "captions"):
        if (value := getattr(rules, name)) is not None and value < 1:
            raise AlbefValueError(f"--{name} {value}: give at least 1, or leave it out")
    task = _task(pipeline, rules)
    _check(pipeline, task, rules)
    say = say if distributed.rank() == 0 else lambda text: None
    if rules.protocol == "flickr30k-zero-shot":
        say(ZERO_SHOT)
    rules = replace(rules, k=rules.k or PROTOCOLS.get(rules.protocol or "", {}).get("k", 128))
    quick = torch.autocast(pipeline.model.device.type, torch.bfloat16, enabled=rules.precision == "bfloat16")
    own = BrokenCounter(rules.broken_limit)
    with torch.no_grad(), quick:
        figures = _figures(pipeline, task, data, rules, say, own)
    failures, seen = _over_all_ranks(own)
    return figures | ({"left_out": {"unreadable": failures, "of": seen}} if failures else {})


def _over_all_ranks(counter: BrokenCounter) -> tuple[int, int]:
    """Unreadable images and all; RuntimeError on every rank if they are too many."""
    whole = BrokenCounter(counter.limit)
    for own in distributed.gather_objects((counter.failures, counter.seen, counter.reasons)):
        whole.failures, whole.seen = whole.failures + own[0], whole.seen + own[1]
        whole.reasons |= own[2]
    whole.check(final=True)
    return whole.failures, whole.seen


def _task(pipeline: Pipeline, rules: Rules) -> str:
    """What the model is measured by; ValueError for one that has no task, or not the one that is asked for."""
    model = pipeline.model
    if isinstance(model, AlbefModel):
        return rules.task or "retrieval"
    tasks: dict[type[Backbone], str] = {
        AlbefForAnswering: "vqa",
        AlbefForClassification: "classification",
        AlbefForPairs: "nlvr2",
    }
    if type(model) not in tasks:
        raise AlbefValueError(f"an {type(model).__name__} is only a start for others; fine-tune it first")
    if rules.task:
        raise AlbefValueError(
            f"--task {rules.task}: only a model that matches has the choice, and {pipeline.name} is an "
            f"{type(model).__name__}, measured by {tasks[type(model)]}; leave it out"
        )
    return tasks[type(model)]


def _check(pipeline: Pipeline, task: str, rules: Rules) -> None:
    """ValueError for a rule that would do nothing."""
    for name, value in rules.given().items():
        if task not in TASKS_OF[name]:
            remedy = " or add --task grounding" if task == "retrieval" and "grounding" in TASKS_OF[name] else ""
            raise AlbefValueError(
                f"--{name.replace('_', '-')}{_shown(value)}: is for {', '.join(TASKS_OF[name])}, but "
                f"{pipeline.name} is measured by the rules of {task}; leave it out{remedy}"
            )
    if rules.way and not rules.results:
        raise AlbefValueError(
            f"--way {rules.way}: says which answers --results writes; add --results FILE, or leave it out"
        )


def _shown(value: Any) -> str:
    """As it stands on the command line after its option."""
    words = value if isinstance(value, (list, tuple)) else [] if value is True else [value]
    return "".join(f" {word}" for word in words)


def _figures(
    pipeline: Pipeline, task: str, data: Sequence[str], rules: Rules, say: Say, counter: BrokenCounter
) -> Figures:
    """Figures by the task's rules; the `counter` learns which images could not be read."""
    if task == "retrieval":
        return _retrieval(pipeline, data, rules, say, counter)
    source = open_examples(KINDS[task], data, rules.image_root, rules.vg_root)
    inputs: Inputs = (pipeline.model, pipeline.processor, source)
    if task == "grounding":
        return _grounding(inputs, rules, counter)
    truth = "answer" if task == "vqa" else "label"
    if not any(example.answers or example.label is not None for example in map(source.__getitem__, range(len(source)))):
        if not rules.results:
            raise AlbefValueError(
                f"{' '.join(data)}: no example has its {truth}, so there is nothing to measure by; add "
                f"--results FILE to have the model's written, or give a list with every {truth}"
            )
        say(f"no example has its {truth}: no figures but their number")
    figures, write, what = (_answers if task == "vqa" else _labels)(pipeline, inputs, rules, counter)
    if rules.results and distributed.rank() == 0:
        write(rules.results)
        say(f"{what}: {rules.results}")
    return figures


def _grounding(inputs: Inputs, rules: Rules, counter: BrokenCounter) -> Figures:
    figures: Figures = {}
    for mode in rules.mode or grounding.MODES:
        counted = None if figures else counter  # the second map is of the same images
        work = partial(grounding.evaluate_phrases, *inputs, mode, rules.layer, counter=counted)
        figures[mode] = with_bar(f"heat maps by {mode.upper()}", len(inputs[2]), work)
    return figures


def _retrieval(pipeline: Pipeline, data: Sequence[str], rules: Rules, say: Say, counter: BrokenCounter) -> Figures:
    model: Any = pipeline.model
    source = _pairs(data, rules)
    memory = ranking.TOKENS_GIB if rules.memory is None else rules.memory
    encode = partial(ranking.encode_gallery, model, pipeline.processor, source, rules.captions)
    work = partial(encode, memory=memory, counter=counter)
    gallery = with_bar("encoding images", len(source), lambda tick: work(tick=tick))
    images, k = len(gallery.z_image), rules.k or 128
    # 0.1.0's words: scripts read them
    say(f"{images} pictures, {len(gallery.z_text)} texts, up to {k} candidates re-ranked")
    return with_bar("re-ranking", images, lambda tick: dict(ranking.two_stage_recalls(model, gallery, k, tick)))


def _pairs(data: Sequence[str], rules: Rules) -> Source:
    """Images with captions. ValueError or FileNotFoundError where there are none, with the remedy for phrases."""
    try:
        return open_sources(data, rules.image_root)
    except (ValueError, FileNotFoundError) as error:
        try:
            open_examples("phrases", data, rules.image_root)
        except (ValueError, FileNotFoundError):
            raise error from None
        raise AlbefValueError(f"{', '.join(data)}: phrases, not captions; add --task grounding") from error


Written = tuple[Figures, Callable[[Path], None], str]
"""Figures, what writes the results to a file, and what these are."""


def _answers(pipeline: Pipeline, inputs: Inputs, rules: Rules, counter: BrokenCounter) -> Written:
    listed = answers_of.read_answers(rules.answers) if rules.answers else pipeline.answers
    work = partial(vqa.evaluate_questions, *inputs, listed, rules.k or 128, rules.official, counter=counter)
    figures, given = with_bar("answering", len(inputs[2]), lambda tick: work(tick=tick))
    way = rules.way or "ranked"
    return figures, lambda path: vqa.write_results(path, given, way), f"{len(given)} answers, {way}"


def _labels(pipeline: Pipeline, inputs: Inputs, rules: Rules, counter: BrokenCounter) -> Written:
    task: Any = nlvr2 if isinstance(pipeline.model, AlbefForPairs) else classification
    work = partial(classification.predict, *inputs, counter=counter)
    found = with_bar("judging", len(inputs[2]), lambda tick: work(tick=tick))
    labels = inputs[0].labels
    return task.figures(found, labels), lambda path: task.write_results(path, found, labels), f"{len(found)} labels"


def table(figures: Mapping[str, Any]) -> str:
    """Figures as text: recalls with a row per way of scoring, others a line each."""
    recalls = {name: own for name, own in figures.items() if isinstance(own, Mapping) and "img_r1" in own}
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        if name not in recalls:
            parts = value.items() if isinstance(value, Mapping) else [("", value)]
            rows += [(f"{name} {key}".rstrip(), part) for key, part in parts]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [_recalls(recalls)] if recalls else []
    for name, value in rows:
        lines.append(f"{name:<{width}}  {value:>{'8.2f' if isinstance(value, float) else 5}}")
    return "\n".join(lines)


def _recalls(figures: Mapping[str, Mapping[str, float]]) -> str:
    heads = ["text->image R@1", "R@5", "R@10", "image->text R@1", "R@5", "R@10", "mean"]
    keys = [*(f"{side}_r{k}" for side in ("img", "txt") for k in (1, 5, 10)), "r_mean"]
    widths = [len(head) + 4 for head in heads]
    first = max(4, *map(len, figures))
    rows = [" " * first + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for name, values in figures.items():
        cells = (f"{values[key]:>{width}.2f}" for key, width in zip(keys, widths, strict=True))
        rows.append(f"{name:<{first}}" + "".join(cells))
    return "\n".join(rows)
