"""Models that choose among classes: for one image and a text (visual entailment), and for two images (NLVR2)."""

# B examples, L words, S image tokens, D text_width, C classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from albef.models.backbone import Backbone, initialise
from albef.models.bert import FusionEncoder, PairEncoder
from albef.models.config import AlbefConfig
from albef.models.layout import Layout
from albef.models.seen import KeysValues
from albef.models.tree import tree


@tree
@dataclass(frozen=True)
class ClassifierOutput:
    """What a model says of each example."""

    logits: Tensor  # [B, C], in the order of the model's labels


class AlbefForClassification(Backbone):
    """A text about an image belongs to one of `labels` (paper §4.1, visual entailment)."""

    def __init__(self, config: AlbefConfig, labels: Sequence[str] = ("contradiction", "neutral", "entailment")) -> None:
        super().__init__(config)
        self.labels = tuple(labels)
        self.fusion_encoder = FusionEncoder(config)
        self.cls_head = _head(config.text_width, len(self.labels))
        initialise(self)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> ClassifierOutput:
        """Pixels [B, 3, height, width] and words [B, L] -> logits [B, C], in the order of `labels`."""
        keys_values = self.fusion_encoder.keys_values(self.encode_image(pixel_values))
        text = self.encode_text(input_ids, attention_mask)
        fused = self.fusion_encoder(text, attention_mask, keys_values, cls_only=True)
        return ClassifierOutput(self.cls_head(fused[:, 0]))


class AlbefForPairs(Backbone):
    """A text about two images belongs to one of `labels` (paper §4.1, NLVR2)."""

    def __init__(self, config: AlbefConfig, labels: Sequence[str] = ("False", "True")) -> None:
        super().__init__(config)
        self.labels = tuple(labels)
        self.pair_encoder = PairEncoder(config)
        self.cls_head = _head(config.text_width, len(self.labels))
        initialise(self)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> ClassifierOutput:
        """Pixels of both images [B, 2, 3, height, width] and words [B, L] -> logits [B, C]."""
        tokens = self.encode_image(pixel_values.flatten(0, 1))
        keys_values = self.pair_encoder.keys_values(tokens)
        text = self.encode_text(input_ids, attention_mask)
        fused = self.pair_encoder(text, attention_mask, keys_values[::2], keys_values[1::2])
        return ClassifierOutput(self.cls_head(fused[:, 0]))


class AlbefForTextAssignment(Backbone):
    """The pre-training of `AlbefForPairs`: which of two images does the text describe, or neither? (paper §4.1)

    `vision_proj` is pre-training's and isn't learnt: it says which other images are likely to be confused.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        self.pair_encoder = PairEncoder(config)
        self.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
        self.ta_head = nn.Linear(config.text_width, 3)
        initialise(self)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> ClassifierOutput:
        """Pixels of two images a text [B, 2, 3, height, width] and words [B, L] -> logits [B, 3]: of the first image,
        of the second, of neither."""
        keys_values = self.pair_encoder.keys_values(self.encode_image(pixel_values.flatten(0, 1)))
        text = self.encode_text(input_ids, attention_mask)
        return ClassifierOutput(self.assign(text, attention_mask, keys_values[::2], keys_values[1::2]))

    def similarities(self, image_tokens: Tensor) -> Tensor:
        """Cosines of every image with every other: [B, S, Dv] -> [B, B]."""
        z_image = F.normalize(self.vision_proj(image_tokens[:, 0]).float(), dim=-1)
        return z_image @ z_image.T

    def assign(
        self, text_states: Tensor, attention_mask: Tensor | Layout, first: KeysValues, second: KeysValues
    ) -> Tensor:
        """Text states [B, L, D], or packed, keys and values of two images -> logits [B, 3]: first, second, none."""
        return self.ta_head(self.pair_encoder(text_states, attention_mask, first, second)[:, 0])


def _head(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
