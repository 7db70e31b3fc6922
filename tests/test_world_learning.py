"""Every task learns: seconds of each `world-*` recipe, and what comes of it on scenes that it never saw.

The recipes run for thousands of steps on 20,000 scenes; here for some dozens on 2,000, with small batches and at once
with the full learning rate. What is said of the scenes is kept to what can be learnt that fast, so that words alone
are of little use: the thresholds are far above what they, or guessing, can give. `pytest -m learning` runs these alone.
"""

import re
from dataclasses import replace

import pytest
import torch

from albef.commands.train import all_recipes
from albef.data.examples import open_examples
from albef.data.processor import Processor
from albef.data.records import Example
from albef.engine.train import train
from albef.models.albef import AlbefModel
from albef.tasks import make_task, training_data
from albef_demo.world import COLOURS, parse, png, scene

pytestmark = pytest.mark.learning


def learnt(name, folder, steps, test, init="world", data="world:train/2000", lr=1e-3, seed=1):
    """The figures of `world-{name}` on `test` after so many steps on `data`."""
    recipe = all_recipes()[f"world-{name}"]()
    recipe = replace(
        recipe,
        init=str(init),
        data=replace(recipe.data, train=(data,), validation=(test,)),
        optim=replace(recipe.optim, lr=lr),
        objective=replace(recipe.objective, alpha=0.0),  # there is no time for a teacher to get good
        batch_size=32,
        steps=steps,
        seed=seed,
        evaluate_steps=0,
        save_steps=0,
        precision="float32",
    )
    folder.mkdir(exist_ok=True)
    return train(make_task, recipe, folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory):
    """The model of `world`, its projections and its matching head as they were before it learnt anything."""
    folder = tmp_path_factory.mktemp("forgetful")
    model = AlbefModel.from_pretrained("world")
    torch.manual_seed(0)
    for part in (model.itm_head, model.vision_proj, model.text_proj):
        part.reset_parameters()
    model.save_pretrained(folder)
    Processor.from_pretrained("world").save_pretrained(folder)
    return folder


def replaced(monkeypatch, change):
    """Lets a task learn from, and be measured on, what `change` makes of a part of the world."""
    changed = lambda kind, paths, *roots: [example for path in paths for example in change(path)]  # noqa: E731
    monkeypatch.setattr(training_data, "open_examples", changed)


def about_colours(path):
    """One statement a scene, as often true as false: is there a thing of this colour? Nothing stands near the truth."""
    split, count = parse(path)
    found = []
    for number in range(count):
        shown = scene(split, number)
        there = [thing.colour for thing in shown.things]
        absent = [colour for colour in COLOURS if colour not in there]
        label, colours = (("entailment", there), ("contradiction", absent))[number % 2]
        text = f"there is a {colours[number // 2 % len(colours)]} thing"
        found.append(Example(path, (png(shown),), text, number, label=label))
    return found


def colours_and_shapes(path):
    """Questions for a colour or a shape."""
    source = open_examples("vqa", [path])
    every = (source[index] for index in range(len(source)))
    return [example for example in every if re.match("what (colour|shape) is the", example.text)]


def test_entailment(tmp_path, monkeypatch):
    """Words alone give 65 %, for the same few statements are true of some of these 64 scenes and false of others.

    To judge scenes that it has not seen takes the recipe a thousand steps; here it learns these by heart.
    """
    replaced(monkeypatch, about_colours)
    found = learnt("entailment", tmp_path, 60, "world:train/64", data="world:train/64", lr=5e-4)
    assert found["examples"] == 64 and found["accuracy"] >= 90, found


def test_vqa(tmp_path, monkeypatch):
    """There are six colours and five shapes: guessing, which is all that words alone can do, gives 18 %."""
    replaced(monkeypatch, colours_and_shapes)
    found = learnt("vqa", tmp_path, 100, "world:test/300")
    assert found["questions"] > 200 and found["ranked"] >= 27 and found["generated"] >= 27, found


def test_retrieval(tmp_path, forgetful):
    """Guessing finds one of 149 images."""
    found = learnt("retrieval", tmp_path, 30, "world:test/150", forgetful)
    assert found["itm"]["img_r1"] >= 60 and found["itm"]["txt_r1"] >= 60, found
    assert found["itc"]["img_r1"] >= 40 and found["itc"]["txt_r1"] >= 35, found


def test_grounding(tmp_path):
    """A thing covers an eighth of the image, and there are three to five boxes to choose among."""
    found = learnt("grounding", tmp_path, 25, "world:test/150")
    assert found["itm"]["pointing"] >= 24 and found["itc"]["pointing"] >= 30, found
    assert found["itc"]["boxes"] >= 42, found


def test_pairs(tmp_path):
    """Eight statements about four pairs of images each, true of two: words alone, learnt by heart, give 50 %.

    To tell pairs that it has not seen takes the recipe many minutes; here it learns these by heart.
    """
    found = learnt("nlvr2", tmp_path, 30, "world:train/32", data="world:train/32", lr=5e-4)
    assert found["examples"] == 32 and found["accuracy"] >= 85, found
