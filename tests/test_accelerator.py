"""Every objective forward and backward on a device that refuses what a GPU refuses (`tests/accelerator.py`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.models.layout import PackedText
from albef.objectives.answer import AnswerObjective, words_asked
from albef.objectives.classify import AssignObjective, ClassifyObjective
from albef.objectives.pretrain import PretrainObjective
from albef.objectives.retrieval import RetrievalObjective
from tests.accelerator import Accelerator, accelerator, in_a_process_of_its_own
from tests.worlds import TINY

CONFIG = replace(TINY, dropout=0.1)


def test_every_objective() -> None:
    said = in_a_process_of_its_own("tests.test_accelerator:run_every_objective")
    assert said.split() == list(OBJECTIVES)


def test_what_a_gpu_refuses() -> None:
    in_a_process_of_its_own("tests.test_accelerator:refuse")


def refuse() -> None:
    with accelerator() as gpu:
        there = gpu.move(torch.zeros(3))
        with pytest.raises(RuntimeError, match=r"found two different devices|found at least two devices"):
            there + torch.zeros(3)
        with pytest.raises((TypeError, RuntimeError)):
            there.numpy()
        number = there.sum().item()
        with pytest.raises(Exception, match="data-dependent"):
            bool(number > 0)


def images_and_texts(count: int = 4) -> dict[str, Tensor]:
    mask = (torch.arange(6) < torch.tensor([6, 3, 4, 2, 5, 6][:count])[:, None]).long()
    return {
        "pixel_values": torch.randn(count, 3, *CONFIG.image_size),
        "input_ids": torch.randint(5, 100, mask.shape) * mask,
        "attention_mask": mask,
    }


def pairs() -> dict[str, Tensor]:
    rows = torch.arange(4)
    return {**images_and_texts(), "image_id": rows, "text_id": rows}


def questions() -> dict[str, Any]:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]])
    answers = {"answer_ids": torch.randint(5, 100, mask.shape), "answer_mask": mask}
    return {**images_and_texts(), **answers, "answer_of": torch.tensor([0, 1, 1, 2, 3]), "weights": torch.ones(5)}


def labelled(two: bool = False) -> dict[str, Tensor]:
    batch = images_and_texts()
    pixels = batch["pixel_values"]
    images = torch.stack([pixels, pixels], dim=1) if two else pixels
    return {**batch, "pixel_values": images, "labels": torch.tensor([0, 1, 1, 0])}


def pretraining(**options: Any) -> PretrainObjective:
    return PretrainObjective(AlbefModel(CONFIG), queue_size=10, mask_id=4, cls_id=2, **options)


OBJECTIVES: dict[str, Any] = {
    "pretrain": lambda: (pretraining(), pairs(), (0.4,)),
    "pretrain-two-negatives": lambda: (pretraining(itm_negatives=2), pairs(), (0.4,)),
    "pretrain-official": lambda: (pretraining(official=True), pairs(), (0.4,)),
    "pretrain-align-only": lambda: (pretraining(), pairs(), (0.4, False)),
    "retrieval": lambda: (RetrievalObjective(AlbefModel(CONFIG), queue_size=10), pairs(), (0.4,)),
    "vqa": lambda: (AnswerObjective(AlbefForAnswering(CONFIG)), questions(), (0.4,)),
    "entailment": lambda: (ClassifyObjective(AlbefForClassification(CONFIG)), labelled(), (0.4,)),
    "pairs": lambda: (ClassifyObjective(AlbefForPairs(CONFIG)), labelled(two=True), (0.4,)),
    "text-assignment": lambda: (AssignObjective(AlbefForTextAssignment(CONFIG)), pairs(), ()),
}


def run_every_objective() -> None:
    made = {name: make() for name, make in OBJECTIVES.items()}
    made = {name: (one, prepared(one, batch), rest) for name, (one, batch, rest) in made.items()}
    with accelerator() as gpu:
        for name, (objective, batch, arguments) in made.items():
            learn(gpu, objective, batch, arguments)
            print(name)


def prepared(objective: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with how its texts lie, and its masked words, made on the host as in training: no one waits for N."""
    if isinstance(objective, AnswerObjective):
        return {**batch, "asked": words_asked(batch["answer_mask"])}
    if "image_id" not in batch:
        return batch
    host = torch.device("cpu")
    masked = {"masked": objective.mask(batch, host)} if isinstance(objective, PretrainObjective) else {}
    return {**batch, "words": PackedText.of(batch["attention_mask"]), **masked}


def learn(gpu: Accelerator, objective: Any, batch: dict[str, Any], arguments: tuple[Any, ...]) -> None:
    losses = gpu.move(objective).train()(gpu.move(batch), *arguments)
    assert losses and all(loss.device == gpu.device and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in objective.model.parameters() if p.grad is not None]
    assert len(gradients) > 20, len(gradients)
    assert all(gradient.device == gpu.device for gradient in gradients)
