"""RefCOCO, RefCOCO+ and RefCOCOg as REFER packs them: expressions in a pickle, boxes in COCO's JSON (spec 4.4, 5.1)."""

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from albef.data.reading import patiently, read_text, whole
from albef.data.records import Box, Example, PackedExamples, box_of, is_box
from albef.errors import AlbefFileNotFoundError, AlbefValueError

REFS, INSTANCES, DETECTIONS = "refs(*).p", "instances.json", "dets.json"


def is_refer(folder: Path) -> bool:
    """Does a data set of REFER lie in the folder?"""
    return (folder / INSTANCES).is_file() and any(folder.glob(REFS))


def refcoco_examples(
    folder: str | Path, image_root: str | Path, split: str | None = None, detections: str | Path | None = None
) -> PackedExamples:
    """Phrases, one for each sentence about a thing, of one `split` (train, val, testA, testB, ...) or of all.

    folder      has `refs(unc).p` (else another `refs(*).p`) and `instances.json`
    image_root  COCO's folder, or that of its train2014
    detections  JSON object of the boxes to choose among, [x, y, width, height, ...], by image_id; by default the
                folder's `dets.json` if there is one

    The key is the `ref_id`, which the sentences about a thing share. FileNotFoundError for missing files; ValueError
    for damaged ones, or if there is no such split.
    """
    folder, root = Path(folder), Path(image_root)
    found = sorted(folder.glob(REFS), reverse=True)  # unc before umd before google
    if not found:
        raise AlbefFileNotFoundError(f"{folder}: no {REFS} there; unpack REFER's archive of the data set")
    refs = _load_refs(found[0])
    splits = sorted({str(ref.get("split")) for ref in refs})
    if split is not None and split not in splits:
        raise AlbefValueError(f"{found[0]}: no split {split!r}; there are {', '.join(splits)}")
    chosen = [ref for ref in refs if split in (None, ref.get("split"))]
    images, boxes = _load_instances(folder / INSTANCES)
    candidates = _load_detections(Path(detections or folder / DETECTIONS), required=detections is not None)
    root = root / "train2014" if (root / "train2014").is_dir() else root
    if not chosen:
        raise AlbefValueError(f"{found[0]}: it holds no references; unpack REFER's archive of the data set again")
    try:
        return PackedExamples(_examples(chosen, images, boxes, candidates, root))
    except (LookupError, TypeError) as error:
        raise AlbefValueError(
            f"{found[0]}: not REFER's references to {INSTANCES} ({error!r}); unpack both again"
        ) from error


def _examples(
    refs: list[dict[str, Any]],
    images: dict[int, dict[str, Any]],
    boxes: dict[int, Box],
    candidates: dict[str, tuple[Box, ...]],
    root: Path,
) -> Iterator[Example]:
    for ref in refs:
        image = images[ref["image_id"]]
        path, size = root / image["file_name"], (image["height"], image["width"])
        own, others = (boxes[ref["ann_id"]],), candidates.get(str(ref["image_id"]), ())
        for sentence in ref["sentences"]:
            yield Example(
                str(path), (path,), whole(sentence["sent"]), ref["ref_id"],
                boxes=own, candidates=others, size=size, split=ref["split"],
            )  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, texts and numbers only: whatever else a pickle asks for could run any program."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it wants {module}.{name}, but may hold only lists, dicts, texts and numbers")


def _load_refs(file: Path) -> list[dict[str, Any]]:
    """REFER's references; the pickle is Python 2's."""
    data = patiently(file.read_bytes, str(file))
    try:
        refs = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise AlbefValueError(f"{file}: not a pickle of REFER's ({error}); fetch it again") from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise AlbefValueError(f"{file}: a {type(refs).__name__}, but REFER's is a list of references; fetch it again")
    return refs


def _load_instances(file: Path) -> tuple[dict[int, dict[str, Any]], dict[int, Box]]:
    """COCO's images by image_id, and the boxes of its things by annotation's id."""
    try:
        content = json.loads(read_text(file))
        images = {image["id"]: image for image in content["images"]}
        boxes = {thing["id"]: _box(file, thing["bbox"]) for thing in content["annotations"]}
    except (LookupError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise AlbefValueError(f"{file}: not COCO's images and annotations ({error!r}); unpack it again") from error
    return images, boxes


def _load_detections(file: Path, required: bool) -> dict[str, tuple[Box, ...]]:
    """Boxes by image_id; none if the file is missing and not `required`."""
    if not required and not file.is_file():
        return {}
    try:
        content = json.loads(read_text(file))
        return {key: tuple(_box(file, box, more=True) for box in boxes) for key, boxes in content.items()}
    except (AttributeError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise AlbefValueError(f'{file}: expected {{"image_id": [[x, y, width, height], ...]}} ({error})') from error


def _box(file: Path, value: Any, more: bool = False) -> Box:
    if not is_box(value, more):
        raise AlbefValueError(
            f"{file}: box {value!r} is not [x, y, width, height] in pixels, none negative; mend the file"
        )
    return box_of(value)
