"""Recorded outputs of the official ALBEF code, read from the folder that the environment variable ALBEF_GOLDEN names.

Tests take every argument (sizes, seeds, draws, thresholds) from these files, so that another recorded set can be
replayed by pointing ALBEF_GOLDEN at it.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from albef.data.processor import Processor, build_tokenizer
from albef.models.albef import AlbefModel
from albef.models.convert import Checkpoint, read_checkpoint

DEFAULT = Path(__file__).resolve().parents[1] / "golden" / "official"


def folder() -> Path:
    """The folder of the recorded set; raises FileNotFoundError when it is not there."""
    path = Path(os.environ.get("ALBEF_GOLDEN", DEFAULT))
    if not path.is_dir():
        raise FileNotFoundError(f"no folder of golden values at {path}: set ALBEF_GOLDEN to one that holds meta.json")
    return path


def json_of(name: str) -> Any:
    """Content of `name`.json."""
    return json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))


def tensors_of(name: str) -> dict[str, torch.Tensor]:
    """Tensors of `name`.safetensors on the CPU."""
    return load_file(folder() / f"{name}.safetensors")


def vocabulary() -> list[str]:
    """The WordPiece pieces of the set; a piece's place in the list is its id."""
    return (folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()


def images(kind: str, indices: list[int]) -> torch.Tensor:
    """Pictures `indices` of the set as the model takes them; `kind` is "pretrain" or "downstream" (their size)."""
    return tensors_of("images")[kind][indices].float() / 32


def checkpoint(name: str, **arguments: Any) -> Checkpoint:
    """`name`.pth under our names, with the set's head counts and without dropout."""
    heads = {
        "vision_heads": json_of("meta")["sizes"]["vit_heads"],
        "text_heads": json_of("config_bert")["num_attention_heads"],
    }
    read = read_checkpoint(folder() / f"{name}.pth", **heads, **arguments)
    return replace(read, config=replace(read.config, dropout=json_of("config_bert")["hidden_dropout_prob"]))


def model(name: str) -> AlbefModel:
    """The online model of `name`.pth in evaluation mode; a missing MLM head is untrained."""
    read = checkpoint(name, new_mlm_head=True)
    network = AlbefModel(read.config)
    network.load_state_dict(read.model)
    return network.eval()


def processor(image_size: tuple[int, int]) -> Processor:
    """The set's tokenizer with pictures of `image_size` pixels."""
    return Processor(build_tokenizer(vocabulary()), image_size)


def twin(name: str) -> str:
    """The official name of a parameter's momentum copy."""
    head, dot, rest = name.partition(".")
    return f"{head}_m{dot}{rest}"


def close(got: torch.Tensor, wanted: torch.Tensor, name: str = "", atol: float = 1e-4, rtol: float = 1e-4) -> None:
    """Compares at the tolerance that the set's README suggests for outputs of a single step."""
    torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol, msg=lambda found: f"{name}: {found}")


def assert_digest(got: torch.Tensor, digest: dict[str, Any], name: str, atol: float = 1e-4) -> None:
    """Shape, sum and l2 norm of a tensor; `atol` is that of one element's mean deviation."""
    assert list(got.shape) == digest["shape"], name
    for figure, measured in (("sum", got.double().sum()), ("l2", got.double().norm())):
        room = atol * (got.numel() if figure == "sum" else got.numel() ** 0.5) + 1e-4 * abs(digest[figure])
        assert abs(float(measured) - digest[figure]) <= room, (name, figure, float(measured), digest[figure])
