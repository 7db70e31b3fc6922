"""The official checkpoints under our names and back: every tensor has its place, and nothing is lost."""

import pytest
import torch

from albef.data.processor import build_tokenizer
from albef.models.albef import AlbefModel
from albef.models.convert import convert_file, initial_model, read_checkpoint
from albef.models.names import from_official, official_names, to_official
from albef.objectives.pretrain import PretrainObjective, load_objective
from tests.parity import golden


@pytest.fixture(scope="module")
def official():
    """The recorded pre-training state dict."""
    return torch.load(golden.folder() / "pretrain.pth", weights_only=True)["model"]


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


def test_there_and_back(official, read):
    teacher = {golden.twin(name): tensor for name, tensor in to_official(read.teacher, read.config).items()}
    borrowed = {golden.twin(name) for name in ("temp", "itm_head.weight", "itm_head.bias")}
    ours = to_official(read.model, read.config) | {n: t for n, t in teacher.items() if n not in borrowed}
    ours["queue_ptr"] = read.queue["pointer"].reshape(1)
    ours |= {name: read.queue[name].T for name in ("image_queue", "text_queue")}
    assert_equal(ours, official)


def test_every_parameter_of_the_model_is_in_the_table(read):
    assert official_names(read.config).keys() == AlbefModel(read.config).state_dict().keys()


def test_rows_are_stacked_in_order(read):
    """Each official tensor is where its name says, even if its values were those of another."""
    config = read.config
    numbered = {
        name: torch.full_like(tensor, index) if tensor.is_floating_point() else tensor
        for index, (name, tensor) in enumerate(to_official(read.model, config).items())
    }
    for alias in [name for name in numbered if ".decoder." in name]:
        del numbered[alias]
    ours = from_official(numbered, config)
    for name, parts in official_names(config).items():
        rows = ours[name].reshape(len(parts), -1)
        assert rows[:, 0].tolist() == [numbered[part].flatten()[0] for part in parts], name


def test_fine_tuned_checkpoint(read):
    """Names without `bert.`, other picture size, no MLM head."""
    recorded = torch.load(golden.folder() / "retrieval.pth", weights_only=True)
    recorded = recorded.get("model", recorded)
    tuned = golden.checkpoint("retrieval", new_mlm_head=True)
    size = golden.json_of("meta")["ft_config"]["image_res"]
    assert tuned.config.image_size == (size, size) and any("MLM head" in note for note in tuned.notes)
    ours = {name.replace("bert.", ""): tensor for name, tensor in to_official(tuned.model, tuned.config).items()}
    for name, tensor in ours.items():
        assert ".cls." in name or tensor.equal(recorded[name]), name
    with pytest.raises(ValueError, match=r"no MLM head.*new_mlm_head=True"):
        golden.checkpoint("retrieval")


def test_what_the_official_retrieval_script_loads(official):
    """Its record names, for each tensor, the checkpoint's key with the same content."""
    size = golden.json_of("meta")["ft_config"]["image_res"]
    larger = golden.checkpoint("pretrain", image_size=size)
    assert larger.teacher is not None
    ours = to_official(larger.model, larger.config)
    ours |= {golden.twin(name): tensor for name, tensor in to_official(larger.teacher, larger.config).items()}
    same = {name.replace("bert.", ""): tensor for name, tensor in ours.items()}
    for name, source in golden.json_of("retrieval_load")["source"].items():
        if source in official and "queue" not in name:
            assert same[name].equal(official[source]), name


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


@pytest.mark.parametrize("image_size", [None, "downstream"])
def test_converted_folder(read, tmp_path, image_size):
    size = golden.json_of("meta")["ft_config"]["image_res"] if image_size else None
    heads = {"vision_heads": read.config.vision_heads, "text_heads": read.config.text_heads}
    vocabulary = build_tokenizer(golden.vocabulary()).get_vocab()
    report = convert_file(golden.folder() / "pretrain.pth", tmp_path, vocabulary, size, **heads)
    model = AlbefModel.from_pretrained(tmp_path)
    expected = golden.checkpoint("pretrain", image_size=size) if size else read
    assert_equal(model.state_dict(), expected.model)
    for words in ("optimizer", "momentum model and queues", str(tmp_path), *(["resized"] if size else [])):
        assert words in report


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
    assert not state["fusion_encoder.image_keys_values.weight"].equal(
        read.model["fusion_encoder.image_keys_values.weight"]
    )
