"""How the words of several texts lie in a tensor: in rows with padding, or one after the other without.

Linear layers don't mind; only attention needs rows.
"""

# P texts, L words of the longest, N words in all, D width

from __future__ import annotations

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

    def __init__(
        self, attention_mask: Tensor, device: torch.device | None = None, readable: Tensor | None = None
    ) -> None:
        """`attention_mask` [P, L] (1 = word); its first column is a word everywhere. From a mask on the host, N is
        known without waiting for the `device`. Where some of these words are padding after all, `readable` [P, L] says
        what is not."""
        self.readable = attention_mask.to(device) if readable is None else readable
        super().__init__(self.readable)
        words = attention_mask.flatten()
        self.places = words.nonzero().squeeze(1).to(device, non_blocking=True)  # [N] in P * L
        # [P * L]; for padding an earlier word, which the mask hides
        self.words = (words.cumsum(0) - 1).to(device, non_blocking=True)
        self.known = attention_mask

    def beside(self, others: Tensor, copies: int) -> Packed:
        """The layout of `copies` of these texts, one after the other, and then of the texts `others` [M] in full
        length: what they are is known to the device alone."""
        rest = torch.ones_like(self.known[:1]).expand(len(others), -1)
        readable = [*[self.readable] * copies, self.readable[others]]
        return Packed(torch.cat([*[self.known] * copies, rest]), others.device, torch.cat(readable))

    def spread(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.words).unflatten(0, self.shape)

    def collect(self, rows: Tensor) -> Tensor:
        return rows.flatten(0, 1).index_select(0, self.places)

    def first(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.words.view(self.shape)[:, 0])[:, None]


Layout = Padded | Packed


def as_layout(attention_mask: Tensor | Layout) -> Layout:
    """A mask [P, L] as the layout of states with padding; a layout as it is."""
    return attention_mask if isinstance(attention_mask, Padded) else Padded(attention_mask)
