"""The parts that every page is made of: its frame, images, curves and tables, as HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from albef_demo.report.chart import Chart, chart_svg

PAGE = Path(__file__).parent / "page.html"
Section = tuple[str, str, str]  # id, heading, HTML
Link = tuple[str, str]  # address, words


def page(title: str, lead: str, sections: Sequence[Section], footer: str, links: Iterable[Link] = ()) -> str:
    """One HTML document that loads nothing from elsewhere. `lead` is HTML; `links` lead to other pages."""
    own = _nav("sections", [(f"#{key}", head) for key, head, _ in sections])
    bodies = "\n".join(f'<section id="{key}"><h2>{escape(head)}</h2>{body}</section>' for key, head, body in sections)
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(title), lead=lead, nav=_nav("pages", links) + own, sections=bodies, footer=escape(footer)
    )


def _nav(what: str, links: Iterable[Link]) -> str:
    items = "".join(f'<a href="{escape(address)}">{escape(words)}</a>' for address, words in links)
    return f'<nav aria-label="{what}">{items}</nav>' if items else ""


def img(image: Image.Image, alt: str) -> str:
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    width, height = image.size
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(alt)}" width="{width}" height="{height}">'


def charts(curves: Iterable[Chart]) -> str:
    figures = (f"<figure><figcaption>{escape(one.title)}</figcaption>{chart_svg(one)}</figure>" for one in curves)
    return f'<div class="charts">{"".join(figures)}</div>'


def table(label: str, heads: str, rows: Mapping[str, Iterable[float | None]]) -> str:
    """A table of numbers, a row for each name; `heads` are its first rows as HTML."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, values))}</tr>' for name, values in rows.items()
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table><thead>{heads}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def recall_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A table of recalls (`img_r1`, ..., `txt_r10`), a row for each name."""
    keys = [f"{side}_r{k}" for side in ("img", "txt") for k in (1, 5, 10)]
    heads = (
        '<tr><th></th><th colspan="3" scope="colgroup">text → image</th>'
        '<th colspan="3" scope="colgroup">image → text</th></tr><tr><th></th>'
        + "".join(f'<th scope="col">R@{k}</th>' for _ in range(2) for k in (1, 5, 10))
        + "</tr>"
    )
    return table("recalls", heads, {name: [values[key] for key in keys] for name, values in figures.items()})


def _cell(value: float | None) -> str:
    return "<td>–</td>" if value is None else f"<td>{value:.2f}</td>"
