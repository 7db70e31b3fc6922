"""How much arithmetic a step, or a ranked pair, needs: for MFU, and to compare what is measured with what is necessary.

A multiply-add counts as two operations, a backward pass twice its forward pass. Counted are the products of the layers
and of attention; left out is what is small beside them: norms, projections to embeddings, similarities with the queue,
the matching head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from albef.models.config import AlbefConfig


@dataclass(frozen=True)
class Savings:
    """What is computed once, or only where it is read. None of it changes a result."""

    padding: bool = True
    """Texts are as long as they are; else as the longest of the batch."""
    negatives: bool = True
    """So are negative texts, though only the draw decides which they are."""
    keys_values: bool = True
    """An image's keys and values are made once for all texts that read it."""
    vocabulary: bool = True
    """Vocabulary logits at masked words only."""
    matching: bool = True
    """The last fusion layer at `[CLS]` only, where matching reads it."""
    masked: bool = True
    """The last fusion layer at masked words only, where they are filled in."""
    first_attention: bool = True
    """The first self-attention of the fusion encoder once per text: it has not seen the image yet."""
    teacher_text: bool = True
    """The last layer of the teacher's clean text at `[CLS]` only: nothing but its embedding is read."""

    @classmethod
    def none(cls) -> Savings:
        return cls(**dict.fromkeys((field.name for field in fields(cls)), False))


FLOOR = Savings()
"""The least, as long as every layer is computed as it is defined."""
TEXTBOOK = Savings.none()
"""What the original computes."""
OURS = Savings(negatives=False, masked=False, teacher_text=False)
"""What this package computes."""


def pretraining_flops(
    config: AlbefConfig,
    words: int | Sequence[int],
    mlm_probability: float = 0.15,
    itm_negatives: int = 1,
    fuse: bool = True,
    savings: Savings = OURS,
) -> float:
    """Floating-point operations of one pre-training step per pair.

    `words` is how many tokens a text has, `[CLS]` included, or how many each of the batch has. Student: image, text,
    masked text, fusion of the true pair and its negatives, and of the masked text. Teacher, forward only: image, text,
    masked text and its fusion. Without `fuse`: image and text alone.
    """
    lengths = [words] if isinstance(words, int) else list(words)
    longest = max(lengths)
    patches, image = _patch_flops(config), _image_flops(config)
    student = teacher = 0.0
    for length in lengths:
        read = length if savings.padding else longest
        text, asked = _text_flops(config, read), mlm_probability * (length - 1)
        student += text
        teacher += _text_flops(config, read, 1 if savings.teacher_text else None)
        if fuse:
            last = 1 if savings.matching else None
            first, own = _fusion_flops(config, read, last)
            drawn = _fusion_flops(config, read if savings.negatives else longest, last)
            student += first + (1 + itm_negatives) * own + itm_negatives * drawn[1]
            student += 0 if savings.first_attention else itm_negatives * (first + drawn[0])
            filled = text + sum(_fusion_flops(config, read, asked if savings.masked else None))
            filled += _vocabulary_flops(config) * (asked if savings.vocabulary else read)
            student, teacher = student + filled, teacher + filled
    student, teacher = image + student / len(lengths), image + teacher / len(lengths)
    if fuse:
        keys_values = _keys_values_flops(config)
        student += keys_values * (1 if savings.keys_values else 2 + 2 * itm_negatives)
        teacher += keys_values
    return 3 * student - patches + teacher  # pixels need no gradient


def ranking_flops(
    config: AlbefConfig,
    words: int | Sequence[int],
    texts_per_image: int,
    images_per_text: int = 1,
    padded: int | None = None,
    savings: Savings = FLOOR,
) -> float:
    """Floating-point operations of one ranked pair, image tokens and text states being there.

    `words` as for pre-training; `padded` is the length that texts are padded to, by default the longest's. What is done
    once is shared among the texts that an image is ranked with, or the images that a text is. Ours is the floor.
    """
    lengths = [words] if isinstance(words, int) else list(words)
    reads = lengths if savings.padding else [padded or max(lengths)] * len(lengths)
    parts = [_fusion_flops(config, read, 1 if savings.matching else None) for read in reads]
    first, rest = (sum(part) / len(parts) for part in zip(*parts, strict=True))
    keys_values = _keys_values_flops(config) / (texts_per_image if savings.keys_values else 1)
    return keys_values + rest + first / (images_per_text if savings.first_attention else 1)


def _image_flops(config: AlbefConfig) -> float:
    tokens, width = config.image_tokens, config.vision_width
    layer = _attention_flops(width, tokens, tokens) + _feed_forward_flops(width, 4 * width, tokens)
    return _patch_flops(config) + config.vision_layers * layer


def _patch_flops(config: AlbefConfig) -> float:
    return 2 * (config.image_tokens - 1) * 3 * config.patch_size**2 * config.vision_width


def _text_flops(config: AlbefConfig, words: int, last: int | None = None) -> float:
    """The text encoder on one text, its last layer for the `last` words only."""
    width, hidden = config.text_width, config.text_intermediate
    return sum(
        _attention_flops(width, out, words) + _feed_forward_flops(width, hidden, out)
        for out in _outputs(config.text_layers, words, last)
    )


def _fusion_flops(config: AlbefConfig, words: int, last: float | None) -> tuple[float, float]:
    """The first self-attention and all that follows, without keys and values of the image; `last` as above."""
    width, outputs = config.text_width, _outputs(config.fusion_layers, words, last)
    own = [_attention_flops(width, out, words) for out in outputs]
    rest = sum(
        4 * out * width**2 + 4 * out * config.image_tokens * width  # queries and what comes out, then the attention
        + _feed_forward_flops(width, config.text_intermediate, out)
        for out in outputs
    )  # fmt: skip
    return own[0], sum(own[1:]) + rest


def _outputs(layers: int, words: int, last: float | None) -> list[float]:
    """At how many words each layer is computed."""
    return [*[words] * (layers - 1), words if last is None else last]


def _keys_values_flops(config: AlbefConfig) -> float:
    return 4 * config.fusion_layers * config.image_tokens * config.vision_width * config.text_width


def _vocabulary_flops(config: AlbefConfig) -> float:
    return 2 * config.text_width * (config.text_width + config.vocab_size)


def _attention_flops(width: int, out: float, seen: int) -> float:
    """Self-attention for `out` tokens among `seen`."""
    return 4 * out * width**2 + 4 * seen * width**2 + 4 * out * seen * width


def _feed_forward_flops(width: int, hidden: int, tokens: float) -> float:
    return 4 * tokens * width * hidden
