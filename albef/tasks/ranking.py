"""Two-stage retrieval: a shortlist by ITC, re-ranked by ITM (paper §3.4, §4.1)."""

# I pictures, T texts, L words, S image tokens, E embed_dim

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from albef import distributed
from albef.data.loader import read_pictures
from albef.data.processor import Processor
from albef.data.sources import Source
from albef.models.albef import AlbefModel

NOT_A_CANDIDATE = -100.0


@dataclass
class Gallery:
    """Encoded pictures and texts; `image_of_text[t]` is the picture that text t describes."""

    image_tokens: Tensor  # [I, S, Dv]
    z_image: Tensor  # [I, E]
    text_states: Tensor  # [T, L, D]
    text_mask: Tensor  # [T, L]
    z_text: Tensor  # [T, E]
    image_of_text: Tensor  # [T]


@torch.no_grad()
def encode(
    model: AlbefModel,
    processor: Processor,
    source: Source,
    captions_per_picture: int | None = None,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> Gallery:
    """Every readable picture of `source` with its captions (the first so many), encoded.

    Records of one picture are one row with all their captions. Pictures that can't be read are left out with a warning;
    ValueError if none can. `tick` is told of every record done.
    """
    captions: dict[str, list[str]] = {}

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(source), batch_size):
            indices = range(start, min(start + batch_size, len(source)))
            records, pixels = read_pictures(source, indices, processor)
            fresh = []
            for row, record in enumerate(records):
                if record.image_id not in captions:
                    fresh.append(row)
                captions.setdefault(record.image_id, []).extend(record.captions)
            if tick:
                tick(len(indices))
            if fresh:
                yield processor.normalise(pixels[fresh].to(model.device))

    image_tokens, z_image = encode_images(model, batches())
    texts = [own[:captions_per_picture] for own in captions.values()]
    image_of_text = torch.tensor([image for image, own in enumerate(texts) for _ in own], device=z_image.device)
    return Gallery(image_tokens, z_image, *encode_texts(model, processor, list(chain(*texts))), image_of_text)


@torch.no_grad()
def encode_images(model: AlbefModel, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Batches of normalised pixels -> all image tokens [I, S, Dv] and unit vectors [I, E]."""
    tokens = [model.encode_image(batch) for batch in batches]
    if not tokens:
        raise ValueError("none of the pictures could be read; check the paths and image_root")
    return torch.cat(tokens), torch.cat([model.project_image(part) for part in tokens])


@torch.no_grad()
def encode_texts(
    model: AlbefModel, processor: Processor, texts: Sequence[str], batch_size: int = 256
) -> tuple[Tensor, Tensor, Tensor]:
    """Texts -> states [T, L, D], mask [T, L], unit vectors [T, E]."""
    words = processor.texts(list(texts))
    device = model.device
    ids, mask = words["input_ids"].to(device), words["attention_mask"].to(device)
    parts = zip(ids.split(batch_size), mask.split(batch_size), strict=True)
    states = torch.cat([model.encode_text(*part) for part in parts])
    return states, mask, model.project_text(states)


@torch.no_grad()
def match_logits(
    model: AlbefModel,
    gallery: Gallery,
    pairs: Tensor,
    batch_size: int = 512,
    tick: Callable[[int], None] | None = None,
) -> Tensor:
    """ITM logit of class "matched" for every pair marked True in `pairs` [I, T]; 0 elsewhere.

    A picture's keys and values are computed once for all its texts, and a pair that both directions shortlist is scored
    once. Over several ranks each takes every n-th picture. `tick` is told of every picture done.
    """
    scores = torch.zeros(pairs.shape, device=gallery.z_image.device)
    lengths = gallery.text_mask.sum(1)
    for image in range(distributed.rank(), len(pairs), distributed.world_size()):
        texts = pairs[image].nonzero().squeeze(1)
        keys_values = model.fusion_encoder.keys_values(gallery.image_tokens[image : image + 1])
        for some in texts[lengths[texts].argsort()].split(batch_size):
            longest = int(lengths[some].max())
            states, mask = gallery.text_states[some, :longest], gallery.text_mask[some, :longest]
            scores[image, some] = model.match(model.fuse(states, mask, keys_values, cls_only=True))[:, 1].float()
        if tick:
            tick(1)
    return distributed.total(scores)


def shortlist(similarities: Tensor, k: int) -> Tensor:
    """True for the k highest of each row (all of them, if there are fewer): [rows, columns]."""
    best = similarities.topk(min(k, similarities.shape[1]), dim=1).indices
    return torch.zeros_like(similarities, dtype=torch.bool).scatter_(1, best, True)


def two_stage_scores(
    model: AlbefModel, gallery: Gallery, k: int, tick: Callable[[int], None] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores picture->text [I, T] and text->picture [T, I], by each way of scoring.

    `itc`: cosines of everything with everything, the first stage alone. `itm`: the paper's rule, the matching logit
    alone orders the shortlist of k. `sum`: that logit plus the cosine, as LAVIS does. Outside the shortlist the last
    two are -100.
    """
    cosines = gallery.z_image @ gallery.z_text.T
    by_image, by_text = shortlist(cosines, k), shortlist(cosines.T, k)
    logits = match_logits(model, gallery, by_image | by_text.T, tick=tick)

    def both_ways(scores: Tensor) -> tuple[Tensor, Tensor]:
        return scores.masked_fill(~by_image, NOT_A_CANDIDATE), scores.T.masked_fill(~by_text, NOT_A_CANDIDATE)

    return {"itc": (cosines, cosines.T), "itm": both_ways(logits), "sum": both_ways(logits + cosines)}


def recalls(image_to_text: Tensor, text_to_image: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """R@1, 5, 10 in percent, both ways: `txt_*` finds texts for a picture, `img_*` pictures for a text.

    A picture counts as found by its best text. Exact ties fall as in the original: as numpy's argsort, reversed, has
    them, which is not defined.
    """
    texts_of = image_of_text.cpu().numpy()
    order = _descending(image_to_text)
    hits = texts_of[order] == np.arange(len(order))[:, None]
    ranks = {"txt": np.where(hits.any(1), hits.argmax(1), hits.shape[1])}
    order = _descending(text_to_image)
    ranks["img"] = (order == texts_of[:, None]).argmax(1)
    figures: dict[str, float] = {}
    for name, rank in ranks.items():
        for k in (1, 5, 10):
            figures[f"{name}_r{k}"] = float(100.0 * (rank < k).mean())
        figures[f"{name}_r_mean"] = sum(figures[f"{name}_r{k}"] for k in (1, 5, 10)) / 3
    figures["r_mean"] = (figures["txt_r_mean"] + figures["img_r_mean"]) / 2
    return figures


def evaluate(
    model: AlbefModel, gallery: Gallery, k: int, tick: Callable[[int], None] | None = None
) -> dict[str, dict[str, float]]:
    """Recalls by each way of scoring: `{"itc": {"txt_r1": ..}, "itm": .., "sum": ..}`."""
    scores = two_stage_scores(model, gallery, k, tick)
    return {name: recalls(*both, gallery.image_of_text) for name, both in scores.items()}


def _descending(scores: Tensor) -> np.ndarray:
    return np.argsort(scores.float().cpu().numpy(), axis=1)[:, ::-1]
