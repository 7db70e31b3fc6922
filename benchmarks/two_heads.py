"""The baseline that a model of photos has to beat: two heads upon frozen encoders, compared by their cosine.

    python -m benchmarks.two_heads --trunk efficientnet-lite2-9656183e.pth --bert minilm/model.safetensors \\
      --image-size 256 --train train.json --validation retrieval_val.json --seed 0 1 2

An image is the mean of the trunk's last map, of the whole image or of one of its random crops; a text is the mean of
the words of a sentence encoder such as MiniLM. A head is a perceptron of two layers with a linear map beside it. Both
are learnt by the contrastive loss over a batch, in which all captions of an image are right. Features are made once and
kept in a folder. The best epoch is chosen by the validation data, which is generous to this baseline.
"""

# B images, V views of each, T texts, F features, E dimensions of the shared space

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from albef import AlbefModel, Processor, open_sources
from albef.conversion import convert
from albef.data.augment import TrainTransform
from albef.data.progress import tracked
from albef.data.sources import Source
from albef.data.text import clean_caption
from albef.data.views import FEATURES, Views
from albef.models.layout import PackedText
from albef.tasks import ranking
from benchmarks import timing

EMBED_DIM, HIDDEN, DROPOUT = 512, 2048, 0.4
BATCH, EPOCHS, RATE, DECAY, WARM_UP = 256, 16, 1e-3, 0.05, 50
TEMP, TEMP_RATE = 0.05, 2e-4
AVERAGE = 0.99
"""What is kept of the average of the weights in each step."""
COLUMNS = {"weights": "", "chosen": "", "epoch": ".1f"} | dict.fromkeys(
    [f"{way}_r{k}" for way in ("txt", "img") for k in (1, 5, 10)], ".1f"
)
Row = dict[str, object]


def main() -> None:
    options = parse()
    started = time.perf_counter()
    model, processor = encoders(options)
    train, validation = (
        Features.of(model, processor, open_sources([path]), views, options.features)
        for path, views in ((options.train, options.views), (options.validation, 1))
    )
    print(f"features after {time.perf_counter() - started:.0f} s, in {options.features}", flush=True)
    runs = [learn(train, validation, options.epochs, seed) for seed in options.seed]
    print(timing.table([spread(rows) for rows in zip(*runs, strict=True)], COLUMNS))
    seeds = f"means of seeds {options.seed}" if len(runs) > 1 else f"seed {options.seed[0]}"
    print(f"{seeds}, {torch.get_num_threads()} threads, {time.perf_counter() - started:.0f} s in all")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=Path, required=True, help="published file of EfficientNet-Lite 0, 1 or 2")
    parser.add_argument("--bert", type=Path, required=True, help="published file of MiniLM, beside its vocabulary")
    parser.add_argument("--text-layers", type=int, default=6, help="all layers of that BERT (default 6)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--train", type=Path, required=True, help="JSON list with a record for each image")
    parser.add_argument("--validation", type=Path, required=True, help="the same of other images")
    parser.add_argument("--views", type=int, default=4, help="the whole image and random crops of it (default 4)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default {EPOCHS}")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="several are run one after the other")
    parser.add_argument("--features", type=Path, default=Path("runs/two-heads"), help="folder in which they are kept")
    return parser.parse_args()


def encoders(options: argparse.Namespace) -> tuple[AlbefModel, Processor]:
    """A start of a pre-training from both files; its image blocks and fusion layers are not used."""
    folder = options.features / f"{options.trunk.stem}-{options.image_size}"
    layers = {"text_layers": options.text_layers, "fusion_from": (options.text_layers - 1,), "text_pooling": "mean"}
    convert(trunk=options.trunk, bert=options.bert, out=folder, image_size=options.image_size, **layers)
    return AlbefModel.from_pretrained(folder).requires_grad_(False), Processor.from_pretrained(folder)


