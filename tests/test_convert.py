"""Published files of other sizes, and files that are no checkpoint: what is read, and what the errors say."""

import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.convert import convert_file, initial_model, read_checkpoint
from albef.models.names import to_official
from albef.objectives.pretrain import PretrainObjective, load_objective

CONFIG = AlbefConfig(
    image_size=(24, 24),
    patch_size=8,
    vision_width=64,
    vision_layers=1,
    vision_heads=1,
    text_width=128,
    text_layers=1,
    fusion_layers=3,
    text_heads=2,
    text_intermediate=96,
    vocab_size=50,
    max_positions=20,
    embed_dim=16,
)
QUEUE = {"image_queue": torch.randn(16, 6), "text_queue": torch.randn(16, 6), "queue_ptr": torch.tensor([4])}


@pytest.fixture(scope="module")
def model():
    return AlbefModel(CONFIG)


@pytest.fixture
def official(model):
    return to_official(model.state_dict(), CONFIG) | QUEUE


@pytest.fixture
def saved(official, tmp_path):
    """Saves a changed state: `saved({"name": tensor or None to leave it out})` -> path."""

    def save(changes=(), drop=()):
        state = {name: tensor for name, tensor in (official | dict(changes)).items() if name not in drop}
        torch.save({"model": state, "optimizer": {}}, tmp_path / "some.pth")
        return tmp_path / "some.pth"

    return save


def test_sizes_and_64_wide_heads_are_inferred(saved, model):
    read = read_checkpoint(saved())
    assert read.config == CONFIG and read.teacher is None and read.notes == ("dropped optimizer",)
    assert read.model.keys() == model.state_dict().keys()
    assert all(tensor.equal(read.model[name]) for name, tensor in model.state_dict().items())
    assert (
        read.queue is not None
        and read.queue["text_queue"].equal(QUEUE["text_queue"].T)
        and int(read.queue["pointer"]) == 4
    )


def test_rectangular_target(saved):
    read = read_checkpoint(saved(), image_size=(16, 40))
    assert read.config.grid == (2, 5) and read.model["visual_encoder.pos_embed"].shape == (1, 11, 64)


def test_safetensors(official, tmp_path, model):
    state = {name: tensor.contiguous().clone() for name, tensor in official.items()}
    save_file(state, tmp_path / "some.safetensors")
    assert read_checkpoint(tmp_path / "some.safetensors").config == CONFIG


LAYER = "text_encoder.bert.encoder.layer"


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({}, ["itm_head.bias"], "1 tensor missing: itm_head.bias"),
        ({}, [f"{LAYER}.2.crossattention.self.key.bias"], r"1 tensor missing: .*layer\.2\.crossattention\.self\.key"),
        ({"itm_head.scale": torch.zeros(2)}, [], "1 tensor left over: itm_head.scale"),
        (
            {"ta_head.bias": torch.zeros(2), "new.bias": torch.zeros(2)},
            [],
            "2 tensors left over: new.bias, ta_head.bias",
        ),
        ({f"{LAYER}.1.output.dense.bias": torch.zeros(5)}, [], r"another shape.*expected \[128\], got \[5\]"),
        ({f"{LAYER}.9.output.dense.bias": torch.zeros(128)}, [], "tensors? missing|left over"),
        (
            {"text_encoder.cls.predictions.decoder.bias": torch.ones(50)},
            [],
            "decoder.bias must be the same as .*damaged",
        ),
        ({"text_encoder.bert.embeddings.position_ids": torch.ones(1, 20)}, [], "position_ids must count from 0"),
        ({}, ["vision_proj.weight"], "not a pre-training or retrieval checkpoint.*vision_proj.weight"),
        ({"visual_encoder.pos_embed": torch.zeros(64)}, [], "missing or of another shape: visual_encoder.pos_embed"),
        ({"visual_encoder.pos_embed": torch.zeros(1, 9, 64)}, [], "8 patches, which make no square grid"),
        ({}, ["queue_ptr"], "expected image_queue and text_queue of one shape and queue_ptr"),
        ({"text_queue": torch.zeros(16, 5)}, [], "queue.* of one shape"),
        ({"queue_ptr": torch.zeros(2)}, [], "queue.* of one shape and queue_ptr"),
        ({"vision_proj_m.weight": torch.zeros(16, 64)}, [], "momentum model of .*missing"),
        ({"itm_head.bias": "text"}, [], "holds no weights"),
    ],
)
def test_tensors_that_do_not_fit(saved, changes, drop, message):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(saved(changes, drop))


