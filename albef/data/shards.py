"""WebDataset shards: tar files of images and texts, indexed once and read at random."""

import array
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from albef.data.images import IMAGE_SUFFIXES
from albef.data.progress import tracked
from albef.data.records import THREADS, Packed, Record, Shared, checked, decoded, listed, warn_left_out
from albef.errors import AlbefValueError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
Span = tuple[int, int]  # offset and size of a member in its tar file
Samples = dict[str, dict[str, Span]]  # key to {"image" | "json" | "txt": (offset, size)}
ABSENT: Span = (0, -1)  # a member that is not there


class TarSource:
    """Shards in img2dataset's layout: KEY.jpg (or .png, .webp, ...) with KEY.txt and/or KEY.json in each tar file.

    The headers are read once; images and texts are then read where they lie. Captions are the "caption" of KEY.json,
    a string or a list, else the whole of KEY.txt; "category" comes from KEY.json. Compressed shards are unpacked into
    memory, in every worker. The image_id is the key within the shards' folder: the same key in two shards of a folder
    means the same thing, in another folder another one.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.shards = [_Shard(file) for file in files]
        keys: list[str] = []
        places = array.array("q")
        without_image = without_caption = 0
        for number, samples in enumerate(_indexed(self.shards)):
            for key, members in samples.items():
                without_image += "image" not in members
                without_caption += members.keys() == {"image"}
                if "image" in members and len(members) > 1:
                    keys.append(key)
                    places.append(number)
                    for kind in ("image", "json", "txt"):
                        places.extend(members.get(kind, ABSENT))
        name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        if not keys:
            raise AlbefValueError(
                f"{name}: no sample has image and caption; KEY.jpg with KEY.txt or KEY.json makes one"
            )
        warn_left_out(name, without_image, without_caption)
        self.keys = Packed(keys)
        # shard, then offset and size of image, JSON, text
        self.places = Shared(np.frombuffer(places, dtype=np.int64).reshape(-1, 7))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        shard, key, image, *texts = self._at(index)
        captions, category = shard.texts(key, *texts)
        data = shard.read(image) or b""
        return Record(f"{shard.file}:{key}", data, captions, str(shard.file.parent / key), category)

    def captions(self, index: int) -> list[str]:
        shard, key, _, *texts = self._at(index)
        return shard.texts(key, *texts)[0]

    def _at(self, index: int) -> tuple["_Shard", str, Span, Span, Span]:
        """Shard and key of a sample, and where its image, JSON and text lie."""
        number, *ends = self.places.values[checked(index, len(self))].tolist()
        image, facts, text = zip(ends[::2], ends[1::2], strict=True)
        return self.shards[number], self.keys[index], image, facts, text


def _indexed(shards: "Sequence[_Shard]") -> Iterator[Samples]:
    """What lies where in each shard; several are read at once, since a network's files are slow to answer."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from tracked(pool.map(_Shard.samples, shards), len(shards), "reading shards")


class _Shard:
    """One tar file, read by offset. A compressed one is held unpacked, but never sent to another process so."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.unpacked: bytes | None = None

    def samples(self) -> Samples:
        """Every key with the places of its members, in the order of the file."""
        found: Samples = {}
        try:
            with self._open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps an object for every member
                    key, kind = _split(member.name)
                    if member.isfile() and key:
                        sample = found.setdefault(key, {})
                        if kind in ("image", "json", "txt"):
                            sample[kind] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise AlbefValueError(
                f"{self.file}: not a whole tar file ({error}); fetch it again or leave it out"
            ) from error
        return found

    def texts(self, key: str, facts: Span, text: Span) -> tuple[list[str], str | None]:
        """Captions and category of a sample, whose JSON and text lie there."""
        name = f"{self.file}:{key}"
        about, category = _facts(self.read(facts), name), None
        captions = [caption for caption in listed(about.get("caption")) if caption.strip()]
        if isinstance(about.get("category"), str):
            category = about["category"]
        return captions or _caption(self.read(text), name), category

    def read(self, span: Span) -> bytes | None:
        """A member's bytes; None where there is no such member."""
        offset, size = span
        if size < 0:
            return None
        if self._is_compressed:
            return self._content()[offset : offset + size]
        with self.file.open("rb") as file:  # opened anew each time: nothing to share or to run out of
            file.seek(offset)
            return file.read(size)

    def _open(self) -> BinaryIO:
        return io.BytesIO(self._content()) if self._is_compressed else self.file.open("rb")

    def _content(self) -> bytes:
        if self.unpacked is None:
            self.unpacked = gzip.decompress(self.file.read_bytes())
        return self.unpacked

    @property
    def _is_compressed(self) -> bool:
        return self.file.suffix != ".tar"

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "unpacked": None}


def _split(member: str) -> tuple[str, str]:
    """`a/0001.jpg` to its key `a/0001` and "image", "json", "txt" or another suffix; WebDataset's rule of keys."""
    folder, slash, base = member.rpartition("/")
    key, _, suffix = base.partition(".")
    kind = "image" if f".{suffix.lower()}" in IMAGE_SUFFIXES else suffix.lower()
    return (folder + slash + key if key else ""), kind


def _facts(data: bytes | None, name: str) -> dict[str, Any]:
    """The object in KEY.json; empty if there is none."""
    try:
        found = json.loads(data) if data else {}
    except ValueError as error:
        raise AlbefValueError(
            f"{name}: its JSON is damaged ({error}); write the shard again or leave it out"
        ) from error
    return found if isinstance(found, dict) else {}


def _caption(text: bytes | None, name: str) -> list[str]:
    """KEY.txt as one caption; none if it is missing or blank."""
    caption = decoded(text or b"", name).strip()
    return [caption] if caption else []
