"""The three parts of a BERT layer (self-attention, cross-attention, feed-forward), and the layers made of them."""

# B texts, L words, D width, H heads, d = D / H; states are [B, L, D], or of the words alone [N, D] in a packed layout

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albef.models.attention import GeluLinear, attend, merge_heads, split_heads
from albef.models.config import AlbefConfig
from albef.models.layout import Layout, Padded
from albef.models.seen import KeyValue, Seen, attend_to_all

Past = tuple[Tensor, Tensor]
"""Keys and values [B, H, L, d] of the words that were read before, in one layer."""


class StackedLinear(nn.Linear):
    """Several linear maps of one input, stacked row on row. With `parts`, only these are computed."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width, parts * width)

    def forward(self, x: Tensor, parts: slice | None = None) -> Tensor:
        """[..., D] -> [..., parts * D]."""
        if parts is None:
            return super().forward(x)
        weight, bias = (every.unflatten(0, (-1, self.in_features))[parts] for every in (self.weight, self.bias))
        return F.linear(x, weight.flatten(0, 1), bias.flatten())


class SelfAttention(nn.Module):
    """Words read words, with residual and norm."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.text_width, config.text_heads, config.dropout
        self.qkv = StackedLinear(width, 3)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, words: Layout, cls_only: bool = False) -> Tensor:
        """The new states; with `cls_only` those of the first word of each text alone, [B, 1, D]."""
        if cls_only:
            first = words.first(x)
            (q,) = split_heads(self.qkv(first, slice(1)), 1, self.heads)
            k, v = split_heads(words.spread(self.qkv(x, slice(1, 3))), 2, self.heads)
            return self._add(first, q, k, v, words.mask, Padded())
        q, k, v = split_heads(words.spread(self.qkv(x)), 3, self.heads)
        return self._add(x, q, k, v, words.mask, words)

    def _add(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, words: Layout) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        read = words.collect(merge_heads(attend(q, k, v, mask, dropout)))
        return self.norm(x + F.dropout(self.out(read), dropout))


class CausalSelfAttention(SelfAttention):
    """Words read the words before them."""

    def forward(self, x: Tensor, words: Layout, past: Past | None = None) -> tuple[Tensor, Past]:  # type: ignore[override]
        """The new states, and the keys and values of all words so far, which the next call takes as `past`."""
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        return self._add(x, q, k, v, words.mask, words), (k, v)


class CrossAttention(nn.Module):
    """Words read an image, or the words of an answer read a question; with residual and norm."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        width, self.dropout = config.text_width, config.dropout
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(
        self, x: Tensor, words: Layout, seen: Sequence[Seen], linear: KeyValue, record: list[Tensor] | None = None
    ) -> Tensor:
        """The states after reading `seen`. If it holds several, the last texts read the later ones, a row each, and the
        texts before read the first in turns. `linear` makes this layer's keys and values."""
        dropout, q = self.dropout if self.training else 0.0, self.query(x)
        if len(seen) == 1 and seen[0].rows == 1 and record is None:
            q = q.reshape(1, -1, q.shape[-1])  # all texts ask one image: one long row, without padding
            found = attend_to_all(q, seen, linear, dropout, record).view(x.shape)
        else:
            found = words.collect(attend_to_all(words.spread(q), seen, linear, dropout, record))
        return self.norm(x + F.dropout(self.out(found), dropout))


class FeedForward(nn.Module):
    """Two linears with GELU between them, residual and norm."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.fc1 = nn.Linear(config.text_width, config.text_intermediate)
        self.fc2 = GeluLinear(config.text_intermediate, config.text_width)
        self.norm = nn.LayerNorm(config.text_width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return self.norm(x + F.dropout(self.fc2(self.fc1(x)), dropout))


class TextLayer(nn.Module):
    """A layer that reads words alone."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, words: Layout) -> Tensor:
        return self.feed_forward(self.self_attention(x, words))


class FusionLayer(nn.Module):
    """A layer that reads words, then what is `seen`."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Tensor, words: Layout, seen: Sequence[Seen], linear: KeyValue, record: list[Tensor] | None = None
    ) -> Tensor:
        return self.read_seen(self.self_attention(x, words), words, seen, linear, record)

    def read_seen(
        self, x: Tensor, words: Layout, seen: Sequence[Seen], linear: KeyValue, record: list[Tensor] | None = None
    ) -> Tensor:
        """The two parts after self-attention."""
        return self.feed_forward(self.cross_attention(x, words, seen, linear, record))


class AnswerLayer(nn.Module):
    """A layer of the decoder: reads the words before, then the question."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.self_attention = CausalSelfAttention(config)
        self.cross_attention = CrossAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Tensor, words: Layout, seen: Sequence[Seen], linear: KeyValue, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        x, past = self.self_attention(x, words, past)
        return self.feed_forward(self.cross_attention(x, words, seen, linear)), past
