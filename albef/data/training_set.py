"""Samples and batches of records, which are images with captions, and of examples, which are a task's images and texts.

A batch has B samples, of P images of H x W pixels each, and texts of L tokens. image_id and text_id are 63-bit hashes:
image_id is equal for records of the same image, text_id for captions that clean to the same words.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from albef.data.augment import TrainTransform
from albef.data.broken import Broken, BrokenImage, listing
from albef.data.images import open_image
from albef.data.loader import Pair, attempt, name_of, read_all, read_or_replace, read_record
from albef.data.processor import Processor
from albef.data.records import Record, Records
from albef.data.text import clean_caption
from albef.errors import AlbefValueError

if TYPE_CHECKING:
    from albef.batches import Inputs, PairBatch

Batch = TypeVar("Batch", bound="Inputs")
Encode = Callable[[Tensor, Sequence[Any]], Batch]
"""Makes a batch of pixels and of the records or examples that they belong to."""


def stable_id(text: str) -> int:
    """Returns a 63-bit hash of a text, the same on every machine and in every run."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def caption_draws(seed: int, pairs: Sequence[Pair]) -> NDArray[np.uint64]:
    """Draws evenly spread numbers uint64 [B], by splitmix64. The remainder by the number of captions chooses one."""
    table = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
    value = np.full(len(table), seed, dtype=np.uint64)
    for part in (table[:, 0], table[:, 1]):
        value = (value ^ part) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value


def one_caption_each(records: Sequence[Any], seed: int, pairs: Sequence[Pair]) -> Sequence[Any]:
    """The records, each with one of its captions, drawn for its pair; examples as they are."""
    if not isinstance(records[0], Record):
        return records
    draws = zip(records, caption_draws(seed, pairs).tolist(), strict=True)
    return [replace(record, captions=[record.captions[draw % len(record.captions)]]) for record, draw in draws]


def caption_batch(
    processor: Processor, max_tokens: int | None, pixels: Tensor, records: Sequence[Record]
) -> "PairBatch":
    """Gives the pixels; first captions as `input_ids` and `attention_mask` [B, L], cleaned and cut to `max_tokens` (by
    default the processor's); and `image_id` and `text_id` [B]; all but the pixels int64."""
    captions = [clean_caption(record.captions[0], processor.max_words) for record in records]
    words = processor.texts(captions, max_tokens, clean=False)
    return {
        "pixel_values": pixels,
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "image_id": torch.tensor([stable_id(record.image_id) for record in records]),
        "text_id": torch.tensor(list(map(stable_id, captions))),
    }


class TrainingSet(Dataset[dict[str, Any]]):
    """Records, with a randomly chosen caption each, or examples. Images are augmented, each by itself; without a
    `transform` they are only resized.

    One with an image that cannot be read is replaced by another, drawn from the sample's own random numbers, and
    reported under "broken".
    """

    def __init__(
        self, source: Records[Any], processor: Processor, transform: TrainTransform | None = None, seed: int = 0
    ) -> None:
        self.source, self.processor, self.transform, self.seed = source, processor, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, pair: Pair) -> dict[str, Any]:
        """Gives `record` without images, `pixel_values` uint8 [P, 3, H, W] and `broken` [(name, reason)]."""
        rng = np.random.default_rng([self.seed, *pair])
        read = functools.partial(self._read, rng=rng)
        (record, pixels), broken = read_or_replace(read, pair[1], len(self.source), rng)
        (record,) = one_caption_each([record], self.seed, [pair])
        return {"record": record, "pixel_values": pixels, "broken": broken}

    def _read(self, index: int, rng: np.random.Generator) -> tuple[Any, Tensor]:
        record = read_record(self.source, index)
        pixels = [self._pixels(image, name_of(record, image), rng) for image in record.images]
        return record.without_images(), torch.stack(pixels)

    def _pixels(self, image: bytes | Path, name: str | None, rng: np.random.Generator) -> Tensor:
        if self.transform is None:
            return self.processor.resize(open_image(image, name))
        return self.transform.read(image, rng, name)


