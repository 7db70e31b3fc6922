"""Steps that are watched: no number that is not finite reaches the weights for good, or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from albef import distributed
from albef.errors import AlbefFloatingPointError


class Watch:
    """Takes the optimiser's steps, and keeps each step's losses and gradient norm until somebody looks at them.

    Nothing waits for the device until then. A step whose gradient norm is not finite is skipped on the device itself;
    that norm is the same on all ranks, so all of them skip it. Looking is a collective operation.
    """

    def __init__(self, step: int, clip_norm: float) -> None:
        self.first, self.clip_norm = step + 1, clip_norm
        self.seen: dict[str, list[Tensor]] = {}
        self.sound: list[Tensor] = []

    def step(self, optimizer: torch.optim.Optimizer, losses: Mapping[str, Tensor]) -> None:
        """A step of the optimiser with the gradients that its parameters have, clipped if that is asked for."""
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
        """FloatingPointError, on all ranks, if a loss or norm since the last look was not finite on one of them."""
        if self.sound:
            broken = distributed.total((~torch.stack(self.sound)).int()).tolist()
            if any(broken):
                self._complain(next(place for place, count in enumerate(broken) if count))
            self.first += len(self.sound)
            self.sound = []

    def means(self) -> dict[str, float]:
        """Means over the ranks of what was seen since the last call; checks it first."""
        self.check()
        world = distributed.world_size()
        means = {name: float(distributed.total(torch.stack(seen).mean())) / world for name, seen in self.seen.items()}
        self.seen = {}
        return means

    def _complain(self, place: int) -> None:
        """`place` counts from the first step that was not looked at yet; a loss may be missing in some steps."""
        back = len(self.sound) - place
        values = ", ".join(f"{name} {float(seen[-back]):.4g}" for name, seen in self.seen.items() if len(seen) >= back)
        remedy = "set optim.clip_norm to 1" if not self.clip_norm else "lower optim.clip_norm"
        raise AlbefFloatingPointError(
            f"step {self.first + place}: a loss is not a number, or its gradient is not finite ({values}). The last "
            f"checkpoint is from before; lower optim.lr, or {remedy}"
        )
