"""Pre-training as a task: recipe in, objective and batches out, zero-shot retrieval as the measure (paper §3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from albef.data.augment import TrainTransform
from albef.data.loader import CachedSet, Collate, TrainingSet, read_sample
from albef.data.sources import Source, captions_of, open_sources
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.flops import pretraining_flops
from albef.models.layout import PackedText
from albef.objectives.pretrain import PretrainObjective
from albef.tasks import ranking
from albef.tasks.learner import Learner


class Pretrain(Learner):
    """Image-text pre-training on the pairs of `recipe.data.train`."""

    last: tuple[Tensor, bool] | None = None
    """How long the texts of the last step were, on the host, and whether they were fused."""

    def make(self, config: AlbefConfig) -> Any:
        model = AlbefModel(replace(config, mlm_head=True))
        model.temp.data.fill_(self.recipe.objective.temp)
        return model

    def teach(self, model: Any) -> Any:
        options = self.recipe.objective
        made = PretrainObjective(
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
        self.find_unused_parameters = options.align_first > 0 or not options.itc
        return made

    def open(self, paths: Sequence[str]) -> Source:
        return open_sources(paths, self.recipe.data.image_root)

    def probe(self, source: Source) -> None:
        read_sample(source, 0)

    def texts(self) -> Iterator[str]:
        """Captions to learn a vocabulary from: all, or of evenly spaced records when there are very many."""
        step = max(1, len(self.source) // 200_000)
        return captions_of(self.source, range(0, len(self.source), step))

    def in_memory(self) -> CachedSet:
        data, size = self.recipe.data, self.recipe.data.cache_size
        return CachedSet(self.source, self.processor, (size, size), data.max_tokens, self.recipe.seed)

    def one_by_one(self, transform: TrainTransform) -> tuple[TrainingSet, Collate]:
        training = TrainingSet(self.source, self.processor, transform, self.recipe.seed)
        return training, Collate(self.processor, self.recipe.data.max_tokens)

    def prepare(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        self.lengths = batch["attention_mask"].sum(1)
        words = PackedText.of(batch["attention_mask"], device)
        masked = {"masked": self.objective.mask(batch, device)} if isinstance(self.objective, PretrainObjective) else {}
        return {**super().prepare(batch, device), "words": words, **masked}

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]:
        """The step's losses by name; their sum is learnt from."""
        fuse = progress >= self.recipe.objective.align_first
        self.last = self.lengths, fuse
        return objective(batch, self.alpha(step), fuse)

    def flops_per_pair(self) -> float:
        if self.last is None:
            return 0.0
        options, (lengths, fuse) = self.recipe.objective, self.last
        config = self.model.config
        return pretraining_flops(config, lengths.tolist(), options.mlm_probability, options.itm_negatives, fuse)

    def measure(self, source: Source) -> dict[str, Any]:
        """Zero-shot retrieval: recalls by ITC, by ITM and by their sum."""
        gallery = ranking.encode(self.model, self.processor, source, self.recipe.data.validation_captions)
        return {**ranking.evaluate(self.model, gallery, self.recipe.k_test)}

    def headline(self, evaluation: dict[str, Any]) -> str:
        found = (f"{name} {figures['img_r1']:.1f} / {figures['img_r10']:.1f}" for name, figures in evaluation.items())
        return f"text->image R@1 / R@10: {', '.join(found)}"

    def score(self, evaluation: dict[str, Any]) -> float:
        """What the best model is chosen by: mean recall, re-ranked."""
        return evaluation["itm"]["r_mean"]
