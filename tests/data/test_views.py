"""Views kept on the disk: what is made, what goes on after a crash, what is told apart, and training from them."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from albef.data import views as module
from albef.data.augment import RandAugment, TrainTransform
from albef.data.processor import Processor
from albef.data.sources import open_sources
from albef.data.text import load_tokenizer
from albef.data.views import Views, ViewSet
from albef.engine.train import train
from albef.errors import AlbefRuntimeError, AlbefValueError
from albef.tasks import make_task
from tests.worlds import TINY, make_world, tiny_recipe

SHAPE = (8, 2, 2)


class Encoder:
    """Frozen parts that count what they see, and may fail."""

    def __init__(self, most=10**6):
        self.seen, self.most = 0, most

    def __call__(self, pixels):
        if self.seen == self.most:
            raise KeyboardInterrupt
        self.seen += 1
        assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, 32, 32)
        return F.adaptive_avg_pool2d(pixels / 255, 2).repeat(1, 3, 1, 1)[:, :8]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def views(world, tmp_path):
    return make_views(world, tmp_path / "cache")


def make_views(world, folder, count=3, scale=(0.5, 1.0), weights="w", size=32):
    processor = Processor(load_tokenizer("bert"), (size, size))
    transform = TrainTransform(processor.image_size, scale, True, RandAugment())
    return Views(open_sources([str(world)]), processor, transform, count, SHAPE, weights, folder)


def made(views, encoder=None):
    views.begin()
    views.fill(encoder or Encoder())
    views.finish()
    return np.load(views.folder / "features.npy")


def test_the_whole_image_and_crops_of_it(views):
    features = made(views)
    assert features.shape == (32, 3, *SHAPE) and features.dtype == np.float16 and views.complete
    whole = Encoder()(views.processor.resize(Image.open(views.source[5].images[0]).convert("RGB"))[None])
    np.testing.assert_allclose(features[5, 0], whole[0], atol=1e-3)
    assert not np.array_equal(features[5, 0], features[5, 1]) and not np.array_equal(features[5, 1], features[5, 2])
    content = json.loads((views.folder / "views.json").read_text())
    assert content["weights"] == "w" and content["shape"] == [32, 3, *SHAPE]


def test_it_goes_on_where_it_was_killed(views, world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    views.begin()
    with pytest.raises(KeyboardInterrupt):
        views.fill(Encoder(most=10))
    assert not views.complete
    again, encoder = make_views(world, views.folder.parent), Encoder()
    features = made(again, encoder)
    assert 22 <= encoder.seen < 32, "what was written before the first that failed is kept"
    np.testing.assert_array_equal(features, made(make_views(world, tmp_path / "other")))


def test_ranks_share_the_work(views, world, tmp_path):
    encoders = [Encoder(), Encoder(), Encoder()]
    lacking = [make_views(world, views.folder.parent) for _ in encoders]
    for rank, share in enumerate(lacking):
        share.begin()
        share.fill(encoders[rank], 0, 3 - rank)  # a third, then half of the rest, then all
    views.finish()
    views.finish()
    assert [encoder.seen for encoder in encoders] == [11, 11, 10]
    np.testing.assert_array_equal(np.load(views.folder / "features.npy"), made(make_views(world, tmp_path / "other")))


def test_other_views_have_another_folder(views, world, tmp_path):
    folder = views.folder.parent
    others = [
        make_views(world, folder, count=4),
        make_views(world, folder, scale=(0.9, 1.0)),
        make_views(world, folder, weights="v"),
        make_views(world, folder, size=64),
    ]
    shutil.copytree(world.parent, tmp_path / "copy")
    assert make_views(tmp_path / "copy" / "world.json", folder).folder == views.folder, "the same images elsewhere"
    Image.new("RGB", (32, 32)).save(tmp_path / "copy" / "red-left-0.png")
    others.append(make_views(tmp_path / "copy" / "world.json", folder))
    assert len({other.folder for other in others} | {views.folder}) == 6


def test_no_room(views, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(AlbefRuntimeError, match=r"3 views of 32 images take 0.0 GB, but 0.0 GB are free; give fewer"):
        views.begin()
    assert list(views.folder.parent.iterdir()) == []


def test_samples(views):
    features = made(views)
    samples = pickle.loads(pickle.dumps(ViewSet(views, seed=1, flip=False)))
    drawn = [samples[epoch, 5] for epoch in range(20)]
    numbers = {int(np.flatnonzero((features[5] == one["pixel_values"][0].numpy()).all((1, 2, 3)))[0]) for one in drawn}
    assert numbers == {0, 1, 2}, "every view is drawn"
    assert samples[7, 5]["pixel_values"].equal(drawn[7]["pixel_values"]), "a function of seed, epoch and index"
    assert drawn[0]["record"].captions == views.source[5].captions and drawn[0]["broken"] == []
    mirrored = ViewSet(views, seed=1)
    flips = 0
    for epoch in range(20):
        found, plain = mirrored[epoch, 5]["pixel_values"], drawn[epoch]["pixel_values"]
        flips += found.equal(plain.flip(-1)) and not found.equal(plain)
        assert found.equal(plain) or found.equal(plain.flip(-1))
    assert 3 < flips < 17


def test_a_folded_map_is_mirrored_as_its_places_lie(views):
    lower, last = torch.randn(1, 3, 4, 6), torch.randn(1, 2, 2, 3)
    features = torch.cat([last, F.pixel_unshuffle(lower, 2)], dim=1)[0]
    wanted = torch.cat([last.flip(-1), F.pixel_unshuffle(lower.flip(-1), 2)], dim=1)[0]
    assert ViewSet(views, folded=12)._mirrored(features).equal(wanted)


def test_a_broken_image_is_named_and_replaced(world, tmp_path):
    shutil.copytree(world.parent, tmp_path / "copy")
    (tmp_path / "copy" / "red-left-0.png").write_bytes(b"no image")
    views, encoder = make_views(tmp_path / "copy" / "world.json", tmp_path / "cache"), Encoder()
    made(views, encoder)
    assert encoder.seen == 31
    sample = ViewSet(views)[0, 0]
    assert sample["broken"][0][0].endswith("red-left-0.png") and sample["record"].captions != [
        "a red square at the left"
    ]
    shutil.copy(world.parent / "red-left-0.png", tmp_path / "copy" / "red-left-0.png")
    assert ViewSet(views)[0, 0]["broken"][0][1] == "could not be read when views were made"


def test_an_image_of_several_records_is_one(world, tmp_path):
    records = json.loads(world.read_text())
    (tmp_path / "twice.json").write_text(json.dumps([records[0], records[1], records[0]]))
    shutil.copy(world.parent / records[0]["image"], tmp_path)
    shutil.copy(world.parent / records[1]["image"], tmp_path)
    views = make_views(tmp_path / "twice.json", tmp_path / "cache")
    assert made(views).shape == (2, 3, *SHAPE) and views.rows == [[0], [1], [0]]


HYBRID = replace(TINY, image_size=(64, 64), patch_size=32, trunk="efficientnet-lite0", vision_layers=1)


def cached_recipe(world, folder, **model):
    recipe = tiny_recipe(world, model=replace(HYBRID, **model), steps=6)
    return replace(recipe, data=replace(recipe.data, augment="cached", views=2, cache=str(folder), workers=0))


@pytest.mark.parametrize(("levels", "trained"), [(1, 0), (2, 2)])
def test_a_run_learns_from_views(world, tmp_path, levels, trained, capsys):
    recipe = cached_recipe(world, tmp_path / "views", trunk_levels=levels, trunk_trained=trained)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train(make_task, recipe, tmp_path / name, torch.device("cpu"))
    said = capsys.readouterr().err
    assert said.count("views of 32 images, 0.0 GB: ") == 1, "made by the first run alone"
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[json.loads(line)["itc"] for line in log if '"mlm"' in line] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_loader_workers_give_the_same_views(world, tmp_path):
    recipe = cached_recipe(world, tmp_path / "views")
    alone = next(make_task(recipe, None).batches(3))
    worker = replace(recipe, data=replace(recipe.data, workers=1))
    batch = next(make_task(worker, None).batches(3))
    assert batch["pixel_values"].shape == (8, 320, 2, 2) and batch["pixel_values"].equal(alone["pixel_values"])
    assert batch["input_ids"].equal(alone["input_ids"])


@pytest.mark.parametrize("task", ["classification", "nlvr2", "vqa"])
def test_examples_with_one_image_or_two(tmp_path, task):
    recipe = cached_recipe(Path("world:train/32"), tmp_path, trunk_trained=1, mlm_head=False)
    data = replace(recipe.data, validation=(), tokenizer="albef:world.txt")
    made = make_task(replace(recipe, task=task, data=data), None)
    batch = made.prepare(next(made.batches(0)), torch.device("cpu"))
    assert batch["pixel_values"].shape == ((8, 2, 320, 2, 2) if task == "nlvr2" else (8, 320, 2, 2))
    sum(made.losses(made.objective, batch, 0, 0.0).values()).backward()
    assert made.model.visual_encoder.trunk.parts[8][0].weight.grad is not None


def test_views_need_frozen_parts(world, tmp_path):
    with pytest.raises(AlbefValueError, match=r"data.augment is cached, but no part of the image encoder is frozen"):
        make_task(cached_recipe(world, tmp_path, trunk_trained=9), None).batches(0)
