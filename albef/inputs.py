"""What a pipeline takes: single images and texts or lists of them, to tensors on the model's device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

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
T = TypeVar("T")


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

    def _batches(self, images: Sequence[ImageLike], silent: bool = False) -> Iterator[Tensor]:
        return (pixels for _, pixels in self._numbered_batches(images, silent))

    def _numbered_batches(self, images: Sequence[ImageLike], silent: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Which of the images, and their pixels on the device; long lists show how far they are, unless `silent`."""
        starts = range(0, len(images), AT_ONCE)
        for start in starts if silent else tracked(starts, len(starts), "images"):
            rows = slice(start, min(start + AT_ONCE, len(images)))
            yield rows, self._pixels(images[rows])

    def _pixels(self, images: Sequence[ImageLike]) -> Tensor:
        """Normalised pixels [N, 3, H, W] on the model's device, of its number type."""
        with ThreadPoolExecutor(min(THREADS, len(images))) as pool:
            pixels = torch.stack(list(pool.map(lambda image: self.processor.resize(open_any(image)), images)))
        return self.processor.normalise(pixels.to(self.model.device)).to(self.model.dtype)

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

    def _spelled(self, ids: list[int]) -> dict[str, list[int]]:
        """The words that pieces spell, with the places of their pieces; `[CLS]` is none."""
        words: list[tuple[str, list[int]]] = []
        for place, index in enumerate(ids[1:], 1):
            piece = self.processor.tokenizer.id_to_token(index) or "[UNK]"
            if piece.startswith("##") and words:
                words[-1] = (words[-1][0] + piece[2:], [*words[-1][1], place])
            else:
                words.append((piece, [place]))
        places: dict[str, list[int]] = {}
        for word, own in words:
            places.setdefault(word, []).extend(own)
        return places


def list_images(images: Images) -> tuple[list[ImageLike], bool]:
    """As a list, and whether it was a single one."""
    if isinstance(images, (list, tuple)):
        return list(images), False
    return [images], True  # type: ignore[list-item]


def list_texts(texts: Texts) -> tuple[list[str], bool]:
    return ([texts], True) if isinstance(texts, str) else (list(texts), False)


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
    numbers: dict[Any, int] = {}
    keys = [value if isinstance(value, (str, bytes, Path)) else id(value) for value in values]
    of = [numbers.setdefault(key, len(numbers)) for key in keys]
    firsts = dict(zip(reversed(of), reversed(values), strict=True))
    return [firsts[number] for number in range(len(numbers))], torch.tensor(of, dtype=torch.long)


def with_words(texts: list[str]) -> list[str]:
    """ValueError for a text without a word: it would match whatever it meets."""
    for text in texts:
        if not clean_caption(text):
            raise AlbefValueError(f"the text {text!r} has no word in it; describe something, e.g. 'a dog on the beach'")
    return texts


def open_any(image: ImageLike) -> Image.Image:
    return to_rgb(image) if isinstance(image, Image.Image) else open_image(image)
