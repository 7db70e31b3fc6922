"""Small made-up images with captions, and a recipe that learns from them in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from albef.models.config import AlbefConfig
from albef.recipe import Data, Objective, Optim, Recipe

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
PLACES = {"left": (2, 8), "right": (18, 8), "top": (10, 1), "bottom": (10, 20)}

TINY = AlbefConfig(
    image_size=(32, 32),
    patch_size=8,
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    text_width=32,
    text_layers=1,
    fusion_layers=2,
    text_heads=2,
    text_intermediate=64,
    vocab_size=120,
    max_positions=40,
    embed_dim=16,
    dropout=0.0,
    init_std=None,
)


def make_world(folder: Path, copies: int = 2) -> Path:
    """A JSON list of squares of four colours at four places, `copies` of each with some noise; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    records = []
    for copy in range(copies):
        for colour, rgb in COLOURS.items():
            for place, (x, y) in PLACES.items():
                pixels = random.integers(200, 255, (32, 32, 3)).astype(np.uint8)
                pixels[y : y + 11, x : x + 11] = rgb
                name = f"{colour}-{place}-{copy}.png"
                Image.fromarray(pixels).save(folder / name)
                records.append({"image": name, "caption": f"a {colour} square at the {place}", "image_id": name})
    path = folder / "world.json"
    path.write_text(json.dumps(records))
    return path


def tiny_recipe(world: Path, **changes) -> Recipe:
    """A float32 run of ten steps on `world`, without any augmentation."""
    recipe = Recipe(
        name="tiny",
        model=TINY,
        data=Data(
            train=(str(world),),
            validation=(str(world),),
            augment="affine",
            cache_size=32,
            zoom=(1.0, 1.0),
            shift=0.0,
            angle=0.0,
            colour=0.0,
            max_tokens=10,
        ),
        optim=Optim(lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, clip_norm=1.0),
        objective=Objective(queue_size=24, momentum=0.9, alpha_ramp_steps=4, mlm_probability=0.3),
        batch_size=8,
        steps=10,
        precision="float32",
        evaluate_steps=0,
        save_steps=0,
        log_steps=1,
        k_test=4,
    )
    return replace(recipe, **changes)
