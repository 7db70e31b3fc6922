"""A device that nobody has: code that mixes it with the CPU, or gives its tensors to numpy, fails as on a GPU.

Its tensors are fake: they have a shape, a dtype and a device, and no numbers. Registering a backend is for a whole
process and can't be undone, so a test calls `in_a_process_of_its_own` and does its work in the function that it names:

    def test_training_on_an_accelerator():
        in_a_process_of_its_own("tests.test_accelerator:train")

    def train():
        with accelerator() as gpu:
            model = gpu.move(AlbefModel(TINY))
            model.encode_image(gpu.move(torch.zeros(2, 3, 32, 32)))
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "gpu"
T = TypeVar("T")


@dataclass(frozen=True)
class Accelerator:
    """What `accelerator` gives; inside of it new tensors are fake, those of the CPU too."""

    mode: FakeTensorMode
    device: torch.device

    def move(self, value: T) -> T:
        """A module (in place), a tensor, or a tree of tensors, real or fake, as fake ones on the device."""
        if isinstance(value, nn.Module):
            for part in value.modules():
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        with unset_fake_temporarily():
                            values = parameter.detach()
                        part._parameters[name] = nn.Parameter(self.move(values), parameter.requires_grad)
                for name, buffer in part._buffers.items():
                    part._buffers[name] = None if buffer is None else self.move(buffer)
            return value
        if isinstance(value, Tensor):
            return self.fake(value).to(self.device)  # type: ignore[return-value]
        return tree_map_only(Tensor, self.move, value)

    def fake(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU as a fake one of the CPU, for what a caller passes from the host."""
        return self.mode.fake_tensor_converter.from_real_tensor(self.mode, tensor)


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """The device, registered in this process for good, and the mode in which its tensors exist.

    Build modules before (copying a fake module fails), then `move` them. How many numbers a data-dependent operation
    finds is unknown there: the code must not ask.
    """
    _register()
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        yield Accelerator(mode, torch.device(NAME, 0))


class _Backend(_DummyBackendModule):
    """What autocast asks of a device."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


def _register() -> None:
    if torch._C._get_privateuse1_backend_name() != NAME:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())


def in_a_process_of_its_own(function: str, *arguments: str) -> str:
    """Calls `module:function` with texts in a fresh Python; returns what it prints. AssertionError if it raises."""
    module, name = function.split(":")
    # left at once: PyTorch's threads may outlive the interpreter and then abort it
    code = f"import os, sys, {module}; {module}.{name}(*sys.argv[1:]); sys.stdout.flush(); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
