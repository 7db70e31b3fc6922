"""Questions, statements and phrases about the generated world, for the tasks after pre-training.

Every example is a pure function of split and index. A false statement is nearly true, and its words alone do not give
it away: each wording is as often right as wrong.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from albef.data.records import Box, Example, Kind, checked
from albef_demo.world import (
    COLOURS,
    PREFIX,
    QUARTERS,
    SEEDS,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    Thing,
    WorldSource,
    parse,
    png,
    relations,
    scene,
    scene_of,
)

Random = np.random.Generator
Things = tuple[Thing, ...]
Item = TypeVar("Item")
LABELS = ("contradiction", "neutral", "entailment")
HIDDEN = ("heavy", "new", "old", "soft", "hard", "warm", "cold", "wooden", "metal")  # what no image shows
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
VALUES: dict[str, Sequence[str]] = {
    "colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES), "quarter": QUARTERS,
}  # fmt: skip
# How often the number of things is talked about, so that each number is met equally often.
COUNTED = {1: 1.0, 2: 0.25, 3: 0.6}


class WorldExamples:
    """Examples of one kind from the part of the world that `name` stands for, such as `world:train/2000`.

    The kinds vqa and classification have three examples for each scene (classification has one of each class), and the
    kind phrases has two. The kind pairs has one example for each scene's number, but scenes of its own: every statement
    comes with four pairs of images, and is true of two of them.
    """

    def __init__(self, kind: Kind, name: str) -> None:
        self.kind = kind
        self.split, self.scenes = parse(name)

    def __len__(self) -> int:
        return self.scenes * _PER_SCENE[self.kind]

    def __getitem__(self, index: int) -> Example:
        number, place = divmod(checked(index, len(self)), _PER_SCENE[self.kind])
        return _MAKERS[self.kind](self.split, number, place)


def open_records(name: str) -> WorldSource:
    """The scenes of a part of the world with their captions; `name` such as `world:train`."""
    return WorldSource(name)


def open_examples(kind: Kind, name: str) -> WorldExamples:
    """The examples of one kind about a part of the world."""
    return WorldExamples(kind, name)


def _vqa(split: str, number: int, place: int) -> Example:
    found, image, name = _shown(split, number)
    question, answer = _questions(found.things, np.random.default_rng((SEEDS[split], number, 2)))[place]
    return Example(name, (image,), question, f"{split}-{number * 3 + place}", answers=(answer,))


def _classification(split: str, number: int, place: int) -> Example:
    found, image, name = _shown(split, number)
    random = np.random.default_rng((SEEDS[split], number, 3, place))
    statement = _statement(found.things, LABELS[place], random)
    return Example(name, (image,), statement, f"{split}-{number * 3 + place}", label=LABELS[place])


def _pairs(split: str, number: int, place: int) -> Example:
    group, member = divmod(number, 4)
    seed = (SEEDS[split], group, 4)
    random = np.random.default_rng(seed)
    text, cases, make = _comparison(random)
    truth = bool(random.permutation([True, True, False, False])[member])
    random = np.random.default_rng((*seed, member, 2))
    states = _one(random, cases[truth])
    images = tuple(png(make(state, (*seed, member, side))) for side, state in enumerate(states))
    name = f"{PREFIX}{split}, pair {number}"
    return Example(name, images, text, f"{split}-{group}-{member}-0", label=str(truth))


def _phrases(split: str, number: int, place: int) -> Example:
    found, image, name = _shown(split, number)
    random = np.random.default_rng((SEEDS[split], number, 5))
    boxes = [*(thing.box for thing in found.things), _anywhere(random), _anywhere(random)]
    candidates = tuple(boxes[row] for row in random.permutation(len(boxes)))
    order = random.permutation(len(found.things))
    things = [found.things[order[turn % len(order)]] for turn in range(2)]
    phrase = [_phrase(thing, found.things, random) for thing in things][place]
    return Example(
        name, (image,), phrase, f"{split}-{number * 2 + place}",
        boxes=(things[place].box,), candidates=candidates, size=(SIDE, SIDE), split=split,
    )  # fmt: skip


_PER_SCENE: dict[Kind, int] = {"vqa": 3, "classification": 3, "pairs": 1, "phrases": 2}
_MAKERS: dict[Kind, Callable[[str, int, int], Example]] = {
    "vqa": _vqa, "classification": _classification, "pairs": _pairs, "phrases": _phrases,
}  # fmt: skip


@functools.lru_cache(maxsize=16)  # examples of a scene are mostly asked for one after the other
def _shown(split: str, number: int) -> tuple[Scene, bytes, str]:
    """The scene of that number, the bytes of its image, and the name that both have."""
    found = scene(split, number)
    return found, png(found), f"{PREFIX}{split}/{number}"


def _one(random: Random, items: Sequence[Item]) -> Item:
    return items[int(random.integers(len(items)))]


def _questions(things: Things, random: Random) -> list[tuple[str, str]]:
    """Three questions of different kinds with their answers."""
    colour, shape = _present(things, random) if (holds := random.random() < 0.5) else _absent(things, random)
    kinds = [
        [(f"what colour is the {thing.shape}", thing.colour) for thing in things],
        [(f"what shape is the {thing.colour} thing", thing.shape) for thing in things],
        [(f"how big is the {name}", thing.size) for thing in things for name in _names(thing)],
        [(f"where is the {name}", thing.quarter) for thing in things for name in _names(thing)],
        [(f"what is {words} the {b.colour} {b.shape}", a.shape) for a, words, b in _only_related(things)],
        [(f"is there {_article(f'{colour} {shape}')}", "yes" if holds else "no")],
        [("how many things are there", NUMBERS[len(things)])] if random.random() < COUNTED[len(things)] else [],
    ]
    possible = [kind for kind in kinds if kind]
    return [_one(random, possible[row]) for row in random.permutation(len(possible))[:3]]


def _names(thing: Thing) -> tuple[str, ...]:
    """Names that fit this thing only, in any scene: no two things of a scene have the same shape or colour."""
    return thing.shape, f"{thing.colour} thing", f"{thing.colour} {thing.shape}"


def _related(things: Things) -> list[tuple[Thing, str, Thing]]:
    """Every pair of things with the words for how the first lies to the second."""
    return [(a, words, b) for a, b in itertools.permutations(things, 2) for words in relations(a, b)]


def _only_related(things: Things) -> list[tuple[Thing, str, Thing]]:
    """The pairs in which no other thing lies in the same way to the second thing."""
    every = _related(things)
    rivals = [(words, b) for _, words, b in every]
    return [found for found in every if rivals.count(found[1:]) == 1]


def _present(things: Things, random: Random) -> tuple[str, str]:
    """Colour and shape of one of the things."""
    thing = _one(random, things)
    return thing.colour, thing.shape


def _absent(things: Things, random: Random) -> tuple[str, str]:
    """A colour and a shape that no thing has together.

    A thing of the scene has one of the two; where there are several things, another thing has the other one.
    """
    thing = _one(random, things)
    wrong = _changed(thing, things, _one(random, ("colour", "shape")), random)
    return wrong.colour, wrong.shape


def _changed(thing: Thing, things: Things, what: str, random: Random) -> Thing:
    """A thing with another colour, shape, size or quarter: that of another thing of the scene, or else any."""
    own = getattr(thing, what)
    others = [getattr(other, what) for other in things if getattr(other, what) != own]
    return replace(thing, **{what: _one(random, others or [value for value in VALUES[what] if value != own])})


def _article(text: object) -> str:
    return f"an {text}" if str(text)[0] in "aeiou" else f"a {text}"


def _statement(things: Things, label: str, random: Random) -> str:
    """A statement with this label: one that is true, one that is false, or one that the image cannot decide.

    For statements in the same words two labels are equally frequent. What can be seen is true or false. What cannot be
    seen is undecided for a thing of the scene; of a thing that is not there it is false, and its denial is true.
    """
    coin = random.random() < 0.5
    if label == "neutral":
        return _hidden(_present(things, random), coin, random)
    if coin:
        return _claim(things, label == "entailment", random)
    return _hidden(_absent(things, random), label == "entailment", random)


def _hidden(described: tuple[str, str], denied: bool, random: Random) -> str:
    thing, quality = " ".join(described), _one(random, HIDDEN)
    if denied:
        return f"there is no {quality} {thing}"
    return _one(random, (f"the {thing} is {quality}", f"there is {_article(f'{quality} {thing}')}"))


# What is said of a thing, and what of it may be changed to make that wrong.
_CLAIMS: tuple[tuple[Callable[[Thing], str], tuple[str, ...]], ...] = (
    (lambda thing: f"the {thing.shape} is {thing.colour}", ("colour",)),
    (lambda thing: f"the {thing.colour} thing is {_article(thing.shape)}", ("shape",)),
    (lambda thing: f"the {thing.colour} {thing.shape} is {thing.size}", ("size",)),
    (lambda thing: f"the {thing.shape} is at the {thing.quarter}", ("quarter",)),
    (lambda thing: f"there is {_article(thing)}", ("size", "colour", "shape")),
    (lambda thing: f"{thing} at the {thing.quarter}", ("size", "colour", "shape", "quarter")),
)


def _claim(things: Things, right: bool, random: Random) -> str:
    """A statement that the image decides."""
    kinds = [*range(len(_CLAIMS)), *(["relation"] * 2 if len(things) > 1 else [])]
    kinds += ["number"] if random.random() < COUNTED[len(things)] else []
    kind = _one(random, kinds)
    if kind == "relation":
        a, words, b = _one(random, _related(things))
        words = words if right else OPPOSITE[words]
        return f"the {a.colour} {a.shape} is {words} the {b.colour} {b.shape}"
    if kind == "number":
        wrong = [number for number in COUNTED if number != len(things)]
        return f"there {_things(len(things) if right else _one(random, wrong))}"
    say, changeable = _CLAIMS[kind]
    thing = _one(random, things)
    return say(thing if right else _changed(thing, things, _one(random, changeable), random))


def _things(number: int) -> str:
    return "is one thing" if number == 1 else f"are {NUMBERS[number]} things"


# Who shows something, left and right, where it is true, and where it is false by one image.
_SHOWN: dict[str, dict[bool, tuple[tuple[int, int], ...]]] = {
    "both pictures show": {True: ((1, 1),), False: ((1, 0), (0, 1))},
    "only the left picture shows": {True: ((1, 0),), False: ((1, 1), (0, 1))},
    "only the right picture shows": {True: ((0, 1),), False: ((1, 1), (1, 0))},
    "exactly one picture shows": {True: ((1, 0), (0, 1)), False: ((1, 1), (0, 0))},
    "neither picture shows": {True: ((0, 0),), False: ((1, 0), (0, 1))},
}
_COUNTS = [(left, right) for left in COUNTED for right in COUNTED]
Seed = tuple[int, ...]
Comparison = tuple[str, dict[bool, Sequence[tuple[int, int]]], Callable[[int, Seed], Scene]]


def _comparison(random: Random) -> Comparison:
    """A statement about two images, the states of both scenes that make it true or false, and a scene in a state."""
    return _one(random, (_showing, _showing, _total, _more, _colour_in_both))(random)


def _showing(random: Random) -> Comparison:
    said, what = _one(random, tuple(_SHOWN)), _one(random, ("colour", "shape"))
    value = _one(random, VALUES[what])
    named = _article(value if what == "shape" else f"{value} thing")

    def make(state: int, seed: Seed) -> Scene:
        return _scene_where(lambda things: any(getattr(thing, what) == value for thing in things) == bool(state), seed)

    return f"{said} {named}", {**_SHOWN[said]}, make


def _total(random: Random) -> Comparison:
    total = int(random.integers(2, 7))
    right = [counts for counts in _COUNTS if sum(counts) == total]
    wrong = [counts for counts in _COUNTS if abs(sum(counts) - total) == 1]
    return f"there are {NUMBERS[total]} things in total", {True: right, False: wrong}, _scene_of_count


def _more(random: Random) -> Comparison:
    sign, word = _one(random, ((1, "more"), (-1, "fewer")))
    right = [counts for counts in _COUNTS if (counts[0] - counts[1]) * sign > 0]
    wrong = [counts for counts in _COUNTS if counts not in right]
    text = f"the left picture shows {word} things than the right picture"
    return text, {True: right, False: wrong}, _scene_of_count


def _colour_in_both(random: Random) -> Comparison:
    shape, colour = _one(random, SHAPES), _one(random, VALUES["colour"])

    def make(state: int, seed: Seed) -> Scene:
        found = _scene_where(
            lambda things: shape in [t.shape for t in things] and (shape, colour) not in _kinds(things), seed
        )
        return _recoloured(found, shape, colour) if state else found

    return f"the {shape} is {colour} in both pictures", {**_SHOWN["both pictures show"]}, make


def _kinds(things: Things) -> list[tuple[str, str]]:
    return [(thing.shape, thing.colour) for thing in things]


def _recoloured(found: Scene, shape: str, colour: str) -> Scene:
    """The scene with its `shape` in `colour`; a thing that had this colour gets the old colour of the shape."""
    old = next(thing.colour for thing in found.things if thing.shape == shape)
    swap = {old: colour, colour: old}
    return replace(found, things=tuple(replace(t, colour=swap.get(t.colour, t.colour)) for t in found.things))


def _scene_of_count(count: int, seed: Seed) -> Scene:
    return scene_of(seed, count)


def _scene_where(fits: Callable[[Things], bool], seed: Seed) -> Scene:
    """The first of the scenes made from the seed for which `fits` is true."""
    scenes = (scene_of((*seed, attempt)) for attempt in itertools.count())
    return next(found for found in scenes if fits(found.things))


def _phrase(thing: Thing, things: Things, random: Random) -> str:
    """A phrase that fits only this thing of the scene, and few things of other scenes."""
    name = f"{thing.colour} {thing.shape}"
    forms = [f"{thing.size} {name}", f"the {thing.size} {name}", f"{name} at the {thing.quarter}"]
    forms += [f"{name} {words} the {b.colour} {b.shape}" for a, words, b in _related(things) if a == thing]
    return _one(random, forms)


def _anywhere(random: Random) -> Box:
    """A box (x, y, width, height) of the size of a thing, anywhere in the image."""
    side = float(random.uniform(min(SIZES.values()), max(SIZES.values())))
    x, y = random.uniform(0, SIDE - side, 2)
    return float(x), float(y), side, side
