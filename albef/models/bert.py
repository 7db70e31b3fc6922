"""One BERT, cut in two: the text encoder is its lower half, the fusion encoder its upper half (paper §3.1).

Both are stacks of one layer class, and so are the encoder of two images and the decoder of answers. A fusion layer
also reads the image (the decoder's: the question), through keys and values that were computed once for all the texts
it is compared with.
"""

# B texts, L words, S image tokens, D width, H heads, d = D / H, F fusion layers

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from albef.models.attention import attend, gelu_linear, merge_heads, split_heads
from albef.models.config import AlbefConfig
from albef.models.layout import Layout, Padded, as_layout


class Keyed(NamedTuple):
    """What a layer reads, by keys and values [B, H, S, d]."""

    keys: Tensor
    values: Tensor

    @property
    def rows(self) -> int:
        return len(self.keys)

    def answer(self, q: Tensor, mask: Tensor | None, dropout: float, record: list[Tensor] | None) -> Tensor:
        """Queries [B, L, D] -> what they find [B, L, D]; the rest as `attend`'s."""
        (q,) = split_heads(q, 1, self.keys.shape[1])
        return merge_heads(attend(q, self.keys, self.values, mask, dropout, record))


class Unkeyed(NamedTuple):
    """What a layer reads, by its tokens [B, S, Dv], and what would make keys and values of them.

    Since q (W x) = (q W) x, the queries take on the keys' weights, and what they find takes on the values'. For few
    queries that is less to compute than keys and values. The keys' bias moves all scores alike.
    """

    tokens: Tensor
    weight: Tensor
    bias: Tensor
    heads: int

    @property
    def rows(self) -> int:
        return len(self.tokens)

    def answer(self, q: Tensor, mask: Tensor | None, dropout: float, record: list[Tensor] | None) -> Tensor:
        """As `Keyed.answer`, without mask, dropout and record: for matching, not for learning."""
        if mask is not None or dropout or record is not None:
            raise ValueError(
                "tokens without keys are for evaluation, without a record; use keys_values, or model.eval()"
            )
        keys, values = self.weight.unflatten(0, (2, self.heads, -1)).unbind(0)  # [H, d, Dv]
        count, length = q.shape[:2]
        q = q.unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3).flatten(1, 2) * keys.shape[1] ** -0.5  # [H, B L, d]
        asked = (q @ keys).unflatten(1, (count, length)).transpose(0, 1).flatten(1, 2)  # [B, H L, Dv]
        found = (asked @ self.tokens.transpose(1, 2)).softmax(-1).to(asked.dtype) @ self.tokens
        found = found.unflatten(1, (self.heads, length)).transpose(0, 1).flatten(1, 2)  # [H, B L, Dv]
        read = (found @ values.transpose(1, 2)).unflatten(1, (count, length)).permute(1, 2, 0, 3).flatten(2)
        return read + self.bias.chunk(2)[1]


class KeysValues:
    """Keys and values of what is read, in every layer that reads it: [B, S, 2 * D] each.

    Compute them once for all that read the same; rows are taken as from a tensor, by numbers in a tensor or by a slice.
    """

    def __init__(self, layers: Iterable[Tensor]) -> None:
        self.layers = tuple(layers)

    @classmethod
    def of(cls, tokens: Tensor, linear: nn.Linear, layers: int) -> KeysValues:
        """`linear` makes those of all layers; each has a product of its own, whose gradient is gone when it is used."""
        return cls(F.linear(tokens, *of_layer) for of_layer in _by_layer(linear, layers))

    def __len__(self) -> int:
        return len(self.layers[0])

    def __getitem__(self, rows: Tensor | slice) -> KeysValues:
        return KeysValues(layer[rows] for layer in self.layers)

    def of_layer(self, layer: int, heads: int) -> Keyed:
        return Keyed(*split_heads(self.layers[layer], 2, heads))


class Tokens:
    """What is read, [B, S, Dv], without keys and values: for few words that read it once, see `Unkeyed`."""

    def __init__(self, tokens: Tensor, linear: nn.Linear, layers: int) -> None:
        self.tokens, self.layers = tokens, list(_by_layer(linear, layers))

    def __len__(self) -> int:
        return len(self.tokens)

    def of_layer(self, layer: int, heads: int) -> Unkeyed:
        return Unkeyed(self.tokens, *self.layers[layer], heads)


