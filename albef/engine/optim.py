"""AdamW's groups and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from albef.errors import AlbefValueError
from albef.recipe import Optim


def make_optimizer(module: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW with two groups, as the original: no decay for biases and one-dimensional parameters, decay for the rest.

    The temperature has no dimension and so is decayed (spec quirk 6). For each of `optim.rates` there are two groups
    more, whose `rate` the learning rate is multiplied by. ValueError for one that fits no parameter.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for decay, named in zip((0.0, optim.weight_decay), parameter_groups(module), strict=True):
        for name, parameter in named:
            name = name.removeprefix("model.")  # of an objective
            part = max((part for part in optim.rates if name.startswith(part)), key=len, default="")
            groups.setdefault((part, decay), []).append(parameter)
    if unknown := sorted(optim.rates.keys() - {part for part, _ in groups}):
        raise AlbefValueError(
            f"optim.rates: no trained parameter's name begins with {', '.join(unknown)}; parts of the model are "
            f"{', '.join(sorted({name.removeprefix('model.').split('.')[0] for name, _ in module.named_parameters()}))}"
        )
    listed = [
        {"params": parameters, "weight_decay": decay, "rate": optim.rates.get(part, 1.0)}
        for (part, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(listed, lr=optim.lr, betas=optim.betas, fused=True)


def parameter_groups(module: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Named parameters without and with weight decay; frozen ones are in neither."""
    plain: list[tuple[str, nn.Parameter]] = []
    decayed: list[tuple[str, nn.Parameter]] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim == 1 or name.endswith(".bias") else decayed).append((name, parameter))
    return plain, decayed


def learning_rate(optim: Optim, progress: float) -> float:
    """Linear warm-up to `lr`, then half a cosine to `min_lr`; `progress` is the share of the run done, in [0, 1]."""
    if progress < optim.warmup:
        return optim.warmup_lr + (optim.lr - optim.warmup_lr) * progress / optim.warmup
    return _cosine(optim, (progress - optim.warmup) / (1 - optim.warmup))


def official_learning_rate(optim: Optim, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The original's rule for optimiser step `step` (from 0).

    Epoch 0 warms up by one of `warmup_epochs` notches every 100 iterations (the first lasts 101) and stays where it
    got to; every later epoch has one value of a cosine over `epochs`.
    """
    epoch = step // steps_per_epoch
    if epoch > 0:
        return _cosine(optim, epoch / epochs) if epoch < epochs else optim.min_lr
    notch = min(max(step - 1, 0) // 100, optim.warmup_epochs)
    if notch < optim.warmup_epochs:
        return optim.warmup_lr + notch * (optim.lr - optim.warmup_lr) / optim.warmup_epochs
    return optim.lr


def ramp(highest: float, step: float, steps: float) -> float:
    """What grows linearly from 0 to `highest` over `steps`, then stays."""
    return highest * min(1.0, step / steps) if steps else highest


def _cosine(optim: Optim, share: float) -> float:
    return optim.min_lr + 0.5 * (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * min(share, 1.0)))
