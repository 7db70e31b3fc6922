"""What version 0.1.0 saved is read under today's names."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.backbone import Backbone
from albef.models.classifier import AlbefForPairs
from albef.models.folders import load_training
from albef.models.legacy import upgrade
from tests.worlds import TINY

PARTS = {
    "self_attention.out": "attention_out",
    "self_attention.norm": "attention_norm",
    "self_attention.qkv": "qkv",
    "cross_attention.query": "cross_query",
    "cross_attention.out": "cross_out",
    "cross_attention.norm": "cross_norm",
    "feed_forward.fc1": "fc1",
    "feed_forward.fc2": "fc2",
    "feed_forward.norm": "norm",
}


def as_before(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as version 0.1.0 named them."""
    found: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        for ours, theirs in PARTS.items():
            name = re.sub(rf"(\.layers\.\d+\.){re.escape(ours)}\.", rf"\1{theirs}.", name)
        name = re.sub(r"(_keys_values)\.\d+\.", r"\1.", name)
        found.setdefault(name, []).append(tensor)
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}


@pytest.mark.parametrize("architecture", [AlbefModel, AlbefForAnswering, AlbefForPairs])
@pytest.mark.parametrize("prefix", ["", "model.", "teacher.model."])
def test_old_names_become_ours(architecture: type[Backbone], prefix: str) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in architecture(TINY).state_dict().items()}
    old = as_before(state)
    assert f"{prefix}text_encoder.layers.0.attention_out.bias" in old and len(old) < len(state)
    found = upgrade({"step": torch.tensor(3), **old})
    assert found.pop("step") == 3 and found.keys() == state.keys()
    assert all(found[name].equal(state[name]) for name in state)
    assert list(upgrade(state)) == list(state), "names of today stay"


def test_a_folder_of_version_0_1_0_is_loaded(tmp_path) -> None:
    model = AlbefModel(TINY)
    model.save_pretrained(tmp_path)
    old = as_before(load_file(tmp_path / "model.safetensors"))
    save_file(old, tmp_path / "model.safetensors")
    save_file({f"teacher.{name}": tensor for name, tensor in old.items()}, tmp_path / "training.safetensors")
    again = AlbefModel.from_pretrained(tmp_path).state_dict()
    teacher, queue = load_training(tmp_path)
    assert queue is None and teacher is not None and teacher.keys() == again.keys()
    for name, tensor in model.state_dict().items():
        assert again[name].equal(tensor) and teacher[name].equal(tensor), name
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "AlbefModel"
