"""A task that learns next to nothing in next to no time: what the loop does can be seen without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from albef import distributed
from albef.files import write_atomically
from albef.recipe import Optim, Recipe


class ToyObjective(nn.Module):
    """A line through points that every step draws anew, and a buffer that remembers, as queues do."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.ballast = nn.Parameter(torch.zeros(size))
        self.register_buffer("queue", torch.zeros(4))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        self.queue.copy_(self.queue.roll(1) + distributed.total(points.sum().reshape(1))[0])
        return (self.line(points) - 1).square().mean() + self.ballast.square().mean()


class Toy:
    """As `engine.train.Task` describes one; what the tests look at is noted in `evaluated`."""

    find_unused_parameters = False
    pairs = 100

    def __init__(self, recipe: Recipe, saved: dict[str, Any] | None = None, size: int = 8) -> None:
        torch.manual_seed(0)
        self.recipe, self.saved, self.objective = recipe, saved, ToyObjective(size)
        self.evaluated: list[int] = []
        self.step = 0

    def flops_per_pair(self) -> float:
        return 0.0

    def batches(self, start_step: int):
        while True:
            yield {"broken": []}

    def prepare(self, batch, device):
        return {"points": torch.randn(4, 2, device=device)}

    def losses(self, objective, batch, step, progress):
        self.step = step + 1
        return {"itc": objective(batch["points"])}

    def evaluate(self):
        self.evaluated.append(self.step)
        return {"distance": self.objective.line.weight.abs().sum().item()}

    def headline(self, evaluation):
        return f"distance {evaluation['distance']:.3f}"

    def score(self, evaluation):
        return -evaluation["distance"]

    def save_model(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        values = {name: value.tolist() for name, value in self.objective.line.state_dict().items()}
        write_atomically(folder / "line.json", json.dumps(values))

    def state_dict(self):
        return {"answers": ["yes", "no"]}

    def fingerprint(self):
        return {}


def toy_recipe(**changes: Any) -> Recipe:
    """Twenty steps with everything that can happen between two of them."""
    values = {"steps": 20, "batch_size": 4, "save_steps": 3, "evaluate_steps": 4, "log_steps": 1}
    optim = Optim(lr=0.01, min_lr=0.001, warmup_lr=0.001)
    return Recipe(**{"name": "toy", "precision": "float32", "optim": optim, **values, **changes})
