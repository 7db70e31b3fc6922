"""The original's image augmentation without OpenCV: RandomAugment, and crop and flip before it (spec 2.9).

Pictures are uint8 arrays [H, W, 3] of RGB values 0..255. Every operation returns a new array of the same size.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from albef.data.pictures import pixels_of

Pixels = NDArray[np.uint8]
FILL = (128, 128, 128)  # what geometric operations show beyond the picture's edge
MAX_LEVEL = 10
RATIO = (3 / 4, 4 / 3)  # width / height of a crop


class Random(Protocol):
    """The draws RandAugment makes; numpy's RandomState and Generator both have them."""

    def choice(self, a: Any, size: Any) -> Any: ...

    def random(self) -> Any: ...


def identity(image: Pixels) -> Pixels:
    return np.array(image)


def auto_contrast(image: Pixels, official: bool = False) -> Pixels:
    """Stretch every channel to 0..255. `official`: its uint8 overflow makes channels without a 0 white (#134)."""
    return np.stack([_stretch(image[..., c], official) for c in range(image.shape[2])], axis=-1)


def _stretch(channel: Pixels, official: bool) -> Pixels:
    low, high = int(channel.min()), int(channel.max())
    if high <= low:
        return channel
    scale = 255 / (high - low)
    offset = (-low % 256 if official else -low) * scale
    return _table(np.arange(256) * scale + offset)[channel]


def equalize(image: Pixels) -> Pixels:
    """Spread every channel's histogram evenly, as PIL.ImageOps.equalize does."""
    return np.stack([_equalize(image[..., c]) for c in range(image.shape[2])], axis=-1)


