"""Reads published files (ALBEF's, DeiT's, BERT's) and folders of ours; writes folders and official files (spec §6).

A tensor that a file lacks, or that the table of `names.py` doesn't know, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from albef.errors import AlbefFileNotFoundError, AlbefValueError
from albef.files import write_atomically
from albef.models import bert_file, folders
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.models.config import TRUNK_STRIDE, AlbefConfig
from albef.models.names import (
    PATCHES,
    POSITIONS,
    TEXT,
    Architecture,
    State,
    bert_layers,
    from_bert,
    from_deit,
    from_efficientnet,
    from_official,
    rank,
    square_grid,
    to_official,
    without_bert,
)
from albef.models.start import fit_positions, load_model, resized

ImageSize = int | tuple[int, int]

_MARKS: dict[str, Architecture] = {
    "text_decoder.": AlbefForAnswering,
    "ta_head.": AlbefForTextAssignment,
    "cls_head.": AlbefForClassification,
}
"""Names that only one model has begin so. Entailment and NLVR2 differ by the number of classes alone."""

_UNREAD = {"idx_queue": "the ids of another data set"}
_UNLEARNT = dict.fromkeys(("temp", "text_proj.weight", "text_proj.bias"), "which text assignment never learns")
_NOT_TAUGHT = ("temp", "itm_head.weight", "itm_head.bias")  # the original's teacher has none of its own


_OF_WORDS = ("word_embeddings.weight", "mlm_head.bias", "decoder.head.bias")  # have a row for each word
_FORMS: dict[torch.dtype | None, str] = {
    torch.float16: " in half precision",
    torch.int8: " in int8, with a scale for each row",
}


@dataclass(frozen=True)
class Checkpoint:
    """A published file or a folder of ours, under our names. `notes` say what was dropped, added or changed."""

    architecture: Architecture
    config: AlbefConfig
    model: dict[str, Tensor]
    teacher: dict[str, Tensor] | None
    queue: dict[str, Tensor] | None
    """What `FeatureQueue.load_state_dict` takes; the ids of what it holds are unknown (-100)."""
    notes: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """Names of the classes in the order of their logits; empty for a model without classes."""


def read_checkpoint(
    path: str | Path,
    image_size: ImageSize | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> Checkpoint:
    """Reads a `.pth` file of the official code: pre-training or any of its fine-tunings (spec §6.2).

    Names say which model the file holds, and tensors say its sizes. They don't say the number of attention heads:
    unless given, heads are 64 wide, as in the paper. `image_size` (pixels) resizes the position grid, which must be
    square in the file.

    FileNotFoundError without such a file, ValueError if it isn't an intact checkpoint of one of these models.
    """
    state, notes = _unwrap(read_file(path), path)
    queue = _take_queue(state, path)
    online = {name: tensor for name, tensor in state.items() if not _is_twin(name)}
    twin = {_untwinned(name): tensor for name, tensor in state.items() if _is_twin(name)}
    architecture = recognise(online)
    useless = _UNREAD | (_UNLEARNT if architecture is AlbefForTextAssignment else {})
    notes += [f"dropped {name}, {why}" for name, why in useless.items() if online.pop(name, None) is not None]
    config = _infer_config(online, architecture, vision_heads, text_heads, path)
    source = f"{path} (read as an {architecture.__name__})"
    model, teacher = from_official(online, config, architecture, source), None
    if twin:
        borrowed = {name: online[name] for name in _NOT_TAUGHT if name in online and name not in twin}
        notes += [f"added to the teacher from the model: {', '.join(borrowed)}"] if borrowed else []
        teacher = from_official(borrowed | twin, config, architecture, f"the momentum model of {source}")
    wanted = config if image_size is None else config.at_size(image_size)
    for part in filter(None, (model, teacher)):
        fit_positions(part, config, wanted)
    notes += resized(config, wanted)
    with torch.device("meta"):
        labels = architecture(config).labels
    return Checkpoint(architecture, wanted, model, teacher, queue, tuple(notes), labels)


def read_folder(folder: str | Path, image_size: ImageSize | None = None) -> Checkpoint:
    """A saved model of ours with its teacher and queues, its position grid resized to `image_size` if given."""
    model, saved = load_model(folder, image_size), AlbefConfig.from_dict(folders.load_config(folder))
    teacher, queue = folders.load_training(folder)
    if teacher:
        fit_positions(teacher, saved, model.config)
    notes = tuple(resized(saved, model.config))
    return Checkpoint(type(model), model.config, dict(model.state_dict()), teacher, queue, notes, model.labels)


def check_vocabulary(config: AlbefConfig, vocabulary: Collection[str], path: str | Path) -> None:
    """ValueError unless the vocabulary is as long as the one that the model in `path` learned with."""
    if len(vocabulary) != config.vocab_size:
        raise AlbefValueError(
            f"{path} knows {config.vocab_size} words, but the vocabulary has {len(vocabulary)}; give the vocab.txt it "
            "was trained with by --vocabulary (bert-base-uncased's, which comes along, for the published ones)"
        )


def recognise(state: State) -> Architecture:
    """Which model of ours fits tensors under official names."""
    marked = [model for mark, model in _MARKS.items() if any(name.startswith(mark) for name in state)]
    if marked == [AlbefForClassification] and rank(state, "cls_head.2.weight") and len(state["cls_head.2.weight"]) == 2:
        return AlbefForPairs
    return marked[0] if marked else AlbefModel


def write_folder(
    read: Checkpoint, source: str | Path, folder: str | Path, dtype: torch.dtype | None = None, slim: bool = False
) -> str:
    """Writes what was read of `source` as a folder of ours, for `from_pretrained` and `load_start`.

    `dtype` is that of `save_pretrained`; `slim` leaves out teacher and queues. Returns a report in words.
    """
    with torch.device("meta"):
        model = read.architecture(read.config, **({"labels": read.labels} if read.labels else {}))
    model.load_state_dict(read.model, assign=True)
    model.save_pretrained(folder, dtype)
    folders.save_training(folder, None if slim else read.teacher, None if slim else read.queue)
    parts = [name for name, part in (("teacher", read.teacher), ("queues", read.queue)) if part]
    lines = [
        *_description(read, source),
        *read.notes,
        *([f"left out: {' and '.join(parts)}"] if parts and slim else []),
        f"written: {Path(folder) / folders.WEIGHTS}{_FORMS.get(dtype, '')}",
        *([f"written: {Path(folder) / folders.TRAINING} ({' and '.join(parts)})"] if parts and not slim else []),
    ]
    return "\n".join(lines)


def with_words(read: Checkpoint, ids: Sequence[int]) -> Checkpoint:
    """The same model with the words `ids` alone, in that order; without teacher and queues, which know the others."""
    rows = torch.tensor(ids)
    model = {name: value[rows] if name.endswith(_OF_WORDS) else value for name, value in read.model.items()}
    config = replace(read.config, vocab_size=len(ids))
    return replace(read, config=config, model=model, teacher=None, queue=None)


def write_official(read: Checkpoint, source: str | Path, file: Path, half: bool = False, slim: bool = False) -> str:
    """Writes what was read of `source` as a `.pth` file for the original and LAVIS; returns a report in words.

    The file holds `{"model": tensors}` under official names: the model, its momentum twins (copies of the model where
    no teacher was saved, since the original's fine-tuning asks for them) and the queues, where they were saved. `slim`
    writes the model alone, `half` in half precision. ValueError for images that are not square, a trunk, or texts that
    are not compared by their `[CLS]`, since the original could not read it.
    """
    if read.config.trunk is not None:
        raise AlbefValueError(
            f"{source}: its images go through {read.config.trunk}, which the original does not know; only a model "
            "without a trunk can be written as a file of the original's"
        )
    if read.config.text_pooling != "cls":
        raise AlbefValueError(
            f"{source} compares texts by the mean of their words, which the original cannot; it takes [CLS] alone"
        )
    rows, columns = read.config.grid
    if rows != columns:
        raise AlbefValueError(
            f"{source}: images of {read.config.image_size[0]} x {read.config.image_size[1]} pixels, but the original "
            "knows square ones only; give --image-size, for example 384"
        )
    state = official_state(read, slim)
    if half:
        state = {name: one.half() if one.is_floating_point() else one for name, one in state.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda opened: torch.save({"model": state}, opened))
    taught = read.teacher is None and not slim and any(_is_twin(name) for name in state)
    return "\n".join(
        [
            *_description(read, source),
            *read.notes,
            *(["momentum twins: copies of the model, since no teacher was saved with it"] if taught else []),
            f"written: {file} ({len(state)} tensors{', in half precision' if half else ''})",
        ]
    )


def official_state(read: Checkpoint, slim: bool = False) -> dict[str, Tensor]:
    """All tensors of a checkpoint under official names; with `slim` those of the model alone.

    The ids of the queues, which only retrieval's files hold, are unknown there (-100) unless they were saved.
    """
    state = to_official(read.model, read.config, read.architecture)
    if not slim and read.architecture is not AlbefForTextAssignment:  # which has no teacher
        taught = to_official(read.teacher or read.model, read.config, read.architecture)
        state |= {_twinned(name): tensor for name, tensor in taught.items() if name not in _NOT_TAUGHT}
        if read.queue is not None:
            state |= {name: read.queue[name].T for name in ("image_queue", "text_queue")}
            state["queue_ptr"] = read.queue["pointer"].reshape(1)
            if not read.config.mlm_head:
                state["idx_queue"] = read.queue["image_id"][None]
    # each with a memory of its own: a part of a stacked tensor would be saved with the whole of it
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def starting_config(
    config: AlbefConfig,
    deit_path: str | Path | None = None,
    bert_path: str | Path | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    trunk_path: str | Path | None = None,
    trunk_levels: int | None = None,
    vision_width: int | None = None,
    vision_layers: int | None = None,
    text_layers: int | None = None,
    fusion_from: Sequence[int] | None = None,
) -> AlbefConfig:
    """`config` with the sizes of the files that a pre-training starts from: width, depth, vocabulary, positions.

    Upon a trunk stand `vision_layers` blocks (1 unless given) of `vision_width` (that of the text unless given).
    The lowest `text_layers` of BERT's layers encode the text, by default half of them, as in the paper. A fusion layer
    starts from each layer of `fusion_from`, by default from all that are left; layers count from 0. Heads are as many
    as given, else as BERT's `config.json` beside its file says, else 64 wide. Texts are pooled as `1_Pooling` beside
    the file says, which sentence encoders have. ValueError for a file that is not one of DeiT, BERT or a trunk.
    """
    if deit_path is not None:
        state = _unwrap(read_file(deit_path), deit_path)[0]
        state = {f"visual_encoder.{name}": tensor for name, tensor in state.items()}
        _check_ranks(state, {PATCHES: 4, POSITIONS: 3}, f"{deit_path} is no file of DeiT")
        config = replace(config, **_vision_sizes(state, vision_heads, deit_path))
    if bert_path is not None:
        state = _unwrap(read_file(bert_path), bert_path)[0]
        state = {without_bert(f"{TEXT}{name}"): tensor for name, tensor in state.items()}
        _check_ranks(state, _TEXT_RANKS, f"{bert_path} is no file of BERT")
        said = bert_file.settings(Path(bert_path), width=len(state[_WORDS][0]))
        sizes = _text_sizes(state, text_heads or said.heads, bert_path)
        depth = len(_indices(state, _LAYERS))
        lower, chosen = bert_file.cut(depth, text_layers, fusion_from, bert_path)
        config = replace(config, **sizes, text_layers=lower, fusion_layers=len(chosen), text_pooling=said.pooling)
    if trunk_path is not None:
        trunk, _ = from_efficientnet(_unwrap(read_file(trunk_path), trunk_path)[0], str(trunk_path))
        width = vision_width or config.text_width
        config = replace(
            config,
            trunk=trunk,
            trunk_levels=trunk_levels or 1,
            patch_size=TRUNK_STRIDE,
            vision_width=width,
            vision_layers=1 if vision_layers is None else vision_layers,
            vision_heads=vision_heads or _heads(width, "vision", trunk_path),
        )
    return config


def initial_model(
    config: AlbefConfig,
    deit_path: str | Path | None = None,
    bert_path: str | Path | None = None,
    trunk_path: str | Path | None = None,
    fusion_from: Sequence[int] | None = None,
) -> AlbefModel:
    """Where the paper's pre-training starts: DeiT's image encoder and BERT over a fresh initialisation (paper §3.1);
    or a trunk in place of DeiT, under an image encoder that is fresh.

    Without a path that part stays fresh. Files may be `.pth`, `.bin` or `.safetensors`. `fusion_from` is that of
    `starting_config`.
    """
    model = AlbefModel(config)
    state = dict(model.state_dict())
    for path, read in ((deit_path, from_deit), (bert_path, partial(from_bert, fusion_from=fusion_from))):
        if path is not None:
            state |= read(_unwrap(read_file(path), path)[0], config, str(path))
    if trunk_path is not None:
        state |= from_efficientnet(_unwrap(read_file(trunk_path), trunk_path)[0], str(trunk_path))[1]
    folders.load_strictly(model, state, "the starting point")
    return model


def bert_notes(path: str | Path, config: AlbefConfig, fusion_from: Sequence[int] | None = None) -> list[str]:
    """What a start with `config` takes from a file of BERT, and what it leaves, in words."""
    return bert_file.describe(_unwrap(read_file(path), path)[0], config, bert_layers(config, fusion_from))


def read_file(path: str | Path) -> Any:
    """Content of a `.pth`, `.bin` or `.safetensors` file on the CPU; code in it is never run."""
    path = Path(path)
    if not path.is_file():
        raise AlbefFileNotFoundError(f"{path}: no such file; give a checkpoint such as ALBEF.pth")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes torch raise
        if "GLOBAL" in str(error):
            problem = "holds Python objects, which could run code; only tensors, numbers, texts and lists are read"
        else:
            problem = "is not a checkpoint, or is broken; compare its size with the original's and fetch it again"
        raise AlbefValueError(f"{path} {problem} ({type(error).__name__})") from error


def _is_twin(name: str) -> bool:
    return name.split(".")[0].endswith("_m")


def _twinned(name: str) -> str:
    part, dot, rest = name.partition(".")
    return f"{part}_m{dot}{rest}"


def _untwinned(name: str) -> str:
    return name.replace("_m.", ".", 1)


def _unwrap(content: Any, path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    notes = []
    state = content
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        state = content["model"]
        notes = [f"dropped {', '.join(str(key) for key in content if key != 'model')}"] if len(content) > 1 else []
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise AlbefValueError(f"{path} holds no weights: expected named tensors, by themselves or under `model`")
    return dict(state), notes


def _take_queue(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor] | None:
    """Takes the queues out of `state`. Their columns become rows, as ours are."""
    taken = {name: state.pop(name) for name in ("image_queue", "text_queue", "queue_ptr") if name in state}
    if not taken:
        return None
    image, text, pointer = (taken.get(name, torch.empty(0)) for name in ("image_queue", "text_queue", "queue_ptr"))
    if image.ndim != 2 or image.shape != text.shape or pointer.numel() != 1:
        raise AlbefValueError(
            f"{path}: expected image_queue and text_queue of one shape and queue_ptr, got {sorted(taken)}"
        )
    queues = {name: taken[name].T.float().contiguous() for name in ("image_queue", "text_queue")}
    ids = {name: torch.full((len(queues["image_queue"]),), -100) for name in ("image_id", "text_id")}
    return queues | ids | {"pointer": taken["queue_ptr"].reshape(())}


_WORDS, _LENGTHS = f"{TEXT}embeddings.word_embeddings.weight", f"{TEXT}embeddings.position_embeddings.weight"
_FIRST, _PROJECTION = f"{TEXT}encoder.layer.0.intermediate.dense.weight", "vision_proj.weight"
_LAYERS = r"text_encoder\.encoder\.layer\.(\d+)\."
_TEXT_RANKS = {_WORDS: 2, _LENGTHS: 2, _FIRST: 2}


def _infer_config(
    official: State, architecture: Architecture, vision_heads: int | None, text_heads: int | None, path: str | Path
) -> AlbefConfig:
    state = {without_bert(name): tensor for name, tensor in official.items()}
    ranks = {PATCHES: 4, POSITIONS: 3, **_TEXT_RANKS}
    if architecture in (AlbefModel, AlbefForTextAssignment):
        ranks[_PROJECTION] = 2
    _check_ranks(state, ranks, f"{path}, read as an {architecture.__name__}, is no checkpoint of ALBEF")
    patch_size, rows = state[PATCHES].shape[-1], square_grid(state, str(path))[0]
    layers, fusion = _indices(state, _LAYERS), _indices(state, _LAYERS + r"crossattention\.")
    twice = architecture in (AlbefForPairs, AlbefForTextAssignment)
    embed_dim: dict[str, Any] = {"embed_dim": len(state[_PROJECTION])} if _PROJECTION in ranks else {}
    return AlbefConfig(
        image_size=(rows * patch_size, rows * patch_size),
        **_vision_sizes(state, vision_heads, path),
        **_text_sizes(state, text_heads, path),
        text_layers=len(layers - fusion),
        fusion_layers=len(fusion) // 2 if twice else len(fusion),
        mlm_head=any(name.startswith(f"{TEXT}cls.") for name in state),
        **embed_dim,
    )


def _check_ranks(state: State, ranks: dict[str, int], problem: str) -> None:
    lacking = folders.describe("missing or of another shape", (n for n, r in ranks.items() if rank(state, n) != r))
    if lacking:
        raise AlbefValueError(
            f"{problem}: {lacking}. Give a file that ALBEF's code has written for pre-training, retrieval, grounding, "
            "VQA, entailment, NLVR2 or text assignment; --deit and --bert take those of DeiT and of Hugging Face's BERT"
        )


def _vision_sizes(state: State, heads: int | None, path: str | Path) -> dict[str, Any]:
    width = len(state[PATCHES])
    return {
        "patch_size": state[PATCHES].shape[-1],
        "vision_width": width,
        "vision_layers": len(_indices(state, r"visual_encoder\.blocks\.(\d+)\.")),
        "vision_heads": heads or _heads(width, "vision", path),
    }


def _text_sizes(state: State, heads: int | None, path: str | Path) -> dict[str, Any]:
    vocab_size, width = state[_WORDS].shape
    return {
        "text_width": width,
        "text_heads": heads or _heads(width, "text", path),
        "text_intermediate": len(state[_FIRST]),
        "vocab_size": vocab_size,
        "max_positions": len(state[_LENGTHS]),
    }


def _indices(state: State, pattern: str) -> set[int]:
    return {int(found[1]) for name in state if (found := re.match(pattern, name))}


def _heads(width: int, name: str, path: str | Path) -> int:
    if width % 64:
        raise AlbefValueError(
            f"{path}: the {name} width {width} is not made of 64-wide heads; give their number by --{name}-heads"
        )
    return width // 64


def _description(read: Checkpoint, source: str | Path) -> list[str]:
    config, parameters = read.config, sum(tensor.numel() for tensor in read.model.values())
    headless = ", no MLM head" if read.architecture is AlbefModel and not config.mlm_head else ""
    counts = [f"{len(read.model)} tensors"]
    counts += [f"{len(read.teacher)} of the teacher"] if read.teacher else []
    counts += [f"queues of {len(read.queue['image_queue'])} features"] if read.queue else []
    return [
        f"{source}: {read.architecture.__name__}{headless}, {parameters:,} parameters",
        f"{config.vision_layers} image, {config.text_layers} text and {config.fusion_layers} fusion layers, images "
        f"of {config.image_size[0]} x {config.image_size[1]} pixels, {config.vocab_size} words",
        *([f"labels: {', '.join(read.labels)}"] if read.labels else []),
        f"copied: {', '.join(counts)}",
    ]
