"""`albef calibrate`: two numbers of a model that validation pairs tell, and that its `config.json` keeps.

The weight of ITM's log-odds in a search (`odds` in `tasks.ranking`) makes the right candidate as likely as possible
among the shortlist: a softmax over scale * cosine / temperature + scale' * log-odds, where both scales are free. Only
their ratio changes an order, and it is the weight. With the first scale held at 1, ITC's overconfidence on new data
would be taken for a fault of ITM.

The temperature of ITM's logits makes its probabilities as likely as possible on true pairs and wrong ones, where one
pair in three is true. Beside each true pair stand a wrong pair that is hard and one that is drawn evenly (by a fixed
seed). The hard one is drawn as ITM's training draws it, by a softmax over cosine / temperature of the shortlist, half
for the image and half for the text; no draw is made for it, since every candidate counts as often as it would be
drawn. A single temperature cannot mend a wrong balance of true and wrong; a bias beside it was tried and helped only
on data that the model was trained on.
"""

# I images, T texts, Q queries, C candidates of each, N pairs

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from albef.data.progress import with_bar
from albef.data.sources import open_sources
from albef.errors import AlbefValueError
from albef.files import HUB, model_folder, write_atomically
from albef.models import folders
from albef.models.albef import AlbefModel
from albef.pipeline import Pipeline
from albef.tasks import ranking

BINS = 10
Side = tuple[Tensor, Tensor, Tensor]


