"""Checkpoints that are either whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from albef.errors import AlbefValueError
from albef.files import write_atomically

NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    write_atomically(folder / NAME, lambda file: torch.save(state, file))


def load(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint on the CPU, or None if the run has not saved one yet."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AlbefValueError(
            f"{path} can't be read, it is damaged or no checkpoint; delete it to start the run anew"
        ) from error
