"""How a model is measured: the rules of every task, as `albef.evaluate` and `albef evaluate` take them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from albef.errors import AlbefValueError

PROTOCOLS: dict[str, dict[str, Any]] = {
    "coco": {"image_size": 384, "k": 256},
    "flickr30k": {"image_size": 384, "k": 128},
    "flickr30k-zero-shot": {"image_size": 384, "k": 128},
}
"""Retrieval as the paper measures it: pixels, and candidates that are re-ranked (spec §3.0, §4.1)."""

TASKS_OF = {
    "protocol": ("retrieval",),
    "captions": ("retrieval",),
    "memory": ("retrieval",),
    "k": ("retrieval", "vqa"),
    "answers": ("vqa",),
    "official": ("vqa",),
    "vg_root": ("vqa",),
    "way": ("vqa",),
    "results": ("vqa", "classification", "nlvr2"),
    "mode": ("grounding",),
    "layer": ("grounding",),
}
"""Rules that not every task has, and the tasks that have them."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What may be chosen of a measurement. What is left out is as in the paper; a task refuses what isn't its own."""

    image_root: str | None = None
    """folder that the paths in JSON lists are relative to (by default the list's own)"""

    precision: Literal["float32", "bfloat16"] = "float32"
    """arithmetic: float32 as in published figures; bfloat16 is quicker where a device knows it"""

    broken_limit: float = 0.01
    """share of the images that may be unreadable: beyond it an error, below it the figures say how many were"""

    results: Path | None = None
    """write what the model says to this file; not for retrieval and grounding"""

    task: Literal["retrieval", "grounding"] | None = None
    """of a model that matches (by default retrieval)"""

    k: int | None = None
    """retrieval, vqa: candidates that are re-ranked (by default 128)"""

    captions: int | None = None
    """retrieval: only the first so many captions of each image"""

    protocol: Literal["coco", "flickr30k", "flickr30k-zero-shot"] | None = None
    """retrieval: size and k of the paper"""

    memory: float | None = None
    """retrieval: GiB for image tokens; halved precision if they need more (by default 8)"""

    answers: Path | None = None
    """vqa: JSON list of answers (by default those the model learnt)"""

    official: bool = False
    """vqa: count the first word twice, as the original"""

    way: Literal["ranked", "generated"] | None = None
    """vqa: answers in the results (by default ranked)"""

    vg_root: str | None = None
    """vqa: folder of Visual Genome's images (by default as the others)"""

    mode: tuple[Literal["itm", "itc"], ...] = ()
    """grounding: kind of heat map (by default both)"""

    layer: int | None = None
    """grounding: layer of the heat map (by default as in the paper)"""

    def __post_init__(self) -> None:
        """ValueError for a value that a rule doesn't have; a single mode may be given by its name."""
        object.__setattr__(self, "mode", (self.mode,) if isinstance(self.mode, str) else tuple(self.mode))
        for name, hint in get_type_hints(Rules).items():
            known, value = choices(hint), getattr(self, name)
            for one in value if isinstance(value, tuple) else [] if value is None else [value]:
                if known and one not in known:
                    raise AlbefValueError(f"unknown {name} {one!r}; there are {', '.join(known)}")
        if not 0 <= self.broken_limit <= 1:
            raise AlbefValueError(f"broken_limit {self.broken_limit}: is a share of the images, from 0 to 1")

    def given(self) -> dict[str, Any]:
        """The rules of `TASKS_OF` that were chosen."""
        values = {name: getattr(self, name) for name in TASKS_OF}
        return {name: value for name, value in values.items() if not (value is None or value is False or value == ())}


def choices(hint: Any) -> list[str]:
    """The names that a `Literal` allows, alone or inside of another type."""
    parts = get_args(hint)
    return list(parts) if get_origin(hint) is Literal else [name for part in parts for name in choices(part)]
