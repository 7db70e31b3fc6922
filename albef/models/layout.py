"""How the words of several texts lie in a tensor: in rows with padding, or one after the other without.

Linear layers don't mind; only attention needs rows.
"""

# P texts, L words of the longest, N words in all, D width

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Padded:
    """States [P, L, D], a row per text, with `mask` [P, 1, 1 or L, L]: True where a word may be read."""

    def __init__(self, attention_mask: Tensor | None = None) -> None:
        """`attention_mask` [P, L] (1 = word), or [1, 1, L, L] where what may be read depends on who reads."""
        mask = None if attention_mask is None else attention_mask.bool()
        self.mask = mask[:, None, None] if mask is not None and mask.ndim == 2 else mask
        self.shape = torch.Size() if attention_mask is None else attention_mask.shape

    def spread(self, x: Tensor) -> Tensor:
        """To rows with padding."""
        return x

    def collect(self, rows: Tensor) -> Tensor:
        """Back from rows with padding."""
        return rows

    def first(self, x: Tensor) -> Tensor:
        """The first word of each text: [P, 1, D]."""
        return x[:, :1]


class Packed(Padded):
    """States [N, D] of the words alone, text after text: nothing is computed for padding."""

    def __init__(self, readable: Tensor, places: Tensor, words: Tensor) -> None:
        """`readable` [P, L]: 1 where a word may be read. `places` [N]: where each word stands among the P * L places;
        `words` [P * L]: the word at each place, or for padding any other, which `readable` hides."""
        super().__init__(readable)
        self.readable, self.places, self.words = readable, places, words

    @classmethod
    def of(cls, attention_mask: Tensor, device: torch.device | None = None) -> Packed:
        """The texts of a mask [P, L] (1 = word), whose first column is a word everywhere, on `device`.

        From a mask on the host nobody waits for the device to know N.
        """
        places, words = attention_mask.flatten().nonzero().squeeze(1), attention_mask.flatten().cumsum(0) - 1
        return cls(*(x.to(device, non_blocking=True) for x in (attention_mask, places, words)))

    @classmethod
    def whole(cls, readable: Tensor) -> Packed:
        """Texts in full length, padding and all, since the device alone knows which texts they are: N = P * L."""
        places = torch.arange(readable.numel(), device=readable.device)
        return cls(readable, places, places)

    @classmethod
    def join(cls, *parts: Packed) -> Packed:
        """The texts of one layout after those of another."""
        places, words, rows, count = [], [], 0, 0
        for part in parts:
            places.append(part.places + rows)
            words.append(part.words + count)
            rows, count = rows + part.readable.numel(), count + len(part.places)
        return cls(torch.cat([part.readable for part in parts]), torch.cat(places), torch.cat(words))

    def spread(self, x: Tensor) -> Tensor:
        return _Spread.apply(x, self.words, self.places).unflatten(0, self.shape)

    def collect(self, rows: Tensor) -> Tensor:
        return _Collect.apply(rows.flatten(0, 1), self.places)

    def first(self, x: Tensor) -> Tensor:
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


Layout = Padded | Packed


def as_layout(attention_mask: Tensor | Layout) -> Layout:
    """A mask [P, L] as the layout of states with padding; a layout as it is."""
    return attention_mask if isinstance(attention_mask, Padded) else Padded(attention_mask)
