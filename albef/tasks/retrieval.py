"""Fine-tuning for two-stage retrieval, where a picture has several texts (paper §4.1; spec §3.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.objectives.retrieval import RetrievalObjective
from albef.tasks.learner import Learner, start_teacher
from albef.tasks.pretrain import Pretrain


class Retrieval(Pretrain):
    """ITC and ITM on the pairs of `recipe.data.train`; records of one `image_id` are each other's positives."""

    def make(self, config: AlbefConfig) -> AlbefModel:
        return super().make(replace(config, mlm_head=False))

    def teach(self, model: Any, teacher: dict[str, Tensor] | None) -> RetrievalObjective:
        options = self.recipe.objective
        made = RetrievalObjective(model, options.queue_size, options.momentum, options.itm_negatives, options.official)
        start_teacher(made.teacher.model, teacher)
        return made

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]:
        return Learner.losses(self, objective, batch, step, progress)
