"""Two-stage retrieval: a shortlist by ITC, re-ranked by ITM (paper §3.4, §4.1).

There are four ways of scoring a pair:

- `itc`: the cosine of the two unit vectors. It ranks everything with everything and makes the shortlist.
- `itm`: the logit of "matched" alone, which is the paper's rule.
- `sum`: that logit plus the cosine, as LAVIS does. The cosine lies between -1 and 1, so it hardly counts.
- `odds`: both on one scale, cosine / temperature + weight * (logit of "matched" - logit of "not matched"). A softmax
  over candidates takes cosine / temperature, with the temperature that ITC learnt, for the log-probability (up to a
  constant) that the two are aligned; the difference of ITM's two logits is the log-odds that they match. So their sum
  is the log-probability that is left when ITM has seen the pair. The weight is `AlbefConfig.match_weight`, which
  `albef calibrate` fits. A search orders by this one unless it is told otherwise.
"""

# I images, T texts, P pairs, L words of the longest, N words in all, S image tokens, E embed_dim

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from albef import distributed
from albef.data.ahead import ahead
from albef.data.broken import BrokenCounter
from albef.data.loader import read_images
from albef.data.processor import Processor
from albef.data.sources import Source
from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.models.layout import PackedText

NOT_A_CANDIDATE = -100.0
TOKENS_GIB = 8.0  # GiB
TEXTS_AT_ONCE = {"cpu": 64}
OTHERWISE = 512  # on a GPU; nobody has measured it
IMAGES_AT_ONCE = 16
Tick = Callable[[int], None]


class Texts:
    """Encoded texts without padding, as far as no image changes them (`FusionEncoder.begin`)."""

    def __init__(self, states: Tensor, mask: Tensor) -> None:
        """`states` [N, D], text after text; `mask` [T, L] on the host (1 = word)."""
        self.states, self.mask = states, mask
        self.lengths = mask.sum(1)
        self.starts = self.lengths.cumsum(0) - self.lengths

    def __len__(self) -> int:
        return len(self.mask)

    def some(self, rows: Tensor) -> tuple[Tensor, PackedText]:
        """States of the texts `rows` (on the host), cut to the longest of them, and how they lie."""
        mask = self.mask[rows, : int(self.lengths[rows].max())]
        places = self.starts[rows, None] + torch.arange(mask.shape[1])
        device = self.states.device
        return self.states.index_select(0, places[mask.bool()].to(device)), PackedText.of(mask, device)


@dataclass
class Gallery:
    """Encoded images and texts; `image_of_text[t]` is the image that text t describes.

    Of several ranks each holds the tokens of its own images only, and everything else of all.
    """

    image_tokens: Sequence[Tensor]  # own images' [S, Dv], on the host
    z_image: Tensor  # [I, E]
    texts: Texts
    z_text: Tensor  # [T, E]
    image_of_text: Tensor  # [T]
    first: int = 0
    """The number of the first own image."""


