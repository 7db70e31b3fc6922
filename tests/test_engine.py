"""The loop: going on exactly, stopping cleanly, and saying what is wrong."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from albef.data.processor import Processor
from albef.engine import checkpointer
from albef.engine.optim import make_optimizer
from albef.engine.train import Interrupted, check_recipe, train
from albef.errors import AlbefValueError
from albef.models.albef import AlbefModel
from albef.models.config import preset
from albef.models.flops import pretraining_flops
from albef.objectives.weights import Weights
from albef.recipe import Data, Objective, Optim, Recipe
from albef.tasks import make_task
from tests.worlds import make_world, tiny_recipe

CPU = torch.device("cpu")


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path / "world")


def run(recipe, folder, make=make_task):
    return train(make, recipe, folder, CPU)


def state(folder):
    return checkpointer.read_newest(folder)["objective"]


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps(folder):
    """Steps of the lines with losses."""
    return [line["step"] for line in lines(folder) if "evaluation" not in line]


def before_losses(task, step, act):
    """The task, which calls `act` in the middle of a step."""
    losses = task.losses

    def acting(objective, batch, now, progress):
        if now == step:
            act()
        return losses(objective, batch, now, progress)

    task.losses = acting
    return task


def stop_at(recipe, saved, step, number):
    """Sends itself a signal in the middle of a step."""
    return before_losses(make_task(recipe, saved), step, lambda: os.kill(os.getpid(), number))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("augment", ["affine", "randaugment"])
def test_an_interrupted_run_gives_the_same_weights(world, tmp_path, number, augment):
    data = replace(tiny_recipe(world).data, augment=augment, workers=0)
    recipe = replace(tiny_recipe(world), data=replace(data, colour=0.5, zoom=(0.5, 1.0)), evaluate_steps=4)
    whole = run(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted, match=r"stopped at step 6 of 10.*albef train --resume"):
        run(recipe, tmp_path / "parts", lambda recipe, saved: stop_at(recipe, saved, 5, number))
    assert len(lines(tmp_path / "parts")) < len(lines(tmp_path / "whole"))
    parts = run(recipe, tmp_path / "parts")
    assert parts == whole
    for name, value in state(tmp_path / "whole").items():
        assert torch.equal(value, state(tmp_path / "parts")[name]), name
    assert steps(tmp_path / "parts") == steps(tmp_path / "whole")


def test_a_crashed_run_goes_on_from_its_last_checkpoint(world, tmp_path):
    recipe = replace(tiny_recipe(world), save_steps=4)
    run(recipe, tmp_path / "whole")

    def crash():
        raise MemoryError

    with pytest.raises(MemoryError):
        run(recipe, tmp_path / "parts", lambda recipe, saved: before_losses(make_task(recipe, saved), 6, crash))
    assert lines(tmp_path / "parts")[-1]["step"] == 6
    run(recipe, tmp_path / "parts")
    assert steps(tmp_path / "parts") == list(range(1, 11))
    for name, value in state(tmp_path / "whole").items():
        assert torch.equal(value, state(tmp_path / "parts")[name]), name


def test_a_finished_run_is_not_done_again(world, tmp_path):
    recipe = tiny_recipe(world)
    run(recipe, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.suffix != ".lock"}
    figures = run(recipe, tmp_path / "run")
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time and path.is_file()]
    assert changed in ([], ["log.jsonl"])
    assert figures["itm"]["img_r10"] >= 0


def test_learning_lowers_the_losses_and_finds_images(world, tmp_path):
    recipe = replace(
        tiny_recipe(make_world(tmp_path / "more", copies=1)), batch_size=16, steps=300, log_steps=50, k_test=16
    )
    recipe = replace(recipe, optim=replace(recipe.optim, lr=3e-3))
    figures = run(recipe, tmp_path / "run")
    log = [line for line in lines(tmp_path / "run") if "itc" in line]
    assert log[-1]["itc"] < 0.7 * log[0]["itc"]
    assert figures["itc"]["img_r1"] >= 50, figures  # chance: 6


def test_alignment_first_then_fusion(world, tmp_path):
    recipe = tiny_recipe(world)
    recipe = replace(recipe, objective=replace(recipe.objective, align_first=0.5))
    run(recipe, tmp_path / "run")
    joined = ["itm" in line for line in lines(tmp_path / "run")]
    assert joined[:10] == [False] * 5 + [True] * 5


@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_negatives_harden_over_a_share_of_the_steps_that_fuse(world, tmp_path, task):
    recipe = tiny_recipe(world, task=task)
    recipe = replace(recipe, objective=replace(recipe.objective, align_first=0.2, harden=0.5))
    seen = []

    def noting(recipe, saved):
        task = make_task(recipe, saved)
        call = task.call
        task.call = lambda *given: seen.append(given[-1].hardness) or call(*given)
        return task

    run(recipe, tmp_path / "whole", noting)
    assert seen == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]) and seen[-3:] == [1, 1, 1]
    whole = seen.copy()
    seen.clear()
    with pytest.raises(Interrupted):
        run(
            recipe,
            tmp_path / "parts",
            lambda *given: before_losses(noting(*given), 4, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
    run(recipe, tmp_path / "parts", noting)
    assert seen == whole
    run(replace(recipe, objective=replace(recipe.objective, harden=0.0)), tmp_path / "hard")
    assert all(value.equal(state(tmp_path / "parts")[name]) for name, value in state(tmp_path / "whole").items())
    assert any(not value.equal(state(tmp_path / "hard")[name]) for name, value in state(tmp_path / "whole").items())


def test_without_itc(world, tmp_path):
    recipe = tiny_recipe(world)
    recipe = replace(recipe, objective=replace(recipe.objective, itc=False))
    run(recipe, tmp_path / "run")
    assert "itc" not in lines(tmp_path / "run")[0] and "itm" in lines(tmp_path / "run")[0]


def test_time_limit_ends_the_run(world, tmp_path):
    run(replace(tiny_recipe(world), steps=100_000, max_seconds=1.0), tmp_path / "run")
    last = lines(tmp_path / "run")[-1]
    assert last["seconds"] >= 1.0 and last["step"] < 100_000


def test_bfloat16_stays_close(world, tmp_path):
    finals = []
    for precision in ("float32", "bfloat16"):
        run(replace(tiny_recipe(world), precision=precision), tmp_path / precision)
        finals.append(lines(tmp_path / precision)[5])
    for name in ("itc", "itm", "mlm"):
        assert finals[1][name] == pytest.approx(finals[0][name], rel=0.05)


def test_continuing_from_a_saved_model(world, tmp_path):
    run(tiny_recipe(world), tmp_path / "first")
    recipe = replace(tiny_recipe(world), init=str(tmp_path / "first" / "model"))
    recipe = replace(recipe, model=replace(recipe.model, image_size=(32, 64)))
    task = make_task(recipe)
    assert task.objective.model.config.image_size == (32, 64) == task.processor.image_size
    run(recipe, tmp_path / "second", lambda *_: task)


def test_words_that_are_kept_are_the_recipes_also_with_a_start(world, tmp_path):
    run(tiny_recipe(world, steps=1), tmp_path / "first")
    recipe = tiny_recipe(world, init=str(tmp_path / "first" / "model"))
    task = make_task(replace(recipe, data=replace(recipe.data, max_words=3)))
    assert task.processor.max_words == 3
    assert make_task(task.recipe, task.state_dict()).processor.max_words == 3


def test_another_recipe_in_the_folder_is_an_error(world, tmp_path):
    recipe = tiny_recipe(world)
    run(replace(recipe, steps=1), tmp_path / "run")
    recipe = replace(recipe, steps=1)
    other = replace(recipe, seed=1, optim=replace(recipe.optim, lr=0.5))
    with pytest.raises(ValueError, match=r"different: optim.lr, seed.*another --out"):
        run(other, tmp_path / "run")


def test_a_run_of_an_older_version_goes_on(world, tmp_path):
    """A field that came later is missing in its file, and has its default."""
    recipe = tiny_recipe(world)
    path = tmp_path / "run" / "recipe.json"
    with pytest.raises(Interrupted):
        run(recipe, path.parent, lambda recipe, saved: stop_at(recipe, saved, 1, signal.SIGTERM))
    values = json.loads(path.read_text())
    del values["tensorboard"], values["format"]
    path.write_text(json.dumps(values))
    run(Recipe.load(path), path.parent)
    check_recipe(recipe, path.parent)


@pytest.mark.parametrize("augment", ["affine", "randaugment"])
def test_broken_images_over_the_limit_stop_the_run(world, tmp_path, augment):
    for name in ("red-left-0.png", "blue-top-1.png"):
        (world.parent / name).write_bytes(b"")
    recipe = tiny_recipe(world)
    recipe = replace(recipe, data=replace(recipe.data, augment=augment, workers=0, validation=()), steps=20)
    with pytest.raises(RuntimeError, match=r"could not be read.*(red-left-0|blue-top-1)\.png"):
        run(recipe, tmp_path / "run")


def test_broken_images_under_the_limit_are_counted(world, tmp_path, capfd):
    (world.parent / "red-left-0.png").write_bytes(b"")
    recipe = tiny_recipe(world)
    data = replace(recipe.data, augment="randaugment", workers=0, validation=(), broken_limit=0.2)
    run(replace(recipe, data=data), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["broken"] >= 1
    assert "red-left-0.png" in capfd.readouterr().err


def test_a_wrong_validation_path_fails_at_once(world, tmp_path):
    recipe = tiny_recipe(world)
    for wrong, error in (
        ({"validation": ("absent.json",)}, FileNotFoundError),
        ({"image_root": "/nowhere"}, ValueError),
    ):
        with pytest.raises(error, match=r"absent\.json|/nowhere"):
            make_task(replace(recipe, data=replace(recipe.data, **wrong)))


def stopped(recipe, folder, step=1):
    """A run that was stopped at `step`."""
    with pytest.raises(Interrupted):
        run(recipe, folder, lambda recipe, saved: stop_at(recipe, saved, step - 1, signal.SIGTERM))


def test_changed_data_are_named_and_do_not_change_the_words_of_a_run(world, tmp_path):
    recipe, made = tiny_recipe(world), []
    stopped(recipe, tmp_path / "run")
    words = Processor.from_pretrained(tmp_path / "run" / "model").tokenizer.get_vocab()
    records = json.loads(world.read_text())
    world.write_text(json.dumps([{**record, "caption": f"zebra {record['caption']}"} for record in records]))

    def keep(recipe, saved):
        made.append(make_task(recipe, saved))
        return made[0]

    with pytest.warns(UserWarning, match=r"are not those that the run began with \(different: texts\)"):
        run(recipe, tmp_path / "run", keep)
    assert made[0].processor.tokenizer.get_vocab() == words
    world.write_text(json.dumps(records[:-1]))
    with pytest.raises(ValueError, match="was trained on 32 pairs, now there are 31"):
        run(recipe, tmp_path / "run")


def test_another_order_of_the_data_is_said(world, tmp_path):
    stopped(tiny_recipe(world), tmp_path / "run")
    world.write_text(json.dumps(json.loads(world.read_text())[::-1]))
    with pytest.warns(UserWarning, match=r"different: names of images, texts"):
        run(tiny_recipe(world), tmp_path / "run")


def test_a_cut_line_of_the_log_is_dropped(world, tmp_path):
    recipe = tiny_recipe(world)
    stopped(recipe, tmp_path / "run", 4)
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "itc": 1.')
    run(recipe, tmp_path / "run")
    assert steps(tmp_path / "run") == list(range(1, 11))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        ({"batch_size": 1000}, "batch_size 1000"),
        ({"data": Data()}, "data.train is empty"),
        ({"steps": 0}, "set `steps` or `epochs`"),
        ({"steps": 0, "epochs": 3, "batch_size": 1000}, "batch_size 1000 is more than the 32 training pairs"),
        ({"seed": -1}, "seed is -1, but must be between 0 and"),
        ({"optim": Optim(schedule="official")}, "set epochs"),
        ({"objective": Objective(itc=False, align_first=0.5)}, "align_first must be 0"),
        ({"objective": Objective(hard_negatives=False, harden=0.5)}, "harden is 0.5, but must then be 0"),
        ({"objective": Objective(itc=False, harden=0.5)}, "harden is 0.5, but must then be 0"),
    ],
)
def test_impossible_recipes_say_what_to_change(world, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        run(replace(tiny_recipe(world), **changes), tmp_path / "run")


def test_recipes_are_saved_and_read(world, tmp_path):
    recipe = tiny_recipe(world)
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("stepz",), "unknown recipe field stepz; did you mean steps?"),
        (("optim", "learning_rat"), "unknown recipe field optim.learning_rat; the fields are lr"),
        (("data", "trian"), "did you mean data.train?"),
    ],
)
def test_unknown_fields_of_a_recipe_file(world, tmp_path, path, said):
    tiny_recipe(world).save(tmp_path / "recipe.json")
    values = json.loads((tmp_path / "recipe.json").read_text())
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = 1
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        Recipe.load(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "bf16"}, "precision is 'bf16', but must be one of auto, float32, tf32, bfloat16"),
        ({"task": "captioning"}, "must be one of pretrain, retrieval, vqa"),
        ({"data": {"train": "captions.json"}}, "data.train is 'captions.json', but must be a list"),
        ({"tensorboard": "no"}, "tensorboard is 'no', but must be true or false"),
        ({"batch_size": 64.5}, "batch_size is 64.5, but must be a whole number"),
        ({"steps": "100"}, "steps is '100', but must be a whole number"),
        ({"model": {"vision_layers": "12"}}, "model.vision_layers is '12', but must be a whole number"),
        ({"model": {"image_size": 384}}, "model.image_size is 384, but must be a list of 2"),
        ({"optim": {"betas": [2, 3]}}, r"optim.betas is \(2, 3\), but must be a list of 2"),
        ({"optim": 3}, "optim is 3, but must be an object"),
        ({"format": 2}, "has format 2, this version reads up to 1; update albef"),
    ],
)
def test_wrong_values_of_a_recipe_file(tmp_path, changes, said):
    (tmp_path / "recipe.json").write_text(json.dumps(changes))
    with pytest.raises(ValueError, match=said):
        Recipe.load(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        (Recipe, {"save_steps": -5}, "save_steps is -5, but must be at least 0"),
        (Optim, {"lr": -1.0}, "optim.lr is -1.0, but must be at least 0"),
        (Optim, {"lr": float("nan")}, "optim.lr is nan"),
        (Data, {"crop_scale": (0.9, 0.1)}, "data.crop_scale is .*, but must be the lower share and the higher"),
        (Data, {"workers": -1}, "data.workers is -1, but must be at least 0"),
        (Objective, {"weights": Weights(itm=-1.0)}, "objective.weights.itm is -1.0, but must be between 0 and"),
        (Objective, {"weights": Weights(mlm=float("inf"))}, "objective.weights.mlm is inf, but must be between"),
    ],
)
def test_ranges_hold_wherever_a_recipe_is_made(part, changes, said):
    with pytest.raises(ValueError, match=said):
        part(**changes)


def test_a_cut_recipe_file_says_which(tmp_path):
    (tmp_path / "recipe.json").write_text("")
    with pytest.raises(ValueError, match=r"recipe\.json is no JSON"):
        Recipe.load(tmp_path / "recipe.json")


def test_a_list_is_no_recipe(world):
    with pytest.raises(ValueError, match=r"is no recipe but a list; give data with --data\.train"):
        Recipe.load(world)


def albef(*arguments, **options):
    command = [sys.executable, "-m", "albef", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], **options)


def test_command_line_trains_resumes_and_evaluates(world, tmp_path):
    tiny_recipe(world).save(tmp_path / "tiny.json")
    done = albef("train", tmp_path / "tiny.json", "--steps", 3, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "text->image" in done.stdout and "ETA" in done.stderr
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["steps"] == 3
    again = albef("train", "--resume", tmp_path / "run")
    assert again.returncode == 0 and "step" not in again.stdout, again.stderr
    found = albef("evaluate", tmp_path / "run" / "model", "--data", world, "--k", 4, "--json", tmp_path / "f.json")
    assert found.returncode == 0, found.stderr
    assert set(json.loads((tmp_path / "f.json").read_text())) == {"itc", "itm", "sum", "odds"}


def test_under_torchrun_the_exit_status_is_the_same(world, tmp_path):
    """There the process leaves before gloo's threads can abort it; a stop is 130 all the same, and an error 1."""
    tiny_recipe(world, steps=100_000, evaluate_steps=0).save(tmp_path / "tiny.json")
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "albef", "train", str(tmp_path / "tiny.json"), "--out", str(tmp_path / "run")]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        next(line for line in process.stderr if line.startswith("step"))
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 130 and "and saved; go on with: albef train --resume" in said
    wrong = albef("recipes", "nothing", env=environment)
    assert wrong.returncode == 1 and "unknown recipe 'nothing'" in wrong.stderr


