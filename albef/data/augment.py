"""The original's image augmentation without OpenCV: RandomAugment, and crop and flip before it (spec 2.9).

Images are uint8 arrays [H, W, 3] of RGB values 0..255. Every operation returns a new array of the same size.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from albef.data.images import Edges, ImageSource, Pixels, open_crop, resized_for_training

FILL = (128, 128, 128)  # what geometric operations show beyond the image's edge
UNCHANGED = np.arange(256, dtype=np.uint8)  # the table that leaves a channel alone
MAX_LEVEL = 10
RATIO = (3 / 4, 4 / 3)  # width / height of a crop


class Random(Protocol):
    """The draws RandAugment makes; numpy's RandomState and Generator both have them."""

    def choice(self, a: Any, size: Any) -> Any: ...

    def random(self) -> Any: ...


def identity(image: Pixels) -> Pixels:
    return np.array(image)


def auto_contrast(image: Pixels, official: bool = False) -> Pixels:
    """Stretches every channel to 0..255.

    `official` keeps the original's overflow of uint8, which makes channels without a 0 white (#134).
    """
    opened = Image.fromarray(image)
    return _look_up(opened, [_stretch(counts, official) for counts in _histograms(opened)])


def _stretch(counts: NDArray[np.int64], official: bool) -> Pixels:
    low, high = np.flatnonzero(counts)[[0, -1]].tolist()
    if high <= low:
        return UNCHANGED
    scale = 255 / (high - low)
    offset = (-low % 256 if official else -low) * scale
    return _cut(np.arange(256) * scale + offset)


def equalize(image: Pixels) -> Pixels:
    """Spreads every channel's histogram evenly, as PIL.ImageOps.equalize does."""
    opened = Image.fromarray(image)
    return _look_up(opened, [_equalize(counts) for counts in _histograms(opened)])


