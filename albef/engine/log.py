"""The log of a run: a live line, lines of JSON, and TensorBoard if asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from albef.errors import AlbefRuntimeError
from albef.files import write_atomically

LOG = "log.jsonl"


class RunLog:
    """Writes `log.jsonl` (and TensorBoard events), and shows one live line; silent on all ranks but the first.

    A run that goes on from step `start`, last evaluated at step `evaluated`, drops the lines after these steps, since
    it will write them again.
    """

    def __init__(self, folder: Path, start: int, evaluated: int, steps: int, tensorboard: bool, quiet: bool) -> None:
        self.quiet, self.steps = quiet, steps
        self.console = Console(stderr=True)
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.bar = self.live.add_task("train", total=steps, completed=start, eta="-:--", figures="")
        if not quiet:
            path = folder / LOG
            if path.exists():
                kept = [line for line in path.read_text().splitlines() if _is_kept(line, start, evaluated)]
                write_atomically(path, "".join(f"{line}\n" for line in kept))
            self.file = path.open("a")
        self.board = None
        if tensorboard and not quiet:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise AlbefRuntimeError("tensorboard=True needs `pip install albef[tensorboard]`") from error
            self.board = SummaryWriter(folder / "tensorboard", purge_step=start + 1)

    def __enter__(self) -> RunLog:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()
        if not self.quiet:
            self.file.close()
        if self.board:
            self.board.close()

    def tick(self, step: int, eta: float, steps: int) -> None:
        """Moves the bar; `eta` in seconds."""
        self.live.update(self.bar, completed=step, total=steps, eta=clock(eta))

    def figures(self, step: int, values: dict[str, Any], eta: float) -> None:
        """Records figures of a step and shows the main ones."""
        shown = "  ".join(f"{key} {_short(value)}" for key, value in values.items() if key in _SHOWN)
        self.live.update(self.bar, figures=shown)
        if not self.console.is_terminal:
            self.say(f"step {step:>6}  {shown}  ETA {clock(eta)}")
        self._write(step, values)

    def evaluation(self, step: int, values: dict[str, Any], headline: str) -> None:
        """Records an evaluation and shows its headline."""
        self.say(f"step {step:>6}  {headline}")
        self._write(step, values)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self.quiet:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board:
            for key, value in _flat(values):
                self.board.add_scalar(key, value, step)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


_SHOWN = ("itc", "itm", "mlm", "answer", "classify", "assign", "samples_per_second", "mfu")


def _is_kept(line: str, start: int, evaluated: int) -> bool:
    """Whether a line is about what the checkpoint holds. A line that a crash cut short is dropped."""
    try:
        values = json.loads(line)
    except ValueError:
        return False
    return values["step"] <= (evaluated if "evaluation" in values else start)


def clock(seconds: float) -> str:
    """12 -> 0:12, 3700 -> 1:01:40."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            rows.append((prefix + key, value))
    return rows
