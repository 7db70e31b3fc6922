"""The hybrid image encoder: its trunk as it was published, what is frozen, what is learnt, what is made of it."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from albef.conversion import convert
from albef.data.processor import IMAGENET_MEAN, Processor
from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.models.config import TRUNKS, AlbefConfig
from albef.models.flops import image_flops, pretraining_flops
from albef.models.names import from_efficientnet, to_official
from albef.models.start import load_model
from albef.models.trunk import Trunk
from albef.objectives.momentum import MomentumTeacher
from albef.objectives.pretrain import PretrainObjective
from albef.tasks import make_task
from albef.tasks.grounding import similarity_maps, word_maps
from tests.worlds import TINY, make_world, tiny_recipe

GOLDEN = Path(__file__).parent / "golden" / "trunk"
MAKE = runpy.run_path(str(GOLDEN / "make.py"))
MAPS = json.loads((GOLDEN / "maps.json").read_text())
HYBRID = replace(TINY, image_size=(64, 64), patch_size=32, trunk="efficientnet-lite0", vision_layers=1)


def published(trunk):
    """A file of the published layout, made by the formula."""
    blocks = {"efficientnet-lite0": 16}.get(trunk, 21)
    shapes = {"_fc.weight": (10, 1280), "_fc.bias": (10,), "_bn0.num_batches_tracked": ()}
    shapes |= {f"_blocks.{i}._bn1.num_batches_tracked": () for i in range(blocks)}
    layers = Trunk(AlbefConfig(trunk=trunk, patch_size=32)).parts
    state = {}

    def add(convolution, norm, layer):
        shapes[f"{convolution}.weight"] = tuple(layer.weight.shape)
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{statistic}"] = tuple(layer.bias.shape)

    add("_conv_stem", "_bn0", layers[0][0])
    add("_conv_head", "_bn1", layers[8][0])
    for i, block in enumerate(block for part in layers[1:8] for block in part):
        if block.expand is not None:
            add(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", block.expand)
        add(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", block.depthwise)
        add(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", block.project)
    return state | {name: MAKE["weights"](name, shape) for name, shape in shapes.items()}


def trunk_of(state, **changes):
    name, tensors = from_efficientnet(state)
    trunk = Trunk(AlbefConfig(trunk=name, patch_size=32, **changes))
    own = {name.removeprefix("visual_encoder.trunk."): tensor for name, tensor in tensors.items()}
    assert own.keys() == {name for name in trunk.state_dict() if name.startswith("parts.")}
    trunk.to(own["parts.0.0.weight"].dtype).load_state_dict(own, strict=False)
    return trunk


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_published_implementation(trunk):
    parts = trunk_of({name: tensor.double() for name, tensor in published(trunk).items()}).parts
    for height, width in MAKE["SIZES"]:
        x, seen = MAKE["noise"]("image", (1, 3, height, width)) * 4, {}
        for index, part in enumerate(parts):
            x = seen[index] = part(x).detach()
        for name, index in MAKE["MAPS"].items():
            wanted = MAPS[f"{trunk} {height}x{width} {name}"]
            assert MAKE["looked_at"](seen[index]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_a_file_that_is_no_trunk():
    state = published("efficientnet-lite2")
    assert from_efficientnet(state)[0] == "efficientnet-lite2"
    without = {name: tensor for name, tensor in state.items() if name != "_blocks.3._bn1.running_var"}
    with pytest.raises(
        AlbefValueError, match=r"F is none of .*as efficientnet-lite2: 1 tensor missing: _blocks.3._bn1"
    ):
        from_efficientnet(without, "F")
    with pytest.raises(AlbefValueError, match=r"1 tensor left over: _conv_more.weight"):
        from_efficientnet(state | {"_conv_more.weight": torch.zeros(1)})
    wide = {"_conv_head.weight": torch.zeros(1280, 400, 1, 1)}
    with pytest.raises(AlbefValueError, match=r"another shape: _conv_head.weight \(expected \[1280, 352, 1, 1\]"):
        from_efficientnet(state | wide)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("trained", [0, 1, 2, 3, 4, 9])
def test_frozen_features_stand_in_place_of_images(levels, trained):
    """One tensor, whatever it holds: with 3 trained parts the second level lies where the frozen ones end."""
    torch.manual_seed(0)
    model = AlbefModel(replace(HYBRID, trunk_levels=levels, trunk_trained=trained, image_size=(64, 96)))
    pixels = torch.randn(2, 3, 64, 96)
    features = model.frozen_features(pixels)
    assert features.shape[1:] == model.visual_encoder.trunk.frozen_shape and not features.requires_grad
    assert (features is pixels) == (trained == 9) or features.equal(pixels)
    assert model.encode_image(features).equal(model.encode_image(pixels))
    pairs = model.frozen_features(pixels[None])
    assert pairs.shape == (1, *features.shape) and pairs[0].equal(features)
    model.encode_image(pixels).sum().backward()
    parts = model.visual_encoder.trunk.parts
    learnt = [all(p.grad is not None for p in part.parameters()) for part in parts]
    assert learnt == [False] * (9 - trained) + [True] * trained
    assert all(p.requires_grad == known for part, known in zip(parts, learnt, strict=True) for p in part.parameters())


def test_channels_of_the_features():
    shapes = {
        (trained, levels): AlbefModel(
            replace(HYBRID, image_size=(224, 224), trunk_trained=trained, trunk_levels=levels)
        ).visual_encoder.trunk.frozen_shape
        for trained, levels in ((0, 1), (0, 2), (1, 2), (2, 2), (3, 2), (3, 1), (9, 2))
    }
    assert shapes == {
        (0, 1): (320, 7, 7),
        (0, 2): (320 + 448, 7, 7),
        (1, 2): (320 + 448, 7, 7),
        (2, 2): (192 + 448, 7, 7),
        (3, 2): (112, 14, 14),
        (3, 1): (112, 14, 14),
        (9, 2): (3, 224, 224),
    }


def test_the_second_level_is_read():
    torch.manual_seed(0)
    model = AlbefModel(replace(HYBRID, trunk_levels=2))
    features = model.frozen_features(torch.randn(1, 3, 64, 64))
    changed = features.clone()
    changed[:, 320:, 0, 0] += 1
    difference = (model.visual_encoder._embed(changed) - model.visual_encoder._embed(features)).abs().amax(-1)[0]
    assert (difference > 0).tolist() == [False, True, False, False, False], "its own place, not the whole image's token"


def test_tokens_have_size_one():
    """With the sizes that the published trunks' maps have."""
    torch.manual_seed(0)
    for config in (HYBRID, replace(HYBRID, init_std=0.02)):
        trunk = AlbefModel(
            replace(config, vision_width=256, trunk_levels=2, image_size=(224, 224))
        ).visual_encoder.trunk
        last, mean, second = (torch.randn(400, size) for size in (1280, 1280, 448))
        for linear, x in ((trunk.top, last * 0.87), (trunk.mean, mean * 0.43), (trunk.second, second * 7.1)):
            assert linear(x).std().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk": "resnet50"}, "unknown trunk 'resnet50'; the trunks are efficientnet-lite0,"),
        (
            {"patch_size": 16},
            "patch_size 16 does not fit efficientnet-lite0, whose stride is 32 pixels; set patch_size",
        ),
        ({"image_size": (224, 260)}, "260 is not a multiple of patch_size 32; the nearest that fits is 256 for 260"),
        ({"trunk_levels": 3}, "trunk_levels 3 must be 1, the last map alone, or 2"),
        ({"trunk_trained": 10}, "trunk_trained 10 must be from 0"),
    ],
)
def test_impossible_trunks_are_errors(changes, message):
    with pytest.raises(AlbefValueError, match=message):
        replace(HYBRID, **changes)


