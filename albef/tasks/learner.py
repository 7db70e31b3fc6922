"""What every task shares: where a run starts, its batches, how it is saved."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from albef import distributed
from albef.data.augment import RandAugment, TrainTransform
from albef.data.augment_batch import BatchAugment
from albef.data.broken import BrokenCounter
from albef.data.loader import StepBatches, make_loader
from albef.data.processor import Processor, load_tokenizer, train_tokenizer
from albef.engine.optim import ramp
from albef.errors import AlbefValueError
from albef.models.backbone import Backbone
from albef.models.config import AlbefConfig
from albef.models.hub import load_config
from albef.models.start import load_start
from albef.recipe import Recipe

M = TypeVar("M", bound=Backbone)


class Memory(NamedTuple):
    """The states of a teacher and of queues that were saved with the model a run starts from; None without them."""

    teacher: dict[str, Tensor] | None = None
    queue: dict[str, Tensor] | None = None


class Learner:
    """A task as the loop sees it (`engine.train.Task`).

    A task adds its data (`open`, `probe`, `texts`, `in_memory`, `one_by_one`), its model (`make`), its objective
    (`teach`) and what it is measured by (`measure`, `score`, `headline`).
    """

    find_unused_parameters = False

    source: Any
    model: Any
    objective: Any

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        check_batch(recipe)
        self.recipe, data = recipe, recipe.data
        self.source = self.open(data.train)
        self.validation = self.open(data.validation) if data.validation else None
        if self.validation is not None:
            self.probe(self.validation)
        self.model, self.processor, memory = start_model(self.make, recipe, folder, self.texts)
        self.cached = self._keep_in_memory() if data.augment == "affine" else None
        self.pairs = len(self.source if self.cached is None else self.cached)
        self.model.gradient_checkpointing(recipe.gradient_checkpointing)
        self.objective = self.teach(self.model)
        if memory is not None:
            say(self.remember(memory))
        if recipe.compile:
            compile_blocks(self.objective)
        self.augment = BatchAugment(self.model.config.image_size, data.zoom, data.shift, data.angle, data.colour)

    def open(self, paths: Sequence[str]) -> Any:
        """The source of training or validation data."""
        raise NotImplementedError

    def probe(self, source: Any) -> None:
        """Reads a first image: a wrong path should fail now, not in hours."""
        raise NotImplementedError

    def texts(self) -> Iterator[str]:
        """All words of the training data, to learn a vocabulary from."""
        raise NotImplementedError

    def in_memory(self) -> Any:
        """The training data decoded: has `batch(pairs)`, a length, and what was `broken`."""
        raise NotImplementedError

    def one_by_one(self, transform: TrainTransform) -> tuple[Any, Any]:
        """The training data as a data set and what makes batches of its samples."""
        raise NotImplementedError

    def make(self, config: AlbefConfig) -> Any:
        """A new model."""
        raise NotImplementedError

    def teach(self, model: Any) -> Any:
        """The objective; its teacher is a copy of the model."""
        raise NotImplementedError

    def remember(self, memory: Memory) -> list[str]:
        """Gives the objective the teacher and queues that were saved with its start; a report in words.

        Queues only fit those of their own size.
        """
        report = []
        teacher, queue = getattr(self.objective, "teacher", None), getattr(self.objective, "queue", None)
        if teacher is not None and memory.teacher is not None:
            teacher.model.load_state_dict(memory.teacher)
        if teacher is not None:
            report.append(f"teacher: {'a copy of the model' if memory.teacher is None else 'its own weights'}")
        size = len(memory.queue["image_queue"]) if memory.queue is not None else 0
        if queue is not None and size == len(queue.image_queue):
            queue.load_state_dict(memory.queue)
        if queue is not None:
            report.append(f"queues: {'taken over' if size == len(queue.image_queue) else 'new'}")
        return report

    def measure(self, source: Any) -> dict[str, Any]:
        """The task's figures on a source."""
        raise NotImplementedError

    def _keep_in_memory(self) -> Any:
        cached = self.in_memory()
        counter = BrokenCounter(self.recipe.data.broken_limit)
        counter.add(cached.broken, len(cached))
        counter.check(final=True)
        if cached.broken:
            warnings.warn(counter.report(), stacklevel=2)
        return cached

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]:
        """Batches of this rank from step `start_step` on, without end."""
        recipe, data = self.recipe, self.recipe.data
        rank, world = distributed.rank(), distributed.world_size()
        order = StepBatches(self.pairs, recipe.batch_size, sys.maxsize, recipe.seed, start_step, rank, world)
        if self.cached is not None:
            return map(self.cached.batch, order)
        augment = RandAugment(official=recipe.objective.official)
        training, collate = self.one_by_one(
            TrainTransform(self.processor.image_size, data.crop_scale, data.flip, augment)
        )
        return iter(make_loader(training, order, collate, data.workers))

    def prepare(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Takes a batch to the device, augments pixels that were kept in memory (each image of a pair by itself), and
        normalises them."""
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        pixels = batch["pixel_values"]
        flat = pixels.flatten(0, -4)
        flat = flat if self.cached is None else self.augment(flat)
        return {**batch, "pixel_values": self.processor.normalise(flat).unflatten(0, pixels.shape[:-3])}

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]:
        """The step's losses by name; their sum is learnt from."""
        return objective(batch, self.alpha(step))

    def flops_per_pair(self) -> float:
        return 0.0  # not counted

    def alpha(self, step: int) -> float:
        """The teacher's share of the targets at this step."""
        options = self.recipe.objective
        steps = options.alpha_ramp_steps
        return ramp(options.alpha, step, self.pairs // self.recipe.batch_size if steps is None else steps)

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """The task's figures on `recipe.data.validation`."""
        return self.measure(self.validation) if self.validation is not None else {}

    def save_model(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def check_batch(recipe: Recipe) -> None:
    """ValueError unless there is something to train on and the batch can be split over the ranks."""
    if not recipe.data.train:
        raise AlbefValueError(
            f"recipe {recipe.name!r}: data.train is empty; give JSON lists, tar shards or folders of images, "
            "e.g. --data.train captions.json"
        )
    world = distributed.world_size()
    if recipe.batch_size % world:
        raise AlbefValueError(f"batch_size {recipe.batch_size} can't be split evenly over {world} ranks")


def start_model(
    make: Callable[..., M], recipe: Recipe, folder: Path, texts: Callable[[], Iterator[str]]
) -> tuple[M, Processor, Memory | None]:
    """The model a run begins with, its processor, and what was saved of teacher and queues with what it starts from.

    `make(config)` builds the model. A run that goes on takes sizes and words from its own folder, so that what it began
    with isn't needed any more; otherwise from `recipe.init`, at this recipe's image size; otherwise the model is new,
    and so are its words unless `data.tokenizer` names some: they are learnt from `texts`.
    """
    data, saved = recipe.data, folder / "model"
    torch.manual_seed(recipe.seed)
    goes_on = (folder / "checkpoint.pt").exists()
    begin = str(saved) if goes_on else recipe.init
    if begin:
        config = AlbefConfig.from_dict(load_config(begin)).at_size(recipe.model.image_size)
        model = make(config)
        report, *memory = load_start(model, begin)
        if not goes_on:
            say([f"start: {begin}", *report])
        processor = replace(Processor.from_pretrained(begin), image_size=config.image_size)
        return model, processor, None if goes_on else Memory(*memory)
    if recipe.usual_init and distributed.rank() == 0:
        warnings.warn(
            f"recipe {recipe.name!r} without --init starts from random weights; the original starts from "
            f"{recipe.usual_init}",
            stacklevel=2,
        )
    words = data.tokenizer
    tokenizer = load_tokenizer(words) if words else train_tokenizer(texts(), recipe.model.vocab_size)
    model = make(replace(recipe.model, vocab_size=tokenizer.get_vocab_size()))
    size = model.config.image_size
    return model, Processor(tokenizer, size, max_words=data.max_words, max_tokens=data.max_tokens), None


def say(lines: Sequence[str]) -> None:
    """What a run begins with, on the first rank's screen."""
    if lines and distributed.rank() == 0:
        print(*lines, sep="\n", file=sys.stderr)


def compile_blocks(objective: Any) -> None:
    """Compiles the transformer blocks of student and teacher; lengths and modes are kinds of their own."""
    from albef.models.bert import BertLayer
    from albef.models.vit import Block

    torch._dynamo.config.recompile_limit = 64
    for module in objective.modules():
        if isinstance(module, (BertLayer, Block)):
            module.compile()
