"""Published files (ALBEF's, DeiT's, BERT's) as models of ours (spec §6).

Whatever a file lacks, or has that the table of `names.py` doesn't know, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from albef.models import hub
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.names import (
    BERT,
    PATCHES,
    POSITIONS,
    PREDICTIONS,
    WORDS,
    State,
    from_bert,
    from_deit,
    from_official,
    rank,
    square_grid,
    with_bert,
)
from albef.models.vit import resize_positions

ImageSize = int | tuple[int, int]


@dataclass(frozen=True)
class Checkpoint:
    """A published file under our names; `notes` tell in words what was dropped, added or changed on the way."""

    config: AlbefConfig
    model: dict[str, Tensor]
    teacher: dict[str, Tensor] | None
    queue: dict[str, Tensor] | None
    """What `FeatureQueue.load_state_dict` takes; the ids of what it holds are unknown (-100)."""
    notes: tuple[str, ...]


def read_checkpoint(
    path: str | Path,
    image_size: ImageSize | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    new_mlm_head: bool = False,
) -> Checkpoint:
    """Reads a `.pth` file of the official pre-training, retrieval or grounding code (spec §6.2).

    Sizes are inferred from the tensors, but heads leave no trace: they are 64 wide, as in the paper, unless given.
    `image_size` (pixels) resizes the position grid, which the file must have square. Fine-tuned files have no MLM head:
    that is an error unless `new_mlm_head` adds an untrained one.

    FileNotFoundError without such a file, ValueError if it isn't an intact checkpoint of this model.
    """
    state, notes = _unwrap(read_file(path), path)
    queue = _take_queue(state, path)
    if state.pop("idx_queue", None) is not None:
        notes.append("dropped idx_queue, the ids of another data set")
    online = {with_bert(name): tensor for name, tensor in state.items() if not _is_twin(name)}
    twin = {with_bert(_untwinned(name)): tensor for name, tensor in state.items() if _is_twin(name)}
    config = _infer_config(online, vision_heads, text_heads, path)
    if not any(name.startswith(PREDICTIONS) for name in online):
        head = _new_mlm_head(config, new_mlm_head, path)
        notes.append("added an MLM head that knows nothing")
        online |= head
        twin |= head if twin else {}
    model, teacher = from_official(online, config, str(path)), None
    if twin:  # the original's teacher has neither of its own
        shared = {name: online[name] for name in ("temp", "itm_head.weight", "itm_head.bias")}
        teacher = from_official(shared | twin, config, f"the momentum model of {path}")
    if image_size is not None:
        wanted = config.at_size(image_size)
        if wanted.grid != config.grid:
            notes.append(f"position grid resized from {config.grid} to {wanted.grid}")
        for part in filter(None, (model, teacher)):
            part[POSITIONS] = resize_positions(part[POSITIONS], config.grid, wanted.grid)
        config = wanted
    return Checkpoint(config, model, teacher, queue, tuple(notes))


def convert_file(
    path: str | Path,
    out_folder: str | Path,
    vocabulary: Collection[str] | None = None,
    image_size: ImageSize | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    new_mlm_head: bool = False,
) -> str:
    """Writes the online model of `path` as a folder for `AlbefModel.from_pretrained`; returns a report in words.

    `vocabulary`, if given, is only counted: a ValueError says when it isn't the one the model learned with. The other
    arguments are those of `read_checkpoint`.
    """
    read = read_checkpoint(path, image_size, vision_heads, text_heads, new_mlm_head)
    if vocabulary is not None and len(vocabulary) != read.config.vocab_size:
        raise ValueError(
            f"{path} knows {read.config.vocab_size} words, but the vocabulary has {len(vocabulary)}; "
            "give the vocab.txt it was trained with (bert-base-uncased's for the published ones)"
        )
    hub.save(out_folder, read.config.to_dict(), read.model, None)
    return _report(read, path, out_folder)


def initial_model(
    config: AlbefConfig, deit_path: str | Path | None = None, bert_path: str | Path | None = None
) -> AlbefModel:
    """Where the paper's pre-training starts: DeiT's image encoder and BERT over a fresh initialisation (paper §3.1).

    Without a path that part stays fresh. Files may be `.pth`, `.bin` or `.safetensors`.
    """
    model = AlbefModel(config)
    state = dict(model.state_dict())
    for path, read in ((deit_path, from_deit), (bert_path, from_bert)):
        if path is not None:
            state |= read(_unwrap(read_file(path), path)[0], config, str(path))
    hub.load_strictly(model, state, "the starting point")
    return model


def read_file(path: str | Path) -> Any:
    """Content of a `.pth`, `.bin` or `.safetensors` file on the CPU; code in it is never run."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a checkpoint such as ALBEF.pth")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes torch raise
        if "GLOBAL" in str(error):
            problem = "holds Python objects, which could run code; only tensors, numbers, texts and lists are read"
        else:
            problem = "is not a checkpoint, or is broken; compare its size with the original's and fetch it again"
        raise ValueError(f"{path} {problem} ({type(error).__name__})") from error


