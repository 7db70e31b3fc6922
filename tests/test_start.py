"""Which start fits which model: what is copied, what is new, what is refused, and what the report says."""

import json
from dataclasses import replace

import pytest
import torch

from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.models.config import AlbefConfig
from albef.models.folders import save_training
from albef.models.names import ARCHITECTURES
from albef.models.start import load_model, load_start, start_from

CONFIG = AlbefConfig(
    image_size=(16, 16),
    patch_size=8,
    vision_width=8,
    vision_layers=1,
    vision_heads=2,
    text_width=16,
    text_layers=1,
    fusion_layers=2,
    text_heads=2,
    text_intermediate=24,
    vocab_size=30,
    max_positions=12,
    embed_dim=4,
)
TUNED = replace(CONFIG, mlm_head=False)
EVEN = replace(CONFIG, vision_width=16)  # images and texts of one width


@pytest.fixture(scope="module")
def pretrained():
    return AlbefModel(CONFIG).state_dict()


def assert_copied(model, state, names):
    own = model.state_dict()
    for ours, theirs in names.items():
        assert own[ours].equal(state[theirs]), ours


def test_retrieval_drops_the_mlm_head_and_resizes(pretrained):
    model = AlbefModel(TUNED.at_size((16, 24)))
    report = start_from(model, pretrained, CONFIG, "START")
    taken = len(model.state_dict())
    assert report == [f"copied {taken} tensors", "dropped: mlm_head", "positions resized from 2 x 2 to 2 x 3"]
    assert_copied(model, pretrained, {name: name for name in model.state_dict() if "pos_embed" not in name})
    assert start_from(model, model.state_dict(), model.config, "START") == [f"copied {taken} tensors"]


def test_decoder_starts_from_the_fusion_layers():
    state = AlbefModel(EVEN).state_dict()
    model = AlbefForAnswering(replace(EVEN, mlm_head=False))
    report = start_from(model, state, EVEN, "START")
    assert report[1:] == ["dropped: itm_head, temp, text_proj, vision_proj"]
    names = {
        "decoder.words.word_embeddings.weight": "text_encoder.word_embeddings.weight",
        "decoder.words.norm.bias": "text_encoder.norm.bias",
        "decoder.layers.1.cross_attention.query.weight": "fusion_encoder.layers.1.cross_attention.query.weight",
        "decoder.question_keys_values.1.weight": "fusion_encoder.image_keys_values.1.weight",
        "decoder.head.dense.weight": "mlm_head.dense.weight",
    }
    assert_copied(
        model,
        state,
        names | {"fusion_encoder.layers.1.feed_forward.fc1.bias": "fusion_encoder.layers.1.feed_forward.fc1.bias"},
    )


def test_what_a_decoder_may_lack():
    model, state = AlbefForAnswering(TUNED), AlbefModel(TUNED).state_dict()
    before = model.decoder.question_keys_values[0].weight.clone()
    report = start_from(model, state, TUNED, "START")
    assert report[1] == (
        "new: decoder.head (the start has no MLM head), decoder.question_keys_values (made for images of another width)"
    )
    assert model.decoder.question_keys_values[0].weight.equal(before)


def test_pairs_start_from_twice_each_fusion_layer(pretrained):
    model = AlbefForTextAssignment(TUNED)
    report = start_from(model, pretrained, CONFIG, "START")
    assert report[1:] == ["new: ta_head (for this task)", "dropped: itm_head, mlm_head, temp, text_proj"]
    qkv = "self_attention.qkv.weight"
    layers = {f"pair_encoder.layers.{i}.{qkv}": f"fusion_encoder.layers.{i // 2}.{qkv}" for i in range(4)}
    kv = {"pair_encoder.image_keys_values.0.bias": "fusion_encoder.image_keys_values.0.bias"}
    assert_copied(model, pretrained, layers | kv | {"vision_proj.weight": "vision_proj.weight"})
    pairs = AlbefForPairs(TUNED)
    report = start_from(pairs, model.state_dict(), TUNED, "TA")
    assert report[1:] == ["new: cls_head (for these labels)", "dropped: ta_head, vision_proj"]
    own = [name for name in pairs.state_dict() if not name.startswith("cls_head")]
    assert_copied(pairs, model.state_dict(), {name: name for name in own})


