"""Every run by name: the paper's, and twins that one machine can carry.

A recipe is a function that returns a `Recipe`; its docstring says where the numbers come from, how to start it and what
came out. Derive new ones with `dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from albef.models.config import preset
from albef.recipe import Data, Objective, Optim, Recipe


def pretrain_14m() -> Recipe:
    """The paper's pre-training on 14 M images (configs/Pretrain.yaml of the original; paper §3.4, §3.5).

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
        objective=Objective(queue_size=65536, momentum=0.995, alpha=0.4, mlm_probability=0.15),
        batch_size=512,
        epochs=30,
        seed=42,
        evaluate_steps=5000,
        save_steps=1000,
        k_test=256,
    )


def pretrain_4m() -> Recipe:
    """The paper's pre-training on 4 M images: as `pretrain-14m` without CC12M.

    torchrun --nproc-per-node 8 -m albef train pretrain-4m --data.image-root /data --init START
    The paper's result, 8 A100 for 2 to 3 days: Flickr30k after fine-tuning TR R@1 94.3, IR R@1 82.8. Not run by us.
    """
    recipe = pretrain_14m()
    files = tuple(file for file in recipe.data.train if file != "cc12m.json")
    return replace(recipe, name="pretrain-4m", data=replace(recipe.data, train=files))


def pretrain_small() -> Recipe:
    """A twin of `pretrain-4m` for one machine with own images: a network of 13 M parameters at 128 px.

    albef train pretrain-small --data.train captions.json --data.validation dev.json --out runs/mine
    """
    return Recipe(
        name="pretrain-small",
        model=preset("small"),
        data=Data(workers=2),
        optim=Optim(lr=5e-4, min_lr=1e-6, warmup_lr=1e-6, weight_decay=0.05, clip_norm=5.0),
        objective=Objective(queue_size=4096, alpha_ramp_steps=1000, align_first=0.3),
        batch_size=128,
        steps=10_000,
    )


def pretrain_tiny() -> Recipe:
    """A twin of `pretrain-small` that learns in minutes: 1.7 M parameters at 32 px, images kept in memory.

    albef train pretrain-tiny --data.train captions.json --data.validation dev.json --out runs/mine
    """
    return replace(
        pretrain_small(),
        name="pretrain-tiny",
        model=preset("tiny"),
        data=Data(augment="affine", cache_size=48, max_tokens=12),
        optim=Optim(lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, weight_decay=0.05, clip_norm=5.0),
        objective=Objective(queue_size=1024, momentum=0.99, alpha_ramp_steps=500, itm_negatives=4, align_first=0.3),
        steps=5000,
        evaluate_steps=500,
        save_steps=500,
        k_test=16,
    )


def retrieval_coco() -> Recipe:
    """Fine-tuning for retrieval on COCO (configs/Retrieval_coco.yaml of the original; paper §4.1).

    torchrun --nproc-per-node 8 -m albef train retrieval-coco --init albef-14m --data.image-root /data/coco
    The paper's result, 14 M images: TR R@1/5/10 77.6/94.3/97.2, IR 60.7/84.3/90.5. Not run by us.
    """
    return replace(
        pretrain_14m(),
        name="retrieval-coco",
        task="retrieval",
        model=preset("base").at_size(384),
        data=replace(
            pretrain_14m().data,
            train=("coco_train.json",),
            validation=("coco_val.json",),
            crop_scale=(0.5, 1.0),
            max_tokens=512,
        ),
        optim=Optim(
            lr=1e-5, min_lr=1e-6, warmup_lr=1e-5, schedule="official", warmup_epochs=1, weight_decay=0.02, clip_norm=0.0
        ),
        batch_size=256,
        epochs=5,
        evaluate_steps=None,
        k_test=256,
    )


def retrieval_flickr30k() -> Recipe:
    """Fine-tuning for retrieval on Flickr30k (configs/Retrieval_flickr.yaml of the original): as `retrieval-coco`.

    torchrun --nproc-per-node 8 -m albef train retrieval-flickr30k --init albef-14m --data.image-root /data/flickr30k
    The paper's result, 14 M images: TR R@1/5/10 95.9/99.8/100.0, IR 85.6/97.5/98.9. Not run by us.
    """
    coco = retrieval_coco()
    data = replace(coco.data, train=("flickr30k_train.json",), validation=("flickr30k_val.json",))
    return replace(coco, name="retrieval-flickr30k", data=data, epochs=10, k_test=128)


