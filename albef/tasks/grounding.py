"""The task of finding where in an image a text is seen, by Grad-CAM (paper §4.1, §6.6; spec §3.5, §4.4)."""

# B pairs, L words, S image tokens, H heads

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from albef import distributed
from albef.batches import PairBatch
from albef.data.broken import BrokenCounter
from albef.data.examples import Box, Example, ExampleSource
from albef.data.processor import Processor
from albef.data.records import Record
from albef.errors import AlbefValueError
from albef.metrics import boxes
from albef.models.albef import AlbefModel
from albef.objectives.retrieval import RetrievalObjective
from albef.recipe import Recipe
from albef.tasks.begin import Saved
from albef.tasks.examples import gather_results, in_batches
from albef.tasks.retrieval import learning_to_match
from albef.tasks.task import Figures, Task
from albef.tasks.training_data import Pairs, open_both

Mode = Literal["itm", "itc"]
MODES: tuple[Mode, ...] = ("itm", "itc")


def make(recipe: Recipe, saved: Saved) -> Task[AlbefModel, RetrievalObjective, PairBatch]:
    """Returns retrieval fine-tuning on phrases. It learns from what was said of a thing in an image, not from a box."""
    source, validation = open_both("phrases", recipe)
    if validation is not None:
        checked_boxes(validation[0])
    protocol = None if validation is None else Boxes(validation)
    return learning_to_match(recipe, saved, Pairs(Phrases(source), recipe), protocol)


class Boxes:
    """Measures how well heat maps by ITM and by ITC find what the phrases of a source mean."""

    def __init__(self, source: ExampleSource) -> None:
        self.source = source

    def evaluate(self, model: AlbefModel, processor: Processor) -> Figures:
        return {mode: evaluate_phrases(model, processor, self.source, mode) for mode in MODES}

    def score(self, figures: Figures) -> float:
        """Returns `boxes` or, where there are none to choose among, `pointing`; both in percent."""
        return figures["itm"].get("boxes", figures["itm"]["pointing"])

    def headline(self, figures: Figures) -> str:
        rows = (f"{mode} {', '.join(_shown(own))}" for mode, own in figures.items())
        return f"grounding, %: {'; '.join(rows)}"


class Phrases:
    """Gives examples with phrases as pairs to learn from. Phrases of one image are not each other's negatives."""

    def __init__(self, examples: ExampleSource) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Record:
        example = self.examples[index]
        (image,) = example.images
        name = str(image) if isinstance(image, Path) else example.name
        return Record(example.name, image, [example.text], name)

    def captions(self, index: int) -> list[str]:
        return [self.examples[index].text]


def word_maps(
    model: AlbefModel, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, layer: int | None = None
) -> Tensor:
    """Returns a heat map of every word over the patch grid, [B, L, rows, columns], not negative and 0 at padding.

    The map is the attention probabilities of fusion layer `layer` times their clamped gradient towards the ITM logit
    "matched", as the mean over heads. By default it is the third layer, as in the original, or the last but one of
    fewer. In the last layer only `[CLS]` reaches the logit, so all other words' maps are 0 there. The mean over L is
    the official grounding script's map of the whole text. Put the model in evaluation mode first. Raises ValueError for
    a layer that doesn't exist.
    """
    layers = model.config.fusion_layers
    layer = _layer(layer, min(2, max(layers - 2, 0)), layers, "fusion")
    with torch.no_grad():
        keys_values = model.fusion_encoder.keys_values(model.encode_image(pixel_values))
        states = model.encode_text(input_ids, attention_mask)
    record: list[Tensor] = []
    with torch.enable_grad():  # the states ask for gradients, so that frozen models work too
        fused = model.fuse(states.requires_grad_(), attention_mask, keys_values, record=record, record_layer=layer)
        matched = model.match(fused)[:, 1].sum()
        (gradient,) = torch.autograd.grad(matched, record[0])
    maps = (record[0].detach() * gradient.clamp(min=0)).mean(1)  # [B, L, S]
    maps = maps * attention_mask[:, :, None]
    return maps[:, :, 1:].unflatten(-1, model.config.grid)


def similarity_maps(
    model: AlbefModel, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, layer: int | None = None
) -> Tensor:
    """Returns a heat map of each text by ITC over the patch grid, [B, rows, columns], not negative.

    The map is the class token's attention in image layer `layer` times its clamped gradient towards cosine /
    temperature, as the mean over heads. By default it is the last layer, as in the paper. Evaluation mode and errors
    are those of `word_maps`.
    """
    layer = _layer(layer, model.config.vision_layers - 1, model.config.vision_layers, "image")
    with torch.no_grad():
        z_text = model.project_text(model.encode_text(input_ids, attention_mask), attention_mask)
    record: list[Tensor] = []
    with torch.enable_grad():
        pixels = model.frozen_features(pixel_values).detach().requires_grad_()  # so that frozen models work too
        z_image = model.project_image(model.visual_encoder(pixels, record, layer))
        (gradient,) = torch.autograd.grad((z_image * z_text).sum() / model.temp.detach(), record[0])
    maps = (record[0].detach() * gradient.clamp(min=0)).mean(1)[:, 0, 1:]
    return maps.unflatten(-1, model.config.grid)


def text_maps(
    model: AlbefModel,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    mode: Mode = "itm",
    layer: int | None = None,
) -> Tensor:
    """Returns a heat map of every whole text, [B, rows, columns]: the mean of `word_maps`, or `similarity_maps`.

    The mean is over the padded length, as in the original, which is a factor that changes no order.
    """
    if mode == "itc":
        return similarity_maps(model, pixel_values, input_ids, attention_mask, layer)
    return word_maps(model, pixel_values, input_ids, attention_mask, layer).mean(1)


