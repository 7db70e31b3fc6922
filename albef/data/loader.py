"""Samples and batches for training; each is a pure function of seed and step, so a run goes on exactly where it was.

A sample is asked for by its epoch and index. A batch has B samples of L tokens and H x W pixels. image_id and text_id
are 63-bit hashes: image_id is equal for records of the same image, text_id for captions that clean to the same words.
"""

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from albef.data.augment import TrainTransform
from albef.data.broken import Broken, BrokenCounter, BrokenImage, listing
from albef.data.forkserver import SERVER_OF
from albef.data.images import open_image
from albef.data.processor import Processor
from albef.data.progress import tracked
from albef.data.reading import is_passing
from albef.data.records import THREADS, Record, Source
from albef.data.text import clean_caption
from albef.errors import AlbefError, AlbefRuntimeError, AlbefValueError

if TYPE_CHECKING:
    from albef.batches import PairBatch

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Pair = tuple[int, int]  # epoch, index of the sample in its source
MAX_REPLACEMENTS = 20
NO_GUARD = (
    'a script must put what it does under `if __name__ == "__main__":`, since each of these processes reads it again; '
    "or load in one process (--data.workers 0)"
)


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


def read_sample(source: Source, index: int) -> tuple[Record, Image.Image]:
    """Returns a record and its decoded image; BrokenImage when one cannot be read, or there is no caption."""
    record = read_record(source, index)
    return record, open_image(record.image, record.name)


def read_record(source: Source, index: int) -> Record:
    """Returns a record that has a caption; BrokenImage when it cannot be read. Faults of the machine pass on."""
    try:
        record = source[index]
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and is_passing(error):
            raise
        raise BrokenImage(f"record {index}", str(error), "mend it or leave it out") from error
    if not record.captions:
        raise BrokenImage(record.name, "it has no caption", "add one or leave it out")
    return record


def read_images(
    source: Source, indices: Sequence[int], processor: Processor, counter: BrokenCounter | None = None
) -> tuple[list[Record], Tensor]:
    """Returns records without the bytes of their images, and their pixels uint8 [n, 3, H, W]; see `readable_of`."""
    found = readable_of(lambda index: _resized(source, processor, index), indices, counter)
    empty = torch.empty(0, 3, *processor.image_size, dtype=torch.uint8)
    return [record for record, _ in found], torch.stack([pixels for _, pixels in found]) if found else empty


def _resized(source: Source, processor: Processor, index: int) -> tuple[Record, Tensor]:
    """Returns a record without the bytes of its image, and its pixels uint8 [3, H, W]."""
    record, opened = read_sample(source, index)
    return dataclasses.replace(record, image=b""), processor.resize(opened)


def readable_of(
    read: Callable[[int], Item], indices: Sequence[int], counter: BrokenCounter | None = None
) -> list[Item]:
    """What `read` returns for the indices; where it raises BrokenImage they are left out, with a warning.

    A `counter` is told of both. RuntimeError as soon as its limit is exceeded.
    """
    found, broken = [], Broken()
    for item in _attempts(read, indices):
        if isinstance(item, BrokenImage):
            broken.append((item.name, item.reason))
        else:
            found.append(item)
    if counter:
        counter.add(broken, len(found))
        counter.check()
    if broken:
        warnings.warn(f"left out, because unreadable: {listing(broken)}", stacklevel=3)
    return found


def read_or_replace(
    read: Callable[[int], Item], index: int, size: int, rng: np.random.Generator
) -> tuple[Item, Broken]:
    """Returns what `read` returns for `index`; where it raises BrokenImage, for another index below `size`, by `rng`.

    Raises RuntimeError after MAX_REPLACEMENTS images that could not be read.
    """
    broken: Broken = []
    while len(broken) < MAX_REPLACEMENTS:
        try:
            return read(index), broken
        except BrokenImage as error:
            broken.append((error.name, error.reason))
            index = int(rng.integers(size))
    raise AlbefRuntimeError(f"{MAX_REPLACEMENTS} images in a row could not be read, {listing(broken)}; check the data")


