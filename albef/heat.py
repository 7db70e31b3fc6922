"""A heat map over its image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


def heat(
    image: Image.Image,
    values: np.ndarray,
    size: tuple[int, int] = (160, 160),
    box: Sequence[float] | None = None,
) -> Image.Image:
    """The image, brought to `size` (width, height in pixels), under the map's colours, from blue (least) to red.

    `values` [rows, columns] may be coarser. A `box` (x, y, width, height in pixels of the image) is drawn in white.
    """
    span = float(values.max() - values.min()) or 1.0
    grid = Image.fromarray(((values - values.min()) / span).astype(np.float32))
    level = np.asarray(grid.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    channels = [(1.5 - np.abs(4 * level - centre)).clip(0, 1) for centre in (3, 2, 1)]
    colours = Image.fromarray((255 * np.stack(channels, -1)).astype(np.uint8))
    mixed = Image.blend(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), colours, 0.5)
    if box is not None:
        across, down = size[0] / image.width, size[1] / image.height
        x, y, width, height = box
        left, top = x * across, y * down
        corners = (left, top, max(left, (x + width) * across - 1), max(top, (y + height) * down - 1))
        ImageDraw.Draw(mixed).rectangle(corners, outline="white", width=max(1, min(size) // 100))
    return mixed
