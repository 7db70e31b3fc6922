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
from torch.utils.data import Dataset

from albef.data.augment import TrainTransform
from albef.data.broken import BrokenImage
from albef.data.fingerprint import fingerprint
from albef.data.loader import Pair, caption_draws, read_or_replace, read_record, read_sample, stable_id
from albef.data.processor import Processor
from albef.data.progress import with_bar
from albef.data.records import THREADS, Record, Source
from albef.data.text import clean_caption
from albef.errors import AlbefRuntimeError
from albef.files import sync_folder, write_atomically

FEATURES, PARTIAL, READ, CONTENT = "features.npy", "features.partial.npy", "read.npy", "views.json"
AT_ONCE = 64  # images whose features may wait to be written
PATIENCE = 10.0  # seconds of work that a crash of the machine may cost
Encode = Callable[[Tensor], Tensor]


class Views:
    """The views of all images of a source, in a folder of their own under `folder`, whose name tells them from others.

    `transform` makes the views but the first, which is the whole image; `shape` is [C, h, w] of the features, and
    `weights` what tells the frozen parts from others. A view depends on nothing else, so all runs share them.
    """

    def __init__(
        self,
        source: Source,
        processor: Processor,
        transform: TrainTransform,
        count: int,
        shape: tuple[int, int, int],
        weights: str,
        folder: Path,
    ) -> None:
        self.source, self.processor, self.transform, self.count = source, processor, transform, count
        self.shape = (len(source), count, *shape)
        self.content = {
            "images": _digest_of_images(source),
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
                f"{self.folder}: {self.count} views of {len(self.source):,} images take {self.gigabytes:.1f} GB, but "
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

    def _encode(self, encode: Encode, index: int) -> NDArray[np.float16] | None:
        try:
            _, image = read_sample(self.source, index)
        except BrokenImage:
            return None  # named when it is drawn
        others = [self.transform(image, np.random.default_rng([view, index])) for view in range(1, self.count)]
        with torch.no_grad():  # which threads know each for itself
            found = encode(torch.stack([self.processor.resize(image), *others]))
        return found.to("cpu", torch.float16).numpy()


class ViewSet(Dataset[dict[str, Any]]):
    """Samples as those of a `TrainingSet`, with features float16 [C, h, w] of one of the views as `pixel_values`.

    Which view it is, and whether its map is mirrored (every other one, with `flip`), depends on seed, epoch and index.
    The last `folded` channels are 2 x 2 places of a map each, whose columns change their places too.
    """

    def __init__(self, views: Views, seed: int = 0, flip: bool = True, folded: int = 0) -> None:
        self.source, self.processor, self.folder = views.source, views.processor, views.folder
        self.seed, self.flip, self.folded = seed, flip, folded

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, pair: Pair) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, *pair])
        draw = functools.partial(self._read, rng=rng)
        (record, features), broken = read_or_replace(draw, pair[1], len(self.source), rng)
        caption = record.captions[int(caption_draws(self.seed, [pair])[0] % np.uint64(len(record.captions)))]
        return {
            "pixel_values": features,
            "caption": caption,
            "image_id": stable_id(record.image_id),
            "text_id": stable_id(clean_caption(caption, self.processor.max_words)),
            "broken": broken,
        }

    def _read(self, index: int, rng: np.random.Generator) -> tuple[Record, Tensor]:
        record = read_record(self.source, index)
        if not _mapped(self.folder / READ)[index]:
            read_sample(self.source, index)  # says what is wrong with it
            raise BrokenImage(record.name, "could not be read when views were made", f"delete {self.folder} if it can")
        found = _mapped(self.folder / FEATURES)[index]
        features = torch.from_numpy(found[rng.integers(len(found))].copy())
        return record, self._mirrored(features) if self.flip and rng.random() < 0.5 else features

    def _mirrored(self, features: Tensor) -> Tensor:
        features = features.flip(-1)
        if self.folded:
            features[-self.folded :] = features[-self.folded :].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        return features


def cache_folder(folder: str | None) -> Path:
    """Where views are kept: in `folder`, or else in the user's cache folder."""
    return Path(folder or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "albef", "views")).expanduser()


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


def _digest_of_images(source: Source, samples: int = 32) -> list[str]:
    """Digests of the names of images, and of the bytes of evenly spaced ones."""
    digest = hashlib.sha256()
    for index in range(0, len(source), max(1, len(source) // samples)):
        try:
            image = source[index].image
            digest.update(image if isinstance(image, bytes) else Path(image).read_bytes())
        except (ValueError, OSError):  # named when it is drawn
            continue
    return [fingerprint(source)["names of images"], digest.hexdigest()[:16]]
