"""The model that answers questions about an image: fuse the question, decode the answer (paper §4.1, VQA)."""

# B questions, A answers, Lq words of a question, L of an answer, D text_width

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from albef.models.backbone import Backbone, initialise
from albef.models.bert import AnswerDecoder, FusionEncoder
from albef.models.config import AlbefConfig
from albef.models.tree import tree


@tree
@dataclass(frozen=True)
class AnsweringOutput:
    """What `AlbefForAnswering` says of questions and their answers; V words of the vocabulary."""

    question_states: Tensor  # [B, Lq, D]
    logits: Tensor  # [A, L, V], of the word after each


class AlbefForAnswering(Backbone):
    """Encoders, fusion encoder, and a decoder that sees only the fused question, never the image itself."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__(config)
        self.fusion_encoder = FusionEncoder(config)
        self.decoder = AnswerDecoder(config)
        initialise(self)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        answer_ids: Tensor,
        answer_of: Tensor,
    ) -> AnsweringOutput:
        """Pixels [B, 3, height, width], questions and their mask [B, Lq], answers [A, L], the question of each [A]."""
        states = self.read(pixel_values, input_ids, attention_mask)
        keys_values = self.decoder.keys_values(states)[answer_of]
        written = self.decoder(answer_ids, keys_values, attention_mask[answer_of])
        return AnsweringOutput(states, self.decoder.fill_in(written))

    def read(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pixels [B, 3, height, width] and question [B, Lq] -> question states [B, Lq, D]."""
        keys_values = self.fusion_encoder.keys_values(self.encode_image(pixel_values))
        return self.fusion_encoder(self.encode_text(input_ids, attention_mask), attention_mask, keys_values)
