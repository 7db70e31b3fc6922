"""Kills short runs by SIGKILL at random moments, has them go on, and compares their bytes with an undisturbed run's.

    python -m tests.kills --kills 20            one process
    python -m tests.kills --kills 20 --ranks 2  two, of which one is killed, and then the other, as torchrun does
    python -m tests.kills --kills 20 --real     a tiny pre-training instead of a toy

The moments are spread over the whole run, so that saves, evaluations and exports are hit too; `--seed` chooses them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

from albef import distributed
from albef.engine.checkpointer import read_newest
from albef.engine.train import train
from albef.tasks import make_task
from tests.toys import Toy, toy_recipe
from tests.worlds import make_world, tiny_recipe


class Slow(Toy):
    """Large enough that a save takes as long as some steps, with evaluations that last as long."""

    def __init__(self, recipe, saved=None):
        super().__init__(recipe, saved, size=200_000)

    def losses(self, *arguments):
        time.sleep(0.005)
        return super().losses(*arguments)

    def evaluate(self):
        time.sleep(0.01)
        return super().evaluate()


def start(folder: Path, options: argparse.Namespace) -> list[int]:
    """Processes, one for each rank, that train in `folder`; forked, so that nobody imports anything anew."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [_fork(folder, options, rank, port) for rank in range(options.ranks)]


def _fork(folder: Path, options: argparse.Namespace, rank: int, port: int) -> int:
    if process := os.fork():
        return process
    status = 1
    try:
        if options.ranks > 1:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(options.ranks), MASTER_ADDR="127.0.0.1")
            os.environ.update(LOCAL_RANK=str(rank), MASTER_PORT=str(port))
        os.dup2(os.open(folder.with_suffix(".txt"), os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)
        torch.set_num_threads(1)
        with distributed.session() as device:
            if options.real:
                world = options.work / "world" / "world.json"
                train(make_task, tiny_recipe(world, save_steps=3, evaluate_steps=4), folder, device)
            else:
                train(Slow, toy_recipe(), folder, device)
        status = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(status)


def finish(processes: list[int]) -> None:
    for process in processes:
        _, status = os.waitpid(process, 0)
        assert status == 0, f"a run that should have come to its end left with {status}"


def kill(processes: list[int], after: float, draw: random.Random) -> bool:
    """Kills one rank after so many seconds, and then the others; whether the run was still going on."""
    time.sleep(after)
    alive = os.waitpid(processes[-1], os.WNOHANG)[0] == 0
    order = draw.sample(processes if alive else processes[:-1], len(processes) - (not alive))
    for process in order:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return alive


def content(folder: Path) -> dict[str, object]:
    """All that a run leaves, but for the times it took."""
    state = read_newest(folder)
    assert state is not None and state["finished"]
    state.pop("seconds")
    found: dict[str, object] = {"objective": {k: v.numpy().tobytes() for k, v in state.pop("objective").items()}}
    for name, values in state.pop("optimizer").items():
        found[name] = {key: value.numpy().tobytes() for key, value in values.items()}
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        kept = {k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")}
        found[f"log {line['step']} {'evaluation' in line}"] = kept
    for path in [*(folder / "model").glob("*"), *(folder / "best").glob("*")]:
        found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    return {**found, **state}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    options.work = Path(tempfile.mkdtemp())
    make_world(options.work / "world")
    whole = options.work / "whole"
    started = time.perf_counter()
    finish(start(whole, options))
    duration = time.perf_counter() - started
    wanted, done = content(whole), 0
    while done < options.kills:
        folder = options.work / f"run-{done}"
        moments = [draw.uniform(0.1, 1.0) * duration]
        moments += [draw.uniform(0.05, 0.5) * duration for _ in range(draw.randrange(2))]
        for moment in moments:
            done += kill(start(folder, options), moment, draw)
        reached = sorted(path.name for path in folder.glob("checkpoint*.pt"))
        finish(start(folder, options))
        found = content(folder)
        different = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
        assert not different, f"seed {options.seed}, {folder}: {different} differ from the undisturbed run's"
        print(f"killed after {', '.join(f'{m:.2f}' for m in moments)} s of {duration:.2f}, from {reached[-1:]}: same")
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{done} kills (seed {options.seed}): every run goes on to the undisturbed run's bytes")
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
