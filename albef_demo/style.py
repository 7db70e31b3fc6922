"""Images that no training saw, as a saved model sees them: search, re-rank, heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from albef.data.images import open_image
from albef.data.loader import read_images
from albef.data.processor import Processor
from albef.data.progress import with_bar
from albef.data.records import Source
from albef.data.sources import open_sources
from albef.models.albef import AlbefModel
from albef.tasks import grounding, ranking
from albef_demo import report


@dataclass
class Unseen:
    """Images that no training saw, such as those of another drawing style, each with a name."""

    model: AlbefModel
    processor: Processor
    source: Source
    gallery: ranking.Gallery
    names: list[str]
    candidates: int
    """Images that ITM re-ranks."""

    @classmethod
    def load(cls, folder: Path, paths: Sequence[str], candidates: int) -> Unseen:
        """The images of `paths` for the model saved in `folder`; an image's name is its first caption."""
        model, processor = AlbefModel.from_pretrained(folder), Processor.from_pretrained(folder)
        source = open_sources(paths)
        gallery = with_bar(
            "encoding images", len(source), lambda tick: ranking.encode(model, processor, source, 1, tick=tick)
        )
        names = [source.captions(index)[0] for index in range(len(source))]
        return cls(model, processor, source, gallery, names, candidates)

    def scores(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of every name with every image, as `ranking.two_stage_scores` has them."""
        return with_bar(
            "re-ranking with ITM",
            len(self.names),
            lambda tick: dict(ranking.two_stage_scores(self.model, self.gallery, self.candidates, tick)),
        )

    def image(self, index: int) -> Image.Image:
        return open_image(self.source[index].image)

    @torch.no_grad()
    def find(self, text: str, top: int) -> report.Query:
        """The first `top` images for `text` by ITC, and after ITM re-ranked the candidates."""
        texts, z_text = ranking.encode_texts(self.model, self.processor, [text])
        cosines, order = (self.gallery.z_image @ z_text[0]).topk(min(max(self.candidates, top), len(self.names)))
        tokens = [self.gallery.image_tokens[row] for row in order.tolist()]
        logits = ranking.match_text(self.model, tokens, texts)
        hits = [
            report.Hit(self.image(index), self.names[index], cosine, place, match)
            for place, (index, cosine, match) in enumerate(
                zip(order.tolist(), cosines.tolist(), logits.softmax(-1)[:, 1].tolist(), strict=True), 1
            )
        ]
        # the paper's rule: the logit of "matched" alone gives the order
        by_itm = [hits[place] for place in logits[:, 1].argsort(descending=True).tolist()]
        return report.Query(text, hits[:top], by_itm[:top])

    def word_maps(self, image: str, text: str) -> report.WordMaps:
        """Where the image of that name shows `text`, and each of its words.

        Every word is asked as a text of its own: in the last fusion layer, the only one of a tiny model, nothing but
        the text's `[CLS]` reaches the matching score, and the words of a sentence have no maps there.
        """
        index = self.names.index(image)
        texts = [text, *text.split()]
        _, pixels = read_images(self.source, [index], self.processor)
        pixel_values = self.processor.normalise(pixels).expand(len(texts), -1, -1, -1)
        words = self.processor.texts(texts)
        maps = grounding.word_maps(self.model, pixel_values, words["input_ids"], words["attention_mask"]).sum(1)
        with torch.no_grad():
            states = self.model.encode_text(words["input_ids"], words["attention_mask"])
            keys_values = self.model.fusion_encoder.keys_values(self.model.encode_image(pixel_values[:1]))
            logits = self.model.match(self.model.fuse(states, words["attention_mask"], keys_values))
        found = zip(texts, logits.softmax(-1)[:, 1].tolist(), maps.numpy(), strict=True)
        return report.WordMaps(self.image(index), image, list(found))


def recall_rows(images: int, models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Recalls by row name, chance first."""
    chance = {f"{side}_r{k}": min(100.0, 100.0 * k / images) for side in ("img", "txt") for k in (1, 5, 10)}
    ways = {"itc": "ITC", "itm": "ITM", "sum": "ITC + ITM"}
    rows = {f"{model}, {ways[way]}": values for model, found in models.items() for way, values in found.items()}
    return {"chance": chance, **rows}
