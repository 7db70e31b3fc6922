"""Where in the picture each word is seen: Grad-CAM on the cross-attention (paper §4, §6.6; spec §3.5)."""

# B pairs, L words, S image tokens, H heads

from __future__ import annotations

import torch
from torch import Tensor

from albef.models.albef import AlbefModel


def word_maps(
    model: AlbefModel, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, layer: int | None = None
) -> Tensor:
    """Heat map of every word over the patch grid, [B, L, rows, columns], not negative, 0 at padding.

    Attention probabilities of fusion layer `layer` times their clamped gradient towards the ITM logit "matched", mean
    over heads; by default the third layer, as in the original, or the last of fewer. In the last layer only `[CLS]`
    reaches the logit, so all other words' maps are 0 there. The mean over L is the official grounding script's map of
    the whole text. Put the model in evaluation mode first. ValueError for a layer that doesn't exist.
    """
    layers = model.config.fusion_layers
    layer = min(2, layers - 1) if layer is None else layer
    if not -layers <= layer < layers:
        raise ValueError(f"layer {layer} doesn't exist; the fusion layers are 0 to {layers - 1}, or -{layers} to -1")
    with torch.no_grad():
        keys_values = model.fusion_encoder.keys_values(model.encode_image(pixel_values))
        states = model.encode_text(input_ids, attention_mask)
    record: list[Tensor] = []
    with torch.enable_grad():  # the keys ask for gradients, so that frozen models work too
        fused = model.fuse(states, attention_mask, keys_values.requires_grad_(), record=record, record_layer=layer)
        matched = model.match(fused)[:, 1].sum()
        (gradient,) = torch.autograd.grad(matched, record[0])
    maps = (record[0].detach() * gradient.clamp(min=0)).mean(1)  # [B, L, S]
    maps = maps * attention_mask[:, :, None]
    return maps[:, :, 1:].unflatten(-1, model.config.grid)
