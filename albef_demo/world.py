"""A small generated world whose truth is known: coloured shapes, large and small, in the quarters of an image.

Nothing is stored: a scene is a pure function of its split and its index. Wherever a path may stand, `world:train`,
`world:validation` and `world:test` stand for a split, and `world:train/2000` for its first 2,000 scenes.

A scene has one to three things of different shapes and colours, each in a quarter of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from albef.data.records import Record, checked
from albef.errors import AlbefValueError

PREFIX = "world:"
SIDE = 36  # pixels
SCALE = 4  # shapes are drawn this much larger, then scaled down
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 215),
    "yellow": (235, 205, 40),
    "purple": (140, 50, 170),
    "orange": (240, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = {"small": 8, "large": 14}  # side in pixels
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
SPLITS = {"train": 20_000, "validation": 500, "test": 1_000}  # scenes
SEEDS = {"train": 1, "validation": 2, "test": 3}


@dataclass(frozen=True)
class Thing:
    """One shape; `box` is (x, y, width, height) in pixels of the image."""

    shape: str
    colour: str
    size: str
    quarter: str
    box: tuple[float, float, float, float]

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order of their quarters, on a light or dark grey ground."""

    things: tuple[Thing, ...]
    ground: int
    seed: tuple[int, ...]

    def image(self) -> Image.Image:
        """The scene as an RGB image of SIDE x SIDE pixels, with a little noise."""
        side = SIDE * SCALE
        canvas = Image.new("RGB", (side, side), (self.ground,) * 3)
        draw = ImageDraw.Draw(canvas)
        for thing in self.things:
            _draw(draw, thing)
        pixels = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
        noise = np.random.default_rng([*self.seed, 1]).normal(0, 6, pixels.shape)
        return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))

    def captions(self) -> list[str]:
        """All that can be said of the scene in one sentence, in several wordings."""
        if len(self.things) == 1:
            thing = self.things[0]
            return [f"{thing} at the {thing.quarter}", f"{thing} {thing.quarter}"]
        if len(self.things) == 2:
            first, second = self.things
            return [f"{a} {words} {b}" for a, b in ((first, second), (second, first)) for words in relations(a, b)]
        return [
            ", ".join(str(self.things[place]) for place in order)
            for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1))
        ]


def relations(a: Thing, b: Thing) -> list[str]:
    """Words for how `a` lies to `b`: left of or right of, above or below; two of them for a diagonal."""
    found = []
    (row_a, column_a), (row_b, column_b) = a.quarter.split(), b.quarter.split()
    if column_a != column_b:
        found.append("left of" if column_a == "left" else "right of")
    if row_a != row_b:
        found.append("above" if row_a == "top" else "below")
    return found


def scene(split: str, index: int) -> Scene:
    """Scene `index` of a split, 0 .. SPLITS[split] - 1."""
    return scene_of((SEEDS[split], index))


def scene_of(seed: tuple[int, ...], things: int | None = None) -> Scene:
    """The scene made from a seed, with as many things as `things` says; with one to three if it says nothing."""
    random = np.random.default_rng(seed)
    count = things or int(random.choice([1, 2, 3], p=[0.15, 0.6, 0.25]))
    shapes = random.choice(SHAPES, count, replace=False)
    colours = random.choice(list(COLOURS), count, replace=False)
    quarters = np.sort(random.choice(len(QUARTERS), count, replace=False))
    ground = int(random.choice([random.integers(15, 60), random.integers(185, 245)]))
    made = []
    for shape, colour, quarter in zip(shapes, colours, quarters, strict=True):
        size = str(random.choice(list(SIZES)))
        side = SIZES[size] + float(random.uniform(-0.5, 1.0))
        room = (SIDE / 2 - side) / 2  # between the thing, in the middle of its quarter, and the quarter's edge
        x, y = (SIDE / 2 * (quarter % 2), SIDE / 2 * (quarter // 2))
        dx, dy = random.uniform(-1, 1, 2) * max(0.0, room - 0.5)
        box = (float(x + room + dx), float(y + room + dy), side, side)
        made.append(Thing(str(shape), str(colour), size, QUARTERS[quarter], box))
    return Scene(tuple(made), ground, seed)


def _draw(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    x, y, width, height = (value * SCALE for value in thing.box)
    box, colour = (x, y, x + width, y + height), COLOURS[thing.colour]
    if thing.shape == "circle":
        draw.ellipse(box, fill=colour)
    elif thing.shape == "ring":
        draw.ellipse(box, outline=colour, width=round(width / 4))
    elif thing.shape == "square":
        draw.rectangle(box, fill=colour)
    elif thing.shape == "triangle":
        draw.polygon([(x, y + height), (x + width, y + height), (x + width / 2, y)], fill=colour)
    else:
        third = width / 3
        draw.rectangle((x + third, y, x + 2 * third, y + height), fill=colour)
        draw.rectangle((x, y + third, x + width, y + 2 * third), fill=colour)


def parse(name: str) -> tuple[str, int]:
    """The split and the number of scenes that a name stands for: `world:train/2000` -> ("train", 2000).

    AlbefValueError for a name that stands for no part of the world.
    """
    split, _, count = name.removeprefix(PREFIX).partition("/")
    if split not in SPLITS or (count and not (count.isdigit() and 0 < int(count) <= SPLITS[split])):
        known = ", ".join(f"{PREFIX}{split} ({size:,} scenes)" for split, size in SPLITS.items())
        raise AlbefValueError(f"{name}: no such part of the generated world; there are {known}, and {PREFIX}train/2000")
    return split, int(count or SPLITS[split])


def png(scene: Scene) -> bytes:
    """The scene's image as the bytes of a PNG file."""
    file = io.BytesIO()
    scene.image().save(file, "PNG", compress_level=1)
    return file.getvalue()


def unique_scenes(split: str, count: int) -> Iterator[tuple[int, Scene]]:
    """The first `count` scenes of the split in order, leaving out those whose first caption an earlier one has."""
    seen: set[str] = set()
    for index in range(count):
        found = scene(split, index)
        if found.captions()[0] not in seen:
            seen.add(found.captions()[0])
            yield index, found


class WorldSource:
    """Scenes with their captions: pairs to pre-train on, or images to search.

    In the splits to be searched (validation and test) no two scenes have the same first caption.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.split, count = parse(name)
        every = range(count)
        self.indices = (
            list(every) if self.split == "train" else [index for index, _ in unique_scenes(self.split, count)]
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        number = self.indices[checked(index, len(self))]
        found = scene(self.split, number)
        name = f"{PREFIX}{self.split}/{number}"
        return Record(name, png(found), found.captions(), name)

    def captions(self, index: int) -> list[str]:
        return scene(self.split, self.indices[checked(index, len(self))]).captions()
