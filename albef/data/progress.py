"""A long reading shows on the terminal how far it is; a short one shows nothing."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0  # seconds after which a bar appears
Item = TypeVar("Item")
Result = TypeVar("Result")


def tracked(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yields the `items`, and draws a bar on the terminal once they take longer than PATIENCE seconds."""
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
    """Returns what `work` returns, and draws a bar meanwhile. `work` is given a function that it tells its progress."""
    with _progress() as progress:
        bar = progress.add_task(what, total=total)
        return work(lambda count: progress.advance(bar, count))


def _progress() -> Progress:
    """A progress bar that is drawn on a terminal only, and by the first of several ranks only."""
    hidden = not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"
    return Progress(console=Console(stderr=True), transient=True, disable=hidden)
