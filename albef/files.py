"""Files: where names of models and data lead (a path, the package, a cache, the hub), and how one is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.published import PUBLISHED

ASSETS = Path(__file__).parent / "assets"
PREFIX = "albef:"
HUB = "hf://"
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


def cache_folder() -> Path:
    """Where is kept what is fetched or computed once: `$ALBEF_CACHE`, or `albef` in `$XDG_CACHE_HOME` or `~/.cache`."""
    of_all = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("ALBEF_CACHE") or of_all / "albef").expanduser()


def pulled(name: str) -> Path:
    """Where `albef pull` keeps the published model of that name."""
    return cache_folder() / "models" / name


def model_folder(name: str | Path, files: tuple[str, ...], training: bool = False) -> Path:
    """The folder of a saved model that has `files`: a path, a model that comes with the package (`emoji`), one that
    `albef pull` has fetched (`albef-14m`), or a repository on the Hugging Face hub (`hf://owner/name`, see `fetched`).
    FileNotFoundError otherwise."""
    folder = fetched(name, training=training)
    for path in (folder, MODELS / str(name), *([pulled(str(name))] if str(name) in PUBLISHED else [])):
        if all((path / file).is_file() for file in files):
            return path
    if str(name) in PUBLISHED:
        raise AlbefFileNotFoundError(f"{name}: not here yet; fetch it once by `albef pull {name}`")
    shipped = ", ".join(sorted(path.parent.name for path in MODELS.glob(f"*/{files[0]}")))
    raise AlbefFileNotFoundError(
        f"{name}: no saved model here (a folder with {' and '.join(files)}); give the `model` folder of a run, one "
        f"that comes with the package ({shipped}), one that `albef pull` lists, a repository on the Hugging Face hub "
        f"as {HUB}owner/name, or turn a published .pth file into one with `albef convert`"
    )


def fetched(name: str | Path, revision: str | None = None, training: bool = False) -> Path:
    """The folder that `hf://owner/name` has been fetched to, at a `revision` (a branch, a tag or a commit) if given.

    Only names that begin with `hf://` reach the network; every other one is a path. The teacher and its queues
    (`training.safetensors`) are fetched for `training` alone. FileNotFoundError if there is nothing to be had;
    ValueError for a revision of something else.
    """
    if not str(name).startswith(HUB):
        if revision is not None:
            raise AlbefValueError(f"revision {revision!r} is for a repository on the hub, {HUB}owner/name; got {name}")
        return Path(name)
    from huggingface_hub import snapshot_download

    left_out = [] if training else ["training.safetensors"]
    repository, wanted = str(name).removeprefix(HUB), ["*.json", "*.safetensors"]
    try:
        found = snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=left_out)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AlbefFileNotFoundError(
            f"{name}: could not be fetched from the Hugging Face hub ({reason}); check name, revision and network"
        ) from error
    return Path(found)


def printable(text: str, kept: str = "") -> str:
    """A text that a terminal can show: control characters and half characters, but those `kept`, as escapes such as
    `\\x1b`. Names come from files of strangers, and a terminal would obey them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


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
    if not callable(content):
        file.write(content.encode() if isinstance(content, str) else content)
        return
    try:
        content(file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # of a full disk, which torch.save hides behind an error of its own
            raise error.__context__ from None
        raise


def sync_folder(folder: Path) -> None:
    """Has the disk keep the new name too; some systems, Windows among them, cannot open a folder."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
