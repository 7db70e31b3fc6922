"""Align and match: what pre-training and retrieval fine-tuning share (paper §3.2; spec §2.1, §3.1)."""

# B own pairs, G pairs of all ranks, Q queue, C = G + Q candidates, n negatives, N words of all texts, E embed_dim

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from albef import distributed
from albef.batches import PairBatch
from albef.models.albef import AlbefModel
from albef.models.backbone import Backbone
from albef.models.layout import PackedText
from albef.models.seen import KeysValues
from albef.objectives.losses import (
    contrastive_targets,
    draw_negatives,
    matching_losses,
    matching_weights,
    mixture,
    soft_cross_entropies,
)
from albef.objectives.momentum import FeatureQueue, MomentumTeacher
from albef.objectives.weights import Weights


class Positives(NamedTuple):
    """What counts as a pair in ITC besides a pair itself, and whom it is compared with besides the queue."""

    same_image: bool = True
    same_text: bool = True
    all_ranks: bool = True
    """The batches of all ranks; the original compares with the own rank's only."""


@dataclass(frozen=True)
class Features:
    """What the encoders give for a batch. Where texts with masked words are encoded too, their states follow those of
    the texts in `text`: [2 N, D]."""

    image: Tensor  # [B, S, Dv]
    text: Tensor  # [N, D], packed
    z_image: Tensor  # [B, E], of length 1
    z_text: Tensor  # [B, E], of length 1


@dataclass(frozen=True)
class Taught:
    """What is kept of the teacher's pass. Its tokens and states are freed before the student needs memory."""

    z_image: Tensor  # [B, E], of length 1
    z_text: Tensor  # [B, E], of length 1
    word_logits: Tensor | None = None  # [M, V] of the masked words, where there are any


