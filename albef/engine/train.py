"""The loop: it knows recipes and tasks, and nothing of what is learnt."""

from __future__ import annotations

import contextlib
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from albef import distributed
from albef.data.broken import BrokenCounter
from albef.engine import checkpoint
from albef.engine.log import RunLog, peak_flops
from albef.engine.optim import learning_rate, make_optimizer, official_learning_rate
from albef.recipe import Recipe

RECIPE = "recipe.json"


class Task(Protocol):
    """What the loop needs to know of a task."""

    objective: nn.Module
    pairs: int
    """Training pairs in one epoch."""
    flops_per_pair: float
    """Floating-point operations of the last step, per pair."""

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]: ...

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]: ...

    def evaluate(self) -> dict[str, Any]: ...

    def headline(self, evaluation: dict[str, Any]) -> str:
        """An evaluation in one line."""

    def save_model(self, folder: Path) -> None: ...


class Interrupted(Exception):
    """The run was asked to stop, saved itself, and can go on."""


def train(task: Task, recipe: Recipe, folder: Path, device: torch.device) -> dict[str, Any]:
    """Runs `recipe` in `folder` to its end, from the folder's checkpoint if there is one; returns the last evaluation.

    The folder receives `recipe.json`, `log.jsonl`, `checkpoint.pt` and `model/`. Every step's random numbers come from
    (seed, step, rank), so an interrupted run gives the same weights as one in a piece. SIGTERM or Ctrl-C saves and
    raises `Interrupted`.
    """
    run = _Run(task, recipe, folder, device)
    with run.log, _stop_signals() as stop:
        run.learn(stop)
    return run.evaluation


