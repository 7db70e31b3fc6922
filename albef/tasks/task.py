"""A task of a run, put together of four parts: data, model, objective, and the protocol that it is measured by.

Each task is one file beside this one, with a function `make(recipe, saved)` that chooses the parts and calls `compose`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from albef import distributed
from albef.batches import Inputs, moved
from albef.data.augment import RandAugment, TrainTransform
from albef.data.augment_batch import BatchAugment
from albef.data.broken import Broken, BrokenCounter
from albef.data.fingerprint import fingerprint
from albef.data.loader import Pair, StepBatches, make_loader
from albef.data.processor import Processor
from albef.engine.optim import ramp
from albef.files import ANSWERS
from albef.models.backbone import Backbone
from albef.models.config import AlbefConfig
from albef.recipe import Recipe
from albef.tasks.answers import write_answers
from albef.tasks.begin import Saved, SavedTeacher, restore_teacher, say, start_model

Figures = dict[str, Any]
Collate = Callable[[Any], Any]
M = TypeVar("M", bound=Backbone)
Measured = TypeVar("Measured", bound=Backbone, contravariant=True)


class InMemory(Protocol):
    """Training data whose images were decoded once."""

    broken: Broken

    def __len__(self) -> int: ...

    def batch(self, pairs: Sequence[Pair]) -> Any: ...


class TrainingData(Protocol):
    """What a run learns from."""

    source: Any
    """The records or examples themselves."""

    def __len__(self) -> int: ...

    def texts(self) -> Iterator[str]:
        """All texts, to learn a vocabulary from."""

    def in_memory(self, processor: Processor) -> InMemory:
        """The data with all images decoded: for small ones that are augmented a batch at a time."""

    def dataset(self, processor: Processor, transform: TrainTransform) -> tuple[Dataset[Any], Collate]:
        """The data as a data set that is read sample by sample, and what makes batches of its samples."""


class EvaluationProtocol(Protocol[Measured]):
    """What a model is measured by, on the validation data that the protocol holds."""

    def evaluate(self, model: Measured, processor: Processor) -> Figures:
        """The task's figures."""

    def score(self, figures: Figures) -> float:
        """What the best model is chosen by; higher is better."""

    def headline(self, figures: Figures) -> str:
        """The main figures in one line."""


def call_with_alpha(
    objective: nn.Module, batch: Inputs, alpha: float, fuse: bool, hardness: float
) -> dict[str, Tensor]:
    """How most objectives are called: they have no phase without fusion, and draw no negatives."""
    return objective(batch, alpha)


