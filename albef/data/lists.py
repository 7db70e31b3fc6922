"""JSON lists of records: read one record at a time, and checked with messages that name the record."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from albef.data.reading import read_text, whole
from albef.errors import AlbefValueError

Fault = tuple[str, Any]  # what was expected of a record, what stands there
_SPACE = r"[ \t\n\r]*"
_LIST_START = re.compile(rf"{_SPACE}\[{_SPACE}(?=[^ \t\n\r\]])")
_NEXT_OR_END = re.compile(rf"{_SPACE}(?:(,){_SPACE}|\]{_SPACE}\Z)")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that is half a character, or one of two that make one
ADDRESS = re.compile(r"\w+://|pipe:")
PATHS = ("image", "images")


def json_records(
    file: Path, right: str, faults: Callable[[dict[str, Any]], Iterable[Fault]]
) -> Iterator[dict[str, Any]]:
    """The records of a JSON list in which `faults` finds nothing.

    ValueError otherwise, which names file and record, says what was expected and shows a `right` record. Halves of
    surrogate pairs are dropped from all texts but paths, in which they may stand for bytes of a file's name.
    """
    number = -1
    try:
        text = read_text(file)
        halves = _HALF.search(text) is not None
        if not _LIST_START.match(text):
            if of_lines(text):
                raise AlbefValueError(
                    f"{file}: it holds JSON Lines, one record a line; write them as one list, such as [{right}]"
                )
            content = json.loads(text)
            got = "an empty list" if content == [] else _kind(content)
            raise AlbefValueError(f"{file}: expected a list of records, got {got}; for example [{right}]")
        for number, record in enumerate(_elements(text)):
            if halves and isinstance(record, dict):
                paths = {name: record[name] for name in PATHS if name in record}
                record = {**whole(record), **paths}
            wrong = faults(record) if isinstance(record, dict) else [("an object", record)]
            for expected, got in wrong:
                shown = f"{_kind(got)}: {json.dumps(got)[:80]}{_names(record) if got is None else ''}"
                raise AlbefValueError(
                    f"{file}, record {number}: expected {expected}, got {shown}; a right record: {right}"
                )
            yield record
    except RecursionError as error:
        raise AlbefValueError(
            f"{file}, record {number + 1}: too many lists or objects within each other; a right record: {right}"
        ) from error
    except _Unreadable as error:
        raise AlbefValueError(f"{file}, record {number + 1}: it has {error}; a right record: {right}") from error
    except json.JSONDecodeError as error:
        raise AlbefValueError(
            f"{file}: not valid JSON ({error}); one list of records is expected: [{right}]"
        ) from error


def _elements(text: str) -> Iterator[Any]:
    """The elements of a JSON list, parsed one by one: together they would take several times the room of the text."""
    decode, found = DECODER.raw_decode, _LIST_START.match(text)
    comma: str | None = ","
    while found and comma:
        value, place = decode(text, found.end())
        yield value
        found = _NEXT_OR_END.match(text, place)
        if not found:
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        comma = found[1]


class _Unreadable(ValueError):
    """What a record has that is valid JSON and cannot be meant."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose names are all different; Python's own reader keeps the last value of a name, unsaid."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        raise _Unreadable(json.dumps(next(name for name, _ in pairs if name in seen or seen.add(name))) + " twice")  # type: ignore[func-returns-value]
    return found


def _number(digits: str) -> int:
    """A whole number; Python reads none of more than some thousand digits."""
    try:
        return int(digits)
    except ValueError:
        raise _Unreadable(f"a number of {len(digits):,} digits, which is too long") from None


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_number)
"""Reads JSON as `json` does, but refuses objects that have a name twice, and numbers that are too long."""


def of_lines(text: str) -> bool:
    """Are there several JSON objects, one a line, in the place of one list?"""
    first, _, rest = text.strip().partition("\n")
    try:
        return all(isinstance(json.loads(line), dict) for line in (first, rest.lstrip().partition("\n")[0]))
    except (ValueError, RecursionError):
        return False


def _names(record: Any) -> str:
    """The names that a record has, to be shown where the wanted one is missing."""
    return f"; the record has {', '.join(map(json.dumps, record))[:80]}" if isinstance(record, dict) else ""


def path_faults(name: str, value: Any) -> Iterator[Fault]:
    """The fault of what should be the path of an image, if it has one."""
    if not isinstance(value, str) or not value:
        yield f'"{name}" to be a path', value
    elif ADDRESS.match(value):
        yield f'"{name}" to be a path of this machine (fetch what lies at an address first)', value


def is_texts(value: Any) -> bool:
    """Is it a string, or a list of some?"""
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "nothing", bool: "a truth value"}
    return names.get(type(value), "a number")


def root_of(file: Path, image: str) -> Path:
    """The folder of the JSON file, or the working folder when the first image lies under that one only."""
    return Path() if os.path.exists(image) and not os.path.exists(file.parent / image) else file.parent
