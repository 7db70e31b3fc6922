"""Checkpoints of a run: one process at a time, each whole or passed over, written while the run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import filelock
import torch
from torch import Tensor

from albef import distributed
from albef.engine import legacy
from albef.errors import AlbefError, AlbefRuntimeError, AlbefValueError
from albef.files import sync_folder, write_atomically

PATTERN, SUMS = "checkpoint*.pt", ".sha256"
LOCK, HOLDER = "run.lock", "run.json"
MODEL, BEST = "model", "best"
KEPT = 2
"""Generations that are kept: when the newest turns out damaged, there is the one before."""


class Checkpointer:
    """The checkpoints of one folder, for as long as a run owns the folder.

    The first rank writes them, in a thread of its own and from a copy in the host's memory. `wait` returns when the
    file is on the disk. Beside each checkpoint lies its SHA-256, in the form that `sha256sum -c` reads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: list[Path] = []
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.saved = ""

    def load(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, on all ranks; None if the folder has none.

        The first rank says which one it is, and every rank maps that file: ranks of one host share its memory.
        """
        path = _by_first(lambda: newest(self.folder))
        if not all(distributed.gather_objects(path is None or path.is_file())):
            raise AlbefValueError(f"not every rank sees {path}; the run's folder must be shared by all")
        if path is None:
            return None
        self.kept, self.saved = [path], path.stem
        return read(path)

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Has `state` written as `checkpoint-NAME.pt`, unless that was the last thing written or loaded.

        Names grow with the run. Waits for the write before this one, and raises what that ended with.
        """
        stem = f"checkpoint-{name}"
        if distributed.rank() or stem == self.saved:
            return
        self._finish()
        self.saved = stem
        self.writing = self.writer.submit(self._write, self.folder / f"{stem}.pt", on_host(state))

    def wait(self) -> None:
        """Waits, on all ranks, until what was saved is on the disk; raises what the write ended with."""
        self._finish()
        distributed.wait()

    def raise_failure(self) -> None:
        """Raises the error of a write that has ended with one. Never waits."""
        if self.writing is not None and self.writing.done():
            self._finish()

    def _finish(self) -> None:
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        try:
            write_whole(path, state)
        except OSError as error:
            raise OSError(
                f"{path} could not be written ({error.strerror or error}); what was saved before is whole. Make room, "
                f"then go on with: albef train --resume {self.folder}"
            ) from error
        # of one step only the last: it holds all that the others do
        self.kept = [*(kept for kept in self.kept if _step(kept) != _step(path)), path][-KEPT:]
        for old in set(self.folder.glob(PATTERN)) - set(self.kept):
            with contextlib.suppress(OSError):  # still mapped, on Windows
                old.unlink()
                old.with_suffix(SUMS).unlink(missing_ok=True)

    def close(self) -> None:
        """Waits for the end of a write, if there is one."""
        self.writer.shutdown()


def _step(path: Path) -> list[str]:
    """The step in a checkpoint's name, such as `checkpoint-00000020-finished.pt`; that of version 0.1.0 has none."""
    return path.stem.split("-")[1:2]


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[Checkpointer]:
    """Makes a run's folder and holds it for all ranks. RuntimeError that says who holds it if somebody else does."""
    with contextlib.ExitStack() as held:
        _by_first(lambda: held.enter_context(_lock(folder)))
        yield held.enter_context(contextlib.closing(Checkpointer(folder)))


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise AlbefRuntimeError(
            f"{folder}: {_holder(folder)} trains in this folder already; wait for its end, stop it, or choose another "
            "--out"
        ) from None
    try:
        holder = {"process": os.getpid(), "host": socket.gethostname()}
        write_atomically(folder / HOLDER, json.dumps(holder) + "\n")
        for place in (folder, folder / MODEL, folder / BEST):  # folders below may be other runs
            for path in place.glob(".*.tmp"):  # what a process left that was killed while it wrote
                path.unlink(missing_ok=True)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text())
        return f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _by_first(act: Callable[[], Any]) -> Any:
    """What `act` returns on the first rank, or the error that it raises there, on all ranks."""
    found = None
    if distributed.rank() == 0:
        try:
            found = act()
        except (AlbefError, OSError) as error:
            found = error
    found = distributed.from_first(found)
    if isinstance(found, Exception):
        raise found
    return found


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named by a warning. ValueError if all are damaged."""
    faults: list[str] = []
    for path in sorted(folder.glob(PATTERN), key=lambda path: path.stem, reverse=True):
        fault = damage(path)
        if fault is None:
            for line in faults:
                warnings.warn(f"{line}; the run goes on from {path.name}, the one before", stacklevel=2)
            return path
        faults.append(f"{path} is damaged: {fault}")
    if faults:
        raise AlbefValueError(f"{'; '.join(faults)}. Restore one of them, or delete the folder to start the run anew")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole. One of version 0.1.0 has no checksum, and is read."""
    sums = path.with_suffix(SUMS)
    if path.name == legacy.NAME and not sums.exists():
        return _unreadable(path)
    if not sums.is_file():
        return "its checksum is missing"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return None if sums.read_bytes().split()[:1] == [digest.hexdigest().encode()] else "its checksum is another one"


def _unreadable(path: Path) -> str | None:
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        return str(error).splitlines()[0]
    return None


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of any version in today's form; its tensors are mapped from the file."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return legacy.upgraded(state, path.parent)


def read_newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a folder, for a look at a run that another process may own."""
    path = newest(folder)
    return read(path) if path else None


def write_whole(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint and its checksum. The checksum comes first, so that a crash leaves no checkpoint without."""
    digest = hashlib.sha256()

    def content(file: BinaryIO) -> None:
        torch.save(state, cast(Any, _Hashed(file, digest)))

    aside = path.with_name(f".{path.name}.tmp")
    try:
        write_atomically(aside, content)
        write_atomically(path.with_suffix(SUMS), f"{digest.hexdigest()}  {path.name}\n")
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)  # on a full disk nobody else finds room
        raise
    sync_folder(path.parent)


class _Hashed:
    """A file that is written from its start to its end, and hashed on the way."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self.file, self.digest = file, digest

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def on_host(value: Any) -> Any:
    """A copy of a tree of dicts and lists whose tensors lie in the host's memory and belong to nobody else."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_host(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(on_host, value))
    return value