def test_head_of_the_same_labels_is_kept(tmp_path):
    saved = AlbefForClassification(TUNED)
    saved.save_pretrained(tmp_path)
    same, other = AlbefForClassification(TUNED), AlbefForClassification(TUNED, ("yes", "maybe", "no"))
    fewer = AlbefForClassification(TUNED, ("yes", "no"))
    fresh = {model: model.cls_head[0].weight.clone() for model in (other, fewer)}
    assert not any("cls_head" in line for line in load_start(same, tmp_path)[0])
    assert_copied(same, saved.state_dict(), {"cls_head.2.weight": "cls_head.2.weight"})
    for model, before in fresh.items():
        report = load_start(model, tmp_path)[0]
        assert any(line.startswith("new: cls_head") for line in report)
        assert any("dropped: cls_head, whose labels are contradiction" in line for line in report)
        assert model.cls_head[0].weight.equal(before)


@pytest.mark.parametrize("labels", [("yes", "no"), ("yes", "maybe", "no")])
def test_teacher_takes_what_is_new_from_the_model(tmp_path, pretrained, labels):
    AlbefModel(CONFIG).save_pretrained(tmp_path)
    taught = {name: tensor + 1 for name, tensor in pretrained.items()}
    save_training(tmp_path, taught, None)
    model = AlbefForClassification(TUNED.at_size(24), labels)
    _, teacher, _ = load_start(model, tmp_path)
    assert teacher is not None
    assert teacher.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        if name.startswith("cls_head"):
            assert teacher[name].equal(tensor) and teacher[name].data_ptr() != tensor.data_ptr()
        elif "pos_embed" not in name:
            assert teacher[name].equal(taught[name])


def test_start_without_a_teacher(tmp_path):
    AlbefModel(CONFIG).save_pretrained(tmp_path)
    report, teacher, _ = load_start(AlbefModel(TUNED), tmp_path)
    assert teacher is None and report[0].startswith("copied")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (AlbefModel, {"vision_width": 12}, r"START has other sizes than the model: vision_width 8 \(model: 12\)\. "),
        (AlbefModel, {"text_layers": 2, "vocab_size": 40}, r"text_layers 1 \(model: 2\), vocab_size 30 \(model: 40\)"),
        (AlbefForPairs, {"fusion_layers": 1}, r"fusion_layers 2 \(model: 1\)"),
        (AlbefForAnswering, {"text_heads": 4}, r"text_heads 2 \(model: 4\)"),
        (AlbefForTextAssignment, {"embed_dim": 5}, r"embed_dim 4 \(model: 5\)"),
        (AlbefModel, {"patch_size": 4}, r"patch_size 8 \(model: 4\).*config\.json"),
    ],
)
def test_other_sizes_are_named(pretrained, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        start_from(kind(replace(TUNED, **changes)), pretrained, CONFIG, "START")


def test_sizes_that_a_model_does_not_have_may_differ(pretrained):
    start_from(AlbefForPairs(replace(TUNED, embed_dim=5, dropout=0.3, init_std=None)), pretrained, CONFIG, "START")
    calibrated = replace(CONFIG, match_weight=2.0, match_temperature=3.0)  # of the start's own weights
    start_from(AlbefModel(CONFIG), pretrained, calibrated, "START")


@pytest.mark.parametrize(
    ("kind", "origin", "message"),
    [
        (AlbefModel, AlbefForAnswering, "lacks what an AlbefModel starts from: .*missing: itm_head.bias"),
        (AlbefForClassification, AlbefForPairs, "missing: fusion_encoder.*Start from a pre-trained model"),
        (AlbefForTextAssignment, AlbefForClassification, "2 tensors missing: vision_proj.bias, vision_proj.weight"),
    ],
)
def test_starts_that_lack_something(kind, origin, message):
    model = kind(TUNED)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        start_from(model, origin(TUNED).state_dict(), TUNED, "START")
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_fine_tuned_model_can_be_pre_trained_again():
    report = start_from(AlbefModel(CONFIG), AlbefModel(TUNED).state_dict(), TUNED, "START")
    assert report[1] == "new: mlm_head (the start has none)"


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_any_saved_model_loads(tmp_path, kind):
    saved = kind(TUNED)
    saved.save_pretrained(tmp_path)
    model = load_model(tmp_path, image_size=(8, 24))
    assert type(model) is kind and model.config == TUNED.at_size((8, 24)) and not model.training
    assert torch.equal(model.state_dict()["text_encoder.norm.weight"], saved.text_encoder.norm.weight)


def test_folders_without_architecture_hold_the_first_model(tmp_path):
    AlbefModel(CONFIG).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["architecture"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert type(load_model(tmp_path)) is AlbefModel
    (tmp_path / "config.json").write_text(json.dumps(values | {"architecture": "Other"}))
    with pytest.raises(ValueError, match="unknown architecture 'Other'; there are AlbefModel, AlbefForAnswering"):
        load_model(tmp_path)
