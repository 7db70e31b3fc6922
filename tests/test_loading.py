"""Opening a saved model: nothing is drawn, nothing is waited for, and names lead where they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import albef
from albef.files import model_folder
from albef.models import folders
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


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[dict]:
    """What the hub is asked for; it answers with the model `world`, or none if the name has "absent" in it."""
    questions: list[dict] = []

    def download(repository: str, **options) -> str:
        questions.append({"repository": repository, **options})
        if "absent" in repository:
            raise OSError("404 Client Error\nRepository Not Found")
        return str(model_folder("world", ("config.json",)))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return questions


def test_a_model_on_the_hub_is_fetched_once(asked) -> None:
    pipeline = albef.load("hf://someone/some-model", revision="v2", device="cpu")
    (question,) = asked
    assert question["repository"] == "someone/some-model" and question["revision"] == "v2"
    assert question["ignore_patterns"] == ["training.safetensors"], "the teacher is as large as the model"
    assert pipeline.name == "hf://someone/some-model"


def test_the_teacher_is_fetched_for_training(asked) -> None:
    folders.load_training("hf://someone/some-model")
    assert asked[0]["ignore_patterns"] == []


@pytest.mark.parametrize("name", ["runs/vqa", "best/model", "C:/model", "someone/some-model"])
def test_a_mistyped_path_never_reaches_the_network(asked, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no saved model here.*hf://owner/name"):
        albef.load(name)
    assert not asked


def test_a_repository_that_is_not_there(asked) -> None:
    with pytest.raises(FileNotFoundError, match=r"^hf://someone/absent: could not be .*\(404 Client Error\); check"):
        albef.load("hf://someone/absent")


def test_a_revision_is_for_the_hub() -> None:
    with pytest.raises(ValueError, match="revision 'v2' is for a repository on the hub"):
        albef.load("world", revision="v2")
    assert isinstance(albef.load(Path(model_folder("world", ())), device="cpu"), albef.Pipeline)
