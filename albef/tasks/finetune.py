"""What the tasks share that learn from examples: one or two images, a text, a truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from albef import distributed
from albef.data.augment import TrainTransform
from albef.data.example_sets import CachedExamples, Encode, ExampleCollate, ExampleSet, read_example, read_examples
from albef.data.examples import Example, ExampleSource, Kind, open_examples
from albef.data.processor import Processor
from albef.errors import AlbefValueError
from albef.tasks.learner import Learner


class FineTune(Learner):
    """A task on examples of one `kind`; it says how texts and truths become tensors (`encoder`)."""

    kind: Kind

    def encoder(self) -> Encode:
        """A function of its own: it is sent to the loader's workers, which need no model."""
        raise NotImplementedError

    def check(self, example: Example) -> None:
        """ValueError for a truth that can't be learnt from: it should end the run before it begins."""
        raise NotImplementedError

    def open(self, paths: Sequence[str]) -> ExampleSource:
        data = self.recipe.data
        return open_examples(self.kind, paths, data.image_root, data.vg_root)

    def probe(self, source: ExampleSource) -> None:
        read_example(source, 0)

    def texts(self) -> Iterator[str]:
        for index in range(len(self.source)):
            example = self.source[index]
            yield from (example.text, *example.answers)

    def in_memory(self) -> CachedExamples:
        size = self.recipe.data.cache_size
        cached = CachedExamples(self.source, self.processor, (size, size), self.encoder())
        for example in cached.examples:
            self.check(example)
        return cached

    def one_by_one(self, transform: TrainTransform) -> tuple[ExampleSet, ExampleCollate]:
        for index in range(len(self.source)):
            self.check(self.source[index])
        return ExampleSet(self.source, self.processor, transform, self.recipe.seed), ExampleCollate(self.encoder())


def in_batches(
    source: ExampleSource, processor: Processor, batch_size: int, tick: Callable[[int], None] | None = None
) -> Iterator[tuple[list[Example], Tensor]]:
    """This rank's share of the examples with their normalised pixels [n, P, 3, H, W]; each example once over all ranks.

    Unreadable images are left out with a warning. `tick` is told of every example done.
    """
    own = range(distributed.rank(), len(source), distributed.world_size())
    for start in range(0, len(own), batch_size):
        indices = own[start : start + batch_size]
        examples, pixels = read_examples(source, indices, processor)
        if examples:
            yield examples, processor.normalise(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        if tick:
            tick(len(indices))


def gather_results(own: Sequence[tuple[str | int, Any]]) -> dict[str | int, Any]:
    """Results of all ranks by the key of their example. ValueError if there are none, or two with one key."""
    rows = [row for part in distributed.gather_objects(list(own)) for row in part]
    if not rows:
        raise AlbefValueError("none of the examples could be read; check the paths and image_root")
    found = dict(rows)
    if len(found) < len(rows):
        twice = next(key for key, count in Counter(key for key, _ in rows).items() if count > 1)
        raise AlbefValueError(
            f"two examples have the id {twice!r}, and only one could be counted; evaluate the files one by one, or "
            "give each question or pair an id of its own"
        )
    return found
