"""What a published BERT says besides its tensors: its heads, how its texts are pooled, where it is cut in two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from albef.errors import AlbefValueError
from albef.models.config import AlbefConfig


@dataclass(frozen=True)
class Settings:
    """What stands beside the file of a BERT."""

    heads: int | None
    """None where nothing says how many."""
    pooling: Literal["cls", "mean"]


def settings(path: Path, width: int) -> Settings:
    """Reads Hugging Face's `config.json` beside a file of BERT, and the `1_Pooling` of a sentence encoder.

    ValueError if the config describes a network of another width, or that computes in another way than ours.
    """
    values = _beside(path, "config.json")
    rules = {
        "model_type": "bert",
        "hidden_size": width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
    }
    found = {name: values[name] for name in rules.keys() & values.keys()}
    if wrong := [
        f"{name} {found[name]!r} (needed: {rules[name]!r})"
        for name in rules
        if found.get(name, rules[name]) != rules[name]
    ]:
        raise AlbefValueError(
            f"{path.parent / 'config.json'}, beside {path.name}, describes another network: {', '.join(wrong)}. Give "
            "a BERT with its own config.json, or keep the file in a folder without one"
        )
    mean = _beside(path, "1_Pooling/config.json").get("pooling_mode_mean_tokens")
    return Settings(values.get("num_attention_heads"), "mean" if mean else "cls")


def cut(
    depth: int, text_layers: int | None, fusion_from: Sequence[int] | None, path: str | Path
) -> tuple[int, Sequence[int]]:
    """How many of `depth` layers encode texts, by default half of them, and which layers fusion layers start from, by
    default those that are left; layers count from 0. ValueError for layers that the file at `path` lacks."""
    lower = depth // 2 if text_layers is None else text_layers
    if not 1 <= lower <= depth:
        raise AlbefValueError(f"--text-layers {lower}: {path} has {depth} layers; give a number from 1 to {depth}")
    chosen = range(lower, depth) if fusion_from is None else fusion_from
    if not chosen or not all(0 <= layer < depth for layer in chosen):
        raise AlbefValueError(
            f"--fusion-from {','.join(map(str, chosen)) or 'the rest'}: {path} has the layers 0 to {depth - 1}, and "
            f"the lowest {lower} encode texts; name the layers that fusion layers start from, for example "
            f"--fusion-from {depth - 1}"
        )
    return lower, chosen


def describe(names: Iterable[str], config: AlbefConfig, layers: Sequence[int]) -> list[str]:
    """What a start takes from a file with tensors of these `names`, and what it leaves, in words.

    `layers` are those that our text layers, then our fusion layers start from.
    """
    names, lower = list(names), config.text_layers
    head = any(name.startswith("cls.predictions.") for name in names)
    own = {int(found[1]) for name in names if (found := re.match(r"(?:bert\.)?encoder\.layer\.(\d+)\.", name))}
    parts = {"pooler": ("bert.pooler.", "pooler."), "next-sentence head": ("cls.seq_relationship.",)}
    dropped = [part for part, marks in parts.items() if any(name.startswith(marks) for name in names)]
    if unused := sorted(own.difference(layers)):
        dropped.append(f"{'layers' if len(unused) > 1 else 'layer'} {_listed(unused)}")
    return [
        f"text layers from BERT's layers {_listed(layers[:lower])}, fusion layers from {_listed(layers[lower:])}",
        f"a text is compared by {'the mean of its words' if config.text_pooling == 'mean' else 'its [CLS]'}",
        f"new: what reads the image in the fusion layers{'' if head else ', mlm_head (the file has none)'}",
        *([f"dropped: {', '.join(dropped)}"] if dropped else []),
    ]


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))


def _beside(path: Path, name: str) -> dict[str, Any]:
    """The values of a JSON file beside the one at `path`; none without it."""
    file = path.parent / name
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise AlbefValueError(f"{file} is no JSON ({error}); restore it, or keep {path.name} elsewhere") from error
