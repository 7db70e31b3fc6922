"""Runs of the demonstration by name: the emoji, the generated world, and the package easy-vqa."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from albef.models.config import preset
from albef.recipe import Data, Recipe, Task
from albef.recipes import pretrain_tiny


def emoji() -> Recipe:
    """The run that made the shipped model: it learns three drawing styles of the emoji and is measured on a fourth.

    albef train emoji --out runs/emoji
    Text->image, three seeds: ITC R@1 43.3 (sd 0.1), R@10 76.3 (0.4); ITM 40.6 (1.6), 76.5 (0.5). It takes 40 minutes
    on one core of a busy machine; docs/results.md has the rest.
    """
    tiny = pretrain_tiny()
    data = replace(
        tiny.data,
        train=tuple(f"albef:emoji/{style}.tar.gz" for style in ("noto", "twemoji", "openmoji")),
        validation=("albef:emoji/fluent.tar.gz",),
        validation_captions=1,
        cache_size=40,
        zoom=(0.65, 1.25),
        angle=15.0,
        colour=0.5,
    )
    return replace(tiny, name="emoji", data=data, steps=10_000)


def emoji_demo() -> Recipe:
    """A short `emoji`, of 2,500 steps: what `albef demo` does first. It takes about four minutes on two idle cores.

    albef train emoji-demo --out runs/emoji-demo
    Text->image by ITC, one seed: R@1 24.2, R@10 56.2. The limit of eight minutes ends the run only on a slow machine,
    which then reaches less.
    """
    full = emoji()
    return replace(
        full,
        name="emoji-demo",
        data=replace(full.data, zoom=(0.75, 1.15), angle=12.0, colour=0.3),
        objective=replace(full.objective, align_first=0.6),
        steps=2500,
        max_seconds=480.0,
        evaluate_steps=250,
        log_steps=25,
    )


def world() -> Recipe:
    """A model of 1.6 M parameters that knows the generated world: what the world's tasks are fine-tuned from.

    albef train world --out runs/world
    Images by caption, one of 491, one seed: ITC R@1 92.5, ITM 95.1.
    """
    tiny = pretrain_tiny()
    return replace(
        tiny,
        name="world",
        model=replace(preset("tiny"), image_size=(36, 36), patch_size=6, vision_layers=2, fusion_layers=3),
        data=replace(
            tiny.data,
            train=("world:train",),
            validation=("world:validation",),
            validation_captions=1,
            tokenizer="albef:world.txt",
            cache_size=36,
            zoom=(1.0, 1.0),
            shift=0.0,
            angle=0.0,
            colour=0.0,
            max_tokens=16,
        ),
        objective=replace(tiny.objective, itm_negatives=2, mlm_probability=0.3, align_first=0.25),
        steps=4000,
        k_test=32,
    )


def _of_world(name: str, task: Task, lr: float, steps: int) -> Recipe:
    """A task of the generated world, from the model of `world` that comes along."""
    start = world()
    return replace(
        start,
        name=f"world-{name}",
        task=task,
        init="world",
        data=replace(start.data, validation=("world:validation",)),
        optim=replace(start.optim, lr=lr),
        objective=replace(start.objective, momentum=0.995, alpha_ramp_steps=1000),
        batch_size=64,
        steps=steps,
        evaluate_steps=500,
    )


def world_retrieval() -> Recipe:
    """Retrieval in the generated world: one of 491 images by its caption.

    albef train world-retrieval --out runs/world-retrieval
    """
    return _of_world("retrieval", "retrieval", lr=2e-4, steps=500)


def world_vqa() -> Recipe:
    """Questions about the generated world: colours, shapes, sizes, numbers, places; a closed list and free answers.

    albef train world-vqa --out runs/world-vqa
    """
    return _of_world("vqa", "vqa", lr=5e-4, steps=6000)


def world_entailment() -> Recipe:
    """Statements about the generated world: true, false, or nothing that the image says.

    albef train world-entailment --out runs/world-entailment
    """
    return _of_world("entailment", "classification", lr=3e-4, steps=5000)


def world_assignment() -> Recipe:
    """Text assignment in the generated world: what `world-nlvr2` may start from.

    albef train world-assignment --out runs/world-assignment
    """
    return _of_world("assignment", "text-assignment", lr=5e-4, steps=1200)


def world_nlvr2() -> Recipe:
    """Statements about two images of the generated world.

    albef train world-nlvr2 --out runs/world-nlvr2
    After text assignment: --init runs/world-assignment/model
    """
    return _of_world("nlvr2", "nlvr2", lr=2e-4, steps=4000)


def world_grounding() -> Recipe:
    """Phrases for things of the generated world; where they are is never told.

    albef train world-grounding --out runs/world-grounding
    """
    return _of_world("grounding", "grounding", lr=3e-4, steps=3000)


def easy_vqa_align() -> Recipe:
    """What `easy-vqa` starts from: the same images with what the training answers say of them, such as "teal circle".

    python scripts/easy_vqa_lists.py --out runs/easy-vqa-data
    albef train easy-vqa-align --out runs/easy-vqa-align
    """
    tiny = pretrain_tiny()
    return replace(
        tiny,
        name="easy-vqa-align",
        model=replace(preset("tiny"), image_size=(64, 64), patch_size=8, fusion_layers=2),
        data=Data(
            train=("runs/easy-vqa-data/captions.json",),
            tokenizer="runs/easy-vqa-data/vocab.txt",
            augment="affine",
            cache_size=64,
            zoom=(0.8, 1.1),
            shift=0.1,
            angle=10.0,
            colour=0.0,
            max_tokens=20,
        ),
        objective=replace(tiny.objective, alpha_ramp_steps=200, itm_negatives=1, align_first=0.6),
        steps=1000,
        evaluate_steps=0,
    )


def easy_vqa() -> Recipe:
    """Questions of the package `easy-vqa`: a model of 1.8 M parameters at 64 px. `make easy-vqa` does all of it.

    albef train easy-vqa --out runs/easy-vqa
    Test accuracy, one seed: 99.65, ranked and generated (98.9 after 1,000 steps); questions alone 67.
    """
    start = easy_vqa_align()
    data = replace(start.data, train=("runs/easy-vqa-data/train.json",), validation=("runs/easy-vqa-data/test.json",))
    return replace(
        start,
        name="easy-vqa",
        task="vqa",
        init="runs/easy-vqa-align/model",
        data=data,
        optim=replace(start.optim, lr=5e-4),
        steps=1500,
        evaluate_steps=500,
    )


_ALL: tuple[Callable[[], Recipe], ...] = (
    emoji,
    emoji_demo,
    world,
    world_retrieval,
    world_vqa,
    world_entailment,
    world_assignment,
    world_nlvr2,
    world_grounding,
    easy_vqa_align,
    easy_vqa,
)
RECIPES = {function.__name__.replace("_", "-"): function for function in _ALL}
