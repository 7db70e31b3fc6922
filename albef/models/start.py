"""Starts a model from another saved one: what is copied, what is new, and what is dropped (spec §6.4)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from albef.errors import AlbefValueError
from albef.models import folders
from albef.models.backbone import Backbone
from albef.models.config import AlbefConfig
from albef.models.names import ARCHITECTURES, POSITIONS
from albef.models.vit import resize_positions

State = Mapping[str, Tensor]

FRESH = {
    "cls_head": "for these labels",
    "ta_head": "for this task",
    "mlm_head": "the start has none",
    "decoder.head": "the start has no MLM head",
    "decoder.question_keys_values": "made for images of another width",
}
"""Parts that may be new in a model -> why, when nothing fits them."""

# What may differ from the start's: sizes of images, how it learns, and what `albef calibrate` fits.
_FREE = {"image_size", "dropout", "init_std", "mlm_head", "trunk_trained", "text_frozen"}
_FREE |= {"match_weight", "match_temperature"}


def origins(config: AlbefConfig) -> dict[str, str]:
    """Parts of a fine-tuned model -> the parts of a pre-trained model that they start from.

    A part that the saved model has under the same name is taken from there instead.
    """
    pairs = {f"pair_encoder.layers.{i}.": f"fusion_encoder.layers.{i // 2}." for i in range(2 * config.fusion_layers)}
    return pairs | {
        "pair_encoder.image_keys_values.": "fusion_encoder.image_keys_values.",
        "decoder.words.": "text_encoder.",
        "decoder.layers.": "fusion_encoder.layers.",
        "decoder.question_keys_values.": "fusion_encoder.image_keys_values.",
        "decoder.head.": "mlm_head.",
    }


def start_from(model: Backbone, state: State, config: AlbefConfig, source: str) -> list[str]:
    """Fills `model` in place from the `state` of another model with `config`; returns a report in words.

    Only the parts in `FRESH` may stay as they are; the position grid is resized. ValueError, which calls the state
    `source`, when sizes differ or anything else is missing.
    """
    _check_sizes(model, config, source)
    own = model.state_dict()
    taken, fresh = _choose(own, state, model.config)
    if lacking := folders.describe("missing", own.keys() - taken.keys() - fresh.keys()):
        raise AlbefValueError(
            f"{source} lacks what an {type(model).__name__} starts from: {lacking}. Start from a pre-trained model, "
            "or from a saved one of the same kind"
        )
    filled = {name: state[origin] for name, origin in taken.items()}
    notes = fit_positions(filled, config, model.config)
    folders.load_strictly(model, own | filled, source)
    parts = {part: FRESH[part] for part in FRESH if any(name.startswith(f"{part}.") for name in fresh)}
    dropped = sorted({name.split(".")[0] for name in state.keys() - set(taken.values())})
    return [
        f"copied {len(taken)} tensors",
        *([f"new: {', '.join(f'{part} ({why})' for part, why in parts.items())}"] if parts else []),
        *([f"dropped: {', '.join(dropped)}"] if dropped else []),
        *notes,
    ]


def start_teacher(model: Backbone, state: State, config: AlbefConfig, source: str) -> dict[str, Tensor]:
    """The state of a teacher for `model`, which `start_from` has filled, from the `state` of the start's teacher.

    What is new in the model, or frozen, is copied from the model. Errors as `start_from`.
    """
    teacher = deepcopy(model)
    start_from(teacher, state, config, f"the teacher of {source}")
    frozen = {name: part.detach() for name, part in model.named_parameters() if not part.requires_grad}
    return teacher.state_dict() | frozen


def load_start(
    model: Backbone, folder: str | Path
) -> tuple[list[str], dict[str, Tensor] | None, dict[str, Tensor] | None]:
    """Starts `model` from a saved one. Returns a report in words, and the saved states of teacher and queues.

    If the teacher's is None, the teacher should copy the model. Errors as `start_from` and `folders.load`.
    """
    values, state = folders.load(folder)
    teacher, queue = folders.load_training(folder)
    config, notes = AlbefConfig.from_dict(values), []
    theirs, ours = tuple(values.get("labels", ())), model.labels
    if theirs and ours and theirs != ours:
        notes = [f"dropped: cls_head, whose labels are {', '.join(theirs)} instead of {', '.join(ours)}"]
        state, teacher = _without_head(state), teacher and _without_head(teacher)
    report = start_from(model, state, config, str(folder)) + notes
    return report, None if teacher is None else start_teacher(model, teacher, config, str(folder)), queue


def load_model(folder: str | Path, image_size: int | tuple[int, int] | None = None) -> Backbone:
    """Whichever model of ours a folder holds, in evaluation mode; arguments and errors as `from_pretrained`."""
    name = folders.load_config(folder).get("architecture", "AlbefModel")
    if name not in ARCHITECTURES:
        raise AlbefValueError(f"{folder}: unknown architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name].from_pretrained(folder, image_size)


def fit_positions(state: dict[str, Tensor], old: AlbefConfig, new: AlbefConfig) -> list[str]:
    """Resizes the position grid in `state` from the images of `old` to those of `new`; says so, if it had to."""
    state[POSITIONS] = resize_positions(state[POSITIONS], old.grid, new.grid)
    return resized(old, new)


def resized(old: AlbefConfig, new: AlbefConfig) -> list[str]:
    """The note that position grids differ, if they do."""
    sizes = [f"{rows} x {columns}" for rows, columns in (old.grid, new.grid)]
    return [] if old.grid == new.grid else [f"positions resized from {sizes[0]} to {sizes[1]}"]


def _check_sizes(model: Backbone, config: AlbefConfig, source: str) -> None:
    free = _FREE if hasattr(model, "vision_proj") else {*_FREE, "embed_dim"}
    pairs = {f.name: (getattr(config, f.name), getattr(model.config, f.name)) for f in fields(config)}
    wrong = [f"{name} {old} (model: {new})" for name, (old, new) in pairs.items() if name not in free and old != new]
    if wrong:
        raise AlbefValueError(
            f"{source} has other sizes than the model: {', '.join(wrong)}. A start fits only its own sizes; give the "
            "model those of the start's config.json"
        )


def _choose(own: State, state: State, config: AlbefConfig) -> tuple[dict[str, str], dict[str, None]]:
    """Our name of every tensor that is taken -> its name in `state`; and the names of those that stay as they are."""
    table = origins(config)
    found = {name: origin for name in own if (origin := _origin(name, state, table)) in state}
    fresh: dict[str, None] = {}
    for part in FRESH:
        names = [name for name in own if name.startswith(f"{part}.")]
        if not all(name in found and state[found[name]].shape == own[name].shape for name in names):
            fresh |= dict.fromkeys(names)
    return {name: origin for name, origin in found.items() if name not in fresh}, fresh


def _origin(name: str, state: State, table: dict[str, str]) -> str:
    if name in state:
        return name
    return next((there + name.removeprefix(here) for here, there in table.items() if name.startswith(here)), name)


def _without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("cls_head.")}
