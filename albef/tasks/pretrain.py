"""The task of pre-training, which learns from pairs and is measured by zero-shot retrieval (paper §3.2)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from albef.batches import PairBatch
from albef.data.processor import Processor
from albef.data.sources import Source
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.flops import pretraining_flops
from albef.models.layout import PackedText
from albef.objectives.pretrain import PretrainObjective
from albef.recipe import Recipe
from albef.tasks import ranking
from albef.tasks.begin import Saved
from albef.tasks.task import Figures, Task
from albef.tasks.training_data import Pairs, open_pairs


def make(recipe: Recipe, saved: Saved) -> Task[AlbefModel, PretrainObjective, PairBatch]:
    """Returns image-text pre-training on the pairs of `recipe.data.train`."""
    source, validation = open_pairs(recipe)
    options = recipe.objective

    def build_model(config: AlbefConfig) -> AlbefModel:
        model = AlbefModel(replace(config, mlm_head=True))
        model.temp.data.fill_(options.temp)
        return model

    return Task(
        recipe,
        saved,
        Pairs(source, recipe),
        build_model,
        partial(build_objective, recipe),
        search_of(validation, recipe),
        call=lambda objective, batch, now: objective(batch, now.alpha, now.fuse, now.hardness),
        on_host=words_and_masks_on_host,
        flops=lambda config, lengths, fuse: pretraining_flops(
            config, lengths, options.mlm_probability, options.itm_negatives, fuse
        ),
        find_unused_parameters=options.align_first > 0 or not options.itc,
    )


def build_objective(recipe: Recipe, model: AlbefModel, processor: Processor) -> PretrainObjective:
    """Returns the objective of pre-training with a recipe's options."""
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


def words_on_host(_: nn.Module, batch: PairBatch) -> PairBatch:
    """Adds how the texts of a batch lie, found from their mask before it goes to the device."""
    return {**batch, "words": PackedText.of(batch["attention_mask"])}


def words_and_masks_on_host(objective: PretrainObjective, batch: PairBatch) -> PairBatch:
    """Adds the words that are to be filled in as well."""
    return {**words_on_host(objective, batch), "masked": objective.mask(batch, torch.device("cpu"))}


def search_of(source: Source | None, recipe: Recipe) -> Search | None:
    """Returns the protocol of retrieval on validation data, or None without such data."""
    return None if source is None else Search(source, recipe.k_test, recipe.data.validation_captions)


class Search:
    """Measures recalls of two-stage retrieval on a source, in percent, by every way of scoring of `tasks.ranking`."""

    def __init__(self, source: Source, k: int, captions: int | None) -> None:
        self.source, self.k, self.captions = source, k, captions

    def evaluate(self, model: AlbefModel, processor: Processor) -> Figures:
        gallery = ranking.encode_gallery(model, processor, self.source, self.captions)
        return {**ranking.two_stage_recalls(model, gallery, self.k)}

    def score(self, figures: Figures) -> float:
        """Returns the mean recall after re-ranking, in percent."""
        return figures["itm"]["r_mean"]

    def headline(self, figures: Figures) -> str:
        found = (f"{name} {own['img_r1']:.1f} / {own['img_r10']:.1f}" for name, own in figures.items())
        return f"text->image R@1 / R@10: {', '.join(found)}"
