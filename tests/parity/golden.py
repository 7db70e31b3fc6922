"""Recorded outputs of the official ALBEF code, read from the folder that the environment variable ALBEF_GOLDEN names.

Tests take every argument (sizes, seeds, draws, thresholds) from these files, so that another recorded set can be
replayed by pointing ALBEF_GOLDEN at it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from albef.data.processor import Processor
from albef.data.text import build_tokenizer
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.backbone import Backbone
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.models.config import AlbefConfig
from albef.models.convert import Checkpoint, read_checkpoint
from albef.models.start import start_from, start_teacher

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
    """Images `indices` of the set as the model takes them; `kind` is "pretrain" or "downstream" (their size)."""
    return tensors_of("images")[kind][indices].float() / 32


def checkpoint(name: str, **arguments: Any) -> Checkpoint:
    """`name`.pth under our names, with the set's head counts and without dropout."""
    heads = {
        "vision_heads": json_of("meta")["sizes"]["vit_heads"],
        "text_heads": json_of("config_bert")["num_attention_heads"],
    }
    read = read_checkpoint(folder() / f"{name}.pth", **heads, **arguments)
    return replace(read, config=replace(read.config, dropout=json_of("config_bert")["hidden_dropout_prob"]))


STARTS: dict[str, tuple[type[Backbone], str, str]] = {
    "retrieval": (AlbefModel, "pretrain", "downstream"),
    "vqa": (AlbefForAnswering, "pretrain", "downstream"),
    "ve": (AlbefForClassification, "pretrain", "downstream"),
    "nlvr_ta": (AlbefForTextAssignment, "pretrain", "pretrain"),
    "nlvr": (AlbefForPairs, "nlvr_ta", "downstream"),
}
"""What the official script of a task loads: the model, what it starts from, and the kind of its images."""


def model(name: str) -> Backbone:
    """The online model of `name`.pth in evaluation mode; where none is recorded (VQA, ...), as its script starts it."""
    if name in STARTS and not (folder() / f"{name}.pth").is_file():
        return started(name)[0].eval()
    read = checkpoint(name)
    network = read.architecture(read.config)
    network.load_state_dict(read.model)
    return network.eval()


def started(name: str) -> tuple[Backbone, dict[str, torch.Tensor] | None, list[str]]:
    """The model of task `name` as started by our surgery, its teacher's state (None without one), and the report.

    New heads are as recorded in `name`.safetensors, where they are.
    """
    architecture, origin, kind = STARTS[name]
    state, config, teacher = _origin(origin)
    size = json_of("meta")["base_config" if kind == "pretrain" else "ft_config"]["image_res"]
    network = architecture(replace(config.at_size(size), mlm_head=False))
    report = start_from(network, state, config, f"{origin}.pth")
    if teacher is not None:
        teacher = start_teacher(network, teacher, config, f"{origin}.pth")
        teacher |= _new_heads(name, {key: twin(key) for key in teacher})
    network.load_state_dict(network.state_dict() | _new_heads(name, {key: key for key in network.state_dict()}))
    return network, teacher, report


def _origin(name: str) -> tuple[dict[str, torch.Tensor], AlbefConfig, dict[str, torch.Tensor] | None]:
    """Model, sizes and teacher; the pre-training between (`nlvr_ta`) has no teacher."""
    if name in STARTS:
        network = started(name)[0]
        return network.state_dict(), network.config, None
    read = checkpoint(name)
    return read.model, read.config, read.teacher


def _new_heads(name: str, recorded_as: dict[str, str]) -> dict[str, torch.Tensor]:
    recorded = tensors_of(name) if (folder() / f"{name}.safetensors").is_file() else {}
    return {key: recorded[theirs] for key, theirs in recorded_as.items() if theirs in recorded}


def processor(image_size: tuple[int, int]) -> Processor:
    """The set's tokenizer with images of `image_size` pixels."""
    return Processor(build_tokenizer(vocabulary()), image_size)


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What `module` gives each time it is called inside the `with` block, in order."""
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda *call: outputs.append(call[-1].detach()))
    try:
        yield outputs
    finally:
        handle.remove()


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
