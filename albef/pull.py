"""`albef pull`: published models, fetched once and converted into the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock

from albef.conversion import convert
from albef.data.processor import PREPROCESSOR
from albef.download import download
from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.files import cache_folder, pulled, sync_folder, write_atomically
from albef.models.folders import CONFIG, WEIGHTS
from albef.published import Published, published

SOURCE = "source.json"  # beside a model: where it came from


def pull(name: str, keep: bool = False) -> str:
    """Fetches the published model `name`, unless it is here, and converts it; returns a report in words.

    From then on its name leads to it, as in `albef.load(name)`. `keep` leaves the files that it was made of. AlbefError
    for an unknown name, and for a file that cannot be fetched, is not the right one or cannot be converted.
    """
    model, place = published(name), pulled(name)
    with _alone():
        if all((place / file).is_file() for file in (CONFIG, WEIGHTS, PREPROCESSOR)):
            return f"{name} is here already: {place}"
        files, source = _fetch(name, model, place)
        report = _convert(files, source, place)
        if not keep:
            for path in files.values():
                path.unlink()
    terms = [f"licence: {model.licence}", *(f"cite: {paper}" for paper in model.papers)]
    return "\n".join([report, *terms, f'its name leads there now: albef.load("{name}"), --init {name}'])


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Holds the cache folder, so that two processes don't fetch the same file."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".pull.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"another process fetches into {folder}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(name: str, model: Published, place: Path) -> tuple[dict[str, Path], dict[str, object]]:
    """The files of a published model by the argument of `convert` that takes them, and what is known of them."""
    paths: dict[str, Path] = {}
    known: list[dict[str, object]] = []
    for argument, file in model.files.items():
        print(f"{name}: {file.address}", file=sys.stderr)
        paths[argument] = cache_folder() / "files" / file.name
        try:
            size, sha256 = download(file.address, paths[argument], file.sha256)
        except AlbefFileNotFoundError as error:
            given = ((f"--{option}", one.name) for option, one in model.files.items())
            words = shlex.join([word for pair in given for word in pair if word != "--checkpoint"])
            raise AlbefFileNotFoundError(
                f"{error}. If you have the file from elsewhere, convert it by hand, and the name {name} will lead to "
                f"it: albef convert {words} --out {shlex.quote(str(place))}"
            ) from error
        known.append({"address": file.address, "bytes": size, "sha256": sha256})
    return paths, {"name": name, "files": known, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def _convert(files: dict[str, Any], source: dict[str, object], place: Path) -> str:
    """Makes the folder `place`, whole or not at all; the report of `convert`."""
    aside = place.with_name(f".{place.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        report = convert(**files, out=aside)
        write_atomically(aside / SOURCE, json.dumps(source, indent=2) + "\n")
        shutil.rmtree(place, ignore_errors=True)  # what somebody began by hand
        os.replace(aside, place)
    except AlbefValueError as error:
        kept = " and ".join(map(str, files.values()))
        raise AlbefValueError(f"{error}. The file stays for a look; delete {kept} to fetch it anew") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(place.parent)
    return report.replace(str(aside), str(place))
