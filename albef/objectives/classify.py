"""Objectives that learn to choose a class, by labels and a momentum teacher (paper §3.3, §4.1; spec §3.3, §3.4)."""

# B examples, C classes, N image pairs

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albef.batches import LabelBatch, PairBatch
from albef.errors import AlbefValueError
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.objectives.align import words_of
from albef.objectives.losses import soft_cross_entropy
from albef.objectives.momentum import MomentumTeacher


class ClassifyObjective(nn.Module):
    """Computes cross-entropy with labels and with the teacher's classes: `(batch, alpha) -> {"classify": ..}`.

    A batch holds the model's inputs and `labels` [B]. Without `distill` there is no teacher, and `alpha` must be 0.
    `dropout` keeps the teacher's dropout on, as the original does.
    """

    def __init__(
        self,
        model: AlbefForClassification | AlbefForPairs,
        momentum: float = 0.995,
        distill: bool = True,
        dropout: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = MomentumTeacher(model, momentum, dropout) if distill else None

    def forward(self, batch: LabelBatch, alpha: float) -> dict[str, Tensor]:
        """Returns the loss; `alpha` in [0, 1] is the teacher's share of the targets."""
        inputs, labels = (batch["pixel_values"], batch["input_ids"], batch["attention_mask"]), batch["labels"]
        logits = self.model(*inputs).logits.float()
        if self.teacher is None:
            return {"classify": F.cross_entropy(logits, labels)}
        with torch.no_grad():
            self.teacher.update(self.model)
            targets = self.teacher.model(*inputs).logits.float().softmax(-1)
        hard, soft = F.cross_entropy(logits, labels), soft_cross_entropy(logits, targets)
        return {"classify": (1 - alpha) * hard + alpha * soft}


class AssignObjective(nn.Module):
    """Computes text assignment, which prepares for NLVR2: `(batch) -> {"assign": ..}` (paper §4.1; spec §3.4).

    Each text is given its own image and another one, in either order, or two others. The model says which of the two it
    describes, or that it describes neither. A batch holds the images and texts of pre-training, at least three.
    `official=True` takes another record of the same image for another image, as the original does.
    """

    TEMP = 0.07

    def __init__(self, model: AlbefForTextAssignment, official: bool = False) -> None:
        super().__init__()
        self.model, self.official = model, official
        model.vision_proj.requires_grad_(False)  # it is only used to find similar images

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Returns the loss. Raises ValueError for a batch of fewer than three images."""
        model = self.model
        words = words_of(batch, model)
        tokens = model.encode_image(batch["pixel_values"])
        pairs, labels = self.draw_pairs(tokens.detach(), None if self.official else batch["image_id"])
        keys_values = model.pair_encoder.keys_values(tokens)
        text = model.encode_text(batch["input_ids"], words)
        logits = model.assign(text, words, keys_values[pairs[:, 0]], keys_values[pairs[:, 1]])
        return {"assign": F.cross_entropy(logits.float(), labels)}

    @torch.no_grad()
    def draw_pairs(self, tokens: Tensor, image_id: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draws the two images of each text [B, 2] and returns them with the class [B]: 0 if the first is the text's
        own, 1 if the second is, 2 if neither is.

        The classes are equally likely. Other images are drawn by how similar they are to the text's own; records of the
        same image (equal `image_id`) do not count as other images.
        """
        weights = self.weights(tokens, image_id)
        own = torch.arange(len(weights), device=weights.device)
        # [B, 2], different from each other; what is not a number draws anything, since the loop complains of the loss
        others = torch.multinomial(weights.nan_to_num(nan=1.0), 2, replacement=False)
        labels = torch.randint(3, (len(weights),), device=weights.device)
        right = torch.stack([own, others[:, 0]], dim=1)
        pairs = torch.where((labels == 1)[:, None], right.flip(1), right)
        return torch.where((labels == 2)[:, None], others, pairs), labels

    def weights(self, tokens: Tensor, image_id: Tensor | None = None) -> Tensor:
        """Returns the weights [B, B] by which another image is drawn for each image; 0 for the same image.

        Where fewer than two others are left, they are drawn evenly. Raises ValueError for fewer than three images.
        """
        same = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
        if len(tokens) < 3:
            raise AlbefValueError(
                f"text assignment needs at least 3 images in a batch, got {len(tokens)}; raise batch_size"
            )
        if image_id is not None:
            repeated = image_id[:, None] == image_id
            same |= repeated & ((~repeated).sum(1, keepdim=True) >= 2)
        weights = (self.model.similarities(tokens) / self.TEMP).softmax(-1).masked_fill(same, 0.0)
        return torch.where((weights > 0).sum(1, keepdim=True) >= 2, weights, (~same).float())
