"""Batches of examples for training and evaluation.

Images follow the same rules as in `loader`; the task's own function makes tensors of texts and truths. A batch has B
examples of P images each, H x W pixels.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from albef.data.augment import TrainTransform
from albef.data.broken import Broken, BrokenCounter, BrokenImage, listing
from albef.data.images import open_image
from albef.data.loader import Pair, read_all, read_or_replace, readable_of
from albef.data.processor import Processor
from albef.data.progress import tracked
from albef.data.records import Example, ExampleSource
from albef.errors import AlbefValueError

if TYPE_CHECKING:
    from albef.batches import Inputs

Batch = TypeVar("Batch", bound="Inputs")
Encode = Callable[[Tensor, Sequence[Example]], Batch]  # a batch of pixels, texts and truths, the task's own


def read_example(source: ExampleSource, index: int) -> tuple[Example, list[Image.Image]]:
    """Returns an example without its images, and the images decoded; BrokenImage when one cannot be read.

    If the example has no `size`, it gets that of its first image.
    """
    example = source[index]
    opened = [_open(image, example.name) for image in example.images]
    size = example.size or (opened[0].height, opened[0].width)
    return replace(example, images=(), size=size), opened


def _open(image: bytes | Path, name: str) -> Image.Image:
    return open_image(image, name if isinstance(image, bytes) else None)  # a file is named by its path


def read_examples(
    source: ExampleSource, indices: Sequence[int], processor: Processor, counter: BrokenCounter | None = None
) -> tuple[list[Example], Tensor]:
    """Returns examples without their images, and their pixels uint8 [n, P, 3, H, W]; see `readable_of`."""

    def read(index: int) -> tuple[Example, Tensor]:
        example, images = read_example(source, index)
        return example, torch.stack([processor.resize(image) for image in images])

    found = readable_of(read, indices, counter)
    empty = torch.empty(0, 1, 3, *processor.image_size, dtype=torch.uint8)
    return [example for example, _ in found], torch.stack([pixels for _, pixels in found]) if found else empty


class ExampleSet(Dataset[dict[str, Any]]):
    """Examples whose images are augmented, each by itself; without a `transform` they are only resized.

    An example with an image that cannot be read is replaced by another one, drawn from the sample's own random
    numbers, and reported under "broken".
    """

    def __init__(
        self, source: ExampleSource, processor: Processor, transform: TrainTransform | None = None, seed: int = 0
    ) -> None:
        self.source, self.processor, self.transform, self.seed = source, processor, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, pair: Pair) -> dict[str, Any]:
        """Gives `example` without images, `pixel_values` uint8 [P, 3, H, W] and `broken` [(name, reason)]."""
        rng = np.random.default_rng([self.seed, *pair])
        read = functools.partial(self._read, rng=rng)
        (example, pixels), broken = read_or_replace(read, pair[1], len(self.source), rng)
        return {"example": example, "pixel_values": pixels, "broken": broken}

    def _read(self, index: int, rng: np.random.Generator) -> tuple[Example, Tensor]:
        example = self.source[index]
        pixels = [self._pixels(image, example.name, rng) for image in example.images]
        return replace(example, images=()), torch.stack(pixels)

    def _pixels(self, image: bytes | Path, name: str, rng: np.random.Generator) -> Tensor:
        if self.transform is None:
            return self.processor.resize(_open(image, name))
        return self.transform.read(image, rng, name if isinstance(image, bytes) else None)


class ExampleCollate(Generic[Batch]):
    """Makes a batch of samples of an ExampleSet. `encode` is sent to loader workers, so it should hold little."""

    def __init__(self, encode: Encode[Batch]) -> None:
        self.encode = encode

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """Gives what `encode` makes of pixels uint8 [B, 3, H, W], or [B, 2, 3, H, W] for pairs, with `broken`."""
        pixels = _without_ones(torch.stack([sample["pixel_values"] for sample in samples]))
        batch = self.encode(pixels, [sample["example"] for sample in samples])
        batch["broken"] = [entry for sample in samples for entry in sample["broken"]]
        return batch


class CachedExamples(Generic[Batch]):
    """Examples whose images fit into memory: each image is decoded and resized once, however many examples have it.

    pixels      the N different images, uint8 [N, 3, H, W], bicubic at `image_size` (height, width), not augmented
    examples    the examples that could be read, without their images
    broken      the images that could not be read; examples that have one are left out
    """

    def __init__(
        self, source: ExampleSource, processor: Processor, image_size: tuple[int, int], encode: Encode[Batch]
    ) -> None:
        self.encode, self.broken = encode, Broken()
        images, examples, rows = _distinct(source)
        processor = replace(processor, image_size=image_size)
        self.pixels = torch.empty(len(images), 3, *image_size, dtype=torch.uint8)
        readable = np.ones(len(images), dtype=bool)
        for row, found in enumerate(read_all(lambda row: processor.resize(_open(*images[row])), len(images))):
            if isinstance(found, BrokenImage):
                self.broken.append((found.name, found.reason))
                readable[row] = False
            else:
                self.pixels[row] = found
        kept = readable[rows].all(1)  # [examples]
        self.examples = [example for example, keep in zip(examples, kept, strict=True) if keep]
        self.rows = torch.from_numpy(rows[kept])  # [examples, P]
        if not self.examples:
            raise AlbefValueError(
                f"none of {len(examples)} examples could be read, {listing(self.broken)}; check the data"
            )

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, pairs: Sequence[Pair]) -> Batch:
        """Gives a batch as ExampleCollate does, with unaugmented images. An index counts the readable examples."""
        indices = [index for _, index in pairs]
        pixels = _without_ones(self.pixels[self.rows[indices]])
        batch = self.encode(pixels, [self.examples[index] for index in indices])
        batch["broken"] = []
        return batch


def _distinct(source: ExampleSource) -> tuple[list[tuple[bytes | Path, str]], list[Example], np.ndarray]:
    """Gives the different images with their names, the examples without images, and the numbers [examples, P] of the
    images that each had."""
    numbers: dict[bytes | Path, int] = {}
    names: list[str] = []
    examples, rows = [], []
    for index in tracked(range(len(source)), len(source), "reading examples"):
        example = source[index]
        for image in example.images:
            if numbers.setdefault(image, len(numbers)) == len(names):
                names.append(example.name)
        rows.append([numbers[image] for image in example.images])
        examples.append(replace(example, images=()))
    return list(zip(numbers, names, strict=True)), examples, np.array(rows)


def _without_ones(pixels: Tensor) -> Tensor:
    """Turns [B, P, 3, H, W] into [B, 3, H, W] where P is 1."""
    return pixels[:, 0] if pixels.shape[1] == 1 else pixels
