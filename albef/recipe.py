"""What a run is: frozen, typed, saved in the run's folder and read back from it."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from albef.errors import AlbefValueError
from albef.models.config import AlbefConfig

Task = Literal["pretrain", "retrieval", "vqa", "classification", "nlvr2", "text-assignment", "grounding"]


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
    augment: Literal["randaugment", "affine"] = "randaugment"
    """`randaugment`: the paper's crop, flip and RandAugment, image by image. `affine`: all images are decoded
    once and kept in memory, and a batch is turned, moved and recoloured in one go (for small images)."""
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    """`randaugment`: share of the area that a random crop keeps; None keeps all."""
    flip: bool = True
    """`randaugment`: mirror every second image."""
    cache_size: int = 48
    """`affine`: side in pixels of the images kept in memory."""
    zoom: tuple[float, float] = (0.75, 1.15)
    """`affine`: visible side as a share of the image's."""
    shift: float = 0.1
    """`affine`: largest displacement as a share of the side."""
    angle: float = 12.0
    """`affine`: largest rotation and shear, degrees."""
    colour: float = 0.3
    """`affine`: 0 keeps colours, 1 changes them wildly."""
    max_words: int = 30
    """Words of a caption that are kept."""
    max_tokens: int = 25
    """Tokens of a caption that are kept in training, `[CLS]` included."""
    validation_captions: int | None = None
    """Use only the first so many captions of each validation image."""
    workers: int = 4
    """`randaugment`: processes that read images, per rank."""
    broken_limit: float = 0.01
    """Stop when more than this share of the images can't be read."""


@dataclass(frozen=True)
class Optim:
    """AdamW and its learning rate."""

    lr: float = 1e-4
    """Highest learning rate."""
    min_lr: float = 1e-5
    """Learning rate at the end."""
    warmup_lr: float = 1e-5
    """Learning rate at the start."""
    schedule: Literal["cosine", "official"] = "cosine"
    """`cosine`: linear warm-up, then a smooth cosine. `official`: the original's rule, a step every 100 iterations of
    epoch 0 and then one per epoch."""
    warmup: float = 0.05
    """`cosine`: share of the run that warms up."""
    warmup_epochs: int = 20
    """`official`: hundreds of iterations of epoch 0 that warm up."""
    weight_decay: float = 0.02
    """Of everything but biases and one-dimensional parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 doesn't clip (the original)."""


@dataclass(frozen=True)
class Objective:
    """The objective's numbers (paper §3.2, §3.3)."""

    queue_size: int = 65536
    """Features that the queues hold."""
    momentum: float = 0.995
    """Of the teacher."""
    alpha: float = 0.4
    """The teacher's share of the targets; 0 learns from the labels alone."""
    alpha_ramp_steps: int | None = None
    """Steps in which alpha grows from 0; by default the first epoch."""
    mlm_probability: float = 0.15
    """Share of the words that are masked."""
    itm_negatives: int = 1
    """Hard negative images of each text, and texts of each image."""
    temp: float = 0.07
    """Temperature at the start; it is learnt."""
    align_first: float = 0.0
    """Share of the run with ITC alone, before ITM and MLM join in; 0 is the paper."""
    itc: bool = True
    """Without it ITM and MLM learn alone: the ablation that shows why to align before fusing."""
    official: bool = False
    """Restore the original's quirks: see docs/migrate.md."""


