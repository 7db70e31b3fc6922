"""The official checkpoints under our names and back: every tensor has its place, and nothing is lost."""

import pytest
import torch

from albef.conversion import convert
from albef.data.text import build_tokenizer
from albef.models.albef import AlbefModel
from albef.models.convert import check_vocabulary, initial_model, read_checkpoint, write_folder
from albef.models.folders import load_training
from albef.models.names import aliases, from_official, official_names, to_official
from albef.models.start import load_model
from albef.objectives.pretrain import PretrainObjective
from tests.parity import golden
from tests.published import load_objective

CHECKPOINTS = sorted(path.stem for path in golden.folder().glob("*.pth"))


def recorded(name):
    """The state dict in `name`.pth."""
    content = torch.load(golden.folder() / f"{name}.pth", weights_only=True)
    return content.get("model", content)


@pytest.fixture(scope="module")
def official():
    return recorded("pretrain")


@pytest.fixture(scope="module")
def read():
    return golden.checkpoint("pretrain")


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].equal(theirs[name]), name


def test_sizes_are_inferred(read):
    sizes, bert, meta = golden.json_of("meta")["sizes"], golden.json_of("config_bert"), golden.json_of("meta")
    config = read.config
    assert config.image_size == (sizes["res"], sizes["res"]) and config.patch_size == meta["patch_size"]
    assert (config.vision_width, config.vision_layers) == (bert["encoder_width"], sizes["vit_depth"])
    assert (config.text_width, config.text_layers) == (bert["hidden_size"], bert["fusion_layer"])
    assert config.fusion_layers == bert["num_hidden_layers"] - bert["fusion_layer"]
    assert (config.text_intermediate, config.vocab_size) == (bert["intermediate_size"], bert["vocab_size"])
    assert (config.max_positions, config.embed_dim) == (bert["max_position_embeddings"], sizes["embed"])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_there_and_back(name):
    official, read = recorded(name), golden.checkpoint(name)
    ours = to_official(read.model, read.config, read.architecture)
    assert read.teacher is not None
    teacher = to_official(read.teacher, read.config, read.architecture)
    ours |= {golden.twin(key): tensor for key, tensor in teacher.items() if golden.twin(key) in official}
    if read.queue is not None:
        ours["queue_ptr"] = read.queue["pointer"].reshape(1)
        ours |= {key: read.queue[key].T for key in ("image_queue", "text_queue")}
    official.pop("idx_queue", None)
    assert_equal(ours, official)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_parameter_of_the_model_is_in_the_table(name):
    read = golden.checkpoint(name)
    assert official_names(read.config, read.architecture).keys() == golden.model(name).state_dict().keys()


@pytest.mark.parametrize("name", [*CHECKPOINTS, *sorted(set(golden.STARTS) - set(CHECKPOINTS))])
def test_rows_are_stacked_in_order(name):
    """Each official tensor is where its name says, even if its values were those of another."""
    model = golden.model(name)
    config, kind = model.config, type(model)
    official, second = to_official(model.state_dict(), config, kind), aliases(config, kind)
    numbered = {
        key: torch.full_like(tensor, index) if tensor.is_floating_point() else tensor
        for index, (key, tensor) in enumerate(official.items())
        if key not in second
    }
    ours = from_official(numbered, config, kind)
    for key, parts in official_names(config, kind).items():
        rows = ours[key].reshape(len(parts), -1)
        assert rows[:, 0].tolist() == [numbered[part].flatten()[0] for part in parts], key


def test_models_are_recognised():
    for name in CHECKPOINTS:
        read = golden.checkpoint(name)
        kind = golden.STARTS[name][0] if name in golden.STARTS else AlbefModel
        assert read.architecture is kind
        assert read.config.mlm_head == any(".cls." in key for key in recorded(name))
        assert ("idx_queue" in recorded(name)) == any("idx_queue" in note for note in read.notes)


def test_fine_tuned_checkpoint_has_its_image_size():
    tuned = golden.checkpoint("retrieval")
    size = golden.json_of("meta")["ft_config"]["image_res"]
    assert tuned.config.image_size == (size, size) and tuned.queue is not None


def test_grounding_file(tmp_path):
    """refcoco.pth: a bare state dict of retrieval's layout, without teacher and queues."""
    bare = {k: t for k, t in recorded("retrieval").items() if not k.split(".")[0].endswith("_m") and "queue" not in k}
    torch.save(bare, tmp_path / "refcoco.pth")
    tuned = golden.checkpoint("retrieval")
    heads = {"vision_heads": tuned.config.vision_heads, "text_heads": tuned.config.text_heads}
    read = read_checkpoint(tmp_path / "refcoco.pth", **heads)
    assert read.architecture is AlbefModel and read.teacher is None and read.queue is None and not read.notes
    assert_equal(read.model, tuned.model)


@pytest.mark.parametrize("without", [("teacher",), ("queue",), ("teacher", "queue"), ("model",)])
def test_parts_that_may_be_absent(official, read, tmp_path, without):
    kept = {
        name: tensor
        for name, tensor in official.items()
        if not ("teacher" in without and name.split(".")[0].endswith("_m"))
        and not ("queue" in without and "queue" in name)
    }
    torch.save(kept if "model" in without else {"model": kept, "epoch": 0}, tmp_path / "some.pth")
    config = read.config
    some = read_checkpoint(tmp_path / "some.pth", vision_heads=config.vision_heads, text_heads=config.text_heads)
    assert_equal(some.model, read.model)
    assert (some.teacher is None) == ("teacher" in without) and (some.queue is None) == ("queue" in without)
    objective = PretrainObjective(AlbefModel(config), queue_size=len(read.queue["image_queue"]))
    load_objective(objective, some)
    assert_equal(objective.teacher.model.state_dict(), some.teacher or some.model)
    if some.queue:
        assert_equal(objective.queue.state_dict(), some.queue)


