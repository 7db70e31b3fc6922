"""What a run is: frozen, typed, saved in the run's folder and read back from it."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from albef.errors import AlbefValueError
from albef.files import write_atomically
from albef.models.config import AlbefConfig
from albef.objectives.weights import Weights

Task = Literal["pretrain", "retrieval", "vqa", "classification", "nlvr2", "text-assignment", "grounding"]
FORMAT = 1
"""Of recipe.json. 0.1.0 wrote none; a field that a file lacks has its default, so that newer fields need no new one."""

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Size = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
NotAll = Annotated[float, Meta(ge=0, le=0.99)]
Decay = Annotated[float, Meta(ge=0, le=0.999999)]


@dataclass(frozen=True)
class Data:
    """Where images and words come from, and how they are varied.

    A source is a JSON list in the original's format, a WebDataset tar (`shards/{00000..00099}.tar`), or a folder of
    images with `.txt` files beside them.
    """

    train: tuple[str, ...] = ()
    """Sources to learn from."""
    validation: tuple[str, ...] = ()
    """Sources that are searched while training, and by `albef evaluate`."""
    image_root: str | None = None
    """Folder that the `image` paths of JSON lists are relative to; by default the list's own folder."""
    vg_root: str | None = None
    """VQA: folder of the images of records whose `dataset` is `vg`; by default `image_root`."""
    answers: str | None = None
    """VQA: JSON list of the answers that are ranked; by default those of the training questions."""
    labels: tuple[str, ...] = ("contradiction", "neutral", "entailment")
    """Classification: the classes, in their order."""
    tokenizer: str | None = None
    """A `vocab.txt` or `tokenizer.json`; by default WordPiece is trained on the captions of `train`."""
    augment: Literal["randaugment", "affine", "cached"] = "randaugment"
    """`randaugment`: the paper's crop, flip and RandAugment, image by image. `affine`: all images are decoded
    once and kept in memory, and a batch is turned, moved and recoloured in one go (for small images). `cached`: some
    views of each image, the whole of it and others by `randaugment`, go through the frozen parts of a trunk once, and
    what these give is kept on the disk."""
    views: Positive = 8
    """`cached`: views of each image."""
    cache: str | None = None
    """`cached`: folder that the views are kept in; by default `views` in the cache folder of albef."""
    crop_scale: tuple[Share, Share] | None = (0.2, 1.0)
    """`randaugment`, `cached`: share of the area that a random crop keeps; None keeps all."""
    flip: bool = True
    """`randaugment`, `cached`: mirror every second image."""
    cache_size: Positive = 48
    """`affine`: side in pixels of the images kept in memory."""
    zoom: tuple[Size, Size] = (0.75, 1.15)
    """`affine`: visible side as a share of the image's."""
    shift: Share = 0.1
    """`affine`: largest displacement as a share of the side."""
    angle: Size = 12.0
    """`affine`: largest rotation and shear, degrees."""
    colour: Size = 0.3
    """`affine`: 0 keeps colours, 1 changes them wildly."""
    max_words: Count = 30
    """Words of a caption that are kept."""
    max_tokens: Annotated[int, Meta(ge=2)] = 25
    """Tokens of a caption that are kept in training, `[CLS]` included."""
    validation_captions: Positive | None = None
    """Use only the first so many captions of each validation image."""
    workers: Count = 4
    """`randaugment`, `cached`: processes that read images or views, per rank."""
    broken_limit: Share = 0.01
    """Stop when more than this share of the images can't be read."""

    def __post_init__(self) -> None:
        _check(Data, vars(self), "data.")
        low, high = self.crop_scale or (0, 1)
        if low > high:
            raise AlbefValueError(f"data.crop_scale is {self.crop_scale}, but must be the lower share and the higher")


