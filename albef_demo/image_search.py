"""Images that are searched by words: a shortlist by ITC, re-ranked by ITM, and heat maps of what a text reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from albef.data.sources import expand, open_sources
from albef.files import data_path
from albef.models.albef import AlbefModel
from albef.tasks import grounding, ranking
from albef_demo import report
from albef_demo.kept import EncodedImages, kept, key_of

BATCH = 64


@dataclass
class ImageSearch:
    """Images, each with a name, as a saved model sees them. Image number i is record number i of `source`.

    `candidates` is how many images of the shortlist ITM re-ranks.
    """

    model: AlbefModel
    processor: Processor
    source: Source
    images: EncodedImages
    candidates: int

    @classmethod
    def load(cls, folder: Path, paths: Sequence[str], candidates: int, keep: bool = False) -> ImageSearch:
        """The images of `paths` for the model saved in `folder`; an image's name is its first caption.

        With `keep`, the encoded images are taken from the user's cache folder if an earlier call left them there, and
        are left there otherwise.
        """
        model, processor = AlbefModel.from_pretrained(folder), Processor.from_pretrained(folder)
        source = open_sources(paths)

        def encode() -> EncodedImages:
            return _encoded(model, processor, source)

        if not keep:
            return cls(model, processor, source, encode(), candidates)
        data = [file for path in paths for file in expand(data_path(path))]
        return cls(model, processor, source, kept(key_of([folder, *data]), encode), candidates)

    @property
    def names(self) -> list[str]:
        return self.images.names

    def scores(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The scores of every name with every image, as `ranking.two_stage_scores` returns them.

        The name of number i and the image of number i belong together.
        """
        texts = ranking.encode_texts(self.model, self.processor, self.names)
        gallery = ranking.Gallery(list(self.images.tokens), self.images.z_image, *texts, torch.arange(len(self.names)))
        return with_bar(
            "re-ranking with ITM",
            len(self.names),
            lambda tick: dict(ranking.two_stage_scores(self.model, gallery, self.candidates, tick)),
        )

    def image(self, index: int) -> Image.Image:
        """The image of that number, as it is in its file."""
        return open_image(self.source[index].image)

    @torch.no_grad()
    def find(self, text: str, top: int) -> report.Query:
        """The first `top` images for `text` by ITC, and the first `top` after re-ranking, by ITM and by both."""
        texts, z_text = ranking.encode_texts(self.model, self.processor, [text])
        count = min(max(self.candidates, top), len(self.names))
        cosines, order = (self.images.z_image @ z_text[0]).topk(count)
        logits = ranking.score_images(self.model, list(self.images.tokens[order]), texts)
        matches = ranking.match_probabilities(self.model, logits)
        found = zip(order.tolist(), cosines.tolist(), matches.tolist(), strict=True)
        hits = [
            report.Hit(self.image(index), self.names[index], cosine, place, match)
            for place, (index, cosine, match) in enumerate(found, 1)
        ]
        # The paper's rule, the logit of "matched" alone; and both on one scale, the order of a search.
        orders = logits[:, 1], ranking.odds(self.model, cosines, logits)
        by_itm, by_odds = ([hits[place] for place in own.argsort(descending=True)[:top].tolist()] for own in orders)
        return report.Query(text, hits[:top], by_itm, by_odds)

    def word_maps(self, image: str, text: str) -> report.WordMaps:
        """Where the image of that name shows `text`, and where it shows each of the text's words.

        Every word is asked as a text of its own. In the last fusion layer, which is the only one of a tiny model, only
        the text's `[CLS]` reaches the matching score, so the words of a sentence have no maps there.
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
        matches = ranking.match_probabilities(self.model, logits)
        found = zip(texts, matches.tolist(), maps.numpy(), strict=True)
        return report.WordMaps(self.image(index), image, list(found))


def _encoded(model: AlbefModel, processor: Processor, source: Source) -> EncodedImages:
    """Every image of the source, encoded in batches; the bar shows how far it is."""

    def encode(tick: ranking.Tick) -> tuple[list[Tensor], Tensor]:
        def batches() -> Iterator[Tensor]:
            for start in range(0, len(source), BATCH):
                numbers = range(start, min(start + BATCH, len(source)))
                yield processor.normalise(read_images(source, numbers, processor)[1])
                tick(len(numbers))

        return ranking.encode_images(model, batches())

    tokens, z_image = with_bar("encoding images", len(source), encode)
    names = [source.captions(index)[0] for index in range(len(source))]
    # Half precision also where nothing is kept, so that a kept image and a new one have the same scores.
    return EncodedImages(torch.stack(tokens).half(), z_image, names)


def recalls(scores: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    """Recalls in percent by each way of scoring, from what `ImageSearch.scores` returns."""
    return {name: ranking.recalls(*both, torch.arange(len(both[0]))) for name, both in scores.items()}


def recall_rows(images: int, models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Recalls by row name, with chance as the first row."""
    chance = {f"{side}_r{k}": min(100.0, 100.0 * k / images) for side in ("img", "txt") for k in (1, 5, 10)}
    ways = {"itc": "ITC", "itm": "ITM", "sum": "ITC + ITM", "odds": "ITC + ITM, one scale"}
    rows = {f"{model}, {ways[way]}": values for model, found in models.items() for way, values in found.items()}
    return {"chance": chance, **rows}
