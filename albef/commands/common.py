"""What several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

from tyro.conf import arg

from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.protocols import choices


def image_size(text: str | None) -> int | tuple[int, int] | None:
    """`384`, or height and width as in `256x512`. ValueError for anything else."""
    if text is None:
        return None
    sides = text.split("x")
    if not (1 <= len(sides) <= 2 and all(side.isdecimal() and int(side) for side in sides)):
        raise AlbefValueError(f"--image-size {text!r} is no size; give pixels, 384, or height and width, 256x512")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def layers(text: str | None) -> list[int] | None:
    """`3,4,5`. ValueError for anything else."""
    if text is None:
        return None
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise AlbefValueError(f"--fusion-from {text!r} names no layers; give their numbers, 3,4,5, counted from 0")
    return [int(number) for number in numbers]


def check_places(*paths: Path | None) -> None:
    """An error for a file that could not be written, before the work is done."""
    for path in filter(None, paths):
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder; name a file in it")
        if not path.parent.is_dir():
            raise AlbefFileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")


def check_suffix(option: str, path: Path, kinds: Iterable[str], advice: str) -> None:
    """ValueError for a file whose suffix says nothing that could be written."""
    if path.suffix.lower() not in kinds:
        raise AlbefValueError(f"{option} {path}: its suffix says how it is written; give {advice}")


def without_none(kind: Any) -> Any:
    """The class of a command, of which help and errors don't show the defaults `None` and `()`: the help has words."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        default = getattr(kind, name, "")
        if default in (None, ()) and get_origin(hint) is not Annotated:
            known = choices(hint) if default is None else []  # the class itself checks that it is one of them
            metavar = f"{{{','.join(known)}}}" if known else None
            shown: Any = str | None if known else hint
            kind.__annotations__[name] = Annotated[shown, arg(metavar=metavar, help_behavior_hint="")]
    return kind
