"""Goes through examples to measure a model on them: in batches, each example once over all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from albef import distributed
from albef.data.ahead import ahead
from albef.data.broken import BrokenCounter
from albef.data.examples import Example, ExampleSource
from albef.data.loader import read_examples
from albef.data.processor import Processor
from albef.errors import AlbefValueError

Result = TypeVar("Result")


def in_batches(
    source: ExampleSource,
    processor: Processor,
    batch_size: int,
    tick: Callable[[int], None] | None = None,
    device: torch.device | None = None,
    counter: BrokenCounter | None = None,
) -> Iterator[tuple[list[Example], Tensor]]:
    """Yields this rank's share of the examples with their normalised pixels [n, P, 3, H, W] on `device`. All ranks
    together go through each example once.

    Unreadable images are left out with a warning, and `counter` counts them. `tick` is called with the number of
    examples that were done since the last call.
    """
    own = range(distributed.rank(), len(source), distributed.world_size())
    parts = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    reading = ahead(read_examples(source, part, processor, counter) for part in parts)
    for part, (examples, pixels) in zip(parts, reading, strict=True):
        if examples:
            pixels = pixels.to(device)
            yield examples, processor.normalise(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        if tick:
            tick(len(part))


def gather_results(own: Sequence[tuple[str | int, Result]]) -> dict[str | int, Result]:
    """Returns the results of all ranks by the key of their example. Raises ValueError if there are no results, or two
    with the same key."""
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
