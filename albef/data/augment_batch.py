"""Augmentation of a whole batch at once: for small images that are kept in memory, on the CPU or the GPU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class BatchAugment:
    """Gives every image a random affine view and random colours: uint8 [B, 3, h, w] to uint8 [B, 3, H, W].

    `zoom` is the range of the visible side as a share of the image's. `shift` is the largest displacement as a share of
    the side; the aspect ratio varies with it too. `angle` is the largest rotation and shear in degrees. `colour` 0
    keeps the colours, and 1 changes them wildly. All random numbers come from PyTorch's global generator of the device
    on which the images lie, so that nothing has to be copied there.
    """

    def __init__(
        self,
        size: tuple[int, int],
        zoom: tuple[float, float] = (0.75, 1.15),
        shift: float = 0.1,
        angle: float = 12.0,
        colour: float = 0.3,
    ) -> None:
        self.size, self.zoom, self.shift, self.angle, self.colour = size, zoom, shift, angle, colour

    def __call__(self, images: Tensor) -> Tensor:
        images = images.float()
        grid = F.affine_grid(self._views(len(images), images.device), [len(images), 3, *self.size], False)
        views = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return self._recolour(views).clamp(0, 255).to(torch.uint8)

    def _views(self, count: int, device: torch.device) -> Tensor:
        """Draws affine matrices [B, 2, 3]."""
        low, high = self.zoom
        side = low + (high - low) * torch.rand(count, device=device)
        aspect = torch.exp(1.5 * self.shift * _signed(count, device=device))
        wide, tall = side * aspect, side / aspect
        turn, shear = (_signed(count, device=device) * math.radians(self.angle) for _ in range(2))
        right, down = (_signed(count, device=device) * self.shift * 2 for _ in range(2))
        cos, sin = torch.cos(turn), torch.sin(turn)
        upper = torch.stack([cos * wide, (sin + shear) * wide, right], dim=1)
        lower = torch.stack([-sin * tall, cos * tall, down], dim=1)
        return torch.stack([upper, lower], dim=1)

    def _recolour(self, images: Tensor) -> Tensor:
        """Maps the colours at random and linearly around mid-grey: saturation, mixing, contrast and brightness."""
        count, device = len(images), images.device
        saturation = 1 + self.colour * 1.5 * _signed(count, 1, 1, device=device)
        kept = saturation * torch.eye(3, device=device) + (1 - saturation) * (1 / 3)  # [B, 3, 3]
        mix = kept + self.colour * 0.3 * torch.randn(count, 3, 3, device=device)
        contrast = 1 + self.colour * _signed(count, 1, 1, device=device)
        shift = self.colour * 40 * torch.randn(count, 3, 1, device=device)
        flat = images.flatten(2) - 128
        return (contrast * mix @ flat + 128 + shift).view_as(images)


def _signed(*shape: int, device: torch.device) -> Tensor:
    return torch.rand(*shape, device=device) * 2 - 1
