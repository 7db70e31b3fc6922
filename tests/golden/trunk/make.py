"""Records `maps.json`: what the published implementation of EfficientNet-Lite gives for weights made by a formula.

python tests/golden/trunk/make.py, where `pip install efficientnet_lite_pytorch` has put its package. The tests don't.
"""

from __future__ import annotations

import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TRUNKS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
SIZES = ((64, 96), (80, 112))  # the second one has odd maps on the way
MAPS = {"lower": 5, "last": 8}  # our numbers of the parts


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers from -0.5 to 0.5 that look drawn and depend on the name alone."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((43758.5453 * (12.9898 * index + zlib.crc32(name.encode()) % 997).sin()) % 1 - 0.5).view(shape)


def weights(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the published layout."""
    found = noise(name, shape)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if len(shape) == 4:
        return (found * 5 / torch.Size(shape[1:]).numel() ** 0.5).float()
    around = {"weight": 1.0, "bias": 0.2, "running_mean": 0.0, "running_var": 1.0}[name.rpartition(".")[2]]
    return (around + found).float()


def looked_at(found: Tensor) -> list[float]:
    """The mean of a map, and twelve of its entries."""
    flat = found.flatten()
    places = torch.arange(12) * (flat.numel() // 12) + 5
    return [float(value) for value in (flat.mean(), *flat[places])]


def kept(lower: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    lower.append(output)


def record() -> dict[str, list[float]]:
    from efficientnet_lite_pytorch import EfficientNet

    values: dict[str, list[float]] = {}
    for trunk in TRUNKS:
        model = EfficientNet.from_name(trunk, image_size=None).eval()  # None: padding for any size
        model.load_state_dict({name: weights(name, tuple(one.shape)) for name, one in model.state_dict().items()})
        lower: list[Tensor] = []
        last_halving = max(i for i, block in enumerate(model._blocks) if block._depthwise_conv.stride[0] == 2)
        model._blocks[last_halving - 1].register_forward_hook(partial(kept, lower))
        for height, width in SIZES:
            with torch.no_grad():
                last = model.double().extract_features(noise("image", (1, 3, height, width)) * 4)
            for name, found in (("lower", lower.pop()), ("last", last)):
                values[f"{trunk} {height}x{width} {name}"] = looked_at(found)
    return values


if __name__ == "__main__":
    Path(__file__).with_name("maps.json").write_text(json.dumps(record(), indent=1) + "\n")