@dataclass(frozen=True)
class Optim:
    """AdamW and its learning rate."""

    lr: Size = 1e-4
    """Highest learning rate."""
    min_lr: Size = 1e-5
    """Learning rate at the end."""
    warmup_lr: Size = 1e-5
    """Learning rate at the start."""
    schedule: Literal["cosine", "official"] = "cosine"
    """`cosine`: linear warm-up, then a smooth cosine. `official`: the original's rule, a step every 100 iterations of
    epoch 0 and then one per epoch."""
    warmup: NotAll = 0.05
    """`cosine`: share of the run that warms up."""
    warmup_epochs: Positive = 20
    """`official`: hundreds of iterations of epoch 0 that warm up."""
    weight_decay: Size = 0.02
    """Of everything but biases and one-dimensional parameters."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates."""
    clip_norm: Size = 0.0
    """Largest norm of the gradient; 0 doesn't clip (the original)."""
    rates: dict[str, Size] = field(default_factory=dict)
    """Parts of the model that learn at another rate: the beginning of their names, and what the learning rate is
    multiplied by there. Where several fit, the longest counts. 0 keeps a part as it is."""

    def __post_init__(self) -> None:
        _check(Optim, vars(self), "optim.")


@dataclass(frozen=True)
class Objective:
    """The objective's numbers (paper §3.2, §3.3)."""

    queue_size: Positive = 65536
    """Features that the queues hold."""
    momentum: Share = 0.995
    """Of the teacher."""
    alpha: Share = 0.4
    """The teacher's share of the targets; 0 learns from the labels alone."""
    alpha_ramp_steps: Count | None = None
    """Steps in which alpha grows from 0; by default the first epoch."""
    mlm_probability: Share = 0.15
    """Share of the words that are masked."""
    itm_negatives: Positive = 1
    """Hard negative images of each text, and texts of each image."""
    temp: Annotated[float, Meta(ge=0.001, le=0.5)] = 0.07
    """Temperature at the start; it is learnt."""
    align_first: NotAll = 0.0
    """Share of the run with ITC alone, before ITM and MLM join in; 0 is the paper."""
    itc: bool = True
    """Without it ITM and MLM learn alone: the ablation that shows why to align before fusing."""
    hard_negatives: bool = True
    """Draw the negatives of ITM by their similarity, as the paper does; otherwise evenly."""
    harden: Share = 0.0
    """Share of the run with ITM over which the temperature that its negatives are drawn at goes from 1, which is nearly
    even, to the model's own; 0 is the paper."""
    distill: tuple[Literal["itc", "mlm"], ...] = ("itc", "mlm")
    """Pre-training: the losses that the teacher has a share in."""
    weights: Weights = field(default_factory=Weights)
    """What each of the paper's five losses counts."""
    official: bool = False
    """Restore the original's quirks: see docs/migrate.md."""

    def __post_init__(self) -> None:
        _check(Objective, vars(self), "objective.")
        _check(Weights, vars(self.weights), "objective.weights.")


