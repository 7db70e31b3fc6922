"""The network: shapes, fast paths against the plain ones, initialisation, saving."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.models.classifier import AlbefForClassification
from albef.models.config import AlbefConfig, preset
from albef.models.layers import CrossAttention, FeedForward, SelfAttention
from albef.models.seen import KeysValues
from albef.models.vit import Block, resize_positions
from tests.worlds import TINY


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AlbefModel(TINY).eval()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    ids = torch.randint(5, 120, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    return torch.randn(3, 3, 32, 32), ids, mask


def fused(model, inputs, **options):
    pixels, ids, mask = inputs
    keys_values = model.fusion_encoder.keys_values(model.encode_image(pixels))
    return model.fuse(model.encode_text(ids, mask), mask, keys_values, **options)


def test_base_has_the_papers_parameters():
    with torch.device("meta"):
        model = AlbefModel(preset("base"))
    assert sum(p.numel() for p in model.parameters()) == 209_937_725


def test_features_are_unit_vectors(model, inputs):
    pixels, ids, mask = inputs
    z_image = model.project_image(model.encode_image(pixels))
    z_text = model.project_text(model.encode_text(ids, mask))
    assert z_image.shape == z_text.shape == (3, 16)
    torch.testing.assert_close(z_image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(z_text.norm(dim=-1), torch.ones(3))


def test_padding_changes_nothing(model, inputs):
    pixels, ids, mask = inputs
    alone = fused(model, (pixels[2:], ids[2:, :2], mask[2:, :2]))
    torch.testing.assert_close(fused(model, inputs)[2:, :2], alone, atol=1e-5, rtol=1e-5)


def test_first_token_alone_equals_the_whole_pass(model, inputs):
    torch.testing.assert_close(fused(model, inputs, cls_only=True), fused(model, inputs)[:, :1], atol=1e-5, rtol=1e-5)


def test_recorded_attention_is_the_fused_kernels(model, inputs):
    for layer in range(2):
        record: list[torch.Tensor] = []
        explicit = fused(model, inputs, record=record, record_layer=layer)
        torch.testing.assert_close(explicit, fused(model, inputs), atol=1e-5, rtol=1e-5)
        assert len(record) == 1 and record[0].shape == (3, 2, 7, 17)
        torch.testing.assert_close(record[0].sum(-1), torch.ones(3, 2, 7))


def test_one_image_serves_many_texts(model, inputs):
    pixels, ids, mask = inputs
    states = model.encode_text(ids, mask)
    keys_values = model.fusion_encoder.keys_values(model.encode_image(pixels[:1]))
    torch.testing.assert_close(
        model.fuse(states, mask, keys_values),
        model.fuse(states, mask, keys_values[torch.zeros(3, dtype=torch.long)]),
        atol=1e-5,
        rtol=1e-5,
    )


def test_gradient_checkpointing_gives_the_same_gradients(inputs):
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = AlbefModel(TINY).train()
        model.gradient_checkpointing(checkpointed)
        model.match(fused(model, inputs)).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m.encode_image(torch.zeros(2, 3, 32, 40)), r"expected \[batch, 3, 32, 32\], got \[2, 3, 32, 40\]"),
        (lambda m: m.encode_text(torch.zeros(2, 5).long(), torch.ones(2, 4)), r"got \[2, 5\] and \[2, 4\]"),
        (lambda m: m.encode_text(torch.zeros(1, 41).long(), torch.ones(1, 41)), "at most 40 tokens, got 41"),
        (
            lambda m: m.fuse(torch.zeros(3, 2, 32), torch.ones(3, 2), KeysValues([torch.zeros(2, 17, 64)])),
            "expected 1 or 3 rows, one per text, got 2",
        ),
    ],
)
def test_wrong_shapes_say_what_was_expected(model, call, said):
    with pytest.raises(ValueError, match=said):
        call(model)


@pytest.mark.parametrize("values", [{"image_size": (30, 32)}, {"vision_heads": 5}, {"text_heads": 3}])
def test_impossible_configurations_are_errors(values):
    with pytest.raises(ValueError, match="multiple"):
        replace(TINY, **values)


def test_official_initialisation():
    torch.manual_seed(0)
    config = replace(preset("base"), vision_layers=1, text_layers=1, fusion_layers=1, vocab_size=1000)
    model = AlbefModel(config)
    for weight in (
        model.visual_encoder.pos_embed,
        model.visual_encoder.blocks[0].qkv.weight,
        model.text_encoder.word_embeddings.weight,
        model.fusion_encoder.image_keys_values[0].weight,
        model.mlm_head.dense.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.text_encoder.layers[0].self_attention.qkv.bias.any()
    # PyTorch's default: uniform within 1 / sqrt(inputs)
    assert model.vision_proj.weight.abs().max().item() == pytest.approx(768**-0.5, rel=0.01)
    assert model.vision_proj.bias.any() and model.visual_encoder.patch_embed.bias.any()
    assert model.temp.item() == pytest.approx(0.07)


def test_positions_resize_to_any_rectangle():
    positions = torch.randn(1, 1 + 4 * 4, 8)
    wide = resize_positions(positions, (4, 4), (3, 7))
    assert wide.shape == (1, 22, 8)
    torch.testing.assert_close(wide[:, 0], positions[:, 0])
    constant = resize_positions(torch.ones(1, 17, 8), (4, 4), (3, 7))
    torch.testing.assert_close(constant, torch.ones(1, 22, 8))
    with pytest.raises(ValueError, match="expected 21 positions"):
        resize_positions(positions, (4, 5), (3, 7))


def test_saved_model_comes_back(tmp_path, model, inputs):
    model.save_pretrained(tmp_path)
    again = AlbefModel.from_pretrained(tmp_path)
    torch.testing.assert_close(fused(again, inputs), fused(model, inputs), atol=0, rtol=0)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "albef"
    assert AlbefConfig.from_dict(json.loads((tmp_path / "config.json").read_text())) == TINY


def test_saved_model_at_another_size(tmp_path, model):
    model.save_pretrained(tmp_path)
    wide = AlbefModel.from_pretrained(tmp_path, image_size=(32, 64))
    assert wide.encode_image(torch.zeros(1, 3, 32, 64)).shape == (1, 33, 32)


def test_weights_of_another_model_are_refused(tmp_path, model):
    replaced = AlbefModel(replace(TINY, vision_layers=3, embed_dim=8))
    replaced.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vision_layers": 2, "embed_dim": 16}))
    with pytest.raises(
        ValueError, match=r"12 tensors left over: visual_encoder.blocks.2.*of another shape.*got \[8"
    ) as error:
        AlbefModel.from_pretrained(tmp_path)
    assert "convert" in str(error.value)


def test_half_precision_halves_the_file(tmp_path, model):
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "half", torch.float16)
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("full", "half")]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    assert AlbefModel.from_pretrained(tmp_path / "half").temp.dtype == torch.float32


def test_missing_model_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved model here.*albef convert"):
        AlbefModel.from_pretrained(tmp_path)


def test_loading_draws_nothing_and_needs_no_second_device(tmp_path, model):
    """Random weights of a base model took seconds, the meta device's import another one."""
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again = AlbefModel.from_pretrained(tmp_path)
    assert torch.get_rng_state().equal(before)
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in again.state_dict().items())
    code = (
        f"import sys; from albef.models.albef import AlbefModel; AlbefModel.from_pretrained({str(tmp_path)!r}); "
        "assert 'sympy' not in sys.modules, 'the meta device was used'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_config_json_may_say(tmp_path):
    AlbefForClassification(TINY).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for change, said in (
        ({"vision_layer": 3}, "config.json: unknown vision_layer; there are image_size, .*and besides"),
        ({"labels": None}, f"{tmp_path}: config.json lacks labels, which an AlbefForClassification needs"),
    ):
        changed = {name: value for name, value in {**values, **change}.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(AlbefValueError, match=said):
            AlbefForClassification.from_pretrained(tmp_path)


def test_the_sum_through_the_layers_stays_in_float32(model, inputs):
    """The CPU's autocast leaves a norm in the type that it is given, CUDA's makes it float32: here both are."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.LayerNorm, Block, SelfAttention, CrossAttention, FeedForward)):
            module.register_forward_hook(lambda _, __, output, name=name: found.update({name: output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        said = model(*inputs)
    assert len(found) > 15 and set(found.values()) == {torch.float32}
    assert said.match_logits.dtype == torch.bfloat16 and said.image_vectors.dtype == torch.float32
    for module in model.modules():
        module._forward_hooks.clear()
