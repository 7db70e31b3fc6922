"""Rows of the images that a text finds, before and after re-ranking, as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from PIL import Image

from albef_demo.report.parts import img


@dataclass(frozen=True)
class Hit:
    """An image that was found: its cosine (ITC), its place by it (from 1), the probability of a match (ITM)."""

    image: Image.Image
    name: str
    itc: float
    place: int
    match: float


@dataclass(frozen=True)
class Query:
    """What a text finds: the first images by ITC, and the first of the shortlist re-ranked, by ITM and by both.

    `by_itm` is the paper's order, `by_odds` that of a search (ITC and ITM on one scale).
    """

    text: str
    by_itc: list[Hit]
    by_itm: list[Hit]
    by_odds: list[Hit]


def query_rows(query: Query, right: str | None = None) -> str:
    """The three rows of a query; the image of the name `right` is marked."""
    return (
        f"<h4>by ITC</h4>{hit_row(query.by_itc, moved=False, right=right)}"
        f"<h4>re-ranked by ITM alone</h4>{hit_row(query.by_itm, moved=True, right=right)}"
        f"<h4>re-ranked by ITC and ITM on one scale</h4>{hit_row(query.by_odds, moved=True, right=right)}"
    )


def hit_row(hits: list[Hit], moved: bool, right: str | None = None) -> str:
    """A row of images; with `moved`, each with its place by ITC. The image of the name `right` is marked."""
    items = ""
    for hit in hits:
        came = f"<br>from {hit.place}" if moved else ""
        facts = f"<small>{hit.itc:.2f} · {hit.match:.0%}{came}</small>"
        mark = ' class="found"' if hit.name == right else ""
        items += f"<li{mark}>{img(hit.image, hit.name)}{escape(hit.name)}<br>{facts}</li>"
    return f'<ol class="hits">{items}</ol>'
