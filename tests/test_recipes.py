"""Recipes hold the paper's numbers, and every one of them can be built."""

from dataclasses import replace

import pytest
import torch

from albef.engine.optim import learning_rate, ramp
from albef.models.albef import AlbefModel
from albef.models.flops import pretraining_flops
from albef.recipe import Objective, Optim, Recipe
from albef.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_can_be_built_and_saved(name, tmp_path):
    recipe = RECIPES[name]()
    assert recipe.name == name
    with torch.device("meta"):
        AlbefModel(recipe.model)
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    assert f"albef train {name}" in RECIPES[name].__doc__


def test_the_papers_numbers():
    recipe, smaller = RECIPES["pretrain-14m"](), RECIPES["pretrain-4m"]()
    assert (recipe.batch_size, recipe.epochs, recipe.model.image_size) == (512, 30, (256, 256))
    assert recipe.objective == Objective(
        queue_size=65536, momentum=0.995, alpha=0.4, mlm_probability=0.15, temp=0.07, itm_negatives=1, align_first=0.0
    )
    assert recipe.optim == Optim(1e-4, 1e-5, 1e-5, "official", 0.05, 20, 0.02, (0.9, 0.999), 0.0)
    assert (recipe.data.crop_scale, recipe.data.max_tokens, recipe.data.max_words) == ((0.2, 1.0), 25, 30)
    assert set(recipe.data.train) - set(smaller.data.train) == {"cc12m.json"}
    assert replace(smaller, name=recipe.name, data=recipe.data) == recipe


def test_smooth_learning_rate():
    optim = Optim(lr=1.0, min_lr=0.1, warmup_lr=0.2, warmup=0.5)
    rates = [learning_rate(optim, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.2, 0.6, 1.0, 0.55, 0.1])


def test_distillation_ramps_up():
    assert [ramp(0.4, step, 4) for step in (0, 1, 4, 9)] == pytest.approx([0.0, 0.1, 0.4, 0.4])
    assert ramp(0.4, 0, 0) == 0.4


def test_flops_of_the_papers_model():
    """The image encoder alone is 2 x 86 M multiply-adds a token, forward; the student's backward costs twice that."""
    config = RECIPES["pretrain-14m"]().model
    per_pair = pretraining_flops(config, 25)
    image = 4 * 2 * 85e6 * 257
    assert image < per_pair < 2 * image