class TrainingSet(Dataset[dict[str, Any]]):
    """Augmented images with a randomly chosen caption.

    An image that cannot be read is replaced by another one, drawn from the sample's own random numbers, and reported
    under "broken". `transform` defaults to the original's crop and flip at the processor's size.
    """

    def __init__(
        self, source: Source, processor: Processor, transform: TrainTransform | None = None, seed: int = 0
    ) -> None:
        self.source, self.processor, self.seed = source, processor, seed
        self.transform = transform or TrainTransform(processor.image_size)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, pair: Pair) -> dict[str, Any]:
        """Gives `pixel_values` uint8 [3, H, W], `caption` as it is written, the numbers `image_id` and `text_id`, and
        `broken` [(name, reason)]."""
        rng = np.random.default_rng([self.seed, *pair])
        (record, pixels), broken = read_or_replace(
            functools.partial(self._read, rng=rng), pair[1], len(self.source), rng
        )
        caption = record.captions[int(caption_draws(self.seed, [pair])[0] % np.uint64(len(record.captions)))]
        return {
            "pixel_values": pixels,
            "caption": caption,
            "image_id": stable_id(record.image_id),
            "text_id": stable_id(clean_caption(caption, self.processor.max_words)),
            "broken": broken,
        }

    def _read(self, index: int, rng: np.random.Generator) -> tuple[Record, Tensor]:
        record = read_record(self.source, index)
        return record, self.transform.read(record.image, rng, record.name)


