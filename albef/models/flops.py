"""Counts the arithmetic that a step needs: for MFU, and to compare what is measured with what is necessary.

A multiply-add counts as two operations, and a backward pass as twice its forward pass. The products of the layers and
of attention are counted. What is small beside them is left out: norms, projections to embeddings, similarities with the
queue, the matching head.
"""

from __future__ import annotations

from collections.abc import Sequence

from albef.models.config import TRUNK_PARTS, AlbefConfig
from albef.models.trunk import trunk_flops


def pretraining_flops(
    config: AlbefConfig,
    words: int | Sequence[int],
    mlm_probability: float = 0.15,
    itm_negatives: int = 1,
    fuse: bool = True,
) -> float:
    """Returns the floating-point operations of one pre-training step per pair, as this package computes it.

    `words` is how many tokens a text has, `[CLS]` included, or how many each of the batch has. The student computes
    image, text, masked text, and the fusion of the true pair, its negatives and the masked text. The teacher computes,
    forward only, image, text, masked text and its fusion. Without `fuse` both compute image and text alone.
    """
    lengths = [words] if isinstance(words, int) else list(words)
    student = teacher = 0.0
    for length in lengths:
        text = text_flops(config, length)
        student, teacher = student + text, teacher + text
        if fuse:
            first, own = fusion_flops(config, length, 1)
            _, drawn = fusion_flops(config, max(lengths), 1)  # a negative text is fused in full length
            student += first + (1 + itm_negatives) * own + itm_negatives * drawn
            filled = text + sum(fusion_flops(config, length))
            filled += vocabulary_flops(config) * mlm_probability * (length - 1)
            student, teacher = student + filled, teacher + filled
    student, teacher = (image_flops(config) + part / len(lengths) for part in (student, teacher))
    if fuse:
        student, teacher = (part + keys_values_flops(config) for part in (student, teacher))
    return 3 * student - unlearnt_flops(config) + teacher


def image_flops(config: AlbefConfig) -> float:
    """Returns the operations of the image encoder on one image."""
    tokens, width = config.image_tokens, config.vision_width
    layer = _attention_flops(width, tokens, tokens) + _feed_forward_flops(width, 4 * width, tokens)
    return patch_flops(config) + config.vision_layers * layer


def patch_flops(config: AlbefConfig) -> float:
    """Returns the part of `image_flops` that cuts the image into patches, or that a trunk does in place of it."""
    if config.trunk is not None:
        return sum(trunk_flops(config))
    return 2 * (config.image_tokens - 1) * 3 * config.patch_size**2 * config.vision_width


def unlearnt_flops(config: AlbefConfig) -> float:
    """Returns what three times the forward pass counts too much: the gradient of pixels, or all of a frozen trunk but
    its one forward pass, which student and teacher share."""
    if config.trunk is None:
        return patch_flops(config)
    return 3 * sum(trunk_flops(config)[: TRUNK_PARTS - config.trunk_trained])


def text_flops(config: AlbefConfig, words: int, last: int | None = None) -> float:
    """Returns the operations of the text encoder on one text. If `last` is given, the last layer computes so many words
    only."""
    width, hidden = config.text_width, config.text_intermediate
    return sum(
        _attention_flops(width, out, words) + _feed_forward_flops(width, hidden, out)
        for out in _outputs(config.text_layers, words, last)
    )


def fusion_flops(config: AlbefConfig, words: int, last: float | None = None) -> tuple[float, float]:
    """Returns the operations of the first self-attention, and of all that follows, without the keys and values of the
    image. `last` is that of `text_flops`."""
    width, outputs = config.text_width, _outputs(config.fusion_layers, words, last)
    own = [_attention_flops(width, out, words) for out in outputs]
    rest = sum(
        4 * out * width**2 + 4 * out * config.image_tokens * width  # queries and what comes out, then the attention
        + _feed_forward_flops(width, config.text_intermediate, out)
        for out in outputs
    )  # fmt: skip
    return own[0], sum(own[1:]) + rest


def _outputs(layers: int, words: int, last: float | None) -> list[float]:
    """Returns at how many words each layer is computed."""
    return [*[words] * (layers - 1), words if last is None else last]


def keys_values_flops(config: AlbefConfig) -> float:
    """Returns the operations that make the keys and values of one image in all fusion layers."""
    return 4 * config.fusion_layers * config.image_tokens * config.vision_width * config.text_width


def vocabulary_flops(config: AlbefConfig) -> float:
    """Returns the operations that make the vocabulary logits of one word."""
    return 2 * config.text_width * (config.text_width + config.vocab_size)


def _attention_flops(width: int, out: float, seen: int) -> float:
    """Returns the operations of self-attention for `out` tokens among `seen` ones."""
    return 4 * out * width**2 + 4 * seen * width**2 + 4 * out * seen * width


def _feed_forward_flops(width: int, hidden: int, tokens: float) -> float:
    return 4 * tokens * width * hidden
