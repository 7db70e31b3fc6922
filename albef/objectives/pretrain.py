"""ALBEF's pre-training on one screen: align before fuse (paper §3.2, §3.3)."""

# B own pairs, G pairs of all ranks, Q queue, L words, S image tokens, E embed_dim

from __future__ import annotations

import torch
from torch import Tensor, nn

from albef import distributed
from albef.models import hub
from albef.models.albef import AlbefModel
from albef.models.convert import Checkpoint
from albef.objectives.losses import (
    contrastive_targets,
    draw_negatives,
    mask_words,
    masked_word_loss,
    matching_loss,
    matching_weights,
    soft_cross_entropy,
)
from albef.objectives.momentum import FeatureQueue, MomentumTeacher


class PretrainObjective(nn.Module):
    """ITC + ITM + MLM with momentum distillation: `(batch, alpha) -> {"itc": .., "itm": .., "mlm": ..}`.

    It owns the momentum teacher and the queues. A batch holds `pixel_values` [B, 3, H, W], `input_ids` and
    `attention_mask` [B, L], `image_id` and `text_id` [B] (integers >= 0, equal for the same picture or caption).

    Pairs that share picture or caption count as positives in ITC, over all ranks and the queue, and are never drawn
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
        self.itm_negatives, self.itc, self.official = itm_negatives, itc, official

    def forward(self, batch: dict[str, Tensor], alpha: float, fuse: bool = True) -> dict[str, Tensor]:
        """`alpha` in [0, 1] is the teacher's share of the targets. Without `fuse` only ITC is computed."""
        with torch.no_grad():
            self.model.temp.clamp_(0.001, 0.5)
            self.teacher.update(self.model)
        # Encode
        image, text = self._encode(self.model, batch)  # [B, S, Dv], [B, L, D]
        z_image, z_text = self.model.project_image(image), self.model.project_text(text)  # [B, E] each
        with torch.no_grad():
            image_t, text_t = self._encode(self.teacher.model, batch)
            z_image_t, z_text_t = self.teacher.model.project_image(image_t), self.teacher.model.project_text(text_t)
        # Align
        with torch.autocast(image.device.type, enabled=False):  # similarities / temperature need all of float32
            itc, logits_i2t, logits_t2i, same = self._align(batch, z_image, z_text, z_image_t, z_text_t, alpha)
        if not fuse:
            return {"itc": itc}
        # Fuse
        keys_values = self.model.fusion_encoder.keys_values(image)  # computed once, read three times
        itm = self._match(batch, text, keys_values, logits_i2t, logits_t2i, same)
        # Fill in
        mlm = self._fill_in(batch, keys_values, image_t, alpha)
        return {"itc": itc, "itm": itm, "mlm": mlm} if self.itc else {"itm": itm, "mlm": mlm}

    def _encode(self, model: AlbefModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        image = model.encode_image(batch["pixel_values"])
        return image, model.encode_text(batch["input_ids"], batch["attention_mask"])

    def _align(
        self,
        batch: dict[str, Tensor],
        z_image: Tensor,
        z_text: Tensor,
        z_image_t: Tensor,
        z_text_t: Tensor,
        alpha: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ITC against the batch and the queue; also the logits and the positives among the own pairs [B, B]."""
        everyone = [distributed.gather(x) for x in (z_image_t, z_text_t, batch["image_id"], batch["text_id"])]
        own = [z_image_t, z_text_t, batch["image_id"], batch["text_id"]]
        first = 0 if self.official else distributed.rank() * len(z_image)
        image_c, text_c, image_id_c, text_id_c = (
            torch.cat([fresh, queued])
            for fresh, queued in zip(own if self.official else everyone, self.queue.contents(), strict=True)
        )  # [C, E], [C, E], [C], [C] with C = G + Q
        with torch.no_grad():
            rows = torch.arange(len(z_image), device=z_image.device)
            same = rows[:, None] + first == torch.arange(len(image_c), device=z_image.device)
            if not self.official:
                same |= batch["image_id"][:, None] == image_id_c
                same |= batch["text_id"][:, None] == text_id_c
            temp = self.model.temp
            targets_i2t = contrastive_targets(same, z_image_t @ text_c.T / temp, alpha)
            targets_t2i = contrastive_targets(same, z_text_t @ image_c.T / temp, alpha)
        logits_i2t, logits_t2i = z_image @ text_c.T / self.model.temp, z_text @ image_c.T / self.model.temp
        loss = (soft_cross_entropy(logits_i2t, targets_i2t) + soft_cross_entropy(logits_t2i, targets_t2i)) / 2
        self.queue.push(*everyone)
        mine = slice(first, first + len(z_image))
        return loss, logits_i2t[:, mine].detach(), logits_t2i[:, mine].detach(), same[:, mine]

    def _match(
        self,
        batch: dict[str, Tensor],
        text: Tensor,
        keys_values: Tensor,
        logits_i2t: Tensor,
        logits_t2i: Tensor,
        same: Tensor,
    ) -> Tensor:
        """ITM: each true pair, each text with hard negative images, each image with hard negative texts."""
        image_n, text_n = self.draw_negatives(logits_i2t, logits_t2i, same)  # [B, n] each, -1 where there is none
        rows, count = torch.arange(len(text), device=text.device), image_n.shape[1]
        own = rows.repeat_interleave(count)
        texts = torch.cat([rows, own, text_n.flatten()])
        images = torch.cat([rows, image_n.flatten(), own])
        mask = batch["attention_mask"]
        fused = self.model.fuse(text[texts], mask[texts], keys_values[images], cls_only=True)
        weights = matching_weights(len(rows), torch.cat([image_n, text_n]).flatten())
        return matching_loss(self.model.match(fused).float(), len(rows), weights, per_rank(weights.sum()))

    def _fill_in(self, batch: dict[str, Tensor], keys_values: Tensor, image_t: Tensor, alpha: float) -> Tensor:
        """MLM: predict the masked words from the rest of the text and the picture."""
        input_ids, labels = self.mask_words(batch["input_ids"], batch["attention_mask"])
        mask, asked = batch["attention_mask"], labels >= 0
        fused = self.model.fuse(self.model.encode_text(input_ids, mask), mask, keys_values)
        with torch.no_grad():
            teacher = self.teacher.model
            fused_t = teacher.fuse(
                teacher.encode_text(input_ids, mask), mask, teacher.fusion_encoder.keys_values(image_t)
            )
            logits_t = teacher.fill_in(fused_t[asked]).float()  # [M, V]
            count = per_rank(asked.sum())
        logits = self.model.fill_in(fused[asked]).float()
        return masked_word_loss(logits, labels[asked], logits_t, alpha, count)

    def draw_negatives(self, logits_i2t: Tensor, logits_t2i: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """Images for each text, then texts for each image: [B, itm_negatives] each, -1 where there is none."""
        count = self.itm_negatives
        if not self.itc:  # features that nothing aligns say nothing of hardness
            logits_i2t, logits_t2i = torch.zeros_like(logits_i2t), torch.zeros_like(logits_t2i)
        return draw_negatives(logits_t2i, same, count), draw_negatives(logits_i2t, same, count)

    def mask_words(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Masked ids and labels [B, L]."""
        vocab_size = self.model.config.vocab_size
        return mask_words(input_ids, attention_mask, self.mlm_probability, self.mask_id, self.cls_id, vocab_size)


def per_rank(count: Tensor) -> Tensor:
    """Mean of a count over the ranks: dividing by it makes DDP's mean of the losses the mean over the global batch."""
    return distributed.total(count) / distributed.world_size()


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
