"""A page for each task of the generated world: its figures, and examples that went right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from albef.heat import heat
from albef_demo.report.chart import Chart
from albef_demo.report.hits import Hit, Query, query_rows
from albef_demo.report.parts import Section, charts, img, page, recall_table, table
from albef_demo.report.prose import PROSE

Box = Sequence[float]  # x, y, width, height in pixels of the image
Named = tuple[Image.Image, str]  # an image and what it shows
SIDE, HIT_SIDE = 144, 72  # pixels of the images on the page
TRUE, FOUND = "#ffffff", "#ff2fd6"  # of the boxes
FOOTER = (
    "A small program makes the images and the words: coloured shapes, large and small. The figures say nothing about "
    "photographs."
)


@dataclass(frozen=True)
class JudgedExample:
    """An example with one or two images, its question or statement, and what the model says.

    shares      the likeliest labels with their probabilities
    truth       the right label
    written     an answer written freely; None if the task has none
    """

    images: list[Named]
    text: str
    shares: list[tuple[str, float]]
    truth: str
    right: bool
    written: str | None = None


@dataclass(frozen=True)
class Found:
    """A text's image, what the text finds, and the place of the right image after re-ranking.

    `place` is None for an image that is not on the shortlist.
    """

    image: Named
    query: Query
    place: int | None

    @property
    def right(self) -> bool:
        return self.place == 1


@dataclass(frozen=True)
class Spot:
    """A map [height, width] made in one way (`way`: ITM or ITC), with its highest point (x, y) and the box around it.

    Point and box are None for a map without a positive value.
    """

    way: str
    values: np.ndarray
    peak: tuple[float, float] | None
    box: Box | None


@dataclass(frozen=True)
class Pointed:
    """A phrase with its true box, where each way sees it (`spots`), and the map of each of its words."""

    image: Named
    text: str
    truth: Box
    spots: list[Spot]
    words: list[tuple[str, np.ndarray]]
    right: bool


Block = JudgedExample | Found | Pointed


@dataclass(frozen=True)
class TaskPage:
    """Everything that a page shows.

    key         name of its file, and of its prose
    run         how it was trained, in words
    line        the main figure in words
    figures     percent by row and column, guessing first; of retrieval recalls as `Report` has them
    note        what else there is to say of the figures
    drawn       examples drawn by chance
    wrong       more that went wrong, after looking at `looked_at` in all
    """

    key: str
    run: str
    line: str
    charts: list[Chart]
    figures: dict[str, dict[str, float]]
    drawn: Sequence[Block]
    wrong: Sequence[Block]
    looked_at: int
    note: str = ""


def task_list(pages: Sequence[TaskPage]) -> str:
    """A line, a figure and a link for each task as HTML; an empty text if there are no tasks."""
    items = "".join(
        f'<li><h3><a href="{one.key}.html">{PROSE[one.key].title}</a></h3><b>{escape(one.line)}</b><br>'
        f"{escape(PROSE[one.key].what)}</li>"
        for one in pages
    )
    intro = (
        "<p>A small model that knows a generated world of coloured shapes was fine-tuned for each task of the paper. "
        "Each page has its curves, its figures next to guessing, and examples drawn by chance.</p>"
    )
    return f'{intro}<ul class="tasks">{items}</ul>' if items else ""


def render_task(task: TaskPage, pages: Sequence[TaskPage]) -> str:
    """A task's page as one HTML document, with links to the report and to the other `pages`."""
    prose = PROSE[task.key]
    sections: list[Section] = [
        ("curves", "The run just made", f"<p>{escape(prose.curves)}</p>{charts(task.charts)}"),
        ("figures", "Next to guessing", _figures(task)),
        ("drawn", "Drawn by chance", _drawn(task)),
        ("wrong", "What went wrong", _wrong(task)),
    ]
    links = [("report.html", "Report")]
    links += [(f"{one.key}.html", PROSE[one.key].title) for one in pages if one.key != task.key]
    lead = f"{escape(prose.what)}</p><p>{escape(task.run)}"
    return page(prose.title, lead, sections, FOOTER, links)


def _figures(task: TaskPage) -> str:
    note = f"<p>{escape(task.note)}</p>" if task.note else ""
    shown = recall_table(task.figures) if task.key == "retrieval" else _columns(task.figures)
    return f"<p>{escape(PROSE[task.key].figures)} All figures are in percent.</p>{shown}{note}"


def _columns(figures: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(column for values in figures.values() for column in values))
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = {name: [values.get(column) for column in columns] for name, values in figures.items()}
    return table("figures", f"<tr><th></th>{heads}</tr>", rows)


def _drawn(task: TaskPage) -> str:
    right = sum(block.right for block in task.drawn)
    return (
        f"<p>{escape(PROSE[task.key].examples)}</p>{_legend(task)}"
        f"<p>{right} of these {len(task.drawn)} are right.</p>{_blocks(task.drawn)}"
    )


