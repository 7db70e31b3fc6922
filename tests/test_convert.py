"""Published files of other sizes, and files that are no checkpoint: what is read, and what the errors say."""

import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from albef import cli
from albef.models.albef import AlbefModel
from albef.models.answering import AlbefForAnswering
from albef.models.classifier import AlbefForClassification, AlbefForPairs, AlbefForTextAssignment
from albef.models.config import AlbefConfig
from albef.models.convert import check_vocabulary, initial_model, read_checkpoint, read_folder, write_folder
from albef.models.folders import load_training, save_training
from albef.models.names import ARCHITECTURES, aliases, from_official, official_names, to_official
from albef.models.start import load_model
from albef.objectives.pretrain import PretrainObjective
from tests.published import load_objective

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
            {"other.bias": torch.zeros(2), "new.bias": torch.zeros(2)},
            [],
            "2 tensors left over: new.bias, other.bias",
        ),
        (
            {"cls_head.2.bias": torch.zeros(3)},
            [],
            r"read as an AlbefForClassification.*missing: cls_head.*left over: itm",
        ),
        ({"text_encoder.embeddings.LayerNorm.bias": torch.zeros(128)}, [], "stand twice, with and without `bert.`"),
        ({f"{LAYER}.1.output.dense.bias": torch.zeros(5)}, [], r"another shape.*expected \[128\], got \[5\]"),
        ({f"{LAYER}.9.output.dense.bias": torch.zeros(128)}, [], "tensors? missing|left over"),
        (
            {"text_encoder.cls.predictions.decoder.bias": torch.ones(50)},
            [],
            "decoder.bias must be the same as .*damaged",
        ),
        ({"text_encoder.bert.embeddings.position_ids": torch.ones(1, 20)}, [], "position_ids must count from 0"),
        ({}, ["vision_proj.weight"], "read as an AlbefModel, is no checkpoint of ALBEF: .*vision_proj.weight"),
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


TUNED = replace(CONFIG, mlm_head=False)
OTHERS = [AlbefForAnswering, AlbefForClassification, AlbefForPairs, AlbefForTextAssignment]
LABELS = {AlbefForClassification: ("contradiction", "neutral", "entailment"), AlbefForPairs: ("False", "True")}
UNLEARNT = {"temp": torch.tensor(0.07), "text_proj.weight": torch.zeros(16, 128), "text_proj.bias": torch.zeros(16)}


def twins(state):
    """The official teacher of a state, with values of its own."""
    changed = {n: t + 1 if t.is_floating_point() else t for n, t in state.items() if n.partition(".")[0] != "temp"}
    changed = {n: t for n, t in changed.items() if not n.startswith("itm_head") and "queue" not in n}
    return {f"{n.partition('.')[0]}_m.{n.partition('.')[2]}": t for n, t in changed.items()}


def write(path, kind, teacher=True, changes=(), drop=()):
    """A file as the official code writes it, from random weights; returns those under our names."""
    model = kind(TUNED)
    state = to_official(model.state_dict(), TUNED, kind)
    state |= UNLEARNT if kind is AlbefForTextAssignment else {}
    state |= twins(state) if teacher else {}
    state = {name: tensor for name, tensor in (state | dict(changes)).items() if name not in drop}
    torch.save({"model": state, "config": {}}, path)
    return model.state_dict()


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_every_model_comes_back(kind, tmp_path):
    own = write(tmp_path / "some.pth", kind, teacher=kind is not AlbefForTextAssignment)
    read = read_checkpoint(tmp_path / "some.pth")
    assert read.architecture is kind and read.labels == LABELS.get(kind, ())
    projected = kind in (AlbefModel, AlbefForTextAssignment)
    assert read.config == (TUNED if projected else replace(TUNED, embed_dim=AlbefConfig().embed_dim))
    assert read.model.keys() == own.keys() and all(tensor.equal(read.model[name]) for name, tensor in own.items())
    if kind is AlbefForTextAssignment:
        assert read.teacher is None and sum("text assignment never learns" in note for note in read.notes) == 3
    else:
        learnt = {name: tensor for name, tensor in own.items() if not name.startswith(("temp", "itm_head"))}
        assert read.teacher is not None and read.teacher.keys() == own.keys()
        assert all((tensor + 1).equal(read.teacher[name]) for name, tensor in learnt.items())


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_every_official_name_is_read_and_written_once(kind):
    table, second = official_names(TUNED, kind), aliases(TUNED, kind)
    names = [name for parts in table.values() for name in parts]
    assert len(names) == len(set(names)) and not set(names) & set(second) and set(second.values()) <= set(names)
    official = to_official(kind(TUNED).state_dict(), TUNED, kind)
    assert {*names, *second} == {name for name in official if "position_ids" not in name}
    assert sum("position_ids" in name for name in official) == 1 + (kind is AlbefForAnswering)