@dataclass(frozen=True)
class Aligned:
    """Similarities of the own pairs with all candidates, the queue last; what they should be; and the ITC losses."""

    logits_i2t: Tensor  # [B, C], similarities divided by the temperature
    logits_t2i: Tensor  # [B, C]
    targets_i2t: Tensor  # [B, C], the pseudo-targets: rows sum to 1
    targets_t2i: Tensor  # [B, C]
    same: Tensor  # [B, C], True where a candidate counts as a pair
    first: int
    """The own pairs are the candidates from this one on."""
    losses: Tensor  # [B], of each pair, the mean of both directions
    fresh: tuple[Tensor, ...]
    """What the queue takes at the end of the step: features [G, E] and ids [G] of images and texts of all ranks."""

    def among_own(self, factor: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of both directions times `factor`, without gradient, and positives, of the own pairs: [B, B] each."""
        own = slice(self.first, self.first + self.same.shape[0])
        return self.logits_i2t[:, own].detach() * factor, self.logits_t2i[:, own].detach() * factor, self.same[:, own]


@dataclass(frozen=True)
class Matched:
    """ITM of B true pairs, then of B * n negative texts, then of B * n negative images."""

    image_n: Tensor  # [B, n], the negative images of each text; -1 where there was none
    text_n: Tensor  # [B, n], the negative texts of each image
    logits: Tensor  # [B + 2 B n, 2]
    weights: Tensor  # [B + 2 B n], what each counts
    losses: Tensor  # [B + 2 B n], weighted

    @property
    def count(self) -> Tensor:
        """What the losses are to be divided by, on this rank."""
        return self.weights.sum()


class AlignObjective(nn.Module):
    """The phases of a step with ITC and ITM, for pre-training and retrieval. Owns the momentum teacher and the queues.

    `begin_step` updates the teacher and `end_step` the queue; the phases between them change no state.
    """

    def __init__(
        self,
        model: AlbefModel,
        queue_size: int,
        momentum: float,
        itm_negatives: int,
        positives: Positives,
        dropout: bool,
        clamp: bool = True,
        hard_negatives: bool = True,
        weights: Weights | None = None,
    ) -> None:
        """`dropout` keeps the teacher's dropout on, `clamp` keeps the temperature within 0.001 and 0.5."""
        super().__init__()
        self.model = model
        self.teacher = MomentumTeacher(model, momentum, dropout)
        self.queue = FeatureQueue(queue_size, model.config.embed_dim)
        self.itm_negatives, self.positives = itm_negatives, positives
        self.clamp, self.hard_negatives, self.weights = clamp, hard_negatives, weights or Weights()

    @torch.no_grad()
    def begin_step(self) -> None:
        """The temperature comes back into its range, and the teacher follows the student."""
        if self.clamp:
            self.model.temp.clamp_(0.001, 0.5)
        self.teacher.update(self.model)

    def features(
        self, model: AlbefModel, batch: PairBatch, words: PackedText, masked_ids: Tensor | None = None
    ) -> Features:
        """What `model`, the student or the teacher, gives for a batch. Masked texts follow the texts in one pass."""
        image, ids = model.encode_image(batch["pixel_values"]), batch["input_ids"]
        if masked_ids is None:
            text = model.encode_text(ids, words)
        else:
            text = model.encode_text(torch.cat([ids, masked_ids]), PackedText.join(words, words))
        return Features(image, text, model.project_image(image), model.project_text(text, words))

    def align(self, batch: PairBatch, found: Features, taught: Taught, alpha: float) -> Aligned:
        """ITC of the student's vectors against the teacher's and the queue's, which stays as it is. `alpha` is the
        teacher's share of the targets."""
        alpha, factor = mixture(alpha, self.weights.itc, self.weights.itc_mod)
        temp, positives = self.model.temp, self.positives
        with torch.autocast(temp.device.type, enabled=False):  # similarities / temperature need all of float32
            own = (taught.z_image, taught.z_text, batch["image_id"], batch["text_id"])
            everyone, count = _of_all_ranks(own), own[0].shape[0]
            first = distributed.rank() * count if positives.all_ranks else 0
            image_c, text_c, image_id_c, text_id_c = (
                torch.cat([fresh, queued])
                for fresh, queued in zip(everyone if positives.all_ranks else own, self.queue.contents(), strict=True)
            )  # [C, E], [C, E], [C], [C]
            with torch.no_grad():
                rows = torch.arange(count, device=temp.device)
                same = rows[:, None] + first == torch.arange(image_c.shape[0], device=temp.device)
                if positives.same_image:
                    same |= batch["image_id"][:, None] == image_id_c
                if positives.same_text:
                    same |= batch["text_id"][:, None] == text_id_c
                targets_i2t = contrastive_targets(same, taught.z_image @ text_c.T / temp, alpha)
                targets_t2i = contrastive_targets(same, taught.z_text @ image_c.T / temp, alpha)
            logits_i2t, logits_t2i = found.z_image @ text_c.T / temp, found.z_text @ image_c.T / temp
            losses = (soft_cross_entropies(logits_i2t, targets_i2t) + soft_cross_entropies(logits_t2i, targets_t2i)) / 2
            losses = losses if factor == 1 else losses * factor
            return Aligned(logits_i2t, logits_t2i, targets_i2t, targets_t2i, same, first, losses, everyone)

    def softening(self, hardness: float) -> Tensor:
        """What logits are multiplied by for similarities / temperature ** hardness: from similarities at 0, by which
        negatives are drawn nearly evenly, to exactly the model's logits at 1."""
        return self.model.temp.detach() ** (1 - hardness)

    def draw_negatives(self, logits_i2t: Tensor, logits_t2i: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """Images for each text, then texts for each image: [B, itm_negatives] each, -1 where there is none."""
        if not self.hard_negatives:
            logits_i2t, logits_t2i = torch.zeros_like(logits_i2t), torch.zeros_like(logits_t2i)
        images = draw_negatives(logits_t2i, same, self.itm_negatives)
        return images, draw_negatives(logits_i2t, same, self.itm_negatives)

    def match(self, fused: Tensor, image_n: Tensor, text_n: Tensor) -> Matched:
        """ITM of the fused `[CLS]` [B + 2 B n, 1, D] of `with_negatives`; -1 stands for a negative that isn't there."""
        weights = matching_weights(image_n.shape[0], torch.cat([text_n.T.flatten(), image_n.T.flatten()]))
        logits = self.model.match(fused).float()
        losses = matching_losses(logits, image_n.shape[0], weights * self.weights.itm)
        return Matched(image_n, text_n, logits, weights, losses)

    def end_step(self, aligned: Aligned) -> None:
        """The queue takes the teacher's features."""
        self.queue.push(*aligned.fresh)


def words_of(batch: PairBatch, model: Backbone) -> PackedText:
    """How the texts of a batch lie: as `words` says, or else from its mask."""
    return batch.get("words") or PackedText.of(batch["attention_mask"], model.device)


def _of_all_ranks(own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Features [B, E] of images and texts and ids [B] of both -> those of all ranks, gathered kind by kind."""
    if distributed.world_size() == 1:
        return own
    z_image, z_text, image_id, text_id = own
    features = distributed.gather(torch.cat([z_image, z_text], dim=1))  # [G, 2 E]
    ids = distributed.gather(torch.stack([image_id, text_id], dim=1))  # [G, 2]
    return *features.chunk(2, dim=1), ids[:, 0], ids[:, 1]


def with_negatives(text: Tensor, words: PackedText, image_n: Tensor, text_n: Tensor) -> tuple[Tensor, PackedText]:
    """The texts that ITM fuses, from packed states [N, D]: each text for its own image, then the negative texts of each
    image [B, n], then each text again for its negative images [B, n]."""
    chosen, copies = text_n.T.flatten(), image_n.shape[1]
    states = torch.cat([text, words.spread(text)[chosen].flatten(0, 1), *[text] * copies])
    return states, PackedText.join(words, PackedText.whole(words.readable[chosen]), *[words] * copies)


def seen_by(keys_values: KeysValues, image_n: Tensor) -> tuple[KeysValues, KeysValues]:
    """The images that the texts of `with_negatives` read: the own images in turns, then the negative ones."""
    return keys_values, keys_values[image_n.T.flatten()]


def per_rank(count: Tensor) -> Tensor:
    """Mean of a count over the ranks: dividing by it makes DDP's mean of the losses the mean over the global batch."""
    return distributed.total(count) / distributed.world_size()