@dataclass(frozen=True)
class Recipe:
    """A run, complete: `albef train NAME --field value` replaces single fields."""

    name: str = "run"
    task: Task = "pretrain"
    """What is learnt."""
    model: AlbefConfig = field(default_factory=AlbefConfig)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    objective: Objective = field(default_factory=Objective)
    init: str | None = None
    """A saved model to start from. Its sizes and words replace `model` and `data.tokenizer`, all but image_size
    and text_frozen."""
    usual_init: str | None = None
    """What the original starts such a run from, in words: a run without `init` warns of it."""
    batch_size: Positive = 512
    """Pairs per step, over all ranks."""
    steps: Count = 0
    """Length of the run; 0 takes `epochs`."""
    epochs: Count = 0
    """Length of the run in passes over the training pairs, if `steps` is 0."""
    max_seconds: Size = 0.0
    """Fit the schedule into this training time, if it ends before `steps`; 0 has no limit."""
    seed: Annotated[int, Meta(ge=0, le=2**23 - 1)] = 42
    """Of everything random."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """`auto` computes in bfloat16 where the device has it. `float32` is exact; `tf32` lets an NVIDIA GPU multiply with
    10 bits of mantissa, several times as fast, as PyTorch did by default when the paper was written."""
    deterministic: bool = False
    """Only operations that give the same bits each time, also on a GPU; slower. A CPU needs no such switch."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Compile the encoders' blocks (worth it on a GPU)."""
    evaluate_steps: Count | None = 1000
    """Steps between evaluations on `data.validation`; None evaluates after every epoch, 0 only at the end."""
    save_steps: Count = 1000
    """Steps between checkpoints; 0 saves only at the end and when the run is stopped."""
    log_steps: Positive = 50
    """Steps between lines of the log."""
    k_test: Positive = 128
    """Candidates that the fusion encoder re-ranks in evaluation."""
    tensorboard: bool = False
    """Write the figures for TensorBoard too."""

    def __post_init__(self) -> None:
        _check(Recipe, vars(self))
        _check(AlbefConfig, vars(self.model), "model.")
        if self.optim.schedule == "official" and not self.epochs:
            raise AlbefValueError(f"recipe {self.name!r}: optim.schedule `official` counts in epochs; set epochs")
        if self.objective.align_first and not self.objective.itc:
            raise AlbefValueError(f"recipe {self.name!r}: without objective.itc, objective.align_first must be 0")
        if self.objective.harden and not (self.objective.itc and self.objective.hard_negatives):
            raise AlbefValueError(
                f"recipe {self.name!r}: without objective.itc or objective.hard_negatives, negatives are drawn evenly; "
                f"objective.harden is {self.objective.harden}, but must then be 0"
            )

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a saved recipe, of this version or an older one.

        ValueError that names the file for an unknown field (with the nearest one), a wrong type, or a value out of its
        range.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise AlbefValueError(f"{path} is no JSON ({error}); restore it, or choose a recipe by name") from error
        if not isinstance(values, dict):
            raise AlbefValueError(
                f"{path} is no recipe but a {type(values).__name__}; give data with --data.train {path}"
            )
        written = values.pop("format", 0)
        if written not in range(FORMAT + 1):
            raise AlbefValueError(f"{path} has format {written!r}, this version reads up to {FORMAT}; update albef")
        return _read(cls, values, str(path))


def _read(kind: type, values: dict[str, Any], source: str, prefix: str = "") -> Any:
    """A dataclass of `kind` from a file's values; its own `__post_init__` checks them."""
    known, built = _hints(kind), {}
    for name, value in values.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{nearest[0]}?" if nearest else f"the fields are {', '.join(known)}"
            raise AlbefValueError(f"{source}: unknown recipe field {prefix}{name}; {hint}")
        if is_dataclass(part := known[name]):
            if not isinstance(value, dict):
                raise AlbefValueError(f"{source}: {prefix}{name} is {value!r}, but must be an object with fields")
            value = _read(part, value, source, f"{prefix}{name}.")  # type: ignore[arg-type]
        built[name] = tuple(value) if isinstance(value, list) else value
    try:
        _check(kind, built, prefix)  # before `kind` computes with them
        return kind(**built)
    except AlbefValueError as error:
        raise AlbefValueError(f"{source}: {error}") from error


def _check(kind: type, values: dict[str, Any], prefix: str = "") -> None:
    """ValueError for a field whose value is not of its type, or out of the range that stands beside the field."""
    for name, value in values.items():
        hint = _hints(kind)[name]
        if not _fits(value, hint):
            raise AlbefValueError(f"{prefix}{name} is {value!r}, but must be {_rule(hint, value)}")


def _fits(value: Any, hint: Any) -> bool:
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError:
        return is_dataclass(hint) and type(value) is hint
    return True


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _rule(hint: Any, value: Any = None) -> str:
    """What a type admits, in words: `at least 1`, `one of auto, float32`, `a list`; of a number its range alone."""
    parts, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is Annotated:
        meta = parts[1]
        kind = "" if isinstance(value, (int, float)) and _fits(value, parts[0]) else f"{_rule(parts[0])} "
        return f"{kind}at least {meta.ge}" if meta.le is None else f"{kind}between {meta.ge} and {meta.le}"
    if origin is tuple:
        length = "" if Ellipsis in parts else f" of {len(parts)}"
        return f"a list{length}, each {_rule(parts[0])}"
    if parts:  # a union
        return " or ".join(map(_rule, parts))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(hint, f"of type {hint.__name__}")
