"""ALBEF's pre-training on one screen: align before fuse (paper §3.2, §3.3)."""

# B own pairs, Q queue, L words of the longest text, N of all, M masked, S image tokens, E embed_dim

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from albef.models import hub
from albef.models.albef import AlbefModel
from albef.models.convert import Checkpoint
from albef.models.layout import PackedText
from albef.objectives.align import (
    Batch,
    Positives,
    align,
    draw_both,
    encode,
    match,
    per_rank,
    seen_by,
    with_negatives,
    words_of,
)
from albef.objectives.losses import mask_words, masked_word_loss
from albef.objectives.momentum import FeatureQueue, MomentumTeacher


class Masked(NamedTuple):
    """Texts with masked words; where among all words these are, and what stood there."""

    input_ids: Tensor  # [B, L]
    places: Tensor  # [M]
    labels: Tensor  # [M]


class PretrainObjective(nn.Module):
    """ITC + ITM + MLM with momentum distillation: `(batch, alpha) -> {"itc": .., "itm": .., "mlm": ..}`.

    It owns the momentum teacher and the queues. A batch holds `pixel_values` [B, 3, H, W], `input_ids` and
    `attention_mask` [B, L], `image_id` and `text_id` [B] (integers >= 0, equal for the same image or caption).

    It may also hold `words`, how the texts lie, and what `mask` made of them: made on the host, they spare the device
    the waiting. Otherwise the step makes them.

    Pairs that share image or caption count as positives in ITC, over all ranks and the queue, and are never drawn
    as ITM negatives. `official=True` restores the original: only a pair itself is positive, only the own rank's batch
    and the queue are compared, the teacher keeps its dropout. `itc=False` leaves alignment out, to see what it is for:
    negatives are then drawn evenly.
    """

    def __init__(
        self,
        model: AlbefModel,
        queue_size: int = 65536,
        momentum: float = 0.995,
        mlm_probability: float = 0.15,
        itm_negatives: int = 1,
        mask_id: int = 103,
        cls_id: int = 101,
        itc: bool = True,
        official: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = MomentumTeacher(model, momentum, dropout=official)
        self.queue = FeatureQueue(queue_size, model.config.embed_dim)
        self.mlm_probability, self.mask_id, self.cls_id = mlm_probability, mask_id, cls_id
        self.itm_negatives, self.itc = itm_negatives, itc
        self.positives = Positives(same_image=not official, same_text=not official, all_ranks=not official)

    def forward(self, batch: Batch, alpha: float, fuse: bool = True) -> dict[str, Tensor]:
        """`alpha` in [0, 1] is the teacher's share of the targets. Without `fuse` only ITC is computed."""
        words = words_of(batch, self.model)
        masked = (batch.get("masked") or self.mask(batch, self.model.device)) if fuse else None
        with torch.no_grad():
            self.model.temp.clamp_(0.001, 0.5)
            self.teacher.update(self.model)
            z_t, logits_t = self._taught(batch, words, masked)
        # Encode
        image, text, *z = encode(self.model, batch, words, masked.input_ids if masked else None)
        # Align
        aligned = align(batch, (z[0], z[1]), (z_t[0], z_t[1]), self.queue, self.model.temp, alpha, self.positives)
        if masked is None:
            return {"itc": aligned.itc}
        # Fuse
        image_n, text_n = self.draw_negatives(aligned.logits_i2t, aligned.logits_t2i, aligned.same)
        matched, filled = self._fuse(image, text, words, image_n, text_n)
        itm = match(self.model, matched, image_n, text_n)
        # Fill in
        count = per_rank(torch.full((), float(len(masked.labels)), device=image.device))
        logits = self.model.fill_in(filled.index_select(0, masked.places)).float()
        mlm = masked_word_loss(logits, masked.labels, logits_t, alpha, count)
        return {"itc": aligned.itc, "itm": itm, "mlm": mlm} if self.itc else {"itm": itm, "mlm": mlm}

    def _taught(self, batch: Batch, words: PackedText, masked: Masked | None) -> tuple[list[Tensor], Tensor]:
        """The teacher's unit vectors of images and texts [B, E], and its logits at the masked words [M, V]."""
        teacher: AlbefModel = self.teacher.model
        image, text, *z = encode(teacher, batch, words, masked.input_ids if masked else None)
        if masked is None:
            return z, text.new_empty(0)
        filled = teacher.fuse(text.chunk(2)[1], words, teacher.fusion_encoder.keys_values(image))
        return z, teacher.fill_in(filled.index_select(0, masked.places)).float()

    def _fuse(
        self, image: Tensor, text: Tensor, words: PackedText, image_n: Tensor, text_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`[CLS]` of true pairs and negatives [B + 2 B n, 1, D], and the masked texts [N, D], in one pass: a weight
        that is used once has no gradient that waits for a second one. Only the last layer is run for each apart."""
        fusion = self.model.fusion_encoder
        text, masked = fusion.begin(text, PackedText.join(words, words)).chunk(2)
        pairs, layout = with_negatives(text, words, image_n, text_n)
        seen = seen_by(fusion.keys_values(image), image_n)
        fused = fusion.middle(torch.cat([masked, pairs]), PackedText.join(words, layout), seen)
        masked, pairs = fused.split([len(masked), len(pairs)])
        return fusion.finish(pairs, layout, seen, cls_only=True), fusion.finish(masked, words, seen[0])

    def mask(self, batch: Batch, device: torch.device) -> Masked:
        """Masks words of the batch, on the `device`. From a batch on the host, M is known without waiting for it."""
        mask = batch["attention_mask"]
        masked_ids, labels = self.mask_words(batch["input_ids"], mask)
        labels = labels[mask.bool()]
        places = (labels >= 0).nonzero().squeeze(1)
        return Masked(*(x.to(device, non_blocking=True) for x in (masked_ids, places, labels[places])))

    def draw_negatives(self, logits_i2t: Tensor, logits_t2i: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """Images for each text, then texts for each image: [B, itm_negatives] each, -1 where there is none."""
        if not self.itc:  # features that nothing aligns say nothing of hardness
            logits_i2t, logits_t2i = torch.zeros_like(logits_i2t), torch.zeros_like(logits_t2i)
        return draw_both(logits_i2t, logits_t2i, same, self.itm_negatives)

    def mask_words(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Masked ids and labels [B, L]."""
        vocab_size = self.model.config.vocab_size
        return mask_words(input_ids, attention_mask, self.mlm_probability, self.mask_id, self.cls_id, vocab_size)


def load_objective(objective: PretrainObjective, checkpoint: Checkpoint) -> None:
    """Puts a published checkpoint's model, teacher and queues into `objective`, to go on or to compare.

    Without a teacher in it the teacher starts as a copy of the model; without queues they stay as they are. ValueError
    when sizes differ, e.g. `queue_size` or `model.config.image_size`.
    """
    hub.load_strictly(objective.model, checkpoint.model, "the checkpoint's model")
    objective.teacher.copy(objective.model)
    if checkpoint.teacher is not None:
        hub.load_strictly(objective.teacher.model, checkpoint.teacher, "the checkpoint's teacher")
    if checkpoint.queue is not None:
        hub.load_strictly(objective.queue, checkpoint.queue, "the checkpoint's queue")