@dataclass
class Task(Generic[M]):
    """A task as the loop sees it (`engine.train.Task`); made by `compose`."""

    recipe: Recipe
    data: TrainingData
    model: M
    processor: Processor
    objective: nn.Module
    protocol: EvaluationProtocol[M] | None
    call: Callable[[nn.Module, Inputs, float, bool, float], dict[str, Tensor]] = call_with_alpha
    """How the objective is called with a batch, alpha, whether to fuse in this step, and how hard negatives are."""
    on_host: Callable[[Any], dict[str, Any]] | None = None
    """What is added to a batch while it still lies on the host: whatever would make the device wait."""
    flops: Callable[[Tensor, bool], float] | None = None
    """Operations of a step per pair, from the lengths of its texts and whether it fused."""
    answers: Sequence[str] = ()
    """The list that a model of questions ranks, saved with it."""
    find_unused_parameters: bool = False

    def __post_init__(self) -> None:
        data = self.recipe.data
        self.cached = self._decoded() if data.augment == "affine" else None
        self.pairs = len(self.data if self.cached is None else self.cached)
        self.augment = BatchAugment(self.model.config.image_size, data.zoom, data.shift, data.angle, data.colour)
        self.lengths: Tensor | None = None  # of the last step's texts, on the host
        self.fused = True

    def _decoded(self) -> InMemory:
        cached = self.data.in_memory(self.processor)
        counter = BrokenCounter(self.recipe.data.broken_limit)
        counter.add(cached.broken, len(cached))
        counter.check(final=True)
        if cached.broken:
            warnings.warn(counter.report(), stacklevel=2)
        return cached

    def batches(self, start_step: int) -> Iterator[Any]:
        """Batches of this rank from step `start_step` on, without end."""
        recipe, data = self.recipe, self.recipe.data
        rank, world = distributed.rank(), distributed.world_size()
        order = StepBatches(self.pairs, recipe.batch_size, sys.maxsize, recipe.seed, start_step, rank, world)
        if self.cached is not None:
            return map(self.cached.batch, order)
        augment = RandAugment(official=recipe.objective.official)
        transform = TrainTransform(self.processor.image_size, data.crop_scale, data.flip, augment)
        dataset, collate = self.data.dataset(self.processor, transform)
        return iter(make_loader(dataset, order, collate, data.workers))

    def prepare(self, batch: Inputs, device: torch.device) -> Inputs:
        """Takes a batch to the device, augments images that were kept in memory (each of a pair by itself), and
        normalises them."""
        self.lengths = batch["attention_mask"].sum(1)
        more = self.on_host(batch) if self.on_host else {}
        batch = moved(cast(Inputs, {**batch, **more}), device)
        pixels = batch["pixel_values"]
        flat = pixels.flatten(0, -4)
        flat = flat if self.cached is None else self.augment(flat)
        batch["pixel_values"] = self.processor.normalise(flat).unflatten(0, pixels.shape[:-3])
        return batch

    def losses(self, objective: nn.Module, batch: Inputs, step: int, progress: float) -> dict[str, Tensor]:
        """The step's losses by name; `progress` is the share of the run that is done."""
        self.fused = progress >= self.recipe.objective.align_first
        batch["pixel_values"] = self.model.frozen_features(batch["pixel_values"])  # once for student and teacher
        return self.call(objective, batch, self.alpha(step), self.fused, self.hardness(progress))

    def flops_per_pair(self) -> float:
        """Floating-point operations of the last step per pair; 0 where they are not counted."""
        return 0.0 if self.flops is None or self.lengths is None else self.flops(self.lengths, self.fused)

    def alpha(self, step: int) -> float:
        """The teacher's share of the targets at this step."""
        options = self.recipe.objective
        steps = options.alpha_ramp_steps
        return ramp(options.alpha, step, self.pairs // self.recipe.batch_size if steps is None else steps)

    def hardness(self, progress: float) -> float:
        """Of ITM's negatives: from 0, drawn nearly evenly, to 1, at the model's own temperature."""
        options = self.recipe.objective
        first = options.align_first
        return ramp(1.0, max(0.0, progress - first), options.harden * (1 - first))

    @torch.no_grad()
    def evaluate(self) -> Figures:
        """The task's figures on the validation data; none without such data."""
        return self.protocol.evaluate(self.model, self.processor) if self.protocol else {}

    def headline(self, figures: Figures) -> str:
        return self.protocol.headline(figures) if self.protocol else ""

    def score(self, figures: Figures) -> float:
        return self.protocol.score(figures) if self.protocol else 0.0

    def save_model(self, folder: Path) -> None:
        """Writes the model with its processor, and its list of answers if it has one."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.answers:
            write_answers(folder / ANSWERS, self.answers)

    def state_dict(self) -> dict[str, Any]:
        """Sizes and words, which a run that goes on takes from here and not from its sources; plain values."""
        model = self.model
        config = {**model.config.to_dict(), "architecture": type(model).__name__, **model.options()}
        return {"config": plain(config), "files": self.processor.files(), "answers": list(self.answers)}

    def fingerprint(self) -> dict[str, Any]:
        """What tells changed training data from the same."""
        return fingerprint(self.data.source)


def plain(values: Figures) -> Figures:
    """As JSON has them: lists for tuples."""
    return json.loads(json.dumps(values))


def compile_blocks(objective: Any) -> None:
    """Compiles the transformer blocks of student and teacher; lengths and modes are kinds of their own."""
    from albef.models.layers import CrossAttention, FeedForward, SelfAttention
    from albef.models.vit import Block

    torch._dynamo.config.recompile_limit = 64
    for module in objective.modules():
        if isinstance(module, (SelfAttention, CrossAttention, FeedForward, Block)):
            module.compile()


def compose(
    recipe: Recipe,
    saved: Saved,
    data: TrainingData,
    build_model: Callable[[AlbefConfig], M],
    build_objective: Callable[[M, Processor], nn.Module],
    protocol: EvaluationProtocol[M] | None,
    restore: Callable[[Any, SavedTeacher], list[str]] = restore_teacher,
    **options: Any,
) -> Task[M]:
    """The task of a run that begins, or that goes on from what it `saved`.

    `build_model` makes the model of a configuration, `build_objective` the objective of a model and its processor; its
    teacher is a copy of the model. `restore` gives the objective what was saved of a teacher with its start. `options`
    are further fields of `Task`.
    """
    model, processor, teacher = start_model(build_model, recipe, saved, data.texts)
    model.gradient_checkpointing(recipe.gradient_checkpointing)
    objective = build_objective(model, processor)
    if teacher is not None:
        say(restore(objective, teacher))
    if recipe.compile:
        compile_blocks(objective)
    return Task(recipe, data, model, processor, objective, protocol, **options)
