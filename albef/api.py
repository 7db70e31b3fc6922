"""One image, one line: `albef.load(folder)`, then `answer`, `entails`, `compare`, `match`, `ground`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from albef.data.images import ImageSource, open_image, to_rgb
from albef.data.processor import Processor
from albef.data.records import Box, box_of
from albef.data.text import clean_caption
from albef.errors import AlbefTypeError, AlbefValueError
from albef.heat import heat
from albef.metrics import boxes
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.backbone import Backbone
from albef.models.classifier import AlbefForClassification, AlbefForPairs
from albef.models.start import load_model
from albef.tasks import answers as answers_of
from albef.tasks import decode, grounding, vqa

ImageLike = Image.Image | ImageSource
M = TypeVar("M", bound=Backbone)


@dataclass(frozen=True)
class Answer:
    """An answer and its probability in [0, 1]: among the ranked ones, or of being written."""

    text: str
    probability: float


@dataclass(frozen=True)
class Verdict:
    """The likeliest label, and the probability of every label."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Match:
    """Whether text and image belong together: ITM's probability in [0, 1], ITC's cosine in [-1, 1]."""

    probability: float
    cosine: float


@dataclass(frozen=True)
class Region:
    """Where a text is seen.

    heat_map    [height, width] of the image, not normalised
    point       x, y in pixels: the middle of the patch where the map is highest
    box         x, y, width, height in pixels: around the map's peak, or the best of the candidates
    points      False if the map has no positive value (in any of the candidates): the box then says nothing
    words       the map of every word, in the text's order, a repeated one's together; empty by ITC
    """

    image: Image.Image
    heat_map: np.ndarray
    point: tuple[float, float]
    box: Box
    points: bool
    words: dict[str, np.ndarray]

    def overlay(self, word: str | None = None) -> Image.Image:
        """The image under the map's colours, with the box; or under the map of one word. KeyError without it."""
        if word is None:
            return heat(self.image, self.heat_map, self.image.size, self.box if self.points else None)
        return heat(self.image, self.words[word], self.image.size)


def load(folder: str | Path, image_size: int | tuple[int, int] | None = None, device: str | None = None) -> OneImage:
    """A saved model of any kind, ready for single images: a folder, the name of one that comes along, or the hub's.

    `image_size` in pixels, if other than the model's; `device` as PyTorch names it, by default a GPU if there is one.
    """
    model = load_model(folder, image_size).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processor = Processor.from_pretrained(folder)
    processor.image_size = model.config.image_size
    path = answers_of.answers_file(folder)
    answers = answers_of.read_answers(path) if path.is_file() else []
    return OneImage(model, processor, answers, str(folder))


