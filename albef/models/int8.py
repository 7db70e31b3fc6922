"""Weights in eight bits: the numbers of a matrix are whole ones, -127 to 127, times a scale for each of its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from albef.errors import AlbefValueError

LARGEST = 127
LEAST = 32  # rows, and numbers in a row, of a matrix that is stored so; what is smaller hardly gains by it
SCALE = ".scale"  # after the name of such a matrix: that of its scales


def pack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels of convolutions (a row for each channel that they make) to int8 and `NAME.scale`, float32
    [rows]; everything else, positions too, to half precision. A number moves by at most half the scale of its row."""
    packed = {}
    for name, value in state.items():
        if _is_matrix(name, value):
            rows = value.float().flatten(1)  # [rows, numbers]
            packed[name + SCALE] = scale = rows.abs().amax(1) / LARGEST
            steps = rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # a row of zeros stays zeros
            packed[name] = steps.round().to(torch.int8).reshape(value.shape)
        else:
            packed[name] = value.half()
    return packed


def unpack(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The float32 weights of a file, packed or not; ValueError that names `source` for int8 without fitting scales."""
    unpacked = {name: value.float() for name, value in state.items()}
    for name in [name for name, value in state.items() if value.dtype == torch.int8]:
        scale = unpacked.pop(name + SCALE, None)
        if scale is None or scale.shape != state[name].shape[:1]:
            found = "none" if scale is None else f"a tensor {list(scale.shape)}"
            raise AlbefValueError(
                f"{source}: {name} {list(state[name].shape)} is int8 and needs {name}{SCALE}, a number for each row, "
                f"but there is {found}; write the file again with `albef convert --int8`"
            )
        unpacked[name].flatten(1).mul_(scale[:, None])
    return unpacked


def _is_matrix(name: str, value: Tensor) -> bool:
    """Whether a tensor is worth it. `cls_token` and `pos_embed` have three dimensions, tables of positions two."""
    if value.ndim not in (2, 4) or name.endswith("position_embeddings.weight"):
        return False
    return min(len(value), value[0].numel()) >= LEAST
