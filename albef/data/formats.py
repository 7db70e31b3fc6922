"""Which files are read, and which of them belong together: the same rules for folders and for shards."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from PIL import features

from albef.files import printable

T = TypeVar("T")
Sample = dict[str, T]  # suffix in small letters, with its dot -> where that member lies

_AVIF = features.check("avif")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if _AVIF else ()))
"""What Pillow may try on a file. Its other decoders are little tested, and one of them starts another program."""
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".webp", ".png", ".apng", *((".avif",) if _AVIF else ()), ".bmp",
    ".tif", ".tiff", ".gif",
)  # fmt: skip
"""Names of images end so, in small or capital letters. Of several images of one sample, the first in this order is
read: a photo comes before the mask that lies beside it."""
UNREAD_SUFFIXES = frozenset(
    (
        ".avif", ".heic", ".heif", ".jxl", ".jp2", ".svg", ".ppm", ".pgm", ".pnm", ".tga", ".ico", ".psd", ".eps",
        ".raw", ".dng", ".cr2", ".nef", ".arw",
    )
).difference(IMAGE_SUFFIXES)  # fmt: skip
"""Other images, which are counted and named where they stand in the place of one that is read."""


def is_companion(name: str) -> bool:
    """Is it one of the files that macOS lays beside others (`._NAME`, `__MACOSX/...`, `.DS_Store`)?"""
    *folders, base = name.split("/")
    return base.startswith("._") or base == ".DS_Store" or "__MACOSX" in folders


def split(name: str) -> tuple[str, str]:
    """`a/shot 1.5.JPG` to `a/shot 1.5` and `.jpg`: the last dot separates. The stem of a hidden file is empty."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    if not dot:
        stem, suffix = base, ""
    return (folder + slash + stem if stem else ""), (dot + suffix).lower()


def _first_dot(stem: str) -> tuple[str, str]:
    """`a/0001.image` to `a/0001` and `image`: WebDataset's rule, by which the first dot of the name separates."""
    folder, slash, base = stem.rpartition("/")
    key, _, word = base.partition(".")
    return folder + slash + key, word


@dataclass
class PassedOver:
    """What was left out, or had to be guessed at, in shards or a folder; where nothing else stands, in samples."""

    without_image: int = 0
    without_caption: int = 0
    with_dot: int = 0
    """Of the two above, those with a dot inside their name."""
    several_images: int = 0
    repeated: int = 0
    unmarked: int = 0
    """Tar files without the mark at their end."""
    links: int = 0
    """Links of a tar file to something that does not stand in it before them."""
    link: str = ""
    """The name of such a link."""
    suffixes: Counter[str] = field(default_factory=Counter)
    """Suffixes beside texts that have no image, or images that have no text."""
    example: str = ""
    """A name that stands more than once."""

    def __bool__(self) -> bool:
        return any(
            (self.without_image, self.without_caption, self.several_images, self.repeated, self.unmarked, self.links)
        )

    def __add__(self, other: "PassedOver") -> "PassedOver":
        numbers = ("without_image", "without_caption", "with_dot", "several_images", "repeated", "unmarked", "links")
        sums = {name: getattr(self, name) + getattr(other, name) for name in numbers}
        return PassedOver(
            **sums,
            suffixes=self.suffixes + other.suffixes,
            example=self.example or other.example,
            link=self.link or other.link,
        )

    def sentences(self) -> Iterator[str]:
        """What a user is told of it."""
        if self.without_image or self.without_caption:
            left_out = f"left out {self.without_image:,} samples without an image and {self.without_caption:,} "
            yield left_out + f"without a caption{self._beside()}"
        if self.with_dot:
            yield (
                f"{self.with_dot:,} of them have a dot inside their name: image and text belong together when their "
                "names are equal up to the last dot"
            )
        if self.several_images:
            order = ", ".join(IMAGE_SUFFIXES)
            yield f"{self.several_images:,} samples have several images: the first in the order {order} is read"
        if self.repeated:
            yield (
                f"{self.repeated:,} names stand there more than once, such as {printable(self.example)}: each is read "
                "as a sample of its own"
            )
        if self.links:
            yield f"{self.links:,} links, such as {printable(self.link)}, lead to nothing that stands before them"
        if self.unmarked:
            yield (
                f"{self.unmarked:,} tar files lack the mark at their end, so more samples may be missing: compare the "
                "size, or fetch them again"
            )

    def _beside(self) -> str:
        if not self.suffixes:
            return ""
        shown = ", ".join(f"{count:,} {printable(suffix)}" for suffix, count in self.suffixes.most_common(5))
        return f" (passed over beside them: {shown}; images that are read end with {', '.join(IMAGE_SUFFIXES)})"


