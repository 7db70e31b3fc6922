"""A run's task is composed of four parts: data, model, objective, and the protocol that it is measured by.

Each task is one file beside this one, with a function `make(recipe, saved)` that chooses the parts of its `Task`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from albef import distributed
from albef.batches import Batch, Inputs, moved
from albef.data.augment import RandAugment, TrainTransform
from albef.data.augment_batch import BatchAugment
from albef.data.broken import Broken, BrokenCounter
from albef.data.fingerprint import fingerprint
from albef.data.loader import Pair, StepBatches
from albef.data.processor import Processor
from albef.data.records import ExampleSource, Source
from albef.engine.optim import ramp
from albef.files import ANSWERS
from albef.models.backbone import Backbone
from albef.models.config import AlbefConfig
from albef.recipe import Recipe
from albef.tasks.answers import write_answers
from albef.tasks.begin import Saved, SavedTeacher, restore_teacher, say, start_model

Figures = dict[str, Any]  # as JSON has them
M = TypeVar("M", bound=Backbone)
Objective = TypeVar("Objective", bound=nn.Module)
Given = TypeVar("Given", bound=Inputs, covariant=True)
Measured = TypeVar("Measured", bound=Backbone, contravariant=True)


class InMemory(Protocol[Given]):
    """Training data whose images were decoded once."""

    broken: Broken

    def __len__(self) -> int: ...

    def batch(self, pairs: Sequence[Pair]) -> Given: ...


class TrainingData(Protocol[Given]):
    """What a run learns from."""

    @property
    def source(self) -> Source | ExampleSource: ...

    def __len__(self) -> int: ...

    def texts(self) -> Iterator[str]:
        """Yields all texts, to learn a vocabulary from."""

    def in_memory(self, processor: Processor) -> InMemory[Given]:
        """Returns the data with all images decoded: for small data that are augmented a batch at a time."""

    def batches(
        self, processor: Processor, transform: TrainTransform, order: StepBatches, model: Backbone
    ) -> Iterator[Given]:
        """Yields the batches of `order`, whose images are read and transformed one by one, or are views of them that
        the frozen parts of the model have seen."""


class EvaluationProtocol(Protocol[Measured]):
    """Measures a model on the validation data that it holds; its methods do what `engine.train.Task` asks for."""

    def evaluate(self, model: Measured, processor: Processor) -> Figures: ...

    def score(self, figures: Figures) -> float: ...

    def headline(self, figures: Figures) -> str: ...


class Now(NamedTuple):
    """What a step is told of the state of the run."""

    alpha: float  # the teacher's share of the targets, in [0, 1]
    fuse: bool  # whether the step fuses, or aligns only
    hardness: float  # of ITM's negatives: from 0, drawn nearly evenly, to 1, drawn at the model's own temperature


def call_with_alpha(objective: nn.Module, batch: Inputs, now: Now) -> dict[str, Tensor]:
    """Calls an objective that has no phase without fusion and draws no negatives, as most do."""
    return objective(batch, now.alpha)


@dataclass
class Task(Generic[M, Objective, Batch]):
    """The task of a run that begins, or of one that goes on from what its `state_dict` returned before: `saved`.

    `build_model` makes the model of a configuration. `build_objective` makes the objective of the model and its
    processor; the objective's teacher is a copy of the model. `restore` gives the objective what was saved of a teacher
    beside the model that the run starts from, and returns a report in words. `engine.train.Task` says what the methods
    do.
    """

    recipe: Recipe
    saved: InitVar[Saved]
    data: TrainingData[Batch]
    build_model: InitVar[Callable[[AlbefConfig], M]]
    build_objective: InitVar[Callable[[M, Processor], Objective]]
    protocol: EvaluationProtocol[M] | None
    restore: InitVar[Callable[[Objective, SavedTeacher], list[str]]] = restore_teacher
    call: Callable[[nn.Module, Batch, Now], dict[str, Tensor]] = call_with_alpha
    """Calls the objective with a batch; returns the losses by name."""
    on_host: Callable[[Objective, Batch], Batch] | None = None
    """Adds to a batch, while it still lies on the host, whatever would make the device wait."""
    flops: Callable[[AlbefConfig, list[int], bool], float] | None = None
    """Counts the operations of a step per pair, from the lengths of its texts and whether it fused."""
    answers: Sequence[str] = ()
    """The list that a model of questions ranks. It is saved with the model."""
    find_unused_parameters: bool = False

    def __post_init__(
        self,
        saved: Saved,
        build_model: Callable[[AlbefConfig], M],
        build_objective: Callable[[M, Processor], Objective],
        restore: Callable[[Objective, SavedTeacher], list[str]],
    ) -> None:
        self.model, self.processor, teacher = start_model(build_model, self.recipe, saved, self.data.texts)
        self.model.gradient_checkpointing(self.recipe.gradient_checkpointing)
        self.objective = build_objective(self.model, self.processor)
        if teacher is not None:
            say(restore(self.objective, teacher))
        if self.recipe.compile:
            compile_blocks(self.objective)
        data = self.recipe.data
        self.cached = self._decoded() if data.augment == "affine" else None
        self.pairs = len(self.data if self.cached is None else self.cached)
        self.augment = BatchAugment(self.model.config.image_size, data.zoom, data.shift, data.angle, data.colour)
        self.lengths: Tensor | None = None  # of the last step's texts, on the host
        self.fused = True

    def _decoded(self) -> InMemory[Batch]:
        cached = self.data.in_memory(self.processor)
        counter = BrokenCounter(self.recipe.data.broken_limit)
        counter.add(cached.broken, len(cached))
        counter.check(final=True)
        if cached.broken:
            warnings.warn(counter.report(), stacklevel=2)
        return cached

    def batches(self, start_step: int) -> Iterator[Batch]:
        recipe, data = self.recipe, self.recipe.data
        rank, world = distributed.rank(), distributed.world_size()
        order = StepBatches(self.pairs, recipe.batch_size, sys.maxsize, recipe.seed, start_step, rank, world)
        if self.cached is not None:
            return map(self.cached.batch, order)
        augment = RandAugment(official=recipe.objective.official)
        transform = TrainTransform(self.processor.image_size, data.crop_scale, data.flip, augment)
        return self.data.batches(self.processor, transform, order, self.model)

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        """Also augments images that were kept in memory, each of a pair by itself, and normalises all images."""
        self.lengths = batch["attention_mask"].sum(1)
        batch = moved(self.on_host(self.objective, batch) if self.on_host else batch, device)
        pixels = batch["pixel_values"]
        if self.recipe.data.augment == "cached":
            return batch
        flat = pixels.flatten(0, -4)
        flat = flat if self.cached is None else self.augment(flat)
        batch["pixel_values"] = self.processor.normalise(flat).unflatten(0, pixels.shape[:-3])
        return batch

    def losses(self, objective: nn.Module, batch: Batch, step: int, progress: float) -> dict[str, Tensor]:
        self.fused = progress >= self.recipe.objective.align_first
        batch["pixel_values"] = self.model.frozen_features(batch["pixel_values"])  # once for student and teacher
        return self.call(objective, batch, Now(self.alpha(step), self.fused, self.hardness(progress)))

    def flops_per_pair(self) -> float:
        if self.flops is None or self.lengths is None:
            return 0.0
        return self.flops(self.model.config, self.lengths.tolist(), self.fused)

    def alpha(self, step: int) -> float:
        """Returns the teacher's share of the targets at this step, in [0, 1]."""
        options = self.recipe.objective
        steps = options.alpha_ramp_steps
        return ramp(options.alpha, step, self.pairs // self.recipe.batch_size if steps is None else steps)

    def hardness(self, progress: float) -> float:
        """Returns how hard ITM's negatives are when that share of the run is done, in [0, 1]."""
        options = self.recipe.objective
        first = options.align_first
        return ramp(1.0, max(0.0, progress - first), options.harden * (1 - first))

    @torch.no_grad()
    def evaluate(self) -> Figures:
        return self.protocol.evaluate(self.model, self.processor) if self.protocol else {}

    def headline(self, figures: Figures) -> str:
        return self.protocol.headline(figures) if self.protocol else ""

    def score(self, figures: Figures) -> float:
        return self.protocol.score(figures) if self.protocol else 0.0

    def save_model(self, folder: Path) -> None:
        """Writes the processor and, if there is one, the list of answers beside the model."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.answers:
            write_answers(folder / ANSWERS, self.answers)

    def state_dict(self) -> dict[str, Any]:
        """Returns the model's `config`, the processor's `files` and the list of `answers`."""
        model = self.model
        config = {**model.config.to_dict(), "architecture": type(model).__name__, **model.options()}
        config = json.loads(json.dumps(config))  # lists for tuples
        return {"config": config, "files": self.processor.files(), "answers": list(self.answers)}

    def fingerprint(self) -> dict[str, str]:
        return fingerprint(self.data.source)


def compile_blocks(objective: nn.Module) -> None:
    """Compiles the transformer blocks of student and teacher; each length and each mode is compiled by itself."""
    from albef.models.layers import CrossAttention, FeedForward, SelfAttention
    from albef.models.vit import Block

    torch._dynamo.config.recompile_limit = 64
    for module in objective.modules():
        if isinstance(module, (SelfAttention, CrossAttention, FeedForward, Block)):
            module.compile()
