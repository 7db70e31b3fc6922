"""What a pipeline takes: single images and texts or lists of them, to tensors on the model's device."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from albef.data.broken import BrokenImage
from albef.data.images import ImageSource, open_image, to_rgb
from albef.data.processor import Processor
from albef.data.progress import tracked
from albef.data.text import clean_caption
from albef.errors import AlbefTypeError, AlbefValueError
from albef.models.backbone import Backbone

ImageLike = Image.Image | ImageSource
Images = ImageLike | Sequence[ImageLike]
Texts = str | Sequence[str]
AT_ONCE = 32  # images, or pairs of an image and a text, that are computed together
THREADS = 4  # that open images
M = TypeVar("M", bound=Backbone)
T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Given:
    """An image as it was given. Two are equal if they are the same file, the same bytes or the same object.

    `name` is what messages call it: its place in the list, or None for what it is called by itself.
    """

    key: Hashable
    source: ImageLike = field(compare=False)
    name: str | None = field(compare=False)

    @classmethod
    def of(cls, image: ImageLike, place: str | None = None) -> Given:
        """TypeError for what is no image, BrokenImage for an address in the web."""
        if isinstance(image, (str, Path)):
            if re.match(r"(https?|ftp|s3|gs|hf):/", str(image)):
                raise BrokenImage(str(image), "an address, not a file", "fetch it, and give its path or its bytes")
            return cls(image, image, None)
        if not isinstance(image, (Image.Image, bytes)) and not hasattr(image, "read"):
            raise AlbefTypeError(
                f"{place or 'images'}: cannot open a {type(image).__name__} as an image; give a PIL image, a path, "
                "bytes or a binary stream, or a list of them (PIL.Image.fromarray makes an image of an array)"
            )
        return cls(image if isinstance(image, bytes) else id(image), image, place)

    def open(self) -> Image.Image:
        """As upright RGB; BrokenImage if it cannot be read."""
        if not isinstance(self.source, Image.Image):
            return open_image(self.source, self.name)
        try:
            return to_rgb(self.source)
        except OSError as error:  # Pillow reads a file not when it opens it, but when its pixels are wanted
            name = self.name or getattr(self.source, "filename", "") or "image"
            raise BrokenImage(str(name), f"damaged ({error})", "fetch it again or leave it out") from error


class Loaded:
    """A model, its processor and its answers, and how images and texts get to it."""

    def __init__(self, model: Backbone, processor: Processor, answers: Sequence[str], name: str) -> None:
        self.model, self.processor, self.answers, self.name = model.eval(), processor, list(answers), name
        self.model.requires_grad_(False)
        self._tokenised: tuple[tuple[str, ...], Any] = ((), None)  # the last list of answers, and its tensors

    def _model(self, kind: type[M], what: str, task: str) -> M:
        if not isinstance(self.model, kind):
            raise AlbefTypeError(
                f"{self.name} is an {type(self.model).__name__}, which can't {what}: load an {kind.__name__}, "
                f"such as `albef train` makes with a recipe of the task `{task}`"
            )
        return self.model

    def _batches(self, images: Sequence[Given], silent: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Which of the images, and their pixels on the device; long lists show how far they are, unless `silent`."""
        starts = range(0, len(images), AT_ONCE)
        for start in starts if silent else tracked(starts, len(starts), "images"):
            rows = slice(start, min(start + AT_ONCE, len(images)))
            yield rows, self._pixels(images[rows])

    def _pixels(self, images: Sequence[Given]) -> Tensor:
        """Normalised pixels [N, 3, H, W] on the model's device, of its number type.

        An image that is given several times is opened once: two threads cannot read one stream.
        """
        own, of_image = distinct(images)
        with ThreadPoolExecutor(min(THREADS, len(own))) as pool:
            pixels = torch.stack(list(pool.map(lambda image: self.processor.resize(image.open()), own)))
        return self.processor.normalise(pixels[of_image].to(self.model.device)).to(self.model.dtype)

    def _on(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return ids.to(self.model.device), mask.to(self.model.device)

    def _answer_words(self, answers: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """The list as tensors; the last one is kept, since thousands of answers take longer to read than a question."""
        kept, words = self._tokenised
        if kept != answers:
            listed = self.processor.answers(answers)
            words = self._on(listed["input_ids"], listed["attention_mask"])
            self._tokenised = answers, words
        return words  # type: ignore[no-any-return]


def list_images(images: Images, what: str = "images") -> tuple[list[Given], bool]:
    """As a list, and whether it was a single one."""
    if isinstance(images, (list, tuple)):
        return [Given.of(image, f"{what}[{place}]") for place, image in enumerate(images)], False
    return [Given.of(images)], True  # type: ignore[arg-type]


def list_texts(texts: Texts) -> tuple[list[str], bool]:
    """As a list, and whether it was a single one. TypeError for what is no text."""
    if isinstance(texts, str):
        return [texts], True
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise AlbefTypeError(f"cannot read a {type(texts).__name__} as a text; give a str, or a list of them")
    listed = list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise AlbefTypeError(f"text {place} is {text!r} of type {kind}; every text must be a string")
    return listed, False


def list_captions(texts: Texts) -> tuple[list[str], bool]:
    """As `list_texts`. ValueError for a text without a word, too: it would match whatever it meets."""
    listed, one = list_texts(texts)
    for text in listed:
        if not clean_caption(text):
            raise AlbefValueError(f"the text {text!r} has no word in it; describe something, e.g. 'a dog on the beach'")
    return listed, one


def paired(**columns: tuple[list[Any], bool]) -> tuple[list[list[Any]], bool]:
    """Columns of one length, a single thing repeated; and whether all were single."""
    counts = {name: len(values) for name, (values, one) in columns.items() if not one}
    if len(set(counts.values())) > 1:
        raise AlbefValueError(
            f"{' and '.join(f'{count} {name}' for name, count in counts.items())}: lists are pairs and must be of one "
            "length, or give a single one for all of the other; for all with all use `similarity` or `rank`"
        )
    count = next(iter(counts.values()), 1)
    return [values * count if one else values for values, one in columns.values()], not counts


def distinct(values: Sequence[T]) -> tuple[list[T], Tensor]:
    """Each once, and which of them every one is."""
    numbers: dict[T, int] = {}
    of = [numbers.setdefault(value, len(numbers)) for value in values]
    return list(numbers), torch.tensor(of, dtype=torch.long)
