"""The layout of several texts in one tensor: a row per text with padding, or all words in one row without.

Linear layers work on either; only attention needs a row per text.
"""

# P texts, L words of the longest, N words in all, D width

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from albef.models.tree import tree


@tree
@dataclass(frozen=True)
class Padded:
    """States [P, L, D], a row per text.

    `attention_mask` [P, L] says where a word may be read (1 or True), or [1, 1, L, S] where that depends on the reader;
    None lets everything be read.
    """

    attention_mask: Tensor | None = None

    @property
    def mask(self) -> Tensor | None:
        """True where a word may be read: [P, 1, 1 or L, L]."""
        mask = None if self.attention_mask is None else self.attention_mask.bool()
        return mask[:, None, None] if mask is not None and mask.ndim == 2 else mask

    @property
    def shape(self) -> torch.Size:
        """P and L."""
        return torch.Size() if self.attention_mask is None else self.attention_mask.shape

    def spread(self, x: Tensor) -> Tensor:
        """The states as rows with padding."""
        return x

    def collect(self, rows: Tensor) -> Tensor:
        """The inverse of `spread`."""
        return rows

    def first(self, x: Tensor) -> Tensor:
        """The first word of each text: [P, 1, D]."""
        return x[:, :1]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of the words of each text, without padding: [P, D]."""
        return x.mean(1) if self.attention_mask is None else _mean(x, self.attention_mask)


@tree
@dataclass(frozen=True)
class PackedText:
    """States [N, D] of the words alone, text after text, so that nothing is computed for padding.

    `readable` [P, L] is True where a word may be read. `places` [N] is the place of each word among all P * L places.
    `words` [P * L] is the number of the word at each place; at padding it is any number, which `readable` hides.
    """

    readable: Tensor
    places: Tensor
    words: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor, device: torch.device | None = None) -> PackedText:
        """The layout of texts with the mask [P, L] (1 = word), on `device`. Each text must begin with a word.

        With a mask on the host, N is known without waiting for the device.
        """
        places, words = attention_mask.flatten().nonzero().squeeze(1), attention_mask.flatten().cumsum(0) - 1
        return cls(*(x.to(device, non_blocking=True) for x in (attention_mask.bool(), places, words)))

    @classmethod
    def whole(cls, readable: Tensor) -> PackedText:
        """Texts in full length with their padding, N = P * L: for texts that were chosen on the device, whose number of
        words the host does not know."""
        places = torch.arange(readable.numel(), device=readable.device)
        return cls(readable.bool(), places, places)

    @classmethod
    def join(cls, *parts: PackedText) -> PackedText:
        """The texts of one layout after those of another."""
        places, words, rows, count = [], [], 0, 0
        for part in parts:
            places.append(part.places + rows)
            words.append(part.words + count)
            rows, count = rows + part.readable.numel(), count + part.places.shape[0]
        return cls(torch.cat([part.readable for part in parts]), torch.cat(places), torch.cat(words))

    @property
    def mask(self) -> Tensor:
        """True where a word may be read: [P, 1, 1, L]."""
        return self.readable[:, None, None]

    @property
    def shape(self) -> torch.Size:
        """P and L."""
        return self.readable.shape

    def pin_memory(self) -> PackedText:
        """The same layout in pinned memory, as a loader that pins its batches asks for."""
        return PackedText(*(x.pin_memory() for x in (self.readable, self.places, self.words)))

    def to(self, device: torch.device) -> PackedText:
        """The same layout on `device`, copied without waiting where memory is pinned."""
        return PackedText(*(x.to(device, non_blocking=True) for x in (self.readable, self.places, self.words)))

    def spread(self, x: Tensor) -> Tensor:
        """The states as rows with padding."""
        return _Spread.apply(x, self.words, self.places).unflatten(0, self.shape)

    def collect(self, rows: Tensor) -> Tensor:
        """The inverse of `spread`."""
        return _Collect.apply(rows.flatten(0, 1), self.places)

    def first(self, x: Tensor) -> Tensor:
        """The first word of each text: [P, 1, D]."""
        return x.index_select(0, self.words.view(self.shape)[:, 0])[:, None]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of the words of each text: [P, D]. States of other texts may follow in `x`, as for `first`."""
        return _mean(self.spread(x[: self.places.shape[0]]), self.readable)


def _mean(rows: Tensor, readable: Tensor) -> Tensor:
    """Of rows [P, L, D] where they are readable [P, L], summed in float32."""
    weights = readable.float()[:, :, None]  # [P, L, 1]
    return ((rows.float() * weights).sum(1) / weights.sum(1)).to(rows.dtype)


class _Spread(torch.autograd.Function):
    """Rows from packed states. Nothing reads the padding, so only the words have a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, words: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, words)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = rows.shape
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy_(0, places, gradient), None


Layout = Padded | PackedText


def as_layout(attention_mask: Tensor | Layout) -> Layout:
    """A mask [P, L] as the layout of states with padding; a layout as it is."""
    return attention_mask if isinstance(attention_mask, (Padded, PackedText)) else Padded(attention_mask)