def test_two_processes_train_and_evaluate(world, tmp_path):
    tiny_recipe(world).save(tmp_path / "tiny.json")

    def launch(*arguments):
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "albef"]
        return subprocess.run(
            [sys.executable, *command, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=120,
        )

    done = launch("train", tmp_path / "tiny.json", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("text->image") == 1 and steps(tmp_path / "run") == list(range(1, 11))
    found = launch("evaluate", tmp_path / "run" / "model", "--data", world, "--k", 4, "--json", tmp_path / "two.json")
    assert found.returncode == 0 and found.stdout.count("itm") == 1, found.stderr
    alone = albef("evaluate", tmp_path / "run" / "model", "--data", world, "--k", 4, "--json", tmp_path / "one.json")
    assert alone.returncode == 0
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "pretrain-tinny"], "did you mean pretrain-tiny?"),
        (["train"], "which recipe?"),
        (["train", "--resume", "nowhere"], "no run here"),
        (["train", "pretrain-tiny", "--stepz", "3"], "--steps"),
        (["train", "pretrain-tiny"], "data.train is empty"),
        (["train", "pretrain-tiny", "--data.train", "absent.json"], "absent.json"),
        (["evaluate", "nowhere", "--data", "absent.json"], "nowhere: no saved model here"),
        (["evaluate", "emoji", "--data", "absent.json"], "absent.json"),
        (["convert", "absent.pth", "--out", "x"], "absent.pth"),
        (["recipes", "pretrain-15m"], "did you mean pretrain-14m?"),
    ],
)
def test_command_line_errors_name_the_remedy(arguments, said, tmp_path):
    done = albef(*arguments, *(["--out", tmp_path / "run"] if arguments[:2] == ["train", "pretrain-tiny"] else []))
    assert done.returncode != 0 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_operations_are_counted_by_the_length_of_each_text(world, tmp_path):
    task = make_task(tiny_recipe(world))
    assert task.flops_per_pair() == 0, "no step, no count"
    counts = []
    for length in (2, 5):  # of all texts but one
        ids = torch.full((4, 5), 7)
        mask = (torch.arange(5) < torch.tensor([5, length, length, length])[:, None]).long()
        batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)}
        batch |= {"image_id": torch.arange(4), "text_id": torch.arange(4)}
        batch = task.prepare(batch, torch.device("cpu"))
        task.losses(task.objective, batch, 0, 1.0)
        counts.append(task.flops_per_pair())
        options, lengths = task.recipe.objective, mask.sum(1).tolist()
        wanted = pretraining_flops(task.model.config, lengths, options.mlm_probability, options.itm_negatives)
        assert counts[-1] == pytest.approx(wanted), lengths
    assert counts[0] < counts[1]


def test_parts_learn_at_their_own_rates():
    model = AlbefModel(preset("tiny"))
    optim = Optim(lr=1.0, weight_decay=0.1, rates={"text_encoder": 0.1, "text_encoder.layers.0": 0.5, "temp": 0.0})
    optimizer = make_optimizer(model, optim)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            of_layer, of_text = name.startswith("text_encoder.layers.0"), name.startswith("text_encoder")
            assert group["rate"] == (0.5 if of_layer else 0.1 if of_text else 0.0 if name == "temp" else 1.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    with pytest.raises(AlbefValueError, match="begins with nowhere; parts of the model are fusion_encoder,"):
        make_optimizer(model, replace(optim, rates={"nowhere": 1.0}))
