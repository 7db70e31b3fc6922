"""Pre-training as a task: recipe in, objective and batches out, zero-shot retrieval as the measure (paper §3.2)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from albef import distributed
from albef.data.augment import RandAugment, TrainTransform
from albef.data.augment_batch import BatchAugment
from albef.data.broken import BrokenCounter
from albef.data.loader import CachedSet, Collate, StepBatches, TrainingSet, make_loader
from albef.data.processor import Processor, load_tokenizer, train_tokenizer
from albef.data.sources import open_sources
from albef.engine.optim import ramp
from albef.models.albef import AlbefModel
from albef.models.flops import pretraining_flops
from albef.objectives.pretrain import PretrainObjective
from albef.recipe import Recipe
from albef.tasks import retrieval


class Pretrain:
    """Image-text pre-training on the pairs of `recipe.data.train`."""

    def __init__(self, recipe: Recipe) -> None:
        if not recipe.data.train:
            raise ValueError(
                f"recipe {recipe.name!r}: data.train is empty; give JSON lists, tar shards or folders of pictures, "
                "e.g. --data.train captions.json"
            )
        world = distributed.world_size()
        if recipe.batch_size % world:
            raise ValueError(f"batch_size {recipe.batch_size} can't be split evenly over {world} ranks")
        self.recipe = recipe
        self.source = open_sources(recipe.data.train, recipe.data.image_root)
        model, self.processor = self._start()
        self.cached = self._keep_in_memory() if recipe.data.augment == "affine" else None
        self.pairs = len(self.source if self.cached is None else self.cached)
        model.gradient_checkpointing(recipe.gradient_checkpointing)
        options, data = recipe.pretraining, recipe.data
        self.objective = PretrainObjective(
            model,
            options.queue_size,
            options.momentum,
            options.mlm_probability,
            options.itm_negatives,
            self.processor.mask_id,
            self.processor.cls_id,
            options.official,
        )
        if recipe.compile:
            compile_blocks(self.objective)
        self.flops_per_pair = 0.0
        self.augment = BatchAugment(model.config.image_size, data.zoom, data.shift, data.angle, data.colour)

    def _start(self) -> tuple[AlbefModel, Processor]:
        """A new model, or the saved one of `recipe.init` at this recipe's image size."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        if recipe.init:
            model = AlbefModel.from_pretrained(recipe.init, image_size=recipe.model.image_size)
            processor = Processor.from_pretrained(recipe.init)
            processor.image_size = model.config.image_size
            return model.train(), processor
        if recipe.data.tokenizer:
            tokenizer = load_tokenizer(recipe.data.tokenizer)
        else:
            tokenizer = train_tokenizer(self._captions(), recipe.model.vocab_size)
        config = replace(recipe.model, vocab_size=tokenizer.get_vocab_size())
        data = recipe.data
        processor = Processor(tokenizer, config.image_size, max_words=data.max_words, max_tokens=data.max_tokens)
        return AlbefModel(config), processor

    def _captions(self) -> Iterator[str]:
        """Captions to learn a vocabulary from: all, or of evenly spaced records when there are very many."""
        step = max(1, len(self.source) // 200_000)
        indices = range(0, len(self.source), step)
        for index in track(indices, "reading captions", transient=True, disable=not sys.stderr.isatty()):
            yield from self.source[index].captions

    def _keep_in_memory(self) -> CachedSet:
        data, size = self.recipe.data, self.recipe.data.cache_size
        cached = CachedSet(self.source, self.processor, (size, size), data.max_tokens, self.recipe.seed)
        counter = BrokenCounter(data.broken_limit)
        counter.add(cached.broken, len(cached))
        counter.check(final=True)
        if cached.broken:
            warnings.warn(counter.report(), stacklevel=2)
        return cached

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]:
        """Batches of this rank from step `start_step` on, without end."""
        recipe, data = self.recipe, self.recipe.data
        rank, world = distributed.rank(), distributed.world_size()
        order = StepBatches(self.pairs, recipe.batch_size, sys.maxsize, recipe.seed, start_step, rank, world)
        if self.cached is not None:
            return map(self.cached.batch, order)
        augment = RandAugment(official=recipe.pretraining.official)
        transform = TrainTransform(self.processor.image_size, data.crop_scale, data.flip, augment)
        training = TrainingSet(self.source, self.processor, transform, recipe.seed)
        return iter(make_loader(training, order, Collate(self.processor, data.max_tokens), data.workers))

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]:
        """The step's losses by name; their sum is learnt from."""
        options = self.recipe.pretraining
        ramp_steps = options.alpha_ramp_steps
        alpha = ramp(options.alpha, step, self.pairs // self.recipe.batch_size if ramp_steps is None else ramp_steps)
        pixels = batch["pixel_values"]
        if self.cached is not None:
            pixels = self.augment(pixels)
        batch = {**batch, "pixel_values": self.processor.normalise(pixels)}
        fuse = progress >= options.align_first
        self.flops_per_pair = pretraining_flops(
            self.objective.model.config,
            batch["input_ids"].shape[1],
            options.mlm_probability,
            options.itm_negatives,
            fuse,
        )
        losses = objective(batch, alpha, fuse)
        return losses if options.itc else {name: loss for name, loss in losses.items() if name != "itc"}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Zero-shot retrieval on `recipe.data.validation`: recalls by ITC, by ITM and by their sum."""
        if not self.recipe.data.validation:
            return {}
        data, model = self.recipe.data, self.objective.model.eval()
        source = open_sources(data.validation, data.image_root)
        gallery = retrieval.encode(model, self.processor, source, data.validation_captions)
        return {**retrieval.evaluate(model, gallery, self.recipe.k_test)}

    def headline(self, evaluation: dict[str, Any]) -> str:
        found = (f"{name} {figures['img_r1']:.1f} / {figures['img_r10']:.1f}" for name, figures in evaluation.items())
        return f"text->picture R@1 / R@10: {', '.join(found)}"

    def save_model(self, folder: Path) -> None:
        self.objective.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def compile_blocks(objective: PretrainObjective) -> None:
    """Compiles the transformer blocks of student and teacher, each kind once."""
    for model in (objective.model, objective.teacher.model):
        for layer in (*model.visual_encoder.blocks, *model.text_encoder.layers, *model.fusion_encoder.layers):
            layer.compile()