@dataclass(frozen=True)
class Recipe:
    """A run, complete: `albef train NAME --field value` replaces single fields."""

    name: str = "run"
    task: Literal["pretrain", "retrieval", "vqa", "classification", "nlvr2", "text-assignment", "grounding"] = (
        "pretrain"
    )
    """What is learnt."""
    model: AlbefConfig = field(default_factory=AlbefConfig)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    objective: Objective = field(default_factory=Objective)
    init: str | None = None
    """A saved model to start from. Its sizes and words replace `model` and `data.tokenizer`, all but image_size."""
    usual_init: str | None = None
    """What the original starts such a run from, in words: a run without `init` warns of it."""
    batch_size: int = 512
    """Pairs per step, over all ranks."""
    steps: int = 0
    """Length of the run; 0 takes `epochs`."""
    epochs: int = 0
    """Length of the run in passes over the training pairs, if `steps` is 0."""
    max_seconds: float = 0.0
    """Fit the schedule into this training time, if it ends before `steps`; 0 has no limit."""
    seed: int = 42
    """Of everything random."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` computes in bfloat16 where the device has it."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Compile the encoders' blocks (worth it on a GPU)."""
    evaluate_steps: int | None = 1000
    """Steps between evaluations on `data.validation`; None evaluates after every epoch, 0 only at the end."""
    save_steps: int = 1000
    """Steps between checkpoints."""
    log_steps: int = 50
    """Steps between lines of the log."""
    k_test: int = 128
    """Candidates that the fusion encoder re-ranks in evaluation."""
    tensorboard: bool = False
    """Write the figures for TensorBoard too."""

    def __post_init__(self) -> None:
        _check(self)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a saved recipe; an unknown field is an error that names the nearest one."""
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise AlbefValueError(
                f"{path} is no recipe but a {type(values).__name__}; give data with --data.train {path}"
            )
        return _build(cls, values, str(path))


def _check(recipe: Recipe) -> None:
    objective, data = recipe.objective, recipe.data
    for name, value, low, high in (
        ("batch_size", recipe.batch_size, 1, None),
        ("steps", recipe.steps, 0, None),
        ("epochs", recipe.epochs, 0, None),
        ("max_seconds", recipe.max_seconds, 0, None),
        ("log_steps", recipe.log_steps, 1, None),
        ("k_test", recipe.k_test, 1, None),
        ("optim.warmup", recipe.optim.warmup, 0, 0.99),
        ("data.max_tokens", data.max_tokens, 2, None),
        ("data.broken_limit", data.broken_limit, 0, 1),
        ("objective.alpha", objective.alpha, 0, 1),
        ("objective.momentum", objective.momentum, 0, 1),
        ("objective.mlm_probability", objective.mlm_probability, 0, 1),
        ("objective.queue_size", objective.queue_size, 1, None),
        ("objective.itm_negatives", objective.itm_negatives, 1, None),
        ("objective.align_first", objective.align_first, 0, 0.99),
        ("objective.temp", objective.temp, 0.001, 0.5),
        ("seed", recipe.seed, 0, 2**23 - 1),
    ):
        if value < low or (high is not None and value > high):
            rule = f"at least {low}" if high is None else f"between {low} and {high}"
            raise AlbefValueError(f"recipe {recipe.name!r}: {name} is {value}, but must be {rule}")
    if recipe.optim.schedule == "official" and not recipe.epochs:
        raise AlbefValueError(f"recipe {recipe.name!r}: optim.schedule `official` counts in epochs; set epochs")
    if objective.align_first and not objective.itc:
        raise AlbefValueError(f"recipe {recipe.name!r}: without objective.itc, objective.align_first must be 0")


def _build(kind: type, values: dict[str, Any], source: str, prefix: str = "") -> Any:
    known = {f.name: f for f in fields(kind)}
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{nearest[0]}?" if nearest else f"the fields are {', '.join(known)}"
            raise AlbefValueError(f"{source}: unknown recipe field {prefix}{name}; {hint}")
    built, types = {}, get_type_hints(kind)
    for name, value in values.items():
        default = getattr(kind(), name)
        choices = get_args(types[name]) if get_origin(types[name]) is Literal else None
        if choices and value not in choices:
            raise AlbefValueError(f"{source}: {prefix}{name} is {value!r}, but must be one of {', '.join(choices)}")
        optional = type(None) in get_args(types[name]) and value is None
        if isinstance(default, tuple) and not optional and not isinstance(value, (list, tuple)):
            raise AlbefValueError(f"{source}: {prefix}{name} is {value!r}, but must be a list")
        if is_dataclass(default):
            built[name] = _build(type(default), value, source, f"{prefix}{name}.")
        else:
            built[name] = tuple(value) if isinstance(value, list) else value
    return kind(**built)
