"""Heat maps of words against the maps of the official grounding script and notebook."""

import re
from dataclasses import replace

import pytest
import torch

from albef.metrics import boxes
from albef.models.albef import AlbefModel
from albef.tasks.grounding import similarity_maps, word_maps
from tests.parity import golden


@pytest.fixture(scope="module")
def pairs():
    record, tensors = golden.json_of("gradcam"), golden.tensors_of("gradcam")
    model = golden.model(record["checkpoint"].removesuffix(".pth"))
    images = golden.images("downstream", record["image_index"])
    return model, images, tensors["input_ids"], tensors["attention_mask"], tensors


def blocks():
    found = (re.fullmatch(r"itm_block(\d+)\.cam", name) for name in golden.tensors_of("gradcam"))
    return sorted(int(match[1]) for match in found if match)


@pytest.mark.parametrize("block", blocks())
def test_map_of_the_whole_text(pairs, block):
    model, images, ids, mask, tensors = pairs
    maps = word_maps(model, images, ids, mask, layer=block - model.config.text_layers)
    golden.close(maps.mean(1), tensors[f"itm_block{block}.cam"], atol=1e-6, rtol=1e-3)


def layers_of_itc():
    found = (re.fullmatch(r"itc_block(\d+)\.cam", name) for name in golden.tensors_of("gradcam"))
    return sorted(int(match[1]) for match in found if match)


@pytest.mark.parametrize("layer", layers_of_itc())
def test_map_by_similarity(pairs, layer):
    model, images, ids, mask, tensors = pairs
    maps = similarity_maps(model, images, ids, mask, layer)
    golden.close(maps, tensors[f"itc_block{layer}.cam"], atol=1e-6, rtol=1e-3)
    frozen = similarity_maps(model.requires_grad_(False), images, ids, mask, layer)
    assert frozen.equal(maps)


@pytest.fixture
def differentiated(monkeypatch):
    """What autograd was asked for by name: the tensors [B, heads, rows, columns], and their gradients."""
    calls, original = [], torch.autograd.grad

    def grad(outputs, inputs, *rest, **options):
        gradients = original(outputs, inputs, *rest, **options)
        calls.append(((inputs[0] if isinstance(inputs, (tuple, list)) else inputs).detach(), gradients[0].detach()))
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return calls


@pytest.mark.parametrize("block", blocks())
def test_attention_and_gradient_of_matching(pairs, differentiated, block):
    model, images, ids, mask, tensors = pairs
    word_maps(model, images, ids, mask, layer=block - model.config.text_layers)
    ((attention, gradient),) = differentiated
    golden.close(attention[:, :, 0], tensors[f"itm_block{block}.attention_row0"])
    golden.close(gradient[:, :, 0], tensors[f"itm_block{block}.gradient_row0"], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("layer", layers_of_itc())
def test_attention_and_gradient_of_similarity(pairs, differentiated, layer):
    model, images, ids, mask, tensors = pairs
    similarity_maps(model, images, ids, mask, layer)
    ((attention, gradient),) = differentiated
    golden.close(attention[:, :, 0], tensors[f"itc_block{layer}.attention_cls"])
    golden.close(gradient[:, :, 0], tensors[f"itc_block{layer}.gradient_cls"], atol=1e-6, rtol=1e-3)


def test_boxes_chosen_by_the_maps():
    """The official grounding evaluation on a made-up detection task: scores of all boxes, accuracy by split."""
    record, tensors = golden.json_of("gradcam"), golden.tensors_of("gradcam")
    overlaps, splits = [], []
    for (ref, where), scores in zip(record["map_of_ref"].items(), record["detection_scores"], strict=True):
        image = record["refs"][ref]["image_id"]
        name, row = where.removesuffix("]").split("[")
        heat = boxes.upsample(tensors[name][int(row)], *(record["images"][str(image)][s] for s in ("height", "width")))
        detections = record["detections"][str(image)]
        assert [boxes.box_score(heat, box) for box in detections] == pytest.approx(scores, rel=1e-3, abs=1e-6)
        overlaps.append(boxes.official_iou(detections[boxes.choose_box(heat, detections)], record["boxes"][ref]))
        splits.append(record["refs"][ref]["split"])
    found = boxes.accuracy_by_split(overlaps, splits)
    assert {f"{split}_d": share for split, share in found.items()} == pytest.approx(record["accuracy"])


def test_map_of_every_word(pairs):
    model, images, ids, mask, tensors = pairs
    wanted = tensors["notebook.per_token_cam"]
    words = slice(0, len(wanted))  # the notebook's single text isn't padded
    with golden.outputs_of(model.itm_head) as logits:
        maps = word_maps(model, images[:1], ids[:1, words], mask[:1, words], layer=0)
    golden.close(logits[0], tensors["notebook.itm_logits"])
    golden.close(maps[0], wanted, atol=1e-6, rtol=1e-3)
    padded = word_maps(model.requires_grad_(False), images, ids, mask, layer=0)
    golden.close(padded[0, words], wanted, atol=1e-6, rtol=1e-3)
    assert not padded[~mask.bool()].any()


def test_rectangular_images(pairs):
    model, images, ids, mask, _ = pairs
    height, width = model.config.image_size
    wide = AlbefModel(replace(model.config, image_size=(height, width - model.config.patch_size))).eval()
    rows, columns = wide.config.grid
    maps = word_maps(wide, images[..., : -model.config.patch_size], ids, mask)
    assert maps.shape == (*ids.shape, rows, columns) and rows == columns + 1
    assert torch.isfinite(maps).all() and (maps >= 0).all()


@pytest.mark.parametrize("layer", [99, -99])
def test_a_layer_that_is_not_there(pairs, layer):
    model, images, ids, mask, _ = pairs
    with pytest.raises(ValueError, match=f"layer {layer} doesn't exist; the fusion layers are 0 to"):
        word_maps(model, images, ids, mask, layer)
