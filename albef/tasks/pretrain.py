"""Pre-training as a task: pairs in, zero-shot retrieval as the measure (paper §3.2)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from albef.batches import Inputs, PairBatch
from albef.data.processor import Processor
from albef.data.sources import Source
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.flops import pretraining_flops
from albef.models.layout import PackedText
from albef.objectives.pretrain import PretrainObjective
from albef.recipe import Recipe
from albef.tasks import ranking
from albef.tasks.task import Figures, Saved, Task, compose
from albef.tasks.training_data import Pairs, open_pairs


def make(recipe: Recipe, saved: Saved) -> Task[AlbefModel]:
    """Image-text pre-training on the pairs of `recipe.data.train`."""
    source, validation = open_pairs(recipe)
    options = recipe.objective

    def build_model(config: AlbefConfig) -> AlbefModel:
        model = AlbefModel(replace(config, mlm_head=True))
        model.temp.data.fill_(options.temp)
        return model

    task = compose(
        recipe,
        saved,
        Pairs(source, recipe),
        build_model,
        partial(build_objective, recipe),
        search_of(validation, recipe),
        call=call_in_two_phases,
        find_unused_parameters=options.align_first > 0 or not options.itc,
    )
    task.on_host = partial(words_and_masks_on_host, cast(PretrainObjective, task.objective))
    task.flops = partial(_flops, task.model.config, recipe)
    return task


def build_objective(recipe: Recipe, model: AlbefModel, processor: Processor) -> PretrainObjective:
    options = recipe.objective
    return PretrainObjective(
        model,
        queue_size=options.queue_size,
        momentum=options.momentum,
        mlm_probability=options.mlm_probability,
        itm_negatives=options.itm_negatives,
        mask_id=processor.mask_id,
        cls_id=processor.cls_id,
        itc=options.itc,
        official=options.official,
        hard_negatives=options.hard_negatives,
        distill=options.distill,
        weights=options.weights,
    )


def words_on_host(batch: PairBatch) -> dict[str, Any]:
    """How the texts of a batch lie, told from their mask before it goes to the device."""
    return {"words": PackedText.of(batch["attention_mask"])}


def words_and_masks_on_host(objective: PretrainObjective, batch: PairBatch) -> dict[str, Any]:
    """The words to be filled in as well."""
    return words_on_host(batch) | {"masked": objective.mask(batch, torch.device("cpu"))}


def call_in_two_phases(
    objective: nn.Module, batch: Inputs, alpha: float, fuse: bool, hardness: float
) -> dict[str, Tensor]:
    """Pre-training may align first and fuse later."""
    return objective(batch, alpha, fuse, hardness)


def _flops(config: AlbefConfig, recipe: Recipe, lengths: Tensor, fused: bool) -> float:
    options = recipe.objective
    return pretraining_flops(config, lengths.tolist(), options.mlm_probability, options.itm_negatives, fused)


def search_of(source: Source | None, recipe: Recipe) -> Search | None:
    """The protocol of retrieval on validation data, if there are any."""
    return None if source is None else Search(source, recipe.k_test, recipe.data.validation_captions)


class Search:
    """Recalls of two-stage retrieval on a source: by ITC, by ITM and by their sum."""

    def __init__(self, source: Source, k: int, captions: int | None) -> None:
        self.source, self.k, self.captions = source, k, captions

    def evaluate(self, model: AlbefModel, processor: Processor) -> Figures:
        gallery = ranking.encode_gallery(model, processor, self.source, self.captions)
        return {**ranking.two_stage_recalls(model, gallery, self.k)}

    def score(self, figures: Figures) -> float:
        """Mean recall, re-ranked."""
        return figures["itm"]["r_mean"]

    def headline(self, figures: Figures) -> str:
        found = (f"{name} {own['img_r1']:.1f} / {own['img_r10']:.1f}" for name, own in figures.items())
        return f"text->image R@1 / R@10: {', '.join(found)}"
