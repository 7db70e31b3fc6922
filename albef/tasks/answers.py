"""Lists of the answers that a model of questions ranks, and the file beside the model that holds them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import normalizers

from albef.data.examples import ExampleSource
from albef.data.reading import read_text, whole
from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.files import ANSWERS, data_path, model_folder, write_atomically
from albef.models.folders import CONFIG, WEIGHTS

_NORMALIZER = normalizers.BertNormalizer(strip_accents=True)


def spelled_alike(answer: str) -> str:
    """Returns what a lower-case tokenizer makes of an answer: `Red`, `red` and `RED ` are one answer to the model."""
    return " ".join(_NORMALIZER.normalize_str(answer).split())


def answer_list(source: ExampleSource, most: int | None = None, least: int = 1) -> list[str]:
    """Returns the `most` common answers of a source that people gave at least `least` times, commonest first.

    Spellings that are one answer to the model count together, and the commonest of them stands for all. Raises
    ValueError if no answer is left, or if `most` is less than 1.
    """
    if most is not None and most < 1:
        raise AlbefValueError(f"most {most}: a list of answers has at least one; leave it out to keep all")
    spellings: dict[str, Counter[str]] = {}
    for index in range(len(source)):
        for answer in source[index].answers:
            spellings.setdefault(spelled_alike(answer), Counter())[answer.strip()] += 1
    times = Counter({key: sum(own.values()) for key, own in spellings.items() if key})
    found = [spellings[key].most_common(1)[0][0] for key, count in times.most_common() if count >= least][:most]
    if not found:
        raise AlbefValueError(f"no answer was given at least {least} times; lower that, or give questions with answers")
    return found


def answers_file(folder: str | Path) -> Path:
    """Returns where a saved model has the list that it ranks, if it has one; `folder` is as for `from_pretrained`."""
    return model_folder(folder, (CONFIG, WEIGHTS)) / ANSWERS


def read_answers(path: str | Path) -> list[str]:
    """Reads a JSON list of answers; returns each answer once.

    Raises ValueError if the file holds anything else or no answer, and FileNotFoundError if there is no file.
    """
    path = data_path(str(path))
    if not Path(path).is_file():
        raise AlbefFileNotFoundError(
            f"{path}: no list of answers here; make one with `albef answers`, name it by --answers"
        )
    try:
        values = whole(json.loads(read_text(Path(path))))
    except ValueError as error:
        raise AlbefValueError(f"{path} is no JSON ({error}); make one with `albef answers questions.json`") from error
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise AlbefValueError(f'{path}: expected a list of answers such as ["yes", "no", "two"], none of them empty')
    return checked_answers(values, str(path))


def write_answers(path: Path, answers: Sequence[str]) -> None:
    """Writes what `read_answers` reads."""
    write_atomically(path, json.dumps(list(answers), indent=0, ensure_ascii=False) + "\n")


def checked_answers(answers: Iterable[str], name: str = "the answer list") -> list[str]:
    """Returns each answer once, in order and as it is spelt first. Raises ValueError if there is none."""
    first: dict[str, str] = {}
    for answer in answers:
        first.setdefault(spelled_alike(answer), answer)
    if not first:
        raise AlbefValueError(
            f"{name} is empty; make one with `albef answers questions.json --out answers.json` and give it by "
            "--answers, or have answers written freely, by --free"
        )
    return list(first.values())