def calibrate(
    pipeline: Pipeline, data: Sequence[str], k: int = 128, captions: int | None = None, image_root: str | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Fits both numbers on images with captions, which the model should not have been trained on.

    Returns `match_weight` and `match_temperature`, and figures before and after in percent. Of several ranks all
    return the same. ValueError for a model that does not match, and for fewer than two images.
    """
    model = pipeline.model
    if not isinstance(model, AlbefModel):
        raise AlbefValueError(
            f"{pipeline.name} is an {type(model).__name__}, which does not match images with texts; give a model of "
            "pre-training or retrieval"
        )
    for name, value, least in (("k", k, 2), ("captions", captions, 1)):
        if value is not None and value < least:
            raise AlbefValueError(f"--{name} {value}: give at least {least}, or leave it out")
    source = open_sources(data, image_root)

    def encode(tick: ranking.Tick) -> ranking.Gallery:
        return ranking.encode_gallery(model, pipeline.processor, source, captions, tick=tick)

    gallery = with_bar("encoding images", len(source), encode)
    if len(gallery.z_image) < 2:
        raise AlbefValueError("a single image has no wrong texts to tell from the right ones; give some hundred")
    return with_bar("matching", len(gallery.z_image), lambda tick: fit(model, gallery, k, tick))


@torch.no_grad()
def fit(
    model: AlbefModel, gallery: ranking.Gallery, k: int, tick: ranking.Tick | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """As `calibrate`, on encoded images and texts."""
    cosines = ranking.all_cosines(gallery)  # [I, T]
    by_image, by_text = ranking.shortlist(cosines, k), ranking.shortlist(cosines.T, k)
    right = torch.zeros_like(by_image)
    right[gallery.image_of_text, torch.arange(right.shape[1])] = True
    drawn = _drawn(gallery.image_of_text, len(right))
    pairs = by_image | by_text.T | right | drawn
    logits = torch.zeros(*pairs.shape, 2, device=model.device)
    logits[pairs] = ranking.match_logits(model, gallery, pairs, tick)
    aligned, log_odds = cosines / model.temp.item(), ranking.log_odds(logits)

    both = (by_image, aligned, log_odds, right), (by_text, aligned.T, log_odds.T, right.T)
    weight = fit_weight([_of_shortlist(*side) for side in both])
    hard = _hard(aligned, right, by_image) + _hard(aligned.T, right.T, by_text).T
    counts = right + hard / 2 + drawn
    judged = counts > 0
    asked = log_odds[judged].cpu().double(), right[judged].cpu().double(), counts[judged].cpu().double()
    temperature = fit_temperature(*asked)

    def recalls(scores: Tensor) -> dict[str, float]:
        listed = scores.masked_fill(~by_image, -torch.inf), scores.T.masked_fill(~by_text, -torch.inf)
        return ranking.recalls(*listed, gallery.image_of_text)

    old = {name: float(getattr(model.config, name)) for name in ("match_weight", "match_temperature")}
    new = {"match_weight": weight, "match_temperature": temperature}
    before, after = (calibration_error(asked[0] / one["match_temperature"], *asked[1:]) for one in (old, new))
    return new, {
        "itc": ranking.recalls(cosines, cosines.T, gallery.image_of_text),
        "itm": recalls(logits[..., 1]),
        "odds before": recalls(aligned + old["match_weight"] * log_odds),
        "odds after": recalls(aligned + weight * log_odds),
        **{name: {"before": old[name], "after": new[name]} for name in new},
        "calibration_error": {"before": before, "after": after},
        "true_pairs": float(100 * (asked[1] * asked[2]).sum() / asked[2].sum()),
    }


def fit_weight(sides: Sequence[Side]) -> float:
    """The weight of `log_odds` beside `aligned` (cosine / temperature), both [Q, C], on each side of the search.

    `right` [Q, C] says which candidates of the shortlist are right, of which one is enough. Queries without any are
    left out; ValueError if none is left.
    """
    asked = [(a[right.any(1)], o[right.any(1)], right[right.any(1)]) for a, o, right in sides if right.any()]
    if not asked:
        raise AlbefValueError("no query has a right candidate on its shortlist, so no weight can be fitted; raise --k")

    def cost(scales: Tensor) -> Tensor:
        costs = []
        for aligned, log_odds, right in asked:
            scores = scales[0] * aligned + scales[1] * log_odds
            costs.append((scores.logsumexp(1) - scores.masked_fill(~right, -torch.inf).logsumexp(1)).mean())
        return torch.stack(costs).sum()

    scale, other = _least(cost, 2)
    return _rounded(other / scale)


def fit_temperature(log_odds: Tensor, right: Tensor, counts: Tensor) -> float:
    """The temperature that makes ITM's `log_odds` [N] likeliest, of pairs that are `right` (1) or wrong (0).

    Each counts so often.
    """

    def cost(temperature: Tensor) -> Tensor:
        costs = F.binary_cross_entropy_with_logits(log_odds / temperature, right, reduction="none")
        return (costs * counts).sum() / counts.sum()

    return _rounded(_least(cost, 1)[0])


def calibration_error(log_odds: Tensor, right: Tensor, counts: Tensor) -> float:
    """Expected calibration error in percent: how far probability and share of right pairs differ, in ten bins."""
    shares = log_odds.sigmoid()
    bins = (shares * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=shares.dtype).index_add_(0, bins, counts * (shares - right))
    return float(100 * gaps.abs().sum() / counts.sum())


def _drawn(image_of_text: Tensor, images: int) -> Tensor:
    """True for one image of another, drawn evenly, for each text: [I, T]."""
    texts = len(image_of_text)
    away = torch.randint(1, images, (texts,), generator=torch.Generator().manual_seed(0))
    drawn = torch.zeros(images, texts, dtype=torch.bool, device=image_of_text.device)
    drawn[(image_of_text + away.to(image_of_text.device)) % images, torch.arange(texts)] = True
    return drawn


def _hard(aligned: Tensor, right: Tensor, listed: Tensor) -> Tensor:
    """How often each wrong candidate of the shortlist is drawn, if each right pair of a row draws one: [Q, all]."""
    chances = aligned.masked_fill(right | ~listed, -torch.inf).softmax(1)
    return chances.nan_to_num(0) * right.sum(1, keepdim=True)


def _of_shortlist(listed: Tensor, aligned: Tensor, log_odds: Tensor, right: Tensor) -> Side:
    """The columns that each row's shortlist has, [Q, C], on the CPU in double precision."""
    rows = len(listed)
    aligned, log_odds, right = (one[listed].view(rows, -1).cpu() for one in (aligned, log_odds, right))
    return aligned.double(), log_odds.double(), right


def _least(cost: Callable[[Tensor], Tensor], count: int) -> list[float]:
    """The positive numbers at which a smooth cost is least, found from 1 by L-BFGS on their logarithms."""
    logs = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([logs], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = cost(logs.exp())
        value.backward()
        return value

    with torch.enable_grad():
        search.step(closure)
    return logs.detach().exp().tolist()


def _rounded(value: float) -> float:
    """To four digits: more of them are not known."""
    return float(f"{value:.4g}")


def check_place(name: str, out: Path | None) -> None:
    """An error where the numbers could not be written, before the work is done."""
    if out is None and (name.startswith(HUB) or not (Path(name) / folders.CONFIG).is_file()):
        model_folder(name, (folders.CONFIG, folders.WEIGHTS))
        raise AlbefValueError(f"{name} is no folder of yours to be changed; add --out FOLDER for a calibrated copy")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"--out {out}: is there already; name a new folder")


def write(name: str, out: Path | None, numbers: dict[str, float]) -> Path:
    """Writes the numbers into the model's `config.json`, or into that of a copy; returns its path."""
    folder = model_folder(name, (folders.CONFIG, folders.WEIGHTS))
    if out is not None:
        folder = shutil.copytree(folder, out, dirs_exist_ok=True)
    path = folder / folders.CONFIG
    write_atomically(path, json.dumps({**folders.load_config(folder), **numbers}, indent=2) + "\n")
    return path