def test_features_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected \[batch, 3, 64, 64\].* got \[1, 320, 3, 3\]"):
        AlbefModel(HYBRID).encode_image(torch.zeros(1, 320, 3, 3))


def test_no_blocks_at_all_and_one_that_is_recorded():
    torch.manual_seed(0)
    assert AlbefModel(replace(HYBRID, vision_layers=0)).encode_image(torch.randn(2, 3, 64, 64)).shape == (2, 5, 32)
    model = AlbefModel(HYBRID).eval()
    pixels, ids, mask = torch.randn(2, 3, 64, 64), torch.randint(5, 99, (2, 4)), torch.ones(2, 4).long()
    learning = similarity_maps(model, pixels, ids, mask)
    frozen = similarity_maps(model.requires_grad_(False), pixels, ids, mask)
    assert learning.shape == (2, 2, 2) and learning.sum() > 0 and frozen.equal(learning)
    assert word_maps(model, pixels, ids, mask).shape == (2, 4, 2, 2)


def test_saved_and_at_another_size(tmp_path):
    model = AlbefModel(replace(HYBRID, trunk_trained=2)).eval()
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    assert again.config == model.config and again.encode_image(pixels).equal(model.encode_image(pixels))
    larger = load_model(tmp_path, 256)
    assert larger.visual_encoder.pos_embed.shape == (1, 65, 32)
    assert larger.encode_image(torch.randn(1, 3, 256, 256)).shape == (1, 65, 32)