def test_heads_that_are_not_64_wide_must_be_given(tmp_path):
    config = replace(CONFIG, vision_width=48, vision_heads=3)
    torch.save(to_official(AlbefModel(config).state_dict(), config), tmp_path / "some.pth")
    with pytest.raises(ValueError, match="vision width 48 is not made of 64-wide heads; give vision_heads"):
        read_checkpoint(tmp_path / "some.pth")
    assert read_checkpoint(tmp_path / "some.pth", vision_heads=3).config == config


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken", "cut"])
def test_broken_files(saved, content):
    path = saved()
    path.write_bytes(path.read_bytes()[:-2000] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"some.pth is not a checkpoint, or is broken; .*fetch it again"):
        read_checkpoint(path)


class Command:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the code in the file was run')",))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(tmp_path, legacy):
    path = tmp_path / "some.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"model": Command()}, protocol=2))
    else:
        torch.save({"model": Command()}, path)
    with pytest.raises(ValueError, match=r"some.pth holds Python objects, which could run code"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{}, {"model": {}}, [1, 2], {"epoch": 3}, torch.zeros(3)])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "some.pth")
    with pytest.raises(ValueError, match="holds no weights: expected named tensors"):
        read_checkpoint(tmp_path / "some.pth")


def test_missing_file(tmp_path):
    for path in (tmp_path, tmp_path / "some.pth"):
        with pytest.raises(FileNotFoundError, match="no such file; give a checkpoint"):
            read_checkpoint(path)


def test_vocabulary_of_another_size(saved, tmp_path):
    with pytest.raises(ValueError, match="knows 50 words, but the vocabulary has 2"):
        convert_file(saved(), tmp_path / "out", vocabulary=["a", "b"])
    assert not (tmp_path / "out").exists()


def test_objective_of_other_sizes(saved, model):
    read = read_checkpoint(saved())
    with pytest.raises(ValueError, match=r"queue does not fit.*expected \[7, 16\], got \[6, 16\]"):
        load_objective(PretrainObjective(model, queue_size=7), read)
    with pytest.raises(ValueError, match="model does not fit"):
        load_objective(PretrainObjective(AlbefModel(replace(CONFIG, text_layers=2)), queue_size=6), read)


def test_starting_files_that_do_not_fit(official, tmp_path):
    path = tmp_path / "deit.pth"
    image = {n.removeprefix("visual_encoder."): t for n, t in official.items() if n.startswith("visual_encoder.")}
    torch.save({"model": image | {"dist_token": torch.zeros(1, 1, 64)}}, path)
    with pytest.raises(ValueError, match=r"1 tensor left over: visual_encoder.dist_token"):
        initial_model(CONFIG, deit_path=path)
    torch.save({"model": image}, path)
    larger = replace(CONFIG, image_size=(40, 32))
    assert initial_model(larger, deit_path=path).visual_encoder.pos_embed.shape == (1, 21, 64)
    with pytest.raises(ValueError, match=r"missing.*text_encoder"):
        initial_model(CONFIG, bert_path=path)
    deeper = replace(CONFIG, vision_layers=2)
    with pytest.raises(ValueError, match=r"12 tensors missing: visual_encoder\.blocks\.1"):
        initial_model(deeper, deit_path=path)
