"""How much arithmetic a step needs: for MFU and for comparing what is measured with what is necessary."""

from __future__ import annotations

from albef.models.config import AlbefConfig


def pretraining_flops(
    config: AlbefConfig, words: int, mlm_probability: float = 0.15, itm_negatives: int = 1, fuse: bool = True
) -> float:
    """Floating-point operations of one pre-training step per pair; a multiply-add counts as two, a backward pass twice
    its forward pass.

    Student: image, text, masked text, fusion of the true pair and its negatives, and of the masked text. Teacher,
    forward only: image, text, masked text and its fusion. The picture's keys and values are made once each, vocabulary
    logits only at masked words; what matching leaves out of the last layer counts as if it were done. Without `fuse`:
    image and text alone.
    """
    image = _image_flops(config)
    text = config.text_layers * _layer_flops(words, config.text_width, config.text_intermediate)
    fusion = config.fusion_layers * (
        _layer_flops(words, config.text_width, config.text_intermediate)
        + 4 * words * config.text_width**2
        + 4 * words * config.image_tokens * config.text_width
    )
    keys_values = 4 * config.fusion_layers * config.image_tokens * config.vision_width * config.text_width
    head = 2 * mlm_probability * words * config.text_width * (config.text_width + config.vocab_size)
    if not fuse:
        return 4 * (image + text)
    student = image + 2 * text + keys_values + (2 + 2 * itm_negatives) * fusion + head
    teacher = image + 2 * text + keys_values + fusion + head
    return 3 * student + teacher


def _image_flops(config: AlbefConfig) -> float:
    patches = 2 * (config.image_tokens - 1) * 3 * config.patch_size**2 * config.vision_width
    layer = _layer_flops(config.image_tokens, config.vision_width, 4 * config.vision_width)
    return patches + config.vision_layers * layer


def _layer_flops(tokens: int, width: int, intermediate: int) -> float:
    """Self-attention and feed-forward of one sequence."""
    return 2 * tokens * (4 * width**2 + 2 * width * intermediate) + 4 * tokens**2 * width
