"""What all benchmarks share: interleaved repeats, median and spread, peak memory, the matrix rate, table and JSON."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
Kind = tuple[str, str]  # way of computing, precision

H100_FLOPS = 989e12
"""Dense bfloat16 products of an H100 or H200, per second, by NVIDIA's data sheet."""


@dataclass(frozen=True)
class Seconds:
    """Median and range of the repeats, and the CPU time of all threads (median)."""

    median: float
    least: float
    most: float
    cpu: float

    def milliseconds(self) -> dict[str, float]:
        return {"ms": self.median * 1e3, "least": self.least * 1e3, "most": self.most * 1e3, "cpu_ms": self.cpu * 1e3}


def interleaved(
    kinds: Mapping[Any, Callable[[], object]], repeats: int, warm_up: int = 1, device: torch.device | None = None
) -> dict[Any, Seconds]:
    """Times each kind in turn, over and over: when the machine slows down, all are hit alike."""
    found: dict[Any, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for repeat in range(warm_up + repeats):
        for kind, work in kinds.items():
            gc.collect()
            wait_for(device)
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            wait_for(device)
            if repeat >= warm_up:
                found[kind].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {kind: summary(times) for kind, times in found.items()}


def summary(times: Sequence[tuple[float, float]]) -> Seconds:
    wall, cpu = zip(*times, strict=True)
    return Seconds(statistics.median(wall), min(wall), max(wall), statistics.median(cpu))


def wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """How many bytes `work` needs at its peak above what is there when it begins.

    On a GPU by the allocator's own account. On Linux by the highest memory of the process, which counts right only
    `in_its_own_process`: one that kept what was freed before would use that first. None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        before = status("VmRSS")
        work()
        return status("VmHWM") - before
    except OSError:
        return None


def status(field: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def in_its_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result from a fresh process, which gives back at once what it frees (glibc): for `peak_bytes`."""
    once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    kept = {name: os.environ.get(name) for name in once}
    os.environ.update(once)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        for name, value in kept.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def matrix_product(device: torch.device, precision: str) -> tuple[Callable[[], object], float]:
    """A large product of square matrices and its operations: what the machine can do, to be timed beside the rest."""
    size = 8192 if device.type == "cuda" else 2048
    x = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    return lambda: x @ x, 2.0 * size**3


def device_of_this_machine() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(device: torch.device) -> dict[str, Any]:
    """Where the figures were made, and by which command."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # beside others' work only ratios mean anything
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    threads = torch.get_num_threads()
    return {"command": command, "device": name, "threads": threads, "load": load, "torch": torch.__version__}


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


KINDS = [(way, precision) for precision in ("float32", "bfloat16") for way in ("textbook", "ours")]
COLUMNS = {
    "ms": ".0f", "least": ".0f", "most": ".0f", "cpu_ms": ".0f", "faster": ".2f", "cpu_faster": ".2f",
    "peak_mb": ".0f", "gflop": ".4g", "floor": ".4g", "tflops": ".3f", "matrix": ".3f", "over_floor": ".2f",
    "mfu": ".1%",
}  # fmt: skip
LEGEND = """\
ms: median, least, most; cpu_ms: of all threads; faster: than the textbook in float32, by wall and by CPU time; peak_mb:
memory at the peak above what is kept; gflop: of a pair, by formula, and the least that it takes (floor); tflops: beside
those of a large matrix product; over_floor: the time over the floor's at the speed of that product"""


def compare(
    work: Mapping[Kind, Callable[[], object]],
    pairs: int,
    gflops: Mapping[str, float],
    peaks: Mapping[Kind, int | None],
    repeats: int,
    device: torch.device,
) -> list[Row]:
    """Every kind of `work` on so many pairs, beside the product of large matrices.

    `gflops` of a pair by the way of computing it, and of the `floor`; `peaks` are bytes.
    """
    products = {("matrix", precision): matrix_product(device, precision) for precision in ("float32", "bfloat16")}
    found = interleaved({**work, **{kind: product for kind, (product, _) in products.items()}}, repeats, 2, device)
    rows = []
    for way, precision in work:
        time, base = found[way, precision], found["textbook", "float32"]
        rate = products["matrix", precision][1] / found["matrix", precision].median
        speed, peak = pairs * gflops[way] * 1e9 / time.median, peaks[way, precision]
        known = device.type == "cuda" and precision == "bfloat16"
        rows.append(
            {
                "way": way,
                "precision": precision,
                **time.milliseconds(),
                "faster": base.median / time.median,
                "cpu_faster": base.cpu / time.cpu,
                "peak_mb": None if peak is None else peak / 1e6,
                "gflop": gflops[way],
                "floor": gflops["floor"],
                "tflops": speed / 1e12,
                "matrix": rate / 1e12,
                "over_floor": time.median * rate / (pairs * gflops["floor"] * 1e9),
                "mfu": speed / H100_FLOPS if known else None,
            }
        )
    return rows


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """Lines of the rows' fields under their names, each in the format of its column; what a row lacks is a dash."""
    cells = [list(columns)]
    for row in rows:
        cells.append(["-" if row.get(name) is None else format(row[name], form) for name, form in columns.items()])
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def write(path: Path | None, device: torch.device, settings: Row, rows: Sequence[Row]) -> None:
    """The figures with where, how and by which command they were made."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**machine(device), "settings": settings, "rows": list(rows)}, indent=2) + "\n")
