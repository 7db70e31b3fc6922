"""Crops decoded no larger than they need to be: nearly the pixels of the whole image, from any kind of file."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from albef.data import augment, images
from albef.data.augment import FILL, RandAugment, TrainTransform
from albef.data.broken import BrokenImage
from albef.data.images import open_crop, open_image, reduction_of, resized_for_training
from albef.data.loader import StepBatches, make_loader
from tests.data.conftest import noise

BOX = (40, 24, 552, 456)  # 512 x 432, its edges on whole pixels at 1/2, 1/4 and 1/8


def scenery(width=640, height=480) -> Image.Image:
    """Soft and hard edges in colour."""
    y, x = np.mgrid[:height, :width]
    waves = [
        128 + 60 * np.sin(x / a) * np.cos(y / b) + 40 * (x // c % 2)
        for a, b, c in ((9, 17, 31), (23, 7, 50), (5, 40, 22))
    ]
    return Image.fromarray(np.stack(waves, axis=-1).clip(0, 255).astype(np.uint8))


def file_of(image: Image.Image, kind="JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind in ("JPEG", "MPO") else {}), **options)
    return file.getvalue()


def crop(data: bytes, size: tuple[int, int], box=BOX) -> np.ndarray:
    return open_crop(data, lambda width, height: box, size)


def whole(data: bytes, box=BOX) -> np.ndarray:
    return np.array(open_image(data).crop(box))


def apart(first: np.ndarray, second: np.ndarray, size=(96, 96)) -> float:
    """Mean absolute difference once both are resized."""
    return (resized_for_training(first, size).float() - resized_for_training(second, size).float()).abs().mean().item()


@pytest.mark.parametrize(("size", "found"), [(217, (512, 432)), (216, (256, 216)), (108, (128, 108)), (54, (64, 54))])
def test_never_smaller_than_needed_and_no_larger_than_twice_that(size, found):
    assert crop(file_of(scenery()), (size, size)).shape == (found[1], found[0], 3)


def test_reduction_is_the_largest_that_leaves_enough():
    for width, height, *size in np.random.default_rng(0).integers(1, 3000, (500, 4)).tolist():
        fits = [n for n in (1, 2, 4, 8) if width / n >= size[1] and height / n >= size[0]]
        assert reduction_of(width, height, tuple(size)) == max(fits, default=1)


@pytest.mark.parametrize("size", [(216, 216), (108, 108), (54, 54)])
def test_nearly_the_pixels_of_the_whole_image(size):
    data = file_of(scenery())
    assert apart(crop(data, size), whole(data), size) < 2
    aside = whole(data, (BOX[0] + 8, *BOX[1:]))  # what a misplaced crop would measure
    assert apart(crop(data, size), aside, size) > 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_of_the_upright_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, sizes = file_of(scenery(), exif=exif), []

    def edges_of(width, height):
        sizes.append((width, height))
        return 32, 64, 432, 464

    found = open_crop(data, edges_of, (100, 100))
    assert sizes == [open_image(data).size]
    assert found.shape == (100, 100, 3)
    assert apart(found, whole(data, (32, 64, 432, 464))) < 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "I;16"])
def test_other_files_are_cropped_whole(mode):
    image = Image.fromarray(np.asarray(scenery().convert("L")).astype(np.uint16) * 200) if mode == "I;16" else None
    data = file_of(image or scenery().convert(mode), "PNG")
    np.testing.assert_array_equal(crop(data, (54, 54)), whole(data))


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "MPO")])
def test_every_jpeg_is_reduced_as_pillow_does(mode, kind, monkeypatch):
    """By the quick decoder, unless its colours are others."""
    frames = {"save_all": True, "append_images": [Image.new("RGB", (640, 480))]} if kind == "MPO" else {}
    data, quick, decode = file_of(scenery().convert(mode), kind, **frames), [], simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *of, **least: quick.append(of) or decode(*of, **least))
    found, image = crop(data, (108, 108)), Image.open(io.BytesIO(data))
    assert (image.format, len(quick)) == (kind, int(mode != "CMYK"))
    image.draft(None, (image.width // 4, image.height // 4))
    np.testing.assert_array_equal(found, np.array(image.convert("RGB").crop([edge // 4 for edge in BOX])))
    assert found.shape == (108, 128, 3)
    assert apart(found, whole(data)) < 2


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_decoded_as_pillow_decodes(reduction, options):
    """To the last bit, odd sides too."""
    for width, height in ((640, 480), (333, 257), (101, 40), (17, 9)):
        image = Image.open(io.BytesIO(file_of(scenery(width, height), **options)))
        found = images._jpeg(image, reduction)
        image.draft(None, (width // reduction, height // reduction))
        np.testing.assert_array_equal(found, np.asarray(image))


def test_what_its_decoder_refuses_pillow_reads():
    """Bytes between two markers: the strict decoder gives up, Pillow goes on."""
    data = file_of(scenery())
    start = data.index(b"\xff\xda")
    odd = data[:start] + b"\x00\x01\x02" + data[start:]
    with pytest.raises(ValueError, match=r"(?s).+"):
        simplejpeg.decode_jpeg(odd)
    np.testing.assert_array_equal(crop(odd, (400, 400)), whole(data))


def test_a_truncated_file_is_broken_at_every_scale():
    data = file_of(scenery())
    for size in ((400, 400), (54, 54)):
        with pytest.raises(BrokenImage, match="truncated"):
            crop(data[: len(data) // 2], size)


def test_crops_of_one_pixel_and_of_tiny_images():
    for width, height in ((1, 1), (1, 300), (300, 1), (17, 9)):
        data = file_of(Image.new("RGB", (width, height), "red"))
        found = TrainTransform((8, 8)).read(data, np.random.default_rng(0))
        assert found.shape == (3, 8, 8)
        assert found[0].min() > 230


def test_resizing_is_close_to_pillows():
    """Measured: 0.33 in the mean and 9 at most of 255, on noise and photos; bilinear differs by 6 to 11 in the mean."""
    for image in (Image.fromarray(noise(90, 70)), scenery()):
        for size in ((96, 96), (31, 200), (224, 64)):
            ours = resized_for_training(np.array(image), size).numpy().astype(int)
            pillows = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
            assert abs(ours - pillows).mean() < 0.5 and abs(ours - pillows).max() <= 12


def test_a_file_and_its_image_give_the_same_sample():
    transform, image = TrainTransform((96, 80), augment=RandAugment()), scenery()
    for kind in ("PNG", "JPEG"):
        data = file_of(image, kind)
        for seed in range(10):
            found, again = (transform.read(data, np.random.default_rng([2, seed])) for _ in range(2))
            expected = transform(open_image(data), np.random.default_rng([2, seed]))
            assert found.equal(again)
            assert (found.float() - expected.float()).abs().mean() < (0.001 if kind == "PNG" else 8)


def warped(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """OpenCV's bilinear warpAffine, written down for one pixel after the other; `matrix` leads to the source."""
    height, width = image.shape[:2]
    framed = np.full((height + 2, width + 2, 3), FILL, dtype=np.int64)
    framed[1:-1, 1:-1] = image
    result = np.empty_like(image)
    for y, x in np.ndindex(height, width):
        places = [(round(a * x * 1024) + round((b * y + c) * 1024) + 16) >> 5 for a, b, c in matrix]
        (left, across), (top, down) = (divmod(place, 32) for place in places)
        total = np.zeros(3, dtype=np.int64)
        for j, i, weight in (
            (0, 0, (32 - across) * (32 - down)),
            (0, 1, across * (32 - down)),
            (1, 0, (32 - across) * down),
            (1, 1, across * down),
        ):
            row, column = min(max(top + j + 1, 0), height + 1), min(max(left + i + 1, 0), width + 1)
            total += weight * framed[row, column]
        result[y, x] = (total + 512) >> 10
    return result


