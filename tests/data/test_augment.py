import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from albef.data import augment
from albef.data.augment import FILL, NAMES, OPERATIONS, RandAugment, TrainTransform, crop_box
from tests.data.conftest import noise


def test_contrast_and_equalize_do_what_pil_does():
    image = noise() // 2 + 40
    for ours, pils in ((augment.auto_contrast, ImageOps.autocontrast), (augment.equalize, ImageOps.equalize)):
        np.testing.assert_array_equal(ours(image), np.asarray(pils(Image.fromarray(image))))


def test_faults_of_the_original_are_reachable_and_off_by_default():
    image = noise() // 2 + 40
    assert (augment.auto_contrast(image, official=True) == 255).all()
    kept, mended = (augment.sharpness(image * 2, 1.36, official) for official in (True, False))
    wrapped = kept != mended
    assert 0 < wrapped.mean() < 0.5
    assert set(np.unique(mended[wrapped])) <= {0, 255}


def test_sharpness_leaves_the_border_and_flat_images_alone():
    image = noise()
    result = augment.sharpness(image, 1.9)
    np.testing.assert_array_equal(result[[0, -1]], image[[0, -1]])
    np.testing.assert_array_equal(result[:, [0, -1]], image[:, [0, -1]])
    flat = np.full((5, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(augment.sharpness(flat, 1.9), flat)


def test_whole_pixel_translation_moves_pixels_and_fills():
    image = noise()
    right, down = augment.translate_x(image, -7), augment.translate_y(image, -3)
    np.testing.assert_array_equal(right[:, 7:], image[:, :-7])
    np.testing.assert_array_equal(down[3:], image[:-3])
    assert (right[:, :7] == FILL).all()
    assert (down[:3] == FILL).all()


def test_quarter_turn_about_the_centre():
    image = noise(20, 20)
    turned = augment.rotate(image, 90)  # about the corner of four pixels, so that one row falls outside
    np.testing.assert_array_equal(turned[1:], np.rot90(image)[:-1])


def test_shear_is_bilinear():
    row = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None], 3, 0)
    image = np.stack([row, row, row], axis=-1)
    np.testing.assert_array_equal(augment.shear_x(image, 0.5)[1, 1:, 0], image[1, 1:, 0] - 5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 50)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_works_and_nothing_is_changed_in_place(name, shape):
    image = noise(*shape[::-1])
    before = image.copy()
    result = RandAugment(level=10).apply(image, name, np.random.default_rng(0))
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)


def test_operations_are_drawn_evenly_and_half_of_them_applied():
    names = []

    class Diary(RandAugment):
        def apply(self, image, name, rng):
            names.append(name)
            return image

    rng = np.random.default_rng(1)
    for _ in range(2000):
        Diary(operations=2)(noise(4, 4), rng)
    counts = np.array([names.count(name) for name in OPERATIONS])
    assert abs(counts.sum() - 2000) < 4 * math.sqrt(1000)
    assert (abs(counts - 200) < 4 * math.sqrt(200)).all()


def test_level_zero_moves_nothing():
    rng = np.random.default_rng(0)
    for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        np.testing.assert_array_equal(RandAugment(level=0).apply(noise(), name, rng), noise())


def test_wrong_level():
    with pytest.raises(ValueError, match=r"level 11 lie in 0..10"):
        RandAugment(level=11)


class TestCrop:
    def test_area_and_ratio_stay_within_their_ranges(self):
        rng = np.random.default_rng(0)
        for left, top, right, bottom in (crop_box(400, 300, (0.2, 0.5), rng) for _ in range(300)):
            width, height = right - left, bottom - top
            assert 0 <= left < right <= 400
            assert 0 <= top < bottom <= 300
            assert 0.19 < width * height / 120_000 < 0.51
            assert 0.74 < width / height < 1.35

    @pytest.mark.parametrize(
        ("size", "box"),
        [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((12, 12), (0, 0, 12, 12))],
    )
    def test_fallback_is_the_largest_centred_crop(self, size, box):
        class Unlucky:
            def uniform(self, low, high):
                return high * 4

        assert crop_box(*size, (0.9, 1.0), Unlucky()) == box


class TestTrainTransform:
    def test_is_a_pure_function_of_image_and_generator(self):
        transform = TrainTransform((32, 24), augment=RandAugment())
        image = Image.fromarray(noise())
        first, same, other = (transform(image, np.random.default_rng([0, seed])) for seed in (1, 1, 2))
        assert first.shape == (3, 32, 24)
        assert first.dtype == torch.uint8
        assert first.equal(same)
        assert not first.equal(other)

    def test_flips_half_of_the_images(self):
        image = Image.fromarray(noise())
        transform = TrainTransform((40, 48), scale=None)
        plain = torch.from_numpy(noise().transpose(2, 0, 1).copy())
        flips = 0
        for seed, got in ((seed, transform(image, np.random.default_rng(seed))) for seed in range(200)):
            flips += got.equal(plain.flip(2))
            assert got.equal(plain.flip(2)) or got.equal(plain), seed
        assert 70 < flips < 130

    def test_whole_image_without_flip_is_plain_resizing(self):
        image = Image.fromarray(noise())
        got = TrainTransform((20, 30), scale=None, flip=False)(image, np.random.default_rng(0))
        expected = np.asarray(image.resize((30, 20), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(got.numpy().transpose(1, 2, 0).astype(int), expected.astype(int), atol=2)

    @pytest.mark.parametrize("scale", [(0, 1), (0.5, 0.2), (0.2, 2)])
    def test_wrong_scale(self, scale):
        with pytest.raises(ValueError, match="must be a rising range of shares of the area"):
            TrainTransform((8, 8), scale=scale)

    def test_images_of_one_pixel_and_extreme_ratios(self):
        for width, height in itertools.product((1, 2, 300), repeat=2):
            image = Image.new("RGB", (width, height), "red")
            assert TrainTransform((8, 8))(image, np.random.default_rng(3)).shape == (3, 8, 8)
