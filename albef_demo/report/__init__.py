"""The report of the demonstration: takes plain data, and returns one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np
from PIL import Image

from albef.heat import heat
from albef_demo.report.chart import Chart
from albef_demo.report.hits import Hit, Query, hit_row, query_rows
from albef_demo.report.paintings import FOOTER as PAINTINGS_FOOTER
from albef_demo.report.paintings import FoundPainting, Sentence, painting_rows
from albef_demo.report.parts import charts, img, page, recall_table, table
from albef_demo.report.tasks import FOOTER as TASKS_FOOTER
from albef_demo.report.tasks import TaskPage, render_task, task_list

__all__ = [
    "CaptionKind",
    "FoundPainting",
    "Hit",
    "Lesson",
    "Miss",
    "Query",
    "Report",
    "Sentence",
    "TaskPage",
    "Teacher",
    "WordMaps",
    "render",
    "render_search",
    "render_task",
    "render_tasks",
]  # fmt: skip
FOOTER = (
    "Names and keywords: Unicode CLDR. Images: Fluent Emoji (Microsoft, MIT), Noto Emoji (Google, Apache-2.0), "
    "Twemoji (Twitter and contributors, CC BY 4.0), OpenMoji (CC BY-SA 4.0); scaled, and coloured in the heat maps."
)
TASKS_LEAD = "One small pre-trained model was fine-tuned for each of the five tasks of the paper, in minutes."


@dataclass(frozen=True)
class WordMaps:
    """An image, and for each text: the text, the probability that it matches, and a map [rows, columns] of where.

    The values of a map are not negative.
    """

    image: Image.Image
    name: str
    texts: list[tuple[str, float, np.ndarray]]


CaptionKind = Literal["label", "right", "related", "wrong"]


@dataclass(frozen=True)
class Lesson:
    """A training image with the caption drawn for it, and the captions that its teacher puts first.

    Each of the teacher's captions is its text, its probability and its kind.
    """

    image: Image.Image
    label: str
    captions: list[str]
    teacher: list[tuple[str, float, CaptionKind]]


@dataclass(frozen=True)
class Teacher:
    """For a sample of training images: how often the teacher's first caption is of each kind, and examples."""

    counts: dict[CaptionKind, int]
    better: list[Lesson]
    worse: list[Lesson]