Seen = KeysValues | Tokens


def _by_layer(linear: nn.Linear, layers: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(linear.weight.chunk(layers), linear.bias.chunk(layers), strict=True)


class BertLayer(nn.Module):
    """Post-norm layer: self-attention, cross-attention (when `fusion`), feed-forward."""

    def __init__(self, config: AlbefConfig, fusion: bool) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.text_width, config.text_heads, config.dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        if fusion:
            self.cross_query = nn.Linear(width, width)
            self.cross_out = nn.Linear(width, width)
            self.cross_norm = nn.LayerNorm(width, eps=1e-12)
        self.fc1 = nn.Linear(width, config.text_intermediate)
        self.fc2 = nn.Linear(config.text_intermediate, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(
        self,
        x: Tensor,
        words: Layout,
        seen: Sequence[Keyed | Unkeyed] = (),
        record: list[Tensor] | None = None,
        cls_only: bool = False,
        begun: bool = False,
        seen_mask: Tensor | None = None,
        past: list[Tensor] | None = None,
    ) -> Tensor:
        """x [B, L, D] or, packed, [N, D]; `seen`: what is read, I rows.

        The last texts read the later of several, a row each; those before read the first, in turns (I may be 1). With
        `cls_only` only the first token of each text is carried through: [B, 1, D]. `begun` leaves out the first half,
        which was done. `seen_mask` [B, 1, 1, S] hides some of what is seen. `past` holds the keys and values of earlier
        words, which x goes on from, and receives those of x.
        """
        if not begun:
            x = self.read_words(x, words, cls_only, past)
        elif cls_only:
            x = words.first(x)
        return self.read_seen(x, Padded() if cls_only else words, seen, record, seen_mask)

    def read_words(self, x: Tensor, words: Layout, cls_only: bool = False, past: list[Tensor] | None = None) -> Tensor:
        """The layer's first half, self-attention: the same for every image."""
        dropout, mask = self.dropout if self.training else 0.0, words.mask
        if cls_only:
            weight, bias, width = self.qkv.weight, self.qkv.bias, x.shape[-1]
            first = words.first(x)
            (q,) = split_heads(F.linear(first, weight[:width], bias[:width]), 1, self.heads)
            k, v = split_heads(words.spread(F.linear(x, weight[width:], bias[width:])), 2, self.heads)
            x, words = first, Padded()
        else:
            q, k, v = split_heads(words.spread(self.qkv(x)), 3, self.heads)
        if past is not None:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(past, (k, v), strict=True)) if past else (k, v)
            past[:] = k, v
        read = words.collect(merge_heads(attend(q, k, v, mask, dropout)))
        return self.attention_norm(x + F.dropout(self.attention_out(read), dropout))

    def read_seen(
        self,
        x: Tensor,
        words: Layout,
        seen: Sequence[Keyed | Unkeyed],
        record: list[Tensor] | None = None,
        seen_mask: Tensor | None = None,
    ) -> Tensor:
        """The second half: cross-attention and feed-forward."""
        dropout = self.dropout if self.training else 0.0
        if seen:
            q = self.cross_query(x)
            if shared := len(seen) == 1 and seen[0].rows == 1 and record is None:
                rows = q.reshape(1, -1, q.shape[-1])  # all texts ask one image: one long row, without padding
            else:
                rows = words.spread(q)
            sizes = [part.rows for part in seen[1:]]
            asking = rows.split([len(rows) - sum(sizes), *sizes])
            read = [_ask(one, own, seen_mask, dropout, record) for one, own in zip(seen, asking, strict=True)]
            found = torch.cat(read) if sizes else read[0]
            found = found.view(x.shape) if shared else words.collect(found)
            x = self.cross_norm(x + F.dropout(self.cross_out(found), dropout))
        return self.norm(x + F.dropout(gelu_linear(self.fc1(x), self.fc2), dropout))


class TextEncoder(nn.Module):
    """Words alone: input_ids [B, L] -> states [B, L, D]; the first is the text's `[CLS]`."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.dropout = config.dropout
        self.word_embeddings = nn.Embedding(config.vocab_size, config.text_width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.text_width)
        # the second row is never used; it is there because published checkpoints have it
        self.token_type_embeddings = nn.Embedding(2, config.text_width)
        self.norm = nn.LayerNorm(config.text_width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(config, fusion=False) for _ in range(config.text_layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | Layout) -> Tensor:
        """With a `PackedText` layout for the mask the states are those of the words alone, [N, D]."""
        words = as_layout(attention_mask)
        length, limit = input_ids.shape[-1], self.position_embeddings.num_embeddings
        if input_ids.ndim != 2 or input_ids.shape != words.shape:
            raise ValueError(
                "input_ids and attention_mask: expected two tensors [batch, length] of one shape, "
                f"got {list(input_ids.shape)} and {list(words.shape)}"
            )
        if length > limit:
            raise ValueError(f"input_ids: expected at most {limit} tokens, got {length}; truncate with the processor")
        x = words.collect(self.embed(input_ids))
        for layer in self.layers:
            x = _run(layer, self.gradient_checkpointing, x, words)
        return x

    def embed(self, input_ids: Tensor, start: int = 0) -> Tensor:
        """Words at the positions from `start` on, before the first layer: [B, L] -> [B, L, D]."""
        positions = self.position_embeddings.weight[start : start + input_ids.shape[1]]
        x = self.word_embeddings(input_ids) + positions + self.token_type_embeddings.weight[0]
        return F.dropout(self.norm(x), self.dropout, self.training)


class FusionEncoder(nn.Module):
    """Words with the image: text states [B, L, D] and the image's keys and values -> states [B, L, D]."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.heads = config.text_heads
        self.image_keys_values = nn.Linear(config.vision_width, config.fusion_layers * 2 * config.text_width)
        self.layers = nn.ModuleList(BertLayer(config, fusion=True) for _ in range(config.fusion_layers))

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """Of the image, [B, S, Dv], once for all texts."""
        return KeysValues.of(image_tokens, self.image_keys_values, len(self.layers))

    def seen_once(self, image_tokens: Tensor, words: int) -> Seen:
        """The image [B, S, Dv] for a single text of so many words, in evaluation mode: without keys and values where
        that is quicker, up to about 45 words at 577 image tokens, 25 at 65."""
        tokens, width = image_tokens.shape[1:]
        even = tokens * width / (width + (self.heads - 1) * tokens)  # words for which both need as many operations
        if words > 0.73 * even:
            return self.keys_values(image_tokens)
        return Tokens(image_tokens, self.image_keys_values, len(self.layers))

    def begin(self, text_states: Tensor, words: Layout) -> Tensor:
        """What no image changes, the first layer's self-attention: once for a text, whatever it is compared with."""
        layer: Any = self.layers[0]
        return _run(layer.read_words, self.gradient_checkpointing, text_states, words)

    def forward(
        self,
        text_states: Tensor,
        attention_mask: Tensor | Layout,
        keys_values: Seen | Sequence[Seen],
        record: list[Tensor] | None = None,
        record_layer: int = -1,
        cls_only: bool = False,
        begun: bool = False,
        layers: slice = slice(None),
    ) -> Tensor:
        """`keys_values` has a row per text, or a single row that all texts share. Of several, each but the first has a
        row per text for the last texts, and the texts before them ask the first's images in turns.

        `cls_only` gives only the first token's state, [B, 1, D]: all that matching reads of the last layer. `record`
        receives the cross-attention probabilities [B, H, L, S] of layer `record_layer` (for Grad-CAM). `begun` says
        that `text_states` come from `begin`. Only `layers` are run, so that what is read of the last one may differ
        from text to text. With a `PackedText` layout for the mask states are [N, D].
        """
        words = as_layout(attention_mask)
        own, *others = [keys_values] if isinstance(keys_values, (KeysValues, Tokens)) else keys_values
        texts = words.shape[0] - sum(map(len, others))
        if not len(own) or texts % len(own) or (len(own) not in (1, texts) and not others):
            raise ValueError(f"keys_values: expected 1 or {texts} rows, one per text, got {len(own)}")
        x = text_states
        for index in range(len(self.layers))[layers]:
            recorded = record if index == record_layer % len(self.layers) else None
            last, begins = cls_only and index == len(self.layers) - 1, begun and index == 0
            parts = [part.of_layer(index, self.heads) for part in (own, *others)]
            x = _run(self.layers[index], self.gradient_checkpointing, x, words, parts, recorded, last, begins)
        return x


class PairEncoder(nn.Module):
    """Words with two images: every fusion layer stands twice, the first reads one image, the second the other.

    Both read through the same keys and values (paper §4.1, NLVR2; spec §3.4), so those of an image are computed once,
    wherever it stands.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.heads = config.text_heads
        self.image_keys_values = nn.Linear(config.vision_width, config.fusion_layers * 2 * config.text_width)
        self.layers = nn.ModuleList(BertLayer(config, fusion=True) for _ in range(2 * config.fusion_layers))

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """As the fusion encoder's, for two of our layers at a time."""
        return KeysValues.of(image_tokens, self.image_keys_values, len(self.layers) // 2)

    def forward(
        self, text_states: Tensor, attention_mask: Tensor | Layout, first: KeysValues, second: KeysValues
    ) -> Tensor:
        """Keys and values of the first and of the second image -> state of the text's first token, [B, 1, D]."""
        words, x = as_layout(attention_mask), text_states
        for index, layer in enumerate(self.layers):
            image, last = (first, second)[index % 2], layer is self.layers[-1]
            parts = [image.of_layer(index // 2, self.heads)]
            x = _run(layer, self.gradient_checkpointing, x, words, parts, None, last)
        return x


class AnswerDecoder(nn.Module):
    """Writes an answer word by word, reading the states of the question (paper §4.1, VQA; spec §3.2)."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.heads = config.text_heads
        self.words = TextEncoder(replace(config, text_layers=0))  # the embeddings alone
        self.question_keys_values = nn.Linear(config.text_width, config.fusion_layers * 2 * config.text_width)
        self.layers = nn.ModuleList(BertLayer(config, fusion=True) for _ in range(config.fusion_layers))
        self.head = MlmHead(config)

    def keys_values(self, question_states: Tensor) -> KeysValues:
        """Of the question, [B, Lq, D], once for all its answers."""
        return KeysValues.of(question_states, self.question_keys_values, len(self.layers))

    def forward(
        self,
        input_ids: Tensor,
        keys_values: KeysValues,
        question_mask: Tensor,
        past: list[list[Tensor]] | None = None,
        start: int = 0,
    ) -> Tensor:
        """Answers' words [A, L] and the question of each (a row per answer) -> states [A, L, D].

        A word reads those before it. Padding stands at the end, where nothing reads it. With `past` (an empty list per
        layer at first) `input_ids` go on from the words given before, of which there were `start`.
        """
        x = self.words.embed(input_ids, start)
        length, seen_mask = input_ids.shape[1], question_mask.bool()[:, None, None]
        causal = Padded(torch.ones(1, 1, length, start + length, dtype=torch.bool, device=x.device).tril(start))
        for index, layer in enumerate(self.layers):
            own, parts = None if past is None else past[index], [keys_values.of_layer(index, self.heads)]
            x = _run(layer, self.gradient_checkpointing, x, causal, parts, None, False, False, seen_mask, own)
        return x

    def fill_in(self, states: Tensor) -> Tensor:
        """States [..., D] -> logits of the next word [..., V]."""
        return self.head(states, self.words.word_embeddings.weight)


class MlmHead(nn.Module):
    """Vocabulary logits of states [..., D]; the decoder is the word embedding itself (tied)."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.text_width, config.text_width)
        self.norm = nn.LayerNorm(config.text_width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(states))), word_embeddings, self.bias)


def _ask(seen: Keyed | Unkeyed, q: Tensor, mask: Tensor | None, dropout: float, record: list[Tensor] | None) -> Tensor:
    """Rows q [turns * I, L, D] ask I images, in turns: an image's keys and values are never copied."""
    turns, length = len(q) // seen.rows, q.shape[1]
    if turns == 1:
        return seen.answer(q, mask, dropout, record)
    q = q.unflatten(0, (turns, -1)).transpose(0, 1).flatten(1, 2)
    return seen.answer(q, mask, dropout, record).unflatten(1, (turns, length)).transpose(0, 1).flatten(0, 1)


def _run(layer: Callable[..., Tensor], checkpointed: bool, *inputs) -> Tensor:
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
