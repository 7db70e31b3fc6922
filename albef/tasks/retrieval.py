"""Fine-tuning for two-stage retrieval, where an image has several texts (paper §4.1; spec §3.1)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from albef.batches import Inputs
from albef.data.processor import Processor
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.objectives.retrieval import RetrievalObjective
from albef.recipe import Recipe
from albef.tasks.pretrain import search_of, words_on_host
from albef.tasks.task import EvaluationProtocol, Saved, Task, compose
from albef.tasks.training_data import Pairs, open_pairs


def make(recipe: Recipe, saved: Saved) -> Task[AlbefModel]:
    """ITC and ITM on the pairs of `recipe.data.train`; records of one `image_id` are each other's positives."""
    source, validation = open_pairs(recipe)
    return learning_to_match(recipe, saved, Pairs(source, recipe), search_of(validation, recipe))


def learning_to_match(
    recipe: Recipe, saved: Saved, data: Pairs, protocol: EvaluationProtocol[AlbefModel] | None
) -> Task[AlbefModel]:
    """Align and match, as retrieval and grounding learn, on any pairs."""
    options = recipe.objective

    def build_model(config: AlbefConfig) -> AlbefModel:
        return AlbefModel(replace(config, mlm_head=False))

    def build_objective(model: AlbefModel, _: Processor) -> RetrievalObjective:
        return RetrievalObjective(
            model,
            options.queue_size,
            options.momentum,
            options.itm_negatives,
            options.official,
            options.hard_negatives,
            options.weights,
        )

    return compose(
        recipe, saved, data, build_model, build_objective, protocol, call=call_with_hardness, on_host=words_on_host
    )


def call_with_hardness(
    objective: nn.Module, batch: Inputs, alpha: float, fuse: bool, hardness: float
) -> dict[str, Tensor]:
    """Retrieval and grounding fuse in every step, and draw negatives."""
    return objective(batch, alpha, hardness)