def test_names_with_bert_are_read_from_any_model():
    state = AlbefForAnswering(TUNED).state_dict()
    official = to_official(state, TUNED, AlbefForAnswering)
    longer = {n.replace("text_encoder.e", "text_encoder.bert.e"): t for n, t in official.items()}
    shorter = {n.replace("bert.", ""): t for n, t in official.items()}
    for named in (longer, shorter):
        again = from_official(named, TUNED, AlbefForAnswering)
        assert again.keys() == state.keys() and all(tensor.equal(again[name]) for name, tensor in state.items())


CROSS = "text_encoder.encoder.layer.{}.crossattention.self.key.bias"


@pytest.mark.parametrize(
    ("kind", "changes", "drop", "message"),
    [
        (AlbefForPairs, {CROSS.format(3): torch.ones(128)}, [], r"layer\.3\..*must be the same as .*layer\.4.*damaged"),
        (AlbefForPairs, {}, [CROSS.format(4)], r"missing: .*layer\.4\.crossattention.*left over: .*layer\.3\."),
        (AlbefForPairs, {}, ["cls_head.0.bias"], r"read as an AlbefForPairs.*1 tensor missing: cls_head.0.bias"),
        (
            AlbefForPairs,
            {},
            ["text_encoder_m.encoder.layer.0.output.dense.bias"],
            "momentum model of .*1 tensor missing",
        ),
        (AlbefForPairs, {"itm_head.bias": torch.zeros(2)}, [], "1 tensor left over: itm_head.bias"),
        (AlbefForClassification, {"cls_head.2.bias": torch.zeros(4)}, [], r"expected \[3\], got \[4\]"),
        (AlbefForTextAssignment, {"ta_head.bias": torch.zeros(2)}, [], r"ta_head.bias \(expected \[3\]"),
        (
            AlbefForAnswering,
            {"text_decoder.cls.predictions.decoder.bias": torch.ones(50)},
            [],
            "text_decoder.cls.predictions.decoder.bias must be the same as .*damaged",
        ),
        (AlbefForAnswering, {}, ["text_decoder_m.cls.predictions.bias"], "momentum model of .*missing|left over"),
        (
            AlbefForAnswering,
            {"text_decoder.bert.embeddings.position_ids": torch.ones(1, 20)},
            [],
            "text_decoder.bert.embeddings.position_ids must count from 0",
        ),
        (AlbefForAnswering, {}, ["text_encoder.embeddings.LayerNorm.bias"], "1 tensor missing: .*LayerNorm.bias"),
    ],
)
def test_damaged_files_of_fine_tuned_models(tmp_path, kind, changes, drop, message):
    write(tmp_path / "some.pth", kind, changes=changes, drop=drop)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "some.pth")


