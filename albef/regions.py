"""Where in one image one text is seen: what `Pipeline.ground` does for every pair."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from albef.data.processor import Processor
from albef.data.records import Box, box_of
from albef.errors import AlbefValueError
from albef.metrics import boxes
from albef.models.albef import AlbefModel
from albef.results import Region
from albef.tasks import grounding


def region(
    model: AlbefModel,
    processor: Processor,
    image: Image.Image,
    text: str,
    candidates: list[Box],
    mode: grounding.Mode,
    layer: int | None,
) -> Region:
    """The map of the text, of each of its words if `mode` is "itm", and the best box (see `Pipeline.ground`)."""
    size = image.height, image.width
    pixels = processor.normalise(processor.resize(image)[None].to(model.device)).to(model.dtype)  # [1, 3, H, W]
    listed = processor.texts([text], model.config.max_positions)
    inputs = pixels, listed["input_ids"].to(model.device), listed["attention_mask"].to(model.device)
    words = {}
    if mode == "itm":
        maps = grounding.word_maps(model, *inputs, layer)[0]  # [L, rows, columns]
        places = spelled(processor, listed["input_ids"][0].tolist())
        words = {word: boxes.upsample(maps[own].sum(0), *size) for word, own in places.items()}
        grid = maps.mean(0)
    else:
        grid = grounding.similarity_maps(model, *inputs, layer)[0]
    large = boxes.upsample(grid, *size)
    box, points = box_of(boxes.box_of_map(large)), bool(large.max() > 0)
    if candidates:
        box, points = grounding.best_box(large, candidates)
    return Region(image, large, boxes.point(grid, *size), box, points, words)


def spelled(processor: Processor, ids: list[int]) -> dict[str, list[int]]:
    """The words that the pieces spell, each with the places of its pieces; `[CLS]` belongs to none."""
    words: list[tuple[str, list[int]]] = []
    for place, index in enumerate(ids[1:], 1):
        piece = processor.tokenizer.id_to_token(index) or "[UNK]"
        if piece.startswith("##") and words:
            words[-1] = (words[-1][0] + piece[2:], [*words[-1][1], place])
        else:
            words.append((piece, [place]))
    places: dict[str, list[int]] = {}
    for word, own in words:
        places.setdefault(word, []).extend(own)
    return places


def checked_candidates(candidates: Sequence[Box] | None) -> list[Box]:
    """The boxes to choose among, none if None was given. ValueError for an empty list, and for wrong boxes."""
    if candidates is None:
        return []
    if not len(candidates):
        raise AlbefValueError("candidates is empty; give boxes to choose among, or leave it out for the map's own box")
    return [box_of(boxes.checked(candidate)) for candidate in candidates]
