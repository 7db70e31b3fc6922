"""The few collective operations that training needs; each is the identity when the process is alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def ranks_of_this_host() -> int:
    """As torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if active() else 1


@contextmanager
def session() -> Iterator[torch.device]:
    """Joins the group that `torchrun` describes, if any, and gives the device of this process."""
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    started = "RANK" in os.environ and not active()
    if started:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
        if started:
            dist.barrier()  # a rank that takes leave while others still talk can make gloo abort them
    finally:
        if started:
            dist.destroy_process_group()


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without gradient: [B, ...] -> [world * B, ...]."""
    if not active():
        return x.detach()
    rows = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(rows, x.detach().contiguous())
    return torch.cat(rows)


def total(x: Tensor) -> Tensor:
    """Sum over the ranks, without gradient."""
    if not active():
        return x.detach()
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def highest(values: list[float], device: torch.device) -> list[float]:
    """Each value's maximum over the ranks."""
    if not active():
        return values
    x = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return x.tolist()


def wait() -> None:
    """Until all ranks are here."""
    if active():
        dist.barrier()


def gather_objects(x: Any) -> list[Any]:
    """One small Python object of every rank, in rank order."""
    if not active():
        return [x]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, x)
    return found
