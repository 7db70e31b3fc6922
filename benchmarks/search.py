"""From a text to a re-ranked list of images, by how many are stored: `python -m benchmarks.search`

Their vectors are random; image tokens, which are needed for re-ranking alone, are kept of a few and stand for all.
`--full` is the paper's model at 384 px.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from albef.data.processor import Processor
from albef.data.text import load_tokenizer
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig, preset
from albef.tasks import ranking
from benchmarks import textbook, timing

QUERY = "a black dog runs after a white dog through the snow"
EMBED_DIM, KEPT = 256, 64
COLUMNS = {
    "images": ",d",
    "k": "d",
    "way": "",
    "stage": "",
    "ms": ".1f",
    "least": ".1f",
    "most": ".1f",
    "cpu_ms": ".1f",
}
LEGEND = """\
whole: text, shortlist and re-ranking in float32; its parts apart. The textbook sorts all cosines, pads the text, and
fuses all of it in all layers, with keys and values of the k images"""


def main() -> None:
    device = timing.device_of_this_machine()
    options = parse()
    name = options.preset or ("base" if options.full else "small")
    resolution = 384 if options.full else preset(name).image_size[0]
    config = replace(preset(name).at_size(resolution), embed_dim=EMBED_DIM, vocab_size=30522)
    print(f"search: {name} at {resolution} px, {options.repeats} repeats on {device.type}", flush=True)
    rows = measure(config, options.images, options.k, options.repeats, device)
    print(timing.table(rows, COLUMNS), LEGEND, sep="\n")
    settings = {"preset": name, "resolution": resolution, "repeats": options.repeats}
    timing.write(options.json, device, settings, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "small", "base"), help="default small")
    parser.add_argument(
        "--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="how many are stored"
    )
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64], help="how many are re-ranked (default 16 and 64)")
    parser.add_argument("--repeats", type=int, default=5, help="searches of each kind (default 5)")
    parser.add_argument("--full", action="store_true", help="base, at 384 px")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    return parser.parse_args()


def measure(
    config: AlbefConfig, images: list[int], candidates: list[int], repeats: int, device: torch.device
) -> list[timing.Row]:
    torch.manual_seed(0)
    model = AlbefModel(config).to(device).eval()
    network = textbook.network_of(model).eval()
    processor = Processor(load_tokenizer("bert"), config.image_size)
    tokens = torch.randn(KEPT, config.image_tokens, config.vision_width)
    everything = F.normalize(torch.randn(max(images), EMBED_DIM, device=device), dim=-1)
    rows = []
    for size in images:
        stored = everything[:size]
        for k in candidates:
            work = ours(model, processor, stored, tokens, k) | plainly(network, processor, stored, tokens, k, device)
            found_by = [set(work[way, "whole"]().tolist()) for way in ("ours", "textbook")]
            print(f"{size:,} images, {k} of them: both find the same: {found_by[0] == found_by[1]}", flush=True)
            found = timing.interleaved(work, repeats, 1, device)
            rows += [
                {"images": size, "k": k, "way": way, "stage": stage, **time.milliseconds()}
                for (way, stage), time in found.items()
            ]
    return rows


def ours(
    model: AlbefModel, processor: Processor, stored: Tensor, tokens: Tensor, k: int
) -> dict[timing.Kind, Callable[[], object]]:
    """The whole search and its stages, as `albef.tasks.ranking` has them."""

    def encode() -> tuple[ranking.Texts, Tensor]:
        return ranking.encode_texts(model, processor, [QUERY])

    def shortlist(z_text: Tensor) -> Tensor:
        return ranking.shortlist(z_text @ stored.T, k)[0].nonzero().squeeze(1)

    def rerank(texts: ranking.Texts, chosen: Tensor) -> Tensor:
        image_tokens = tokens[chosen.cpu() % KEPT].unbind()
        return chosen[ranking.score_images(model, image_tokens, texts)[:, 1].argsort(descending=True)]

    def whole() -> Tensor:
        texts, z_text = encode()
        return rerank(texts, shortlist(z_text))

    texts, z_text = encode()
    chosen = shortlist(z_text)
    return {
        ("ours", "whole"): whole,
        ("ours", "text"): encode,
        ("ours", "shortlist"): lambda: shortlist(z_text),
        ("ours", "re-rank"): lambda: rerank(texts, chosen),
    }


def plainly(
    network: textbook.Network, processor: Processor, stored: Tensor, tokens: Tensor, k: int, device: torch.device
) -> dict[timing.Kind, Callable[[], object]]:
    @torch.no_grad()
    def whole() -> Tensor:
        texts = processor.texts([QUERY])
        words = {name: F.pad(ids, (0, 30 - ids.shape[1])).to(device) for name, ids in texts.items()}  # [PAD] is 0
        mask = words["attention_mask"]
        states = network.bert.read(words["input_ids"], mask)
        z_text = F.normalize(network.text_proj(states[:, 0]), dim=-1)
        best = (z_text @ stored.T)[0].argsort(descending=True)[:k]
        image = tokens[best.cpu() % KEPT].to(device)
        scores = textbook.score(network, states.repeat(k, 1, 1), mask.repeat(k, 1), image)
        return best[scores.argsort(descending=True)]

    return {("textbook", "whole"): whole}


if __name__ == "__main__":
    main()
