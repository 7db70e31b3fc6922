"""`albef demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import UseAppendAction


@dataclass(frozen=True)
class Demo:
    """Pre-train, search and explain on emoji; writes report.html.

    --all-tasks adds a page to the report for each of retrieval, vqa, entailment, nlvr2 (after text assignment, a run of
    its own) and grounding: fine-tuned from the model `world` that comes along, on a generated world of coloured shapes.
    The runs stay in OUT/world; what is there is taken up, Ctrl-C saves, the same command goes on. With --minutes 0 the
    tasks alone.
    """

    query: UseAppendAction[tuple[str, ...]] = ()
    """only search with the shipped model; may be repeated"""

    out: Path = Path("runs/demo")
    """folder of the run and the report"""

    minutes: float = 8.0
    """longest training time of the emoji; the run ends after 2,500 steps"""

    all_tasks: bool = False
    """then fine-tune for every task, a page for each"""

    task_minutes: float = 2.0
    """longest training time of each of the six runs"""

    seed: int = 42
    """of the run"""

    top: int = 8
    """images to show per query"""

    def run(self) -> None:
        import albef_demo as demo

        if self.query:
            demo.search(list(self.query), self.top, self.out)
        else:
            task_seconds = self.task_minutes * 60 if self.all_tasks else None
            demo.run(self.out, self.minutes * 60, self.seed, self.top, task_seconds)
