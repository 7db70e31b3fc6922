"""Long readings show how far they are; short ones say nothing."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0  # seconds before a bar is worth its lines
Item = TypeVar("Item")
Result = TypeVar("Result")


def tracked(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """`items`, with a bar on the terminal once they take longer than PATIENCE; of several ranks the first draws it."""
    progress = _progress()
    bar, start = progress.add_task(what, total=total), time.monotonic()
    try:
        for item in items:
            yield item
            progress.advance(bar)
            if not progress.live.is_started and time.monotonic() - start > PATIENCE:
                progress.start()
    finally:
        if progress.live.is_started:
            progress.stop()


def with_bar(what: str, total: int, work: Callable[[Callable[[int], None]], Result]) -> Result:
    """What `work` returns, with a bar while it works; it is given a function to tell its progress to."""
    with _progress() as progress:
        bar = progress.add_task(what, total=total)
        return work(lambda count: progress.advance(bar, count))


def _progress() -> Progress:
    """On a terminal, and of several ranks for the first."""
    hidden = not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"
    return Progress(console=Console(stderr=True), transient=True, disable=hidden)
