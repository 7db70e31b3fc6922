"""Official names and ours: one strict table, read in both directions (spec §6.3).

A tensor of ours is one official tensor, or several stacked row on row: BERT's query, key and value, and the image-side
keys and values of all fusion layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from albef.models import hub
from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.vit import resize_positions

State = Mapping[str, Tensor]
Names = dict[str, tuple[str, ...]]

BERT, PREDICTIONS = "text_encoder.bert.", "text_encoder.cls.predictions."
WORDS, POSITION_IDS = f"{BERT}embeddings.word_embeddings.weight", f"{BERT}embeddings.position_ids"
PATCHES, POSITIONS = "visual_encoder.patch_embed.proj.weight", "visual_encoder.pos_embed"

_BLOCK: Names = {
    "norm1": ("norm1",),
    "qkv": ("attn.qkv",),
    "proj": ("attn.proj",),
    "norm2": ("norm2",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}
_LAYER: Names = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "fc1": ("intermediate.dense",),
    "fc2": ("output.dense",),
    "norm": ("output.LayerNorm",),
}
_CROSS: Names = {
    "cross_query": ("crossattention.self.query",),
    "cross_out": ("crossattention.output.dense",),
    "cross_norm": ("crossattention.output.LayerNorm",),
}
_MODULES: Names = {
    "visual_encoder.patch_embed": ("visual_encoder.patch_embed.proj",),
    "visual_encoder.norm": ("visual_encoder.norm",),
    "vision_proj": ("vision_proj",),
    "text_proj": ("text_proj",),
    "itm_head": ("itm_head",),
    "text_encoder.norm": (f"{BERT}embeddings.LayerNorm",),
    "mlm_head.dense": (f"{PREDICTIONS}transform.dense",),
    "mlm_head.norm": (f"{PREDICTIONS}transform.LayerNorm",),
}
_SINGLE: Names = {
    "temp": ("temp",),
    "visual_encoder.cls_token": ("visual_encoder.cls_token",),
    POSITIONS: (POSITIONS,),
    "text_encoder.word_embeddings.weight": (WORDS,),
    "text_encoder.position_embeddings.weight": (f"{BERT}embeddings.position_embeddings.weight",),
    "text_encoder.token_type_embeddings.weight": (f"{BERT}embeddings.token_type_embeddings.weight",),
    "mlm_head.bias": (f"{PREDICTIONS}bias",),
}
ALIASES = {f"{PREDICTIONS}decoder.weight": WORDS, f"{PREDICTIONS}decoder.bias": f"{PREDICTIONS}bias"}
"""Official names of tensors that are stored a second time -> the name we read them under."""


def official_names(config: AlbefConfig) -> Names:
    """The table: our name of every tensor -> the official names of those that it stacks."""
    modules = dict(_MODULES)
    for index in range(config.vision_layers):
        block = f"visual_encoder.blocks.{index}."
        modules |= _prefixed(block, block, _BLOCK)
    for index in range(config.text_layers):
        modules |= _prefixed(f"text_encoder.layers.{index}.", f"{BERT}encoder.layer.{index}.", _LAYER)
    fusion = [f"{BERT}encoder.layer.{config.text_layers + index}." for index in range(config.fusion_layers)]
    for index, layer in enumerate(fusion):
        modules |= _prefixed(f"fusion_encoder.layers.{index}.", layer, _LAYER | _CROSS)
    modules["fusion_encoder.image_keys_values"] = tuple(
        f"{layer}crossattention.self.{part}" for layer in fusion for part in ("key", "value")
    )
    both = {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs)
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }
    return _SINGLE | both


def from_official(state: State, config: AlbefConfig, source: str = "the state") -> dict[str, Tensor]:
    """A model's tensors under official names (with or without `bert.`) -> under ours, in float32.

    ValueError when a tensor is missing, left over or of another shape, or a second copy differs from its original.
    """
    named = {with_bert(name): tensor for name, tensor in state.items()}
    return _translate(_without_aliases(named, source), official_names(config), config, source)


def to_official(state: State, config: AlbefConfig) -> dict[str, Tensor]:
    """The way back, from tensors under our names (weights, gradients, ...) to all official names, aliases included."""
    named = {
        name: part
        for ours, theirs in official_names(config).items()
        for name, part in zip(theirs, state[ours].chunk(len(theirs)) if len(theirs) > 1 else [state[ours]], strict=True)
    }
    positions = torch.arange(config.max_positions)[None]
    return named | {alias: named[name] for alias, name in ALIASES.items()} | {POSITION_IDS: positions}


def from_deit(state: State, config: AlbefConfig, source: str = "the DeiT file") -> dict[str, Tensor]:
    """DeiT-B/16's image encoder under our names, its position grid resized to the model's; the classifier is dropped.

    `state` is the payload of `deit_base_patch16_224` under timm's names (spec §1.1). Errors as `from_official`.
    """
    named = {f"visual_encoder.{name}": tensor for name, tensor in state.items() if not name.startswith("head.")}
    table = {ours: theirs for ours, theirs in official_names(config).items() if ours.startswith("visual_encoder.")}
    grid = square_grid(named, source)
    trained = replace(config, image_size=(grid[0] * config.patch_size, grid[1] * config.patch_size))
    translated = _translate(named, table, trained, source)
    return translated | {POSITIONS: resize_positions(translated[POSITIONS], grid, config.grid)}


def from_bert(state: State, config: AlbefConfig, source: str = "the BERT file") -> dict[str, Tensor]:
    """BERT under our names: the lower layers for the text encoder, the upper for the fusion encoder, and the MLM head.

    `state` has the names of Hugging Face's `bert-base-uncased` (spec §1.2); pooler and next-sentence head are dropped.
    Cross-attention isn't in it. Errors as `from_official`.
    """
    named = {
        "text_encoder." + re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): tensor
        for name, tensor in state.items()
        if not name.startswith(("bert.pooler.", "cls.seq_relationship."))
    }
    table = {
        ours: theirs
        for ours, theirs in official_names(config).items()
        if theirs[0].startswith("text_encoder.") and "crossattention" not in theirs[0]
    }
    return _translate(_without_aliases(named, source), table, config, source)


def _prefixed(ours: str, theirs: str, modules: Names) -> Names:
    return {ours + module: tuple(theirs + name for name in names) for module, names in modules.items()}


def _translate(state: State, table: Names, config: AlbefConfig, source: str) -> dict[str, Tensor]:
    shapes = _official_shapes(table, config)
    wrong = (
        f"{name} (expected {list(shapes[name])}, got {list(state[name].shape)})"
        for name in shapes.keys() & state.keys()
        if shapes[name] != tuple(state[name].shape)
    )
    problems = [
        hub.describe("missing", shapes.keys() - state.keys()),
        hub.describe("left over", state.keys() - shapes.keys()),
        hub.describe("of another shape", wrong),
    ]
    if any(problems):
        raise ValueError(
            f"{source} does not fit: {'; '.join(filter(None, problems))}. Only files of ALBEF's pre-training, "
            "retrieval and grounding, DeiT and BERT can be read, with the sizes of the configuration"
        )
    rows = {ours: [state[name].float() for name in theirs] for ours, theirs in table.items()}
    return {ours: torch.cat(parts) if len(parts) > 1 else parts[0] for ours, parts in rows.items()}


def _official_shapes(table: Names, config: AlbefConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        whole = {name: tuple(tensor.shape) for name, tensor in AlbefModel(config).state_dict().items()}
    return {
        name: (whole[ours][0] // len(theirs), *whole[ours][1:]) if len(theirs) > 1 else whole[ours]
        for ours, theirs in table.items()
        for name in theirs
    }


def with_bert(name: str) -> str:
    """Retrieval files leave `bert.` out."""
    return re.sub(r"^text_encoder\.(?=embeddings\.|encoder\.)", BERT, name)


def _without_aliases(state: State, source: str) -> dict[str, Tensor]:
    rest = dict(state)
    for alias, name in ALIASES.items():
        if alias in rest and name in rest and not rest.pop(alias).equal(rest[name]):
            raise ValueError(f"{source}: {alias} must be the same as {name}, but differs; the file is damaged")
    ids = rest.pop(POSITION_IDS, None)
    if ids is not None and not ids.flatten().equal(torch.arange(ids.numel())):
        raise ValueError(f"{source}: {POSITION_IDS} must count from 0; the file is damaged")
    return rest


def rank(state: State, name: str) -> int | None:
    return state[name].ndim if name in state else None


def square_grid(state: State, source: str) -> tuple[int, int]:
    """The patch grid of a file, which leaves only the number of patches."""
    if rank(state, POSITIONS) != 3:
        raise ValueError(f"{source}: expected {POSITIONS} of shape [1, 1 + patches, width]")
    patches = state[POSITIONS].shape[1] - 1
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        raise ValueError(f"{source}: {POSITIONS} has {patches} patches, which make no square grid")
    return side, side
