"""Time of one pre-training step, and of its ITC part alone: `python -m benchmarks.step --preset tiny --batch 64`."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from albef.engine.optim import make_optimizer
from albef.engine.train import autocast
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig, preset
from albef.models.flops import pretraining_flops
from albef.objectives.pretrain import PretrainObjective
from albef.recipe import Optim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny", choices=("tiny", "small", "base"))
    parser.add_argument("--batch", type=int, default=64, help="pairs per step (default 64)")
    parser.add_argument("--words", type=int, default=12, help="tokens per caption (default 12)")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each kind (default 7)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = preset(options.preset)
    rows = measure(config, options.batch, options.words, options.repeats, device)
    print(f"{options.preset}, {options.batch} pairs of {options.words} tokens on {device.type}; median (min to max)")
    for row in rows:
        print(
            f"{row['precision']:<9} {row['kind']:<8} {row['median'] * 1e3:8.1f} ms ({row['min'] * 1e3:.1f} to "
            f"{row['max'] * 1e3:.1f})  {options.batch / row['median']:8.0f} samples/s  {row['tflops']:6.3f} TFLOP/s"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(config: AlbefConfig, batch: int, words: int, repeats: int, device: torch.device) -> list[dict]:
    """Both precisions and both kinds of step, interleaved so that a change of the machine's speed hits all alike."""
    objective = PretrainObjective(AlbefModel(config), queue_size=1024, mask_id=4, cls_id=2).to(device).train()
    optimizer = make_optimizer(objective, Optim())
    inputs = make_batch(config, batch, words, device)
    kinds = [(precision, kind) for precision in ("float32", "bfloat16") for kind in ("ITC", "whole")]
    seconds: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    for repeat in range(repeats + 2):
        for precision, kind in kinds:
            started = time.perf_counter()
            with autocast(device, precision):
                losses = objective(inputs, 0.4, fuse=kind == "whole")
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:  # two to warm up
                seconds[precision, kind].append(time.perf_counter() - started)
    flops = {kind: batch * pretraining_flops(config, words, fuse=kind == "whole") for kind in ("ITC", "whole")}
    return [
        {
            "precision": precision,
            "kind": kind,
            "median": statistics.median(found),
            "min": min(found),
            "max": max(found),
            "tflops": flops[kind] / statistics.median(found) / 1e12,
        }
        for (precision, kind), found in seconds.items()
    ]


def make_batch(config: AlbefConfig, size: int, words: int, device: torch.device) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, config.vocab_size, (size, words), device=device)
    return {
        "pixel_values": torch.randn(size, 3, *config.image_size, device=device),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_id": torch.arange(size, device=device),
        "text_id": torch.arange(size, device=device),
    }


if __name__ == "__main__":
    main()
