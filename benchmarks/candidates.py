"""When does re-ranking help? The shipped model by candidates and by gallery size: `python -m benchmarks.candidates`."""

from __future__ import annotations

import torch

from albef import AlbefModel, Processor, open_sources
from albef.tasks import ranking


def main() -> None:
    model, processor = AlbefModel.from_pretrained("emoji"), Processor.from_pretrained("emoji")
    gallery = ranking.encode_gallery(
        model, processor, open_sources(["albef:emoji/fluent.tar.gz"]), captions_per_image=1
    )
    print("text->image R@1 in the unseen style")
    for k in (2, 4, 8, 16, 64):
        show(f"{k} candidates", [ranking.two_stage_recalls(model, gallery, k)])
    torch.manual_seed(0)
    for size, draws in ((32, 20), (128, 20), (512, 6)):
        show(f"{size} images", [ranking.two_stage_recalls(model, part(gallery, size), 16) for _ in range(draws)])


def part(gallery: ranking.Gallery, size: int) -> ranking.Gallery:
    """A random part of a gallery with one text for each image."""
    rows = torch.randperm(len(gallery.z_image))[:size]
    tokens = [gallery.image_tokens[row] for row in rows.tolist()]
    states, _ = gallery.texts.some(rows)
    texts = ranking.Texts(states, gallery.texts.mask[rows])
    return ranking.Gallery(tokens, gallery.z_image[rows], texts, gallery.z_text[rows], torch.arange(size))


def show(name: str, found: list[dict[str, dict[str, float]]]) -> None:
    means = {way: sum(figures[way]["img_r1"] for figures in found) / len(found) for way in found[0]}
    print(f"{name:<15}" + "  ".join(f"{way} {value:5.1f}" for way, value in means.items()), flush=True)


if __name__ == "__main__":
    main()
