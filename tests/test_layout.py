"""Words without padding give what words with padding give, outputs and gradients."""

from dataclasses import replace

import pytest
import torch

from albef.models.albef import AlbefModel
from albef.models.layout import PackedText, Padded
from albef.objectives.align import seen_by, with_negatives
from tests.worlds import TINY

LENGTHS = (6, 2, 4)
MASK = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()


def model_and_inputs(config=TINY):
    torch.manual_seed(0)
    model = AlbefModel(config)
    ids = torch.randint(5, 100, MASK.shape) * MASK
    return model, ids, torch.randn(3, *[3, *TINY.image_size])


def states(model, ids, pixels, words, cls_only):
    keys_values = model.fusion_encoder.keys_values(model.encode_image(pixels))
    return model.fuse(model.encode_text(ids, words), words, keys_values, cls_only=cls_only)


def gradients(model, found):
    model.zero_grad()
    found.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("cls_only", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_packed_and_padded_agree(images, cls_only, checkpointed):
    model, ids, pixels = model_and_inputs()
    model.gradient_checkpointing(checkpointed)
    packed = states(model, ids, pixels[:images], PackedText.of(MASK), cls_only)
    padded = states(model, ids, pixels[:images], MASK, cls_only)
    padded = padded if cls_only else padded[MASK.bool()]
    torch.testing.assert_close(packed, padded)
    found, wanted = gradients(model, packed), gradients(model, padded)
    assert found.keys() == wanted.keys() and len(found) > 20
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_later_texts_ask_images_of_their_own():
    """Three texts, then the first and third in full length, ask two images in turns; two copies ask others."""
    model, ids, pixels = model_and_inputs()
    ids, mask, words = ids[:2], MASK[:2], PackedText.of(MASK[:2])
    others = torch.tensor([1, 0])
    kv = model.fusion_encoder.keys_values(model.encode_image(pixels))
    text = model.fusion_encoder.begin(model.encode_text(ids, words), words)
    texts = torch.cat([text, words.spread(text)[others].flatten(0, 1), text])
    layout = PackedText.join(words, PackedText.whole(mask[others]), words)
    found = model.fuse(texts, layout, (kv[:2], kv[torch.tensor([2, 0])]), cls_only=True, begun=True)
    for row, (text, image) in enumerate([(0, 0), (1, 1), (1, 0), (0, 1), (0, 2), (1, 0)]):
        own, length = slice(text, text + 1), int(mask[text].sum())
        alone = model.encode_text(ids[own, :length], mask[own, :length])
        wanted = model.fuse(alone, mask[own, :length], kv[image : image + 1], cls_only=True)
        torch.testing.assert_close(found[row], wanted[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_several_negatives_are_each_with_its_own(layers):
    """Two for each text and each image, all in one pass, as fused one by one."""
    model, ids, pixels = model_and_inputs(replace(TINY, fusion_layers=layers))
    words, tokens = PackedText.of(MASK), model.encode_image(pixels)
    image_n, text_n = torch.tensor([[1, 2], [2, 0], [0, 1]]), torch.tensor([[2, 1], [0, 2], [1, 0]])
    text = model.fusion_encoder.begin(model.encode_text(ids, words), words)
    pairs, layout = with_negatives(text, words, image_n, text_n)
    seen = seen_by(model.fusion_encoder.keys_values(tokens), image_n)
    found = model.fuse(pairs, layout, seen, cls_only=True, begun=True)
    rows = [(text, text) for text in range(3)]
    rows += [(int(text_n[image, turn]), image) for turn in range(2) for image in range(3)]
    rows += [(text, int(image_n[text, turn])) for turn in range(2) for text in range(3)]
    assert len(found) == len(rows) == 15
    for fused, (text, image) in zip(found, rows, strict=True):
        own, length = slice(text, text + 1), int(MASK[text].sum())
        alone = model.encode_text(ids[own, :length], MASK[own, :length])
        kv = model.fusion_encoder.keys_values(tokens[image : image + 1])
        wanted = model.fuse(alone, MASK[own, :length], kv, cls_only=True)
        torch.testing.assert_close(fused, wanted[0], atol=1e-5, rtol=1e-5)


def test_a_number_of_images_that_does_not_fit_is_refused():
    model, ids, pixels = model_and_inputs()
    kv = model.fusion_encoder.keys_values(model.encode_image(pixels))
    for words in (Padded(MASK), PackedText.of(MASK)):
        text = model.encode_text(ids, words)
        for given in (kv[:2], kv[:0]):
            with pytest.raises(ValueError, match="expected 1 or 3 rows, one per text"):
                model.fuse(text, words, given)
