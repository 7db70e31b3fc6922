"""Augmentation of whole batches."""

import pytest
import torch

from albef.data.augment_batch import BatchAugment


@pytest.fixture
def images():
    torch.manual_seed(0)
    coarse = torch.rand(16, 3, 6, 6)
    return (torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear") * 255).to(torch.uint8)


def test_nothing_asked_changes_nothing(images):
    views = BatchAugment((24, 24), zoom=(1.0, 1.0), shift=0.0, angle=0.0, colour=0.0)(images)
    assert views.dtype == torch.uint8
    assert (views.int() - images.int()).abs().max() <= 1


@pytest.mark.parametrize(
    "options",
    [{"zoom": (0.5, 0.6)}, {"shift": 0.2}, {"angle": 30.0}, {"colour": 0.5}],
    ids=lambda options: next(iter(options)),
)
def test_each_kind_varies_every_image_differently(images, options):
    still = {"zoom": (1.0, 1.0), "shift": 0.0, "angle": 0.0, "colour": 0.0}
    same = images[:1].expand(16, -1, -1, -1)
    views = BatchAugment((24, 24), **{**still, **options})(same).float()
    assert (views - same.float()).abs().mean((1, 2, 3)).min() > 0.1
    assert (views[0] - views[1]).abs().mean() > 0.1


def test_zoom_magnifies():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 8:24, 8:24] = 200
    views = BatchAugment((32, 32), zoom=(0.5, 0.5), shift=0.0, angle=0.0, colour=0.0)(image)
    assert (views > 100).all()  # the middle half fills the view


def test_the_seed_decides(images):
    augment = BatchAugment((16, 20))
    torch.manual_seed(3)
    first = augment(images)
    torch.manual_seed(3)
    assert first.shape == (16, 3, 16, 20) and torch.equal(first, augment(images))
