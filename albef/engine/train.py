"""The training loop. It knows recipes and tasks, but not what a task learns."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from albef import distributed
from albef.data.broken import Broken, BrokenCounter
from albef.engine.allocator import keep_freed_memory
from albef.engine.checkpointer import BEST, MODEL, PATTERN, Checkpointer, owned
from albef.engine.log import LOG, RunLog
from albef.engine.optim import learning_rate, make_optimizer, official_learning_rate
from albef.engine.runtime import Runtime
from albef.engine.state import RunState, check_format
from albef.engine.watch import Watch
from albef.errors import AlbefValueError
from albef.files import write_atomically
from albef.recipe import Recipe

RECIPE, SCORE = "recipe.json", "score.json"
Values = dict[str, Any]  # as JSON has them; those of a checkpoint may be tensors too


class _Read(TypedDict, total=False):
    broken: Broken  # images that could not be read; the loop counts them


Batch = TypeVar("Batch", bound=_Read)


class Task(Protocol[Batch]):
    """What the loop needs to know of a task."""

    objective: nn.Module
    find_unused_parameters: bool
    """Whether some parameters take no part in some steps."""
    pairs: int
    """Training pairs in one epoch."""

    def flops_per_pair(self) -> float:
        """Returns the floating-point operations of the last step per pair; 0 if they aren't counted."""

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yields this rank's batches from step `start_step` on, without end."""

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        """Takes a batch to the device, and does in float32 what is done to it before the objective sees it."""

    def losses(self, objective: nn.Module, batch: Batch, step: int, progress: float) -> dict[str, Tensor]:
        """Returns the step's losses by name; `progress` in [0, 1] is the share of the run that is done."""

    def evaluate(self) -> Values:
        """Returns the task's figures on the validation data, as JSON has them; none without such data."""

    def headline(self, figures: Values) -> str:
        """Returns the main figures in one line."""

    def score(self, figures: Values) -> float:
        """Returns the number that the best model is chosen by; higher is better."""

    def save_model(self, folder: Path) -> None:
        """Exports the model as it is now, for whoever loads it."""

    def state_dict(self) -> Values:
        """Returns what the task needs to be made again without its sources: plain values, no weights."""

    def fingerprint(self) -> Values:
        """Returns short values that tell the training data from others."""


MakeTask = Callable[[Recipe, Values | None], Task[Batch]]
"""Makes a task; for a run that goes on it is given what the task's `state_dict` returned before."""


class Interrupted(Exception):
    """The run was asked to stop, saved itself, and can go on."""


def train(make_task: MakeTask[Batch], recipe: Recipe, folder: Path, device: torch.device) -> Values:
    """Runs `recipe` in `folder` to its end, from the folder's checkpoint if there is one; returns the last evaluation.

    The folder receives `recipe.json`, `log.jsonl`, the last two checkpoints, and two exports that going on never reads:
    `model/`, written at the end of the run and when it is stopped, and `best/`, the model that evaluations found best,
    with its `score.json`. Every step's random numbers come from (seed, step, rank), so an interrupted run gives the
    same weights as one in a piece: to the bit on a CPU, and on a GPU with `deterministic` (unless `max_seconds` lets
    the clock decide). SIGTERM or Ctrl-C saves and raises `Interrupted`. RuntimeError if another process trains in the
    folder, ValueError if it holds a run of another recipe.
    """
    runtime = Runtime.of(recipe, device)
    with owned(folder) as checkpointer, runtime.settings():
        run = _begin(make_task, recipe, checkpointer, runtime)
        with run.log, _stop_signals() as stop:
            run.learn(stop)
    return run.state.evaluation


def _begin(make_task: MakeTask[Batch], recipe: Recipe, checkpointer: Checkpointer, runtime: Runtime) -> _Run[Batch]:
    """The run at its start or where it was saved. Nothing holds the checkpoint's file any longer than this."""
    check_recipe(recipe, checkpointer.folder)
    saved = checkpointer.load()
    if saved is not None:
        check_format(saved)
    task = make_task(recipe, saved["task"] if saved else None)
    return _Run(task, recipe, checkpointer, runtime, saved)


