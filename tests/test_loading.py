"""Opening a saved model: nothing is drawn, nothing is waited for, and names lead where they say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from albef.models.names import ARCHITECTURES
from tests.worlds import TINY

COLD = """
import time; start = time.perf_counter()
import torch; imported = time.perf_counter()
import albef, PIL.Image
albef.load("world", device="cpu").match(PIL.Image.new("RGB", (36, 36)), "small green circle")
print((time.perf_counter() - start) / (imported - start))
"""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loading_draws_no_random_numbers(tmp_path, name: str) -> None:
    """Whoever seeds first and loads then gets the same numbers; the weights are those that were saved."""
    saved = ARCHITECTURES[name](TINY)
    saved.save_pretrained(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded = ARCHITECTURES[name].from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_cold_start_is_little_more_than_the_import_of_torch() -> None:
    """It was 2.5 times that: weights were made to be overwritten, and PyTorch's meta device asked for their names."""

    def ratio() -> float:
        return float(subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, check=True).stdout)

    assert min(ratio() for _ in range(3)) < 1.8