def test_loading_draws_nothing(tmp_path):
    AlbefModel(HYBRID).save_pretrained(tmp_path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.get_rng_state().equal(before)


def batch_of(count):
    torch.manual_seed(count)
    ids = torch.randint(5, 120, (count, 6))
    ids[:, 0], rows = 2, torch.arange(count)
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_id": rows, "text_id": rows}
    return {"pixel_values": torch.randn(count, 3, 64, 64), **texts}


@pytest.mark.parametrize(("trained", "levels"), [(0, 1), (2, 2), (9, 1)])
def test_a_pretraining_learns(trained, levels):
    torch.manual_seed(0)
    model = AlbefModel(replace(HYBRID, trunk_trained=trained, trunk_levels=levels))
    objective = PretrainObjective(model, queue_size=16, momentum=0.9, mask_id=4, cls_id=2).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch, itc = batch_of(8), []
    batch["pixel_values"] = model.frozen_features(batch["pixel_values"])
    for step in range(8):
        torch.manual_seed(step)
        losses = objective(batch, 0.0)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        itc.append(losses["itc"].item())
    assert itc[-1] < itc[0] - 0.5
    taught = objective.teacher.model.visual_encoder.trunk.parts
    for index, part in enumerate(model.visual_encoder.trunk.parts):
        own, frozen = taught[index], index < 9 - trained
        for name, tensor in part.state_dict().items():
            assert tensor.equal(before[f"visual_encoder.trunk.parts.{index}.{name}"]) == frozen
            assert own.state_dict()[name].equal(tensor) == frozen


def test_the_teacher_shares_what_is_frozen():
    model = AlbefModel(replace(HYBRID, trunk_trained=2))
    teacher = MomentumTeacher(model, 0.9)
    shared = [mine is other for mine, other in zip(teacher.model.parameters(), model.parameters(), strict=True)]
    assert shared == [not parameter.requires_grad for parameter in model.parameters()] and any(shared)
    assert teacher.model.visual_encoder.trunk.parts[0] is not model.visual_encoder.trunk.parts[0]
    teacher.update(model)
    teacher.copy(model)
    names = [name for name, _ in torch.nn.ModuleDict({"model": model, "teacher": teacher}).named_parameters()]
    assert "model.visual_encoder.trunk.parts.0.0.weight" in names
    assert "teacher.model.visual_encoder.trunk.parts.0.0.weight" not in names


def test_a_start_from_a_file(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    small = replace(TINY, text_width=64, text_heads=1, vocab_size=len(words))
    text = to_official(AlbefModel(small).state_dict(), small)
    text = {name.removeprefix("text_encoder."): one for name, one in text.items() if name.startswith("text_encoder.")}
    torch.save({n: tensor for n, tensor in text.items() if "crossattention" not in n}, tmp_path / "bert.bin")
    torch.save(published("efficientnet-lite0"), tmp_path / "trunk.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    files = {"trunk": tmp_path / "trunk.pth", "bert": tmp_path / "bert.bin", "vocabulary": tmp_path / "vocab.txt"}
    assert "upon efficientnet-lite0 1 image" in convert(**files, out=tmp_path / "start")
    assert load_model(tmp_path / "start").config.vision_width == 64, "the text's"
    sizes = {"image_size": 64, "vision_width": 128, "vision_layers": 2, "trunk_levels": 2}
    assert "upon efficientnet-lite0 2 image, 1 text" in convert(**files, **sizes, out=tmp_path / "start")
    model, processor = load_model(tmp_path / "start"), Processor.from_pretrained(tmp_path / "start")
    config = model.config
    assert (config.trunk, config.patch_size, config.trunk_levels) == ("efficientnet-lite0", 32, 2)
    assert (config.vision_width, config.vision_layers, config.vision_heads) == (128, 2, 2)
    assert processor.mean == IMAGENET_MEAN and processor.image_size == (64, 64)
    for name, tensor in from_efficientnet(published("efficientnet-lite0"))[1].items():
        assert model.state_dict()[name].equal(tensor)
    with pytest.raises(AlbefValueError, match="images go through efficientnet-lite0, which the original does not know"):
        convert(checkpoint=tmp_path / "start", to_official=tmp_path / "model.pth")
    with pytest.raises(AlbefValueError, match=r"--deit .* and --trunk .* both are image encoders"):
        convert(**files, deit=tmp_path / "deit.pth", out=tmp_path / "other")
    with pytest.raises(AlbefValueError, match="--vision-layers 2 is of an image encoder upon a trunk; give --trunk"):
        convert(deit=tmp_path / "deit.pth", vision_layers=2, out=tmp_path / "other")


def test_flops():
    """EfficientNet-Lite0 needs 0.4 billion multiply-adds at 224 pixels, as its makers say."""
    large = replace(HYBRID, image_size=(224, 224), vision_layers=0)
    assert image_flops(large) == pytest.approx(2 * 0.4e9, rel=0.1)
    frozen, whole = (pretraining_flops(replace(large, trunk_trained=n), 10, fuse=False) for n in (0, 9))
    assert whole - frozen == pytest.approx(3 * image_flops(large), rel=0.05)


def test_a_step_computes_frozen_parts_once(tmp_path):
    """For student and teacher together; what is learnt is computed for each."""
    recipe = tiny_recipe(make_world(tmp_path), model=replace(HYBRID, trunk_trained=2))
    task = make_task(recipe, None)
    seen = []
    for index in (0, 8):
        for model in (task.model, task.objective.teacher.model):
            part = model.visual_encoder.trunk.parts[index]
            part.register_forward_hook(lambda module, inputs, output, index=index: seen.append(index))
    batch = task.prepare(next(task.batches(0)), torch.device("cpu"))
    sum(task.losses(task.objective.train(), batch, 0, 0.5).values()).backward()
    assert sorted(seen) == [0, 8, 8]
