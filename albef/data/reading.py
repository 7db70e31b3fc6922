"""How files and texts of unknown origin are read: passing faults of a disk, byte-order marks, odd characters."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from albef.errors import AlbefRuntimeError, AlbefValueError
from albef.files import printable

T = TypeVar("T")

PAUSES = (0.1, 0.3, 0.6)  # seconds to wait before reading once more
LASTING = frozenset(
    (
        errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ,
        errno.EACCES, errno.EPERM,
    )
)  # fmt: skip
"""What the system says of a path that is wrong or closed to us: to wait would not help."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_FOREIGN = (
    (b"version https://git-lfs", "a pointer of Git LFS: run `git lfs pull`"),
    (b"<!doctype html", "a web page, perhaps of a download that failed"),
    (b"<html>", "a web page, perhaps of a download that failed"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"bzh91ay&sy", "compressed by bzip2: unpack it"),
    (b"\xfd7zxz", "compressed by xz: unpack it"),
    (b"(\xb5/\xfd", "compressed by zstd: unpack it"),
    (b"pk\x03\x04", "a zip file: unpack it"),
)
_WORDLESS = " \t\n\r,.'!?\"()*#:;~-/\0\u200b\u200c\u200d\u2060\ufeff"
"""What a caption may consist of and yet be empty: what cleaning takes away, and characters that show nothing."""


def is_passing(error: OSError) -> bool:
    """Does the error come from the machine (a network disk, too many open files), and not from the file or its name?"""
    return error.errno is not None and error.errno not in LASTING


def patiently(read: Callable[[], T], name: str) -> T:
    """What `read` returns. Where the system fails it is tried again, for about a second in all.

    Raises AlbefRuntimeError that names the file if the system still fails then: the file may be whole, and a run that
    left it out could not be repeated. Errors that tell of a wrong path, and those of decoders, pass through at once.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except OSError as error:
            if not is_passing(error):
                raise
            if pause is None:
                raise AlbefRuntimeError(
                    f"{printable(name)}: reading failed {len(PAUSES) + 1} times ({error}); see to the disk or the "
                    "network, then start again"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark."""
    return decoded(patiently(path.read_bytes, str(path)), str(path), "the file")


def decoded(data: bytes, name: str, what: str) -> str:
    """UTF-8 as text, without its byte-order mark. AlbefValueError that says what is not UTF-8, and how to mend it."""
    if data.startswith(_UTF_16):
        raise AlbefValueError(f"{name}: {what} is UTF-16; save it as UTF-8")
    if kind := foreign(data):
        raise AlbefValueError(f"{name}: {what} is {kind}")
    if b"\0" in data[:4]:
        raise AlbefValueError(f"{name}: {what} has null characters, as UTF-16 has; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AlbefValueError(f"{name}: {what} is not UTF-8 ({error}); convert it to UTF-8") from error


def foreign(data: bytes) -> str:
    """What a file is that is often saved under a wrong name, by its first bytes; empty if it is nothing of the kind."""
    start = data[:512].lstrip().lower()
    return next((what for begin, what in _FOREIGN if start.startswith(begin)), "")


def whole(value: Any) -> Any:
    """A text, or whatever JSON holds, without halves of surrogate pairs: no tokenizer and no UTF-8 file takes them."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "ignore").decode()
    if isinstance(value, list):
        return [whole(entry) for entry in value]
    if isinstance(value, dict):
        return {whole(name): whole(entry) for name, entry in value.items()}
    return value


def captions_in(value: Any) -> list[str]:
    """The captions in a value, one string or a list of some: all that hold words or signs, without half
    characters.

    JSON lists, shards and folders all take their captions through here.
    """
    found = value if isinstance(value, list) else [value]
    texts = (whole(text).strip() for text in found if isinstance(text, str))
    return [text for text in texts if text.strip(_WORDLESS)]
