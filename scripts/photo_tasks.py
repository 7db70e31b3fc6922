"""Splits of real data, whole and with one half blinded, for the tables of photos in docs/results.md.

    python scripts/photo_tasks.py vqa vqa_train.json --images FOLDER --out runs/photos/daquar
    python scripts/photo_tasks.py classification ve_train.json --test ve_val.json --images FOLDER --out runs/photos/ve
    python scripts/photo_tasks.py phrases grounding.json --images FOLDER --out runs/photos/grounding \
      --held-out retrieval_val.json

Writes OUT/{whole,text-only,image-only}/{train,test}.json. Without --test the images of the list --held-out are for
testing, or else every fifth, drawn by its name. text-only: every image is the same grey; image-only: every text is the
same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

TEXT = {"vqa": "question", "classification": "sentence", "phrases": "text"}
SAME = {"vqa": "what is it?", "classification": "a photo", "phrases": "a photo"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=TEXT)
    parser.add_argument("data", type=Path, help="JSON list")
    parser.add_argument("--test", type=Path, help="JSON list; by default a fifth of DATA's images")
    parser.add_argument("--held-out", type=Path, help="JSON list; the test images of DATA are those of this list")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    rows = json.loads(options.data.read_text())
    chosen = {row["image"] for row in json.loads(options.held_out.read_text())} if options.held_out else None
    parts = [[row for row in rows if held_out(row["image"], chosen) == of_test] for of_test in (False, True)]
    train, test = (rows, json.loads(options.test.read_text())) if options.test else parts
    for part, records in (("train", train), ("test", test)):
        records = [whole(record, options.images) for record in records]
        write(options.out / "whole" / f"{part}.json", records)
        grey = options.out / "grey.png"
        Image.new("RGB", (64, 64), (128, 128, 128)).save(grey)
        write(options.out / "text-only" / f"{part}.json", [{**row, "image": str(grey.resolve())} for row in records])
        same = {TEXT[options.kind]: SAME[options.kind]}
        write(options.out / "image-only" / f"{part}.json", [{**row, **same} for row in records])


def held_out(image: str, chosen: set[str] | None) -> bool:
    return hashlib.sha256(image.encode()).digest()[0] % 5 == 0 if chosen is None else image in chosen


def whole(record: dict[str, Any], images: Path) -> dict[str, Any]:
    """The record with the path of its image; boxes get the size of the image that they refer to."""
    path = images / (record["image"] if "." in record["image"] else f"{record['image']}.jpg")
    if "boxes" not in record:
        return {**record, "image": str(path.resolve())}
    with Image.open(path) as image:
        return {**record, "image": str(path.resolve()), "width": image.width, "height": image.height}


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    print(f"{len(records)} records: {path}")


if __name__ == "__main__":
    main()
