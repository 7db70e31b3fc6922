"""Two processes as torchrun would start them."""

import os
import socket
import sys

import torch

from albef import distributed


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def two_ranks(work, *arguments):
    """Runs `work(rank, *arguments)` in two processes that make a gloo group; what one of them raises is raised here."""
    torch.multiprocessing.spawn(_join, (free_port(), work, arguments), nprocs=2)


def _join(rank, port, work, arguments):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with distributed.session():
        work(rank, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter and then abort it
