"""The two-heads baseline of photos: what its loss counts as right, that it learns, and that files become features."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from albef.models.albef import AlbefModel
from albef.models.names import to_official
from benchmarks import two_heads
from tests.test_trunk import published
from tests.worlds import TINY


def features(count, captions=2, views=2):
    """Images and their captions are noisy linear maps of the same numbers."""
    torch.manual_seed(0)
    hidden = torch.randn(count, 8)
    to_image, to_text = torch.randn(8, 40), torch.randn(8, 24)
    images = (hidden @ to_image)[:, None] + 0.1 * torch.randn(count, views, 40)
    image_of_text = torch.arange(count).repeat_interleave(captions)
    texts = (hidden @ to_text)[image_of_text] + 0.1 * torch.randn(count * captions, 24)
    return two_heads.Features(images.half(), texts, image_of_text)


def test_all_captions_of_an_image_are_equally_right():
    data = features(6)
    heads = two_heads.TwoHeads(data.images[:, 0], data.texts).eval()
    similarities = heads.image(data.images[:, 0]) @ heads.text(data.texts).T / two_heads.TEMP
    to_text = torch.stack([-similarities.log_softmax(1)[i, 2 * i : 2 * i + 2].mean() for i in range(6)]).mean()
    to_image = F.cross_entropy(similarities.T, data.image_of_text)
    assert heads(data.images[:, 0], data.texts, data.image_of_text).item() == pytest.approx(
        ((to_text + to_image) / 2).item(), rel=1e-5
    )


def test_batches_hold_each_image_once_with_its_own_texts(monkeypatch):
    monkeypatch.setattr(two_heads, "BATCH", 4)
    data = features(10)
    seen = []
    for images, texts, image_of_text in data.batches():
        assert len(texts) == 2 * len(images) and image_of_text.tolist() == sorted(2 * list(range(len(images))))
        for image, own in zip(images, texts.split(2), strict=True):
            (row,) = (data.images == image).all(2).any(1).nonzero().flatten().tolist()
            assert data.texts[2 * row : 2 * row + 2].equal(own)
            seen.append(row)
    assert sorted(seen) == list(range(10))


def test_it_learns_and_keeps_its_best_epoch(monkeypatch, capsys):
    monkeypatch.setattr(two_heads, "BATCH", 50)
    monkeypatch.setattr(two_heads, "WARM_UP", 5)
    data = features(200)
    rows = two_heads.learn(data, data, 6, seed=0)
    assert [(row["weights"], row["chosen"]) for row in rows] == [
        (weights, chosen) for weights in ("last", "average") for chosen in ("best", "last")
    ]
    assert rows[0]["img_r1"] > 30 and rows[0]["r_mean"] >= rows[1]["r_mean"]
    assert "seed 0, epoch 6: loss" in capsys.readouterr().out


def test_from_files_to_figures(tmp_path, monkeypatch, capsys):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "dark"]
    small = AlbefModel(replace(TINY, text_width=64, text_heads=1, vocab_size=len(words)))
    names = to_official(small.state_dict(), small.config)
    text = {n.removeprefix("text_encoder."): tensor for n, tensor in names.items() if n.startswith("text_encoder.")}
    torch.save({n: tensor for n, tensor in text.items() if "crossattention" not in n}, tmp_path / "bert.bin")
    torch.save(published("efficientnet-lite0"), tmp_path / "trunk.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    records = [{"image": f"{number}.png", "caption": ["red", "dark"]} for number in range(4)]
    (tmp_path / "list.json").write_text(json.dumps(records))
    given = {"trunk": "trunk.pth", "bert": "bert.bin", "train": "list.json", "validation": "list.json", "features": "f"}
    paths = [word for name, path in given.items() for word in (f"--{name}", str(tmp_path / path))]
    rest = ["--text-layers", "2", "--image-size", "64", "--epochs", "1", "--views", "2", "--seed", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["two_heads", *paths, *rest])
    two_heads.main()
    assert "means of seeds [0, 1]" in capsys.readouterr().out
    made = sorted(path.stat().st_mtime_ns for path in (tmp_path / "f").rglob("*.npy"))
    two_heads.main()
    assert made == sorted(path.stat().st_mtime_ns for path in (tmp_path / "f").rglob("*.npy")), "made once"