class Gathered(Generic[T]):
    """Members of a shard, or files of a folder, gathered to samples as they come.

    Two belong together when their names are equal up to the last dot. What is incomplete by this rule is tried by
    WebDataset's, by which `0001.image.jpg` and `0001.caption.txt` are one sample; only words may stand between the
    dots then, since `shot 1.5.jpg` and `shot 1.6.txt` are two. A name that comes again begins another sample.
    """

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = texts  # suffixes of what has captions
        self.found: dict[tuple[str, int], Sample[T]] = {}  # stem and which of that name -> its members
        self.newest: dict[str, int] = {}  # of stems that stand more than once
        self.passed = PassedOver()

    def add(self, name: str, place: T) -> None:
        stem, suffix = split(name)
        if not stem or is_companion(name):
            return
        sample = self.found.setdefault((stem, self.newest.get(stem, 1)), {})
        if suffix in sample:
            self.newest[stem] = self.newest.get(stem, 1) + 1
            self.passed.repeated += 1
            self.passed.example = self.passed.example or name
            sample = self.found[stem, self.newest[stem]] = {}
        sample[suffix] = place

    def place(self, name: str) -> T | None:
        """Where the newest member of this name lies, which a hard link stands for."""
        stem, suffix = split(name)
        return self.found.get((stem, self.newest.get(stem, 1)), {}).get(suffix)

    def samples(self) -> Iterator[tuple[str, Sample[T], str]]:
        """Key, members and the image's suffix of every sample; afterwards `passed` says what was passed over."""
        joined = self._joined()
        for (stem, number), sample in self.found.items():
            if image := self._image(sample):
                yield (stem if number == 1 else f"{stem}#{number}"), sample, image
        for stem, sample in joined.items():
            if image := self._image(sample):
                yield stem, sample, image

    def _image(self, sample: Sample[T]) -> str:
        """The suffix of the image to read; empty if the sample is incomplete."""
        images = [suffix for suffix in IMAGE_SUFFIXES if suffix in sample]
        if not images or not any(text in sample for text in self.texts):
            return ""
        self.passed.several_images += len(images) > 1
        return images[0]

    def _is_whole(self, sample: Iterable[str]) -> bool:
        return any(text in sample for text in self.texts) and any(suffix in IMAGE_SUFFIXES for suffix in sample)

    def _joined(self) -> dict[str, Sample[T]]:
        """Incomplete samples that are complete by WebDataset's rule. All others are counted."""
        rest: dict[str, list[tuple[str, Sample[T]]]] = {}
        for (stem, number), sample in self.found.items():
            if number == 1 and not self._is_whole(sample):
                rest.setdefault(_first_dot(stem)[0], []).append((stem, sample))
            elif not self._is_whole(sample):
                self._count(stem, sample)
        joined = {}
        for key, parts in rest.items():
            words = [part for part in parts if not any(c.isdigit() for c in _first_dot(part[0])[1])]
            union = {suffix: place for _, sample in words for suffix, place in sample.items()}
            if self._is_whole(self.found.get((key, 1), ())):
                self.passed.several_images += any(suffix in IMAGE_SUFFIXES for suffix in union)
            elif self._is_whole(union) and len(union) == sum(len(sample) for _, sample in words):
                joined[key] = union
            else:
                words = []
            for stem, sample in parts:
                if not any(stem == word for word, _ in words):
                    self._count(stem, sample)
        return joined

    def _count(self, stem: str, sample: Sample[T]) -> None:
        has_image = any(suffix in IMAGE_SUFFIXES for suffix in sample)
        self.passed.without_image += not has_image
        self.passed.without_caption += has_image
        self.passed.with_dot += "." in stem.rpartition("/")[2]
        known = (*self.texts, *IMAGE_SUFFIXES, "")
        self.passed.suffixes.update(suffix for suffix in sample if suffix not in known)