def _is_twin(name: str) -> bool:
    return name.split(".")[0].endswith("_m")


def _untwinned(name: str) -> str:
    return name.replace("_m.", ".", 1)


def _unwrap(content: Any, path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    notes = []
    state = content
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        state = content["model"]
        notes = [f"dropped {', '.join(str(key) for key in content if key != 'model')}"] if len(content) > 1 else []
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no weights: expected named tensors, by themselves or under `model`")
    return dict(state), notes


def _take_queue(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor] | None:
    """Moves the queues out of `state`: official columns become our rows."""
    taken = {name: state.pop(name) for name in ("image_queue", "text_queue", "queue_ptr") if name in state}
    if not taken:
        return None
    image, text, pointer = (taken.get(name, torch.empty(0)) for name in ("image_queue", "text_queue", "queue_ptr"))
    if image.ndim != 2 or image.shape != text.shape or pointer.numel() != 1:
        raise ValueError(f"{path}: expected image_queue and text_queue of one shape and queue_ptr, got {sorted(taken)}")
    queues = {name: taken[name].T.float().contiguous() for name in ("image_queue", "text_queue")}
    ids = {name: torch.full((len(queues["image_queue"]),), -100) for name in ("image_id", "text_id")}
    return queues | ids | {"pointer": taken["queue_ptr"].reshape(())}


def _infer_config(state: State, vision_heads: int | None, text_heads: int | None, path: str | Path) -> AlbefConfig:
    first = f"{BERT}encoder.layer.0.intermediate.dense.weight"
    lengths = f"{BERT}embeddings.position_embeddings.weight"
    ranks = {PATCHES: 4, POSITIONS: 3, WORDS: 2, lengths: 2, first: 2, "vision_proj.weight": 2}
    lacking = hub.describe("missing or of another shape", (n for n, r in ranks.items() if rank(state, n) != r))
    if lacking:
        raise ValueError(
            f"{path} is not a pre-training or retrieval checkpoint of ALBEF: {lacking}. "
            "Those of VQA, entailment and NLVR2 hold other models"
        )
    patch_size, rows = state[PATCHES].shape[-1], square_grid(state, str(path))[0]
    vision_width, (vocab_size, text_width) = len(state[PATCHES]), state[WORDS].shape
    layers = _indices(state, rf"{re.escape(BERT)}encoder\.layer\.(\d+)\.")
    fusion = _indices(state, rf"{re.escape(BERT)}encoder\.layer\.(\d+)\.crossattention\.")
    return AlbefConfig(
        image_size=(rows * patch_size, rows * patch_size),
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=len(_indices(state, r"visual_encoder\.blocks\.(\d+)\.")),
        vision_heads=vision_heads or _heads(vision_width, "vision", path),
        text_width=text_width,
        text_layers=len(layers - fusion),
        fusion_layers=len(fusion),
        text_heads=text_heads or _heads(text_width, "text", path),
        text_intermediate=len(state[first]),
        vocab_size=vocab_size,
        max_positions=len(state[lengths]),
        embed_dim=len(state["vision_proj.weight"]),
    )


def _indices(state: State, pattern: str) -> set[int]:
    return {int(found[1]) for name in state if (found := re.match(pattern, name))}


def _heads(width: int, name: str, path: str | Path) -> int:
    if width % 64:
        raise ValueError(f"{path}: the {name} width {width} is not made of 64-wide heads; give {name}_heads")
    return width // 64


def _new_mlm_head(config: AlbefConfig, wanted: bool, path: str | Path) -> dict[str, Tensor]:
    """An untrained head under official names, the same each time."""
    if not wanted:
        raise ValueError(
            f"{path} has no MLM head, as fine-tuned retrieval checkpoints: it can search but not fill in words; "
            "new_mlm_head=True adds an untrained one"
        )
    width = config.text_width
    return {
        f"{PREDICTIONS}bias": torch.zeros(config.vocab_size),
        f"{PREDICTIONS}transform.dense.weight": 0.02
        * torch.randn(width, width, generator=torch.Generator().manual_seed(0)),
        f"{PREDICTIONS}transform.dense.bias": torch.zeros(width),
        f"{PREDICTIONS}transform.LayerNorm.weight": torch.ones(width),
        f"{PREDICTIONS}transform.LayerNorm.bias": torch.zeros(width),
    }


def _report(read: Checkpoint, path: str | Path, folder: str | Path) -> str:
    config, parameters = read.config, sum(tensor.numel() for tensor in read.model.values())
    size = f"{config.image_size[0]} x {config.image_size[1]}"
    unused = [name for name, part in (("momentum model", read.teacher), ("queues", read.queue)) if part is not None]
    lines = [
        f"{path}: {parameters:,} parameters, {config.vision_layers} image, {config.text_layers} text and "
        f"{config.fusion_layers} fusion layers, pictures of {size} pixels, {config.vocab_size} words",
        *read.notes,
        *([f"not written: {' and '.join(unused)}"] if unused else []),
        f"written: {folder}",
    ]
    return "\n".join(lines)
