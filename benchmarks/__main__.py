"""All benchmarks, one after the other, each in a process of its own: `python -m benchmarks`"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("step", "ranking", "loader", "search")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="at the paper's sizes; the default takes under five minutes"
    )
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="also write the figures here, a file for each")
    options = parser.parse_args()
    if options.json:
        options.json.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in NAMES:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += ["--full"] if options.full else []
        command += ["--json", str(options.json / f"{name}.json")] if options.json else []
        print(f"# python -m benchmarks.{name}", flush=True)
        started = time.perf_counter()
        if subprocess.run(command).returncode:
            failed.append(name)
        print(f"({time.perf_counter() - started:.0f} s)\n", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
