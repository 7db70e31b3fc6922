"""The momentum teacher and the queues of its features (paper §3.2, §3.3)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MomentumTeacher(nn.Module):
    """A copy of a model that follows it slowly: p_teacher <- momentum * p_teacher + (1 - momentum) * p.

    Only parameters are averaged, not buffers, and those that are frozen when the teacher is made are shared. The copy
    stays in evaluation mode, unless `dropout` keeps it in training mode as in the original.
    """

    def __init__(self, model: nn.Module, momentum: float, dropout: bool = False) -> None:
        super().__init__()
        self.momentum, self.dropout = momentum, dropout
        shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        self.model: Any = deepcopy(model, shared).requires_grad_(False)

    def train(self, mode: bool = True) -> MomentumTeacher:
        return super().train(mode and self.dropout)

    @torch.no_grad()
    def copy(self, model: nn.Module) -> None:
        """Starts anew from the weights of `model`."""
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        own, followed = zip(*((mine, other) for mine, other in pairs if mine is not other), strict=True)
        torch._foreach_lerp_(own, followed, 1 - self.momentum)


class FeatureQueue(nn.Module):
    """The teacher's last `size` image and text features, with what identifies their image and caption.

    Any size goes with any batch: writing wraps around (the original requires size % batch == 0, spec quirk 19). The
    start is noise, the same on all ranks.
    """

    def __init__(self, size: int, embed_dim: int) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, F.normalize(torch.randn(size, embed_dim, generator=noise), dim=-1))
        for name in ("image_id", "text_id"):
            self.register_buffer(name, torch.full((size,), -100))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    image_queue: Tensor  # [Q, E]
    text_queue: Tensor  # [Q, E]
    image_id: Tensor  # [Q]
    text_id: Tensor  # [Q]
    pointer: Tensor  # []

    def contents(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image features [Q, E], text features [Q, E], image ids [Q], caption ids [Q]."""
        return self.image_queue, self.text_queue, self.image_id, self.text_id

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, image_id: Tensor, text_id: Tensor) -> None:
        """Replaces the oldest rows; of a batch larger than the queue only the last `size` rows stay."""
        size = len(self.image_queue)
        places = (self.pointer + torch.arange(len(image), device=image.device)) % size
        for buffer, rows in zip(self.contents(), (image, text, image_id, text_id), strict=True):
            buffer.index_copy_(0, places[-size:], rows[-size:].to(buffer.dtype))
        self.pointer.copy_((self.pointer + len(image)) % size)
