"""What cross-attention reads, an image or a question: as keys and values, or as its tokens alone."""

# B texts, L words, I images (or questions), S tokens of each, D width, Dv width of the tokens, H heads, d = D / H

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from albef.models.attention import attend, merge_heads, split_heads
from albef.models.tree import tree


class KeyValue(nn.Linear):
    """Makes the keys and values by which one layer reads tokens, or attends to the tokens without making any."""

    def __init__(self, seen_width: int, width: int, heads: int) -> None:
        super().__init__(seen_width, 2 * width)
        self.heads = heads

    def forward(self, tokens: Tensor, q: Tensor | None = None) -> Tensor:
        """Tokens [I, S, Dv] -> keys and values [I, S, 2 * D]; with queries [I, L, D] -> attention's output [I, L, D].

        Since q (W x) = (q W) x, the keys' weights can be applied to the queries instead of the tokens, and the values'
        weights to the output. For few queries that is less to compute than keys and values. The bias of the keys adds
        the same to all scores of a query, so it is left out.
        """
        if q is None:
            return super().forward(tokens)
        keys, values = self.weight.unflatten(0, (2, self.heads, -1)).unbind(0)  # [H, d, Dv]
        count, length = q.shape[:2]
        q = q.unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3).flatten(1, 2) * keys.shape[1] ** -0.5  # [H, I L, d]
        asked = (q @ keys).unflatten(1, (count, length)).transpose(0, 1).flatten(1, 2)  # [I, H L, Dv]
        found = (asked @ tokens.transpose(1, 2)).softmax(-1).to(asked.dtype) @ tokens
        found = found.unflatten(1, (self.heads, length)).transpose(0, 1).flatten(1, 2)  # [H, I L, Dv]
        read = (found @ values.transpose(1, 2)).unflatten(1, (count, length)).permute(1, 2, 0, 3).flatten(2)
        return read + self.bias.chunk(2)[1]


@tree
@dataclass(frozen=True)
class KeysValues:
    """Keys and values of images or questions, [I, S, 2 * D] for every layer that reads them.

    They are computed once for all texts that read the same. Rows are taken as from a tensor, by a tensor of numbers or
    a slice. `mask` [I, 1, 1, S] is True where a token may be read; None lets all be read.
    """

    layers: Sequence[Tensor]
    mask: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.layers[0].shape[0]

    def __getitem__(self, rows: Tensor | slice) -> KeysValues:
        return KeysValues([layer[rows] for layer in self.layers], None if self.mask is None else self.mask[rows])

    def of_layer(self, index: int) -> KeysValues:
        """Keys and values of one layer alone."""
        return KeysValues(self.layers[index : index + 1], self.mask)

    def attend(self, q: Tensor, linear: KeyValue, dropout: float = 0.0, record: list[Tensor] | None = None) -> Tensor:
        """Queries [I, L, D] of one layer -> the attention's output [I, L, D].

        `linear` has made the keys and values; the other arguments are those of `attention.attend`.
        """
        (q,), (layer,) = split_heads(q, 1, linear.heads), self.layers
        keys, values = split_heads(layer, 2, linear.heads)
        return merge_heads(attend(q, keys, values, self.mask, dropout, record))


@tree
@dataclass(frozen=True)
class Tokens:
    """Tokens [I, S, Dv] without keys and values: for few words, where making these would be most of the work."""

    tokens: Tensor

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def of_layer(self, index: int) -> Tokens:
        """The same for every layer."""
        return self

    def attend(self, q: Tensor, linear: KeyValue, dropout: float = 0.0, record: list[Tensor] | None = None) -> Tensor:
        """As `KeysValues.attend`, without dropout and record: for matching, not for learning."""
        if dropout or record is not None:
            raise ValueError(
                "tokens without keys are for evaluation, without a record; use keys_values, or model.eval()"
            )
        return linear(self.tokens, q)


Seen = KeysValues | Tokens


def attend_in_turns(q: Tensor, seen: Seen, linear: KeyValue, dropout: float, record: list[Tensor] | None) -> Tensor:
    """Attention of q [turns * I, L, D] over I images, in turns, without copying the images' keys and values."""
    turns, length = q.shape[0] // seen.rows, q.shape[1]
    if turns == 1:
        return seen.attend(q, linear, dropout, record)
    q = q.unflatten(0, (turns, -1)).transpose(0, 1).flatten(1, 2)
    found = seen.attend(q, linear, dropout, record)
    return found.unflatten(1, (turns, length)).transpose(0, 1).flatten(0, 1)


def attend_to_all(
    q: Tensor, seen: Sequence[Seen], linear: KeyValue, dropout: float, record: list[Tensor] | None
) -> Tensor:
    """Attention of q [B, L, D] over all of `seen`: its last rows read all but the first, a row each; the rows
    before read the first in turns."""
    sizes = [part.rows for part in seen[1:]]
    asking = q.split([q.shape[0] - sum(sizes), *sizes]) if sizes else [q]
    found = [attend_in_turns(some, part, linear, dropout, record) for some, part in zip(asking, seen, strict=True)]
    return torch.cat(found) if sizes else found[0]
