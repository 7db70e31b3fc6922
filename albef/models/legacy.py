"""Tensors that version 0.1.0 saved, under the names of today: weights, a teacher's, an optimiser's moments."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_RENAMED = {
    "qkv": "self_attention.qkv",
    "attention_out": "self_attention.out",
    "attention_norm": "self_attention.norm",
    "cross_query": "cross_attention.query",
    "cross_out": "cross_attention.out",
    "cross_norm": "cross_attention.norm",
    "fc1": "feed_forward.fc1",
    "fc2": "feed_forward.fc2",
    "norm": "feed_forward.norm",
}
"""Parts of a BERT layer that had no module of their own."""

_LAYER = re.compile(
    rf"^(?P<layer>(?:.*\.)?(?:text_encoder|fusion_encoder|pair_encoder|decoder)\.layers\.\d+)"
    rf"\.(?P<part>{'|'.join(_RENAMED)})\.(?P<kind>weight|bias)$"
)
_KEYS_VALUES = re.compile(
    r"^(?P<encoder>(?:.*\.)?(?P<name>fusion_encoder|pair_encoder|decoder))"
    r"\.(?P<part>image_keys_values|question_keys_values)\.(?P<kind>weight|bias)$"
)


def upgrade(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names in version 0.1.0, behind any prefix, as today's models name them; today's stay.

    A layer's tensors now stand in its three parts, and one linear made the keys and values of all layers, whose rows
    are now one linear's for each. Whatever has a parameter's name and shape may be given, but all
    of a model at once: the layers are counted.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _KEYS_VALUES.match(name):
            for index, part in enumerate(tensor.chunk(_layers(state, match))):
                found[f"{match['encoder']}.{match['part']}.{index}.{match['kind']}"] = part
        elif match := _LAYER.match(name):
            found[f"{match['layer']}.{_RENAMED[match['part']]}.{match['kind']}"] = tensor
        else:
            found[name] = tensor
    return found


def _layers(state: Mapping[str, Tensor], match: re.Match[str]) -> int:
    """How many sets of keys and values there are: the encoder of pairs uses each in two layers."""
    layer = re.compile(rf"^{re.escape(match['encoder'])}\.layers\.(\d+)\.")
    count = len({found[1] for name in state if (found := layer.match(name))})
    return count // 2 if match["name"] == "pair_encoder" else count
