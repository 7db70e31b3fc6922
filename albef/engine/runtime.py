"""The device and the precision of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from albef import distributed
from albef.recipe import Recipe

# dense TFLOP/s by precision, from the makers' data sheets; the names are those that the driver gives
_H100: dict[str, float] = {"float32": 67, "tf32": 494, "bfloat16": 989}
_A100: dict[str, float] = {"float32": 19.5, "tf32": 156, "bfloat16": 312}
_PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA H200": _H100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": {"float32": 51, "tf32": 378, "bfloat16": 756},
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L40S": {"float32": 91.6, "tf32": 183, "bfloat16": 362},
    "NVIDIA L4": {"float32": 30.3, "tf32": 60, "bfloat16": 121},
    "NVIDIA A10": {"float32": 31.2, "tf32": 62.5, "bfloat16": 125},
    "NVIDIA GeForce RTX 4090": {"float32": 82.6, "tf32": 82.6, "bfloat16": 165},
}


@dataclass(frozen=True)
class Runtime:
    """The device and the precision of a run, chosen once at its start; `precision` is never `auto` here."""

    device: torch.device
    precision: str
    deterministic: bool = False
    ranks: int = 1

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> Runtime:
        precision = recipe.precision
        if precision == "auto":
            precision = "bfloat16" if computes_in_bfloat16(device) else "float32"
        return cls(device, precision, recipe.deterministic, distributed.world_size())

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.device, self.precision)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Sets PyTorch's switches for the run, and restores them after it."""
        matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        exact = torch.are_deterministic_algorithms_enabled()
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first kernel starts
            torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            torch.backends.cudnn.allow_tf32 = conv
            torch.use_deterministic_algorithms(exact)

    def peak_flops(self) -> float | None:
        """Dense FLOP/s of all devices in this precision; None for one that is not in the table."""
        if self.device.type != "cuda":
            return None
        peak = _PEAKS.get(torch.cuda.get_device_name(self.device), {}).get(self.precision)
        return peak and peak * 1e12 * self.ranks

    def __str__(self) -> str:
        """`cpu in float32, the device does not compute in bfloat16`, as the run's first line says it."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        times = f"{self.ranks} x " if self.ranks > 1 else ""
        lacks = "" if computes_in_bfloat16(self.device) else ", the device does not compute in bfloat16"
        return f"{times}{name} in {self.precision}{lacks}"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bfloat16 where asked for, or where `auto` finds a device that computes in it."""
    wanted = precision == "bfloat16" or (precision == "auto" and computes_in_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device itself computes in bfloat16. Emulation doesn't count, nor does MPS, where that depends on the
    system's version."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported()
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # younger than the oldest torch we take
    return device.type == "cpu" and bool(capabilities and capabilities().get("avx512_bf16"))
