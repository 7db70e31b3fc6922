"""WebDataset shards: tar files of images and texts, indexed once and read at random."""

import array
import gzip
import io
import posixpath
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from albef.data.formats import Gathered, PassedOver
from albef.data.lists import DECODER
from albef.data.progress import tracked
from albef.data.reading import captions_in, decoded, foreign, is_passing, patiently, whole
from albef.data.records import THREADS, PackedStrings, Record, Shared, checked, warn_passed_over
from albef.errors import AlbefValueError
from albef.files import printable

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
UNPACKED_LIMIT = 2**28  # bytes that a compressed shard may have when it is unpacked
GZIP = b"\x1f\x8b"
BLOCK = tarfile.BLOCKSIZE
Span = tuple[int, int]  # offset and size of a member in its tar file
ABSENT: Span = (0, -1)  # a member that is not there
Places = list[tuple[str, Span, Span, Span]]  # key of a sample; where its image, JSON and text lie


class TarSource:
    """Shards in img2dataset's layout: KEY.jpg (or .png, .webp, ...) with KEY.txt and/or KEY.json in each tar file.

    The headers are read once; images and texts are then read where they lie. `formats.Gathered` has the rules by which
    members belong together. Captions are the "caption" of KEY.json, a string or a list, else the whole of KEY.txt;
    "category" comes from KEY.json. A compressed shard is unpacked into memory, which loader workers share. The image_id
    is the key within the shards' folder: the same key in two shards of a folder means the same thing, in another folder
    another one.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.shards = [_Shard(file) for file in files]
        keys: list[str] = []
        places = array.array("q")
        passed, concerned = PassedOver(), []
        for number, (samples, own) in enumerate(_indexed(self.shards)):
            passed += own
            concerned += [files[number]] if own else []
            for key, *spans in samples:
                keys.append(key)
                places.append(number)
                for span in spans:
                    places.extend(span)
        if not keys:
            found = f" ({'; '.join(passed.sentences())})" if passed else ""
            raise AlbefValueError(
                f"{_names(files)}: no sample has image and caption; KEY.jpg with KEY.txt or KEY.json makes one{found}"
            )
        warn_passed_over(_names(concerned), passed)
        self.keys = PackedStrings(keys)
        # shard, then offset and size of image, JSON, text
        self.places = Shared(np.frombuffer(places, dtype=np.int64).reshape(-1, 7))
        self._compare_equal_keys(keys)

    def _compare_equal_keys(self, keys: list[str]) -> None:
        """Warns where a key stands in two shards of a folder but with other captions, so that it hardly means the same.

        A hundred keys are compared.
        """
        if len(self.shards) == 1:
            return
        firsts: dict[tuple[Path, str], int] = {}
        again = []
        for index, key in enumerate(keys):
            folder = self.shards[self.places.values[index, 0]].file.parent
            first = firsts.setdefault((folder, key), index)
            again += [(first, index)] if first != index else []
        other = [pair for pair in again[:100] if self._differ(*pair)]
        if other:
            names = " and ".join(str(self.shards[self.places.values[index, 0]].file) for index in other[0])
            warnings.warn(
                f"{names}: {len(again):,} keys stand in two shards, such as {printable(keys[other[0][0]])}, but with "
                "other captions. Equal keys in a folder mean the same image: give each image a name of its own, or lay "
                "the shards in two folders",
                stacklevel=5,
            )

    def _differ(self, one: int, other: int) -> bool:
        try:
            return self.captions(one) != self.captions(other)
        except ValueError:
            return False  # who reads the record counts and names it

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        shard, key, image, *texts = self._at(index)
        captions, category = shard.texts(key, *texts)
        data = shard.read(image) or b""
        return Record(f"{shard.file}:{printable(key)}", data, captions, str(shard.file.parent / key), category)

    def captions(self, index: int) -> list[str]:
        shard, key, _, *texts = self._at(index)
        return shard.texts(key, *texts)[0]

    def _at(self, index: int) -> tuple["_Shard", str, Span, Span, Span]:
        """Shard and key of a sample, and where its image, JSON and text lie."""
        number, *ends = self.places.values[checked(index, len(self))].tolist()
        image, facts, text = zip(ends[::2], ends[1::2], strict=True)
        return self.shards[number], self.keys[index], image, facts, text


def _names(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _indexed(shards: "Sequence[_Shard]") -> Iterator[tuple[Places, PassedOver]]:
    """What lies where in each shard; several are read at once, since a network's files are slow to answer."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from tracked(pool.map(_Shard.index, shards), len(shards), "reading shards")


