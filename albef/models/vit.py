"""Image encoder: a ViT whose every token is an output (paper §3.1)."""

# B images, N patches (+ 1 class token = S), D width, H heads

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from albef.models.attention import GeluLinear, attend, merge_heads, split_heads
from albef.models.config import AlbefConfig
from albef.models.trunk import Trunk


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = GeluLinear(4 * width, width)

    def forward(self, x: Tensor, record: list[Tensor] | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(self.norm1(x)), 3, self.heads)  # 3 x [B, H, S, D/H]
        x = x + self.proj(merge_heads(attend(q, k, v, record=record)))
        return x + self.fc2(self.fc1(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Turns images into tokens: [B, 3, height, width] -> [B, 1 + N, vision_width], class token first.

    With a trunk, it also takes what `frozen_features` gave in place of images.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.checkpointed = False
        width = config.vision_width
        if config.trunk is None:
            self.trunk, self.patch_embed = None, nn.Conv2d(3, width, config.patch_size, config.patch_size)
        else:
            self.trunk = Trunk(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.image_tokens, width))
        self.blocks = nn.ModuleList(Block(width, config.vision_heads) for _ in range(config.vision_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixel_values: Tensor, record: list[Tensor] | None = None, record_layer: int = -1) -> Tensor:
        """`record` receives the attention probabilities [B, H, S, S] of block `record_layer` (for Grad-CAM)."""
        expected = (3, *self.image_size)
        taken = (expected, self.trunk.frozen_shape) if self.trunk is not None else (expected,)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) not in taken:
            raise ValueError(
                f"pixel_values: expected [batch, {', '.join(map(str, expected))}], got {list(pixel_values.shape)}; "
                "resize with the model's processor, or load the model with another image_size"
            )
        x = self._embed(pixel_values.to(self.cls_token.dtype)) + self.pos_embed
        for index, block in enumerate(self.blocks):
            recorded = record if index == record_layer % len(self.blocks) else None
            if self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, recorded, use_reentrant=False)
            else:
                x = block(x, recorded)
        return self.norm(x)

    def frozen_features(self, pixel_values: Tensor) -> Tensor:
        """What the frozen parts of the trunk make of images, [B, C, h, w] without gradient, for `forward` to take in
        their place; the images themselves where nothing is frozen."""
        return pixel_values if self.trunk is None else self.trunk.frozen_features(pixel_values)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """[B, 1 + N, D], without positions."""
        if self.trunk is not None:
            tokens = self.trunk(pixel_values)
            return torch.cat([self.cls_token + tokens[:, :1], tokens[:, 1:]], dim=1)
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)  # [B, N, D]
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)


def resize_positions(positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embeddings for another patch grid: [1, 1 + h * w, D] -> [1, 1 + h' * w', D].

    The class token's is kept, the rest is resized bicubically without antialiasing, as the original does for square
    grids; grids here may be any rectangle, (rows, columns).
    """
    rows, columns = old_grid
    if positions.shape[1] != rows * columns + 1:
        raise ValueError(
            f"expected {rows * columns + 1} positions for a grid of {rows} x {columns} and its class token, "
            f"got {positions.shape[1]}"
        )
    if old_grid == new_grid:
        return positions
    grid = positions[:, 1:].unflatten(1, old_grid).permute(0, 3, 1, 2)  # [1, D, h, w]
    grid = F.interpolate(grid.float(), size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
