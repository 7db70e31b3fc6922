"""Folders with weights: `config.json` and `model.safetensors`, on disk or on the Hugging Face hub.

What a training can go on from besides, the teacher and its queues, stands in `training.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from albef.errors import AlbefValueError
from albef.files import model_folder, write_atomically
from albef.models import int8
from albef.models.legacy import upgrade

CONFIG, WEIGHTS, TRAINING = "config.json", "model.safetensors", "training.safetensors"
_INT8 = {"int8": "symmetric; the float32 scale of each row of NAME stands in NAME.scale"}  # for whoever reads the file


def save(folder: str | Path, config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Writes both files, the weights in `dtype` if given; torch.int8 stands for the form of `int8.pack`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    _write(state, folder / WEIGHTS, dtype)


def save_training(folder: str | Path, teacher: dict[str, Tensor] | None, queue: dict[str, Tensor] | None) -> None:
    """Writes the states of a teacher and of its queues beside a model; without either, none stay behind either."""
    parts = {"teacher": teacher or {}, "queue": queue or {}}
    state = {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
    path = Path(folder) / TRAINING
    path.parent.mkdir(parents=True, exist_ok=True)
    if state:
        _write(state, path, None)
    else:
        path.unlink(missing_ok=True)


def _write(state: dict[str, Tensor], path: Path, dtype: torch.dtype | None) -> None:
    number_type, metadata = (None, _INT8) if dtype is torch.int8 else (dtype, {})
    tensors = {name: value.detach().to("cpu", number_type).contiguous() for name, value in state.items()}
    tensors = int8.pack(tensors) if dtype is torch.int8 else tensors
    write_atomically(path, to_bytes(tensors, metadata={"format": "pt", **metadata}))


def load(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and float32 weights of a saved model."""
    path = model_folder(folder, (CONFIG, WEIGHTS))
    return load_config(path), upgrade(int8.unpack(load_file(path / WEIGHTS), str(path / WEIGHTS)))


def load_config(folder: str | Path) -> dict[str, Any]:
    """What `config.json` of a saved model says."""
    return json.loads((model_folder(folder, (CONFIG, WEIGHTS)) / CONFIG).read_text())


def load_training(folder: str | Path) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
    """States of the teacher and of its queues; None for what was not saved beside the model."""
    path = model_folder(folder, (CONFIG, WEIGHTS), training=True) / TRAINING
    state = upgrade(load_file(path)) if path.is_file() else {}
    teacher, queue = (
        {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
        for part in ("teacher.", "queue.")
    )
    return teacher or None, queue or None


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads `state` into `module`; anything missing, left over or of another shape is an error that names it."""
    if problems := misfits({name: tuple(own.shape) for name, own in module.state_dict().items()}, state):
        raise AlbefValueError(
            f"{source} does not fit this model: {problems}. Build the model with the configuration the weights were "
            "made for, or convert them first"
        )
    module.load_state_dict(state)


def misfits(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> str:
    """What `state` lacks, has too much or has in another shape, in words; an empty text if it fits."""
    wrong = (
        f"{name} (expected {list(shapes[name])}, got {list(state[name].shape)})"
        for name in shapes.keys() & state.keys()
        if shapes[name] != tuple(state[name].shape)
    )
    problems = (
        describe("missing", shapes.keys() - state.keys()),
        describe("left over", state.keys() - shapes.keys()),
        describe("of another shape", wrong),
    )
    return "; ".join(filter(None, problems))


def describe(what: str, names: Iterable[str], shown: int = 5) -> str:
    """`3 tensors missing: a, b, c`, with at most `shown` names; an empty text if there are none."""
    ordered = sorted(names)
    if not ordered:
        return ""
    more = ", ..." if len(ordered) > shown else ""
    return f"{len(ordered)} tensor{'s' if len(ordered) > 1 else ''} {what}: {', '.join(ordered[:shown])}{more}"
