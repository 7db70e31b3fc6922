"""Scaled dot-product attention: the fused kernel, or the explicit path where the probabilities are asked for."""

# B batch, L queries, S keys, H heads, d head width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[B, L, parts * H * d] -> `parts` tensors [B, H, L, d]."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, L, d] -> [B, L, H * d]."""
    return x.transpose(1, 2).flatten(2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    record: list[Tensor] | None = None,
) -> Tensor:
    """Attention of q [B, H, L, d] over k, v [B, H, S, d]; `mask` is True where a key may be read.

    With `record`, the probabilities [B, H, L, S] before dropout are appended to it and keep their gradient.
    """
    if q.is_cpu and q.dtype == torch.bfloat16:
        # the CPU's bfloat16 kernel is several times slower than its float32 one, unlike its matrix product
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), mask, dropout, record)
    if record is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = scores.softmax(-1)
    if probabilities.requires_grad:
        probabilities.retain_grad()
    record.append(probabilities)
    return F.dropout(probabilities, dropout) @ v