class StepBatches:
    """Says which samples make up which step: lists of (epoch, index), from step `start` to `steps` - 1.

    Every epoch is a new permutation of the `size` samples; its last batch is dropped if it is incomplete. Each rank
    takes an equal slice of the global batch, so that the samples of a step don't depend on the number of ranks. Raises
    ValueError when the global `batch_size` exceeds `size` or doesn't divide by `world`.
    """

    def __init__(
        self, size: int, batch_size: int, steps: int, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if not 0 < batch_size <= size:
            raise AlbefValueError(
                f"batch_size {batch_size} must lie in 1..{size}, the number of samples; lower it or add data"
            )
        if batch_size % world or not 0 <= rank < world:
            raise AlbefValueError(
                f"batch_size {batch_size} must divide by the {world} ranks, and rank {rank} be one of them"
            )
        self.size, self.batch_size, self.steps, self.seed, self.start = size, batch_size, steps, seed, start
        self.rank, self.share = rank, batch_size // world
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[Pair]]:
        return map(self.batch, range(self.start, self.steps))

    def batch(self, step: int) -> list[Pair]:
        """Returns this rank's samples at `step`."""
        epoch, place = divmod(step, self.size // self.batch_size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.size)
        first = place * self.batch_size + self.rank * self.share
        return [(epoch, index) for index in self._order[first : first + self.share].tolist()]


class Collate:
    """Makes a batch of samples of a TrainingSet.

    Captions are cleaned and cut to `max_tokens`, by default the processor's.
    """

    def __init__(self, processor: Processor, max_tokens: int | None = None) -> None:
        self.processor, self.max_tokens = processor, max_tokens

    def __call__(self, samples: Sequence[dict[str, Any]]) -> "PairBatch":
        """Gives `pixel_values` uint8 [B, 3, H, W]; `input_ids` and `attention_mask` [B, L], `image_id` and `text_id`
        [B], all int64; and `broken`."""
        words = self.processor.texts([sample["caption"] for sample in samples], self.max_tokens)
        return {
            # default_collate stacks in the memory that a worker shares with the process that trains.
            "pixel_values": default_collate([sample["pixel_values"] for sample in samples]),
            "input_ids": words["input_ids"],
            "attention_mask": words["attention_mask"],
            "image_id": torch.tensor([sample["image_id"] for sample in samples]),
            "text_id": torch.tensor([sample["text_id"] for sample in samples]),
            "broken": [entry for sample in samples for entry in sample["broken"]],
        }


class CachedSet:
    """A source whose images fit into memory: they are decoded, resized and tokenised once, and come in whole batches.

    pixels      uint8 [N, 3, H, W], bicubic at `image_size` (height, width; default: the processor's), not augmented
    broken      the images that could not be read; they are not among the N, and never drawn
    """

    def __init__(
        self,
        source: Source,
        processor: Processor,
        image_size: tuple[int, int] | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        self.seed, self.broken = seed, Broken()
        processor = dataclasses.replace(processor, image_size=image_size or processor.image_size)
        self.pixels = torch.empty(len(source), 3, *processor.image_size, dtype=torch.uint8)
        image_ids: list[int] = []
        captions: list[list[str]] = []
        for found in read_all(lambda index: _resized(source, processor, index), len(source)):
            if isinstance(found, BrokenImage):
                self.broken.append((found.name, found.reason))
            else:
                record, self.pixels[len(captions)] = found
                image_ids.append(stable_id(record.image_id))
                captions.append(record.captions)
        if not captions:
            raise AlbefValueError(f"none of {len(source)} images could be read, {listing(self.broken)}; check the data")
        self.pixels = self.pixels[: len(captions)]
        self.image_ids = torch.tensor(image_ids)
        self._keep_captions(captions, processor, max_tokens)

    def _keep_captions(self, captions: list[list[str]], processor: Processor, max_tokens: int | None) -> None:
        counts = np.array([len(texts) for texts in captions])
        self.caption_counts, self.first_captions = counts, np.cumsum(counts) - counts
        texts = [clean_caption(text, processor.max_words) for own in captions for text in own]
        self.text_ids = torch.tensor([stable_id(text) for text in texts])
        self.tokens = processor.texts(texts, max_tokens, clean=False)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, pairs: Sequence[Pair]) -> "PairBatch":
        """Gives a batch as Collate does, with unaugmented images. An index counts the readable images from 0."""
        rows = np.array([index for _, index in pairs])
        draws = caption_draws(self.seed, pairs) % self.caption_counts[rows].astype(np.uint64)
        texts = torch.from_numpy(self.first_captions[rows] + draws.astype(np.int64))
        mask = self.tokens["attention_mask"][texts]
        length = int(mask.sum(1).max())
        return {
            "pixel_values": self.pixels[torch.from_numpy(rows)],
            "input_ids": self.tokens["input_ids"][texts, :length],
            "attention_mask": mask[:, :length],
            "image_id": self.image_ids[torch.from_numpy(rows)],
            "text_id": self.text_ids[texts],
            "broken": [],
        }


def read_all(read: Callable[[int], Item], count: int) -> Iterator[Item | BrokenImage]:
    """Yields what `read` returns for 0 .. count - 1, in order, or the BrokenImage that it raises, and draws a bar."""
    yield from tracked(_attempts(read, range(count)), count, "reading images")


def _attempts(read: Callable[[int], Item], indices: Sequence[int]) -> Iterator[Item | BrokenImage]:
    """Yields in order what `read` returns, or the BrokenImage that it raises; several are read at a time."""

    def attempt(index: int) -> Item | BrokenImage:
        try:
            return read(index)
        except BrokenImage as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(attempt, indices)


def make_loader(
    dataset: Dataset[Item], batches: StepBatches, collate: Callable[[list[Item]], Batch], workers: int = 0
) -> "_Loader[Batch]":
    """Yields batches in the order of `batches`, made in `workers` processes, or in this one if that is 0.

    Workers are forked from a clean server process, which is safe beside CUDA and threads. A script therefore needs the
    usual `if __name__ == "__main__":`. An AlbefError of a worker is raised here as it is.
    """
    return _Loader(
        _Guarded(dataset),
        batch_sampler=batches,
        collate_fn=functools.partial(_collated, collate),
        num_workers=workers,
        worker_init_fn=_start_worker,
        multiprocessing_context=_context() if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


class _Guarded(Dataset[Any]):
    """Hands out whole lists of samples, or in place of one the error that a user can mend.

    PyTorch would raise the error of a worker again with the worker's traceback inside the message.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, pairs: Sequence[Pair]) -> list[Any] | AlbefError:
        try:
            return [self.dataset[pair] for pair in pairs]
        except AlbefError as error:
            return error


def _collated(collate: Callable[[list[Item]], Batch], samples: list[Item] | AlbefError) -> Batch | AlbefError:
    if isinstance(samples, AlbefError):
        return samples
    try:
        return collate(samples)
    except AlbefError as error:
        return error


class _Loader(DataLoader[Batch]):
    """Raises a worker's AlbefError as it is, and says what a user can do where PyTorch says that a worker ended."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = 0
        try:
            for batch in super().__iter__():
                if isinstance(batch, AlbefError):
                    raise batch
                yield batch
                batches += 1
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            reason = "the machine may be out of memory: give fewer workers (--data.workers)" if batches else NO_GUARD
            raise AlbefRuntimeError(f"a process that loads images ended unexpectedly; {reason}") from error


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["albef.data.forkserver", "albef.data.loader"])
    os.environ[SERVER_OF] = str(os.getpid())
    forkserver.ensure_running()  # now, since other children of ours must not find that variable
    del os.environ[SERVER_OF]
    return context


def _start_worker(number: int) -> None:
    """Gives the worker one thread, since the cores have other workers, and leaves Ctrl-C to the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_with_parent() -> None:
    """Ends this worker with the process that trains.

    DataLoader watches only the server that forked the worker, and that server lives as long as its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