class OneImage:
    """A model with what it needs for single images. Each kind of model can do some of it; the others say so.

    An image is a PIL image, a path, the bytes of a file or a stream.
    """

    def __init__(self, model: Backbone, processor: Processor, answers: Sequence[str], name: str) -> None:
        self.model, self.processor, self.answers, self.name = model.eval(), processor, list(answers), name

    @torch.no_grad()
    def answer(
        self, image: ImageLike, question: str, k: int = 5, answers: Sequence[str] | None = None, free: bool = False
    ) -> list[Answer]:
        """The k likeliest answers, best first: ranked from `answers` (by default those it learnt), or written freely.

        ValueError for a question without a word, an empty list, or one to write freely from; k larger than the list
        gives all of it.
        """
        model = self._model(AlbefForAnswering, "answer questions", "vqa")
        if free and answers is not None:
            raise AlbefValueError("a list of answers is for ranking; leave it out to write freely, or leave out free")
        if k < 1:
            raise AlbefValueError(f"k {k}: ask for at least one answer")
        words = vqa.questions(self.processor, [question], vqa.TEST_WORDS, model.config.max_positions)
        ids, mask = self._on(words)
        states = model.read(self._pixels(image), ids, mask)
        if free:
            pieces, scores = decode.generate(
                model, states, mask, self.processor.cls_id, self.processor.sep_id, beams=max(k, 3)
            )
            written = [self.processor.words(row) for row in pieces[0].tolist()]
            return [Answer(text, p) for text, p in zip(written, scores[0].exp().tolist(), strict=True)][:k]
        listed = answers_of.checked_answers(self.answers if answers is None else answers)
        answer_ids, answer_mask = self._on(self.processor.answers(listed))
        order, probabilities = decode.rank_answers(model, states, mask, answer_ids, answer_mask, max(k, 128))
        found = zip(order[0].tolist(), probabilities[0].tolist(), strict=True)
        return [Answer(listed[index], p) for index, p in found][:k]

    def entails(self, image: ImageLike, text: str) -> Verdict:
        """Does the image entail the text? Or whichever labels the model was trained with."""
        model = self._model(AlbefForClassification, "judge a text", "classification")
        return self._verdict(model, self._pixels(image), text)

    def compare(self, first: ImageLike, second: ImageLike, text: str) -> Verdict:
        """Is the text true of the two images, the left and the right one?"""
        model = self._model(AlbefForPairs, "compare two images", "nlvr2")
        return self._verdict(model, torch.stack([self._pixels(first), self._pixels(second)], dim=1), text)

    @torch.no_grad()
    def match(self, image: ImageLike, text: str) -> Match:
        """Do image and text belong together?"""
        model = self._model(AlbefModel, "match", "retrieval")
        ids, mask = self._words(text)
        tokens, states = model.encode_image(self._pixels(image)), model.encode_text(ids, mask)
        cosine = (model.project_image(tokens) * model.project_text(states)).sum()
        fused = model.fuse(states, mask, model.fusion_encoder.seen_once(tokens, ids.shape[1]), cls_only=True)
        return Match(float(model.match(fused).softmax(-1)[0, 1]), float(cosine))

    def ground(
        self,
        image: ImageLike,
        text: str,
        mode: grounding.Mode = "itm",
        layer: int | None = None,
        candidates: Sequence[Box] | None = None,
    ) -> Region:
        """Where the text is seen; `mode` and `layer` as `tasks.grounding.text_maps` has them.

        With `candidates` (boxes in pixels) the box is the best of them. ValueError for an empty list of them, and for
        wrong ones.
        """
        model = self._model(AlbefModel, "ground", "grounding")
        if candidates is not None and not len(candidates):
            raise AlbefValueError(
                "candidates is empty; give boxes to choose among, or leave it out for the map's own box"
            )
        given = [] if candidates is None else [box_of(boxes.checked(candidate)) for candidate in candidates]
        opened = _opened(image)
        size, inputs = (opened.height, opened.width), (self._pixels(opened), *self._words(text))
        words = {}
        if mode == "itm":
            maps = grounding.word_maps(model, *inputs, layer)[0]
            pieces = self._spelled(inputs[1][0].tolist())
            words = {word: boxes.upsample(maps[own].sum(0), *size) for word, own in pieces.items()}
            small = maps.mean(0)
        else:
            small = grounding.similarity_maps(model, *inputs, layer)[0]
        large = boxes.upsample(small, *size)
        points = bool(large.max() > 0)
        box: Box = boxes.box_of_map(large)
        if given:
            box, points = grounding.best_box(large, given)
        return Region(opened, large, boxes.point(small, *size), box, points, words)

    @torch.no_grad()
    def _verdict(self, model: AlbefForClassification | AlbefForPairs, pixels: Tensor, text: str) -> Verdict:
        shares = model(pixels, *self._words(text)).logits[0].softmax(-1).tolist()
        found = dict(zip(model.labels, shares, strict=True))
        return Verdict(max(found, key=lambda label: found[label]), found)

    def _model(self, kind: type[M], what: str, task: str) -> M:
        if not isinstance(self.model, kind):
            raise AlbefTypeError(
                f"{self.name} is an {type(self.model).__name__}, which can't {what}: load an {kind.__name__}, "
                f"such as `albef train` makes with a recipe of the task `{task}`"
            )
        return self.model

    def _pixels(self, image: ImageLike) -> Tensor:
        return self.processor.images([image]).to(self.model.device)

    def _words(self, text: str) -> tuple[Tensor, Tensor]:
        if not clean_caption(text):
            raise AlbefValueError(f"the text {text!r} has no word in it; describe something, e.g. 'a dog on the beach'")
        return self._on(self.processor.texts([text], self.model.config.max_positions))

    def _on(self, words: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return words["input_ids"].to(self.model.device), words["attention_mask"].to(self.model.device)

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


def _opened(image: ImageLike) -> Image.Image:
    return to_rgb(image) if isinstance(image, Image.Image) else open_image(image)
