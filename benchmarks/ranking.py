"""Re-ranking an image's candidates by ITM, ours beside the textbook's: `python -m benchmarks.ranking`

Image tokens and text states are there already; what is timed is fusing and matching. `--full` is the paper's: base at
384 px, 256 candidates.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from albef.engine.runtime import autocast
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig, preset
from albef.models.layout import PackedText
from albef.tasks import ranking
from benchmarks import textbook, timing
from benchmarks.flops import FLOOR, TEXTBOOK, ranking_flops
from benchmarks.step import caption_lengths

PADDED = 30  # tokens that the original pads every text to
COLUMNS = {"way": "", "precision": "", "k": "d", "resolution": "d", "captions": "", "pair_ms": ".3f"} | timing.COLUMNS


@dataclass(frozen=True)
class Setting:
    preset: str
    resolution: int
    images: int
    k: int
    captions: str

    @property
    def config(self) -> AlbefConfig:
        return preset(self.preset).at_size(self.resolution)

    @property
    def lengths(self) -> list[int]:
        return caption_lengths(self.captions, self.k)


@dataclass(frozen=True)
class Encoded:
    """Images and k texts, all of which are candidates of each image."""

    image: Tensor  # [I, S, Dv], on the host
    text: Tensor  # [k, 30, D], on the device
    mask: Tensor  # [k, 30], on the host


def main() -> None:
    device = timing.device_of_this_machine()
    options = parse()
    name = options.preset or ("base" if options.full else "small")
    resolution = options.resolution or (384 if options.full else 192)
    k = options.k or (256 if options.full else 128)
    setting = Setting(name, resolution, options.images, k, options.captions)
    settings = sweep(setting) if options.sweep else [setting]
    print(f"re-ranking: {name}, {options.images} images, {options.repeats} repeats on {device.type}", flush=True)
    rows = [row for one in settings for row in measure(one, options.repeats, device)]
    print(timing.table(rows, COLUMNS), timing.LEGEND, sep="\n")
    timing.write(options.json, device, asdict(setting) | {"repeats": options.repeats}, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "small", "base"), help="default small")
    parser.add_argument("--resolution", type=int, metavar="PX", help="default 192, with --full 384")
    parser.add_argument("--images", type=int, default=2, help="images, each with its candidates (default 2)")
    parser.add_argument("--k", type=int, help="candidates of an image (default 128, with --full 256)")
    parser.add_argument("--captions", default="real", help="tokens of every caption, or `real` (default)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each kind (default 5)")
    parser.add_argument("--full", action="store_true", help="base, at 384 px, 256 candidates")
    parser.add_argument("--sweep", action="store_true", help="also by number of candidates, by length of the captions")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    return parser.parse_args()


def sweep(setting: Setting) -> list[Setting]:
    """One thing changed at a time."""
    return [
        *(replace(setting, k=k) for k in (16, 64, 128, 256)),
        *(replace(setting, captions=captions) for captions in ("8", "12", "16", "25", "real")),
    ]


def measure(setting: Setting, repeats: int, device: torch.device) -> list[timing.Row]:
    peaks = timing.in_its_own_process(memory, setting, device)
    encoded = make_encoded(setting, device)
    scores = {way: make(way, setting, device) for way in ("textbook", "ours")}
    different = float((scores["ours"](encoded) - scores["textbook"](encoded)).abs().max())
    print(f"{setting}: the scores of both differ by {different:.0e}", flush=True)
    work = {(way, kind): in_precision(scores[way], encoded, kind, device) for way, kind in timing.KINDS}
    ways = {"textbook": TEXTBOOK, "ours": FLOOR, "floor": FLOOR}
    gflops = {
        way: ranking_flops(setting.config, setting.lengths, setting.k, setting.images, PADDED, savings) / 1e9
        for way, savings in ways.items()
    }
    pairs = setting.images * setting.k
    rows = timing.compare(work, pairs, gflops, peaks, repeats, device)
    return [asdict(setting) | row | {"pair_ms": row["ms"] / pairs} for row in rows]


def make(way: str, setting: Setting, device: torch.device) -> Callable[[Encoded], Tensor]:
    """Scores [I, k] of everything with everything, from the same weights either way."""
    torch.manual_seed(0)
    model = AlbefModel(setting.config).to(device).eval()
    if way == "ours":
        return lambda encoded: our_scores(model, encoded)
    network = textbook.network_of(model).eval()
    return lambda encoded: plain_scores(network, encoded)


@torch.no_grad()
def our_scores(model: AlbefModel, encoded: Encoded) -> Tensor:
    images, texts, size = len(encoded.image), len(encoded.text), model.config.embed_dim
    z_image, z_text = torch.zeros(images, size), torch.zeros(texts, size)  # nobody asks for them
    image_of_text = torch.zeros(texts, dtype=torch.long)
    gallery = gallery_of(model, encoded.image, z_image, encoded.text, encoded.mask, z_text, image_of_text)
    return ranking.match_logits(model, gallery, torch.ones(images, texts, dtype=torch.bool))[:, 1].view(images, texts)


@torch.no_grad()
def gallery_of(
    model: AlbefModel,
    image: Tensor,
    z_image: Tensor,
    text: Tensor,
    mask: Tensor,
    z_text: Tensor,
    image_of_text: Tensor,
) -> ranking.Gallery:
    """What the textbook ranks, as we keep it; image tokens [I, S, Dv], padded states [T, L, D]."""
    needed = mask[:, : int(mask.sum(1).max())].cpu()
    texts = ranking.Texts(model.fusion_encoder.begin(text[mask.bool()], PackedText.of(needed, model.device)), needed)
    return ranking.Gallery(image.cpu().unbind(), z_image, texts, z_text, image_of_text)


@torch.no_grad()
def plain_scores(network: textbook.Network, encoded: Encoded) -> Tensor:
    text, mask = encoded.text, encoded.mask.to(encoded.text.device)
    images = (image.to(text.device).repeat(len(text), 1, 1) for image in encoded.image)
    return torch.stack([textbook.score(network, text, mask, image) for image in images])


def in_precision(
    scores: Callable[[Encoded], Tensor], encoded: Encoded, precision: str, device: torch.device
) -> Callable[[], None]:
    def work() -> None:
        with autocast(device, precision):
            scores(encoded)

    return work


def memory(setting: Setting, device: torch.device) -> dict[timing.Kind, int | None]:
    """What ranking needs at its peak above weights, image tokens and text states."""
    peaks, encoded = {}, make_encoded(setting, device)
    for way, precision in timing.KINDS:
        work = in_precision(make(way, setting, device), encoded, precision, device)
        work()
        peaks[way, precision] = timing.peak_bytes(work, device)
    return peaks


@torch.no_grad()
def make_encoded(setting: Setting, device: torch.device) -> Encoded:
    """Tokens and states as random as the weights; only their sizes matter."""
    torch.manual_seed(1)
    config = setting.config
    mask = (torch.arange(PADDED) < torch.tensor(setting.lengths)[:, None]).long()
    image = torch.randn(setting.images, config.image_tokens, config.vision_width)
    return Encoded(image, torch.randn(setting.k, PADDED, config.text_width).to(device), mask)


if __name__ == "__main__":
    main()
