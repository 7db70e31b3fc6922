"""Checkpoints that are either whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from albef.errors import AlbefValueError

NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes beside the old checkpoint and then takes its place, so that a crash at any moment leaves one whole."""
    temporary = folder / f"{NAME}.tmp"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)


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
