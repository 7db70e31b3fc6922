"""EfficientNet-Lite 0 to 2 as the trunk of a hybrid image encoder (ViT paper, §3.1; Tan and Le, 2019).

Batch normalisation is folded into the convolutions when a published file is read (`names.from_efficientnet`).
"""

# B images, H x W pixels, C channels, h x w = N places of the trunk's last map, D vision_width

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albef.models.config import TRUNK_PARTS, AlbefConfig

_STAGES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "efficientnet-lite0": ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet-lite1": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet-lite2": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
}
"""Blocks and channels of the seven stages."""
_KERNELS, _STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
_STEM, _HEAD, _EXPANSION = 32, 1280, 6
_SECOND = 6
"""The part that halves the map for the last time: the second level is what it reads."""
_TOP_SIZE, _MEAN_SIZE, _SECOND_SIZE = 0.87, 0.43, 7.1
"""Root mean square of the last map, of its mean and of the second level, as published trunks give them for photos: 0.85
to 0.91, 0.41 to 0.46, 6.8 to 7.5 (48 photos at 256 pixels)."""


class Sizes(NamedTuple):
    """Of a block."""

    inputs: int
    hidden: int
    outputs: int
    kernel: int
    stride: int


def stages(name: str) -> list[list[Sizes]]:
    """The blocks of the seven stages."""
    found, inputs = [], _STEM
    for index, (repeats, outputs) in enumerate(zip(*_STAGES[name], strict=True)):
        expansion, stride, blocks = _EXPANSION if index else 1, _STRIDES[index], []
        for _ in range(repeats):
            blocks.append(Sizes(inputs, inputs * expansion, outputs, _KERNELS[index], stride))
            inputs, stride = outputs, 1
        found.append(blocks)
    return found


def trunk_flops(config: AlbefConfig) -> list[float]:
    """Floating-point operations of each part on one image, and of the linear maps to tokens."""
    assert config.trunk is not None
    blocks = stages(config.trunk)
    places = config.image_size[0] * config.image_size[1] / 4
    counts = [places * 2 * 27 * _STEM]
    for stage in blocks:
        count = 0.0
        for inputs, hidden, outputs, kernel, stride in stage:
            count += 2 * places * inputs * hidden if hidden > inputs else 0
            places /= stride**2
            count += 2 * places * hidden * (kernel**2 + outputs)
        counts.append(count)
    read = (places + 1) * _HEAD + (config.trunk_levels - 1) * places * 4 * blocks[_SECOND - 2][-1].outputs
    return [*counts, 2 * places * blocks[-1][-1].outputs * _HEAD, 2 * read * config.vision_width]


class SameConv(nn.Conv2d):
    """A convolution that gives size / stride places, rounded up. As in TensorFlow, an odd number of zeros around a map
    means one more after it than before it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups)
        nn.init.normal_(self.weight, std=(2 * groups / inputs) ** 0.5 / kernel)
        self.bias: nn.Parameter
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            x = F.pad(x, [*self._zeros(x.shape[-1]), *self._zeros(x.shape[-2])])
        return super().forward(x)

    def _zeros(self, size: int) -> tuple[int, int]:
        """How many stand before and after."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        count = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return count // 2, count - count // 2


class InvertedResidual(nn.Module):
    """Wider, each channel by itself, narrower again; around it a residual where the map keeps its shape."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        inputs, hidden, outputs, kernel, stride = sizes
        self.expand = SameConv(inputs, hidden, 1) if hidden > inputs else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class Trunk(nn.Module):
    """Images to tokens: [B, 3, H, W] -> [B, 1 + N, D], first a token of the whole image, then one of each place.

    The first of its nine parts are frozen, and the last `trunk_trained` are learnt. What `frozen_features` gave may
    come in place of images.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        assert config.trunk is not None
        blocks, width = stages(config.trunk), config.vision_width
        stem = nn.Sequential(SameConv(3, _STEM, 3, stride=2), nn.ReLU6(inplace=True))
        head = nn.Sequential(SameConv(blocks[-1][-1].outputs, _HEAD, 1), nn.ReLU6(inplace=True))
        self.parts = nn.ModuleList([stem, *(nn.Sequential(*map(InvertedResidual, stage)) for stage in blocks), head])
        frozen, self.levels = TRUNK_PARTS - config.trunk_trained, config.trunk_levels
        self.parts[:frozen].requires_grad_(False)
        self.kept = min(frozen, TRUNK_PARTS - 1)  # the head is cheap, but makes features four times as large
        self.top, self.mean = nn.Linear(_HEAD, width), nn.Linear(_HEAD, width)
        self.folded = 4 * blocks[_SECOND - 2][-1].outputs
        self.second = nn.Linear(self.folded, width) if self.levels == 2 else None
        self.frozen_shape = self._frozen_shape(config.image_size, [stage[-1].outputs for stage in blocks])

    @property
    def folded_among_kept(self) -> int:
        """How many of the last channels of `frozen_features` are the second level's, folded."""
        return self.folded if self.levels == 2 and self.kept > _SECOND else 0

    def digest(self) -> str:
        """What tells the parts that `frozen_features` runs from others."""
        digest = hashlib.sha256()
        for tensor in self.parts[: self.kept].state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def initialise(self) -> None:
        """Makes the entries of tokens about 1, for the sizes that published trunks give."""
        for linear, size in ((self.top, _TOP_SIZE), (self.mean, _MEAN_SIZE), (self.second, _SECOND_SIZE)):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5 / size)

    def frozen_features(self, pixel_values: Tensor) -> Tensor:
        """What the frozen parts before the head give, without gradient: [B, C, h, w]. If the second level is among it,
        it follows the last map in the channels, each 2 x 2 places of it folded into one. Such features, and images if
        nothing is frozen, come back as they are."""
        if not self.kept or pixel_values.shape[1] != 3:
            return pixel_values
        x, second = self._run(pixel_values.detach(), None, range(self.kept))
        return x if second is None else torch.cat([x, second], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x, second = self.frozen_features(x), None
        if self.folded_among_kept:
            x, second = x.split([x.shape[1] - self.folded, self.folded], dim=1)
        x, second = self._run(x, second, range(self.kept, TRUNK_PARTS))
        places = x.flatten(2).transpose(1, 2)  # [B, N, 1280]
        tokens = self.top(places)
        if self.second is not None and second is not None:
            tokens = tokens + self.second(second.flatten(2).transpose(1, 2))
        return torch.cat([self.mean(places.mean(1, keepdim=True)), tokens], dim=1)

    def _run(self, x: Tensor, second: Tensor | None, parts: range) -> tuple[Tensor, Tensor | None]:
        for index in parts:
            if index == _SECOND and self.levels == 2:
                second = F.pixel_unshuffle(x, 2)  # [B, 4 C, h, w]
            x = self.parts[index](x)
        return x, second

    def _frozen_shape(self, image_size: tuple[int, int], channels: list[int]) -> tuple[int, int, int]:
        """[C, h, w] of the features."""
        count = [3, _STEM, *channels][self.kept] + self.folded_among_kept
        stride = math.prod((2, *_STRIDES)[: self.kept])
        return count, image_size[0] // stride, image_size[1] // stride