class Collate(Generic[Batch]):
    """Makes a batch of samples of a TrainingSet. `encode` is sent to loader workers, so it should hold little."""

    def __init__(self, encode: Encode[Batch]) -> None:
        self.encode = encode

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """Gives what `encode` makes of pixels uint8 [B, 3, H, W], or [B, 2, 3, H, W] for pairs, with `broken`."""
        # default_collate stacks in the memory that a worker shares with the process that trains.
        pixels = default_collate([sample["pixel_values"] for sample in samples])
        batch = self.encode(_without_ones(pixels), [sample["record"] for sample in samples])
        batch["broken"] = [entry for sample in samples for entry in sample["broken"]]
        return batch


class CachedSet(Generic[Batch]):
    """Records or examples whose images fit into memory: each image is decoded and resized once, however many have it.

    pixels      the N different images that could be read, uint8 [N, 3, H, W], bicubic at `image_size` (height, width),
                not augmented
    records     the records or examples that could be read, without their images
    broken      what could not be read, and is never drawn
    """

    def __init__(
        self,
        source: Records[Any],
        processor: Processor,
        image_size: tuple[int, int],
        encode: Encode[Batch],
        seed: int = 0,
    ) -> None:
        self.encode, self.seed, self.broken = encode, seed, Broken()
        read = functools.partial(_read_new, source, replace(processor, image_size=image_size), {})
        pixels: list[Tensor] = []
        rows: dict[_Key, int] = {}  # of the images that could be read
        found: list[tuple[Any, list[_Key]]] = []
        for one in read_all(read, len(source)):
            if isinstance(one, BrokenImage):
                self.broken.append((one.name, one.reason))
                continue
            found.append(one[:2])
            for key, image in one[2].items():
                if isinstance(image, BrokenImage):
                    self.broken.append((image.name, image.reason))
                else:
                    rows[key] = len(pixels)
                    pixels.append(image)
        whole = [(record, [rows[key] for key in keys]) for record, keys in found if rows.keys() >= set(keys)]
        if not whole:
            what = f"none of {len(source)} records could be read"
            raise AlbefValueError(f"{what}, {listing(self.broken)}; check the data")
        self.pixels, self.records = torch.stack(pixels), [record for record, _ in whole]
        self.rows = torch.tensor([own for _, own in whole])  # [records, P]

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, pairs: Sequence[Pair]) -> Batch:
        """Gives a batch as Collate does, with unaugmented images. An index counts the readable records."""
        indices = [index for _, index in pairs]
        records = one_caption_each([self.records[index] for index in indices], self.seed, pairs)
        batch = self.encode(_without_ones(self.pixels[self.rows[indices]]), records)
        batch["broken"] = []
        return batch


_Key = str | bytes


def _read_new(
    source: Records[Any], processor: Processor, met_first: dict[_Key, int], index: int
) -> tuple[Any, list[_Key], dict[_Key, Tensor | BrokenImage]]:
    """A record without its images, the key of each, and those images resized that no record in `met_first` had."""
    record = read_record(source, index)
    images = [(image_key(image), image) for image in record.images]
    new = {key: image for key, image in images if met_first.setdefault(key, index) == index}

    def resized(image: bytes | Path) -> Tensor:
        return processor.resize(open_image(image, name_of(record, image)))

    return record.without_images(), [key for key, _ in images], {key: attempt(resized, new[key]) for key in new}


def image_key(image: bytes | Path) -> _Key:
    """Tells images apart, in little room."""
    return hashlib.blake2b(image, digest_size=16).digest() if isinstance(image, bytes) else str(image)


def _without_ones(pixels: Tensor) -> Tensor:
    """Turns [B, P, 3, H, W] into [B, 3, H, W] where P is 1."""
    return pixels[:, 0] if pixels.shape[1] == 1 else pixels
