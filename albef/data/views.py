"""Views of images as the frozen parts of a model see them: made once, kept on the disk, drawn from in training.

A folder of views holds `features.npy`, float16 [N, V, C, h, w], and `read.npy`, which says what images could be read.
"""

# N images, V views of each, [C, h, w] what the frozen parts make of one

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albef.data.augment import TrainTransform
from albef.data.broken import BrokenImage
from albef.data.fingerprint import fingerprint
from albef.data.images import open_image
from albef.data.loader import name_of, read_record
from albef.data.processor import Processor
from albef.data.progress import tracked, with_bar
from albef.data.records import THREADS, Records
from albef.data.training_set import TrainingSet, image_key
from albef.errors import AlbefRuntimeError
from albef.files import sync_folder, write_atomically

FEATURES, PARTIAL, READ, CONTENT = "features.npy", "features.partial.npy", "read.npy", "views.json"
AT_ONCE = 64  # images whose features may wait to be written
PATIENCE = 10.0  # seconds of work that a crash of the machine may cost
Encode = Callable[[Tensor], Tensor]


class Views:
    """The views of all images of a source, in a folder of their own under `folder`, whose name tells them from others.
    An image that several records or examples have is one.

    `transform` makes the views but the first, which is the whole image; `shape` is [C, h, w] of the features, and
    `weights` what tells the frozen parts from others. A view depends on nothing else, so all runs share them.
    """

    def __init__(
        self,
        source: Records[Any],
        processor: Processor,
        transform: TrainTransform,
        count: int,
        shape: tuple[int, int, int],
        weights: str,
        folder: Path,
    ) -> None:
        self.source, self.processor, self.transform, self.count = source, processor, transform, count
        self.rows, self.places = _images_of(source)
        self.shape = (len(self.places), count, *shape)
        self.content = {
            "images": _digest_of_images(source, self.places),
            "weights": weights,
            "shape": self.shape,
            "processor": [processor.image_size, processor.mean, processor.std],
            "views": [transform.scale, transform.flip, transform.augment and vars(transform.augment)],
        }
        name = hashlib.sha256(json.dumps(self.content).encode()).hexdigest()[:16]
        self.folder = folder / name

    @property
    def complete(self) -> bool:
        return (self.folder / FEATURES).is_file()

    @property
    def gigabytes(self) -> float:
        return float(np.prod(self.shape, dtype=np.float64)) * 2 / 1e9

    def begin(self) -> None:
        """Makes the empty files, unless a run that ended has left some. AlbefRuntimeError without room for them."""
        if self.folder.is_dir():
            return
        aside = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
        aside.mkdir(parents=True)
        try:
            self._check_room(shutil.disk_usage(aside).free / 1e9)
            write_atomically(aside / CONTENT, json.dumps(self.content, indent=1) + "\n")
            np.lib.format.open_memmap(aside / READ, mode="w+", dtype=np.bool_, shape=self.shape[:1])
            np.lib.format.open_memmap(aside / PARTIAL, mode="w+", dtype=np.float16, shape=self.shape)
            os.rename(aside, self.folder)
        except OSError:
            if not self.folder.is_dir():  # which another run may have made meanwhile
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _check_room(self, free: float) -> None:
        if free < self.gigabytes:
            raise AlbefRuntimeError(
                f"{self.folder}: {self.count} views of {len(self.places):,} images take {self.gigabytes:.1f} GB, but "
                f"{free:.1f} GB are free; give fewer (--data.views), or a folder on another disk (--data.cache)"
            )

    def fill(self, encode: Encode, rank: int = 0, world: int = 1) -> None:
        """Makes the views that are still lacking; of several ranks each makes its share.

        `encode` turns uint8 pixels [B, 3, H, W] into features [B, C, h, w].
        """
        features: NDArray[np.float16] = np.load(self.folder / PARTIAL, mmap_mode="r+")
        read: NDArray[np.bool_] = np.load(self.folder / READ, mmap_mode="r+")
        lacking = np.flatnonzero(~read)[rank::world].tolist()

        def work(advance: Callable[[int], None]) -> None:
            saved, unsaved = time.monotonic(), []
            for row, found in self._encoded(lacking, encode):
                if found is not None:
                    features[row] = found
                    unsaved.append(row)
                if time.monotonic() - saved > PATIENCE:
                    _save(features, read, unsaved)
                    saved, unsaved = time.monotonic(), []
                advance(1)
            _save(features, read, unsaved)

        threads = torch.get_num_threads()
        try:
            with_bar(f"views of {len(lacking):,} images", len(lacking), work)
        finally:
            torch.set_num_threads(threads)

    def finish(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # another run has finished the same views
            os.replace(self.folder / PARTIAL, self.folder / FEATURES)
        sync_folder(self.folder)

    def _encoded(self, indices: Sequence[int], encode: Encode) -> Iterator[tuple[int, NDArray[np.float16] | None]]:
        """Each index and its features [V, C, h, w], None for an image that cannot be read.

        Small convolutions gain more from several images at a time than from several threads for one.
        """
        with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for start in range(0, len(indices), AT_ONCE):
                rows = indices[start : start + AT_ONCE]
                yield from zip(rows, pool.map(functools.partial(self._encode, encode), rows), strict=True)

    def _encode(self, encode: Encode, number: int) -> NDArray[np.float16] | None:
        index, place = self.places[number]
        try:
            record = read_record(self.source, index)
            image = open_image(record.images[place], name_of(record, record.images[place]))
        except BrokenImage:
            return None  # named when it is drawn
        others = [self.transform(image, np.random.default_rng([view, number])) for view in range(1, self.count)]
        with torch.no_grad():  # which threads know each for itself
            found = encode(torch.stack([self.processor.resize(image), *others]))
        return found.to("cpu", torch.float16).numpy()


class ViewSet(TrainingSet):
    """Samples with features of one view of each image as `pixel_values`, float16 [P, C, h, w].

    Which view it is, and whether its map is mirrored (every other one, with `flip`), depends on seed, epoch and index.
    The last `folded` channels are 2 x 2 places of a map each, whose columns change their places too.
    """

    def __init__(self, views: Views, seed: int = 0, flip: bool = True, folded: int = 0) -> None:
        super().__init__(views.source, views.processor, views.transform, seed)
        self.rows, self.folder, self.flip, self.folded = views.rows, views.folder, flip, folded

    def _read(self, index: int, rng: np.random.Generator) -> tuple[Any, Tensor]:
        record = read_record(self.source, index)
        for image, number in zip(record.images, self.rows[index], strict=True):
            if not _mapped(self.folder / READ)[number]:
                open_image(image, name_of(record, image))  # says what is wrong with it
                reason = "could not be read when views were made"
                raise BrokenImage(record.name, reason, f"delete {self.folder} if it can be now")
        return record.without_images(), torch.stack([self._drawn(number, rng) for number in self.rows[index]])

    def _drawn(self, number: int, rng: np.random.Generator) -> Tensor:
        found = _mapped(self.folder / FEATURES)[number]
        features = torch.from_numpy(found[rng.integers(len(found))].copy())
        return self._mirrored(features) if self.flip and rng.random() < 0.5 else features

    def _mirrored(self, features: Tensor) -> Tensor:
        features = features.flip(-1)
        if self.folded:
            features[-self.folded :] = features[-self.folded :].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        return features


@functools.lru_cache(maxsize=8)
def _mapped(path: Path) -> NDArray[Any]:
    """A file in memory that all processes share; each maps it for itself."""
    return np.load(path, mmap_mode="r")


def _save(features: NDArray[np.float16], read: NDArray[np.bool_], rows: list[int]) -> None:
    """First the features, then that they are there."""
    if rows:
        features.flush()  # type: ignore[attr-defined]
        read[rows] = True
        read.flush()  # type: ignore[attr-defined]


def _images_of(source: Records[Any]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Numbers of the different images of each record; and the record of each image, and its place there."""
    rows: list[list[int]] = []
    numbers: dict[str | bytes, int] = {}
    places: list[tuple[int, int]] = []
    for index in tracked(range(len(source)), len(source), "looking for images"):
        try:
            keys = [image_key(image) for image in read_record(source, index).images]
        except BrokenImage:  # named when it is drawn
            keys = []
        for place, key in enumerate(keys):
            if numbers.setdefault(key, len(places)) == len(places):
                places.append((index, place))
        rows.append([numbers[key] for key in keys])
    return rows, places


def _digest_of_images(source: Records[Any], places: list[tuple[int, int]], samples: int = 32) -> list[str]:
    """Digests of the names of images, and of the bytes of evenly spaced ones."""
    digest = hashlib.sha256()
    for index, place in places[:: max(1, len(places) // samples)]:
        image = source[index].images[place]
        with contextlib.suppress(OSError):  # named when it is drawn
            digest.update(image if isinstance(image, bytes) else Path(image).read_bytes())
    return [fingerprint(source)["names of images"], digest.hexdigest()[:16]]
