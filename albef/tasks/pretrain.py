"""Pre-training as a task: recipe in, objective and batches out, zero-shot retrieval as the measure (paper §3.2)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from albef import distributed
from albef.data.augment import RandAugment, TrainTransform
from albef.data.augment_batch import BatchAugment
from albef.data.broken import BrokenCounter
from albef.data.loader import CachedSet, Collate, StepBatches, TrainingSet, make_loader, read_sample
from albef.data.processor import Processor, load_tokenizer, train_tokenizer
from albef.data.sources import Source, captions_of, open_sources
from albef.engine.optim import ramp
from albef.models.albef import AlbefModel
from albef.models.flops import pretraining_flops
from albef.objectives.pretrain import PretrainObjective
from albef.recipe import Recipe
from albef.tasks import retrieval


class Pretrain:
    """Image-text pre-training on the pairs of `recipe.data.train`."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
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
        self.validation = self._open_validation()
        model, self.processor = self._start(folder / "model")
        self.cached = self._keep_in_memory() if recipe.data.augment == "affine" else None
        self.pairs = len(self.source if self.cached is None else self.cached)
        model.gradient_checkpointing(recipe.gradient_checkpointing)
        options, data = recipe.pretraining, recipe.data
        self.objective = PretrainObjective(
            model,
            queue_size=options.queue_size,
            momentum=options.momentum,
            mlm_probability=options.mlm_probability,
            itm_negatives=options.itm_negatives,
            mask_id=self.processor.mask_id,
            cls_id=self.processor.cls_id,
            itc=options.itc,
            official=options.official,
        )
        if recipe.compile:
            compile_blocks(self.objective)
        self.flops_per_pair = 0.0
        self.augment = BatchAugment(model.config.image_size, data.zoom, data.shift, data.angle, data.colour)

    def _open_validation(self) -> Source | None:
        """The pictures to search while training. It reads the first: a wrong path should fail now, not in hours."""
        data = self.recipe.data
        if not data.validation:
            return None
        source = open_sources(data.validation, data.image_root)
        read_sample(source, 0)
        return source

    def _start(self, saved: Path) -> tuple[AlbefModel, Processor]:
        """A new model, or that of `recipe.init` at this recipe's image size; a run that goes on keeps its words."""
        recipe, data = self.recipe, self.recipe.data
        torch.manual_seed(recipe.seed)
        if recipe.init:
            model = AlbefModel.from_pretrained(recipe.init, image_size=recipe.model.image_size)
            processor = Processor.from_pretrained(recipe.init)
            processor.image_size = model.config.image_size
            return model.train(), processor
        if (saved / "tokenizer.json").exists():
            tokenizer = load_tokenizer(str(saved / "tokenizer.json"))
        elif data.tokenizer:
            tokenizer = load_tokenizer(data.tokenizer)
        else:
            tokenizer = train_tokenizer(self._captions(), recipe.model.vocab_size)
        model = AlbefModel(replace(recipe.model, vocab_size=tokenizer.get_vocab_size()))
        model.temp.data.fill_(recipe.pretraining.temp)
        size = model.config.image_size
        return model, Processor(tokenizer, size, max_words=data.max_words, max_tokens=data.max_tokens)

    def _captions(self) -> Iterator[str]:
        """Captions to learn a vocabulary from: all, or of evenly spaced records when there are very many."""
        step = max(1, len(self.source) // 200_000)
        return captions_of(self.source, range(0, len(self.source), step))

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

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Augments pixels that were kept in memory, and normalises them."""
        pixels = batch["pixel_values"] if self.cached is None else self.augment(batch["pixel_values"])
        return {**batch, "pixel_values": self.processor.normalise(pixels)}

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]:
        """The step's losses by name; their sum is learnt from."""
        options, words = self.recipe.pretraining, batch["input_ids"].shape[1]
        steps = self.pairs // self.recipe.batch_size if options.alpha_ramp_steps is None else options.alpha_ramp_steps
        fuse = progress >= options.align_first
        config = self.objective.model.config
        self.flops_per_pair = pretraining_flops(config, words, options.mlm_probability, options.itm_negatives, fuse)
        return objective(batch, ramp(options.alpha, step, steps), fuse)

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Zero-shot retrieval on `recipe.data.validation`: recalls by ITC, by ITM and by their sum."""
        if self.validation is None:
            return {}
        model, first = self.objective.model.eval(), self.recipe.data.validation_captions
        gallery = retrieval.encode(model, self.processor, self.validation, first)
        return {**retrieval.evaluate(model, gallery, self.recipe.k_test)}

    def headline(self, evaluation: dict[str, Any]) -> str:
        found = (f"{name} {figures['img_r1']:.1f} / {figures['img_r10']:.1f}" for name, figures in evaluation.items())
        return f"text->picture R@1 / R@10: {', '.join(found)}"

    def save_model(self, folder: Path) -> None:
        self.objective.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def compile_blocks(objective: PretrainObjective) -> None:
    """Compiles the transformer blocks of student and teacher; lengths and modes are kinds of their own."""
    torch._dynamo.config.recompile_limit = 64
    for model in (objective.model, objective.teacher.model):
        for layer in (*model.visual_encoder.blocks, *model.text_encoder.layers, *model.fusion_encoder.layers):
            layer.compile()