class _Run(Generic[Batch]):
    def __init__(
        self, task: Task[Batch], recipe: Recipe, checkpointer: Checkpointer, runtime: Runtime, saved: Values | None
    ) -> None:
        self.task, self.recipe, self.checkpointer, self.runtime = task, recipe, checkpointer, runtime
        self.folder, self.device = checkpointer.folder, runtime.device
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
        if self.device.type == "cpu":
            keep_freed_memory()
        task.objective.to(self.device)
        self.optimizer = make_optimizer(task.objective, recipe.optim)
        self.state = RunState(
            task.objective,
            self.optimizer,
            task.state_dict(),
            asdict(recipe),
            {"pairs": task.pairs, **task.fingerprint()},
            BrokenCounter(recipe.data.broken_limit),
        )
        if saved is None:
            _begin_folder(recipe, self.folder)
        else:
            self._go_on(saved)
        self.start = self.state.step
        self.progress = self.step_seconds = 0.0
        self.time_progress, self.stopped = self._time_progress(), False
        self.objective = self._distribute(task.objective)
        self.broken = BrokenCounter()
        self.watch = Watch(self.start, recipe.optim.clip_norm)
        self.logged = (self.start, self.state.seconds)
        self.mark = time.perf_counter()
        self.log = RunLog(
            self.folder, self.start, self.state.evaluated_step, self.steps, recipe.tensorboard, distributed.rank() > 0
        )

    def _go_on(self, saved: Values) -> None:
        """Takes over a checkpoint. ValueError for another number of pairs; other data of that number are said."""
        before, now = saved["fingerprint"], self.state.fingerprint
        if before["pairs"] != self.task.pairs:
            raise AlbefValueError(
                f"{self.folder} was trained on {before['pairs']} pairs, now there are {self.task.pairs}: the order of "
                "samples would differ. Restore the data, or start a new run with --init from this one's model"
            )
        if changes := sorted(key for key in before.keys() & now.keys() if before[key] != now[key]):
            warnings.warn(
                f"{self.folder}: the training data are not those that the run began with (different: "
                f"{', '.join(changes)}); it goes on with what is there now",
                stacklevel=2,
            )
        self.state.load_state_dict(saved)

    def learn(self, stop: list[int]) -> None:
        """Every remaining step, with logging, saving and evaluation in between."""
        recipe, state = self.recipe, self.state
        self.objective.train()
        if not state.finished:
            self.log.say(f"computes on {self.runtime}")
        if state.step and self._is_due(self.evaluate_steps):
            self._evaluate()  # that a crash cut off
        batches = self.task.batches(state.step)
        self.mark = time.perf_counter()
        while not self._finished(stop):
            rate = self._learn_from(next(batches))
            self._count()
            if self._is_due(recipe.log_steps):
                self._record(rate)
            if self._is_due(recipe.save_steps):
                self.save()
            if self._is_due(self.evaluate_steps):
                self._evaluate()
                if self._is_due(recipe.save_steps):
                    self.save()
            self.mark = time.perf_counter()  # that time is not training's
        if self.stopped:
            self._stop()
        if not state.finished:
            self._end()

    def _is_due(self, every: int) -> bool:
        """Whether it is time for what is done every `every` steps; 0 is never."""
        return bool(every) and self.state.step % every == 0

    def _stop(self) -> None:
        self.save()
        self._export()
        self.checkpointer.wait()  # with all ranks: one that left earlier would have the others killed while they write
        raise Interrupted(
            f"stopped at step {self.state.step} of {self.steps} and saved; go on with: albef train --resume "
            f"{self.folder}"
        )

    def _end(self) -> None:
        self.save()
        self.state.broken.check(final=True)
        if self.state.evaluated_step < self.state.step:
            self._evaluate()
        self._export()
        self.state.finished = True
        self.save()
        self.checkpointer.wait()

    def _export(self) -> None:
        if distributed.rank() == 0:
            self.task.save_model(self.folder / MODEL)

    def _learn_from(self, batch: Batch) -> float:
        """One step; returns its learning rate."""
        recipe, step = self.recipe, self.state.step
        torch.manual_seed((recipe.seed << 40) ^ (step << 10) ^ distributed.rank())
        if recipe.optim.schedule == "official":
            rate = official_learning_rate(recipe.optim, step, self.steps_per_epoch, recipe.epochs)
        else:
            rate = learning_rate(recipe.optim, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        read: _Read = batch
        self.broken.add(read.pop("broken", []), recipe.batch_size // self.runtime.ranks)
        batch = self.task.prepare(batch, self.device)
        with self.runtime.autocast():
            losses = self.task.losses(self.objective, batch, step, self.progress)
        torch.stack(list(losses.values())).sum().backward()
        self.watch.step(self.optimizer, losses)
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _count(self) -> None:
        """Counts a step and its time, of which a recent average predicts the rest of the run."""
        self.state.step += 1
        self.state.finished = False
        self.checkpointer.raise_failure()
        recent = min(50, self.state.step - self.start)
        self.step_seconds += (self._count_time() - self.step_seconds) / recent
        self.log.tick(self.state.step, self._eta(), self._expected_steps())

    def _count_time(self) -> float:
        """Adds the time since the last call to the run's; returns it."""
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        self.state.seconds += seconds
        return seconds

    def _record(self, rate: float) -> None:
        """Writes a line of the log: means since the line before."""
        means = self.watch.means()
        self._count_time()  # what the device still had to do
        state, (step, seconds) = self.state, self.logged
        self.logged = (state.step, state.seconds)
        speed = (state.step - step) * self.recipe.batch_size / (state.seconds - seconds)
        figures: Values = {**means, "lr": rate, "samples_per_second": speed, "seconds": state.seconds}
        peak = self.runtime.peak_flops()
        if peak and (flops := self.task.flops_per_pair()):
            figures["mfu"] = speed * flops / peak
        if self.device.type == "cuda":
            figures["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._gather_broken()
        if state.broken.failures:
            figures["broken"] = state.broken.failures
        if new := list(state.broken.reasons.items())[state.named :]:
            state.named += len(new)
            figures["broken_images"] = [f"{name} ({reason})" for name, reason in new]
            self.log.say(f"left out, because unreadable: {', '.join(figures['broken_images'])}")
        self.log.figures(state.step, figures, self._eta())
        state.broken.check()

    def _gather_broken(self) -> None:
        """Adds what all ranks could not read since the last call to the run's count."""
        own, self.broken = self.broken, BrokenCounter()
        seen, failures = distributed.total(torch.tensor([own.seen, own.failures], device=self.device)).tolist()
        named = distributed.gather_objects(list(own.reasons.items())) if failures else []
        self.state.broken.seen += seen
        self.state.broken.failures += failures
        self.state.broken.reasons.update(pair for part in named for pair in part)

    def _evaluate(self) -> None:
        """Evaluates the model in float32, as `albef evaluate` does, unless that was done at this step already."""
        state = self.state
        if state.evaluated_step == state.step:
            return
        self.objective.eval()
        state.evaluation = json.loads(json.dumps(self.task.evaluate(), default=float))  # NumPy's numbers
        self.objective.train()
        if state.evaluation:
            headline = self.task.headline(state.evaluation)
            self.log.evaluation(state.step, {"evaluation": state.evaluation, "seconds": state.seconds}, headline)
            self._keep_best(float(self.task.score(state.evaluation)))
        state.evaluated_step = state.step

    def _keep_best(self, score: float) -> None:
        """Exports the model with the highest score so far, beside the last one."""
        state = self.state
        if not score > (state.best[0] if state.best else float("-inf")):  # nor is a score that is no number
            return
        state.best = (score, state.step)
        if distributed.rank() == 0:
            self.task.save_model(self.folder / BEST)
            scored = {"score": score, "step": state.step, "evaluation": state.evaluation}
            write_atomically(self.folder / BEST / SCORE, json.dumps(scored) + "\n")

    def save(self) -> None:
        """Saves the state, once all ranks have seen that it is finite. The first rank writes; all hold the same."""
        self.watch.check()
        self._gather_broken()
        state = self.state
        suffix = "-finished" if state.finished else "-evaluated" if state.evaluated_step == state.step else ""
        self.checkpointer.save(f"{state.step:08}{suffix}", state.state_dict())

    def _distribute(self, objective: nn.Module) -> nn.Module:
        if not distributed.active():
            return objective
        # the queues are equal on all ranks by construction; broadcasting them would cost 134 MB a step (spec quirk 40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has a new name for the second argument
            return DistributedDataParallel(
                objective,
                device_ids=None if self.device.type == "cpu" else [self.device.index],
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=self.task.find_unused_parameters,
            )

    def _finished(self, stop: list[int]) -> bool:
        """Whether to end here. Also sets `progress`, the share of the run that is done, to one value on all ranks."""
        step = self.state.step
        # several ranks agree on clock and stop signal every tenth step only, because that is a synchronisation
        if not distributed.active() or step % 10 == 0 or step >= self.steps:
            self.time_progress, asked = distributed.highest([self._time_progress(), len(stop)], self.device)
            self.stopped = asked > 0
        self.progress = min(max(step / self.steps, self.time_progress), 1.0)
        return self.stopped or self.progress >= 1

    def _time_progress(self) -> float:
        """The share of the time limit that is over."""
        return self.state.seconds / self.recipe.max_seconds if self.recipe.max_seconds else 0.0

    def _expected_steps(self) -> int:
        """The run's length as it looks now: with a time limit, what its speed so far allows."""
        limit = self.recipe.max_seconds
        if not limit or not self.step_seconds:
            return self.steps
        return min(self.steps, self.state.step + max(0, round((limit - self.state.seconds) / self.step_seconds)))

    def _eta(self) -> float:
        return (self._expected_steps() - self.state.step) * self.step_seconds


def check_recipe(recipe: Recipe, folder: Path) -> None:
    """ValueError if the folder holds a run of another recipe: one that has a checkpoint or a line in its log.

    A run that failed at its start has neither, and does not stand in the way of its correction.
    """
    path, log = folder / RECIPE, folder / LOG
    if not path.is_file() or not (any(folder.glob(PATTERN)) or (log.is_file() and log.stat().st_size)):
        return
    different = sorted(_differences(asdict(Recipe.load(path)), asdict(recipe)))
    if different:
        raise AlbefValueError(
            f"{folder} holds a run of another recipe (different: {', '.join(different)}); go on with that one by "
            f"`albef train --resume {folder}`, delete the folder, or choose another --out"
        )


def _begin_folder(recipe: Recipe, folder: Path) -> None:
    """Saves the recipe. What an earlier run without a checkpoint left, its log and best model, is renamed and kept."""
    distributed.wait()  # until all have looked at what was there
    if distributed.rank() == 0:
        for path in (folder / BEST, folder / LOG):
            if path.exists():
                free = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.{n}").exists())
                path.rename(path.with_name(f"{path.name}.{free}"))
        recipe.save(folder / RECIPE)


def _differences(before: Values, now: Values, prefix: str = "") -> Iterator[str]:
    for key, value in now.items():
        if isinstance(value, dict):
            yield from _differences(before.get(key, {}), value, f"{prefix}{key}.")
        elif before.get(key) != value:
            yield prefix + key


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
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
