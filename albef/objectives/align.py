"""Align and match: what pre-training and retrieval fine-tuning share (paper §3.2; spec §2.1, §3.1)."""

# B own pairs, G pairs of all ranks, Q queue, C = G + Q candidates, n negatives, N words of all texts, E embed_dim

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from albef import distributed
from albef.models.albef import AlbefModel
from albef.models.backbone import Backbone
from albef.models.layout import PackedText
from albef.models.seen import KeysValues
from albef.objectives.losses import (
    contrastive_targets,
    draw_negatives,
    matching_loss,
    matching_weights,
    soft_cross_entropy,
)
from albef.objectives.momentum import FeatureQueue

Batch = dict[str, Any]


class Aligned(NamedTuple):
    """The ITC loss, and the logits and positives among the own pairs, [B, B] each, from which negatives are drawn."""

    itc: Tensor
    logits_i2t: Tensor
    logits_t2i: Tensor
    same: Tensor


class Positives(NamedTuple):
    """What counts as a pair in ITC besides a pair itself, and whom it is compared with besides the queue."""

    same_image: bool = True
    same_text: bool = True
    all_ranks: bool = True
    """The batches of all ranks; the original compares with the own rank's only."""


def words_of(batch: Batch, model: Backbone) -> PackedText:
    """How the texts of a batch lie: as `words` says, or else from its mask."""
    return batch.get("words") or PackedText.of(batch["attention_mask"], model.device)


def encode(
    model: AlbefModel, batch: Batch, words: PackedText, masked_ids: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image tokens [B, S, Dv], packed text states [N, D], and the unit vectors of both [B, E].

    The states of the same texts with masked words, `masked_ids` [B, L], follow in one pass: [2 N, D].
    """
    image, ids = model.encode_image(batch["pixel_values"]), batch["input_ids"]
    if masked_ids is None:
        text = model.encode_text(ids, words)
    else:
        text = model.encode_text(torch.cat([ids, masked_ids]), PackedText.join(words, words))
    return image, text, model.project_image(image), model.project_text(words.first(text))


def align(
    batch: Batch,
    z: tuple[Tensor, Tensor],
    z_t: tuple[Tensor, Tensor],
    queue: FeatureQueue,
    temp: Tensor,
    alpha: float,
    positives: Positives,
) -> Aligned:
    """ITC of the student's image and text vectors `z` against the teacher's `z_t` and the queue; the queue moves on."""
    with torch.autocast(temp.device.type, enabled=False):  # similarities / temperature need all of float32
        own = (*z_t, batch["image_id"], batch["text_id"])
        everyone = tuple(distributed.gather(x) for x in own)
        first = distributed.rank() * len(z[0]) if positives.all_ranks else 0
        image_c, text_c, image_id_c, text_id_c = (
            torch.cat([fresh, queued])
            for fresh, queued in zip(everyone if positives.all_ranks else own, queue.contents(), strict=True)
        )  # [C, E], [C, E], [C], [C]
        with torch.no_grad():
            rows = torch.arange(len(z[0]), device=temp.device)
            same = rows[:, None] + first == torch.arange(len(image_c), device=temp.device)
            if positives.same_image:
                same |= batch["image_id"][:, None] == image_id_c
            if positives.same_text:
                same |= batch["text_id"][:, None] == text_id_c
            targets_i2t = contrastive_targets(same, z_t[0] @ text_c.T / temp, alpha)
            targets_t2i = contrastive_targets(same, z_t[1] @ image_c.T / temp, alpha)
        logits_i2t, logits_t2i = z[0] @ text_c.T / temp, z[1] @ image_c.T / temp
        loss = (soft_cross_entropy(logits_i2t, targets_i2t) + soft_cross_entropy(logits_t2i, targets_t2i)) / 2
        queue.push(*everyone)
        mine = slice(first, first + len(z[0]))
        return Aligned(loss, logits_i2t[:, mine].detach(), logits_t2i[:, mine].detach(), same[:, mine])


def with_negatives(text: Tensor, words: PackedText, image_n: Tensor, text_n: Tensor) -> tuple[Tensor, PackedText]:
    """What matching fuses, given packed states [N, D]: each text for its own image, then for each image its
    negative texts [B, n], then each text again for its negative images [B, n]."""
    chosen, copies = text_n.T.flatten(), image_n.shape[1]
    states = torch.cat([text, words.spread(text)[chosen].flatten(0, 1), *[text] * copies])
    return states, PackedText.join(words, PackedText.whole(words.readable[chosen]), *[words] * copies)


def seen_by(keys_values: KeysValues, image_n: Tensor) -> tuple[KeysValues, KeysValues]:
    """What the texts of `with_negatives` see: the own images in turns, and at last the negative ones."""
    return keys_values, keys_values[image_n.T.flatten()]


def match(model: AlbefModel, fused: Tensor, image_n: Tensor, text_n: Tensor) -> Tensor:
    """ITM of the fused `[CLS]` [B + 2 B n, 1, D] of `with_negatives`; -1 stands for a negative that there wasn't."""
    weights = matching_weights(len(image_n), torch.cat([text_n.T.flatten(), image_n.T.flatten()]))
    return matching_loss(model.match(fused).float(), len(image_n), weights, per_rank(weights.sum()))


def draw_both(logits_i2t: Tensor, logits_t2i: Tensor, same: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Negative images of each text, then negative texts of each image: [B, count] each, -1 where there is none."""
    return draw_negatives(logits_t2i, same, count), draw_negatives(logits_i2t, same, count)


def per_rank(count: Tensor) -> Tensor:
    """Mean of a count over the ranks: dividing by it makes DDP's mean of the losses the mean over the global batch."""
    return distributed.total(count) / distributed.world_size()