class Features:
    """`images` [B, V, F], `texts` [T, F] and `image_of_text` [T], which rises."""

    def __init__(self, images: Tensor, texts: Tensor, image_of_text: Tensor) -> None:
        self.images, self.texts, self.image_of_text = images, texts, image_of_text
        self.starts = torch.searchsorted(image_of_text, torch.arange(len(images) + 1))

    @classmethod
    def of(cls, model: AlbefModel, processor: Processor, source: Source, views: int, folder: Path) -> Features:
        captions = [source.captions(index) for index in range(len(source))]
        image_of_text = torch.tensor([index for index, own in enumerate(captions) for _ in own])
        texts = text_features(model, processor, [text for own in captions for text in own], folder)
        return cls(image_features(model, processor, source, views, folder), texts, image_of_text)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All images in a new order: one view [B, F] of each of a batch, all their texts [T, F], and whose they are."""
        for rows in torch.randperm(len(self.images)).split(BATCH):
            images = self.images[rows, torch.randint(self.images.shape[1], rows.shape)]
            texts = torch.cat([torch.arange(*self.starts[row : row + 2].tolist()) for row in rows.tolist()])
            counts = self.starts[rows + 1] - self.starts[rows]
            yield images, self.texts[texts], torch.arange(len(rows)).repeat_interleave(counts)


def image_features(model: AlbefModel, processor: Processor, source: Source, views: int, folder: Path) -> Tensor:
    """[B, V, F] of all images, which must be readable; the first view is the whole image."""
    trunk = model.visual_encoder.trunk
    assert trunk is not None
    width = trunk.top.in_features

    def encode(pixels: Tensor) -> Tensor:
        x = processor.normalise(pixels).contiguous(memory_format=torch.channels_last)
        for part in trunk.parts:
            x = part(x)
        return x.mean((2, 3), keepdim=True)  # [B, F, 1, 1]

    crops = TrainTransform(processor.image_size, (0.5, 1.0))
    kept = Views(source, processor, crops, views, (width, 1, 1), trunk.digest(), folder)
    if not kept.complete:
        kept.begin()
        kept.fill(encode)
        kept.finish()
    found = torch.from_numpy(np.load(kept.folder / FEATURES)).flatten(2)
    return found[[row for (row,) in kept.rows]]


@torch.no_grad()
def text_features(model: AlbefModel, processor: Processor, texts: list[str], folder: Path) -> Tensor:
    """[T, F]: the mean of `[CLS] words [SEP]`, as sentence encoders are published."""
    words = hashlib.sha256("\n".join(texts).encode())
    words.update(model.text_encoder.word_embeddings.weight.numpy().tobytes())
    file = folder / f"texts-{words.hexdigest()[:16]}.pt"
    if not file.is_file():
        found = []
        for start in tracked(range(0, len(texts), BATCH), -(-len(texts) // BATCH), "encoding texts"):
            batch = processor.answers([clean_caption(text) for text in texts[start : start + BATCH]])
            layout = PackedText.of(batch["attention_mask"])
            found.append(model.pool_text(model.encode_text(batch["input_ids"], layout), layout))
        torch.save(torch.cat(found), file)
    return torch.load(file)


class Head(nn.Module):
    """Features [N, F], standardised by those of the training data, to unit vectors [N, E]."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        width = features.shape[1]
        self.register_buffer("mean", features.float().mean(0))
        self.register_buffer("scale", features.float().std(0) + 1e-3)
        self.perceptron = nn.Sequential(
            nn.Dropout(DROPOUT), nn.Linear(width, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, EMBED_DIM)
        )
        self.shortcut = nn.Linear(width, EMBED_DIM)

    def forward(self, features: Tensor) -> Tensor:
        x = (features.float() - self.mean) / self.scale
        return F.normalize(self.perceptron(x) + self.shortcut(x), dim=-1)


class TwoHeads(nn.Module):
    def __init__(self, images: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.image, self.text = Head(images), Head(texts)
        self.log_temp = nn.Parameter(torch.tensor(TEMP).log())

    def forward(self, images: Tensor, texts: Tensor, image_of_text: Tensor) -> Tensor:
        """The contrastive loss of images [B, F] and texts [T, F], both ways; all texts of an image are as right."""
        similarities = self.image(images) @ self.text(texts).T / self.log_temp.exp()  # [B, T]
        own = F.one_hot(image_of_text, len(images)).T.float()
        to_text = -(own / own.sum(1, keepdim=True) * similarities.log_softmax(1)).sum(1).mean()
        return (to_text + F.cross_entropy(similarities.T, image_of_text)) / 2

    @torch.no_grad()
    def recalls(self, data: Features) -> dict[str, float]:
        cosines = self.image(data.images[:, 0]) @ self.text(data.texts).T
        return ranking.recalls(cosines, cosines.T, data.image_of_text)


def learn(train: Features, validation: Features, epochs: int, seed: int) -> list[Row]:
    """Recalls of the weights and of their average, after the best epoch by the mean of recalls and after the last."""
    torch.manual_seed(seed)
    heads = TwoHeads(train.images[:, 0], train.texts)
    average = AveragedModel(heads, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    step, optimizer, started = 0, optimizer_of(heads), time.perf_counter()
    rates = [group["lr"] for group in optimizer.param_groups]
    steps = epochs * math.ceil(len(train.images) / BATCH)
    found: dict[str, list[Row]] = {"last": [], "average": []}
    for epoch in range(1, epochs + 1):
        heads.train()
        for batch in train.batches():
            share = min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            loss = heads(*batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads.parameters(), 5.0)
            optimizer.step()
            average.update_parameters(heads)
            step += 1
        for name, own in (("last", heads.eval()), ("average", average.module.eval())):
            found[name].append({"weights": name, "epoch": float(epoch), **own.recalls(validation)})
        means = ", ".join(f"{name} {rows[-1]['r_mean']:.1f}" for name, rows in found.items())
        spent = time.perf_counter() - started
        print(f"seed {seed}, epoch {epoch}: loss {loss:.3f}, r_mean {means}; {spent:.0f} s", flush=True)
    ends = [{"best": max(rows, key=lambda row: row["r_mean"]), "last": rows[-1]} for rows in found.values()]
    return [{**row, "chosen": chosen} for both in ends for chosen, row in both.items()]


def optimizer_of(heads: TwoHeads) -> torch.optim.Optimizer:
    weights = [parameter for name, parameter in heads.named_parameters() if name != "log_temp"]
    groups = [{"params": weights}, {"params": [heads.log_temp], "lr": TEMP_RATE, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.98))


def spread(rows: tuple[Row, ...]) -> Row:
    """The means of the same row of several runs."""
    return {
        name: statistics.fmean(row[name] for row in rows) if isinstance(value, float) else value
        for name, value in rows[0].items()
    }


if __name__ == "__main__":
    main()