def vqa() -> Recipe:
    """Fine-tuning on VQA v2 and Visual Genome's questions (configs/VQA.yaml of the original; paper §4.1).

    torchrun --nproc-per-node 8 -m albef train vqa --init albef-14m --data.image-root /data/coco --data.vg-root /data/vg
    The answers are chosen by evaluation: albef evaluate runs/vqa/model --data vqa_test.json --results vqa_result.json
    The paper's result, 14 M images: test-dev 75.84, test-std 76.04. Not run by us.
    """
    coco = retrieval_coco()
    return replace(
        coco,
        name="vqa",
        task="vqa",
        data=replace(
            coco.data,
            train=("vqa_train.json", "vqa_val.json", "vg_qa.json"),
            validation=(),
            answers="answer_list.json",
            max_tokens=25,
        ),
        optim=replace(coco.optim, lr=2e-5, warmup_epochs=4),
        epochs=8,
        k_test=128,
    )


def entailment() -> Recipe:
    """Fine-tuning on SNLI-VE (configs/VE.yaml of the original; paper §4.1). The teacher's share doesn't ramp up.

    torchrun --nproc-per-node 8 -m albef train entailment --init albef-14m --data.image-root /data/flickr30k
    The paper's result, 14 M images: val 80.80, test 80.91. Not run by us.
    """
    coco = retrieval_coco()
    return replace(
        coco,
        name="entailment",
        task="classification",
        data=replace(coco.data, train=("ve_train.json",), validation=("ve_dev.json",)),
        optim=replace(coco.optim, lr=2e-5),
        objective=replace(coco.objective, alpha_ramp_steps=0),
        epochs=5,
    )


def text_assignment() -> Recipe:
    """Pre-training for NLVR2 by text assignment (configs/NLVR_pretrain.yaml of the original; paper §4.1).

    torchrun --nproc-per-node 8 -m albef train text-assignment --init albef-4m --data.image-root /data
    One epoch over the 4 M images. No figure of its own; `nlvr2` starts from it. Not run by us.
    """
    four = pretrain_4m()
    return replace(
        four,
        name="text-assignment",
        task="text-assignment",
        optim=replace(four.optim, lr=2e-5, warmup_epochs=1),
        epochs=1,
        evaluate_steps=0,
    )


def nlvr2() -> Recipe:
    """Fine-tuning on NLVR2 (configs/NLVR.yaml of the original; paper §4.1), after `text-assignment`.

    torchrun --nproc-per-node 8 -m albef train nlvr2 --init runs/text-assignment/model --data.image-root /data/nlvr2
    The paper's result, 14 M images: dev 82.55, test-P 83.14. Not run by us.
    """
    coco = retrieval_coco()
    return replace(
        coco,
        name="nlvr2",
        task="nlvr2",
        data=replace(coco.data, train=("nlvr_train.json",), validation=("nlvr_dev.json",)),
        optim=replace(coco.optim, lr=2e-5),
        batch_size=128,
        epochs=10,
    )


def grounding() -> Recipe:
    """Weakly supervised grounding on RefCOCO+ (configs/Grounding.yaml of the original; paper §4.1): no box is learnt.

    torchrun --nproc-per-node 8 -m albef train grounding --init albef-14m --data.image-root /data/coco
    Then: albef evaluate runs/grounding/model --task grounding --data data/refcoco+/testA --image-root /data/coco
    The paper's result by ITM, 14 M images: val 58.46, testA 65.89, testB 46.25. Not run by us.
    """
    coco = retrieval_coco()
    return replace(
        coco,
        name="grounding",
        task="grounding",
        data=replace(coco.data, train=("refcoco+_train.json",), validation=("data/refcoco+/val",), crop_scale=None),
        epochs=5,
    )


_ALL: tuple[Callable[[], Recipe], ...] = (
    pretrain_4m,
    pretrain_14m,
    pretrain_small,
    pretrain_tiny,
    retrieval_coco,
    retrieval_flickr30k,
    vqa,
    entailment,
    text_assignment,
    nlvr2,
    grounding,
)
RECIPES = {function.__name__.replace("_", "-"): function for function in _ALL}
