"""Augmentation and resizing against arrays recorded from the official transform: exact where both are integers."""

import numpy as np
import pytest
import torch
from PIL import Image

from albef.data.augment import FILL, MAX_LEVEL, NAMES, OPERATIONS, RandAugment
from albef.data.processor import Processor
from albef.data.text import build_tokenizer
from tests.parity import golden


class Draw:
    """Stands in for numpy where one sign draw was recorded."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


class Diary(RandAugment):
    """Writes down which operations were applied, with their arguments."""

    def apply(self, image, name, rng):
        self.seen.append([name, []])
        return super().apply(image, name, rng)

    def arguments(self, name, rng):
        found = super().arguments(name, rng)
        geometric = name.startswith(("Shear", "Translate", "Rotate"))
        self.seen[-1][1] = [*found, list(FILL)] if geometric else list(found)
        return found


@pytest.fixture(scope="module")
def record():
    return golden.json_of("randaugment")


@pytest.fixture(scope="module")
def arrays():
    return {name: tensor.numpy() for name, tensor in golden.tensors_of("randaugment").items()}


def training_operations(record):
    return {name: op for name, op in record["ops"].items() if name.split(".")[0] in record["augs"]}


def test_operations_of_the_training_transform(record):
    assert list(NAMES) == record["augs"]
    assert list(FILL) == record["fill"]
    assert record["max_level"] == MAX_LEVEL
    assert record["prob"] == 0.5


def test_each_operation_with_the_recorded_arguments(record, arrays):
    for name, recorded in training_operations(record).items():
        operation = name.split(".")[0]
        faults = {"official": True} if operation in ("AutoContrast", "Sharpness") else {}
        got = OPERATIONS[operation](arrays["image"], *recorded["args"], **faults)
        np.testing.assert_array_equal(got, arrays[name], err_msg=name)


def test_each_operation_with_the_recorded_draw(record, arrays):
    augment = RandAugment(record["N"], record["M"], official=True)
    for name, recorded in training_operations(record).items():
        got = augment.apply(arrays["image"], name.split(".")[0], Draw(recorded["sign_draw"]))
        np.testing.assert_array_equal(got, arrays[name], err_msg=name)


@pytest.mark.parametrize("special", ["flat", "fullrange"])
def test_special_images(record, arrays, special):
    augment = RandAugment(record["N"], record["M"], official=True)
    names = [name.split(".")[0] for name in arrays if name.endswith(f".{special}")]
    for name in set(names) & set(record["augs"]):
        got = augment.apply(arrays[f"image_{special}"], name, Draw(0.75))
        np.testing.assert_array_equal(got, arrays[f"{name}.{special}"], err_msg=name)


def test_mended_contrast_equals_the_original_where_that_works(arrays):
    got = RandAugment().apply(arrays["image_fullrange"], "AutoContrast", Draw(0.75))
    np.testing.assert_array_equal(got, arrays["AutoContrast.fullrange"])


def test_pipeline_repeats_the_original_draws(record, arrays):
    augment, rng = Diary(record["N"], record["M"], official=True), np.random.RandomState(record["np_seed"])
    for index, applied in enumerate(record["pipeline_applied"]):
        augment.seen = []
        np.testing.assert_array_equal(augment(arrays["image"], rng), arrays[f"pipeline.{index}"], err_msg=str(index))
        assert augment.seen == applied


def test_evaluation_transform():
    record, tensors = golden.json_of("transform"), golden.tensors_of("transform")
    processor = Processor(
        build_tokenizer(golden.vocabulary()), tuple(record["resize"]), tuple(record["mean"]), tuple(record["std"])
    )
    got = processor.images([Image.fromarray(tensors["image"].numpy())])[0]
    torch.testing.assert_close(got, tensors["out"], atol=1e-6, rtol=1e-6)
