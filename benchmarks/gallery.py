"""Host memory that ranking a whole test set needs, and how long it will take: `python -m benchmarks.gallery`

COCO's 5,000 images and 25,010 captions, base at 384 px, 256 candidates each way. Image tokens and text states are
random. Only so many images are re-ranked, which says how long all would take; everything else is done and kept as
in `albef evaluate`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from unittest import mock

import torch
from torch import Tensor

from albef.engine.runtime import autocast
from albef.models.albef import AlbefModel
from albef.models.config import preset
from albef.tasks import ranking
from benchmarks import timing
from benchmarks.step import caption_lengths

CPU = torch.device("cpu")
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "small", "base"), default="base", help="default base")
    parser.add_argument("--images", type=int, default=5000, help="default 5000")
    parser.add_argument("--captions", type=int, default=25_010, help="in all (default 25010)")
    parser.add_argument("--k", type=int, default=256, help="candidates each way (default 256)")
    parser.add_argument("--memory", type=float, default=ranking.TOKENS_GIB, metavar="GIB", help="for image tokens")
    parser.add_argument("--timed", type=int, default=4, help="images that are re-ranked (default 4)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    print(timing.in_its_own_process(measure, options))


@torch.no_grad()
def measure(options: argparse.Namespace) -> str:
    torch.manual_seed(0)
    config = preset(options.preset).at_size(384)
    model = AlbefModel(config).eval()
    size, at_once = (config.image_tokens, config.vision_width), 64
    counts = [min(at_once, options.images - start) for start in range(0, options.images, at_once)]
    with mock.patch.object(model, "encode_image", lambda batch: torch.randn(len(batch), *size)):
        batches = (torch.empty(count, 0) for count in counts)
        tokens, z_image = ranking.encode_images(model, batches, options.memory)
    encoded = timing.status("VmHWM")
    lengths = torch.tensor(caption_lengths("real", options.captions))
    lengths = lengths[torch.randperm(len(lengths))]
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    texts = ranking.Texts(torch.randn(int(lengths.sum()), config.text_width), mask)
    z_text = model.project_text(torch.randn(options.captions, 1, config.text_width))
    image_of_text = torch.arange(options.captions) * options.images // options.captions
    seconds: list[float] = []
    with mock.patch.object(ranking, "score_texts", some_of(ranking.score_texts, options.timed, seconds)):
        gallery = ranking.Gallery(tokens, z_image, texts, z_text, image_of_text)
        with autocast(CPU, options.precision):
            ranking.two_stage_recalls(model, gallery, options.k)
    kept = sum(one.numel() * one.itemsize for one in tokens) / GIB
    left = sum(seconds) / len(seconds) * options.images / 3600
    peak = timing.status("VmHWM") / GIB
    return (
        f"{options.images} images, {options.captions} captions, k {options.k}: {peak:.1f} GiB at the peak, "
        f"{encoded / GIB:.1f} while encoding; image tokens {kept:.1f} GiB in {tokens[0].dtype}; re-ranking all would "
        f"take {left:.1f} h ({options.precision}, {torch.get_num_threads()} threads)"
    )


def some_of(match, count: int, seconds: list[float]):
    """`ranking.score_texts` of the first so many images, whose `seconds` are noted; the others' texts match by 0."""

    def matched(model: AlbefModel, image_tokens: Sequence[Tensor], texts: ranking.Texts, chosen: Iterator[Tensor]):
        some = list(islice(chosen, count))
        started = time.perf_counter()
        for found in match(model, image_tokens[:count], texts, some):
            seconds.append(time.perf_counter() - started)
            yield found
            started = time.perf_counter()
        for rows in chosen:
            yield rows, torch.zeros(len(rows), 2)

    return matched


if __name__ == "__main__":
    main()
