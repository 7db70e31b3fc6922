"""The package `easy-vqa` (MIT, by V. Zhou) as lists in the original's formats.

    pip install easy-vqa==1.0
    python scripts/easy_vqa_lists.py --out runs/easy-vqa-data

Writes train.json and test.json (questions), captions.json (what the answers to the training questions say of each
training image, such as "teal rectangle") and vocab.txt (the training words). `make easy-vqa` does that and then
trains. With `--blank` every image is the same grey: what the questions alone tell.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path

import easy_vqa
from PIL import Image

SHAPES = ("circle", "rectangle", "triangle")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
Rows = tuple[list[str], list[str], list[int]]  # questions, answers, numbers of the images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--blank", action="store_true", help="one grey image for all questions")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train, images = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    captions = [{"image": images[number], "caption": caption} for number, caption in described(train).items()]
    lists = {
        "train": questions(train, images),
        "test": questions(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
        "captions": captions,
    }
    blank = options.out / "blank.png"
    if options.blank:
        Image.new("RGB", (64, 64), (128, 128, 128)).save(blank)
        lists = {name: [{**row, "image": str(blank.resolve())} for row in rows] for name, rows in lists.items()}
    for name, rows in lists.items():
        (options.out / f"{name}.json").write_text(json.dumps(rows))
        print(f"{len(rows)} records: {options.out / f'{name}.json'}")
    (options.out / "vocab.txt").write_text("\n".join(vocabulary(train)) + "\n")


def questions(rows: Rows, images: dict[int, str]) -> list[dict]:
    return [
        {"question_id": number, "question": question, "answer": [answer], "image": images[image], "dataset": "vqa"}
        for number, (question, answer, image) in enumerate(zip(*rows, strict=True))
    ]


def described(rows: Rows) -> dict[int, str]:
    """Colour and shape of each image, as far as the answers to its questions name them."""
    known = set(easy_vqa.get_answers()) - {"yes", "no"}
    said: dict[int, set[str]] = {}
    for question, answer, image in zip(*rows, strict=True):
        words = set(question.strip("?").split())
        negated = bool(words & {"not", "no"})
        named = {answer} & known or (words & known if (answer == "no") == negated else set())
        said.setdefault(image, set()).update(named)
    return {image: " ".join(sorted(words, key=SHAPES.__contains__)) for image, words in said.items() if words}


def vocabulary(rows: Rows) -> list[str]:
    """Special pieces, letters alone and inside a word, and the words of the questions and answers."""
    words = sorted({word for text in (*rows[0], *rows[1]) for word in text.strip("?").split()})
    letters = [*string.ascii_lowercase, "?"]
    return list(dict.fromkeys([*SPECIALS, *letters, *(f"##{letter}" for letter in letters), *words]))


if __name__ == "__main__":
    main()
