"""Guards a run against numbers that are not finite: none reaches the weights or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from albef import distributed
from albef.errors import AlbefFloatingPointError


class Watch:
    """Takes the optimiser's steps, and keeps each step's losses and gradient norm until `check` or `means` is called.

    Until then nothing waits for the device. A step whose gradient norm is not finite is skipped, which the device
    decides; the norm is the same on all ranks, so all of them skip it. Both calls are collective operations.
    """

    def __init__(self, step: int, clip_norm: float) -> None:
        self.first, self.clip_norm = step + 1, clip_norm
        self.seen: dict[str, list[Tensor]] = {}
        self.sound: list[Tensor] = []

    def step(self, optimizer: torch.optim.Optimizer, losses: Mapping[str, Tensor]) -> None:
        """Takes one step with the gradients that the parameters have, clipped if `clip_norm` is set."""
        learnt = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in learnt if p.grad is not None])
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(learnt, self.clip_norm, norm)
        finite = norm.isfinite()
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # fused AdamW leaves out such a step
        optimizer.step()
        values = {**losses, "gradient_norm": norm}
        self.sound.append(torch.stack([value.detach().isfinite() for value in values.values()]).all())
        for name, value in values.items():
            self.seen.setdefault(name, []).append(value.detach())

    def check(self) -> None:
        """FloatingPointError, on all ranks, if a loss or norm since the last call was not finite on one of them."""
        if self.sound:
            broken = distributed.total((~torch.stack(self.sound)).int()).tolist()
            if any(broken):
                self._complain(next(place for place, count in enumerate(broken) if count))
            self.first += len(self.sound)
            self.sound = []

    def means(self) -> dict[str, float]:
        """The mean of every loss and of the norm since the last call, over all ranks; checks them first."""
        self.check()
        world = distributed.world_size()
        means = {name: float(distributed.total(torch.stack(seen).mean())) / world for name, seen in self.seen.items()}
        self.seen = {}
        return means

    def _complain(self, place: int) -> None:
        """`place` counts from the first step that was not checked yet. Some steps may lack a loss."""
        back = len(self.sound) - place
        values = ", ".join(f"{name} {float(seen[-back]):.4g}" for name, seen in self.seen.items() if len(seen) >= back)
        remedy = "set optim.clip_norm to 1" if not self.clip_norm else "lower optim.clip_norm"
        raise AlbefFloatingPointError(
            f"step {self.first + place}: a loss is not a number, or its gradient is not finite ({values}). The last "
            f"checkpoint is from before; lower optim.lr, or {remedy}"
        )
