"""The objective of ALBEF's pre-training on one screen: align before fuse (paper §3.2, §3.3)."""

# B own pairs, Q queue, L words of the longest text, N of all, M masked, S image tokens, V vocabulary

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from albef.batches import PairBatch
from albef.models.albef import AlbefModel
from albef.models.layout import PackedText
from albef.objectives.align import (
    Aligned,
    AlignObjective,
    Features,
    Matched,
    Positives,
    Taught,
    Weights,
    per_rank,
    seen_by,
    with_negatives,
    words_of,
)
from albef.objectives.losses import mask_words, masked_word_losses, mixture


class Masked(NamedTuple):
    """Holds texts with masked words, the place of each masked word among all words, and the word that stood there."""

    input_ids: Tensor  # [B, L]
    places: Tensor  # [M], in 0 .. N - 1
    labels: Tensor  # [M]


@dataclass(frozen=True)
class Filled:
    """Holds MLM of M masked words, whose pseudo-target is the softmax of the teacher's `word_logits`."""

    logits: Tensor  # [M, V]
    losses: Tensor  # [M]


@dataclass(frozen=True)
class Step:
    """Holds all that a step computes; `matched` and `filled` are None where it only aligns."""

    features: Features
    taught: Taught
    aligned: Aligned
    matched: Matched | None
    filled: Filled | None
    losses: dict[str, Tensor]
    """The losses by name; their sum is what the model learns from."""


