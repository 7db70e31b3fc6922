"""Folders with weights: `config.json` and `model.safetensors`, on disk or on the Hugging Face hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from albef.files import model_folder

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(folder: str | Path, config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
    save_file(tensors, folder / f"{WEIGHTS}.tmp", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS}.tmp", folder / WEIGHTS)  # whole or absent, whenever a crash comes


def load(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and float32 weights of a saved model."""
    path = model_folder(folder, (CONFIG, WEIGHTS))
    state = {name: value.float() for name, value in load_file(path / WEIGHTS).items()}
    return json.loads((path / CONFIG).read_text()), state


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads `state` into `module`; anything missing, left over or of another shape is an error that names it."""
    own = module.state_dict()
    problems = [
        describe("missing", own.keys() - state.keys()),
        describe("left over", state.keys() - own.keys()),
        describe(
            "of another shape",
            (
                f"{name} (expected {list(own[name].shape)}, got {list(state[name].shape)})"
                for name in own.keys() & state.keys()
                if own[name].shape != state[name].shape
            ),
        ),
    ]
    if any(problems):
        raise ValueError(
            f"{source} does not fit this model: {'; '.join(filter(None, problems))}. "
            "Build the model with the configuration the weights were made for, or convert them first"
        )
    module.load_state_dict(state)


def describe(what: str, names: Iterable[str], shown: int = 5) -> str:
    """`3 tensors missing: a, b, c`, with at most `shown` names; an empty text if there are none."""
    ordered = sorted(names)
    if not ordered:
        return ""
    more = ", ..." if len(ordered) > shown else ""
    return f"{len(ordered)} tensor{'s' if len(ordered) > 1 else ''} {what}: {', '.join(ordered[:shown])}{more}"
