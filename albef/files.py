"""Where names of models and data lead: a path, something that comes with the package, or the Hugging Face hub."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from albef.errors import AlbefFileNotFoundError, AlbefValueError

ASSETS = Path(__file__).parent / "assets"
PREFIX = "albef:"
HUB = "hf://"
MODELS = ASSETS / "models"
GENERATED = {"world:": "albef_demo.world_tasks"}
"""Names of data that are made and not read begin so -> the module that makes them: it has `open_records(name)` and
`open_examples(kind, name)`."""
ANSWERS = "answers.json"  # beside a model that answers: the list it ranks


def data_path(name: str) -> str:
    """`albef:emoji/noto.tar.gz` is the package's own file; everything else is left as it is."""
    return str(ASSETS / name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name


def generator(name: str) -> ModuleType | None:
    """The module that makes the data called `name`; None if they are to be read."""
    return next((import_module(module) for scheme, module in GENERATED.items() if name.startswith(scheme)), None)


def model_folder(name: str | Path, files: tuple[str, ...], training: bool = False) -> Path:
    """The folder of a saved model that has `files`: a path, a model that comes with the package (`emoji`), or a
    repository on the Hugging Face hub (`hf://owner/name`, see `fetched`). FileNotFoundError otherwise."""
    folder = fetched(name, training=training)
    for path in (folder, MODELS / str(name)):
        if all((path / file).is_file() for file in files):
            return path
    shipped = ", ".join(sorted(path.name for path in MODELS.glob("*")))
    raise AlbefFileNotFoundError(
        f"{name}: no saved model here (a folder with {' and '.join(files)}); give the `model` folder of a run, one "
        f"that comes with the package ({shipped}), a repository on the Hugging Face hub as {HUB}owner/name, or turn a "
        "published .pth file into one with `albef convert`"
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
