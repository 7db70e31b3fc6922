"""Recipes hold the paper's numbers, and every one of them can be built."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from albef.commands.train import all_recipes
from albef.engine.optim import learning_rate, ramp
from albef.models.albef import AlbefModel
from albef.models.config import preset
from albef.models.flops import pretraining_flops
from albef.recipe import Objective, Optim, Recipe, Task


@pytest.mark.parametrize("name", all_recipes())
def test_recipes_can_be_built_and_saved(name, tmp_path):
    recipe = all_recipes()[name]()
    assert recipe.name == name
    with torch.device("meta"):
        AlbefModel(recipe.model)
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    assert f"albef train {name}" in all_recipes()[name].__doc__


def test_the_papers_numbers():
    recipe, smaller = all_recipes()["pretrain-14m"](), all_recipes()["pretrain-4m"]()
    assert (recipe.batch_size, recipe.epochs, recipe.model.image_size) == (512, 30, (256, 256))
    assert recipe.objective == Objective(
        queue_size=65536, momentum=0.995, alpha=0.4, mlm_probability=0.15, temp=0.07, itm_negatives=1, align_first=0.0
    )
    assert recipe.optim == Optim(1e-4, 1e-5, 1e-5, "official", 0.05, 20, 0.02, (0.9, 0.999), 0.0)
    assert (recipe.data.crop_scale, recipe.data.max_tokens, recipe.data.max_words) == ((0.2, 1.0), 25, 30)
    assert set(recipe.data.train) - set(smaller.data.train) == {"cc12m.json"}
    assert replace(smaller, name=recipe.name, data=recipe.data) == recipe


# spec §3.0: pixels, global batch on 8 GPUs, epochs, lr, hundreds of warm-up iterations, k, tokens, alpha's ramp
FINE_TUNING = {
    "retrieval-coco": (384, 256, 5, 1e-5, 1, 256, 512, None),
    "retrieval-flickr30k": (384, 256, 10, 1e-5, 1, 128, 512, None),
    "vqa": (384, 256, 8, 2e-5, 4, 128, 25, None),
    "entailment": (384, 256, 5, 2e-5, 1, None, 512, 0),
    "nlvr2": (384, 128, 10, 2e-5, 1, None, 512, None),
    "grounding": (384, 256, 5, 1e-5, 1, None, 512, None),
    "text-assignment": (256, 512, 1, 2e-5, 1, None, 25, None),
}


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_papers_numbers_of_fine_tuning(name):
    size, batch, epochs, lr, warmup, k, tokens, alpha_steps = FINE_TUNING[name]
    recipe = all_recipes()[name]()
    assert recipe.model == preset("base").at_size(size)
    assert (recipe.batch_size, recipe.epochs, recipe.steps) == (batch, epochs, 0)
    min_lr = 1e-5 if name == "text-assignment" else 1e-6
    assert recipe.optim == Optim(lr, min_lr, 1e-5, "official", 0.05, warmup, 0.02, (0.9, 0.999), 0.0)
    assert (recipe.objective.alpha, recipe.objective.momentum, recipe.objective.queue_size) == (0.4, 0.995, 65536)
    assert recipe.objective.alpha_ramp_steps == alpha_steps
    assert recipe.data.max_tokens == tokens and recipe.data.flip
    assert recipe.data.crop_scale == {"grounding": None, "text-assignment": (0.2, 1.0)}.get(name, (0.5, 1.0))
    assert k is None or recipe.k_test == k
    assert recipe.evaluate_steps == (0 if name == "text-assignment" else None), "after every epoch"


def test_every_task_has_a_recipe_at_both_sizes():
    for task in get_args(Task):
        sizes = {
            recipe.model.text_width for recipe in (make() for make in all_recipes().values()) if recipe.task == task
        }
        assert sizes >= {768, 128}, task


def test_smooth_learning_rate():
    optim = Optim(lr=1.0, min_lr=0.1, warmup_lr=0.2, warmup=0.5)
    rates = [learning_rate(optim, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.2, 0.6, 1.0, 0.55, 0.1])


def test_distillation_ramps_up():
    assert [ramp(0.4, step, 4) for step in (0, 1, 4, 9)] == pytest.approx([0.0, 0.1, 0.4, 0.4])
    assert ramp(0.4, 0, 0) == 0.4


def test_flops_of_the_papers_model():
    """The image encoder alone is 2 x 86 M multiply-adds a token, forward; the student's backward costs twice that."""
    config = all_recipes()["pretrain-14m"]().model
    per_pair = pretraining_flops(config, 25)
    image = 4 * 2 * 85e6 * 257
    assert image < per_pair < 2 * image