class _Shard:
    """One tar file, read by offset. A compressed one is held unpacked."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.unpacked: Shared | None = None

    def index(self) -> tuple[Places, PassedOver]:
        """The samples in the order of the file, and what was passed over."""
        return patiently(self._index, str(self.file))

    def _index(self) -> tuple[Places, PassedOver]:
        gathered: Gathered[Span] = Gathered((".json", ".txt"))
        try:
            with self._open() as file:
                gathered.passed.unmarked += not _gather(file, gathered)
        except (tarfile.TarError, OSError, EOFError, zlib.error, OverflowError) as error:
            if isinstance(error, OSError) and (is_passing(error) or isinstance(error, FileNotFoundError)):
                raise
            raise AlbefValueError(
                f"{self.file}: not a whole tar file ({error}); fetch it again or leave it out"
            ) from error
        places = [
            (key, sample[image], sample.get(".json", ABSENT), sample.get(".txt", ABSENT))
            for key, sample, image in gathered.samples()
        ]
        return places, gathered.passed

    def texts(self, key: str, facts: Span, text: Span) -> tuple[list[str], str | None]:
        """Captions and category of a sample, whose JSON and text lie there."""
        name = f"{self.file}:{printable(key)}"
        about = _facts(self.read(facts), name)
        category = about.get("category")
        captions = captions_in(about.get("caption")) or captions_in(
            decoded(self.read(text) or b"", name, "its caption")
        )
        if about and not captions and "caption" in about:
            raise AlbefValueError(f'{name}: its "caption" holds no text; give a string or a list of strings')
        if about and not captions:
            found = ", ".join(map(repr, about))[:80]
            raise AlbefValueError(f'{name}: its JSON has no "caption", but {found}; call the captions "caption"')
        return captions, whole(category) if isinstance(category, str) else None

    def read(self, span: Span) -> bytes | None:
        """A member's bytes; None where there is no such member."""
        offset, size = span
        if size < 0:
            return None
        if self.unpacked is not None:
            return self.unpacked.values[offset : offset + size].tobytes()
        data = patiently(lambda: self._part(offset, size), str(self.file))
        if len(data) < size:
            raise AlbefValueError(f"{self.file}: it has become shorter since it was indexed; start again")
        return data

    def _part(self, offset: int, size: int) -> bytes:
        with self.file.open("rb") as file:  # opened anew each time: nothing to share or to run out of
            file.seek(offset)
            return file.read(size)

    def _open(self) -> BinaryIO:
        with self.file.open("rb") as file:
            start = file.read(BLOCK)
        if not start.startswith(GZIP):  # whatever the name says
            if what := foreign(start):
                raise AlbefValueError(f"{self.file}: no tar file; it is {what}")
            return self.file.open("rb")
        content = io.BytesIO()
        with gzip.open(self.file) as file:
            while part := file.read(2**20):
                content.write(part)
                if content.tell() > UNPACKED_LIMIT:
                    raise AlbefValueError(self._too_large())
        self.unpacked = Shared(np.frombuffer(content.getvalue(), dtype=np.uint8))
        content.seek(0)
        return content

    def _too_large(self) -> str:
        tar = self.file.with_name(self.file.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar") + ".tar")
        return (
            f"{self.file}: it has more than {UNPACKED_LIMIT // 2**20:,} MiB when it is unpacked, and compressed shards "
            f"are held in memory; unpack it by `gzip -dc {self.file} > {tar}` and name that file"
        )


def _gather(file: BinaryIO, gathered: Gathered[Span]) -> bool:
    """Adds all members of a tar file, also of several that were written one after the other. Is its end marked?

    The mark is a block of zeros. Something else in its place is an error: Python's tarfile takes it for the end.
    """
    start = 0
    while True:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps an object for every member
                _add(member, gathered)
            end = tar.offset
        file.seek(end)
        mark = file.read(BLOCK)
        if any(mark) or 0 < len(mark) < BLOCK:
            raise tarfile.ReadError(f"after {end:,} bytes there is no header of a member")
        if not mark:
            return False
        following = _next_content(file)
        if following is None:
            return True
        start = following


def _next_content(file: BinaryIO) -> int | None:
    """Where the next block begins that is not empty; None if there is none."""
    while block := file.read(BLOCK):
        if any(block):
            return file.tell() - len(block)
    return None


def _add(member: tarfile.TarInfo, gathered: Gathered[Span]) -> None:
    if member.issparse():
        raise tarfile.ReadError(f"{printable(member.name)} is a sparse file, which is not read")
    if member.islnk() or member.issym():
        folder = posixpath.dirname(member.name) if member.issym() else ""
        place = gathered.place(posixpath.normpath(posixpath.join(folder, member.linkname)))
        if place:
            gathered.add(member.name, place)
        else:
            gathered.passed.links += 1
            gathered.passed.link = gathered.passed.link or member.name
    elif member.isfile():
        gathered.add(member.name, (member.offset_data, member.size))


def _facts(data: bytes | None, name: str) -> dict[str, Any]:
    """The object in KEY.json; empty if there is none."""
    try:
        found = DECODER.decode(decoded(data, name, "its JSON")) if data else {}
    except (ValueError, RecursionError) as error:
        if isinstance(error, AlbefValueError):
            raise
        raise AlbefValueError(
            f"{name}: its JSON is damaged ({error}); write the shard again or leave it out"
        ) from error
    return found if isinstance(found, dict) else {}