class PretrainObjective(AlignObjective):
    """Computes ITC, ITM and MLM with momentum distillation: `(batch, alpha) -> {"itc": .., "itm": .., "mlm": ..}`.

    It owns the momentum teacher and the queues. A batch holds `pixel_values` [B, 3, H, W], `input_ids` and
    `attention_mask` [B, L], `image_id` and `text_id` [B] (integers >= 0, equal for the same image or caption).

    It may also hold `words`, which says how the texts lie, and `masked`, which `mask` makes of the texts. Made on the
    host, they spare the device from waiting; otherwise the step makes them.

    Pairs that share an image or a caption count as positives in ITC, over all ranks and the queue, and are never drawn
    as ITM negatives. `official=True` restores the original: only a pair itself is positive, it is compared with the own
    rank's batch and the queue only, and the teacher keeps its dropout.

    Four options serve ablations. `itc=False` leaves alignment out, and negatives are then drawn evenly;
    `hard_negatives=False` draws them evenly anyway. `distill` names those of the losses `itc` and `mlm` in which the
    teacher has a share, and `weights` says how much each loss counts.
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
        hard_negatives: bool = True,
        distill: Collection[str] = ("itc", "mlm"),
        weights: Weights | None = None,
    ) -> None:
        positives = Positives(same_image=not official, same_text=not official, all_ranks=not official)
        hard = hard_negatives and itc  # features that nothing aligns say nothing of hardness
        super().__init__(
            model, queue_size, momentum, itm_negatives, positives, official, hard_negatives=hard, weights=weights
        )
        self.mlm_probability, self.mask_id, self.cls_id = mlm_probability, mask_id, cls_id
        self.itc, self.distill = itc, distill

    def forward(self, batch: PairBatch, alpha: float, fuse: bool = True, hardness: float = 1.0) -> dict[str, Tensor]:
        """Returns the losses. `alpha` in [0, 1] is the teacher's share of the targets. Without `fuse` only ITC is
        computed. `hardness` in [0, 1] is that of ITM's negatives: 0 draws them nearly evenly, and 1 draws them at the
        model's temperature, as the paper does."""
        return self.step(batch, alpha, fuse, hardness).losses

    def step(self, batch: PairBatch, alpha: float, fuse: bool = True, hardness: float = 1.0) -> Step:
        """Returns the losses as `forward` does, with all that the step computed for them."""
        words = words_of(batch, self.model)
        masked = (batch.get("masked") or self.mask(batch, self.model.device)) if fuse else None
        self.begin_step()
        # Encode
        with torch.no_grad():
            taught = self.teach(batch, words, masked)
        found = self.features(self.model, batch, words, masked.input_ids if masked else None)
        # Align
        aligned = self.align(batch, found, taught, alpha if "itc" in self.distill else 0.0)
        matched = filled = None
        losses = {"itc": aligned.losses.mean()} if self.itc or masked is None else {}
        if masked is not None:
            # Fuse
            image_n, text_n = self.draw_negatives(*aligned.among_own(self.softening(hardness)))
            pairs, texts = self.fuse(found, words, image_n, text_n)
            matched = self.match(pairs, image_n, text_n)
            # Fill in
            filled = self.fill_in(texts, masked, taught, alpha if "mlm" in self.distill else 0.0)
            words_asked = torch.full((), float(masked.labels.shape[0]), device=matched.count.device)
            pairs_asked, words_asked = per_rank(torch.stack([matched.count, words_asked]))
            losses |= {"itm": matched.losses.sum() / pairs_asked, "mlm": filled.losses.sum() / words_asked.clamp(min=1)}
        self.end_step(aligned)
        return Step(found, taught, aligned, matched, filled, losses)

    def teach(self, batch: PairBatch, words: PackedText, masked: Masked | None) -> Taught:
        """Returns the teacher's vectors, and its logits at the masked words if there are any."""
        teacher: AlbefModel = self.teacher.model
        found = self.features(teacher, batch, words, masked.input_ids if masked else None)
        if masked is None:
            return Taught(found.z_image, found.z_text)
        fused = teacher.fuse(found.text.chunk(2)[1], words, teacher.fusion_encoder.keys_values(found.image))
        logits = teacher.fill_in(fused.index_select(0, masked.places)).float()
        return Taught(found.z_image, found.z_text, logits)

    def fuse(self, found: Features, words: PackedText, image_n: Tensor, text_n: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `[CLS]` of true pairs and negatives [B + 2 B n, 1, D], and the masked texts [N, D].

        Both go through the layers together, since a weight that is used once has no gradient that waits for a second
        one. Only the last layer is run for each apart."""
        fusion = self.model.fusion_encoder
        text, masked = fusion.begin(found.text, PackedText.join(words, words)).chunk(2)
        pairs, layout = with_negatives(text, words, image_n, text_n)
        seen = seen_by(fusion.keys_values(found.image), image_n)
        fused = fusion.middle(torch.cat([masked, pairs]), PackedText.join(words, layout), seen)
        masked, pairs = fused.split([masked.shape[0], pairs.shape[0]])
        return fusion.finish(pairs, layout, seen, cls_only=True), fusion.finish(masked, words, seen[0])

    def fill_in(self, fused: Tensor, masked: Masked, taught: Taught, alpha: float) -> Filled:
        """Computes MLM of the fused masked texts [N, D]; `alpha` is the teacher's share of the targets."""
        alpha, factor = mixture(alpha, self.weights.mlm, self.weights.mlm_mod)
        logits = self.model.fill_in(fused.index_select(0, masked.places)).float()
        assert taught.word_logits is not None, "the teacher was not asked for masked words"
        losses = masked_word_losses(logits, masked.labels, taught.word_logits, alpha)
        return Filled(logits, losses if factor == 1 else losses * factor)

    def mask(self, batch: PairBatch, device: torch.device) -> Masked:
        """Masks words of the batch and returns them on `device`. For a batch on the host, M is known without waiting
        for the device."""
        mask = batch["attention_mask"]
        masked_ids, labels = self.mask_words(batch["input_ids"], mask)
        labels = labels[mask.bool()]
        places = (labels >= 0).nonzero().squeeze(1)
        return Masked(*(x.to(device, non_blocking=True) for x in (masked_ids, places, labels[places])))

    def mask_words(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns masked ids and labels [B, L]; a label is the word that was chosen, or -100 where none was."""
        vocab_size = self.model.config.vocab_size
        return mask_words(input_ids, attention_mask, self.mlm_probability, self.mask_id, self.cls_id, vocab_size)
