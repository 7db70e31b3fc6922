"""Fine-tuning for retrieval, and for grounding: align and match, without masked words (paper §4.1; spec §3.1)."""

# B own pairs, n negatives

from __future__ import annotations

import torch
from torch import Tensor

from albef.batches import PairBatch
from albef.models.albef import AlbefModel
from albef.models.layout import PackedText
from albef.objectives.align import (
    AlignObjective,
    Features,
    Positives,
    Taught,
    Weights,
    per_rank,
    seen_by,
    with_negatives,
    words_of,
)
from albef.objectives.pretrain import Step


class RetrievalObjective(AlignObjective):
    """ITC + ITM: `(batch, alpha) -> {"itc": .., "itm": ..}`; an image may have several texts in batch and queue.

    A batch holds what pre-training's does. The target of ITC is spread evenly over all texts of the image; pairs of
    one image are never each other's ITM negatives. `official=True` restores the original: texts that read the same
    don't count as the same, only the own rank's batch and the queue are compared, the temperature isn't clamped, and
    the teacher keeps its dropout.

    `hard_negatives=False` draws negatives evenly; `weights` says what each loss counts.
    """

    def __init__(
        self,
        model: AlbefModel,
        queue_size: int = 65536,
        momentum: float = 0.995,
        itm_negatives: int = 1,
        official: bool = False,
        hard_negatives: bool = True,
        weights: Weights | None = None,
    ) -> None:
        positives = Positives(same_text=not official, all_ranks=not official)
        super().__init__(
            model, queue_size, momentum, itm_negatives, positives, official, not official, hard_negatives, weights
        )

    def forward(self, batch: PairBatch, alpha: float, hardness: float = 1.0) -> dict[str, Tensor]:
        """`alpha` in [0, 1] is the teacher's share of ITC's targets. `hardness` in [0, 1] is that of ITM's negatives: 0
        draws them nearly evenly, 1 at the model's temperature, as the paper."""
        return self.step(batch, alpha, hardness).losses

    def step(self, batch: PairBatch, alpha: float, hardness: float = 1.0) -> Step:
        """The same, with all that lies inside."""
        words = words_of(batch, self.model)
        self.begin_step()
        with torch.no_grad():
            taught = self.teach(batch, words)
        found = self.features(self.model, batch, words)
        aligned = self.align(batch, found, taught, alpha)
        image_n, text_n = self.draw_negatives(*aligned.among_own(self.softening(hardness)))
        matched = self.match(self.fuse(found, words, image_n, text_n), image_n, text_n)
        self.end_step(aligned)
        losses = {"itc": aligned.losses.mean(), "itm": matched.losses.sum() / per_rank(matched.count)}
        return Step(found, taught, aligned, matched, None, losses)

    def teach(self, batch: PairBatch, words: PackedText) -> Taught:
        """The teacher's vectors."""
        found = self.features(self.teacher.model, batch, words)
        return Taught(found.z_image, found.z_text)

    def fuse(self, found: Features, words: PackedText, image_n: Tensor, text_n: Tensor) -> Tensor:
        """`[CLS]` of true pairs and negatives [B + 2 B n, 1, D]."""
        fusion = self.model.fusion_encoder
        pairs, layout = with_negatives(fusion.begin(found.text, words), words, image_n, text_n)
        seen = seen_by(fusion.keys_values(found.image), image_n)
        return fusion(pairs, layout, seen, cls_only=True, begun=True)