@pytest.mark.parametrize(("width", "height"), [(23, 14), (31, 32), (5, 40)])
def test_warps_are_opencvs_integers_bit_by_bit(width, height):
    image, rng = noise(width, height), np.random.default_rng(width)
    for amount in rng.uniform(-1, 1, 4):
        shear, shift = float(np.float32(amount)), float(np.float32(40 * amount))
        expected = {
            "shear_x": (amount, [[1, -shear, 0], [0, 1, 0]]),
            "shear_y": (amount, [[1, 0, 0], [-shear, 1, 0]]),
            "translate_x": (40 * amount, [[1, 0, shift], [0, 1, 0]]),
            "translate_y": (40 * amount, [[1, 0, 0], [0, 1, shift]]),
            "rotate": (90 * amount, augment._inverse(turn(90 * amount, width, height))),
        }
        for name, (argument, matrix) in expected.items():
            got = getattr(augment, name)(image, argument)
            np.testing.assert_array_equal(got, warped(image, np.array(matrix)), err_msg=f"{name} {argument}")


def turn(degrees: float, width: int, height: int) -> np.ndarray:
    cos, sin, x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), width / 2, height / 2
    return np.array([[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]])


def test_turning_reads_no_memory_that_was_never_written(monkeypatch):
    image, empty = noise(25, 27), augment.torch.empty
    expected = augment.rotate(image, -60)
    monkeypatch.setattr(augment.torch, "empty", lambda *size: empty(*size).fill_(float("nan")))
    np.testing.assert_array_equal(augment.rotate(image, -60), expected)


class Marks:
    """Leaves a file for each sample that was made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, pair):
        (self.folder / str(pair[1])).touch()
        return pair[1]


def test_workers_are_ahead_of_the_step(tmp_path):
    batches = iter(make_loader(Marks(tmp_path), StepBatches(64, 4, 16), list, workers=1))
    next(batches)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 12 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list(tmp_path.iterdir())) >= 12  # the batch that was taken, and two more
