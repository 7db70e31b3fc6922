"""How the words of several texts lie in a tensor: in rows with padding, or one after the other without.

Linear layers don't mind; only attention needs rows.
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
        """To rows with padding."""
        return x

    def collect(self, rows: Tensor) -> Tensor:
        """Back from rows with padding."""
        return rows

    def first(self, x: Tensor) -> Tensor:
        """The first word of each text: [P, 1, D]."""
        return x[:, :1]


@tree
@dataclass(frozen=True)
class PackedText:
    """States [N, D] of the words alone, text after text: nothing is computed for padding.

    `readable` [P, L] is True where a word may be read. `places` [N] says where each word stands among the P * L places;
    `words` [P * L] is the number of the word at each place, or at padding any other, which `readable` hides.
    """

    readable: Tensor
    places: Tensor
    words: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor, device: torch.device | None = None) -> PackedText:
        """The texts of a mask [P, L] (1 = word), whose first column is a word everywhere, on `device`.

        From a mask on the host nobody waits for the device to know N.
        """
        places, words = attention_mask.flatten().nonzero().squeeze(1), attention_mask.flatten().cumsum(0) - 1
        return cls(*(x.to(device, non_blocking=True) for x in (attention_mask.bool(), places, words)))

    @classmethod
    def whole(cls, readable: Tensor) -> PackedText:
        """Texts in full length, padding and all, since the device alone knows which texts they are: N = P * L."""
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
        """For a loader that pins its batches: copies to the device then run beside the host's work."""
        return PackedText(*(x.pin_memory() for x in (self.readable, self.places, self.words)))

    def to(self, device: torch.device) -> PackedText:
        """The same layout on `device`, copied without waiting where memory is pinned."""
        return PackedText(*(x.to(device, non_blocking=True) for x in (self.readable, self.places, self.words)))

    def spread(self, x: Tensor) -> Tensor:
        """To rows with padding."""
        return _Spread.apply(x, self.words, self.places).unflatten(0, self.shape)

    def collect(self, rows: Tensor) -> Tensor:
        """Back from rows with padding."""
        return _Collect.apply(rows.flatten(0, 1), self.places)

    def first(self, x: Tensor) -> Tensor:
        """The first word of each text: [P, 1, D]."""
        return x.index_select(0, self.words.view(self.shape)[:, 0])[:, None]


class _Spread(torch.autograd.Function):
    """What stands in padding is read by nobody, so its gradient is 0, and that of the words is a selection."""

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
