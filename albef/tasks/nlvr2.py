"""Two pictures and a statement, true or false, and text assignment, which prepares for it (paper §4.1; spec §3.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from albef.data.examples import ExampleSource, Kind
from albef.data.processor import Processor
from albef.metrics.classification import accuracy
from albef.metrics.nlvr2 import nlvr2_consistency
from albef.models.classifier import AlbefForPairs, AlbefForTextAssignment
from albef.models.config import AlbefConfig
from albef.objectives.classify import AssignObjective, ClassifyObjective
from albef.tasks.classification import Classification, label_index, predict
from albef.tasks.pretrain import Pretrain


class Nlvr2(Classification):
    """Fine-tuning on pairs of pictures.

    `objective.official` leaves the teacher as it was before the start was loaded, as the original does (#67).
    """

    kind: Kind = "pairs"

    def make(self, config: AlbefConfig) -> AlbefForPairs:
        return AlbefForPairs(config)

    def teach(self, model: Any, teacher: dict[str, Tensor] | None) -> ClassifyObjective:
        made = super().teach(model, teacher)
        if self.recipe.objective.official and made.teacher is not None:
            made.teacher.copy(self.make(model.config))
        return made

    def measure(self, source: ExampleSource) -> dict[str, Any]:
        return evaluate(self.model, self.processor, source)

    def headline(self, evaluation: dict[str, Any]) -> str:
        consistency = evaluation.get("consistency")
        return super().headline(evaluation) + (f", consistency {consistency:.2f} %" if consistency is not None else "")


class TextAssignment(Pretrain):
    """Which of two pictures does a caption describe, or neither? Learns from pre-training's pairs."""

    def make(self, config: AlbefConfig) -> AlbefForTextAssignment:
        return AlbefForTextAssignment(config)

    def teach(self, model: Any, teacher: dict[str, Tensor] | None) -> AssignObjective:
        return AssignObjective(model)

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]:
        return objective(batch)

    def evaluate(self) -> dict[str, Any]:
        return {}


def evaluate(
    model: AlbefForPairs, processor: Processor, source: ExampleSource, tick: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """`accuracy`, and the official `consistency` if the examples are named as NLVR2's, in percent (spec §4.3)."""
    found = predict(model, processor, source, tick=tick)
    truth = {key: label_index(example, model.labels) for key, (example, _) in found.items()}
    chosen = {key: int(row.argmax()) for key, (_, row) in found.items()}
    figures = {"accuracy": 100 * accuracy(list(chosen.values()), list(truth.values())), "examples": len(truth)}
    if all(str(key).count("-") == 3 for key in truth):
        names = {str(key): model.labels[index] for key, index in chosen.items()}
        figures["consistency"] = 100 * nlvr2_consistency(
            names, {str(key): model.labels[index] for key, index in truth.items()}
        )
    return figures
