"""The arithmetic of a step and of a ranked pair by what is saved: the textbook's, ours, and the least (see
`albef/models/flops.py` for what is counted)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from albef.models.config import AlbefConfig
from albef.models.flops import (
    fusion_flops,
    image_flops,
    keys_values_flops,
    patch_flops,
    text_flops,
    vocabulary_flops,
)


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


def step_flops(
    config: AlbefConfig,
    words: int | Sequence[int],
    mlm_probability: float = 0.15,
    itm_negatives: int = 1,
    fuse: bool = True,
    savings: Savings = OURS,
) -> float:
    """Floating-point operations of one pre-training step per pair; arguments as those of `pretraining_flops`."""
    lengths = [words] if isinstance(words, int) else list(words)
    longest = max(lengths)
    patches, image = patch_flops(config), image_flops(config)
    student = teacher = 0.0
    for length in lengths:
        read = length if savings.padding else longest
        text, asked = text_flops(config, read), mlm_probability * (length - 1)
        student += text
        teacher += text_flops(config, read, 1 if savings.teacher_text else None)
        if fuse:
            last = 1 if savings.matching else None
            first, own = fusion_flops(config, read, last)
            drawn = fusion_flops(config, read if savings.negatives else longest, last)
            student += first + (1 + itm_negatives) * own + itm_negatives * drawn[1]
            student += 0 if savings.first_attention else itm_negatives * (first + drawn[0])
            filled = text + sum(fusion_flops(config, read, asked if savings.masked else None))
            filled += vocabulary_flops(config) * (asked if savings.vocabulary else read)
            student, teacher = student + filled, teacher + filled
    student, teacher = image + student / len(lengths), image + teacher / len(lengths)
    if fuse:
        keys_values = keys_values_flops(config)
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
    parts = [fusion_flops(config, read, 1 if savings.matching else None) for read in reads]
    first, rest = (sum(part) / len(parts) for part in zip(*parts, strict=True))
    keys_values = keys_values_flops(config) / (texts_per_image if savings.keys_values else 1)
    return keys_values + rest + first / (images_per_text if savings.first_attention else 1)
