"""Fine-tuning for retrieval, and for grounding: align and match, without masked words (paper §4.1; spec §3.1)."""

# B own pairs, n negatives

from __future__ import annotations

import torch
from torch import Tensor, nn

from albef.models.albef import AlbefModel
from albef.objectives.align import Batch, Positives, align, draw_both, encode, match, seen_by, with_negatives, words_of
from albef.objectives.momentum import FeatureQueue, MomentumTeacher


class RetrievalObjective(nn.Module):
    """ITC + ITM: `(batch, alpha) -> {"itc": .., "itm": ..}`; an image may have several texts in batch and queue.

    A batch holds what pre-training's does. The target of ITC is spread evenly over all texts of the image; pairs of
    one image are never each other's ITM negatives. `official=True` restores the original: texts that read the same
    don't count as the same, only the own rank's batch and the queue are compared, the temperature isn't clamped, and
    the teacher keeps its dropout.
    """

    def __init__(
        self,
        model: AlbefModel,
        queue_size: int = 65536,
        momentum: float = 0.995,
        itm_negatives: int = 1,
        official: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = MomentumTeacher(model, momentum, dropout=official)
        self.queue = FeatureQueue(queue_size, model.config.embed_dim)
        self.itm_negatives, self.official = itm_negatives, official
        self.positives = Positives(same_text=not official, all_ranks=not official)

    def forward(self, batch: Batch, alpha: float) -> dict[str, Tensor]:
        """`alpha` in [0, 1] is the teacher's share of ITC's targets."""
        words = words_of(batch, self.model)
        with torch.no_grad():
            if not self.official:
                self.model.temp.clamp_(0.001, 0.5)
            self.teacher.update(self.model)
            _, _, *z_t = encode(self.teacher.model, batch, words)
        image, text, *z = encode(self.model, batch, words)
        aligned = align(batch, (z[0], z[1]), (z_t[0], z_t[1]), self.queue, self.model.temp, alpha, self.positives)
        fusion = self.model.fusion_encoder
        image_n, text_n = self.draw_negatives(aligned.logits_i2t, aligned.logits_t2i, aligned.same)
        pairs, layout = with_negatives(fusion.begin(text, words), words, image_n, text_n)
        seen = seen_by(fusion.keys_values(image), image_n)
        fused = fusion(pairs, layout, seen, cls_only=True, begun=True)
        return {"itc": aligned.itc, "itm": match(self.model, fused, image_n, text_n)}

    def draw_negatives(self, logits_i2t: Tensor, logits_t2i: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """Images for each text, then texts for each image: [B, n] each, -1 where there is none."""
        return draw_both(logits_i2t, logits_t2i, same, self.itm_negatives)
