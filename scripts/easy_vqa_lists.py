"""The questions of the package `easy-vqa` (MIT, by V. Zhou) as JSON lists in the original's format.

    pip install easy-vqa==1.0
    python scripts/easy_vqa_lists.py --out runs/easy-vqa-data      writes train.json and test.json
    albef train easy-vqa --out runs/easy-vqa

`make easy-vqa` does all three. With `--blank` every picture is the same grey: what the questions alone tell.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import easy_vqa
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--blank", action="store_true", help="one grey picture for all questions")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    blank = options.out / "blank.png"
    if options.blank:
        Image.new("RGB", (64, 64), (128, 128, 128)).save(blank)
    parts = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    for part, (rows, pictures) in parts.items():
        records = [
            {
                "question_id": number,
                "question": question,
                "answer": [answer],
                "image": str(blank.resolve() if options.blank else pictures[picture]),
                "dataset": "vqa",
            }
            for number, (question, answer, picture) in enumerate(zip(*rows, strict=True))
        ]
        (options.out / f"{part}.json").write_text(json.dumps(records))
        print(f"{len(records)} questions: {options.out / f'{part}.json'}")


if __name__ == "__main__":
    main()