def _wrong(task: TaskPage) -> str:
    if not task.wrong:
        return f"<p>No more wrong ones are among the first {task.looked_at} of the draw.</p>"
    return (
        f"<p>These are not typical: they are the next wrong ones of the draw, after {task.looked_at} were looked at in "
        "all.</p>" + _blocks(task.wrong)
    )


def _legend(task: TaskPage) -> str:
    if not any(isinstance(block, Pointed) for block in task.drawn):
        return ""
    kinds = ((TRUE, "the true box"), (FOUND, "the box around the map's peak, and the peak"))
    items = "".join(f'<li><span class="swatch" style="border-color:{colour}"></span>{w}</li>' for colour, w in kinds)
    return f'<ul class="legend">{items}</ul>'


def _blocks(blocks: Sequence[Block]) -> str:
    wide = "" if all(isinstance(block, JudgedExample) for block in blocks) else " long"
    return f'<div class="cases{wide}">{"".join(map(_block, blocks))}</div>'


def _block(block: Block) -> str:
    if isinstance(block, JudgedExample):
        body = _judged(block)
    else:
        body = _found(block) if isinstance(block, Found) else _pointed(block)
    return f'<div class="case {"is-right" if block.right else "is-wrong"}">{body}</div>'


def _verdict(right: bool, more: str = "") -> str:
    return f'<p class="{"right" if right else "wrong"}">{"✓ right" if right else "✗ wrong"}{escape(more)}</p>'


def _judged(block: JudgedExample) -> str:
    images = "".join(img(enlarged(image, SIDE), alt) for image, alt in block.images)
    best = max(share for _, share in block.shares)
    bars = "".join(_bar(label, share, _mark(label == block.truth, share == best)) for label, share in block.shares)
    written = "" if block.written is None else _written(block.written, block.truth)
    return (
        f'<div class="images">{images}</div><div><h3>{escape(block.text)}</h3><ul class="bars">{bars}</ul>'
        f"{written}<p>truth: <b>{escape(block.truth)}</b></p>{_verdict(block.right)}</div>"
    )


def _mark(true: bool, best: bool) -> str:
    return "right" if true else "wrong" if best else ""


def _bar(label: str, share: float, mark: str) -> str:
    return (
        f'<li class="{mark}"><span>{escape(label)}</span><span class="bar"><i style="width:{share:.1%}"></i></span>'
        f"<small>{share:.0%}</small></li>"
    )


def _written(text: str, truth: str) -> str:
    return f'<p>written freely: <b class="{"right" if text == truth else "wrong"}">{escape(text) or "nothing"}</b></p>'


def _found(block: Found) -> str:
    def large(hits: list[Hit]) -> list[Hit]:
        return [replace(hit, image=enlarged(hit.image, HIT_SIDE)) for hit in hits]

    image, name = block.image
    own = block.query
    query = Query(own.text, large(own.by_itc), large(own.by_itm), large(own.by_odds))
    more = "" if block.right else f": place {block.place}" if block.place else ": not on the shortlist"
    return (
        f'<div class="images">{img(enlarged(image, SIDE), name)}</div><div><h3>“{escape(query.text)}”</h3>'
        f"{_verdict(block.right, more)}{query_rows(query, right=name)}</div>"
    )


def _pointed(block: Pointed) -> str:
    image, alt = block.image
    large = enlarged(image, SIDE)
    scale = large.width / image.width
    items = _map(_boxed(large, scale, block.truth), alt, "the image")
    for spot in block.spots:
        boxed = _boxed(heat(large, spot.values, large.size), scale, block.truth, spot)
        items += _map(boxed, f"heat map by {spot.way}", f"by {spot.way}" + ("" if spot.peak else ": points nowhere"))
    for word, values in block.words:
        items += _map(heat(large, values, large.size), f"heat map of {word}", f"“{word}”")
    return f'<div><h3>“{escape(block.text)}”</h3>{_verdict(block.right)}<ul class="maps">{items}</ul></div>'


def _map(image: Image.Image, alt: str, words: str) -> str:
    return f"<li>{img(image, alt)}{escape(words)}</li>"


def _boxed(image: Image.Image, scale: float, truth: Box, spot: Spot | None = None) -> Image.Image:
    """The image with the true box and with what was found; `scale` is the image's size relative to the data's."""
    boxed = image.convert("RGB")
    draw = ImageDraw.Draw(boxed)
    _outline(draw, truth, scale, TRUE)
    if spot and spot.box:
        _outline(draw, spot.box, scale, FOUND)
    if spot and spot.peak:
        x, y = (place * scale for place in spot.peak)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), FOUND, "black")
    return boxed


def _outline(draw: ImageDraw.ImageDraw, box: Box, scale: float, colour: str) -> None:
    """Draws a box as a line edged in black, which is visible on any ground."""
    x, y, width, height = (side * scale for side in box)
    for grow, tint, thick in ((1, "black", 4), (0, colour, 2)):
        draw.rectangle((x - grow, y - grow, x + width - 1 + grow, y + height - 1 + grow), outline=tint, width=thick)


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The image enlarged by the largest whole number that fits `side`; each pixel becomes a square."""
    times = max(1, side // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
