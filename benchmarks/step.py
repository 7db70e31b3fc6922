"""A pre-training step of ours beside the textbook's: time, memory, arithmetic. `python -m benchmarks.step`

Both start from the same weights and take turns on the same pairs. `--full` is the paper's model, resolution and queue.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from albef.engine.optim import make_optimizer
from albef.engine.runtime import autocast
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig, preset
from albef.models.layout import PackedText
from albef.objectives.pretrain import PretrainObjective
from albef.recipe import Optim
from albef.tasks.task import compile_blocks
from benchmarks import textbook, timing
from benchmarks.flops import FLOOR, OURS, TEXTBOOK, step_flops

CAPTIONS = {
    3: 12, 4: 84, 5: 276, 6: 683, 7: 1628, 8: 2240, 9: 2690, 10: 3121, 11: 3159, 12: 3193, 13: 2921, 14: 2461, 15: 2027,
    16: 1565, 17: 1164, 18: 824, 19: 577, 20: 452, 21: 304, 22: 180, 23: 149, 24: 98, 25: 192,
}  # fmt: skip
"""How many captions have so many tokens, `[CLS]` included: the 30,000 of Flickr8k's training images, cleaned as in
pre-training, cut by BERT's tokenizer, at most 25 (which 192 have or had more than). Mean 12.2."""

CLS, MASK, FIRST_WORD = 2, 4, 5
ALPHA = 0.4
Batch = dict[str, Tensor]
COLUMNS = {"way": "", "precision": "", "batch": "d", "resolution": "d", "captions": ""} | timing.COLUMNS


@dataclass(frozen=True)
class Setting:
    preset: str
    batch: int
    resolution: int
    captions: str
    queue: int

    @property
    def config(self) -> AlbefConfig:
        return preset(self.preset).at_size(self.resolution)

    @property
    def lengths(self) -> list[int]:
        return caption_lengths(self.captions, self.batch)


def main() -> None:
    device = timing.device_of_this_machine()
    options = parse()
    name = options.preset or ("base" if options.full else "small")
    batch = options.batch or (16 if not options.full else 64 if device.type == "cuda" else 8)
    queue = (65536 if options.full else 4096) // batch * batch
    resolution = options.resolution or preset(name).image_size[0]
    setting = Setting(name, batch, resolution, options.captions, queue)
    settings = sweep(setting) if options.sweep else [setting]
    print(f"a pre-training step: {name}, queue of {queue}, {options.repeats} repeats on {device.type}", flush=True)
    rows = [row for one in settings for row in measure(one, options.repeats, device, options.compile)]
    print(timing.table(rows, COLUMNS), timing.LEGEND, sep="\n")
    timing.write(options.json, device, asdict(setting) | {"repeats": options.repeats}, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "small", "base"), help="default small")
    parser.add_argument("--batch", type=int, help="pairs (default 16; with --full 64 on a GPU, else 8)")
    parser.add_argument("--resolution", type=int, metavar="PX", help="default the preset's")
    parser.add_argument("--captions", default="real", help="tokens of every caption, or `real` (default)")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each kind (default 5)")
    parser.add_argument("--full", action="store_true", help="base, at 256 px, with 65,536 features in the queue")
    parser.add_argument("--compile", action="store_true", help="compile our blocks")
    parser.add_argument("--sweep", action="store_true", help="also by batch, by resolution, by length of the captions")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    return parser.parse_args()


