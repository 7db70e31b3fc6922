"""The few collective operations that training needs; each is the identity when the process is alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from albef.errors import AlbefRuntimeError

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: the first one reads and writes checkpoints and models for all."""


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def ranks_of_this_host() -> int:
    """How many of the ranks run on this host, by torchrun's variable."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if active() else 1


def own_device() -> torch.device:
    """The accelerator of this process (CUDA, XPU or Apple's MPS), of several the one of its rank; otherwise the CPU."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    ranks = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if kind is None or (kind.type == "mps" and ranks > 1):  # there are no collectives between MPS devices
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    count = torch.accelerator.device_count()
    if local >= count:
        raise AlbefRuntimeError(f"rank {local} of this host has no device, there are {count}; lower --nproc-per-node")
    return torch.device(kind.type, local)


@contextmanager
def session() -> Iterator[torch.device]:
    """Joins the group that `torchrun` describes, if any, and gives the device of this process.

    RuntimeError for processes that were started side by side without a rank, as `srun` does: each would train alone,
    all in one folder.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # of this srun; of the job, SLURM_NTASKS, there may be more
    if tasks > 1 and "RANK" not in os.environ:
        raise AlbefRuntimeError(
            f"srun starts {tasks} tasks, none of which has a RANK, so that each would work alone; use `srun "
            "--ntasks-per-node 1 torchrun --nproc-per-node GPUS -m albef ...`, or ask for one task"
        )
    device = own_device()
    alone = device.type == "cpu"
    if not alone:
        torch.accelerator.set_device_index(device.index)
    started = "RANK" in os.environ and not active()
    if started:
        backend = dist.get_default_backend_for_device(device)
        dist.init_process_group(backend, timeout=PATIENCE, device_id=None if alone else device)
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
    rows = x.new_empty(world_size() * x.shape[0], *x.shape[1:])
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the older name
    all_gather(rows, x.detach().contiguous())
    return rows


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
    """Waits until all ranks have called this."""
    if active():
        dist.barrier()


def gather_objects(x: Any) -> list[Any]:
    """One small Python object of every rank, in rank order."""
    if not active():
        return [x]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, x)
    return found


def from_first(x: Any) -> Any:
    """A small Python object of the first rank, on all ranks."""
    if not active():
        return x
    box = [x]
    dist.broadcast_object_list(box, 0)
    return box[0]
