"""Models stored in eight bits: how far a number moves, what stays as it was, and which files are refused."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from albef import cli
from albef.conversion import convert
from albef.data.processor import Processor
from albef.data.text import SPECIALS, build_tokenizer
from albef.errors import AlbefValueError
from albef.models import folders, int8
from albef.models.albef import AlbefModel
from albef.models.start import load_model
from tests.worlds import TINY

SMALL = replace(TINY, image_size=(64, 64), patch_size=32, trunk="efficientnet-lite0", vision_layers=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model upon a trunk as it was saved, and the folder that `--int8` makes of it."""
    folder = tmp_path_factory.mktemp("int8")
    torch.manual_seed(0)
    AlbefModel(SMALL).save_pretrained(folder / "whole")
    words = [*SPECIALS, *(f"word{n}" for n in range(SMALL.vocab_size - 5))]
    Processor(build_tokenizer(words), SMALL.image_size).save_pretrained(folder / "whole")
    cli.main(["convert", str(folder / "whole"), "--out", str(folder / "small"), "--int8"])
    return folder


def test_a_number_moves_by_half_a_step_at_most(saved):
    whole, small = (folders.load(saved / name)[1] for name in ("whole", "small"))
    stored = load_file(saved / "small" / "model.safetensors")
    packed = [name for name, value in stored.items() if value.dtype == torch.int8]
    assert len(packed) > 50
    for name, value in whole.items():
        if name not in packed:
            assert stored[name].dtype == torch.float16 and small[name].equal(value.half().float()), name
            continue
        scale, rows = stored[f"{name}.scale"], value.flatten(1)
        assert scale.equal(rows.abs().amax(1) / 127), name
        assert ((small[name].flatten(1) - rows).abs() <= scale[:, None] * 0.5001).all(), name


def test_what_is_small_stays_in_half_precision(saved):
    stored = load_file(saved / "small" / "model.safetensors")
    kept = ["text_encoder.position_embeddings.weight", "visual_encoder.pos_embed", "visual_encoder.cls_token", "temp"]
    kept += ["itm_head.weight", "visual_encoder.trunk.parts.1.0.depthwise.weight"]  # two rows; rows of nine numbers
    assert all(stored[name].dtype == torch.float16 for name in kept)
    wide = ["text_encoder.word_embeddings.weight", "visual_encoder.trunk.parts.8.0.weight"]
    assert all(stored[name].dtype == torch.int8 for name in wide)
    sizes = [(saved / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.3 * sizes[0]


def test_a_row_of_zeros_stays_zeros():
    rows = torch.zeros(32, 32)
    rows[0, 0], rows[1, 0] = -3.0, 1e-30
    again = int8.unpack(int8.pack({"some": rows}), "some file")["some"]
    torch.testing.assert_close(again, rows, rtol=1e-6, atol=0)


def test_the_file_says_what_it_holds(saved):
    with safe_open(saved / "small" / "model.safetensors", "pt") as file:
        assert "scale of each row" in file.metadata()["int8"]
    with safe_open(saved / "whole" / "model.safetensors", "pt") as file:
        assert "int8" not in file.metadata()


def test_it_says_nearly_the_same(saved):
    whole, small = (load_model(saved / name) for name in ("whole", "small"))
    torch.manual_seed(1)
    words = torch.randint(5, SMALL.vocab_size, (8, 6))
    inputs = torch.randn(8, 3, 64, 64), words, torch.ones_like(words)
    with torch.no_grad():
        expected, found = whole(*inputs), small(*inputs)
    assert (expected.image_vectors * found.image_vectors).sum(1).min() > 0.99
    assert (expected.text_vectors * found.text_vectors).sum(1).min() > 0.99


def test_it_can_be_stored_once_more(saved, tmp_path):
    """What is stored so, read and stored again is the same."""
    assert "in int8, with a scale" in convert(checkpoint=saved / "small", out=tmp_path / "again", int8=True)
    first, again = (folders.load(folder)[1] for folder in (saved / "small", tmp_path / "again"))
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("fault", ["without", "too short", "left over"])
def test_other_scales_are_refused(saved, tmp_path, fault):
    name, state = "text_encoder.word_embeddings.weight", load_file(saved / "small" / "model.safetensors")
    if fault == "without":
        del state[f"{name}.scale"]
    elif fault == "too short":
        state[f"{name}.scale"] = state[f"{name}.scale"][1:].clone()
    else:
        state[name] = state[name].float()
    (tmp_path / "config.json").write_text((saved / "whole" / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors")
    refused = {"left over": f"1 tensor left over: {name}.scale"}
    with pytest.raises(AlbefValueError, match=refused.get(fault, f"{name} .* is int8 and needs {name}.scale")):
        load_model(tmp_path)


@pytest.mark.parametrize("other", [{"half": True, "out": "out"}, {"to_official": "model.pth"}])
def test_what_does_not_go_with_it(saved, tmp_path, other):
    places = {name: tmp_path / value if isinstance(value, str) else value for name, value in other.items()}
    with pytest.raises(AlbefValueError, match="--half"):
        convert(checkpoint=saved / "whole", int8=True, **places)
