"""The loop: it knows recipes and tasks, and nothing of what is learnt."""

from __future__ import annotations

import contextlib
import json
import shutil
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
from albef.engine.memory import keep_freed_memory
from albef.engine.optim import learning_rate, make_optimizer, official_learning_rate
from albef.errors import AlbefFloatingPointError, AlbefValueError
from albef.files import write_atomically
from albef.recipe import Recipe

RECIPE, MODEL, BEST, SCORE = "recipe.json", "model", "best", "score.json"


class Task(Protocol):
    """What the loop needs to know of a task."""

    objective: nn.Module
    find_unused_parameters: bool
    """Whether some parameters take no part in some steps."""
    pairs: int
    """Training pairs in one epoch."""

    def flops_per_pair(self) -> float:
        """Floating-point operations of the last step, per pair; 0 if they aren't counted."""

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]: ...

    def prepare(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Takes a batch to the device, and does what is done to it, in float32, before the objective sees it."""

    def losses(self, objective: nn.Module, batch: dict[str, Any], step: int, progress: float) -> dict[str, Tensor]: ...

    def evaluate(self) -> dict[str, Any]: ...

    def headline(self, evaluation: dict[str, Any]) -> str:
        """An evaluation in one line."""

    def score(self, evaluation: dict[str, Any]) -> float:
        """What the best model is chosen by; higher is better."""

    def save_model(self, folder: Path) -> None: ...


class Interrupted(Exception):
    """The run was asked to stop, saved itself, and can go on."""


def train(task: Task, recipe: Recipe, folder: Path, device: torch.device) -> dict[str, Any]:
    """Runs `recipe` in `folder` to its end, from the folder's checkpoint if there is one; returns the last evaluation.

    The folder receives `recipe.json`, `log.jsonl`, `checkpoint.pt`, `model/`, and `best/`: the model that evaluations
    during the run found best, with its `score.json`. Every step's random numbers come from
    (seed, step, rank), so an interrupted run gives the same weights as one in a piece (unless `max_seconds` lets the
    clock decide). SIGTERM or Ctrl-C saves and raises `Interrupted`.
    """
    run = _Run(task, recipe, folder, device)
    with run.log, _stop_signals() as stop:
        run.learn(stop)
    return run.evaluation


class _Run:
    def __init__(self, task: Task, recipe: Recipe, folder: Path, device: torch.device) -> None:
        self.task, self.recipe, self.folder, self.device = task, recipe, folder, device
        if task.pairs < recipe.batch_size:
            raise AlbefValueError(
                f"recipe {recipe.name!r}: batch_size {recipe.batch_size} is more than the {task.pairs} training pairs; "
                "lower it or add data"
            )
        self.steps_per_epoch = task.pairs // recipe.batch_size
        self.evaluate_steps = self.steps_per_epoch if recipe.evaluate_steps is None else recipe.evaluate_steps
        self.steps = recipe.steps or recipe.epochs * self.steps_per_epoch
        if not self.steps:
            raise AlbefValueError(f"recipe {recipe.name!r}: set `steps` or `epochs` to say how long the run is")
        if device.type == "cpu":
            keep_freed_memory()
        task.objective.to(device)
        self.optimizer = make_optimizer(task.objective, recipe.optim)
        self.step, self.seconds, self.evaluation = 0, 0.0, dict[str, Any]()
        self.progress = self.time_progress = self.step_seconds = 0.0
        self._restore()
        self.start = self.step
        self.objective = self._distribute(task.objective)
        self.broken = BrokenCounter(recipe.data.broken_limit)
        self.log = RunLog(folder, self.step, self.steps, recipe.tensorboard, quiet=distributed.rank() > 0)
        self.seen: dict[str, list[Tensor]] = {}
        self.logged = (self.step, 0.0)
        self.named = 0

    def learn(self, stop: list[int]) -> None:
        """Every remaining step, with logging, saving and evaluation in between."""
        recipe = self.recipe
        batches = self.task.batches(self.step)
        self.objective.train()
        while not self._finished(stop):
            started = time.perf_counter()
            rate = self._learn_from(next(batches))
            self._count(time.perf_counter() - started)
            if self.step % recipe.log_steps == 0:
                self._record(rate)
            if recipe.save_steps and self.step % recipe.save_steps == 0:
                self.save()
            if self.evaluate_steps and self.step % self.evaluate_steps == 0:
                self._evaluate()
        if stop:
            self.save()
            raise Interrupted(
                f"stopped at step {self.step} of {self.steps} and saved; go on with: albef train --resume {self.folder}"
            )
        if self.step > self.start or not self.evaluation:
            self.save()
            self.broken.check(final=True)
            if not self.evaluate_steps or self.step % self.evaluate_steps:
                self._evaluate()
            self.save()

    def _learn_from(self, batch: dict[str, Any]) -> float:
        """One step; returns its learning rate."""
        recipe = self.recipe
        torch.manual_seed((recipe.seed << 40) ^ (self.step << 10) ^ distributed.rank())
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.broken.add(batch.pop("broken", []), recipe.batch_size // distributed.world_size())
        batch = self.task.prepare(batch, self.device)
        with autocast(self.device, recipe.precision):
            losses = self.task.losses(self.objective, batch, self.step, self.progress)
        torch.stack(list(losses.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.task.objective.parameters(), recipe.optim.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name, value in {**losses, "gradient_norm": norm}.items():
            self.seen.setdefault(name, []).append(value.detach())
        return rate

    def _count(self, seconds: float) -> None:
        """Counts a step and the time it took; the recent average foretells the rest."""
        self.step += 1
        self.seconds += seconds
        recent = min(50, self.step - self.start)
        self.step_seconds += (seconds - self.step_seconds) / recent
        self.log.tick(self.step, self._eta(), self._expected_steps())

    def _record(self, rate: float) -> None:
        """A line of the log: means since the last one."""
        means = self._means()
        step, seconds = self.logged
        self.logged = (self.step, self.seconds)
        speed = (
            (self.step - step)
            * self.recipe.batch_size
            / (self.seconds - seconds if step > self.start else self.seconds)
        )
        figures: dict[str, Any] = {**means, "lr": rate, "samples_per_second": speed, "seconds": self.seconds}
        peak = peak_flops(self.device)
        if peak and (flops := self.task.flops_per_pair()):
            figures["mfu"] = speed * flops / (peak * distributed.world_size())
        if self.device.type == "cuda":
            figures["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        if self.broken.failures:
            figures["broken"] = self.broken.failures
            self._name_broken(figures)
        self.log.figures(self.step, figures, self._eta())
        self.broken.check()

    def _means(self) -> dict[str, float]:
        """Of what was seen since the last call, over all ranks; a loss that is not a number ends the run here."""
        world = distributed.world_size()
        means = {name: float(distributed.total(torch.stack(seen).mean())) / world for name, seen in self.seen.items()}
        self.seen.clear()
        if not all(value == value for value in means.values()):
            raise AlbefFloatingPointError(
                f"step {self.step}: a loss is not a number ({means}); lower optim.lr, or set optim.clip_norm to 1"
            )
        return means

    def _name_broken(self, figures: dict[str, Any]) -> None:
        """Names the images that turned out unreadable since the last line, in the log and on the screen."""
        new = [f"{name} ({reason})" for name, reason in list(self.broken.reasons.items())[self.named :]]
        self.named += len(new)
        if new:
            figures["broken_images"] = new
            self.log.say(f"left out, because unreadable: {', '.join(new)}")

    def _evaluate(self) -> None:
        """In float32, as `albef evaluate` does."""
        self.objective.eval()
        self.evaluation = self.task.evaluate()
        self.objective.train()
        if self.evaluation:
            headline = self.task.headline(self.evaluation)
            self.log.evaluation(self.step, {"evaluation": self.evaluation, "seconds": self.seconds}, headline)
            self._keep_best()

    def _keep_best(self) -> None:
        """The model with the highest score so far, beside the last one."""
        if distributed.rank():
            return
        score, path = self.task.score(self.evaluation), self.folder / BEST / SCORE
        best = json.loads(path.read_text())["score"] if path.exists() else float("-inf")
        if score > best:
            self.task.save_model(path.parent)
            scored = {"score": score, "step": self.step, "evaluation": self.evaluation}
            write_atomically(path, json.dumps(scored) + "\n")

    def save(self) -> None:
        """Checkpoint and model, by the first rank (all hold the same)."""
        if any(not torch.isfinite(torch.stack(seen)).all() for seen in self.seen.values()):
            self._means()  # says what is wrong, and keeps the last good checkpoint
        if distributed.rank() == 0:
            self.task.save_model(self.folder / MODEL)
            state = {
                "objective": self.task.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "evaluation": self.evaluation,
                "pairs": self.task.pairs,
            }
            checkpoint.save(self.folder, state)

    def _restore(self) -> None:
        state = checkpoint.load(self.folder)
        self.step = state["step"] if state else 0
        if distributed.highest([self.step, -self.step], self.device) != [self.step, -self.step]:
            raise AlbefValueError(f"the ranks see different checkpoints in {self.folder}; it must be a shared folder")
        if state is None:
            distributed.wait()  # until all have looked
            if distributed.rank() == 0:
                shutil.rmtree(self.folder / BEST, ignore_errors=True)  # of a run that is begun anew
            return
        if state["pairs"] != self.task.pairs:
            raise AlbefValueError(
                f"{self.folder} was trained on {state['pairs']} pairs, now there are {self.task.pairs}: the order of "
                "samples would differ. Restore the data, or start a new run with --init from this one's model"
            )
        self.task.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds, self.evaluation = state["seconds"], state["evaluation"]
        if self.recipe.max_seconds:
            self.time_progress = self.seconds / self.recipe.max_seconds

    def _distribute(self, objective: nn.Module) -> nn.Module:
        if not distributed.active():
            return objective
        # the queues are equal on all ranks by construction; broadcasting them would cost 134 MB a step (spec quirk 40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has a new name for the second argument
            return DistributedDataParallel(
                objective,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=self.task.find_unused_parameters,
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
        if not limit or not self.step_seconds:
            return self.steps
        return min(self.steps, self.step + max(0, round((limit - self.seconds) / self.step_seconds)))

    def _eta(self) -> float:
        return (self._expected_steps() - self.step) * self.step_seconds


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bfloat16 where asked for, or where `auto` finds a device that computes in it."""
    if precision == "auto":
        precision = "bfloat16" if _computes_in_bfloat16(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
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
        raise AlbefValueError(
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