def _equalize(channel: Pixels) -> Pixels:
    histogram = np.bincount(channel.ravel(), minlength=256)
    step = (channel.size - histogram[histogram > 0][-1]) // 255
    if step == 0:
        return channel
    below = np.cumsum(histogram) - histogram
    return _table((below + step // 2) // step)[channel]


def brightness(image: Pixels, factor: float) -> Pixels:
    """Multiply by `factor`, cut at 255."""
    return _table(np.arange(256) * factor)[image]


def _table(values: NDArray[Any]) -> Pixels:
    return values.clip(0, 255).astype(np.uint8)


def sharpness(image: Pixels, factor: float, official: bool = False) -> Pixels:
    """Move away (`factor` > 1) from or towards (< 1) a blurred copy; the outermost pixels stay.

    `official`: over- and undershoots wrap around modulo 256 instead of being cut.
    """
    values = image.astype(np.int32)
    rows = values[:-2] + values[1:-1] + values[2:]
    blurred = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * values[1:-1, 1:-1]) * 2 + 13
    blur = (blurred // 26).astype(np.float32)  # the sum / 13, rounded; never a tie, since 13 is odd
    sharp = blur + np.float32(factor) * (values[1:-1, 1:-1].astype(np.float32) - blur)
    result = np.array(image)
    result[1:-1, 1:-1] = sharp.astype(np.int32) & 255 if official else _table(sharp)
    return result


def shear_x(image: Pixels, factor: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Shift each row by `factor` times its distance from the top."""
    return _warp(image, ((1, np.float32(factor), 0), (0, 1, 0)), fill)


def shear_y(image: Pixels, factor: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Shift each column by `factor` times its distance from the left."""
    return _warp(image, ((1, 0, 0), (np.float32(factor), 1, 0)), fill)


def translate_x(image: Pixels, offset: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Shift by `offset` pixels to the left."""
    return _warp(image, ((1, 0, np.float32(-offset)), (0, 1, 0)), fill)


def translate_y(image: Pixels, offset: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Shift by `offset` pixels upwards."""
    return _warp(image, ((1, 0, 0), (0, 1, np.float32(-offset))), fill)


def rotate(image: Pixels, degrees: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Turn counter-clockwise about (W / 2, H / 2)."""
    x, y = image.shape[1] / 2, image.shape[0] / 2
    # Multiplied by pi / 180 as OpenCV does: math.radians can differ in the last bit.
    cos, sin = math.cos(degrees * (math.pi / 180)), math.sin(degrees * (math.pi / 180))
    return _warp(image, ((cos, sin, (1 - cos) * x - sin * y), (-sin, cos, sin * x + (1 - cos) * y)), fill)


def _warp(image: Pixels, matrix: Any, fill: tuple[int, ...]) -> Pixels:
    """OpenCV 4's bilinear warpAffine to the last bit; `matrix` [2, 3] leads from source (x, y) to result (x, y).

    OpenCV follows the inverse in whole 1/1024 pixels, keeps 5 bits of the fraction, and weighs the four neighbours with
    integers. The three channels travel in one 64-bit number, 21 bits each, so that each neighbour is fetched once.
    """
    height, width = image.shape[:2]
    (a, b, c), (d, e, f) = _inverse(np.asarray(matrix, dtype=np.float64))
    x, y = np.arange(width), np.arange(height)[:, None]
    source_x = (_in_1024ths(a * x) + _in_1024ths(b * y + c) + 16) >> 5  # [H, W] in 1/32 pixels
    source_y = (_in_1024ths(d * x) + _in_1024ths(e * y + f) + 16) >> 5
    # The frame of two pixels holds the fill: every place outside reads its neighbours there.
    left = np.clip(source_x >> 5, -2, width) + 2
    top = np.clip(source_y >> 5, -2, height) + 2
    packed, stride = _pack(image, fill), width + 4
    place, right, below = top * stride + left, source_x & 31, source_y & 31
    upper = packed[place] * (32 - right) + packed[place + 1] * right
    lower = packed[place + stride] * (32 - right) + packed[place + stride + 1] * right
    return _unpack(upper * (32 - below) + lower * below)


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of an affine map, in OpenCV's order of operations."""
    (a, b, c), (d, e, f) = matrix
    scale = 1 / (a * e - b * d)
    a, b, d, e = e * scale, -b * scale, -d * scale, a * scale
    return np.array([[a, b, -a * c - b * f], [d, e, -d * c - e * f]])


def _in_1024ths(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values * 1024).astype(np.int64)


def _pack(image: Pixels, fill: tuple[int, ...]) -> NDArray[np.int64]:
    """[H, W, 3] to int64 [(H + 4) * (W + 4)]: a frame of two pixels, channels at bits 0, 21 and 42."""
    height, width = image.shape[:2]
    framed = np.full((height + 4, width + 4), fill[0] | fill[1] << 21 | fill[2] << 42, dtype=np.int64)
    wide = image.astype(np.int64)
    framed[2:-2, 2:-2] = wide[..., 0] | wide[..., 1] << 21 | wide[..., 2] << 42
    return framed.ravel()


def _unpack(sums: NDArray[np.int64]) -> Pixels:
    """Weighted sums of total weight 1024 to rounded uint8 [H, W, 3]."""
    sums = sums + (512 | 512 << 21 | 512 << 42)
    return np.stack([sums >> 10, sums >> 31, sums >> 52], axis=-1).astype(np.uint8)


OPERATIONS: dict[str, Callable[..., Pixels]] = {
    "Identity": identity,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}
NAMES = tuple(OPERATIONS)


class RandAugment:
    """The original's RandomAugment: `operations` draws from ten, each carried out with probability 1/2.

    level: strength, 0..10; the original trains with 7. official: keep its two faults, AutoContrast's white channels
    and Sharpness's speckles; otherwise both do what their names say. Draws come in the original's order, so that
    numpy's RandomState with the original's seed repeats its pictures.
    """

    def __init__(self, operations: int = 2, level: float = 7, official: bool = False) -> None:
        if operations < 0 or not 0 <= level <= MAX_LEVEL:
            raise ValueError(f"operations {operations} must not be negative and level {level} lie in 0..{MAX_LEVEL}")
        self.operations, self.level, self.official = operations, level, official

    def __call__(self, image: Pixels, rng: Random) -> Pixels:
        """uint8 [H, W, 3] to the same."""
        for name in rng.choice(NAMES, self.operations):
            if rng.random() > 0.5:
                continue
            image = self.apply(image, str(name), rng)
        return image

    def apply(self, image: Pixels, name: str, rng: Random) -> Pixels:
        """One operation by its name; `rng` draws the direction of a geometric one."""
        if name in ("AutoContrast", "Sharpness"):
            return OPERATIONS[name](image, *self.arguments(name, rng), official=self.official)
        return OPERATIONS[name](image, *self.arguments(name, rng))

    def arguments(self, name: str, rng: Random) -> tuple[float, ...]:
        """Factor, offset in pixels or angle in degrees that the level means for this operation."""
        share = self.level / MAX_LEVEL
        if name in ("Brightness", "Sharpness"):
            return (share * 1.8 + 0.1,)
        if name in ("ShearX", "ShearY"):
            return (-share * 0.3 if rng.random() > 0.5 else share * 0.3,)
        if name in ("TranslateX", "TranslateY"):
            return (-share * 10 if rng.random() > 0.5 else share * 10,)
        if name == "Rotate":
            return (-share * 30 if rng.random() < 0.5 else share * 30,)
        return ()


class TrainTransform:
    """Crop, flip and augment a picture for training; a pure function of picture and `rng`.

    image_size: (height, width) of the result. scale: range of the crop's share of the picture's area, 0.2..1 to
    pre-train and 0.5..1 to fine-tune; None keeps the whole picture (grounding). flip: mirror every other picture.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        scale: tuple[float, float] | None = (0.2, 1.0),
        flip: bool = True,
        augment: RandAugment | None = None,
    ) -> None:
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale {scale} must be a rising range of shares of the area in 0..1, such as (0.2, 1.0)")
        self.image_size, self.scale, self.flip, self.augment = image_size, scale, flip, augment

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """RGB PIL picture to uint8 [3, height, width]."""
        if self.scale is not None:
            image = image.crop(crop_box(image.width, image.height, self.scale, rng))
        height, width = self.image_size
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment is None:
            return pixels_of(image)
        return torch.from_numpy(self.augment(np.asarray(image), rng).transpose(2, 0, 1).copy())


def crop_box(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random crop in pixels, by torchvision's RandomResizedCrop rule.

    Ten tries at a share of the area within `scale` and a ratio within 3/4..4/3; then the largest centred crop whose
    ratio lies in that range.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
