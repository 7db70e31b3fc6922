"""`albef pull`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from albef.files import pulled
from albef.published import PUBLISHED, published


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Fetch published models by name; without a name, list them.

    albef pull albef-14m

    A model is converted and kept in the cache folder ($ALBEF_CACHE, by default ~/.cache/albef); then its name does
    wherever the folder of a model does. What was cut off goes on when the same command is run again.
    """

    names: Positional[Annotated[tuple[str, ...], arg(metavar="[NAME ...]", help_behavior_hint="")]] = ()
    """e.g. albef-14m, coco, start"""

    keep: bool = False
    """leave the files that were fetched, too"""

    def run(self) -> None:
        if not self.names:
            print(listing())
            return
        for name in self.names:
            published(name)  # an error before the first is fetched
        from albef.pull import pull

        for name in self.names:
            print(pull(name, self.keep))


def listing() -> str:
    """The published models, a line for each."""
    lines = []
    for name, model in PUBLISHED.items():
        size = "" if model.megabytes is None else f"{model.megabytes:,} MB"
        here = f"; here: {pulled(name)}" if pulled(name).is_dir() else ""
        lines.append(f"{name:<10} {size:>8}  {model.task:<16} {model.what}{here}")
    return "\n".join([*lines, "albef pull NAME fetches one, of about that size if it is known"])
