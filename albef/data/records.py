"""What a source of pictures and captions yields, and the small parts that all sources are made of."""

import bisect
import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Record:
    """One picture and what is said about it.

    name        for messages: where the picture lies
    picture     path of the file, or its bytes
    captions    uncleaned; empty when the sample turned out to have none
    image_id    equal for records of the same picture or the same thing; those are no negatives of each other
    category    a class the data set gives, if any
    """

    name: str
    picture: bytes | Path
    captions: list[str]
    image_id: str
    category: str | None = None


class Source(Protocol):
    """A sequence of records; reading one raises ValueError that names it when its texts are damaged."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class ChainSource:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.ends = list(itertools.accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Record:
        place = bisect.bisect_right(self.ends, checked(index, len(self)))
        return self.sources[place][index - (self.ends[place - 1] if place else 0)]


class Packed:
    """A list of strings in one block of bytes."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.block = b"".join(encoded)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.block[start : self.ends[index]].decode("utf-8", "surrogatepass")


def listed(caption: Any) -> list[str]:
    """Captions as JSON has them, one string or a list, without empty entries of other kinds."""
    found = caption if isinstance(caption, list) else [caption]
    return [text for text in found if isinstance(text, str)]


def decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: its caption is not UTF-8 ({error}); convert it to UTF-8") from error


def checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"record {index} of a source of {length}")
    return index


def warn_left_out(name: str, without_picture: int, without_caption: int) -> None:
    if without_picture or without_caption:
        warnings.warn(
            f"{name}: left out {without_picture} samples without a picture and {without_caption} without a caption",
            stacklevel=4,
        )