def evaluate_phrases(
    model: AlbefModel,
    processor: Processor,
    source: ExampleSource,
    mode: Mode = "itm",
    layer: int | None = None,
    tick: Callable[[int], None] | None = None,
    counter: BrokenCounter | None = None,
) -> Figures:
    """Returns how many of the `phrases` are found, in percent; each phrase is counted once.

    `pointing` is the share whose map has the middle of its highest patch in a right box. `free` is the share whose box
    around the peak overlaps a right one by the official IoU >= 0.5. Where there are boxes to choose among, `boxes` is
    the share whose chosen box overlaps so, and `boxes_SPLIT` that of a split; `with_candidates` counts the phrases that
    have boxes to choose among, unless all do. `without_peak` counts maps without a positive value, for which the
    largest box is taken. Phrases whose right boxes show nothing of their image count as wrong, and a warning gives
    their number.
    """
    maps = enumerate(_maps(model, processor, source, mode, layer, tick, counter))
    judged = [(f"{distributed.rank()}/{number}", judge(grid, example)) for number, (example, grid) in maps]
    rows = list(gather_results(judged).values())
    _warn_of_the_invisible(rows)
    figures: Figures = {
        "phrases": len(rows),
        "pointing": 100 * float(np.mean([row["pointing"] for row in rows])),
        "free": 100 * boxes.accuracy([row["free"] for row in rows]),
    }
    chosen = [row for row in rows if "boxes" in row]
    if chosen:
        ious, splits = [row["boxes"] for row in chosen], [row["split"] for row in chosen]
        figures["boxes"] = 100 * boxes.accuracy(ious)
        by_split = sorted(boxes.accuracy_by_split(ious, splits).items())
        figures |= {f"boxes_{split}": 100 * share for split, share in by_split if split}
        figures |= {"with_candidates": len(chosen)} if len(chosen) < len(rows) else {}
    figures["without_peak"] = sum(row["without_peak"] for row in rows)
    return figures


def _warn_of_the_invisible(rows: Sequence[Figures]) -> None:
    invisible = [row["invisible"] for row in rows if row["invisible"]]
    if invisible and distributed.rank() == 0:
        warnings.warn(
            f"{len(invisible)} of {len(rows)} phrases have no right box that shows anything of their image, e.g. "
            f"{invisible[0]}; they count as wrong. A box is x, y, width, height in pixels of the image",
            stacklevel=3,
        )


def _maps(
    model: AlbefModel,
    processor: Processor,
    source: ExampleSource,
    mode: Mode,
    layer: int | None,
    tick: Callable[[int], None] | None,
    counter: BrokenCounter | None,
) -> Iterator[tuple[Example, Tensor]]:
    """Yields every readable example with its map over the patch grid, [rows, columns]."""
    for examples, pixels in in_batches(source, processor, 32, tick, model.device, counter):
        words = processor.texts([example.text for example in examples], model.config.max_positions)
        ids, mask = (words[name].to(model.device) for name in ("input_ids", "attention_mask"))
        maps = text_maps(model, pixels[:, 0], ids, mask, mode, layer)
        yield from zip(examples, maps.cpu(), strict=True)


def judge(grid: Tensor | np.ndarray, example: Example) -> Figures:
    """Judges how a map over the patches [rows, columns] finds what a phrase means.

    pointing        whether the middle of the map's highest patch lies in a right box
    free, boxes     official IoU with the nearest right box: of the box around the peak, and of the best candidate if
                    there are candidates
    without_peak    whether the map has no positive value
    split           that of the phrase
    invisible       names the phrase if no right box shows anything of the image, else empty
    """
    truths = checked_boxes(example)
    assert example.size is not None  # read_sample gives it
    at, heat = boxes.point(grid, *example.size), boxes.upsample(grid, *example.size)

    def overlap(box: Box) -> float:
        return max(boxes.official_iou(box, truth) for truth in truths)

    height, width = example.size
    seen = any(boxes.iou((0, 0, width, height), truth) > 0 for truth in truths)
    judged: Figures = {
        "pointing": any(boxes.contains(truth, at) for truth in truths) and bool(heat.max() > 0),
        "free": overlap(boxes.box_of_map(heat)),
        "split": example.split,
        "without_peak": not heat.max() > 0,
        "invisible": "" if seen else f"{example.name}, {example.text!r}, {list(truths[0])}",
    }
    if example.candidates:
        judged["boxes"] = overlap(best_box(heat, example.candidates)[0])
    return judged


def checked_boxes(example: Example) -> tuple[Box, ...]:
    """Returns the right boxes of a phrase. Raises ValueError for a phrase without one."""
    if not example.boxes:
        raise AlbefValueError(
            f"{example.name}: the phrase {example.text!r} has no box to compare with; add its `box`. The official "
            "lists of RefCOCO+ have none: name the folder of REFER and a split instead, such as data/refcoco+/val"
        )
    return example.boxes


def best_box(heat: np.ndarray, candidates: Sequence[Box]) -> tuple[Box, bool]:
    """Returns the box that a map [height, width] points at and True, or the largest box and False if the map has no
    positive score in any."""
    chosen = boxes.choose_box(heat, candidates)
    if chosen is None:
        return max(candidates, key=lambda box: box[2] * box[3]), False
    return candidates[chosen], True


def _layer(layer: int | None, default: int, layers: int, name: str) -> int:
    layer = default if layer is None else layer
    if not -layers <= layer < layers:
        raise AlbefValueError(
            f"layer {layer} doesn't exist; the {name} layers are 0 to {layers - 1}, or -{layers} to -1"
        )
    return layer


def _shown(figures: Figures) -> Iterator[str]:
    return (f"{name} {figures[name]:.1f}" for name in ("pointing", "boxes", "free") if name in figures)
