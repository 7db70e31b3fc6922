"""Grounding: how well boxes overlap, and which box a heat map points at.

A box is x, y, width, height in pixels, as in COCO; what follows them, such as a detector's score, is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from albef.errors import AlbefValueError

Box = Sequence[float]
CORRECT_IOU = 0.5
BRIGHT = 0.5  # share of the peak from which on a pixel belongs to its spot


def iou(box_a: Box, box_b: Box) -> float:
    """Intersection over union in [0, 1]; 0 if both boxes are empty. ValueError for negative sides."""
    return _over_union(box_a, box_b, _overlap(box_a, box_b))


def official_iou(box_a: Box, box_b: Box) -> float:
    """`iou`, but as in the original an overlap of one pixel or less either way counts as none: 1x1 boxes score 0."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = checked(box_a), checked(box_b)
    # last pixel must lie beyond the first; the original's order of additions, for what falls on the edge
    wide = max(ax, bx) < min(ax + aw - 1, bx + bw - 1)
    high = max(ay, by) < min(ay + ah - 1, by + bh - 1)
    return _over_union(box_a, box_b, _overlap(box_a, box_b) if wide and high else 0.0)


def accuracy(ious: Sequence[float]) -> float:
    """Fraction of expressions whose IoU is at least 0.5. ValueError without any."""
    if not ious:
        raise AlbefValueError("no IoUs: an accuracy needs at least one; check which split was read")
    return sum(overlap >= CORRECT_IOU for overlap in ious) / len(ious)


def accuracy_by_split(ious: Sequence[float], splits: Sequence[str]) -> dict[str, float]:
    """`accuracy` of every split by itself, e.g. `{"val": .., "testA": .., "testB": ..}`.

    ValueError unless every IoU has its split.
    """
    if len(ious) != len(splits):
        raise AlbefValueError(f"{len(ious)} IoUs and {len(splits)} splits: give one of each for every expression")
    found: dict[str, list[float]] = {}
    for overlap, split in zip(ious, splits, strict=True):
        found.setdefault(split, []).append(overlap)
    return {split: accuracy(own) for split, own in found.items()}


def upsample(heat_map: ArrayLike, height: int, width: int) -> np.ndarray:
    """A map [h, w], or tensor on any device, in the size of its image [height, width], bicubic as in the original."""
    import torch

    small = torch.as_tensor(_on_host(heat_map)).float()
    large = torch.nn.functional.interpolate(small[None, None], (height, width), mode="bicubic", align_corners=False)
    return large[0, 0].numpy()


def _on_host(heat_map: ArrayLike) -> np.ndarray:
    """A map as numpy can read it: a tensor may lie on any device and be of any number type."""
    tensor: Any = heat_map
    return tensor.detach().float().cpu().numpy() if hasattr(heat_map, "detach") else np.asarray(heat_map)


def box_score(heat_map: ArrayLike, box: Box, area_exponent: float = 0.5) -> float:
    """Sum of a map [height, width] in the box, over area**area_exponent; 0 for an empty box.

    What lies outside the image adds to the area and nothing to the sum. ValueError for negative sides.
    """
    x, y, width, height = checked(box)
    inside = _on_host(heat_map)[_pixels(y, height), _pixels(x, width)]
    area = width * height
    return float(inside.sum(dtype=np.float64) / area**area_exponent) if area else 0.0


def choose_box(heat_map: ArrayLike, boxes: Sequence[Box], area_exponent: float = 0.5) -> int | None:
    """Which of `boxes` has the highest `box_score` on a map [height, width]; the first, if several.

    None if no score is positive (the original then takes the box of the expression before, unnoticed): fall back to
    `box_of_map` or count it as wrong. ValueError for negative sides.
    """
    scores = [box_score(heat_map, box, area_exponent) for box in boxes]
    best = max(scores, default=0.0)
    return scores.index(best) if best > 0 else None


def peak(heat_map: ArrayLike) -> tuple[int, int]:
    """Column and row, x and y, of the highest value of a map [height, width] on any device; the first, if several."""
    pixels = _on_host(heat_map)
    row, column = divmod(int(pixels.argmax()), pixels.shape[1])
    return column, row


def point(grid: ArrayLike, height: int, width: int) -> tuple[float, float]:
    """x and y in an image [height, width] of the middle of the patch where `grid` [rows, columns] is highest.

    Not the peak of the enlarged map: bicubic interpolation overshoots in the outermost patches, and moves the peak of
    one of them to the image's edge.
    """
    rows, columns = _on_host(grid).shape
    column, row = peak(grid)
    return (column + 0.5) * width / columns, (row + 0.5) * height / rows


def contains(box: Box, at: tuple[float, float]) -> bool:
    """Whether a point x, y is in the box, edges included."""
    (left, top, width, height), (x, y) = checked(box), at
    return bool(left <= x <= left + width and top <= y <= top + height)


def box_of_map(heat_map: ArrayLike) -> tuple[int, int, int, int]:
    """A box without a detector: around the spot with the peak, in pixels of the map [height, width].

    The spot is what hangs together with the peak, by edges, of the pixels with at least half of its value. The whole
    map where no value is positive.
    """
    pixels = _on_host(heat_map)
    x, y = peak(pixels)
    if not pixels[y, x] > 0:
        return 0, 0, pixels.shape[1], pixels.shape[0]
    rows, columns = _spot(pixels >= BRIGHT * pixels[y, x], x, y).nonzero()
    left, top = int(columns.min()), int(rows.min())
    return left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top


def _spot(bright: np.ndarray, x: int, y: int) -> np.ndarray:
    """The pixels of `bright` [height, width] that hang together with (x, y), as booleans of that shape."""
    spot = np.zeros_like(bright)
    spot[y, x] = True
    size = 0
    while size < spot.sum():
        size = spot.sum()
        grown = spot.copy()
        grown[1:] |= spot[:-1]
        grown[:-1] |= spot[1:]
        grown[:, 1:] |= spot[:, :-1]
        grown[:, :-1] |= spot[:, 1:]
        spot = grown & bright
    return spot


def _pixels(start: float, length: float) -> slice:
    # without max a box left of or above the image would count from the far side, as it does in the original
    return slice(max(0, int(start)), max(0, int(start + length)))


def checked(box: Box) -> Box:
    """The four numbers of a box, without what follows, such as a score. ValueError for fewer, or impossible ones."""
    try:
        right = len(box) >= 4 and all(map(math.isfinite, box[:4])) and box[2] >= 0 and box[3] >= 0
    except TypeError:  # no sequence, or not of numbers
        right = False
    if not right:
        rule = "a box is x, y, width, height in pixels, all finite and neither side negative"
        shown = list(box) if hasattr(box, "__iter__") else box
        raise AlbefValueError(f"box {shown}: {rule}; of two corners give x1, y1, x2 - x1, y2 - y1")
    return box[:4]


def _overlap(box_a: Box, box_b: Box) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = checked(box_a), checked(box_b)
    width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    return float(max(0.0, width) * max(0.0, height))


def _over_union(box_a: Box, box_b: Box, overlap: float) -> float:
    union = box_a[2] * box_a[3] + box_b[2] * box_b[3] - overlap
    return overlap / union if union else 0.0
