"""What a fine-tuning starts from, tensor by tensor, against what the official scripts load."""

from functools import cache

import pytest
import torch

from albef.models.albef import AlbefModel
from albef.models.convert import read_checkpoint, write_folder
from albef.models.names import ALIASES, POSITIONS, aliases, official_names, to_official
from albef.models.start import load_start
from albef.models.vit import resize_positions
from albef.objectives.answer import AnswerObjective
from tests.parity import golden

TAUGHT = [name for name, (_, origin, _) in golden.STARTS.items() if origin == "pretrain" and name != "nlvr_ta"]


started = cache(golden.started)


def record(name):
    """`name`_load.json; VQA's has a record with a teacher and one without."""
    found = golden.json_of(f"{name}_load")
    return found.get("distill", found)


def online(names):
    """Without the teacher's, and without the queues, which belong to the objective."""
    return {name for name in names if not name.split(".")[0].endswith("_m") and "queue" not in name}


def official_of(model):
    return to_official(model.state_dict(), model.config, type(model))


def start_of(name):
    """What the official script of task `name` has read, under official names."""
    origin = golden.STARTS[name][1]
    if origin in golden.STARTS:
        return official_of(started(origin)[0])
    return torch.load(golden.folder() / f"{origin}.pth", weights_only=True)["model"]


def reported(report, kind):
    """Parts of the model that a report calls `new` or `dropped`."""
    lines = [line.removeprefix(f"{kind}: ") for line in report if line.startswith(kind)]
    return [part.split(" (")[0] for line in lines for part in line.split(", ")]


def official_parts(parts, config, architecture):
    """Official names of all tensors in `parts` of a model of ours, the MLM head's aliases included."""
    table = official_names(config, architecture)
    own = {name for ours in table if ours.startswith(tuple(parts)) for name in table[ours]}
    return own | (set(ALIASES) if "mlm_head" in parts else set())


def assert_as_loaded(ours, source, start, fresh):
    for name, tensor in ours.items():
        origin = source[name]
        if origin is None:
            assert name in fresh, name
        elif origin == "interpolated":
            side = [int((x.shape[1] - 1) ** 0.5) for x in (start[name], tensor)]
            golden.close(tensor, resize_positions(start[name], (side[0],) * 2, (side[1],) * 2), name)
        else:
            assert tensor.equal(start[origin]), (name, origin)


@pytest.mark.parametrize("name", golden.STARTS)
def test_model(name):
    model, _, report = started(name)
    source, start = record(name)["source"], start_of(name)
    fresh = official_parts(reported(report, "new"), model.config, type(model)) if reported(report, "new") else set()
    ours = official_of(model)
    assert_as_loaded(ours, source, start, fresh)
    assert fresh == online(record(name)["missing_keys"])
    never_learnt = online(source) - ours.keys()
    assert never_learnt <= set(golden.json_of("nlvr_ta")["no_grad_params"])
    assert not never_learnt or name == "nlvr_ta"


@pytest.mark.parametrize("name", golden.STARTS)
def test_dropped_is_what_the_original_has_no_place_for(name):
    report, source = started(name)[2], record(name)["source"]
    origin = golden.STARTS[name][1]
    if origin in golden.STARTS:
        config, architecture = started(origin)[0].config, golden.STARTS[origin][0]
    else:
        config, architecture = golden.checkpoint(origin).config, AlbefModel
    dropped = official_parts(reported(report, "dropped"), config, architecture) - set(source.values())
    unexpected = online(record(name)["unexpected_keys"])
    assert dropped == unexpected & start_of(name).keys()
    # of a text assignment we never have what isn't learnt
    assert unexpected - dropped <= set(golden.json_of("nlvr_ta")["no_grad_params"])
    assert unexpected == dropped or origin == "nlvr_ta"


def test_answering_without_a_teacher():
    """Without distillation the original's model has no `_m` part, and the rest loads as it does with one."""
    alone, both = golden.json_of("vqa_load")["no_distill"], golden.json_of("vqa_load")["distill"]
    model, _, report = started("vqa")
    assert AnswerObjective(model, distill=False).teacher is None
    assert not online(alone["missing_keys"]) and not reported(report, "new")
    assert online(alone["unexpected_keys"]) == online(both["unexpected_keys"])
    dropped = official_parts(reported(report, "dropped"), golden.checkpoint("pretrain").config, AlbefModel)
    assert dropped - set(both["source"].values()) == online(alone["unexpected_keys"]) & start_of("vqa").keys()


@pytest.mark.parametrize("name", TAUGHT)
def test_teacher(name):
    model, teacher, report = started(name)
    source, start = record(name)["source"], start_of(name)
    ours = {golden.twin(key): tensor for key, tensor in to_official(teacher, model.config, type(model)).items()}
    ours = {key: tensor for key, tensor in ours.items() if key in source}
    assert ours.keys() == source.keys() - online(source) - {key for key in source if "queue" in key}
    fresh = official_parts(reported(report, "new"), model.config, type(model)) if reported(report, "new") else set()
    assert_as_loaded(ours, source, start, {golden.twin(key) for key in fresh})


def test_positions_of_retrieval():
    model, teacher, _ = started("retrieval")
    recorded = golden.tensors_of("retrieval_loaded_extra")
    golden.close(model.state_dict()[POSITIONS], recorded[POSITIONS], atol=1e-6)
    golden.close(teacher[POSITIONS], recorded[golden.twin(POSITIONS)], atol=1e-6)


@pytest.mark.parametrize("name", ["nlvr", "nlvr_ta"])
def test_layers_of_a_pair_share_what_reads_images(name):
    model = started(name)[0]
    pairs = {tuple(pair) for pair in record(name)["shared_parameters"]}
    assert set(aliases(model.config, type(model)).items()) == {pair for pair in pairs if online(pair)}


def test_pairs_as_recorded():
    """nlvr.pth is that model right after loading, with another head."""
    recorded = golden.model("nlvr").state_dict()
    for name, tensor in started("nlvr")[0].state_dict().items():
        if not name.startswith("cls_head"):
            golden.close(tensor, recorded[name], name, atol=1e-6)


def test_teacher_of_pairs_is_to_copy_the_started_model():
    """The original copies before it loads, so its teacher starts as noise; we give none, which asks for a copy."""
    assert record("nlvr")["momentum_equals_online_before_load"]
    assert started("nlvr")[1] is None


@pytest.mark.parametrize("name", TAUGHT)
def test_the_same_by_way_of_a_folder(name, tmp_path):
    model, teacher, report = started(name)
    heads = {"vision_heads": model.config.vision_heads, "text_heads": model.config.text_heads}
    write_folder(read_checkpoint(golden.folder() / "pretrain.pth", **heads), "pretrain.pth", tmp_path)
    again = type(model)(model.config)
    found, state, _ = load_start(again, tmp_path)
    assert found == report and state is not None
    for ours, wanted in ((again.state_dict(), model.state_dict()), (state, teacher)):
        for key, tensor in wanted.items():
            assert key.startswith("cls_head") or tensor.equal(ours[key]), key
    assert all(state[key].equal(tensor) for key, tensor in again.state_dict().items() if key.startswith("cls_head"))
