"""Features of images and texts, each alone or both together: tensors with a row for each."""

# N images, texts or pairs, I images, T texts, S image tokens, L words, Dv and D widths of image and text, E embed_dim

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from albef.inputs import Given, Images, Loaded, Texts, list_captions, list_images, paired
from albef.models.albef import AlbefModel
from albef.results import States
from albef.tasks import ranking

TEXTS_AT_ONCE = 256


class Features(Loaded):
    """The part of `albef.Pipeline` that gives features. Tensors are float32 on the CPU."""

    @torch.no_grad()
    def embed_images(self, images: Images) -> Tensor:
        """Unit vectors [N, E] in the space that images and texts share; of one image [E]."""
        model, (listed, one) = self._model(AlbefModel, "embed images", "retrieval"), list_images(images)
        return _joined([self._image_vectors(model, listed)], one)

    def _image_vectors(self, model: AlbefModel, images: Sequence[Given]) -> Tensor:
        rows = [torch.empty(0, model.config.embed_dim)]
        rows += [model.project_image(model.encode_image(pixels)).float().cpu() for _, pixels in self._batches(images)]
        return torch.cat(rows)

    @torch.no_grad()
    def embed_texts(self, texts: Texts) -> Tensor:
        """Unit vectors [N, E] in the space that images and texts share; of one text [E].

        ValueError for a text without a word, here and in all that follows.
        """
        model, (listed, one) = self._model(AlbefModel, "embed texts", "retrieval"), list_captions(texts)
        rows = [torch.empty(0, model.config.embed_dim)]
        if listed:
            rows.append(ranking.encode_texts(model, self.processor, listed)[1].float().cpu())
        return _joined(rows, one)

    @torch.no_grad()
    def tokens(self, images: Images) -> Tensor:
        """Image tokens [N, S, Dv]: the class token and a token for each patch, row by row; of one image [S, Dv]."""
        (listed, one), config = list_images(images), self.model.config
        rows = [torch.empty(0, config.image_tokens, config.vision_width)]
        rows += [self.model.encode_image(pixels).float().cpu() for _, pixels in self._batches(listed)]
        return _joined(rows, one)

    @torch.no_grad()
    def states(self, texts: Texts) -> States:
        """What the text encoder makes of every word, before any image is seen."""
        listed, one = list_captions(texts)
        ids, mask = self.processor.texts(listed).values()
        rows = [torch.empty(0, ids.shape[1], self.model.config.text_width)]
        for start in range(0, len(listed), TEXTS_AT_ONCE):
            own = slice(start, start + TEXTS_AT_ONCE)
            rows.append(self.model.encode_text(*self._on(ids[own], mask[own])).float().cpu())
        return States(_joined(rows, one), _joined([mask], one))

    @torch.no_grad()
    def fuse(self, images: Images, texts: Texts) -> States:
        """What the fusion encoder makes of every word of a text that has seen its image: multimodal features.

        Lists of one length are pairs; a single image or text goes with all of the other.
        """
        model = self._model(AlbefModel, "fuse", "retrieval")
        (listed, said), one = paired(images=list_images(images), texts=list_captions(texts))
        ids, mask = self.processor.texts(said).values()
        rows = [torch.empty(0, ids.shape[1], model.config.text_width)]
        for own, pixels in self._batches(listed):
            own_ids, own_mask = self._on(ids[own], mask[own])
            keys_values = model.fusion_encoder.keys_values(model.encode_image(pixels))
            rows.append(model.fuse(model.encode_text(own_ids, own_mask), own_mask, keys_values).float().cpu())
        return States(_joined(rows, one), _joined([mask], one))

    def similarity(self, images: Images, texts: Texts) -> Tensor:
        """Cosines of all images with all texts by ITC, [I, T]; a single image or text has no dimension of its own."""
        return torch.inner(self.embed_images(images), self.embed_texts(texts))


def _joined(parts: list[Tensor], one: bool) -> Tensor:
    rows = torch.cat(parts)
    return rows[0] if one else rows
