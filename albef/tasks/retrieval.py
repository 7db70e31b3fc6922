"""Fine-tuning for two-stage retrieval, where an image has several texts (paper §4.1; spec §3.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.objectives.retrieval import RetrievalObjective
from albef.tasks.learner import Learner
from albef.tasks.pretrain import Pretrain


class Retrieval(Pretrain):
    """ITC and ITM on the pairs of `recipe.data.train`; records of one `image_id` are each other's positives."""

    def make(self, config: AlbefConfig) -> AlbefModel:
        return AlbefModel(replace(config, mlm_head=False))

    def teach(self, model: Any) -> RetrievalObjective:
        options = self.recipe.objective
        return RetrievalObjective(model, options.queue_size, options.momentum, options.itm_negatives, options.official)

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]:
        return Learner.losses(self, objective, batch, step, progress)
