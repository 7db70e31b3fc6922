"""Images a second that one core reads and augments, ours against plain Pillow: `python -m benchmarks.loader`.

The plain way decodes the whole image by Pillow, crops and resizes by its bicubic (RandomResizedCrop), flips, carries
out RandAugment by Pillow's operators (ImageOps, ImageEnhance, a 3 x 3 kernel, affine transforms), and makes normalised
float32 batches. Ours is TrainingSet's: uint8 batches, normalised on the device. Both take the same files from memory,
crop by the same rule, draw the same operations and leave captions out. 256 pixels: a crop of 0.2..1 of the area as in
pre-training; 384: 0.5..1 as in fine-tuning. Images are octaves of noise, saved as JPEG of quality 90; those of
`--images FOLDER` are scaled to each size. `floor`: Pillow decoding at 1/8 alone, nearly nothing but Huffman codes.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch.utils.data import Dataset, default_collate

from albef.data import augment
from albef.data.augment import FILL, NAMES, RandAugment, TrainTransform, crop_box
from albef.data.loader import StepBatches, make_loader
from albef.data.processor import CLIP_MEAN, CLIP_STD
from benchmarks import timing

SIZES = ((224, 224), (500, 375), (640, 480), (1600, 1200), (4000, 3000))  # width, height
SCALES = {256: (0.2, 1.0), 384: (0.5, 1.0)}
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
Batch = Callable[[Sequence[bytes], int, int, "Clock"], torch.Tensor]  # files, side, seed, clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs to take in place of generated images")
    parser.add_argument("--full", action="store_true", help="more images and repeats: minutes")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = images(options.images, 16 if options.full else 3)
    print(
        "image    bytes/px side  plain/s   ours/s  ratio (min to max)      floor | our ms: decode resize augment rest"
    )
    rows = []
    for size in SIZES:
        files = [encoded(image, size) for image in photos]
        for side in SCALES:
            row = measure(files * (1 if size[0] > 1000 else 5), side, 15 if options.full else 5)
            row |= {
                "size": size,
                "side": side,
                "bytes_per_pixel": sum(map(len, files)) / len(files) / size[0] / size[1],
            }
            rows.append(row)
            print(line(row), flush=True)
    waits = feed([encoded(image, (500, 375)) for image in photos])
    print(
        "One worker that takes {batch_ms:.0f} ms a batch, a step half as long again: it waits {wait_ms:.1f} ms".format(
            **waits
        )
    )
    timing.write(options.json, torch.device("cpu"), {"workers": waits}, rows)


def images(folder: Path | None, count: int) -> list[Image.Image]:
    if folder is None:
        return [noise(seed) for seed in range(count)]
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    return [Image.open(path).convert("RGB") for path in paths[:count]]


def noise(seed: int, width: int = 1600, height: int = 1200) -> Image.Image:
    """Octaves of noise from coarse and strong to fine and weak, as the spectrum of photographs falls."""
    rng, total = np.random.default_rng(seed), np.full((height, width, 3), 128, dtype=np.float32)
    for octave in range(2, 11):
        small = rng.integers(0, 256, (2**octave * 3 // 4, 2**octave, 3), dtype=np.uint8)
        wide = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
        total += (np.asarray(wide, dtype=np.float32) - 128) * 2.0 ** (-0.55 * (octave - 1))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, size: tuple[int, int]) -> bytes:
    """The image at `size` as a JPEG; a generated one is laid side by side where it is too small, to stay as fine."""
    if image.width >= 1600 and size[0] > image.width:
        pixels = np.tile(np.asarray(image), (-(-size[1] // image.height), -(-size[0] // image.width), 1))
        image = Image.fromarray(pixels[: size[1], : size[0]])
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()


class Clock:
    """CPU seconds of the parts of a batch."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def of(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            started = time.process_time()
            found = function(*args)
            self.seconds[part] += time.process_time() - started
            return found

        return timed


def plain(files: Sequence[bytes], side: int, seed: int, clock: Clock) -> torch.Tensor:
    decode = clock.of("decode", lambda file: Image.open(io.BytesIO(file)).convert("RGB"))
    resize, change = clock.of("resize", cropped), clock.of("augment", plainly)
    samples = []
    for number, file in enumerate(files):
        rng = np.random.default_rng([seed, number])
        pixels = np.array(change(resize(decode(file), side, rng), rng))
        scaled = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)
        samples.append(scaled.sub_(MEAN).div_(STD))
    return torch.stack(samples)


