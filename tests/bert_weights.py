"""A BERT without a file: every tensor of the published layout by a formula, in tiny sizes."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

CONFIG = {
    "model_type": "bert",
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": 30,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
"""Hugging Face's `config.json`."""
WIDTH, INNER = 24, 40
INPUT_IDS = [[2, 7, 19, 4, 28, 3], [2, 11, 3, 0, 0, 0]]  # `[CLS] pieces [SEP]` and padding
MASK = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]


def shapes(head: bool) -> dict[str, tuple[int, ...]]:
    """The names of `BertModel` with its pooler; with `head` those of `BertForMaskedLM`."""
    words = {
        f"{name}_embeddings.weight": (rows, WIDTH) for name, rows in (("word", 30), ("position", 12), ("token_type", 2))
    }
    found = {f"embeddings.{name}": shape for name, shape in (words | _norm("LayerNorm")).items()}
    for layer in range(3):
        parts = {
            **{
                name: part
                for kind in ("query", "key", "value")
                for name, part in _linear(f"attention.self.{kind}").items()
            },
            **_linear("attention.output.dense"),
            **_norm("attention.output.LayerNorm"),
            **_linear("intermediate.dense", INNER, WIDTH),
            **_linear("output.dense", WIDTH, INNER),
            **_norm("output.LayerNorm"),
        }
        found |= {f"encoder.layer.{layer}.{name}": shape for name, shape in parts.items()}
    if not head:
        return found | _linear("pooler.dense")
    mlm = {**_linear("transform.dense"), **_norm("transform.LayerNorm"), "bias": (30,)}
    return {f"bert.{n}": shape for n, shape in found.items()} | {f"cls.predictions.{n}": s for n, s in mlm.items()}


def weights(head: bool = False) -> dict[str, Tensor]:
    """Each tensor from sines of its name's checksum and the squares of its places; weights of norms are near 1."""
    return {name: _tensor(name.removeprefix("bert."), shape) for name, shape in shapes(head).items()}


def _tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    values = torch.sin(zlib.crc32(name.encode()) % 1000 + 0.37 * places**2) * 0.5
    return (values + 1 if "LayerNorm.weight" in name else values).float().view(shape)


def _linear(name: str, outputs: int = WIDTH, inputs: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