@torch.no_grad()
def encode_gallery(
    model: AlbefModel,
    processor: Processor,
    source: Source,
    captions_per_image: int | None = None,
    batch_size: int = 64,
    tick: Tick | None = None,
    memory: float = TOKENS_GIB,
    counter: BrokenCounter | None = None,
) -> Gallery:
    """Every readable image of `source` with its captions (the first so many), encoded; each rank takes its share.

    Records of one image are one row with all their captions. Images that can't be read are left out with a warning,
    and a `counter` is told; ValueError if none can be read. Image tokens wait on the host, in half precision if they
    would take more than `memory` GiB otherwise, which the ranks of a host share. `tick` is told of every record done,
    of all ranks as far as this one has got with its own.
    """
    rank, world = distributed.rank(), distributed.world_size()
    share = range(len(source) * rank // world, len(source) * (rank + 1) // world)
    tick = _of_all(tick, len(share), len(source))
    found: list[tuple[str, list[str]]] = []

    def batches() -> Iterator[Tensor]:
        seen = set[str]()
        for start in range(share.start, share.stop, batch_size):
            indices = range(start, min(start + batch_size, share.stop))
            records, pixels = read_images(source, indices, processor, counter)
            fresh = []
            for row, record in enumerate(records):
                if record.image_id not in seen:
                    fresh.append(row)
                seen.add(record.image_id)
                found.append((record.image_id, record.captions))
            tick(len(indices))
            if fresh:
                yield pixels[fresh]

    normalised = (processor.normalise(pixels.to(model.device)) for pixels in ahead(batches()))
    tokens, z_image = encode_images(model, normalised, memory / distributed.ranks_of_this_host())
    captions: dict[str, list[str]] = {}
    counts = [0]
    for part in distributed.gather_objects(found):
        for name, own in part:
            captions.setdefault(name, []).extend(own)
        counts.append(len(captions))
    if not captions:
        raise AlbefValueError("none of the images could be read; check the paths and image_root")
    own_names = list(dict.fromkeys(name for name, _ in found))
    new = set(list(captions)[counts[rank] : counts[rank + 1]])  # others belong to an earlier rank
    rows = [row for row, name in enumerate(own_names) if name in new]
    z_image = torch.cat([part.to(model.device) for part in distributed.gather_objects(z_image[rows].cpu())])
    texts = [own[:captions_per_image] for own in captions.values()]
    image_of_text = torch.tensor([image for image, own in enumerate(texts) for _ in own], device=model.device)
    encoded = encode_texts(model, processor, list(chain(*texts)))
    return Gallery([tokens[row] for row in rows], z_image, *encoded, image_of_text, counts[rank])


def _of_all(tick: Tick | None, own: int, total: int) -> Tick:
    """A `tick` for a share of `own` things that tells of the `total` as if the others were as far."""
    done = 0

    def report(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if tick:
            tick(done * total // own - before * total // own)

    return report


@torch.no_grad()
def encode_images(
    model: AlbefModel, batches: Iterable[Tensor], memory: float = TOKENS_GIB
) -> tuple[list[Tensor], Tensor]:
    """Batches of normalised pixels -> each image's tokens [S, Dv] on the host, and all unit vectors [I, E].

    The tokens are kept in half precision if they take more than `memory` GiB otherwise; ValueError if that is not
    enough.
    """
    kept: list[Tensor] = []
    z_image = [torch.empty(0, model.config.embed_dim, device=model.device)]
    dtype, numbers = torch.float32, 0
    for batch in batches:
        tokens = model.encode_image(batch)
        kept += tokens.to("cpu", dtype).unbind()
        z_image.append(model.project_image(tokens))
        numbers += tokens.numel()
        if numbers * dtype.itemsize > memory * 2**30:
            dtype = torch.float16
            for row, wide in enumerate(kept):
                kept[row] = wide.to(dtype)
        if numbers * dtype.itemsize > memory * 2**30:
            raise AlbefValueError(
                f"the tokens of {len(kept)} images already take more than the {memory:.3g} GiB that this process may "
                "give them, in half precision; allow more `memory`, or share them among more machines"
            )
    return kept, torch.cat(z_image)


@torch.no_grad()
def encode_texts(
    model: AlbefModel, processor: Processor, texts: Sequence[str], batch_size: int = 256
) -> tuple[Texts, Tensor]:
    """Texts, and their unit vectors [T, E]."""
    words = processor.texts(list(texts))
    ids, mask = words["input_ids"], words["attention_mask"]
    states, z_text = [], []
    for some_ids, some_mask in zip(ids.split(batch_size), mask.split(batch_size), strict=True):
        layout = PackedText.of(some_mask, model.device)
        encoded = model.encode_text(some_ids.to(model.device), layout)
        states.append(model.fusion_encoder.begin(encoded, layout))
        z_text.append(model.project_text(encoded, layout))
    return Texts(torch.cat(states), mask), torch.cat(z_text)


@torch.no_grad()
def score_texts(
    model: AlbefModel, image_tokens: Iterable[Tensor], texts: Texts, chosen: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each image's tokens [S, Dv] and `chosen` texts [n]: these texts, reordered, and their ITM logits [n, 2].

    An image's keys and values are computed once for all its texts, or not at all for few; a text's first self-attention
    once for all its images; nothing for padding; and in the last layer only the first token.
    """
    at_once = TEXTS_AT_ONCE.get(model.device.type, OTHERWISE)
    for tokens, rows in zip(image_tokens, chosen, strict=True):
        rows = rows[texts.lengths[rows].argsort(stable=True)]
        words_in_all = int(texts.lengths[rows].sum())
        image = tokens[None].to(model.device, model.dtype, non_blocking=True)
        seen = model.fusion_encoder.seen_once(image, words_in_all)
        logits = [torch.empty(0, 2, device=model.device)]
        for some in rows.split(at_once) if len(rows) else ():
            states, words = texts.some(some)
            logits.append(model.match(model.fuse(states, words, seen, cls_only=True, begun=True)).float())
        yield rows, torch.cat(logits)


@torch.no_grad()
def score_images(model: AlbefModel, image_tokens: Sequence[Tensor], text: Texts) -> Tensor:
    """ITM logits [I, 2] of a single text with every image, for which no keys and values are made if it is short."""
    states, words = text.some(torch.zeros(1, dtype=torch.long))
    logits = [torch.empty(0, 2, device=model.device)]
    for start in range(0, len(image_tokens), IMAGES_AT_ONCE):
        some = image_tokens[start : start + IMAGES_AT_ONCE]
        tokens = torch.stack([one.to(model.device, model.dtype, non_blocking=True) for one in some])
        mask = words.readable.expand(len(tokens), -1)
        seen, asking = model.fusion_encoder.seen_once(tokens, len(states)), states.expand(len(tokens), -1, -1)
        logits.append(model.match(model.fuse(asking, mask, seen, cls_only=True, begun=True)).float())
    return torch.cat(logits)


def match_logits(model: AlbefModel, gallery: Gallery, pairs: Tensor, tick: Tick | None = None) -> Tensor:
    """ITM's logits [P, 2] of the pairs marked True in `pairs` [I, T], row after row; class 1 says "matched".

    A pair that both directions shortlist is scored once. Of several ranks each scores its own images. `tick` is told
    of every image done, as in `encode_gallery`.
    """
    tick = _of_all(tick, len(gallery.image_tokens), len(pairs))
    own = pairs[gallery.first : gallery.first + len(gallery.image_tokens)].cpu()
    chosen = (row.nonzero().squeeze(1) for row in own)
    counts = pairs.sum(1)
    place = int(counts[: gallery.first].sum())
    logits = torch.zeros(int(counts.sum()), 2, device=model.device)
    for rows, found in score_texts(model, gallery.image_tokens, gallery.texts, chosen):
        logits[place : place + len(rows)] = found[rows.argsort().to(found.device)]
        place += len(rows)
        tick(1)
    return distributed.total(logits)


def shortlist(similarities: Tensor, k: int) -> Tensor:
    """True for the k highest of each row (all of them, if there are fewer): [rows, columns]."""
    best = similarities.topk(min(k, similarities.shape[1]), dim=1).indices
    return torch.zeros_like(similarities, dtype=torch.bool).scatter_(1, best, True)


def odds(model: AlbefModel, cosines: Tensor, logits: Tensor) -> Tensor:
    """The scores `odds` (see above) of pairs with these cosines [...] and ITM logits [..., 2]."""
    return cosines / model.temp.item() + model.config.match_weight * log_odds(logits)


def log_odds(logits: Tensor) -> Tensor:
    """ITM's logits [..., 2] -> the log-odds [...] that the two match."""
    return logits[..., 1] - logits[..., 0]


def match_probabilities(model: AlbefModel, logits: Tensor) -> Tensor:
    """ITM's logits [..., 2] -> the probability [...] that the two match, calibrated if the model is."""
    return (logits.float() / model.config.match_temperature).softmax(-1)[..., 1]


def two_stage_scores(
    model: AlbefModel, gallery: Gallery, k: int, tick: Tick | None = None
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Scores image->text [I, T] and text->image [T, I], by one way of scoring after the other: see above.

    Outside the shortlist of k, `itm` and `sum` are -100, as in the original, and `odds` is minus infinity, since its
    scores have no bound.
    """
    cosines = all_cosines(gallery)
    yield "itc", (cosines, cosines.T)
    by_image, by_text = shortlist(cosines, k), shortlist(cosines.T, k)
    pairs = by_image | by_text.T
    logits, own = match_logits(model, gallery, pairs, tick), cosines[pairs]
    ways = {
        "itm": (logits[:, 1], NOT_A_CANDIDATE),
        "sum": (logits[:, 1] + own, NOT_A_CANDIDATE),
        "odds": (odds(model, own, logits), -torch.inf),
    }
    for name, (values, outside) in ways.items():
        scores = torch.full_like(cosines, outside)
        scores[pairs] = values
        yield name, (scores.masked_fill(~by_image, outside), scores.T.masked_fill(~by_text, outside))


def all_cosines(gallery: Gallery) -> Tensor:
    """The cosines of all images with all texts [I, T]."""
    with torch.autocast(gallery.z_image.device.type, enabled=False):  # bfloat16 would tie what differs
        return gallery.z_image @ gallery.z_text.T


def recalls(image_to_text: Tensor, text_to_image: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """R@1, 5, 10 in percent, both ways: `txt_*` finds texts for an image, `img_*` images for a text.

    An image counts as found by its best text. Exact ties fall as in the original: as numpy's argsort, reversed, has
    them, which is not defined.
    """
    image_of_text = image_of_text.cpu()
    ranks = {
        "txt": _ranks(image_to_text, lambda rows, order: image_of_text[order] == rows),
        "img": _ranks(text_to_image, lambda rows, order: order == image_of_text[rows]),
    }
    figures: dict[str, float] = {}
    for name, rank in ranks.items():
        for k in (1, 5, 10):
            figures[f"{name}_r{k}"] = float(100.0 * (rank < k).mean())
        figures[f"{name}_r_mean"] = sum(figures[f"{name}_r{k}"] for k in (1, 5, 10)) / 3
    figures["r_mean"] = (figures["txt_r_mean"] + figures["img_r_mean"]) / 2
    return figures


def two_stage_recalls(
    model: AlbefModel, gallery: Gallery, k: int, tick: Tick | None = None
) -> dict[str, dict[str, float]]:
    """Recalls by each way of scoring: `{"itc": {"txt_r1": ..}, "itm": .., "sum": .., "odds": ..}`."""
    return {name: recalls(*both, gallery.image_of_text) for name, both in two_stage_scores(model, gallery, k, tick)}


def _ranks(scores: Tensor, right: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """Place of each row's first right column, counted from 0; behind all others if none is.

    `right` takes row numbers [rows, 1] and their columns in falling order, and says which are right.
    """
    ranks = []
    for rows in torch.arange(len(scores)).split(256):  # sorted at once, 5,000 x 25,000 numbers would take a gigabyte
        order = np.argsort(scores[rows].float().cpu().numpy(), axis=1)[:, ::-1].copy()
        hits = right(rows[:, None], torch.from_numpy(order)).numpy()
        ranks.append(np.where(hits.any(1), hits.argmax(1), hits.shape[1]))
    return np.concatenate(ranks)
