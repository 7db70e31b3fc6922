"""What a source of images and captions, or of examples, yields, and the small parts that sources are made of."""

import array
import bisect
import contextlib
import itertools
import json
import os
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from albef.data.formats import PassedOver
from albef.files import printable

SMALL = 2**20  # bytes that an array may have to be sent by value
OPEN_FILES = "/proc/self/fd"  # where Linux shows a process the files that it has open
THREADS = min(8, os.cpu_count() or 1)  # that read files side by side
Read = TypeVar("Read", "Record", "Example", covariant=True)


@dataclass(frozen=True)
class Record:
    """One image and what is said about it.

    name        where the image lies, for messages
    image       path of the file, or its bytes
    captions    uncleaned; empty when the sample turned out to have none
    image_id    equal for records of the same image or the same thing; those are no negatives of each other
    category    a class the data set gives, if any
    """

    name: str
    image: bytes | Path
    captions: list[str]
    image_id: str
    category: str | None = None

    @property
    def images(self) -> tuple[bytes | Path]:
        """As an example has them."""
        return (self.image,)

    def without_images(self) -> "Record":
        return replace(self, image=b"")

    @property
    def picture(self) -> bytes | Path:
        """What version 0.1.0 called `image`."""
        warnings.warn("Record.picture is now Record.image", DeprecationWarning, stacklevel=2)
        return self.image


class Records(Protocol[Read]):
    """A sequence of records or examples, whose images nobody has looked at yet."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Read: ...


class Source(Records[Record], Protocol):
    """A sequence of records; reading one raises ValueError that names it when its texts are damaged."""

    def captions(self, index: int) -> list[str]:
        """The record's captions alone, without reading its image."""


Kind = Literal["vqa", "classification", "pairs", "phrases"]
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Example:
    """What a task is to learn or is asked: one or two images, a text, and the truth.

    name        where its images lie, for messages; equal for examples of the same ones
    images      path of the file, or its bytes; two for pairs, left one first
    text        question, statement or phrase, uncleaned
    key         the data set's question_id, identifier or ref_id; else a running number
    answers     vqa: what people answered, in order, with repeats; empty if unknown
    weight      vqa: of all answers together
    label       classification and pairs: the class
    boxes       phrases: the right boxes, of which any counts
    candidates  phrases: the boxes to choose among
    size        phrases: (height, width) of the image that the boxes refer to; None: its own
    split       phrases: val, testA, testB or the like
    """

    name: str
    images: tuple[bytes | Path, ...]
    text: str
    key: str | int
    answers: tuple[str, ...] = ()
    weight: float = 1.0
    label: str | None = None
    boxes: tuple[Box, ...] = ()
    candidates: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None
    split: str = ""

    def without_images(self) -> "Example":
        return replace(self, images=())


ExampleSource = Records[Example]


class ChainSource:
    """Several sources, all of records or all of examples, one after the other."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = list(sources)
        self.ends = list(itertools.accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Any:
        source, own_index = self._at(index)
        return source[own_index]

    def captions(self, index: int) -> list[str]:
        source, own_index = self._at(index)
        return source.captions(own_index)

    def _at(self, index: int) -> tuple[Any, int]:
        place = bisect.bisect_right(self.ends, checked(index, len(self)))
        return self.sources[place], index - (self.ends[place - 1] if place else 0)


class Shared:
    """An array that a large data set may have gigabytes of, and that every loader worker needs.

    Pickled, it goes into a temporary file (set TMPDIR to choose the disk) that both processes map into memory; only
    the path is sent. The file stays as long as the array that was pickled. On Linux it has no name in a folder, so that
    nothing is left behind when its process is killed.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self.values, self.file = values, ""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.values.nbytes <= SMALL:
            return Shared, (self.values,)
        if not self.file:
            self.file, forget, what = _nameless(_spilled(self.values))
            self.values = np.asarray(np.load(self.file, mmap_mode="r"))
            weakref.finalize(self, forget, what)
        return _mapped, (self.file,)


def _spilled(values: NDArray[Any]) -> str:
    with tempfile.NamedTemporaryFile(prefix="albef-", suffix=".npy", delete=False) as file:
        try:
            np.save(file, values)
        except OSError as error:
            _remove(file.name)
            need = f"{values.nbytes / 2**20:,.0f} MiB for its loader workers to share"
            raise OSError(f"{file.name}: {error}; the data set needs {need}, set TMPDIR to a disk with room") from error
    return file.name


def _nameless(file: str) -> tuple[str, Callable[[Any], None], Any]:
    """A path of the file that ends with this process, and what to call with what when it isn't needed any more."""
    if not os.path.isdir(OPEN_FILES):
        return file, _remove, file
    descriptor = os.open(file, os.O_RDONLY)
    os.unlink(file)
    return f"/proc/{os.getpid()}/fd/{descriptor}", os.close, descriptor


def _mapped(file: str) -> Shared:
    shared = Shared(np.asarray(np.load(file, mmap_mode="r")))
    shared.file = file
    return shared


def _remove(file: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(file)


class PackedStrings:
    """A list of strings in one block of bytes; `texts` are taken one by one, and none is kept."""

    def __init__(self, texts: Iterable[str]) -> None:
        block, bounds = bytearray(), array.array("q", [0])
        for text in texts:
            block += text.encode("utf-8", "surrogatepass")
            bounds.append(len(block))
        self.block = Shared(np.frombuffer(block, dtype=np.uint8))
        self.bounds = Shared(np.frombuffer(bounds, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.bounds.values) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self.bounds.values[index : index + 2]
        return self.block.values[start:end].tobytes().decode("utf-8", "surrogatepass")


class PackedExamples:
    """Examples whose images are files, in little room and shared with loader workers."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.packed = PackedStrings(
            json.dumps(_values(example), ensure_ascii=False, default=str) for example in examples
        )

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Example:
        name, images, text, key, answers, weight, label, boxes, candidates, size, split = json.loads(
            self.packed[checked(index, len(self))]
        )
        paths, size = tuple(map(Path, images)), size and tuple(size)
        boxes, candidates = tuple(map(tuple, boxes)), tuple(map(tuple, candidates))
        return Example(name, paths, text, key, tuple(answers), weight, label, boxes, candidates, size, split)


def _values(example: Example) -> list[Any]:
    return list(vars(example).values())


def is_box(value: Any, more: bool = False) -> TypeGuard[list[float]]:
    """Is it [x, y, width, height], finite and of no negative side? `more`: others may follow, such as a score."""
    numbers = value[:4] if isinstance(value, list) and (more or len(value) == 4) else []
    return len(numbers) == 4 and all(map(_is_finite, numbers)) and min(numbers[2:]) >= 0


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def box_of(numbers: Sequence[float]) -> Box:
    """The box that a list begins with."""
    x, y, width, height = map(float, numbers[:4])
    return x, y, width, height


def checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"record {index} of a source of {length}")
    return index


def warn_passed_over(name: str, passed: PassedOver) -> None:
    """One warning that names the shard or folder and says what was left out of it."""
    if passed:
        warnings.warn(f"{printable(name)}: {'; '.join(passed.sentences())}", stacklevel=4)
