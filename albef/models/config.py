"""The numbers that define a network, and three presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from albef.errors import AlbefValueError

_BESIDES = {"model_type", "architecture", "labels"}
"""What else stands in `config.json`: whose it is, which model, and what its constructor takes besides the sizes."""


TRUNKS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
TRUNK_PARTS, TRUNK_STRIDE = 9, 32
"""A stem, seven stages and a head; the pixels between two places of the last map."""


@dataclass(frozen=True)
class AlbefConfig:
    """Sizes of the image encoder, the text encoder and the fusion encoder.

    The defaults are those of the paper (§3.1, §3.4): ViT-B/16 at 256 px, BERT-base cut after its sixth layer.

    `image_size` is (height, width) in pixels. `init_std` is the standard deviation of the original's initialisation
    (0.02, made for width 768); None scales it with the width, which narrow networks need in order to learn at all.
    Fine-tuned models have no `mlm_head`: they don't fill in words.

    With a `trunk` (one of `TRUNKS`) the image encoder is a hybrid: its tokens are the places of the last map of a
    convolutional network in place of patches, and `patch_size` must be 32, its stride. With `trunk_levels` 2 they also
    read the map before the last halving. Of the trunk's nine parts (stem, seven stages, head) the last
    `trunk_trained` are learnt, and the others are frozen.
    `text_pooling` says which state of the text encoder ITC compares with images: that of `[CLS]` (the paper's), or the
    mean of all words, `[CLS]` included. `text_frozen` is how many of the lowest text layers, and with the first of them
    the embeddings, learn nothing; they have no dropout then.

    `match_weight` and `match_temperature` belong to the weights of a trained model; `albef calibrate` fits them. The
    first says how much ITM's log-odds count beside ITC in a search (`tasks.ranking`), and ITM's logits are divided by
    the second before they become a probability.
    """

    image_size: tuple[int, int] = (256, 256)
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    text_width: int = 768
    text_layers: int = 6
    fusion_layers: int = 6
    text_heads: int = 12
    text_intermediate: int = 3072
    vocab_size: int = 30522
    max_positions: int = 512
    embed_dim: int = 256
    dropout: float = 0.1
    init_std: float | None = 0.02
    mlm_head: bool = True
    trunk: str | None = None
    trunk_levels: int = 1
    trunk_trained: int = 0
    text_pooling: Literal["cls", "mean"] = "cls"
    text_frozen: int = 0
    match_weight: float = 1.0
    match_temperature: float = 1.0

    def __post_init__(self) -> None:
        height, width = self.image_size
        object.__setattr__(self, "image_size", (height, width))  # a list in JSON
        if self.trunk is not None:
            self._check_trunk(self.trunk)
        for side in (height, width):
            if side % self.patch_size:
                raise AlbefValueError(
                    f"image_size {height} x {width} is not a multiple of patch_size {self.patch_size}; "
                    f"the nearest that fits is {round(side / self.patch_size) * self.patch_size} for {side}"
                )
        for name in ("vision", "text"):
            width, heads = getattr(self, f"{name}_width"), getattr(self, f"{name}_heads")
            if width % heads:
                raise AlbefValueError(f"{name}_width {width} must be a multiple of {name}_heads {heads}")
        if self.text_pooling not in ("cls", "mean"):
            raise AlbefValueError(f"text_pooling {self.text_pooling!r} must be `cls` or `mean`")

    def _check_trunk(self, trunk: str) -> None:
        if trunk not in TRUNKS:
            raise AlbefValueError(f"unknown trunk {trunk!r}; the trunks are {', '.join(TRUNKS)}")
        if self.patch_size != TRUNK_STRIDE:
            raise AlbefValueError(
                f"patch_size {self.patch_size} does not fit {trunk}, whose stride is {TRUNK_STRIDE} pixels; "
                f"set patch_size to {TRUNK_STRIDE}"
            )
        if self.trunk_levels not in (1, 2):
            raise AlbefValueError(f"trunk_levels {self.trunk_levels} must be 1, the last map alone, or 2")
        if not 0 <= self.trunk_trained <= TRUNK_PARTS:
            raise AlbefValueError(
                f"trunk_trained {self.trunk_trained} must be from 0, all frozen, to {TRUNK_PARTS}, all its parts"
            )

    def at_size(self, image_size: int | tuple[int, int]) -> AlbefConfig:
        """The same network for images of `image_size` pixels (height and width, or one number for a square)."""
        return replace(self, image_size=(image_size, image_size) if isinstance(image_size, int) else image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def image_tokens(self) -> int:
        """Tokens of one image: the patches and the class token in front of them."""
        return self.grid[0] * self.grid[1] + 1

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "albef", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AlbefConfig:
        """The sizes in what `config.json` says, missing ones as above. ValueError for a key that means nothing."""
        unknown = sorted(values.keys() - cls.__dataclass_fields__.keys() - _BESIDES)
        if unknown:
            raise AlbefValueError(
                f"config.json: unknown {', '.join(unknown)}; there are {', '.join(cls.__dataclass_fields__)}, and "
                f"besides the sizes {', '.join(sorted(_BESIDES))}"
            )
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})


_TINY = AlbefConfig(
    image_size=(32, 32),
    patch_size=8,
    vision_width=128,
    vision_layers=3,
    vision_heads=4,
    text_width=128,
    text_layers=2,
    fusion_layers=1,
    text_heads=4,
    text_intermediate=512,
    vocab_size=2500,
    max_positions=64,
    embed_dim=128,
    dropout=0.0,
    init_std=None,
)

PRESETS = {
    "base": AlbefConfig(),
    "small": replace(
        _TINY,
        image_size=(128, 128),
        patch_size=16,
        vision_width=256,
        vision_layers=6,
        vision_heads=8,
        text_width=256,
        text_layers=3,
        fusion_layers=3,
        text_heads=8,
        text_intermediate=1024,
        vocab_size=8000,
        dropout=0.1,
    ),
    "tiny": _TINY,
}


def preset(name: str) -> AlbefConfig:
    """The configuration called `base` (the paper's), `small` or `tiny`."""
    if name not in PRESETS:
        raise AlbefValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
