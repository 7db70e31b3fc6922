"""The model that answers questions about an image: fuse the question, decode the answer (paper §4.1, VQA)."""

# B questions, A answers, Lq words of a question, L of an answer, D text_width

from __future__ import annotations

from torch import Tensor

from albef.models.backbone import Backbone, initialise
from albef.models.bert import AnswerDecoder, FusionEncoder
from albef.models.config import AlbefConfig


class AlbefForAnswering(Backbone):
    """Encoders, fusion encoder, and a decoder that sees only the fused question, never the image itself."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        self.fusion_encoder = FusionEncoder(config)
        self.decoder = AnswerDecoder(config)
        initialise(self)

    def read(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pixels [B, 3, height, width] and question [B, Lq] -> question states [B, Lq, D]."""
        keys_values = self.fusion_encoder.keys_values(self.encode_image(pixel_values))
        return self.fusion_encoder(self.encode_text(input_ids, attention_mask), attention_mask, keys_values)
