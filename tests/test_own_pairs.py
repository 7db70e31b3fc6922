"""Going on from `photos` with own pairs: one recipe for 50 and for 50,000, and the worked example's lists."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from albef.data.processor import Processor
from albef.data.sources import open_sources
from albef.data.text import load_tokenizer
from albef.engine.optim import make_optimizer
from albef.engine.train import train
from albef.models.albef import AlbefModel
from albef.recipes import photos
from albef.tasks import make_task
from albef_demo.paintings import Painting
from tests.worlds import TINY, make_world

SCRIPT = Path(__file__).parents[1] / "scripts" / "painting_lists.py"


def test_few_pairs_and_many_have_steps_enough():
    recipe = photos()
    assert recipe.init == "photos" and not recipe.steps
    steps = {pairs: recipe.epochs * (pairs // recipe.batch_size) for pairs in (50, 50_000)}
    assert steps[50] >= 20 and steps[50_000] <= 32_000


def test_every_rate_belongs_to_a_part_that_learns():
    recipe = photos()
    with torch.device("meta"):
        model = AlbefModel(recipe.model)
    make_optimizer(model, recipe.optim)  # an error names a part that is not there, or is frozen
    frozen = {name for name, part in model.named_parameters() if not part.requires_grad}
    assert all(name in frozen for name, _ in model.named_parameters() if "trunk.parts" in name)


def test_fifty_pairs_are_learnt_from_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """From a small model of the same make, by the recipe as it is but for sizes and the number of passes."""
    config = replace(
        TINY, image_size=(64, 64), patch_size=32, trunk="efficientnet-lite0", trunk_levels=2, vision_layers=1,
        text_layers=4, text_pooling="mean", vocab_size=30522,
    )  # fmt: skip
    torch.manual_seed(0)
    start = AlbefModel(config)
    start.save_pretrained(tmp_path / "start")
    Processor(load_tokenizer("bert"), config.image_size).save_pretrained(tmp_path / "start")
    world = make_world(tmp_path / "world", copies=4)  # 64 pairs
    listed = json.loads(world.read_text())
    for name, rows in {"train": listed[:50], "held-out": listed[50:]}.items():
        world.with_name(f"{name}.json").write_text(json.dumps(rows))
    recipe = photos()
    data = replace(
        recipe.data,
        train=(str(world.with_name("train.json")),),
        validation=(str(world.with_name("held-out.json")),),
        views=2,
        cache=str(tmp_path / "views"),
    )
    recipe = replace(
        recipe, data=data, model=replace(recipe.model, image_size=(64, 64)), init=str(tmp_path / "start"), epochs=3
    )
    figures = train(make_task, recipe, tmp_path / "run", torch.device("cpu"))
    assert 0 <= figures["odds"]["img_r1"] <= 100
    assert "views of 50 images" in capsys.readouterr().err
    learnt = dict(AlbefModel.from_pretrained(tmp_path / "run" / "model").named_parameters())
    changed = {name for name, part in start.named_parameters() if name in learnt and not part.equal(learnt[name])}
    assert any(name.startswith("text_encoder.layers.3.") for name in changed) and "temp" in changed
    assert {"visual_encoder.trunk.top.weight", "itm_head.weight", "text_proj.weight"} <= changed
    assert not any("trunk.parts" in name or "embeddings" in name for name in changed)
    assert not any(name.startswith(f"text_encoder.layers.{layer}.") for name in changed for layer in range(3))


def test_the_lists_of_paintings_share_nothing_and_are_read(tmp_path: Path):
    found = [Painting(n, f"Title {n}", "", ("Men", "Dogs") if n % 2 else (), tmp_path / f"{n}.jpg") for n in range(174)]
    script = runpy.run_path(str(SCRIPT))
    lists = script["lists"](found)
    assert lists == script["lists"](found), "drawn by a fixed seed"
    assert [len(lists[name]) for name in ("train", "test")] == [124, 50]
    assert len({pair["image"] for own in lists.values() for pair in own}) == 174
    captions = {pair["caption"] for own in lists.values() for pair in own}
    assert {"Title 0", "Title 1, men, dogs"} <= captions
    (tmp_path / "test.json").write_text(json.dumps(lists["test"]))
    assert open_sources([str(tmp_path / "test.json")]).captions(0) == [lists["test"][0]["caption"]]
