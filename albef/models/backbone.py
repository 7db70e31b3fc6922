"""What all models share: the image encoder, the text encoder, saving and loading."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from albef.errors import AlbefValueError
from albef.models import folders
from albef.models.bert import TextEncoder
from albef.models.config import AlbefConfig
from albef.models.layout import Layout
from albef.models.vit import VisionTransformer, resize_positions

M = TypeVar("M", bound="Backbone")


class Backbone(nn.Module):
    """The unimodal encoders (paper §3.1). `options` of a model are what it needs besides the sizes."""

    labels: tuple[str, ...] = ()
    """Names of the classes in the order of their logits, for a model that has classes."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [B, 3, height, width], or `frozen_features` of them -> image tokens [B, 1 + N,
        vision_width]."""
        return self.visual_encoder(pixel_values)

    def frozen_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [..., 3, height, width] -> what the frozen parts of the image encoder make of them,
        [..., C, h, w], so that student and teacher share it; the pixels where nothing is frozen."""
        found = self.visual_encoder.frozen_features(pixel_values.flatten(0, -4))
        return found.unflatten(0, pixel_values.shape[:-3])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | Layout) -> Tensor:
        """Token ids [B, L] and mask (1 = word) -> text states [B, L, text_width]; packed [N, text_width]."""
        return self.text_encoder(input_ids, attention_mask)

    def options(self) -> dict[str, Any]:
        """What the constructor takes besides the sizes; saved in `config.json`."""
        return {"labels": list(self.labels)} if self.labels else {}

    @property
    def device(self) -> torch.device:
        return self.visual_encoder.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.visual_encoder.cls_token.dtype

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes `config.json` and `model.safetensors`, in `dtype` if given: torch.float16, or torch.int8 for matrices
        of whole numbers with a scale for each row, and half precision for the rest."""
        values = {**self.config.to_dict(), "architecture": type(self).__name__, **self.options()}
        folders.save(folder, values, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls: type[M], folder: str | Path, image_size: int | tuple[int, int] | None = None) -> M:
        """Loads what `save_pretrained` wrote: a folder, the name of one that comes along, or `hf://owner/name`.

        With `image_size` (pixels; an int, or height and width) the position grid is resized to it. ValueError if the
        folder holds another kind of model.
        """
        values, state = folders.load(folder)
        found = values.get("architecture", "AlbefModel")
        if found != cls.__name__:
            raise AlbefValueError(
                f"{folder} holds an {found}, not an {cls.__name__}; albef.load takes whatever is there"
            )
        config = AlbefConfig.from_dict(values)
        if image_size is not None:
            wanted = config.at_size(image_size)
            name = "visual_encoder.pos_embed"
            state[name] = resize_positions(state[name], config.grid, wanted.grid)
            config = wanted
        names = [name for name in signature(cls).parameters if name != "config"]
        if missing := [name for name in names if name not in values]:
            raise AlbefValueError(f"{folder}: config.json lacks {', '.join(missing)}, which an {cls.__name__} needs")
        with _Unfilled():
            model = cls(config, **{name: values[name] for name in names})
        folders.load_strictly(model, state, str(folder))
        return model.eval()

    def gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        for part in self.children():
            if hasattr(part, "checkpointed"):
                setattr(part, "checkpointed", enabled)  # noqa: B010 - mypy takes it for a module


class _Unfilled(TorchFunctionMode):
    """Skips the drawing of weights that are loaded anyway: it takes seconds and changes the caller's random state.

    The meta device would do the same, but importing what it needs takes another second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_):
            return kwargs["tensor"]
        return (torch.zeros if func is torch.randn else func)(*args, **kwargs)


@torch.no_grad()
def initialise(model: Backbone) -> None:
    """The original's initialisation, or one that scales with the width if `init_std` is None.

    Linears and tables of ViT and BERT are N(0, init_std), biases 0; the patch convolution, the projections and the
    heads keep PyTorch's default, as in the original. Scaled: linears N(0, 1 / inputs), tables N(0, 1 / width), and
    image positions the sum of a row's and a column's N(0, 0.25²): about as loud as patches, and telling neighbours.
    """
    std = model.config.init_std
    for name, part in model.named_children():
        if not name.endswith(("encoder", "decoder", "mlm_head")):
            continue
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std or module.in_features**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std or module.embedding_dim**-0.5)
    for table in (model.visual_encoder.cls_token, model.visual_encoder.pos_embed):
        nn.init.normal_(table, std=std or table.shape[-1] ** -0.5)
    if model.visual_encoder.trunk is not None:
        model.visual_encoder.trunk.initialise()
    if std is None:
        row, column = (torch.randn(length, table.shape[-1]) * 0.25 for length in model.config.grid)
        table[0, 1:] = (row[:, None] + column).flatten(0, 1)
