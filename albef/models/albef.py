"""ALBEF's network: encode the image, encode the text, fuse."""

# B pairs, L words, S image tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albef.errors import AlbefValueError
from albef.models.backbone import Backbone, initialise
from albef.models.bert import FusionEncoder, MlmHead
from albef.models.config import AlbefConfig
from albef.models.layout import Layout, Padded, as_layout
from albef.models.seen import Seen
from albef.models.tree import tree


@tree
@dataclass(frozen=True)
class AlbefOutput:
    """What `AlbefModel` says of pairs of an image and a text."""

    image_tokens: Tensor  # [B, S, vision_width]
    text_states: Tensor  # [B, L, text_width], of the text alone
    image_vectors: Tensor  # [B, embed_dim], of length 1
    text_vectors: Tensor  # [B, embed_dim], of length 1
    fused_states: Tensor  # [B, L, text_width], of the text that has read the image
    match_logits: Tensor  # [B, 2]; class 1 says that text and image belong together


class AlbefModel(Backbone):
    """Image encoder, text encoder, fusion encoder and the heads of pre-training (paper §3.1, §3.2).

    It keeps no teacher, no queue and no tokenizer: those belong to the objective and the processor.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        self.fusion_encoder = FusionEncoder(config)
        self.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
        self.text_proj = nn.Linear(config.text_width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_width, 2)
        if config.mlm_head:
            self.mlm_head = MlmHead(config)
        self.temp = nn.Parameter(torch.tensor(0.07))
        initialise(self)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> AlbefOutput:
        """Normalised pixels [B, 3, height, width], the ids and mask [B, L] of a text for each image (1 = word)."""
        image, text = self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask)
        fused = self.fuse(text, attention_mask, self.fusion_encoder.keys_values(image))
        z_image, z_text = self.project_image(image), self.project_text(text, attention_mask)
        return AlbefOutput(image, text, z_image, z_text, fused, self.match(fused))

    def project_image(self, image_tokens: Tensor) -> Tensor:
        """Image tokens -> unit vectors [B, embed_dim], to be compared with those of texts."""
        return F.normalize(self.vision_proj(image_tokens[:, 0]).float(), dim=-1)

    def project_text(self, text_states: Tensor, attention_mask: Tensor | Layout | None = None) -> Tensor:
        """Text states [B, L, text_width], or packed [N, text_width] with their layout -> unit vectors [B, embed_dim].

        The mask may be left out for padded states of a model that takes `[CLS]`.
        """
        return F.normalize(self.text_proj(self.pool_text(text_states, attention_mask)).float(), dim=-1)

    def pool_text(self, text_states: Tensor, attention_mask: Tensor | Layout | None = None) -> Tensor:
        """Text states, padded or packed -> what stands for each text as a whole by `text_pooling`: [B, text_width]."""
        if self.config.text_pooling == "cls":
            return (Padded() if attention_mask is None else as_layout(attention_mask)).first(text_states)[:, 0]
        if attention_mask is None:
            raise AlbefValueError("text_pooling `mean` needs attention_mask, which tells words from padding; give it")
        return as_layout(attention_mask).mean(text_states)

    def fuse(
        self,
        text_states: Tensor,
        attention_mask: Tensor | Layout,
        keys_values: Seen | Sequence[Seen],
        **options,
    ) -> Tensor:
        """Text states read the image, `fusion_encoder.keys_values` or `seen_once` -> fused states [B, L, text_width].

        `options` are those of the fusion encoder's forward pass.
        """
        return self.fusion_encoder(text_states, attention_mask, keys_values, **options)

    def match(self, fused_states: Tensor) -> Tensor:
        """Fused states -> logits [B, 2]; class 1 says that text and image belong together."""
        return self.itm_head(fused_states[:, 0])

    def fill_in(self, fused_states: Tensor) -> Tensor:
        """Fused states [..., text_width] -> vocabulary logits [..., vocab_size]."""
        return self.mlm_head(fused_states, self.text_encoder.word_embeddings)
