"""Where names of models and data lead: a path, something that comes with the package, or the Hugging Face hub."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

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
