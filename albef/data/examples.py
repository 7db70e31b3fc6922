"""Examples for the tasks after pre-training, from JSON lists in the original's formats (spec 5.1).

A record may also have what the original's have not:

classification    `text` or `caption` in place of `sentence`
phrases           `boxes` (any counts) or `box`, `candidates` or `detections`, `height` and `width`, `split`
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albef.data.formats import split
from albef.data.lists import Fault, is_texts, json_records, path_faults, root_of
from albef.data.records import (
    Box,
    ChainSource,
    Example,
    ExampleSource,
    Kind,
    PackedExamples,
    box_of,
    is_box,
)
from albef.data.refcoco import is_refer, refcoco_examples
from albef.data.sources import checked_paths, expand
from albef.errors import AlbefValueError
from albef.files import data_path, generator

__all__ = ["Box", "Example", "ExampleSource", "Kind", "open_examples"]

BOX = "[x, y, width, height] in pixels, finite and of no negative side"
VG_WEIGHT = 0.5
FLICKR_FOLDER = "flickr30k-images"
CLASSIFICATION_TEXTS = ("sentence", "text", "caption")


def open_examples(
    kind: Kind,
    paths: Sequence[str | Path],
    image_root: str | Path | None = None,
    vg_root: str | Path | None = None,
) -> ExampleSource:
    """One source from JSON lists, parts of the generated world (`world:train`) and folders of REFER, as given.

    Patterns are those of `open_sources`. `image_root` is the folder that the images of JSON lists and of REFER are
    relative to, by default the one that the list lies in; `vg_root` takes its place for vqa records whose `dataset` is
    `vg`. A folder of REFER, such as `data/refcoco+` or for one split `data/refcoco+/testA`, is for phrases (see
    `refcoco_examples`). Records with an empty text are left out with a warning that counts them. FileNotFoundError for
    a missing path; ValueError for a wrong file, with the record, and for one whose texts are all empty.
    """
    paths = checked_paths("open_examples", paths)
    if kind not in _FORMS:
        raise AlbefValueError(f"{kind!r} is no kind of examples; there are {', '.join(_FORMS)}")
    sources: list[ExampleSource] = []
    for pattern in paths:
        first = sum(map(len, sources))
        sources += _opened(kind, pattern, first, image_root, vg_root)
    if not sources:
        raise AlbefValueError("no data: the list of paths is empty; name a JSON list")
    return sources[0] if len(sources) == 1 else ChainSource(sources)


def _opened(
    kind: Kind, pattern: str, first: int, image_root: str | Path | None, vg_root: str | Path | None
) -> Iterator[ExampleSource]:
    """What a pattern stands for; the running number begins with `first`."""
    if made := generator(pattern):
        yield made.open_examples(kind, pattern)
        return
    place = Path(data_path(pattern))
    refer = Path(data_path(str(place.parent)))
    if kind == "phrases" and not place.exists() and is_refer(refer):
        yield refcoco_examples(refer, image_root or refer, split=place.name)
        return
    for file in expand(str(place)):
        if kind == "phrases" and is_refer(file):
            yield refcoco_examples(file, image_root or file)
        elif file.suffix.lower() == ".json" and file.is_file():
            yield (found := PackedExamples(_read(kind, file, first, image_root, vg_root)))
            first += len(found)
        else:
            folder = " or a folder of REFER, with refs(*).p and instances.json" if kind == "phrases" else ""
            raise AlbefValueError(
                f"{file}: no {kind} examples; give a .json list such as [{_FORMS[kind].right}]{folder}"
            )


@dataclass(frozen=True)
class _Form:
    """How a kind's records look: a right one, what is wrong with one, its images' paths, the rest of its example."""

    right: str
    faults: Callable[[dict[str, Any]], Iterator[Fault]]
    images: Callable[[dict[str, Any]], list[str]]
    facts: Callable[[dict[str, Any]], dict[str, Any]]
    key: str = ""


def _read(
    kind: Kind, file: Path, first: int, image_root: str | Path | None, vg_root: str | Path | None
) -> Iterator[Example]:
    form, root = _FORMS[kind], Path(image_root) if image_root else None
    kept = blank = 0
    for number, record in enumerate(json_records(file, form.right, form.faults), first):
        facts = form.facts(record)
        if not facts["text"].strip():
            blank += 1
            continue
        kept += 1
        images = form.images(record)
        if kept == 1 or root is None:
            root = root or root_of(file, images[0])
            root = _home(root, images[0]) if form.images is _flickr_image and images != [record["image"]] else root
        home = Path(vg_root) if vg_root and _is_vg(record) else root
        paths = tuple(home / image for image in images)
        name = " and ".join(map(str, paths))
        yield Example(name, paths, key=record.get(form.key, number), **facts)
    if not kept:
        raise AlbefValueError(f"{file}: the texts of all {blank:,} records are empty; a right record: {form.right}")
    if blank:
        warnings.warn(f"{file}: left out {blank:,} of {kept + blank:,} records, whose text is empty", stacklevel=6)


def _home(root: Path, image: str) -> Path:
    """Where SNLI-VE's images lie, whose ids don't say it: in `root`, or in the folder of Flickr30K's images in it."""
    inner = root / FLICKR_FOLDER
    return inner if inner.is_dir() and not os.path.exists(root / image) else root


def _image(record: dict[str, Any]) -> list[str]:
    return [record["image"]]


def _flickr_image(record: dict[str, Any]) -> list[str]:
    """SNLI-VE gives the images of Flickr30K without their suffix. What follows a dot is none if it is a number."""
    image = record["image"]
    return [f"{image}.jpg" if split(image)[1].strip(".").isdigit() or not split(image)[1] else image]


def _pair_images(record: dict[str, Any]) -> list[str]:
    found: Any = record.get("images", record.get("image"))
    return found


