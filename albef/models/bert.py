"""One BERT, cut in two: the text encoder is its lower half, the fusion encoder its upper half (paper §3.1).

Both are stacks of the same parts, and so are the encoder of two images and the decoder of answers. A fusion layer
also reads the image (in the decoder: the question). Its keys and values are computed once for all the texts that are
compared with it.
"""

# B texts, L words, S image tokens, D width, F fusion layers

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from albef.errors import AlbefValueError
from albef.models.config import AlbefConfig
from albef.models.layers import AnswerLayer, FusionLayer, Past, TextLayer
from albef.models.layout import Layout, Padded, as_layout
from albef.models.seen import KeysValues, KeyValue, Seen, Tokens


class WordEmbeddings(nn.Embedding):
    """The table of words, which gives the vectors of words and also the scores of all words (tied, paper §3.2)."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Ids [...] -> vectors [..., D]; vectors [..., D] -> scores [..., V], to which `bias` [V] is added."""
        return F.linear(x, self.weight, bias) if x.is_floating_point() else super().forward(x)


class Embeddings(nn.Module):
    """Words and their positions, before the first layer."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.word_embeddings = WordEmbeddings(config.vocab_size, config.text_width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.text_width)
        # the second row is never used; it is there because published checkpoints have it
        self.token_type_embeddings = nn.Embedding(2, config.text_width)
        self.norm = nn.LayerNorm(config.text_width, eps=1e-12)

    def embed(self, input_ids: Tensor, start: int = 0) -> Tensor:
        """Words at the positions from `start` on: [B, L] -> [B, L, D]."""
        positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        kind = torch.zeros(1, dtype=torch.int64, device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions) + self.token_type_embeddings(kind)
        return F.dropout(self.norm(x), self.dropout, self.training)


class TextEncoder(Embeddings):
    """Words alone: input_ids [B, L] -> states [B, L, D]; the first is the text's `[CLS]`."""

    def __init__(self, config: AlbefConfig) -> None:
        frozen, count, still = config.text_frozen, config.text_layers, replace(config, dropout=0.0)
        if not 0 <= frozen <= count:
            raise AlbefValueError(f"text_frozen {frozen} must be between 0 and text_layers, which is {count}")
        super().__init__(still if frozen else config)
        self.checkpointed = False
        if frozen:
            self.requires_grad_(False)  # the embeddings, which is all that there is yet
        self.layers = nn.ModuleList(TextLayer(still if index < frozen else config) for index in range(count))
        self.layers[:frozen].requires_grad_(False)

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
            x = _run(layer, self.checkpointed, x, words)
        return x


