"""What a step learns from: tensors by name, as the loader's workers make them and the objectives take them.

A batch is a dictionary, so that PyTorch's loader pins it and users can make one by hand; its kinds say what is in it.
"""

# B examples, A answers of all, L words of the longest text, H x W pixels

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from albef.models.layout import PackedText
    from albef.objectives.pretrain import Masked

B = TypeVar("B", bound="Inputs")


class Inputs(TypedDict):
    """What every model takes."""

    pixel_values: Tensor  # [B, 3, H, W], or [B, 2, 3, H, W] for pairs; uint8 until they are normalised
    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L], 1 for a word


class _Identified(Inputs):
    image_id: Tensor  # [B], equal for the same image, at least 0
    text_id: Tensor  # [B], equal for the same caption


class PairBatch(_Identified, total=False):
    """Images with captions."""

    words: PackedText  # how the texts lie; made on the host, it spares the device the waiting
    masked: Masked  # the words that are to be filled in, likewise


class LabelBatch(Inputs):
    """Statements with the class of each."""

    labels: Tensor  # [B]


class _Answered(Inputs):
    answer_ids: Tensor  # [A, L], `[CLS] words [SEP]`
    answer_mask: Tensor  # [A, L]
    answer_of: Tensor  # [A], the question of each
    weights: Tensor  # [A]


class AnswerBatch(_Answered, total=False):
    """Questions with all their answers."""

    asked: PackedText  # where a next word is asked for, made on the host


def moved(batch: B, device: torch.device) -> B:
    """The batch on a device. A GPU copies from pinned memory, so that nobody waits for it."""
    from torch.utils._pytree import tree_map  # slow to import, and only training needs it

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(device, non_blocking=True)

    return tree_map(move, batch)
