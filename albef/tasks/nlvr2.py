"""Two images and a statement, true or false, and text assignment, which prepares for it (paper §4.1; spec §3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from albef.data.examples import ExampleSource, Kind
from albef.data.processor import Processor
from albef.files import write_atomically
from albef.metrics.nlvr2 import nlvr2_accuracy, nlvr2_consistency
from albef.metrics.pairing import counts
from albef.models.classifier import AlbefForPairs, AlbefForTextAssignment
from albef.models.config import AlbefConfig
from albef.objectives.classify import AssignObjective
from albef.tasks.classification import Classification, Judged, chosen_and_true, predict
from albef.tasks.learner import Memory
from albef.tasks.pretrain import Pretrain


class Nlvr2(Classification):
    """Fine-tuning on pairs of images.

    `objective.official` leaves the teacher as it was before the start was loaded, as the original does (#67).
    """

    kind: Kind = "pairs"

    def make(self, config: AlbefConfig) -> AlbefForPairs:
        return AlbefForPairs(config)

    def remember(self, memory: Memory) -> list[str]:
        if not self.recipe.objective.official or self.objective.teacher is None:
            return super().remember(memory)
        before = self.make(self.model.config)
        before.cls_head.load_state_dict(self.model.cls_head.state_dict())  # that has no other start
        self.objective.teacher.copy(before)
        return ["teacher: as it was before the start was loaded"]

    def measure(self, source: ExampleSource) -> dict[str, Any]:
        return evaluate(self.model, self.processor, source)

    def headline(self, evaluation: dict[str, Any]) -> str:
        consistency = evaluation.get("consistency")
        return super().headline(evaluation) + (f", consistency {consistency:.2f} %" if consistency is not None else "")


class TextAssignment(Pretrain):
    """Which of two images does a caption describe, or neither? Learns from pre-training's pairs."""

    def make(self, config: AlbefConfig) -> AlbefForTextAssignment:
        return AlbefForTextAssignment(config)

    def teach(self, model: Any) -> AssignObjective:
        return AssignObjective(model, self.recipe.objective.official)

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]:
        return objective(batch)

    def evaluate(self) -> dict[str, Any]:
        return {}


def evaluate(
    model: AlbefForPairs, processor: Processor, source: ExampleSource, tick: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """`figures` of what the model says of a source."""
    return figures(predict(model, processor, source, tick=tick), model.labels)


def figures(found: Judged, labels: Sequence[str]) -> dict[str, Any]:
    """`accuracy` over the examples whose label is known, and the official `consistency`, in percent (spec §4.3).

    Consistency is left out unless all labels are known and all examples named as NLVR2's.
    """
    chosen, truth = chosen_and_true(found, labels)
    shares = {"accuracy": 100 * nlvr2_accuracy({key: chosen[key] for key in truth}, truth)} if truth else {}
    if truth.keys() == chosen.keys() and all(str(key).count("-") == 3 for key in truth):
        shares["consistency"] = 100 * nlvr2_consistency(chosen, truth)
    return shares | counts("examples", chosen, truth)


def write_results(path: Path, found: Judged, labels: Sequence[str]) -> None:
    """What NLVR2's official script reads: a line `identifier,label` for each pair."""
    chosen, _ = chosen_and_true(found, labels)
    write_atomically(path, "".join(f"{key},{label}\n" for key, label in chosen.items()))
