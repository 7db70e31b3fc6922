"""A step and ranked pairs of this checkout beside those of another one: `python -m benchmarks.against ../albef-before`

Each checkout computes in a process of its own, in turns, and the ratio of each pair of turns is kept: what else the
machine does hits both alike. CPU time of all threads; below 1 this checkout is quicker.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORK = """
import sys, time, torch
import benchmarks
from benchmarks import step, ranking
torch.set_num_threads(int(sys.argv[4]))
what, precision, name, cpu = *sys.argv[1:4], torch.device("cpu")
if what == "step":
    setting = step.Setting(name, 8, step.preset(name).image_size[0], "real", 4096)
    objective = step.make("ours", setting, cpu)
    optimizer = step.make_optimizer(objective, step.Optim())
    work = step.step(objective, optimizer, step.make_batch(setting, cpu), precision, cpu)
else:
    setting = ranking.Setting(name, 192, 2, 64, "real")
    work = ranking.in_precision(ranking.make("ours", setting, cpu), ranking.make_encoded(setting, cpu), precision, cpu)
work()
print("ready", flush=True)
for _ in sys.stdin:
    begun = time.process_time()
    work()
    print(time.process_time() - begun, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--preset", choices=("tiny", "small", "base"), default="small")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default 1)")
    options = parser.parse_args()
    here = Path(__file__).parents[1]
    for what in ("step", "ranking"):
        for precision in ("float32", "bfloat16"):
            words = (what, precision, options.preset, str(options.threads))
            both = [started(folder.resolve(), words) for folder in (here, options.other)]
            turns = [tuple(map(one_turn, both)) for _ in range(options.repeats)]
            for process in both:
                process.communicate()
            ratios = [ours / theirs for ours, theirs in turns]
            ours = statistics.median(own for own, _ in turns)
            print(
                f"{what:<8}{precision:<9} {ours * 1e3:9.1f} ms   this / other: {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )


def started(folder: Path, words: tuple[str, ...]) -> subprocess.Popen[str]:
    """A process that computes once for each line it is sent, with the code in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "passive"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WORK, *words]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    return process


def one_turn(process: subprocess.Popen[str]) -> float:
    """CPU seconds of one more computation."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


if __name__ == "__main__":
    main()
