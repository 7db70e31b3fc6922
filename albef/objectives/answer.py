"""Learning to answer: the language-model loss of every answer, with a momentum teacher beside it (spec §3.2)."""

# B questions, A answers of all questions, Lq words of a question, L of an answer, M words of all answers, V vocabulary

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albef.batches import AnswerBatch
from albef.models.answering import AlbefForAnswering
from albef.models.layout import PackedText
from albef.objectives.momentum import MomentumTeacher


class AnswerObjective(nn.Module):
    """Weighted answers: `(batch, alpha) -> {"answer": ..}` (paper §4.1, VQA).

    A batch holds `pixel_values` [B, 3, H, W], the questions' `input_ids` and `attention_mask` [B, Lq], the answers'
    `answer_ids` and `answer_mask` [A, L] (`[CLS] words [SEP]`), `answer_of` [A] (the question of each) and `weights`
    [A]. It may also hold `asked`, what `words_asked` makes of the mask: made on the host, it spares the device the
    waiting. Without `distill` there is no teacher and `alpha` must be 0. `dropout` keeps the teacher's dropout on.
    """

    def __init__(
        self, model: AlbefForAnswering, momentum: float = 0.995, distill: bool = True, dropout: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = MomentumTeacher(model, momentum, dropout) if distill else None

    def forward(self, batch: AnswerBatch, alpha: float) -> dict[str, Tensor]:
        """`alpha` in [0, 1] is the teacher's share of the targets."""
        losses = self.answer_losses(batch, alpha)
        return {"answer": (batch["weights"] * losses).sum() / len(batch["input_ids"])}

    def answer_losses(self, batch: AnswerBatch, alpha: float) -> Tensor:
        """Loss of every answer [A]: the sum over its words, `[SEP]` included."""
        asked = batch.get("asked") or words_asked(batch["answer_mask"], self.model.device)
        log_probabilities = next_word_logits(self.model, batch, asked).log_softmax(-1)  # [M, V]
        wanted = batch["answer_ids"][:, 1:].flatten().index_select(0, asked.places)
        losses = F.nll_loss(log_probabilities, wanted, reduction="none")
        if self.teacher is not None:
            with torch.no_grad():
                self.teacher.update(self.model)
                targets = next_word_logits(self.teacher.model, batch, asked).softmax(-1)
            losses = (1 - alpha) * losses - alpha * (targets * log_probabilities).sum(-1)
        return asked.spread(losses).where(asked.readable, 0.0).sum(1)


def words_asked(answer_mask: Tensor, device: torch.device | None = None) -> PackedText:
    """Where a next word is asked for, among [A, L - 1]: after the first word of every answer, after the second, ...

    From a mask [A, L] on the host nobody waits for the device to know how many there are.
    """
    return PackedText.of(answer_mask[:, 1:], device)


def next_word_logits(model: AlbefForAnswering, batch: AnswerBatch, asked: PackedText) -> Tensor:
    """Logits [M, V] of the words that are `asked` for."""
    mask, answer_of = batch["attention_mask"], batch["answer_of"]
    keys_values = model.decoder.keys_values(model.read(batch["pixel_values"], batch["input_ids"], mask))
    states = model.decoder(batch["answer_ids"][:, :-1], keys_values[answer_of], mask[answer_of])
    return model.decoder.fill_in(asked.collect(states)).float()
