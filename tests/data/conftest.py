"""Small images, shards and a tokenizer that the tests of the data layer share."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from albef.data.processor import Processor
from albef.data.text import SPECIALS, build_tokenizer

WORDS = ("a", "red", "green", "blue", "dog", "cat", "runs", "person", "##s")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def image(colour=(255, 0, 0), size=(12, 8), kind="PNG", **options) -> bytes:
    """An encoded image of one colour; size is (width, height)."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind, **options)
    return file.getvalue()


def noise(width=48, height=40, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def write_tar(path: Path, members: dict[str, bytes], mode="w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def processor() -> Processor:
    pieces = dict.fromkeys([*SPECIALS, *WORDS, *LETTERS, *("##" + letter for letter in LETTERS)])
    return Processor(build_tokenizer(list(pieces)), (16, 24))


@pytest.fixture
def colours(tmp_path) -> Path:
    """A JSON list of twelve images, each of its own grey, with two captions each."""
    for number in range(12):
        (tmp_path / f"{number:02d}.png").write_bytes(image((number * 20,) * 3))
    records = [{"image": f"{n:02d}.png", "caption": [f"A dog {n}.", f"a cat {n}"]} for n in range(12)]
    return write_json(tmp_path / "list.json", records)
