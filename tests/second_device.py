"""A device with numbers: what runs there is computed, on the CPU in truth, and refuses to meet tensors of the CPU.

`tests/accelerator.py` has no numbers, so code that reads words' lengths from the host can't run on it. This one serves
whole pipelines and evaluations. It shares the other's rule: work in a process of its own, for a backend stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests import accelerator

MOVES = ("_to_copy", "copy_")  # operations that may meet both devices; indices may lie on the CPU, as with a GPU
INDEXES = ("index", "index_put", "index_put_")


def device() -> torch.device:
    """The device; its name is known once a process has entered `second_device`."""
    return torch.device(accelerator.NAME, 0)


class There(torch.Tensor):
    """A tensor on the device; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="meta"
        )  # PyTorch's own code takes it for a tensor without numbers, and leaves all work on it to us

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return device()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU's numbers; its result lies where its operands lie, or where `device` says."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    theirs = [leaf for leaf in leaves if isinstance(leaf, There)]
    name = func.overloadpacket.__name__
    if theirs and name not in MOVES:
        looked_at = tree_leaves(args[:1]) if name in INDEXES else leaves
        if any(leaf.ndim and not isinstance(leaf, There) for leaf in looked_at if isinstance(leaf, Tensor)):
            raise RuntimeError(f"{name}: found at least two devices, {accelerator.NAME} and cpu")
    asked = kwargs.get("device")
    there = bool(theirs) if asked is None else torch.device(asked).type in (accelerator.NAME, "meta")
    options = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    found = func(*_inner(args), **_inner(options))
    if name.endswith("_") and not name.startswith("_"):
        return args[0]
    return tree_map_only(Tensor, There, found) if there else found


def _inner(values: Any) -> Any:
    return tree_map_only(There, lambda tensor: tensor.inner, values)


class _Mode(TorchDispatchMode):
    """Tensors that are made for the device are made there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """For what reaches no dispatch mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is Tensor.tolist:
            return args[0].cpu().numpy().tolist() if isinstance(args[0], There) else func(*args)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1], dtype=torch.long)
        place = options.pop("device", None) if func is torch.tensor else None
        found = func(*args, **options)
        return found if place is None else found.to(place)


@contextmanager
def second_device() -> Iterator[None]:
    """Inside of it tensors can be moved to the device, or made there."""
    accelerator._register()
    with _Functions(), _Mode():
        yield


def move(model: nn.Module) -> None:
    """Weights and buffers to the device, in place."""
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(There(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else There(buffer)