class _Run:
    def __init__(self, task: Task, recipe: Recipe, folder: Path, device: torch.device) -> None:
        self.task, self.recipe, self.folder, self.device = task, recipe, folder, device
        self.steps_per_epoch = task.pairs // recipe.batch_size
        self.steps = recipe.steps or recipe.epochs * self.steps_per_epoch
        if not self.steps:
            raise ValueError(f"recipe {recipe.name!r}: set `steps` or `epochs` to say how long the run is")
        task.objective.to(device)
        self.optimizer = make_optimizer(task.objective, recipe.optim)
        self.step, self.seconds, self.evaluation = 0, 0.0, dict[str, Any]()
        self.progress = self.time_progress = 0.0
        self._restore()
        self.objective = self._distribute(task.objective)
        self.broken = BrokenCounter(recipe.data.broken_limit)
        self.log = RunLog(folder, self.step, self.steps, recipe.tensorboard, quiet=distributed.rank() > 0)
        self.seen: dict[str, list[Tensor]] = {}

    def learn(self, stop: list[int]) -> None:
        """Every remaining step, with evaluation, logging and saving in between."""
        recipe = self.recipe
        batches = self.task.batches(self.step)
        self.objective.train()
        mark, marked, first = time.perf_counter(), self.step, self.step
        while not self._finished(stop):
            started = time.perf_counter()
            figures = self._learn_from(next(batches))
            self.seconds += time.perf_counter() - started
            self.step += 1
            self.log.tick(self.step, self._eta(first), self._expected_steps())
            if self.step % recipe.log_steps == 0:
                speed = (self.step - marked) * recipe.batch_size / (time.perf_counter() - mark)
                self._record(figures, speed, first)
                mark, marked = time.perf_counter(), self.step
            if recipe.evaluate_steps and self.step % recipe.evaluate_steps == 0:
                pause = time.perf_counter()
                self._evaluate()
                mark += time.perf_counter() - pause
            if recipe.save_steps and self.step % recipe.save_steps == 0:
                pause = time.perf_counter()
                self.save()
                mark += time.perf_counter() - pause
        self.broken.check(final=True)
        if stop:
            self.save()
            raise Interrupted(
                f"stopped at step {self.step} of {self.steps} and saved; go on with: albef train --resume {self.folder}"
            )
        if self.step > first or not self.evaluation:
            if not recipe.evaluate_steps or self.step % recipe.evaluate_steps:
                self._evaluate()
            self.save()
        if self.broken.failures:
            self.log.say(self.broken.report())

    def _learn_from(self, batch: dict[str, Any]) -> dict[str, float]:
        recipe = self.recipe
        torch.manual_seed(((recipe.seed << 40) ^ (self.step << 10) ^ distributed.rank()) % 2**63)
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.broken.add(batch.pop("broken", []), recipe.batch_size // distributed.world_size())
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        with autocast(self.device, recipe.precision):
            losses = self.task.losses(self.objective, batch, self.step, self.progress)
        torch.stack(list(losses.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.task.objective.parameters(), recipe.optim.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name, value in {**losses, "gradient_norm": norm}.items():
            self.seen.setdefault(name, []).append(value.detach())
        return {"lr": rate}

    def _record(self, figures: dict[str, float], speed: float, first: int) -> None:
        """A line of the log: means since the last one."""
        world = distributed.world_size()
        means = {name: float(distributed.total(torch.stack(seen).mean())) / world for name, seen in self.seen.items()}
        self.seen.clear()
        if not all(value == value for value in means.values()):
            raise FloatingPointError(f"step {self.step}: a loss is not a number ({means}); lower optim.lr or clip_norm")
        figures = means | figures | {"samples_per_second": speed, "seconds": self.seconds}
        peak = peak_flops(self.device)
        if peak:
            figures["mfu"] = speed * self.task.flops_per_pair / (peak * distributed.world_size())
            figures["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        if self.broken.failures:
            figures["broken"] = self.broken.failures
        self.broken.check()
        self.log.figures(self.step, figures, self._eta(first))

    def _evaluate(self) -> None:
        self.objective.eval()
        with autocast(self.device, self.recipe.precision):
            self.evaluation = self.task.evaluate()
        self.objective.train()
        if self.evaluation:
            headline = self.task.headline(self.evaluation)
            self.log.evaluation(self.step, {"evaluation": self.evaluation, "seconds": self.seconds}, headline)

    def save(self) -> None:
        """Checkpoint and model, by the first rank (all hold the same)."""
        if distributed.rank() == 0:
            self.task.save_model(self.folder / "model")
            state = {
                "objective": self.task.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "evaluation": self.evaluation,
            }
            checkpoint.save(self.folder, state)

    def _restore(self) -> None:
        state = checkpoint.load(self.folder)
        if state is None:
            return
        self.task.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.evaluation = state["step"], state["seconds"], state["evaluation"]

    def _distribute(self, objective: nn.Module) -> nn.Module:
        if not distributed.active():
            return objective
        options = self.recipe.pretraining
        # the queues are equal on all ranks by construction; broadcasting them would cost 134 MB a step (spec quirk 40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has a new name for the second argument
            return DistributedDataParallel(
                objective,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=options.align_first > 0 or not options.itc,
            )

    def _finished(self, stop: list[int]) -> bool:
        """Whether to end here; also settles `progress`, the share of the run that is done, for all ranks alike."""
        if self.recipe.max_seconds and self.step % self._agree_steps == 0:
            self.time_progress = self.seconds / self.recipe.max_seconds
        stopped = bool(stop)
        if distributed.active():
            stopped = False
            if self.step % self._agree_steps == 0 or self.step >= self.steps:
                self.time_progress, asked = distributed.highest([self.time_progress, float(len(stop))], self.device)
                stopped = asked > 0
                stop.extend([1] * (stopped and not stop))
        self.progress = min(max(self.step / self.steps, self.time_progress), 1.0)
        return stopped or self.progress >= 1

    @property
    def _agree_steps(self) -> int:
        """How often the ranks agree on clock and stop signal: that costs a synchronisation."""
        return 10 if distributed.active() else 1

    def _learning_rate(self) -> float:
        if self.recipe.optim.schedule == "official":
            return official_learning_rate(self.recipe.optim, self.step, self.steps_per_epoch, self.recipe.epochs)
        return learning_rate(self.recipe.optim, self.progress)

    def _expected_steps(self) -> int:
        """The run's length as it looks now: with a time limit, what its speed so far allows."""
        limit = self.recipe.max_seconds
        if not limit or not self.seconds:
            return self.steps
        return max(self.step, min(self.steps, round(self.step * limit / self.seconds)))

    def _eta(self, first: int) -> float:
        return (self._expected_steps() - self.step) * self.seconds / max(self.step, 1)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bfloat16 where asked for, or where `auto` finds a device that computes in it."""
    if precision == "auto":
        precision = "bfloat16" if _computes_in_bfloat16(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # younger than the oldest torch we take
    return bool(capabilities and capabilities().get("avx512_bf16"))


def prepare_folder(recipe: Recipe, folder: Path) -> None:
    """Makes the run's folder and saves the recipe in it; a folder of another recipe is an error."""
    path = folder / RECIPE
    if distributed.rank() == 0 and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
    distributed.wait()
    different = sorted(_differences(asdict(Recipe.load(path)), asdict(recipe)))
    if different:
        raise ValueError(
            f"{folder} holds a run of another recipe (different: {', '.join(different)}); go on with that one by "
            f"`albef train --resume {folder}`, delete the folder, or choose another --out"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in now.items():
        if isinstance(value, dict):
            yield from _differences(before.get(key, {}), value, f"{prefix}{key}.")
        elif before.get(key) != value:
            yield prefix + key


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    old = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread: whoever called decides
            old[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
