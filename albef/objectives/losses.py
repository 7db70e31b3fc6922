"""The losses of the paper as pure functions of tensors (§3.2, §3.3)."""

# B own rows, C candidates (global batch + queue), M masked words, V vocabulary

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum(targets * log softmax(logits)) of each row, [rows]; both [rows, classes]."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Their mean."""
    return soft_cross_entropies(logits, targets).mean()


def mixture(alpha: float, hard: float, soft: float) -> tuple[float, float]:
    """The teacher's share and the factor that make `(1 - alpha) * hard + alpha * soft` of two weights."""
    if hard == soft:
        return alpha, hard
    factor = (1 - alpha) * hard + alpha * soft
    return (alpha * soft / factor if factor else 0.0), factor


def contrastive_targets(positives: Tensor, teacher_logits: Tensor, alpha: float) -> Tensor:
    """What each row should find, [B, C]: (1 - alpha) * uniform over its positives + alpha * the teacher's softmax.

    `positives` is boolean; with one positive a row this is the paper's one-hot target (eq. 6), with several the
    original's retrieval target.
    """
    hard = positives / positives.sum(-1, keepdim=True)
    return alpha * teacher_logits.softmax(-1) + (1 - alpha) * hard


def draw_negatives(logits: Tensor, positives: Tensor, count: int = 1) -> Tensor:
    """Hard negatives of each row: [B, count] column indices, drawn by the softmax of `logits` [B, B] (paper §3.2, ITM).

    Pairs in `positives` are never drawn. A row in which nothing else is left gives -1. The diagonal is taken out
    before the softmax, so a saturated row still has something to draw from (the original raises there, #18). A row
    that isn't finite draws evenly: the loss, which isn't finite either, is the place to notice it.
    """
    allowed = ~positives
    possible = allowed.any(-1, keepdim=True)
    weights = logits.float().masked_fill(~allowed, float("-inf")).softmax(-1)
    sound = weights.isfinite().all(-1, keepdim=True)  # not so where nothing is possible either
    weights = torch.where(sound, weights, (allowed | ~possible).float())
    drawn = torch.multinomial(weights, count, replacement=True)
    return drawn.masked_fill(~possible, -1)


def matching_weights(pairs: int, drawn: Tensor) -> Tensor:
    """What each row of ITM counts: [pairs + N], first the true pairs, then the drawn negatives [N].

    A true pair weighs 1, and so do the negatives of a pair in one direction together; with one negative each that is
    the paper's plain mean over 3 B rows. Where there was nothing to draw (-1) a row weighs 0.
    """
    negatives = (drawn >= 0).float() * 2 * pairs / max(len(drawn), 1)
    return torch.cat([torch.ones(pairs, device=drawn.device), negatives])


def matching_losses(logits: Tensor, pairs: int, weights: Tensor) -> Tensor:
    """Binary cross-entropy of ITM, weighted: [rows]; logits [rows, 2], of which the first `pairs` are true."""
    labels = (torch.arange(logits.shape[0], device=logits.device) < pairs).long()
    return F.cross_entropy(logits, labels, reduction="none") * weights


def mask_words(
    input_ids: Tensor, attention_mask: Tensor, probability: float, mask_id: int, cls_id: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """BERT's corruption: masked ids and labels, both [B, L]; labels are -100 where nothing is asked.

    Each word but `[CLS]` and padding is chosen with `probability`; of the chosen 80 % become `[MASK]`, 10 % a random
    id, 10 % stay (paper §3.2, MLM).
    """
    chances = torch.rand(input_ids.shape, device=input_ids.device)
    chosen = (chances < probability) & attention_mask.bool() & (input_ids != cls_id)
    labels = input_ids.masked_fill(~chosen, -100)
    # among the chosen, chances / probability is uniform again: one draw decides both
    masked = input_ids.masked_fill(chosen & (chances < 0.8 * probability), mask_id)
    words = torch.randint(vocab_size, input_ids.shape, device=input_ids.device)
    return torch.where(chosen & (chances >= 0.9 * probability), words, masked), labels


def masked_word_losses(logits: Tensor, labels: Tensor, teacher_logits: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * distillation of each masked word, [M] (paper eq. 7).

    logits, teacher_logits [M, V]; labels [M].
    """
    log_probabilities = F.log_softmax(logits, dim=-1)
    hard = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    soft = -(teacher_logits.softmax(-1) * log_probabilities).sum(-1)
    return (1 - alpha) * hard + alpha * soft
