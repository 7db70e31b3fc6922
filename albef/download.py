"""Fetches one large file over HTTP: what came before a cut stays, and the same call goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import ssl
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from albef.errors import AlbefFileNotFoundError, AlbefRuntimeError, AlbefValueError
from albef.files import sync_folder, write_atomically

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before another try; a try that brought something begins them anew
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 2**20
GONE = (401, 403, 404, 410)  # 403: what a bucket says of a file that is not public any more
CUT = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def download(address: str, place: Path, sha256: str = "") -> tuple[int, str]:
    """Fetches `address` into the file `place`; returns its size in bytes and its SHA-256.

    What has come lies in `place` with `.part` at the end, so that a later call goes on from there, if the server can do
    so and its file is still the same. The size that the server names is checked, then the checksum: `sha256` (all of
    it, or its beginning) and the MD5 that Google's storage names. A file that lies in `place` already is only checked.

    FileNotFoundError if there is nothing at the address; RuntimeError if the connection is cut again and again, or if
    the disk has no room for the file and as much again for what is made of it; ValueError for a wrong checksum.
    """
    if place.is_file():
        return _checked(place, sha256, None)
    part, memo = (place.with_name(place.name + end) for end in (".part", ".part.json"))
    place.parent.mkdir(parents=True, exist_ok=True)
    pauses = iter(PAUSES)
    while True:
        before = _size(part)
        try:
            told = _receive(address, part, memo)
            break
        except CUT as error:
            pauses = iter(PAUSES) if _size(part) > before else pauses
            _pause(address, part, error, next(pauses, None))
    found = _checked(part, sha256, told["md5"], memo)
    os.replace(part, place)
    memo.unlink()
    sync_folder(place.parent)
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive(address: str, part: Path, memo: Path) -> dict[str, Any]:
    """One try: goes on with `part` or begins it anew, and raises one of CUT unless all has come. What `memo` holds."""
    noted = json.loads(memo.read_text()) if memo.is_file() else {}
    have = _size(part)
    if noted.get("address") != address or not noted["version"] or have > (noted["bytes"] or have):
        have = 0
    if have and have == noted["bytes"]:
        return noted  # it was stopped between its last byte and its name
    headers = {"Range": f"bytes={have}-", "If-Range": noted["version"]} if have else {}
    with urlopen(Request(address, headers={"User-Agent": "albef", **headers}), timeout=TIMEOUT) as answer:
        told = _told(answer, address)
        if answer.status == 206 and not _goes_on(answer, told, noted, have):
            part.unlink(missing_ok=True)
            raise ConnectionError("the file there is another one now, so it is fetched from the beginning")
        _check_room(part, told["bytes"])
        if answer.status != 206:  # a whole file: the first try, a changed file, or a server that knows no ranges
            have = 0
            part.unlink(missing_ok=True)
            write_atomically(memo, json.dumps(told))
        with part.open("ab") as file, _bar(part.stem, have, told["bytes"]) as advance:
            while block := answer.read1(BLOCK):
                file.write(block)
                advance(len(block))
            file.flush()
            os.fsync(file.fileno())
    if told["bytes"] is not None and _size(part) != told["bytes"]:
        raise ConnectionError(f"{_size(part):,} of {told['bytes']:,} bytes came")
    return told


def _told(answer: HTTPResponse, address: str) -> dict[str, Any]:
    """What the server says of its whole file. `version` is what If-Range takes, empty if there is none; `bytes` may be
    None; `md5` is the checksum that Google's storage names, or None."""
    tag, size = answer.headers.get("ETag", ""), answer.headers.get("Content-Length")
    if answer.status == 206:
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    hashes = ",".join(answer.headers.get_all("x-goog-hash", [])).split(",")
    return {
        "address": address,
        "version": tag if tag.startswith('"') else answer.headers.get("Last-Modified", ""),
        "bytes": int(size) if size and size.isdecimal() else None,
        "md5": next((one.strip().removeprefix("md5=") for one in hashes if "md5=" in one), None),
    }


def _goes_on(answer: HTTPResponse, told: dict[str, Any], noted: dict[str, Any], have: int) -> bool:
    """Is this the rest of the file that the first `have` bytes are of? Not every server looks at If-Range."""
    same = all(told[key] == noted.get(key) for key in ("version", "bytes"))
    return same and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _check_room(part: Path, size: int | None) -> None:
    free, needed = shutil.disk_usage(part.parent).free, 2 * (size or 0) - _size(part)
    if needed > free:
        raise AlbefRuntimeError(
            f"{part.parent}: {_readable(free)} are free, but the rest of the file and the model that is made of it "
            f"need {_readable(needed)}; make room, or name a folder on another disk by ALBEF_CACHE"
        )


def _pause(address: str, part: Path, error: Exception, seconds: float | None) -> None:
    """Waits until another try makes sense; otherwise an error that says what does."""
    code, reason = getattr(error, "code", 0), str(error) or type(error).__name__
    if code in GONE:
        raise AlbefFileNotFoundError(f"{address}: gone, the server says {reason}") from error
    if code == 416:  # there are not as many bytes as have come
        part.unlink(missing_ok=True)
    elif 0 < code < 500 and code not in (408, 429):
        raise AlbefRuntimeError(f"{address}: can't be fetched, the server says {reason}") from error
    if seconds is None:
        raise AlbefRuntimeError(
            f"{address}: {reason}, after {len(PAUSES)} more tries; look at the network and run the same command again. "
            f"It goes on after the {_readable(_size(part))} that have come"
        ) from error
    print(f"{part.stem}: {reason}; another try in {seconds:g} s", file=sys.stderr)
    time.sleep(seconds)


def _checked(file: Path, sha256: str, md5: str | None, *memos: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file whose checksums are right. A wrong one removes it, so that it is fetched anew."""
    found, other = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            found.update(block)
            other.update(block)
    for name, own, wanted in (("SHA-256", found.hexdigest(), sha256), ("MD5", b64encode(other.digest()).decode(), md5)):
        if not own.startswith(wanted or ""):
            for path in (file, *memos):
                path.unlink()
            raise AlbefValueError(
                f"{file.name.removesuffix('.part')}: its {name} is {own}, but must be {wanted}; the file is damaged or "
                "another one, and has been removed. Run the same command again to fetch it anew"
            )
    return _size(file), found.hexdigest()


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextlib.contextmanager
def _bar(name: str, have: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with rate and remaining time on a terminal; gives the function that it is told its progress by."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        bar = progress.add_task(name, total=total, completed=have)
        yield lambda count: progress.advance(bar, count)
