"""What a pipeline gives for images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from albef.data.records import Box
from albef.heat import heat


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

    @classmethod
    def of(cls, labels: Sequence[str], shares: Sequence[float]) -> Verdict:
        """From the probability of every label, in their order."""
        found = dict(zip(labels, shares, strict=True))
        return cls(max(found, key=lambda label: found[label]), found)


@dataclass(frozen=True)
class Match:
    """Whether text and image belong together: ITM's probability in [0, 1], ITC's cosine in [-1, 1].

    The probability is as ITM learnt it, or calibrated, if `albef calibrate` was run on the model.
    """

    probability: float
    cosine: float


@dataclass(frozen=True)
class Ranked:
    """A candidate by its index in the list that was given, with the two values of `Match`.

    `score` is what the candidates are ordered by, which has no bounds and compares those of one query only.
    """

    index: int
    probability: float
    cosine: float
    score: float


@dataclass(frozen=True)
class States:
    """Every word of texts: `values` [N, L, D], and `mask` [N, L], 1 at words and 0 at padding; of one text, no N.

    The first word is `[CLS]`, which stands for the whole text.
    """

    values: Tensor
    mask: Tensor

    @property
    def first(self) -> Tensor:
        """The state of `[CLS]`, [N, D], or [D] of one text."""
        return self.values[..., 0, :]


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
