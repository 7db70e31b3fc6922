"""Samples and batches for training; each is a pure function of seed and step, so a run goes on exactly where it was.

A sample is asked for by its epoch and index. An example has P images of H x W pixels; a record has one.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from albef.data.broken import Broken, BrokenCounter, BrokenImage, listing
from albef.data.forkserver import SERVER_OF
from albef.data.images import open_image
from albef.data.processor import Processor
from albef.data.progress import tracked
from albef.data.reading import is_passing
from albef.data.records import THREADS, Example, Read, Record, Records, Source
from albef.errors import AlbefError, AlbefRuntimeError, AlbefValueError

Item = TypeVar("Item")
Found = TypeVar("Found")
Batch = TypeVar("Batch")
Pair = tuple[int, int]  # epoch, index of the sample in its source
MAX_REPLACEMENTS = 20
NO_GUARD = (
    'a script must put what it does under `if __name__ == "__main__":`, since each of these processes reads it again; '
    "or load in one process (--data.workers 0)"
)


def read_record(source: Records[Read], index: int) -> Read:
    """Returns an example, or a record that has a caption; BrokenImage when it cannot be read.

    Faults of the machine pass on.
    """
    try:
        record = source[index]
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and is_passing(error):
            raise
        raise BrokenImage(f"record {index}", str(error), "mend it or leave it out") from error
    if isinstance(record, Record) and not record.captions:
        raise BrokenImage(record.name, "it has no caption", "add one or leave it out")
    return record


def read_sample(source: Records[Read], index: int) -> tuple[Read, list[Image.Image]]:
    """Returns a record or an example without its images, and these decoded; BrokenImage when one cannot be read.

    If an example has no `size`, it gets that of its first image.
    """
    record = read_record(source, index)
    opened = [open_image(image, name_of(record, image)) for image in record.images]
    if isinstance(record, Example) and record.size is None:
        record = dataclasses.replace(record, size=(opened[0].height, opened[0].width))
    return record.without_images(), opened


def name_of(record: Record | Example, image: bytes | Path) -> str | None:
    """What a message calls one of the record's images; a file is named by its path."""
    return record.name if isinstance(image, bytes) else None


def read_images(
    source: Source, indices: Sequence[int], processor: Processor, counter: BrokenCounter | None = None
) -> tuple[list[Record], Tensor]:
    """Returns records without the bytes of their images, and their pixels uint8 [n, 3, H, W]; see `readable_of`."""
    records, pixels = read_examples(source, indices, processor, counter)
    return records, pixels[:, 0]


def read_examples(
    source: Records[Read], indices: Sequence[int], processor: Processor, counter: BrokenCounter | None = None
) -> tuple[list[Read], Tensor]:
    """Returns examples without their images, and their pixels uint8 [n, P, 3, H, W]; see `readable_of`."""

    def read(index: int) -> tuple[Read, Tensor]:
        example, images = read_sample(source, index)
        return example, torch.stack([processor.resize(image) for image in images])

    found = readable_of(read, indices, counter)
    empty = torch.empty(0, 1, 3, *processor.image_size, dtype=torch.uint8)
    return [example for example, _ in found], torch.stack([pixels for _, pixels in found]) if found else empty


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


def read_all(read: Callable[[int], Item], count: int) -> Iterator[Item | BrokenImage]:
    """Yields what `read` returns for 0 .. count - 1, in order, or the BrokenImage that it raises, and draws a bar."""
    yield from tracked(_attempts(read, range(count)), count, "reading images")


def _attempts(read: Callable[[int], Item], indices: Sequence[int]) -> Iterator[Item | BrokenImage]:
    """Yields in order what `read` returns, or the BrokenImage that it raises; several are read at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(functools.partial(attempt, read), indices)


def attempt(read: Callable[[Item], Found], item: Item) -> Found | BrokenImage:
    """What `read` returns, or the BrokenImage that it raises."""
    try:
        return read(item)
    except BrokenImage as error:
        return error


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
