"""Every run by name: the paper's, and twins that one machine can carry.

A recipe is a function that returns a `Recipe`; its docstring says where the numbers come from, how to start it and what
came out. Derive new ones with `dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from albef.models.config import preset
from albef.recipe import Data, Optim, Pretraining, Recipe


def pretrain_14m() -> Recipe:
    """The paper's pre-training on 14 M pictures (configs/Pretrain.yaml of the original; paper §3.4, §3.5).

    torchrun --nproc-per-node 8 -m albef train pretrain-14m --data.image-root /data --init START
    START is made of DeiT-B/16 and BERT-base by `albef convert --deit deit_base_patch16_224.pth --bert
    pytorch_model.bin --out START`. The paper's result, 8 A100 for 7 to 8 days: Flickr30k after fine-tuning TR R@1 95.9,
    IR R@1 85.6. Not run by us.
    """
    return Recipe(
        name="pretrain-14m",
        model=preset("base"),
        data=Data(
            train=("coco.json", "vg.json", "cc12m.json", "cc3m_train.json", "cc3m_val.json", "sbu.json"),
            tokenizer="bert",
            crop_scale=(0.2, 1.0),
            max_words=30,
            max_tokens=25,
            workers=4,
        ),
        optim=Optim(
            lr=1e-4,
            min_lr=1e-5,
            warmup_lr=1e-5,
            schedule="official",
            warmup_epochs=20,
            weight_decay=0.02,
            clip_norm=0.0,
        ),
        pretraining=Pretraining(queue_size=65536, momentum=0.995, alpha=0.4, mlm_probability=0.15),
        batch_size=512,
        epochs=30,
        seed=42,
        evaluate_steps=5000,
        save_steps=1000,
        k_test=256,
    )


def pretrain_4m() -> Recipe:
    """The paper's pre-training on 4 M pictures: as `pretrain-14m` without CC12M.

    torchrun --nproc-per-node 8 -m albef train pretrain-4m --data.image-root /data --init START
    The paper's result, 8 A100 for 2 to 3 days: Flickr30k after fine-tuning TR R@1 94.3, IR R@1 82.8. Not run by us.
    """
    recipe = pretrain_14m()
    files = tuple(file for file in recipe.data.train if file != "cc12m.json")
    return replace(recipe, name="pretrain-4m", data=replace(recipe.data, train=files))


def pretrain_small() -> Recipe:
    """A twin of `pretrain-4m` for one machine with own pictures: a network of 13 M parameters at 128 px.

    albef train pretrain-small --data.train captions.json --data.validation dev.json --out runs/mine
    """
    return Recipe(
        name="pretrain-small",
        model=preset("small"),
        data=Data(workers=2),
        optim=Optim(lr=5e-4, min_lr=1e-6, warmup_lr=1e-6, weight_decay=0.05, clip_norm=5.0),
        pretraining=Pretraining(queue_size=4096, alpha_ramp_steps=1000, align_first=0.3),
        batch_size=128,
        steps=10_000,
    )


def pretrain_tiny() -> Recipe:
    """A twin of `pretrain-small` that learns in minutes: 1.7 M parameters at 32 px, pictures kept in memory.

    albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine
    """
    return replace(
        pretrain_small(),
        name="pretrain-tiny",
        model=preset("tiny"),
        data=Data(augment="affine", cache_size=48, max_tokens=12),
        optim=Optim(lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, weight_decay=0.05, clip_norm=5.0),
        pretraining=Pretraining(queue_size=1024, momentum=0.99, alpha_ramp_steps=500, itm_negatives=4, align_first=0.3),
        steps=5000,
        evaluate_steps=500,
        save_steps=500,
        k_test=16,
    )


def emoji() -> Recipe:
    """The model that the package ships: three drawing styles of the emoji, searched in a fourth it has never seen.

    albef train emoji --out runs/emoji
    Text->picture, three seeds: ITC R@1 43.3 (sd 0.1), R@10 76.3 (0.4); ITM 40.6 (1.6), 76.5 (0.5). 40 minutes on one
    core of a busy machine. docs/results.md has the rest.
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
    """Four minutes of `emoji`: what `albef demo` does first.

    albef train emoji-demo --out runs/emoji-demo
    Text->picture by ITC, three seeds on two cores: R@1 21.5 (sd 1.2), R@10 51.9 (1.2).
    """
    full = emoji()
    return replace(
        full,
        name="emoji-demo",
        data=replace(full.data, zoom=(0.75, 1.15), angle=12.0, colour=0.3),
        pretraining=replace(full.pretraining, align_first=0.6),
        steps=20_000,
        max_seconds=240.0,
        evaluate_steps=250,
        log_steps=25,
    )


_ALL: tuple[Callable[[], Recipe], ...] = (
    pretrain_4m,
    pretrain_14m,
    pretrain_small,
    pretrain_tiny,
    emoji,
    emoji_demo,
)
RECIPES = {function.__name__.replace("_", "-"): function for function in _ALL}