def _is_vg(record: dict[str, Any]) -> bool:
    return record.get("dataset") == "vg"


def _answers(record: dict[str, Any]) -> tuple[str, ...]:
    answer = record.get("answer", [])
    return (answer,) if isinstance(answer, str) else tuple(answer)


def _label(record: dict[str, Any]) -> str | None:
    return record["label"].strip() if "label" in record else None


def _vqa_facts(record: dict[str, Any]) -> dict[str, Any]:
    weight = VG_WEIGHT if _is_vg(record) else 1.0
    return {"text": record["question"], "answers": _answers(record), "weight": weight}


def _classification_facts(record: dict[str, Any]) -> dict[str, Any]:
    return {"text": _first(record, *CLASSIFICATION_TEXTS), "label": _label(record)}


def _pair_facts(record: dict[str, Any]) -> dict[str, Any]:
    return {"text": record["sentence"], "label": _label(record)}


def _phrase_facts(record: dict[str, Any]) -> dict[str, Any]:
    boxes = [record["box"]] if "box" in record else record.get("boxes", [])
    return {
        "text": record["text"],
        "boxes": tuple(map(box_of, boxes)),
        "candidates": tuple(map(box_of, _first(record, "candidates", "detections") or [])),
        "size": (record["height"], record["width"]) if "height" in record else None,
        "split": record.get("split", ""),
    }


def _vqa_faults(record: dict[str, Any]) -> Iterator[Fault]:
    answer = record.get("answer", [])
    yield from _image_faults(record)
    yield from _text_faults(record, "question")
    yield from _key_faults(record, "question_id")
    if "answers" in record and "answer" not in record:
        yield '"answers" to be called "answer"', record["answers"]
    if answer != [] and not is_texts(answer):
        yield '"answer" to be a string or a list of strings', answer


def _classification_faults(record: dict[str, Any]) -> Iterator[Fault]:
    yield from _image_faults(record)
    yield from _text_faults(record, *CLASSIFICATION_TEXTS)
    yield from _label_faults(record)


def _pair_faults(record: dict[str, Any]) -> Iterator[Fault]:
    images = _pair_images(record)
    if not (isinstance(images, list) and len(images) == 2 and is_texts(images) and all(images)):
        yield '"images" to be a pair, the paths of two images', images
    else:
        yield from (fault for image in images for fault in path_faults("images", image))
    yield from _text_faults(record, "sentence")
    yield from _label_faults(record)
    yield from _key_faults(record, "identifier")


def _phrase_faults(record: dict[str, Any]) -> Iterator[Fault]:
    yield from _image_faults(record)
    yield from _text_faults(record, "text")
    yield from _key_faults(record, "ref_id")
    if "box" in record and not is_box(record["box"]):
        yield f'"box" to be {BOX}', record["box"]
    for name in ("boxes", "candidates", "detections"):
        yield from _box_faults(record, name)
    sides = {name: record[name] for name in ("height", "width") if name in record}
    if len(sides) == 1 or not all(type(side) is int and side > 0 for side in sides.values()):
        yield '"height" and "width" to be pixels, both or neither', sides
    if not isinstance(record.get("split", ""), str):
        yield '"split" to be a string', record["split"]


def _box_faults(record: dict[str, Any], name: str) -> Iterator[Fault]:
    boxes = record.get(name, [])
    if not isinstance(boxes, list):
        yield f'"{name}" to be a list of boxes, each {BOX}', boxes
        return
    for box in boxes:
        if not is_box(box, more=name != "boxes"):
            yield f'each of "{name}" to be {BOX}', box


def _image_faults(record: dict[str, Any]) -> Iterator[Fault]:
    yield from path_faults("image", record.get("image"))


def _text_faults(record: dict[str, Any], *names: str) -> Iterator[Fault]:
    """`names` are alternatives."""
    text = _first(record, *names)
    if not isinstance(text, str):
        yield f'"{names[0]}" to be a string', text


def _label_faults(record: dict[str, Any]) -> Iterator[Fault]:
    label = record.get("label", "unknown")
    if not isinstance(label, str) or not label.strip():
        yield '"label" to be a string, or missing', label


def _key_faults(record: dict[str, Any], name: str) -> Iterator[Fault]:
    if type(record.get(name, "")) not in (str, int):
        yield f'"{name}" to be a string or a whole number', record[name]


def _first(record: dict[str, Any], *names: str) -> Any:
    return next((record[name] for name in names if name in record), None)


_FORMS: dict[str, _Form] = {
    "vqa": _Form(
        '{"image": "val2014/1.jpg", "question": "what is it?", "answer": ["a dog", "dog"], "question_id": 7} '
        '("answer" may be a string, or missing; "dataset" may be "vqa" or "vg")',
        _vqa_faults, _image, _vqa_facts, "question_id",
    ),
    "classification": _Form(
        '{"image": "1000092795", "sentence": "a man sleeps", "label": "neutral"} ("label" may be missing)',
        _classification_faults, _flickr_image, _classification_facts,
    ),
    "pairs": _Form(
        '{"images": ["dev/dev-0-1-img0.png", "dev/dev-0-1-img1.png"], "sentence": "both are dogs", "label": "True", '
        '"identifier": "dev-0-1-0"} ("label" and "identifier" may be missing, "images" may be called "image")',
        _pair_faults, _pair_images, _pair_facts, "identifier",
    ),
    "phrases": _Form(
        '{"image": "train2014/1.jpg", "text": "the left dog", "ref_id": 7, "boxes": [[10, 20.5, 30, 40]]} '
        '("boxes", "candidates", "height" and "width", "split" may be missing)',
        _phrase_faults, _image, _phrase_facts, "ref_id",
    ),
}  # fmt: skip
