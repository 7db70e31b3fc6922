"""What the momentum teacher of a run believes of training images, beside the captions that they came with."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from albef.data.images import open_image
from albef.data.loader import read_images
from albef.data.processor import Processor
from albef.data.sources import open_sources
from albef.data.text import clean_caption
from albef.engine.checkpointer import read_newest
from albef.errors import AlbefFileNotFoundError
from albef.models import folders
from albef.models.albef import AlbefModel
from albef.recipe import Recipe
from albef.tasks import ranking
from albef_demo import report

SAMPLE = 1000
_LITTLE_WORDS = {"a", "an", "and", "in", "of", "on", "the", "to", "with"}


@torch.no_grad()
def inspect_teacher(folder: Path, recipe: Recipe) -> report.Teacher:
    """For training images drawn by chance: which of all training captions the momentum teacher puts first.

    AlbefFileNotFoundError if the run in `folder` has no checkpoint.
    """
    teacher, processor, temp = _load_teacher(folder)
    source = open_sources(recipe.data.train)
    captions: dict[str, list[str]] = {}
    for index in range(len(source)):
        record = source[index]
        captions.setdefault(record.image_id, []).extend(map(clean_caption, record.captions))
    texts = sorted({text for own in captions.values() for text in own})
    _, z_text = ranking.encode_texts(teacher, processor, texts)
    draw = random.Random(recipe.seed)
    indices = draw.sample(range(len(source)), min(SAMPLE, len(source)))
    records, pixels = read_images(source, indices, processor)
    _, z_image = ranking.encode_images(teacher, map(processor.normalise, pixels.split(64)))
    shares, choices = (z_image @ z_text.T / temp).softmax(-1).topk(min(4, len(texts)))
    lessons = []
    for index, record, share, choice in zip(indices, records, shares.tolist(), choices.tolist(), strict=True):
        label, own = clean_caption(draw.choice(record.captions)), list(dict.fromkeys(captions[record.image_id]))
        guesses = [(texts[i], p, _kind(texts[i], label, own)) for i, p in zip(choice, share, strict=True)]
        lessons.append((record.category, report.Lesson(open_image(source[index].image), label, own, guesses)))
    return _examples(lessons)


def _load_teacher(folder: Path) -> tuple[AlbefModel, Processor, Tensor]:
    """The teacher from the run's checkpoint, the run's processor, and the temperature of ITC."""
    state = read_newest(folder)
    if state is None:
        raise AlbefFileNotFoundError(f"{folder}: the run has no checkpoint; delete the folder and run the demo again")
    model = AlbefModel.from_pretrained(folder / "model")
    prefix, temp = "teacher.model.", model.temp.detach().clone()
    weights = {name.removeprefix(prefix): x for name, x in state["objective"].items() if name.startswith(prefix)}
    folders.load_strictly(model, weights, f"the teacher in {folder}")
    return model, Processor.from_pretrained(folder / "model"), temp


def _kind(text: str, label: str, own: list[str]) -> report.CaptionKind:
    """The kind of the caption `text` for an image whose captions are `own`, of which `label` was drawn."""
    if text == label:
        return "label"
    if text in own:
        return "right"
    words = set(text.split()) - _LITTLE_WORDS
    true = words & set(" ".join(own).split())
    return "related" if len(true) >= max(2 / 3 * len(words), 1) else "wrong"


def _examples(lessons: list[tuple[str | None, report.Lesson]]) -> report.Teacher:
    """How often each kind comes first, the best example of each category, and the first wrong examples."""
    counts: dict[report.CaptionKind, int] = {"label": 0, "right": 0, "related": 0, "wrong": 0}
    best: dict[str | None, tuple[tuple[int, float], report.Lesson]] = {}
    for category, lesson in lessons:
        counts[lesson.teacher[0][2]] += 1
        merit = _merit(lesson)
        if merit and (category not in best or merit > best[category][0]):
            best[category] = merit, lesson
    better = [lesson for _, lesson in sorted(best.values(), key=lambda found: found[0], reverse=True)]
    wrong = [lesson for _, lesson in lessons if lesson.teacher[0][2] == "wrong" and lesson not in better]
    return report.Teacher(counts, better, wrong[:3])


def _merit(lesson: report.Lesson) -> tuple[int, float] | None:
    """How good an example is; higher is better, None if it is none.

    In an example the teacher puts a true caption above the label which has a word that the label lacks. The sooner it
    comes and the more probable it is, the better.
    """
    true = set(" ".join(lesson.captions).split()) - set(lesson.label.split()) - _LITTLE_WORDS
    for place, (text, share, kind) in enumerate(lesson.teacher):
        if kind == "label":
            return None
        if kind != "wrong" and true & set(text.split()):
            return -place, share
    return None