def test_copies_may_be_absent(tmp_path):
    for kind in OTHERS:
        copies = [*aliases(TUNED, kind), "text_encoder.embeddings.position_ids"]
        own = write(tmp_path / "some.pth", kind, teacher=False, drop=copies)
        read = read_checkpoint(tmp_path / "some.pth")
        assert all(tensor.equal(read.model[name]) for name, tensor in own.items())


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_folder_of_every_model(kind, tmp_path):
    write(tmp_path / "some.pth", kind, teacher=kind is not AlbefForTextAssignment)
    read = read_checkpoint(tmp_path / "some.pth", (16, 40))
    report, model = write_folder(read, tmp_path / "some.pth", tmp_path / "out"), load_model(tmp_path / "out")
    assert kind.__name__ in report and "positions resized from 3 x 3 to 2 x 5" in report
    assert type(model) is kind and model.config == read.config
    assert all(tensor.equal(read.model[name]) for name, tensor in model.state_dict().items())
    teacher, queue = load_training(tmp_path / "out")
    assert queue is None and (teacher is None) == (read.teacher is None)
    assert all(tensor.equal(read.teacher[name]) for name, tensor in (teacher or {}).items())


def test_what_training_goes_on_from_is_kept_or_left_out(saved, tmp_path, official):
    path, out = saved(twins(official)), tmp_path / "out"
    report = write_folder(read_checkpoint(path), path, out, torch.float16)
    assert "queues of 6 features" in report and "training.safetensors (teacher and queues)" in report
    teacher, queue = load_training(out)
    assert teacher is not None and all(tensor.dtype == torch.float32 for tensor in teacher.values())
    assert queue is not None and queue["image_queue"].equal(QUEUE["image_queue"].T) and int(queue["pointer"]) == 4
    assert queue["image_id"].dtype == torch.int64 and int(queue["image_id"].max()) == -100
    sizes = [(out / file).stat().st_size for file in ("model.safetensors", "training.safetensors")]
    assert sizes[0] < 0.7 * sizes[1] and "in half precision" in report
    assert "left out: teacher and queues" in write_folder(read_checkpoint(path), path, out, slim=True)
    assert load_training(out) == (None, None) and not (out / "training.safetensors").exists()


def test_saved_folder_of_ours_is_converted(tmp_path):
    model = AlbefForPairs(TUNED, labels=("no", "yes"))
    model.save_pretrained(tmp_path / "saved")
    save_training(tmp_path / "saved", dict(model.state_dict()), None)
    report = write_folder(read_folder(tmp_path / "saved", 32), tmp_path / "saved", tmp_path / "out", torch.float16)
    assert "AlbefForPairs" in report and "labels: no, yes" in report and "resized from 3 x 3 to 4 x 4" in report
    again, (teacher, _) = load_model(tmp_path / "out"), load_training(tmp_path / "out")
    assert again.options() == model.options() and again.config == TUNED.at_size(32)
    assert teacher is not None and teacher["visual_encoder.pos_embed"].shape == (1, 17, 64)
    write_folder(read_folder(tmp_path / "out"), tmp_path / "out", tmp_path / "out", slim=True)
    assert load_training(tmp_path / "out") == (None, None)


def test_command_converts_files_and_folders(tmp_path, capsys):
    write(tmp_path / "vqa.pth", AlbefForAnswering)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *(f"word{index}" for index in range(45))]))
    words = ["--vocabulary", str(tmp_path / "vocab.txt")]
    cli.main(["convert", str(tmp_path / "vqa.pth"), "--out", str(tmp_path / "full"), "--image-size", "32", *words])
    cli.main(["convert", str(tmp_path / "full"), "--out", str(tmp_path / "slim"), "--slim", "--half"])
    assert "left out: teacher" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "slim").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ]
    assert load_model(tmp_path / "slim").config.image_size == (32, 32)


def test_heads_that_are_not_64_wide_must_be_given(tmp_path):
    config = replace(CONFIG, vision_width=48, vision_heads=3)
    torch.save(to_official(AlbefModel(config).state_dict(), config), tmp_path / "some.pth")
    with pytest.raises(
        ValueError, match="vision width 48 is not made of 64-wide heads; give their number by --vision-heads"
    ):
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


def test_vocabulary_of_another_size(saved):
    with pytest.raises(ValueError, match="knows 50 words, but the vocabulary has 2"):
        check_vocabulary(read_checkpoint(saved()).config, ["a", "b"], "some.pth")


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