def cropped(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    return image.crop(crop_box(*image.size, SCALES[side], rng)).resize((side, side), Image.Resampling.BICUBIC)


def plainly(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flip and RandAugment at level 7 by Pillow, with RandAugment's own draws."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name in rng.choice(NAMES, 2):
        if rng.random() <= 0.5:
            image = operated(image, str(name), *RandAugment().arguments(str(name), rng))
    return image


def operated(image: Image.Image, name: str, amount: float = 0) -> Image.Image:
    affine = {"ShearX": (1, amount, 0, 0, 1, 0), "ShearY": (1, 0, 0, amount, 1, 0)}
    affine |= {"TranslateX": (1, 0, amount, 0, 1, 0), "TranslateY": (1, 0, 0, 0, 1, amount)}
    if name in affine:
        way = Image.Transform.AFFINE
        return image.transform(image.size, way, affine[name], Image.Resampling.BILINEAR, fillcolor=FILL)
    if name == "Rotate":
        return image.rotate(amount, Image.Resampling.BILINEAR, fillcolor=FILL)
    if name == "Sharpness":
        blurred = image.filter(ImageFilter.Kernel((3, 3), (1, 1, 1, 1, 5, 1, 1, 1, 1)))
        return Image.blend(blurred, image, amount)
    if name == "Brightness":
        return ImageEnhance.Brightness(image).enhance(amount)
    return {"AutoContrast": ImageOps.autocontrast, "Equalize": ImageOps.equalize}.get(name, Image.Image.copy)(image)


def ours(files: Sequence[bytes], side: int, seed: int, clock: Clock) -> torch.Tensor:
    transform = TrainTransform((side, side), SCALES[side])
    transform.augment = clock.of("augment", RandAugment())  # type: ignore[assignment]
    parts = {"open_crop": "decode", "resized_for_training": "resize"}
    with mock.patch.multiple(augment, **{name: clock.of(part, getattr(augment, name)) for name, part in parts.items()}):
        rngs = (np.random.default_rng([seed, number]) for number in range(len(files)))
        return default_collate([transform.read(file, rng) for file, rng in zip(files, rngs, strict=True)])


def measure(files: Sequence[bytes], side: int, repeats: int) -> dict[str, Any]:
    """CPU milliseconds an image both ways, taken in turn; medians, and the spread of the ratio."""
    ways: dict[str, Batch] = {"plain": plain, "ours": ours}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, batch in ways.items():
            clock = Clock()
            clock.of("whole", batch)(files, side, repeat, clock)
            clock.seconds["rest"] = 2 * clock.seconds["whole"] - sum(clock.seconds.values())
            if repeat:  # one to warm up
                found[way].append({part: 1e3 * value / len(files) for part, value in clock.seconds.items()})
    row: dict[str, Any] = {
        way: {part: statistics.median(each[part] for each in runs) for part in sorted(runs[0])}
        for way, runs in found.items()
    }
    ratios = [slow["whole"] / quick["whole"] for slow, quick in zip(found["plain"], found["ours"], strict=True)]
    return row | {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)], "floor": floor(files)}


def floor(files: Sequence[bytes]) -> float:
    clock = Clock()
    for file in files:
        image = Image.open(io.BytesIO(file))
        image.draft(None, (image.width // 8, image.height // 8))
        clock.of("load", image.load)()
    return 1e3 * clock.seconds["load"] / len(files)


def line(row: dict[str, Any]) -> str:
    size, (low, high), own = "x".join(map(str, row["size"])), row["spread"], row["ours"]
    speeds = "".join(f"{1e3 / row[way]['whole']:9.0f}" for way in ("plain", "ours"))
    shares = "".join(f"{own[part]:8.2f}" for part in ("decode", "resize", "augment", "rest"))
    ratio = f"{row['ratio']:5.2f} ({low:.2f} to {high:.2f})"
    return f"{size:<10}{row['bytes_per_pixel']:9.2f}{row['side']:5}{speeds}  {ratio:<21}{row['floor']:9.2f} |{shares}"


class Crops(Dataset[torch.Tensor]):
    def __init__(self, files: Sequence[bytes]) -> None:
        self.files, self.transform = files, TrainTransform((256, 256), SCALES[256], augment=RandAugment())

    def __getitem__(self, pair: tuple[int, int]) -> torch.Tensor:
        return self.transform.read(self.files[pair[1] % len(self.files)], np.random.default_rng(pair))


def feed(files: Sequence[bytes], batch: int = 32, steps: int = 24) -> dict[str, float]:
    """How long a step waits for the batch of one worker; the step sleeps half as long again as a batch takes."""
    clock, own = Clock(), Crops(files)
    clock.of("batch", lambda: [own[0, index] for index in range(batch)])()
    batches = iter(make_loader(own, StepBatches(10**6, batch, steps), default_collate, workers=1))
    waits = []
    for _ in range(steps):
        started = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - started)
        time.sleep(1.5 * clock.seconds["batch"])
    # The first come while the worker starts.
    return {"batch_ms": 1e3 * clock.seconds["batch"], "wait_ms": 1e3 * statistics.median(waits[4:])}


if __name__ == "__main__":
    main()
