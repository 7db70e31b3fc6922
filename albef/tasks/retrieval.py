"""The task of fine-tuning for two-stage retrieval, where an image has several texts (paper §4.1; spec §3.1)."""

from __future__ import annotations

from dataclasses import replace

from albef.batches import PairBatch
from albef.data.processor import Processor
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.objectives.retrieval import RetrievalObjective
from albef.recipe import Recipe
from albef.tasks.begin import Saved
from albef.tasks.pretrain import search_of, words_on_host
from albef.tasks.task import EvaluationProtocol, Task
from albef.tasks.training_data import Pairs, open_pairs


def make(recipe: Recipe, saved: Saved) -> Task[AlbefModel, RetrievalObjective, PairBatch]:
    """Returns ITC and ITM on the pairs of `recipe.data.train`. Records of one `image_id` are each other's positives."""
    source, validation = open_pairs(recipe)
    return learning_to_match(recipe, saved, Pairs(source, recipe), search_of(validation, recipe))


def learning_to_match(
    recipe: Recipe, saved: Saved, data: Pairs, protocol: EvaluationProtocol[AlbefModel] | None
) -> Task[AlbefModel, RetrievalObjective, PairBatch]:
    """Returns a task that aligns and matches pairs of any kind, as retrieval and grounding do."""
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

    return Task(
        recipe,
        saved,
        data,
        build_model,
        build_objective,
        protocol,
        call=lambda objective, batch, now: objective(batch, now.alpha, now.hardness),
        on_host=words_on_host,
    )
