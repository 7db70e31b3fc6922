"""Makes what a run begins with: its model, its words, and what was saved of a teacher with its start."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from albef import distributed
from albef.data.processor import Processor
from albef.data.text import load_tokenizer, train_tokenizer
from albef.errors import AlbefValueError
from albef.models.backbone import Backbone
from albef.models.config import AlbefConfig
from albef.models.folders import load_config
from albef.models.start import load_start
from albef.recipe import Recipe

M = TypeVar("M", bound=Backbone)
Saved = dict[str, Any] | None
"""What a task's `state_dict` returned, for a run that goes on; None for one that begins."""


class SavedTeacher(NamedTuple):
    """Holds the states of a teacher and of queues that lay beside the model that a run starts from, or None."""

    teacher: dict[str, Tensor] | None = None
    queue: dict[str, Tensor] | None = None


def restore_teacher(objective: nn.Module, saved: SavedTeacher) -> list[str]:
    """Gives an objective the teacher and the queues that were saved with its start; returns a report in words.

    Queues only fit an objective with queues of their size.
    """
    report = []
    teacher, queue = getattr(objective, "teacher", None), getattr(objective, "queue", None)
    if teacher is not None and saved.teacher is not None:
        teacher.model.load_state_dict(saved.teacher)
    if teacher is not None:
        report.append(f"teacher: {'a copy of the model' if saved.teacher is None else 'its own weights'}")
    size = saved.queue["image_queue"].shape[0] if saved.queue is not None else 0
    if queue is not None and saved.queue is not None and size == queue.image_queue.shape[0]:
        queue.load_state_dict(saved.queue)
    if queue is not None:
        report.append(f"queues: {'taken over' if size == queue.image_queue.shape[0] else 'new'}")
    return report


def check_batch(recipe: Recipe) -> None:
    """Raises ValueError if there is nothing to train on, or if the batch cannot be split evenly over the ranks."""
    if not recipe.data.train:
        raise AlbefValueError(
            f"recipe {recipe.name!r}: data.train is empty; give JSON lists, tar shards or folders of images, "
            "e.g. --data.train captions.json"
        )
    world = distributed.world_size()
    if recipe.batch_size % world:
        raise AlbefValueError(f"batch_size {recipe.batch_size} can't be split evenly over {world} ranks")


def start_model(
    build_model: Callable[[AlbefConfig], M], recipe: Recipe, saved: Saved, texts: Callable[[], Iterator[str]]
) -> tuple[M, Processor, SavedTeacher | None]:
    """Returns the model that a run begins with, its processor, and what was saved of teacher and queues with its start.

    `build_model` makes the model of a configuration. A run that goes on takes sizes and words from what it `saved`, so
    that it does not need what it began with any more. Otherwise they come from `recipe.init`, at this recipe's image
    size, number of words and choice of what is frozen. Without `recipe.init` the model is new, and its words are those
    of `data.tokenizer` or, if that is not set, are learnt from `texts`.
    """
    data = recipe.data
    torch.manual_seed(recipe.seed)
    if saved is not None:
        config = AlbefConfig.from_dict(saved["config"])
        return build_model(config), Processor.from_files(saved["files"], "the checkpoint"), None
    if recipe.init:
        config = AlbefConfig.from_dict(load_config(recipe.init)).at_size(recipe.model.image_size)
        config = replace(config, trunk_trained=recipe.model.trunk_trained, text_frozen=recipe.model.text_frozen)
        model = build_model(config)
        report, *states = load_start(model, recipe.init)
        say([f"start: {recipe.init}", *report])
        start = Processor.from_pretrained(recipe.init)
        processor = replace(start, image_size=config.image_size, max_words=data.max_words)
        return model, processor, SavedTeacher(*states)
    if recipe.usual_init and distributed.rank() == 0:
        warnings.warn(
            f"recipe {recipe.name!r} without --init starts from random weights; it is meant to start from "
            f"{recipe.usual_init}",
            stacklevel=2,
        )
    words = data.tokenizer
    tokenizer = load_tokenizer(words) if words else train_tokenizer(texts(), recipe.model.vocab_size)
    model = build_model(replace(recipe.model, vocab_size=tokenizer.get_vocab_size()))
    size = model.config.image_size
    return model, Processor(tokenizer, size, max_words=data.max_words, max_tokens=data.max_tokens), None


def say(lines: Sequence[str]) -> None:
    """Shows lines on the first rank's screen."""
    if lines and distributed.rank() == 0:
        print(*lines, sep="\n", file=sys.stderr)
