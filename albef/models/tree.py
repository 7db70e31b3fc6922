"""Values of several tensors that cross the borders of modules, as PyTorch's export, compilation and hooks know them."""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T")


def tree(cls: type[T]) -> type[T]:
    """Decorator of a dataclass: its fields become the branches that `torch.utils._pytree` finds."""
    torch.export.register_dataclass(cls, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}")
    return cls
