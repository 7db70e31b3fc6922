"""The page renders plain data: every section, nothing from outside, nothing unescaped."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from albef_demo import report
from albef_demo.report.chart import Chart, Line, _ticks, chart_svg

EVIL = '<script>alert("x")</script> & $title'
VOID = {"meta", "img", "br"}


def image(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


def figures(value: float) -> dict[str, float]:
    return {f"{side}_r{k}": value for side in ("img", "txt") for k in (1, 5, 10)}


def sentence(values: np.ndarray | None) -> report.Sentence:
    found = [report.FoundPainting(image(), EVIL, EVIL, (EVIL,), share, share > 0.5) for share in (0.875, 0.25)]
    return report.Sentence(EVIL, found, values, 7, 174)


def small_report(typed: bool = True) -> report.Report:
    hit = report.Hit(image(), EVIL, 0.25, 3, 0.5)
    query = report.Query(EVIL, [hit], [hit], [hit])
    lesson = report.Lesson(image(), EVIL, [EVIL, "a dog"], [("a dog", 0.75, "right"), (EVIL, 0.1, "label")])
    curve = Chart(EVIL, "step", 10.0, [Line("ITC", [(1.0, 7.0), (10.0, 3.0)], 0), Line("none", [], 1)], (5.0, EVIL))
    return report.Report(
        lead=EVIL,
        images=1811,
        candidates=16,
        charts=[curve],
        growth={EVIL: {250: 6.5, 1500: 43.21}, "recorded run": {250: 7.0}},
        growth_words=EVIL,
        figures={"chance": figures(0.0625), EVIL: figures(12.345)},
        queries=[query],
        maps=[report.WordMaps(image(), "a cat", [(EVIL, 0.125, np.eye(4)), ("dog", 0.5, np.zeros((4, 4)))])],
        teacher=report.Teacher({"label": 1, "right": 2, "related": 0, "wrong": 1}, [lesson], [lesson]),
        missed=[report.Miss(image("blue"), EVIL, 321, [hit])],
        missed_count=1000,
        typed=[query] if typed else [],
        paintings=[sentence(np.eye(4)), sentence(None)] if typed else [],
    )


class Page(HTMLParser):
    """Reads a page; every tag must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and self.open[-1:] == [tag]:
            self.open.pop()
        elif tag not in VOID:
            raise AssertionError(f"</{tag}> closes {self.open[-1:]}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_every_section_is_there() -> None:
    page = Page(report.render(small_report()))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["curves", "figures", "typed", "queries", "maps", "paintings", "teacher", "missed"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in sections]
    without = Page(report.render(small_report(typed=False)))
    assert not {"typed", "paintings"} & {attributes.get("id") for _, attributes in without.tags}


def test_numbers_are_shown() -> None:
    text = report.render(small_report())
    for shown in ("12.35", "0.06", "1,811", "16 candidates", "1,000", "place 321", "2 (50.0%)", "match 12%", "from 3"):
        assert shown in text, shown


def test_paintings_say_what_fits_and_what_is_shown_instead() -> None:
    text = report.render(small_report())
    assert text.count("1 of the first 2 fit; 7 of all 174 do.") == 2
    assert text.count("✓ fits") == text.count("✗ wrong; tagged &lt;script") == 2
    assert "<b>88%</b>" in text and "fits for 2 of 2 sentences" in text
    assert text.count("heat map of &lt;script") == 2 and "sees the sentence nowhere" in text
    assert "Metropolitan" in text and "Metropolitan" not in report.render(small_report(typed=False))


def test_texts_are_escaped() -> None:
    text = report.render(small_report())
    assert "<script" not in text
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; $title" in text


def test_nothing_is_loaded_from_outside() -> None:
    text = report.render(small_report())
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|src=\"(?!data:image/webp;base64,)", text)


def test_images_and_curves_have_words() -> None:
    tags = Page(report.render(small_report())).tags
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")
    labels = [attributes["aria-label"] for tag, attributes in tags if tag == "svg"]
    assert len(labels) == 1 and "ITC from 7 to 3" in str(labels[0]) and "none has no points yet" in str(labels[0])


def test_search_page() -> None:
    hit = report.Hit(image(), EVIL, 0.25, 1, 0.5)
    page = report.render_search([report.Query(EVIL, [hit], [hit], [hit])], EVIL)
    Page(page)
    assert "<script" not in page and page.count("<img") == 3


@pytest.mark.parametrize(
    "points",
    [[], [(0.0, 0.0)], [(5.0, 3.0)], [(0.0, 7.0), (9.0, 6.5)], [(0.0, 1e-6), (1.0, 2e4)]],
    ids=["none", "zero", "one", "high", "wide"],
)
def test_svg_is_well_formed(points: list[tuple[float, float]]) -> None:
    tree = ElementTree.fromstring(chart_svg(Chart(EVIL, EVIL, 9.0, [Line(EVIL, points, 0)], (4.0, EVIL))))
    numbers = [float(n) for node in tree.iter("polyline") for n in re.findall(r"-?[\d.]+", node.attrib["points"])]
    assert len(numbers) == 2 * len(points)
    assert all(0 <= n <= 360 for n in numbers)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.0, 0.007), (5.3, 7.1), (0.0, 40_000.0), (0.6, 0.73)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] >= low and ticks[-1] <= high
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
