"""The data that tasks learn from: images with captions, or examples with one or two images, a text and a truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from albef import distributed
from albef.batches import Batch, PairBatch
from albef.data.augment import TrainTransform
from albef.data.broken import BrokenImage
from albef.data.examples import Example, ExampleSource, Kind, open_examples
from albef.data.loader import StepBatches, make_loader, read_sample
from albef.data.processor import Processor
from albef.data.records import Records
from albef.data.sources import Source, captions_of, open_sources
from albef.data.training_set import CachedSet, Collate, Encode, TrainingSet, caption_batch
from albef.data.views import Views, ViewSet
from albef.errors import AlbefValueError
from albef.files import cache_folder
from albef.models.backbone import Backbone
from albef.recipe import Recipe
from albef.tasks.begin import say

Opened = TypeVar("Opened", Source, ExampleSource)
MOST_TEXTS = 200_000  # records whose captions are enough to learn a vocabulary from


class Pairs:
    """Gives images with captions, as pre-training and retrieval learn from them."""

    def __init__(self, source: Source, recipe: Recipe) -> None:
        self.source, self.recipe = source, recipe

    def __len__(self) -> int:
        return len(self.source)

    def texts(self) -> Iterator[str]:
        """Yields the captions of all records, or of evenly spaced ones where there are over 200,000."""
        step = max(1, len(self.source) // MOST_TEXTS)
        return captions_of(self.source, range(0, len(self.source), step))

    def in_memory(self, processor: Processor) -> CachedSet[PairBatch]:
        size = self.recipe.data.cache_size
        return CachedSet(self.source, processor, (size, size), self._encode_with(processor), self.recipe.seed)

    def batches(
        self, processor: Processor, transform: TrainTransform, order: StepBatches, model: Backbone
    ) -> Iterator[PairBatch]:
        training = _training_set(self.source, self.recipe, processor, transform, model)
        collate = Collate(self._encode_with(processor))
        return iter(make_loader(training, order, collate, self.recipe.data.workers))

    def _encode_with(self, processor: Processor) -> Encode[PairBatch]:
        return partial(caption_batch, processor, self.recipe.data.max_tokens)


class Examples(Generic[Batch]):
    """Gives examples of one kind; `encode_with(processor)` returns the function that makes a batch of their pixels,
    texts and truths.

    That function is sent to the loader's workers, so it should hold no model. `check` raises ValueError for an example
    that cannot be learnt from, which ends the run before its first step.
    """

    def __init__(
        self,
        source: ExampleSource,
        recipe: Recipe,
        encode_with: Callable[[Processor], Encode[Batch]],
        check: Callable[[Example], object],
    ) -> None:
        self.source, self.recipe, self.encode_with, self.check = source, recipe, encode_with, check

    def __len__(self) -> int:
        return len(self.source)

    def texts(self) -> Iterator[str]:
        for index in range(len(self.source)):
            example = self.source[index]
            yield from (example.text, *example.answers)

    def in_memory(self, processor: Processor) -> CachedSet[Batch]:
        size = self.recipe.data.cache_size
        cached = CachedSet(self.source, processor, (size, size), self.encode_with(processor))
        for example in cached.records:
            self.check(example)
        return cached

    def batches(
        self, processor: Processor, transform: TrainTransform, order: StepBatches, model: Backbone
    ) -> Iterator[Batch]:
        for index in range(len(self.source)):
            self.check(self.source[index])
        training = _training_set(self.source, self.recipe, processor, transform, model)
        collate = Collate(self.encode_with(processor))
        return iter(make_loader(training, order, collate, self.recipe.data.workers))


def _training_set(
    source: Records[Any], recipe: Recipe, processor: Processor, transform: TrainTransform, model: Backbone
) -> Dataset[dict[str, Any]]:
    """The samples, with images or with views of them. Views that are lacking are made now, by all ranks together."""
    data, trunk = recipe.data, model.visual_encoder.trunk
    if data.augment != "cached":
        return TrainingSet(source, processor, transform, recipe.seed)
    if trunk is None or not trunk.kept:
        raise AlbefValueError(
            "data.augment is cached, but no part of the image encoder is frozen; use randaugment, or a model with a "
            "trunk that is not wholly trained (model.trunk_trained below 9)"
        )
    shape = trunk.frozen_shape
    folder = Path(data.cache).expanduser() if data.cache else cache_folder() / "views"
    views = Views(source, processor, transform, data.views, shape, trunk.digest(), folder)
    if not views.complete:
        say([f"views of {views.shape[0]:,} images, {views.gigabytes:.1f} GB: {views.folder}"])
        _make(views, processor, model)
    return ViewSet(views, recipe.seed, data.flip, trunk.folded_among_kept)


def _make(views: Views, processor: Processor, model: Backbone) -> None:
    def encode(pixels: Tensor) -> Tensor:
        return model.frozen_features(processor.normalise(pixels.to(model.device)))

    if distributed.rank() == 0:
        views.begin()
    distributed.wait()
    views.fill(encode, distributed.rank(), distributed.world_size())
    distributed.wait()
    if distributed.rank() == 0:
        views.finish()
    distributed.wait()


def open_pairs(recipe: Recipe) -> tuple[Source, Source | None]:
    """Opens the training source and, if there is one, that of validation. Raises ValueError if the first image of
    validation cannot be read: a wrong path fails now and not in hours."""
    return _open(recipe, lambda paths: open_sources(paths, recipe.data.image_root), read_sample)


def open_both(kind: Kind, recipe: Recipe) -> tuple[ExampleSource, ExampleSource | None]:
    """Opens both sources as `open_pairs` does, for examples of a kind."""
    data = recipe.data
    return _open(recipe, lambda paths: open_examples(kind, paths, data.image_root, data.vg_root), read_sample)


def _open(
    recipe: Recipe, opened: Callable[[Sequence[str]], Opened], read: Callable[[Opened, int], object]
) -> tuple[Opened, Opened | None]:
    training = opened(recipe.data.train)
    validation = opened(recipe.data.validation) if recipe.data.validation else None
    try:
        if validation is not None:
            read(validation, 0)
    except BrokenImage as error:
        lists = " ".join(recipe.data.validation)
        raise AlbefValueError(f"{lists}: the image of its first record cannot be read: {error}") from error
    return training, validation
