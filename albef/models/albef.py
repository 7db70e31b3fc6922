"""ALBEF's network: encode the picture, encode the text, fuse."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albef.models import hub
from albef.models.bert import FusionEncoder, MlmHead, TextEncoder
from albef.models.config import AlbefConfig
from albef.models.vit import VisionTransformer, resize_positions


class AlbefModel(nn.Module):
    """Image encoder, text encoder, fusion encoder and the heads of pre-training (paper §3.1, §3.2).

    It keeps no teacher, no queue and no tokenizer: those belong to the objective and the processor.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.fusion_encoder = FusionEncoder(config)
        self.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
        self.text_proj = nn.Linear(config.text_width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_width, 2)
        self.mlm_head = MlmHead(config)
        self.temp = nn.Parameter(torch.tensor(0.07))
        initialise(self)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [B, 3, height, width] -> image tokens [B, 1 + N, vision_width]."""
        return self.visual_encoder(pixel_values)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids [B, L] and mask (1 = word) -> text states [B, L, text_width]."""
        return self.text_encoder(input_ids, attention_mask)

    def project_image(self, image_tokens: Tensor) -> Tensor:
        """Image tokens -> unit vectors [B, embed_dim], to be compared with those of texts."""
        return F.normalize(self.vision_proj(image_tokens[:, 0]).float(), dim=-1)

    def project_text(self, text_states: Tensor) -> Tensor:
        """Text states -> unit vectors [B, embed_dim]."""
        return F.normalize(self.text_proj(text_states[:, 0]).float(), dim=-1)

    def fuse(self, text_states: Tensor, attention_mask: Tensor, keys_values: Tensor, **options) -> Tensor:
        """Text states read the picture's `fusion_encoder.keys_values` -> fused states [B, L, text_width].

        `options` are those of the fusion encoder's forward pass.
        """
        return self.fusion_encoder(text_states, attention_mask, keys_values, **options)

    def match(self, fused_states: Tensor) -> Tensor:
        """Fused states -> logits [B, 2]; class 1 says that text and picture belong together."""
        return self.itm_head(fused_states[:, 0])

    def fill_in(self, fused_states: Tensor) -> Tensor:
        """Fused states [..., text_width] -> vocabulary logits [..., vocab_size]."""
        return self.mlm_head(fused_states, self.text_encoder.word_embeddings.weight)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes `config.json` and `model.safetensors`, in `dtype` (e.g. torch.float16) if given."""
        hub.save(folder, self.config.to_dict(), self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path, image_size: int | tuple[int, int] | None = None) -> AlbefModel:
        """Loads what `save_pretrained` wrote: a folder, or the name of a repository on the Hugging Face hub.

        With `image_size` (pixels; an int, or height and width) the position grid is resized to it.
        """
        values, state = hub.load(folder)
        config = AlbefConfig.from_dict(values)
        if image_size is not None:
            wanted = config.at_size(image_size)
            name = "visual_encoder.pos_embed"
            state[name] = resize_positions(state[name], config.grid, wanted.grid)
            config = wanted
        model = cls(config)
        hub.load_strictly(model, state, str(folder))
        return model.eval()

    def gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        for encoder in (self.visual_encoder, self.text_encoder, self.fusion_encoder):
            encoder.gradient_checkpointing = enabled


@torch.no_grad()
def initialise(model: AlbefModel) -> None:
    """The original's initialisation, or one that scales with the width if `init_std` is None.

    Linears and tables of ViT and BERT are N(0, init_std), biases 0; the patch convolution, the projections and the ITM
    head keep PyTorch's default, as in the original. Scaled: linears N(0, 1 / inputs), tables N(0, 1 / width).
    """
    std = model.config.init_std
    for part in (model.visual_encoder, model.text_encoder, model.fusion_encoder, model.mlm_head):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std or module.in_features**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std or module.embedding_dim**-0.5)
    for table in (model.visual_encoder.cls_token, model.visual_encoder.pos_embed):
        nn.init.normal_(table, std=std or table.shape[-1] ** -0.5)
