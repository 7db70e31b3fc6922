"""The data that tasks learn from: images with captions, or examples with one or two images, a text and a truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

from albef.batches import Batch, PairBatch
from albef.data.augment import TrainTransform
from albef.data.broken import BrokenImage
from albef.data.examples import Example, ExampleSource, Kind, open_examples
from albef.data.loader import StepBatches, make_loader, read_sample
from albef.data.processor import Processor
from albef.data.sources import Source, captions_of, open_sources
from albef.data.training_set import CachedSet, Collate, Encode, TrainingSet, caption_batch
from albef.errors import AlbefValueError
from albef.recipe import Recipe

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

    def batches(self, processor: Processor, transform: TrainTransform, order: StepBatches) -> Iterator[PairBatch]:
        training = TrainingSet(self.source, processor, transform, self.recipe.seed)
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

    def batches(self, processor: Processor, transform: TrainTransform, order: StepBatches) -> Iterator[Batch]:
        for index in range(len(self.source)):
            self.check(self.source[index])
        training = TrainingSet(self.source, processor, transform, self.recipe.seed)
        collate = Collate(self.encode_with(processor))
        return iter(make_loader(training, order, collate, self.recipe.data.workers))


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