class FusionEncoder(nn.Module):
    """Words with the image: text states [B, L, D] and the image's keys and values -> states [B, L, D].

    `forward` is `begin`, `middle` and `finish`, one after the other; who shares one of them between texts calls them.
    """

    layers: Sequence[FusionLayer]

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.checkpointed, self.heads = False, config.text_heads
        self.image_keys_values = _keys_values(config, config.vision_width)
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(config.fusion_layers))  # type: ignore[assignment]

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """Keys and values of images [B, S, Dv], to be computed once for all texts."""
        return KeysValues([linear(image_tokens) for linear in self.image_keys_values])

    def seen_once(self, image_tokens: Tensor, words: int) -> Seen:
        """What texts of `words` words in all read of each image, in evaluation: keys and values if that takes fewer
        operations, otherwise the tokens.

        Keys and values pay from 62 words on (about 5 captions) for 577 tokens of width 768 and 12 heads, and from 23
        for the 65 tokens of the small preset. By the clock they pay a little later.
        """
        tokens, width = image_tokens.shape[1:]
        even = tokens * width / (width + (self.heads - 1) * tokens)  # words for which both need as many operations
        return self.keys_values(image_tokens) if words > even else Tokens(image_tokens)

    def forward(
        self,
        text_states: Tensor,
        attention_mask: Tensor | Layout,
        keys_values: Seen | Sequence[Seen],
        record: list[Tensor] | None = None,
        record_layer: int = -1,
        cls_only: bool = False,
        begun: bool = False,
    ) -> Tensor:
        """`keys_values` has a row per text, or a single row that all texts share. It may be a sequence: then the last
        texts read the second and later ones, a row each, and the texts before them read the first in turns.

        `cls_only` gives only the first token's state, [B, 1, D], which is all that matching needs. `record`
        receives the cross-attention probabilities [B, H, L, S] of layer `record_layer` (for Grad-CAM). `begun` says
        that `text_states` come from `begin`. With a `PackedText` layout for the mask states are [N, D].
        """
        words, last = as_layout(attention_mask), len(self.layers) - 1
        records = {record_layer % len(self.layers): record}
        x = text_states if begun else self.begin(text_states, words)
        x = self.middle(x, words, keys_values, records)
        return self.finish(x, words, keys_values, cls_only, records.get(last))

    def begin(self, text_states: Tensor, words: Layout) -> Tensor:
        """The first layer's self-attention, which no image changes: once for all comparisons of a text."""
        return _run(self.layers[0].self_attention, self.checkpointed, text_states, words)

    def middle(
        self,
        x: Tensor,
        words: Layout,
        seen: Seen | Sequence[Seen],
        records: dict[int, list[Tensor] | None] | None = None,
    ) -> Tensor:
        """All that lies between `begin` and the last layer; `records` has the lists of `forward` by their layer."""
        parts, found = _checked(seen, words), records or {}
        for index in range(len(self.layers) - 1):
            if index:
                x = _run(self.layers[index].self_attention, self.checkpointed, x, words)
            x = self._read(index, x, words, parts, found.get(index))
        return x

    def finish(
        self,
        x: Tensor,
        words: Layout,
        seen: Seen | Sequence[Seen],
        cls_only: bool = False,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """The last layer, after `middle`; with `cls_only` for the first word of each text alone, [B, 1, D]."""
        parts, last = _checked(seen, words), len(self.layers) - 1
        if last:
            x = _run(self.layers[last].self_attention, self.checkpointed, x, words, cls_only)
        elif cls_only:
            x = words.first(x)
        return self._read(last, x, Padded() if cls_only else words, parts, record)

    def _read(self, index: int, x: Tensor, words: Layout, parts: Sequence[Seen], record: list[Tensor] | None) -> Tensor:
        own, linear = [part.of_layer(index) for part in parts], self.image_keys_values[index]
        return _run(self.layers[index].read_seen, self.checkpointed, x, words, own, linear, record)


class PairEncoder(nn.Module):
    """Words with two images: every fusion layer is there twice, once for the first image and once for the second.

    Both layers share the linear for keys and values (paper §4.1, NLVR2; spec §3.4), so those of an image are computed
    once, wherever it stands.
    """

    layers: Sequence[FusionLayer]

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.checkpointed = False
        self.image_keys_values = _keys_values(config, config.vision_width)
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(2 * config.fusion_layers))  # type: ignore[assignment]

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """As the fusion encoder's; each serves two layers."""
        return KeysValues([linear(image_tokens) for linear in self.image_keys_values])

    def forward(
        self, text_states: Tensor, attention_mask: Tensor | Layout, first: KeysValues, second: KeysValues
    ) -> Tensor:
        """Keys and values of the first and of the second image -> state of the text's first token, [B, 1, D]."""
        words, x = as_layout(attention_mask), text_states
        *layers, last = self.layers
        for index, layer in enumerate(layers):
            image = (first, second)[index % 2].of_layer(index // 2)
            x = _run(layer, self.checkpointed, x, words, [image], self.image_keys_values[index // 2])
        x = _run(last.self_attention, self.checkpointed, x, words, True)
        image = second.of_layer(len(self.image_keys_values) - 1)
        return _run(last.read_seen, self.checkpointed, x, Padded(), [image], self.image_keys_values[-1])


class AnswerDecoder(nn.Module):
    """Writes an answer word by word, reading the states of the question (paper §4.1, VQA; spec §3.2)."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.checkpointed = False
        self.words = Embeddings(config)
        self.question_keys_values = _keys_values(config, config.text_width)
        self.layers = nn.ModuleList(AnswerLayer(config) for _ in range(config.fusion_layers))
        self.head = MlmHead(config)

    def keys_values(self, question_states: Tensor) -> KeysValues:
        """Keys and values of questions [B, Lq, D], to be computed once for all answers."""
        return KeysValues([linear(question_states) for linear in self.question_keys_values])

    def forward(self, input_ids: Tensor, keys_values: KeysValues, question_mask: Tensor) -> Tensor:
        """Answers' words [A, L] and the question of each (a row per answer) -> states [A, L, D].

        A word reads those before it. Padding stands at the end, where nothing reads it.
        """
        return self.go_on(input_ids, keys_values, question_mask)[0]

    def go_on(
        self, input_ids: Tensor, keys_values: KeysValues, question_mask: Tensor, past: Sequence[Past] | None = None
    ) -> tuple[Tensor, tuple[Past, ...]]:
        """As `forward`, for words that continue those of the call before. `past` is what that call returned besides the
        states [A, L, D], an entry per layer; None in the first call."""
        start, length = 0 if past is None else past[0][0].shape[2], input_ids.shape[1]
        question = replace(keys_values, mask=question_mask.bool()[:, None, None])
        x = self.words.embed(input_ids, start)
        causal = Padded(torch.ones(1, 1, length, start + length, dtype=torch.bool, device=x.device).tril(start))
        kept = []
        for index, (layer, linear) in enumerate(zip(self.layers, self.question_keys_values, strict=True)):
            own = None if past is None else past[index]
            x, own = _run(layer, self.checkpointed, x, causal, [question.of_layer(index)], linear, own)
            kept.append(own)
        return x, tuple(kept)

    def fill_in(self, states: Tensor) -> Tensor:
        """States [..., D] -> logits of the next word [..., V]."""
        return self.head(states, self.words.word_embeddings)


class MlmHead(nn.Module):
    """Vocabulary logits of states [..., D]; the decoder is the word embedding itself (tied)."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.text_width, config.text_width)
        self.norm = nn.LayerNorm(config.text_width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, words: WordEmbeddings) -> Tensor:
        return words(self.norm(F.gelu(self.dense(states))), self.bias)


def _keys_values(config: AlbefConfig, seen_width: int) -> nn.ModuleList:
    """A linear for each fusion layer."""
    return nn.ModuleList(
        KeyValue(seen_width, config.text_width, config.text_heads) for _ in range(config.fusion_layers)
    )


def _checked(seen: Seen | Sequence[Seen], words: Layout) -> Sequence[Seen]:
    """`seen` as a sequence. ValueError if its rows don't fit the texts."""
    own, *others = [seen] if isinstance(seen, (KeysValues, Tokens)) else seen
    texts = words.shape[0] - sum(other.rows for other in others)
    if not own.rows or texts % own.rows or (own.rows not in (1, texts) and not others):
        raise ValueError(f"keys_values: expected 1 or {texts} rows, one per text, got {own.rows}")
    return own, *others


def _run(part: Callable[..., Any], checkpointed: bool, *inputs: Any) -> Any:
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False)
    return part(*inputs)