def _equalize(counts: NDArray[np.int64]) -> Pixels:
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    if step == 0:
        return UNCHANGED
    below = np.cumsum(counts) - counts
    return _cut((below + step // 2) // step)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Multiplies all values by `factor` and cuts them at 255."""
    return _look_up(Image.fromarray(image), [_cut(np.arange(256) * factor)] * 3)


def _histograms(image: Image.Image) -> NDArray[np.int64]:
    """Counts how often each value occurs in each channel: [3, 256]."""
    return np.reshape(image.histogram(), (3, 256))


def _look_up(image: Image.Image, tables: list[Pixels]) -> Pixels:
    """Replaces the values of every channel by those of its table [256]."""
    return np.array(image.point(np.concatenate(tables).tolist()))


def _cut(values: NDArray[Any]) -> Pixels:
    return values.clip(0, 255).astype(np.uint8)


def sharpness(image: Pixels, factor: float, official: bool = False) -> Pixels:
    """Moves the image away from a blurred copy (`factor` > 1) or towards it (< 1); the outermost pixels stay.

    With `official`, values beyond 0..255 wrap around modulo 256, as in the original; otherwise they are cut.
    """
    values = image.astype(np.uint16)
    rows = values[:-2] + values[1:-1] + values[2:]
    blurred = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * values[1:-1, 1:-1]) * 2 + 13
    blur = (blurred // 26).astype(np.float32)  # the sum / 13, rounded; never a tie, since 13 is odd
    sharp = blur + np.float32(factor) * (values[1:-1, 1:-1].astype(np.float32) - blur)
    result = np.array(image)
    result[1:-1, 1:-1] = sharp.astype(np.int32) & 255 if official else _cut(sharp)
    return result


def shear_x(image: Pixels, factor: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Shifts each row by `factor` times its distance from the top."""
    return _shift_rows(image, -float(np.float32(factor)) * np.arange(image.shape[0]), fill)


def shear_y(image: Pixels, factor: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Shifts each column by `factor` times its distance from the left."""
    return shear_x(_transposed(image), factor, fill).transpose(1, 0, 2)


def translate_x(image: Pixels, offset: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Shifts the image by `offset` pixels to the left."""
    return _shift_rows(image, np.full(image.shape[0], float(np.float32(offset))), fill)


def translate_y(image: Pixels, offset: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Shifts the image by `offset` pixels upwards."""
    return translate_x(_transposed(image), offset, fill).transpose(1, 0, 2)


def _transposed(image: Pixels) -> Pixels:
    return np.array(Image.fromarray(image).transpose(Image.Transpose.TRANSPOSE))  # three times as quick as NumPy's copy


def rotate(image: Pixels, degrees: float, fill: tuple[int, ...] = FILL) -> Pixels:
    """Turns the image counter-clockwise about (W / 2, H / 2)."""
    x, y = image.shape[1] / 2, image.shape[0] / 2
    # Multiplied by pi / 180 as OpenCV does: math.radians can differ in the last bit.
    cos, sin = math.cos(degrees * (math.pi / 180)), math.sin(degrees * (math.pi / 180))
    return _warp(image, ((cos, sin, (1 - cos) * x - sin * y), (-sin, cos, sin * x + (1 - cos) * y)), fill)


# What follows equals the bilinear warpAffine of OpenCV 4 to the last bit. That one follows the inverse map in whole
# 1/1024 pixels, keeps 5 bits of the fraction, and weighs the four neighbours by integers whose sum is 1024.


def _shift_rows(image: Pixels, shifts: NDArray[Any], fill: tuple[int, ...]) -> Pixels:
    """Lets each row show what lies `shifts` [H] pixels to its right."""
    height, width = image.shape[:2]
    places = _in_32nds(_in_1024ths(shifts))
    whole, part = np.clip(places >> 5, -width - 1, width), (places & 31).astype(np.uint16)[:, None]
    left, right = max(0, -int(whole.min())), max(0, int(whole.max()) + 1)
    framed = np.empty((height, left + width + right, 3), dtype=np.uint8)
    framed[:, :left], framed[:, left : left + width], framed[:, left + width :] = fill, image, fill
    firsts = 3 * (np.arange(height) * framed.shape[1] + left + whole)
    rows = np.lib.stride_tricks.sliding_window_view(framed.ravel(), 3 * (width + 1))[firsts]
    if not part.any():
        return rows[:, :-3].reshape(image.shape)
    rows = rows.astype(np.uint16)
    mixed = rows[:, :-3] * (32 - part) + rows[:, 3:] * part  # [H, 3 W]
    return ((mixed + 16) >> 5).astype(np.uint8).reshape(image.shape)


def _warp(image: Pixels, matrix: Any, fill: tuple[int, ...]) -> Pixels:
    """Moves the image by `matrix` [2, 3], which leads from a source (x, y) to a result (x, y).

    grid_sample does the work of OpenCV's integers in float32 without any rounding: the values are less than
    2**18 / 1024, and on a canvas whose side is a power of two every place is a short binary fraction. Outside of the
    canvas it reads zeros. The fill is therefore taken away from the image first and added again at the end.
    """
    height, width = image.shape[:2]
    side = 2 ** (max(height, width) - 1).bit_length()
    offset = torch.tensor(fill, dtype=torch.float32).view(3, 1, 1)
    canvas = torch.empty(3, side, side)
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))  # what PyTorch takes without complaint
    torch.sub(pixels.permute(2, 0, 1), offset, out=canvas[:, :height, :width])
    # Places go up to the first of these rows and columns. The second is read with weight 0, and must not be NaN. Where
    # the canvas has no room for them, zeros are read anyway.
    canvas[:, height : height + 2, : width + 2] = canvas[:, :height, width : width + 2] = 0
    grid = _places(height, width, matrix).div_(16 * side).add_(1 / side - 1)
    views = F.grid_sample(canvas[None], grid.permute(1, 2, 0)[None], "bilinear", "zeros", align_corners=False)[0]
    return (views + (offset + 0.5)).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _places(height: int, width: int, matrix: Any) -> torch.Tensor:
    """Gives where the source of each pixel lies: x and y [2, H, W] in 1/32 pixels, and -32 or the size if outside."""
    a, b, c = _inverse(np.asarray(matrix)).T[..., None]  # [2, 1] each
    across, down = _in_1024ths(a * np.arange(width)), _in_1024ths(b * np.arange(height) + c)
    places = torch.from_numpy(across)[:, None, :] + torch.from_numpy(down)[:, :, None]
    sizes = torch.tensor([width, height], dtype=torch.int32).view(2, 1, 1)
    return _in_32nds(places).clamp_(min=-32).minimum(32 * sizes).float()


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gives the inverse of an affine map, in OpenCV's order of operations."""
    (a, b, c), (d, e, f) = matrix
    scale = 1 / (a * e - b * d)
    a, b, d, e = e * scale, -b * scale, -d * scale, a * scale
    return np.array([[a, b, -a * c - b * f], [d, e, -d * c - e * f]])


def _in_1024ths(values: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.rint(values * 1024).astype(np.int32)


def _in_32nds(places: Any) -> Any:
    """Turns 1/1024 pixels into 1/32 pixels, rounded."""
    return (places + 16) >> 5


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
    """The original's RandomAugment: it draws `operations` of ten, and carries each out with probability 1/2.

    `level` is the strength, 0..10; the original trains with 7. `official` keeps the original's two faults, the white
    channels of AutoContrast and the speckles of Sharpness. The draws come in the original's order, so that numpy's
    RandomState with the original's seed repeats its images.
    """

    def __init__(self, operations: int = 2, level: float = 7, official: bool = False) -> None:
        if operations < 0 or not 0 <= level <= MAX_LEVEL:
            raise ValueError(f"operations {operations} must not be negative and level {level} lie in 0..{MAX_LEVEL}")
        self.operations, self.level, self.official = operations, level, official

    def __call__(self, image: Pixels, rng: Random) -> Pixels:
        """Augments an image, uint8 [H, W, 3]; the result has the same shape."""
        for name in rng.choice(NAMES, self.operations):
            if rng.random() > 0.5:
                continue
            image = self.apply(image, str(name), rng)
        return image

    def apply(self, image: Pixels, name: str, rng: Random) -> Pixels:
        """Carries out one operation by its name; `rng` draws the direction of a geometric one."""
        if name in ("AutoContrast", "Sharpness"):
            return OPERATIONS[name](image, *self.arguments(name, rng), official=self.official)
        return OPERATIONS[name](image, *self.arguments(name, rng))

    def arguments(self, name: str, rng: Random) -> tuple[float, ...]:
        """Gives what the level means for this operation: a factor, an offset in pixels, or an angle in degrees."""
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
    """Crops, flips and augments an image for training; a pure function of the image and `rng`.

    `image_size` is the (height, width) of the result. `scale` is the range of the crop's share of the image's area:
    0.2..1 to pre-train and 0.5..1 to fine-tune; None keeps the whole image (grounding). With `flip` about every other
    image is mirrored.
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
        """Turns an RGB PIL image into uint8 [3, height, width]."""
        return self._finished(np.array(image.crop(self._edges(image.width, image.height, rng))), rng)

    def read(self, source: ImageSource, rng: np.random.Generator, name: str | None = None) -> torch.Tensor:
        """Does the same from an image's file, of which no more is decoded than the crop needs; see `open_crop`."""
        crop = open_crop(source, lambda width, height: self._edges(width, height, rng), self.image_size, name)
        return self._finished(crop, rng)

    def _edges(self, width: int, height: int, rng: np.random.Generator) -> Edges:
        return (0, 0, width, height) if self.scale is None else crop_box(width, height, self.scale, rng)

    def _finished(self, crop: Pixels, rng: np.random.Generator) -> torch.Tensor:
        pixels = resized_for_training(crop, self.image_size)  # [height, width, 3]
        if self.flip and rng.random() < 0.5:
            pixels = pixels.flip(1)
        found = pixels.numpy() if self.augment is None else self.augment(pixels.numpy(), rng)
        return torch.from_numpy(found.transpose(2, 0, 1).copy())


def crop_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Edges:
    """Draws a random crop by the rule of torchvision's RandomResizedCrop: left, top, right, bottom in pixels.

    Ten times it draws a share of the area within `scale` and a ratio within 3/4..4/3. If none of them fits, it takes
    the largest centred crop whose ratio lies in that range.
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
