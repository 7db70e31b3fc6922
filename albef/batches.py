"""What a step learns from: tensors by name, as the loader's workers make them and the objectives take them.

A batch is a dictionary, so that PyTorch's loader pins it and users can make one by hand; its kinds say what is in it.
"""

# B examples, A answers of all, L words of the longest text, H x W pixels

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import NotRequired  # in `typing` from Python 3.11 on

    from albef.data.broken import Broken
    from albef.models.layout import PackedText
    from albef.objectives.pretrain import Masked

Batch = TypeVar("Batch", bound="Inputs")


class Inputs(TypedDict):
    """What every model takes."""

    pixel_values: Tensor  # [B, 3, H, W], or [B, 2, 3, H, W] for pairs; uint8 until they are normalised
    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L], 1 for a word
    broken: NotRequired[Broken]  # the images that could not be read; the loop takes them out and counts them


class PairBatch(Inputs):
    """Images with captions."""

    image_id: Tensor  # [B], equal for the same image, at least 0
    text_id: Tensor  # [B], equal for the same caption
    words: NotRequired[PackedText]  # how the texts lie; made on the host, it spares the device the waiting
    masked: NotRequired[Masked]  # the words that are to be filled in, likewise


class LabelBatch(Inputs):
    """Statements with the class of each."""

    labels: Tensor  # [B]


class AnswerBatch(Inputs):
    """Questions with all their answers."""

    answer_ids: Tensor  # [A, L], `[CLS] words [SEP]`
    answer_mask: Tensor  # [A, L]
    answer_of: Tensor  # [A], the question of each
    weights: Tensor  # [A]
    asked: NotRequired[PackedText]  # where a next word is asked for, made on the host


def moved(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch on a device. A GPU copies from pinned memory, so that nobody waits for it."""
    from torch.utils._pytree import tree_map  # slow to import, and only training needs it

    def move(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(device, non_blocking=True)

    return tree_map(move, batch)
