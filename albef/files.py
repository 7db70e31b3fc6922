"""Files: where names of models and data lead (a path, the package, the Hugging Face hub), and how one is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from albef.errors import AlbefFileNotFoundError

ASSETS = Path(__file__).parent / "assets"
PREFIX = "albef:"
MODELS = ASSETS / "models"
DATA = Path("data")
GENERATED = {"world:": "albef_demo.world_tasks"}
"""Names of data that are made and not read begin so -> the module that makes them: it has `open_records(name)` and
`open_examples(kind, name)`."""
ANSWERS = "answers.json"  # beside a model that answers: the list it ranks


def data_path(name: str) -> str:
    """Where data lie: `albef:emoji/noto.tar.gz` is the package's own file, everything else a path.

    A path that leads nowhere is looked for in the folder `data` too, where the original keeps its lists.
    """
    if name.startswith(PREFIX):
        return str(ASSETS / name.removeprefix(PREFIX))
    inside = DATA / name
    return str(inside) if not Path(name).exists() and inside.exists() else name


def generator(name: str) -> ModuleType | None:
    """The module that makes the data called `name`; None if they are to be read."""
    return next((import_module(module) for scheme, module in GENERATED.items() if name.startswith(scheme)), None)


def model_folder(name: str | Path, files: tuple[str, ...]) -> Path:
    """The folder of a saved model that has `files`: a path, a model that comes with the package (`emoji`), or a
    repository on the hub (`owner/name`), which is fetched. FileNotFoundError with the remedy otherwise."""
    for path in (Path(name), MODELS / str(name)):
        if all((path / file).is_file() for file in files):
            return path
    if not Path(name).exists() and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return _download(str(name))
    shipped = ", ".join(sorted(path.name for path in MODELS.glob("*")))
    raise AlbefFileNotFoundError(
        f"{name}: no saved model here (a folder with {' and '.join(files)}); give the `model` folder of a run, "
        f"one that comes with the package ({shipped}), or turn a published .pth file into one with `albef convert`"
    )


def _download(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise AlbefFileNotFoundError(
            f"{repository}: no such folder, and fetching it from the hub needs `pip install albef[hub]`"
        ) from error
    return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"]))


def write_atomically(path: str | Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one, whole and on the disk.

    `content` is bytes, text (written as UTF-8), or a function that writes to the open binary file. The content goes to
    a file beside `path` that no other process uses, and takes its place when it is complete. Where `path` is a link,
    the file it leads to is replaced; a device or a pipe, such as /dev/stdout, is written to directly.
    """
    if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
        with open(path, "wb") as file:
            _write(file, content)
        return
    place = Path(os.path.realpath(path))
    aside = place.with_name(f".{place.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as file:
            _write(file, content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, place)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(place.parent)


def _write(file: BinaryIO, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Has the disk keep the new name too; some systems, Windows among them, cannot open a folder."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
