"""One BERT, cut in two: the text encoder is its lower half, the fusion encoder its upper half (paper §3.1).

Both are stacks of one layer class, and so are the encoder of two pictures and the decoder of answers. A fusion layer
also reads the picture (the decoder's: the question), through keys and values that were computed once for all the texts
it is compared with.
"""

# B texts, L words, S image tokens, D width, H heads, d = D / H, F fusion layers

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from albef.models.attention import attend, merge_heads, split_heads
from albef.models.config import AlbefConfig


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
        mask: Tensor | None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        record: list[Tensor] | None = None,
        cls_only: bool = False,
        seen_mask: Tensor | None = None,
        past: list[Tensor] | None = None,
    ) -> Tensor:
        """x [B, L, D], mask [B, 1, 1 or L, L] (True = may be read), keys and values of what is seen [B, H, S, d].

        With `cls_only` only the first token is carried through: [B, 1, D]. `seen_mask` [B, 1, 1, S] hides some of what
        is seen. `past` holds the keys and values of earlier words, which x goes on from, and receives those of x.
        """
        dropout = self.dropout if self.training else 0.0
        x, q, k, v = self._first_queries(x) if cls_only else (x, *split_heads(self.qkv(x), 3, self.heads))
        if past is not None:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(past, (k, v), strict=True)) if past else (k, v)
            past[:] = k, v
        read = merge_heads(attend(q, k, v, mask, dropout))
        x = self.attention_norm(x + F.dropout(self.attention_out(read), dropout))
        if keys_values is not None:
            (q,) = split_heads(self.cross_query(x), 1, self.heads)
            seen = merge_heads(attend(q, *keys_values, seen_mask, dropout, record))
            x = self.cross_norm(x + F.dropout(self.cross_out(seen), dropout))
        return self.norm(x + F.dropout(self.fc2(F.gelu(self.fc1(x))), dropout))

    def _first_queries(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First token [B, 1, D], its queries, and the keys and values of all tokens."""
        first, width = x[:, :1], x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        (q,) = split_heads(F.linear(first, weight[:width], bias[:width]), 1, self.heads)
        k, v = split_heads(F.linear(x, weight[width:], bias[width:]), 2, self.heads)
        return first, q, k, v


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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        length, limit = input_ids.shape[-1], self.position_embeddings.num_embeddings
        if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
            raise ValueError(
                "input_ids and attention_mask: expected two tensors [batch, length] of one shape, "
                f"got {list(input_ids.shape)} and {list(attention_mask.shape)}"
            )
        if length > limit:
            raise ValueError(f"input_ids: expected at most {limit} tokens, got {length}; truncate with the processor")
        x = self.embed(input_ids)
        mask = attention_mask.bool()[:, None, None]
        for layer in self.layers:
            x = _run(layer, self.gradient_checkpointing, x, mask)
        return x

    def embed(self, input_ids: Tensor, start: int = 0) -> Tensor:
        """Words at the positions from `start` on, before the first layer: [B, L] -> [B, L, D]."""
        positions = self.position_embeddings.weight[start : start + input_ids.shape[1]]
        x = self.word_embeddings(input_ids) + positions + self.token_type_embeddings.weight[0]
        return F.dropout(self.norm(x), self.dropout, self.training)


class FusionEncoder(nn.Module):
    """Words with the picture: text states [B, L, D] and the picture's keys and values -> states [B, L, D]."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.heads = config.text_heads
        self.image_keys_values = nn.Linear(config.vision_width, config.fusion_layers * 2 * config.text_width)
        self.layers = nn.ModuleList(BertLayer(config, fusion=True) for _ in range(config.fusion_layers))

    def keys_values(self, image_tokens: Tensor) -> Tensor:
        """Every layer's keys and values of the picture in one product: [B, S, Dv] -> [B, S, F * 2 * D].

        Compute it once per picture; rows may be indexed, repeated, stored and moved like any tensor.
        """
        return self.image_keys_values(image_tokens)

    def forward(
        self,
        text_states: Tensor,
        attention_mask: Tensor,
        keys_values: Tensor,
        record: list[Tensor] | None = None,
        record_layer: int = -1,
        cls_only: bool = False,
    ) -> Tensor:
        """`keys_values` has a row per text, or a single row that all texts share.

        `cls_only` gives only the first token's state, [B, 1, D]: all that matching reads of the last layer. `record`
        receives the cross-attention probabilities [B, H, L, S] of layer `record_layer` (for Grad-CAM).
        """
        if len(keys_values) not in (1, len(text_states)):
            raise ValueError(
                f"keys_values: expected 1 or {len(text_states)} rows, one per text, got {len(keys_values)}"
            )
        parts = by_layer(keys_values, len(self.layers), self.heads, len(text_states))
        mask = attention_mask.bool()[:, None, None]
        x = text_states
        for index, layer in enumerate(self.layers):
            recorded = record if index == record_layer % len(self.layers) else None
            last = cls_only and layer is self.layers[-1]
            x = _run(layer, self.gradient_checkpointing, x, mask, parts[index], recorded, last)
        return x


class PairEncoder(nn.Module):
    """Words with two pictures: every fusion layer stands twice, the first reads one picture, the second the other.

    Both read through the same keys and values (paper §4.1, NLVR2; spec §3.4), so those of a picture are computed once,
    wherever it stands.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.heads = config.text_heads
        self.image_keys_values = nn.Linear(config.vision_width, config.fusion_layers * 2 * config.text_width)
        self.layers = nn.ModuleList(BertLayer(config, fusion=True) for _ in range(2 * config.fusion_layers))

    def keys_values(self, image_tokens: Tensor) -> Tensor:
        """As the fusion encoder's: [B, S, Dv] -> [B, S, F * 2 * D]."""
        return self.image_keys_values(image_tokens)

    def forward(self, text_states: Tensor, attention_mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Keys and values of the first and of the second picture -> state of the text's first token, [B, 1, D]."""
        pictures = [by_layer(kv, len(self.layers) // 2, self.heads, len(text_states)) for kv in (first, second)]
        mask, x = attention_mask.bool()[:, None, None], text_states
        for index, layer in enumerate(self.layers):
            parts, last = pictures[index % 2][index // 2], layer is self.layers[-1]
            x = _run(layer, self.gradient_checkpointing, x, mask, parts, None, last)
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

    def keys_values(self, question_states: Tensor) -> Tensor:
        """Every layer's keys and values of the question, once for all its answers: [B, Lq, D] -> [B, Lq, F * 2 * D]."""
        return self.question_keys_values(question_states)

    def forward(
        self,
        input_ids: Tensor,
        keys_values: Tensor,
        question_mask: Tensor,
        past: list[list[Tensor]] | None = None,
        start: int = 0,
    ) -> Tensor:
        """Answers' words [A, L] and the question of each (a row per answer) -> states [A, L, D].

        A word reads those before it. Padding stands at the end, where nothing reads it. With `past` (an empty list per
        layer at first) `input_ids` go on from the words given before, of which there were `start`.
        """
        x = self.words.embed(input_ids, start)
        parts = by_layer(keys_values, len(self.layers), self.heads, len(x))
        words, seen_mask = input_ids.shape[1], question_mask.bool()[:, None, None]
        causal = torch.ones(words, start + words, dtype=torch.bool, device=x.device).tril(start)[None, None]
        for index, layer in enumerate(self.layers):
            own = None if past is None else past[index]
            x = _run(layer, self.gradient_checkpointing, x, causal, parts[index], None, False, seen_mask, own)
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


def by_layer(keys_values: Tensor, layers: int, heads: int, rows: int) -> list[tuple[Tensor, Tensor]]:
    """[B or 1, S, layers * 2 * D] -> keys and values of each layer, [rows, H, S, d]; a single row is shared by all."""
    parts = [part.expand(rows, -1, -1, -1) for part in split_heads(keys_values, 2 * layers, heads)]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _run(layer: nn.Module, checkpointed: bool, *inputs) -> Tensor:
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
