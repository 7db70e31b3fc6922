"""Every public call, and every evaluation, on a device that refuses to mix with the CPU: results as on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import albef
from albef import calibration
from albef.pipeline import Pipeline
from albef_demo.world import scene
from tests.accelerator import in_a_process_of_its_own
from tests.second_device import device, move, second_device
from tests.test_pipeline import save
from tests.test_pipeline_lists import KINDS, TEXTS

Call = Callable[[Pipeline, list[Any]], Any]
CALLS: dict[str, list[Call]] = {
    "match": [
        lambda one, images: one.embed_images(images),
        lambda one, images: one.embed_texts(TEXTS),
        lambda one, images: one.tokens(images),
        lambda one, images: one.states(TEXTS).values,
        lambda one, images: one.fuse(images, TEXTS).values,
        lambda one, images: one.similarity(images, TEXTS),
        lambda one, images: [[m.probability, m.cosine] for m in one.match(images, TEXTS)],
        lambda one, images: [[m.probability, m.cosine] for m in one.match(images[0], TEXTS * 9)],
        lambda one, images: one.match(images[0], TEXTS[0]).probability,
        lambda one, images: [[r.index, r.probability, r.score] for r in one.rank(TEXTS[0], images)],
        lambda one, images: [[r.index, r.probability, r.score] for r in one.rank(images[0], TEXTS, by="itm")],
        lambda one, images: list(calibration.calibrate(one, ["world:test/6"], k=3)[1]["odds before"].values()),
        lambda one, images: [list(v.probabilities.values()) for v in one.classify(images, ["ring", "cross"])],
        lambda one, images: [list(r.box) for r in one.ground(images, TEXTS)],
        lambda one, images: list(one.ground(images[0], TEXTS[0], "itc").point),
        lambda one, images: list(one.ground(images[0], TEXTS[0], candidates=[(0, 0, 9, 9), (5, 5, 9, 9)]).box),
    ],
    "answer": [
        lambda one, images: [[a.probability for a in own] for own in one.answer(images, "what is it")],
        lambda one, images: [[a.probability for a in own] for own in one.answer(images, "what is it", free=True)],
    ],
    "entails": [lambda one, images: [list(v.probabilities.values()) for v in one.entails(images, TEXTS)]],
    "compare": [lambda one, images: [list(v.probabilities.values()) for v in one.compare(images, images[::-1], TEXTS)]],
}
EVALUATIONS: dict[str, list[dict[str, Any]]] = {
    "match": [{"k": 2}, {"task": "grounding"}, {"k": 3, "precision": "bfloat16"}],
    "answer": [{"k": 2}],
    "entails": [{}],
    "compare": [{}],
}


@pytest.mark.parametrize("use", CALLS)
def test_every_public_call(tmp_path: Path, use: str) -> None:
    in_a_process_of_its_own("tests.test_accelerator_pipeline:call", use, str(save(tmp_path, KINDS[use])))


@pytest.mark.parametrize("use", EVALUATIONS)
def test_every_evaluation(tmp_path: Path, use: str) -> None:
    in_a_process_of_its_own("tests.test_accelerator_pipeline:evaluate", use, str(save(tmp_path, KINDS[use])))


def test_what_it_refuses() -> None:
    in_a_process_of_its_own("tests.test_accelerator_pipeline:refuse")


def refuse() -> None:
    with second_device():
        there = torch.ones(3).to(device())
        assert (
            there.device == device() and (there + 1).device == device() and (there + there).cpu().tolist() == [2, 2, 2]
        )
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


def call(use: str, folder: str) -> None:
    one, images = albef.load(folder, device="cpu"), [scene("test", number).image() for number in range(4)]
    wanted = [work(one, images) for work in CALLS[use]]
    with second_device():
        move(one.model)
        one._tokenised = ((), None)
        for work, result in zip(CALLS[use], wanted, strict=True):
            torch.testing.assert_close(torch.as_tensor(work(one, images)), torch.as_tensor(result))


def evaluate(use: str, folder: str) -> None:
    one, wanted = albef.load(folder, device="cpu"), []
    for rules in EVALUATIONS[use]:
        wanted.append(albef.evaluate(one, "world:test/6", **rules))
    with second_device():
        move(one.model)
        for rules, result in zip(EVALUATIONS[use], wanted, strict=True):
            if rules.get("precision"):  # autocast of this device rounds elsewhere
                assert albef.evaluate(one, "world:test/6", **rules).keys() == result.keys()
            else:
                assert json.dumps(albef.evaluate(one, "world:test/6", **rules)) == json.dumps(result)