def test_half_precision_is_widened(official, read, tmp_path):
    half = {n: t.half() if t.is_floating_point() else t for n, t in official.items()}
    torch.save(half, tmp_path / "half.pth")
    config = read.config
    some = read_checkpoint(tmp_path / "half.pth", vision_heads=config.vision_heads, text_heads=config.text_heads)
    assert all(tensor.dtype == torch.float32 for tensor in some.model.values())


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("image_size", [None, "downstream"])
def test_converted_folder(name, tmp_path, image_size):
    size = golden.json_of("meta")["ft_config"]["image_res"] if image_size else None
    read = golden.checkpoint(name, image_size=size)
    check_vocabulary(read.config, build_tokenizer(golden.vocabulary()).get_vocab(), name)
    report = write_folder(read, name, tmp_path)
    model = load_model(tmp_path)
    assert type(model) is read.architecture
    assert_equal(model.state_dict(), read.model)
    teacher, queue = load_training(tmp_path)
    assert teacher is not None
    assert_equal(teacher, read.teacher)
    assert (queue is None) == (read.queue is None)
    assert_equal(queue or {}, read.queue or {})
    for words in (read.architecture.__name__, *read.notes, *read.labels, str(tmp_path), "teacher"):
        assert words in report
    assert ("queues" in report) == (queue is not None)


def converted(name, folder):
    """`name`.pth as a folder of ours, by the command's function."""
    meta, bert = golden.json_of("meta"), golden.json_of("config_bert")
    heads = {"vision_heads": meta["sizes"]["vit_heads"], "text_heads": bert["num_attention_heads"]}
    convert(checkpoint=golden.folder() / f"{name}.pth", out=folder, vocabulary=golden.folder() / "vocab.txt", **heads)
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_back_to_a_file_of_the_original(name, tmp_path):
    """Bit for bit, by way of a folder of ours; but the ids of the queue, which are of no use to another run."""
    report = convert(checkpoint=converted(name, tmp_path / "ours"), to_official=tmp_path / "again.pth")
    again, wanted = torch.load(tmp_path / "again.pth", weights_only=True), recorded(name)
    assert list(again) == ["model"] and str(tmp_path / "again.pth") in report
    if "idx_queue" in wanted:
        wanted["idx_queue"] = torch.full_like(wanted["idx_queue"], -100)
    assert_equal(again["model"], wanted)
    assert all(tensor.dtype == wanted[key].dtype for key, tensor in again["model"].items())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_back_to_a_file_without_twins(name, tmp_path):
    ours = converted(name, tmp_path / "ours")
    convert(checkpoint=ours, to_official=tmp_path / "slim.pth", slim=True)
    kept = {key for key in recorded(name) if not key.split(".")[0].endswith("_m") and "queue" not in key}
    assert torch.load(tmp_path / "slim.pth", weights_only=True)["model"].keys() == kept
    (ours / "training.safetensors").unlink()  # as in the folder of a run
    report = convert(checkpoint=ours, to_official=tmp_path / "copied.pth")
    state = torch.load(tmp_path / "copied.pth", weights_only=True)["model"]
    twins = {key: tensor for key, tensor in state.items() if key.split(".")[0].endswith("_m")}
    assert twins and "copies of the model" in report
    assert all(tensor.equal(state[key.replace("_m.", ".", 1)]) for key, tensor in twins.items())


@pytest.mark.parametrize("name", sorted(set(golden.STARTS) - set(CHECKPOINTS)))
def test_models_that_no_file_holds_come_back_too(name, tmp_path):
    model = golden.model(name)
    model.save_pretrained(tmp_path / "ours")
    convert(checkpoint=tmp_path / "ours", to_official=tmp_path / "some.pth")
    heads = {"vision_heads": model.config.vision_heads, "text_heads": model.config.text_heads}
    read = read_checkpoint(tmp_path / "some.pth", **heads)
    assert read.architecture is type(model)
    assert_equal(read.model, model.state_dict())


def starting_files(official, folder):
    """The recorded weights under the names of DeiT and BERT."""
    image = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in official.items()
        if name.startswith("visual_encoder.")
    }
    torch.save({"model": image | {"head.weight": torch.zeros(3, 2), "head.bias": torch.zeros(3)}}, folder / "deit.pth")
    text = {
        name.removeprefix("text_encoder.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in official.items()
        if name.startswith("text_encoder.") and "crossattention" not in name
    }
    extra = {"bert.pooler.dense.weight": torch.zeros(2, 2), "cls.seq_relationship.bias": torch.zeros(2)}
    torch.save(text | extra, folder / "bert.bin")
    return folder / "deit.pth", folder / "bert.bin"


def test_starting_point_of_the_paper(official, read, tmp_path):
    deit, bert = starting_files(official, tmp_path)
    state = initial_model(read.config, deit, bert).state_dict()
    fresh = ("temp", "itm_head", "vision_proj", "text_proj", "fusion_encoder.image_keys_values")
    for name, tensor in state.items():
        if not name.startswith(fresh) and ".cross_" not in name:
            assert tensor.equal(read.model[name]), name
    assert not state["fusion_encoder.image_keys_values.0.weight"].equal(
        read.model["fusion_encoder.image_keys_values.0.weight"]
    )
