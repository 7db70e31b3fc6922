"""Scaled dot-product attention: by the fused kernel, or step by step where the probabilities are asked for."""

# B batch, L queries, S keys, H heads, d head width

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[B, L, parts * H * d] -> `parts` tensors [B, H, L, d]."""
    # split first and transposed then, so that the gradients are joined in one copy
    return tuple(part.transpose(1, 2) for part in x.unflatten(-1, (parts, heads, -1)).unbind(2))


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
            return attend(q.float(), k.float(), v.float(), mask, dropout, record).to(q.dtype)
    if record is None and not (dropout and q.is_cpu):  # with dropout the CPU has no fused kernel
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = scores.softmax(-1)
    if record is not None:
        if probabilities.requires_grad:
            probabilities.retain_grad()
        record.append(probabilities)
    return F.dropout(probabilities, dropout) @ v


class _GeluLinear(torch.autograd.Function):
    """`linear(gelu(x))` that keeps only x for the backward pass. gelu(x), as large as x, is computed again there, which
    is cheaper than to keep it. Second derivatives are not supported."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight.to(x.dtype), bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_weight = rows.T @ F.gelu(x).flatten(0, -2)
        of_gelu = gradient @ weight.to(gradient.dtype)
        of_x = torch.ops.aten.gelu_backward.grad_input(of_gelu, x, grad_input=of_gelu)
        return of_x, of_weight.to(weight.dtype), rows.sum(0).to(weight.dtype)


class GeluLinear(nn.Linear):
    """A linear layer behind a GELU, which is part of it so that no activation is kept twice."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(F.gelu(x))
        return _GeluLinear.apply(x, self.weight, self.bias)
