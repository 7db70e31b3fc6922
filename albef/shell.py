"""`albef ask | entail | compare | match | ground`: one image, one line, from a shell.

Each command gives what `--json` prints, and the same as lines for people.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from PIL import Image

from albef import pipeline as api
from albef.errors import AlbefValueError
from albef.tasks.vqa import read_answers

Found = tuple[Any, list[str]]


def ask(options: argparse.Namespace) -> Found:
    listed = read_answers(options.answers) if options.answers else None
    answers = _load(options).answer(options.image, options.question, options.k, listed, options.free)
    return [asdict(one) for one in answers], [_share(one.probability, one.text) for one in answers]


def entail(options: argparse.Namespace) -> Found:
    return _verdict(_load(options).entails(options.image, options.text))


def compare(options: argparse.Namespace) -> Found:
    return _verdict(_load(options).compare(options.left, options.right, options.text))


def match(options: argparse.Namespace) -> Found:
    found = _load(options).match(options.image, options.text)
    return asdict(found), [f"match {found.probability:.1%}, cosine {found.cosine:.3f}"]


def ground(options: argparse.Namespace) -> Found:
    """Also writes the image under its heat map to `options.out`. ValueError for a suffix of no kind of image."""
    kinds = sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE)
    if options.out.suffix.lower() not in kinds:
        raise AlbefValueError(
            f"--out {options.out}: its suffix says how it is written; give .png, .jpg or another image's"
        )
    region = _load(options).ground(options.image, options.text, options.mode, options.layer)
    region.overlay().save(options.out)
    x, y, width, height = (float(side) for side in region.box)
    note = "" if region.points else " (the map has no positive value: the box says nothing)"
    lines = [f"x {x:g}, y {y:g}, width {width:g}, height {height:g}{note}", f"heat map: {options.out}"]
    return {"box": [x, y, width, height], "points": region.points, "image": str(options.out)}, lines


def _load(options: argparse.Namespace) -> api.Pipeline:
    return api.load(options.model, image_size=options.image_size)


def _verdict(found: api.Verdict) -> Found:
    ranked = sorted(found.probabilities.items(), key=lambda pair: -pair[1])
    return asdict(found), [_share(share, label) for label, share in ranked]


def _share(share: float, text: str) -> str:
    return f"{share:>6.1%}  {text}"


COMMANDS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "ask": ask,
    "entail": entail,
    "compare": compare,
    "match": match,
    "ground": ground,
}