def sweep(setting: Setting) -> list[Setting]:
    """One thing changed at a time."""
    patch = setting.config.patch_size
    sides = [setting.resolution * part // 4 // patch * patch for part in (2, 3, 4, 6)]
    batches = [replace(setting, batch=size, queue=setting.queue // size * size) for size in (4, 8, 16, 32)]
    return [
        *batches,
        *(replace(setting, resolution=side) for side in sides),
        *(replace(setting, captions=captions) for captions in ("8", "12", "16", "25", "real")),
    ]


def measure(setting: Setting, repeats: int, device: torch.device, compiled: bool = False) -> list[timing.Row]:
    peaks = timing.in_its_own_process(memory, setting, device)
    objectives = {way: make(way, setting, device) for way in ("textbook", "ours")}
    batch = make_batch(setting, device)
    different = difference(objectives["ours"], objectives["textbook"], batch, device)
    print(f"{setting}: the losses of both differ by {different:.0e}", flush=True)
    if compiled:
        compile_blocks(objectives["ours"])
    makers = {"textbook": textbook.make_optimizer, "ours": make_optimizer}
    optimizers = {way: makers[way](objective, Optim()) for way, objective in objectives.items()}
    work = {(way, kind): step(objectives[way], optimizers[way], batch, kind, device) for way, kind in timing.KINDS}
    ways = {"textbook": TEXTBOOK, "ours": OURS, "floor": FLOOR}
    gflops = {way: step_flops(setting.config, setting.lengths, savings=savings) / 1e9 for way, savings in ways.items()}
    rows = timing.compare(work, setting.batch, gflops, peaks, repeats, device)
    return [asdict(setting) | row for row in rows]


def make(way: str, setting: Setting, device: torch.device) -> nn.Module:
    """The objective, from the same weights either way."""
    torch.manual_seed(0)
    objective = PretrainObjective(AlbefModel(setting.config), setting.queue, mask_id=MASK, cls_id=CLS).to(device)
    return (objective if way == "ours" else textbook.Textbook(objective).to(device)).train()


def forward_backward(objective: nn.Module, batch: Batch, precision: str, device: torch.device) -> None:
    """`batch` lies on the host but for the images; its texts follow as in training."""
    inputs: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    if isinstance(objective, PretrainObjective):
        inputs |= {"words": PackedText.of(batch["attention_mask"], device), "masked": objective.mask(batch, device)}
    with autocast(device, precision):
        losses = objective(inputs, ALPHA)
    torch.stack(list(losses.values())).sum().backward()


def step(
    objective: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, precision: str, device: torch.device
) -> Callable[[], None]:
    def work() -> None:
        forward_backward(objective, batch, precision, device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def memory(setting: Setting, device: torch.device) -> dict[timing.Kind, int | None]:
    """What a forward and backward pass needs at its peak above weights, gradients and queues."""
    peaks, batch = {}, make_batch(setting, device)
    for way, precision in timing.KINDS:
        objective = make(way, setting, device)
        forward_backward(objective, batch, precision, device)  # now there are gradients
        work = partial(forward_backward, objective, batch, precision, device)
        peaks[way, precision] = timing.peak_bytes(work, device)
    return peaks


@torch.no_grad()
def difference(ours: nn.Module, plain: nn.Module, batch: Batch, device: torch.device) -> float:
    """Largest difference of the losses, without dropout and with the same draws."""
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    others = torch.arange(len(batch["input_ids"]), device=device).roll(1)
    words = ours.mask_words(batch["input_ids"], batch["attention_mask"])
    ours.draw_negatives = lambda *_: (others[:, None], others[:, None])
    ours.mask_words = lambda *_: words
    found, expected = ours.eval()(batch, ALPHA), plain.eval()(batch, ALPHA, negatives=(others, others), masked=words)
    del ours.draw_negatives, ours.mask_words
    ours.train(), plain.train()
    return max(float((found[name] - expected[name]).abs()) for name in expected)


def caption_lengths(captions: str, count: int) -> list[int]:
    """So many caption lengths in tokens: all the same, or evenly spread over the real ones."""
    if captions != "real":
        return [int(captions)] * count
    lengths, ends = list(CAPTIONS), list(accumulate(CAPTIONS.values()))
    places = [(index + 0.5) * ends[-1] / count for index in range(count)]
    return [next(length for length, end in zip(lengths, ends, strict=True) if place < end) for place in places]


def make_batch(setting: Setting, device: torch.device) -> Batch:
    """Images on the device, texts on the host."""
    torch.manual_seed(1)
    lengths, config = setting.lengths, setting.config
    shuffled = torch.tensor(lengths)[torch.randperm(len(lengths)), None]
    mask = (torch.arange(max(lengths)) < shuffled).long()
    ids = torch.randint(FIRST_WORD, config.vocab_size, mask.shape) * mask  # padding is 0
    ids[:, 0] = CLS
    pixels, rows = torch.randn(len(lengths), 3, *config.image_size), torch.arange(len(lengths))
    texts = {"input_ids": ids, "attention_mask": mask, "image_id": rows, "text_id": rows}
    return {"pixel_values": pixels.to(device), **texts}


if __name__ == "__main__":
    main()