@dataclass(frozen=True)
class Miss:
    """A name whose image is not among the first ten found. `place` is the place of that image by ITC, from 1."""

    image: Image.Image
    name: str
    place: int
    instead: list[Hit]


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    growth          R@10 in percent by row name and step, with `growth_words` to say what it means
    figures         recalls in percent (`img_r1`, ..., `txt_r10`) by row name
    missed          some of the names whose image is not found; there are `missed_count` of them
    typed           what the user searched; empty if nothing
    tasks           the pages of other tasks that the report leads to; empty if none
    paintings       what sentences find among real paintings; empty if there are none
    """

    lead: str
    images: int
    candidates: int
    charts: list[Chart]
    growth: dict[str, dict[int, float]]
    growth_words: str
    figures: dict[str, dict[str, float]]
    queries: list[Query]
    maps: list[WordMaps]
    teacher: Teacher
    missed: list[Miss]
    missed_count: int
    typed: list[Query] = field(default_factory=list)
    tasks: list[TaskPage] = field(default_factory=list)
    paintings: list[Sentence] = field(default_factory=list)


def render(report: Report) -> str:
    """The whole report as one HTML document."""
    sections = [
        ("curves", "The run just made", _curves(report)),
        ("figures", "How well it finds what it never saw", _figures(report)),
        ("typed", "Your queries", _queries(report.typed, report) if report.typed else ""),
        ("queries", "Search: before and after re-ranking", _queries(report.queries, report)),
        ("maps", "Where a word is seen", _maps(report.maps)),
        ("paintings", "Real paintings, found by sentences", painting_rows(report.paintings)),
        ("teacher", "When the teacher knows better than the label", _teacher(report.teacher)),
        ("missed", "What it misses", _missed(report)),
        ("tasks", "Every task", task_list(report.tasks)),
    ]
    found = [section for section in sections if section[2]]
    footer = f"{FOOTER} {PAINTINGS_FOOTER}" if report.paintings else FOOTER
    return page("Align before fuse, in a few minutes", escape(report.lead), found, footer)


def render_search(queries: list[Query], lead: str) -> str:
    """Queries alone as one HTML document."""
    sections = [(f"q{i}", query.text, query_rows(query)) for i, query in enumerate(queries)]
    return page("Search by words", escape(lead), sections, FOOTER)


def render_tasks(pages: list[TaskPage]) -> str:
    """The report of a demonstration that left out the emoji, as one HTML document."""
    return page(
        "Align before fuse, in every task", TASKS_LEAD, [("tasks", "Every task", task_list(pages))], TASKS_FOOTER
    )


def _curves(report: Report) -> str:
    return (
        "<p>The losses should fall below the dashed line, which is what guessing costs. ITC, which aligns images and "
        "texts, learns first. ITM (do image and text match?) and MLM (which word is masked?) join later, when the "
        "images and texts are aligned. The axes of the losses do not start at 0. A good run has a recall on the unseen "
        "style that climbs away from chance. If the losses fall and the recall does not, the run is bad.</p>"
        + charts(report.charts)
        + f"<p>{escape(report.growth_words)}</p>{_growth(report.growth)}"
    )


def _growth(growth: dict[str, dict[int, float]]) -> str:
    """R@10 with a column for every step at which one of the rows was measured."""
    steps = sorted({step for row in growth.values() for step in row})
    heads = "".join(f'<th scope="col">{step:,}</th>' for step in steps)
    rows = {name: [row.get(step) for step in steps] for name, row in growth.items()}
    return table("R@10 by steps", f"<tr><th>R@10 after steps</th>{heads}</tr>", rows)


def _figures(report: Report) -> str:
    return (
        f"<p>Every one of {report.images:,} images in a drawing style that no training saw is searched by its "
        "name, and every name by its image. R@k says how many of a hundred are found among the first k.</p>"
        + recall_table(report.figures)
        + f"<p>ITC compares two vectors. ITM reads image and text together, but only the {report.candidates} "
        "candidates that ITC puts first, and cannot find what is not among them. ITC + ITM adds the cosine to the "
        "matching score; on one scale, it adds ITC's log-probability and ITM's log-odds, which is the order of a "
        "search. In the paper's large models ITM is well above ITC. Where it is below ITC here, the small fusion "
        "encoder has not yet learned to tell similar images apart. The figures are of one run with one seed. "
        "Many images look alike (clocks, flags, families), so R@1 is a hard measure.</p>"
    )


def _queries(queries: list[Query], report: Report) -> str:
    blocks = "".join(f"<h3>“{escape(query.text)}”</h3>{query_rows(query)}" for query in queries)
    return (
        f"<p>The shipped model searches the unseen style. The first row is in the order of ITC. The second row shows "
        f"the {report.candidates} best of them in the order of ITM: by the logit of “matched”, which is the paper's "
        "rule. The third row is what a search gives: the order of ITC and ITM on one scale, by the sum of cosine / "
        "temperature and ITM's log-odds. Below each image stand its cosine, the probability that it matches, and in "
        "the lower rows its place by ITC. A good result has first what the query means, whatever its name is. A bad "
        "one has images that share only a colour or a shape with it.</p>" + blocks
    )


def _maps(maps: list[WordMaps]) -> str:
    blocks = ""
    for found in maps:
        text, match, _ = found.texts[0]
        of = "" if found.name == text else f' <span class="wrong">on an image of “{escape(found.name)}”</span>'
        items = f"<li>{img(found.image, found.name)}the image</li>" + "".join(
            f"<li>{img(heat(found.image, values), f'heat map of {words}')}{escape(words)} "
            f"<small>{share:.0%}</small></li>"
            for words, share, values in found.texts
        )
        blocks += f'<h3>“{escape(text)}”{of}: match {match:.0%}</h3><ul class="maps">{items}</ul>'
    return (
        "<p>Grad-CAM on the cross-attention shows which parts of the image speak for a match with the text. The first "
        "map is of the whole text, the others are of each word as a text of its own; the percentage is the probability "
        'of a match. The colours of a map go from least to most: <span class="scale" role="img" '
        'aria-label="blue to red"></span>. In a good map a word lights up on its thing. The model sees only a coarse '
        "grid of patches, so the maps show regions and not outlines, and words such as “with” mean little. The last "
        "pair is wrong on purpose, and a good model gives it a low match.</p>" + blocks
    )


_KINDS: dict[CaptionKind, str] = {
    "label": "the label itself",
    "right": "another caption of the same emoji",
    "related": "the caption of another emoji, but two thirds of its words are true of this one",
    "wrong": "something else",
}


def _teacher(teacher: Teacher) -> str:
    total = max(sum(teacher.counts.values()), 1)
    counts = "".join(
        f'<li><span class="{kind}">{words}</span>: {teacher.counts[kind]} ({teacher.counts[kind] / total:.1%})</li>'
        for kind, words in _KINDS.items()
    )
    none = "<p>None among these images: the teacher of so short a run rarely names them right.</p>"
    return (
        "<p>In training an image comes with one caption, drawn from several that are right. The momentum teacher, a "
        "slow average of the model, spreads its belief over all captions, and a part of the target is taken from it. "
        "Here the teacher of the run just made sees training images drawn by chance, and chooses among all captions "
        f"of the training set. For {total} images, its first choice is:</p><ul>{counts}</ul>"
        "<h3>Where it names what the label leaves out</h3>"
        "<p>These examples are picked and not typical. The teacher puts a caption (green) above the label that is true "
        "of the image and has a word which the label lacks. The best example of each category is shown.</p>"
        + (f'<div class="cards">{"".join(map(_lesson, teacher.better))}</div>' if teacher.better else none)
        + "<h3>Where it is wrong</h3><p>These are the first wrong ones in the order of the draw.</p>"
        f'<div class="cards">{"".join(map(_lesson, teacher.worse))}</div>'
    )


def _lesson(lesson: Lesson) -> str:
    guesses = "".join(
        f'<li class="{kind}">{escape(text)} <small>{share:.0%}</small></li>' for text, share, kind in lesson.teacher
    )
    return (
        f'<div class="card">{img(lesson.image, lesson.captions[0])}<div><p>label: <b>{escape(lesson.label)}</b></p>'
        f'<p class="soft">teacher:</p><ol>{guesses}</ol></div></div>'
    )


def _missed(report: Report) -> str:
    share = report.missed_count / max(report.images, 1)
    cards = "".join(map(_miss, report.missed))
    return (
        f"<p>For {report.missed_count:,} of {report.images:,} names ({share:.0%}) the shipped model does not have the "
        f"image among the first ten after re-ranking. Here are {len(report.missed)} of them, drawn by chance. A mild "
        "miss finds something similar; a bad one finds something that differs in shape and meaning.</p>"
        f'<div class="cards">{cards}</div>'
    )


def _miss(miss: Miss) -> str:
    return (
        f'<div class="card">{img(miss.image, miss.name)}<div><p><b>{escape(miss.name)}</b></p><p class="soft">'
        f"place {miss.place:,} by ITC; found instead:</p>{hit_row(miss.instead, moved=True)}</div></div>"
    )
