"""What is saved of a run: whole or passed over, by one process, and enough to go on exactly."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from albef import distributed
from albef.engine import checkpointer, train
from albef.engine.checkpointer import newest, owned, read_newest, write_whole
from albef.engine.optim import make_optimizer
from albef.engine.runtime import Runtime
from albef.engine.state import load_optimizer_state, optimizer_state
from albef.recipe import Optim, Recipe
from albef.tasks import make_task
from tests.ranks import two_ranks
from tests.toys import Toy, ToyObjective, toy_recipe

CPU = torch.device("cpu")
OLD = Path(__file__).parent / "golden" / "run-0.1.0"


def run(folder, make=Toy, **changes):
    return train.train(make, toy_recipe(**changes), folder, CPU)


def lines(folder, kind="itc"):
    return [line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if kind in line]


def failing(step, part="losses", error=MemoryError):
    """A toy whose `part` fails once at `step`."""
    done = []

    class Failing(Toy):
        def __getattribute__(self, name):
            if name == part and not done and object.__getattribute__(self, "step") == step:
                done.append(step)
                raise error
            return object.__getattribute__(self, name)

    return Failing


def same(one, other):
    """Whether two checkpoints hold the same run, but for the time it took."""
    one, other = read_newest(one), read_newest(other)
    for state in (one, other):
        state.pop("seconds")
        flat = [*state.pop("objective").items()]
        flat += [(f"{n}.{k}", v) for n, values in state.pop("optimizer").items() for k, v in values.items()]
        state["tensors"] = {name: value.numpy().tobytes() for name, value in flat}
    return one == other


# Files


def test_two_generations_are_of_two_steps(tmp_path):
    """Where an evaluation and a save fall together, or at the end, a step is saved more than once."""
    run(tmp_path, save_steps=4, evaluate_steps=4)
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*.pt"))
    assert names == ["checkpoint-00000016-evaluated.pt", "checkpoint-00000020-finished.pt"]


def test_two_generations_are_kept_with_their_checksums(tmp_path):
    run(tmp_path)
    names = sorted(path.name for path in tmp_path.glob("checkpoint*"))
    assert names == [
        f"checkpoint-{step}{kind}" for step in ("00000018", "00000020-finished") for kind in (".pt", ".sha256")
    ]
    subprocess.run(["sha256sum", "--check", "--quiet", *tmp_path.glob("*.sha256")], cwd=tmp_path, check=True)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "no checksum", "cut checksum", "no text"])
def test_a_torn_checkpoint_is_named_and_passed_over(tmp_path, damage):
    run(tmp_path / "whole")
    with pytest.raises(MemoryError):
        run(tmp_path / "torn", failing(10))
    path = newest(tmp_path / "torn")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 1000 if damage == "cut" else 0])
    elif damage == "flipped":
        path.write_bytes(content)
    else:
        path.with_suffix(".sha256").write_bytes(b"" if damage == "cut checksum" else b"\xff")
        if damage == "no checksum":
            path.with_suffix(".sha256").unlink()
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged: .*goes on from checkpoint-00000006.pt"):
        run(tmp_path / "torn")
    assert same(tmp_path / "whole", tmp_path / "torn")
    assert len(list((tmp_path / "torn").glob("checkpoint*.pt"))) == 2


def test_all_torn_says_so(tmp_path):
    run(tmp_path)
    for path in tmp_path.glob("checkpoint*.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is damaged: .* is damaged: .*delete the folder"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["model/line.json", "best/line.json", "best/score.json", "run.json"])
def test_exports_are_never_read(tmp_path, name):
    run(tmp_path / "whole")
    with pytest.raises(train.Interrupted):
        run(tmp_path / "torn", stopping(10))
    path = tmp_path / "torn" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    run(tmp_path / "torn")
    assert same(tmp_path / "whole", tmp_path / "torn")
    model = Path("model", "line.json")
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "torn" / model).read_bytes()


def stopping(step):
    class Stopping(Toy):
        def losses(self, objective, batch, at, progress):
            if at == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(objective, batch, at, progress)

    return Stopping


@pytest.mark.parametrize("where", ["checkpoint", "checksum"])
def test_a_full_disk_surfaces_and_leaves_the_one_before(tmp_path, monkeypatch, where):
    """As an OSError with the remedy, though torch.save makes a RuntimeError of it; and what was begun takes no room."""
    owner, name = (checkpointer._Hashed, "write") if where == "checkpoint" else (checkpointer, "write_atomically")
    write = getattr(owner, name)

    def fill(file, content):
        if (tmp_path / "checkpoint-00000006.pt").exists() and not str(file).endswith((".tmp", ".json")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    monkeypatch.setattr(owner, name, fill)
    with pytest.raises(OSError, match=r"checkpoint-00000009.*No space left on device.*Make room.*--resume"):
        run(tmp_path, evaluate_steps=0)
    assert newest(tmp_path).name == "checkpoint-00000006.pt"
    assert not list(tmp_path.glob(".*"))


def test_saving_does_not_hold_up_the_steps(tmp_path, monkeypatch):
    """A write that takes long is waited for by the next write and at the end, not by the steps in between."""
    write = checkpointer.write_whole

    def slow(path, state):
        time.sleep(0.5)
        write(path, state)

    monkeypatch.setattr(checkpointer, "write_whole", slow)
    started = time.perf_counter()
    run(tmp_path, steps=19, save_steps=10, evaluate_steps=0)
    assert lines(tmp_path)[-1]["seconds"] < 0.4
    assert time.perf_counter() - started > 1.0
    assert newest(tmp_path).name == "checkpoint-00000019-finished.pt"


@pytest.mark.parametrize("moment", [1, 2])
def test_a_first_save_that_is_cut_off_leaves_a_run_that_begins_anew(tmp_path, monkeypatch, moment):
    """While the checkpoint is written, and while its checksum is."""
    write, calls = checkpointer.write_atomically, []

    def cut(path, content):
        if path.name != checkpointer.HOLDER:
            calls.append(path)
            if len(calls) == moment:
                raise MemoryError
        write(path, content)

    monkeypatch.setattr(checkpointer, "write_atomically", cut)
    with pytest.raises(MemoryError):
        run(tmp_path / "cut")
    monkeypatch.undo()
    (tmp_path / "cut" / ".checkpoint-00000003.pt.5-a1.tmp").write_bytes(b"of a process that was killed")
    run(tmp_path / "cut")
    run(tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".*"))


# One process at a time


def test_a_second_process_says_who_trains_and_leaves(tmp_path):
    with owned(tmp_path):
        code = "import sys; from tests.test_state import *; run(Path(sys.argv[1]))"
        root = Path(__file__).parents[1]
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1 and f"process {os.getpid()} on " in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.pt"))
    run(tmp_path)  # once it is free


def test_what_a_run_below_is_writing_is_left_alone(tmp_path):
    """`--out runs`, while runs/other trains."""
    other = tmp_path / "other" / ".checkpoint-00000003.pt.tmp"
    other.parent.mkdir()
    other.write_bytes(b"half of it")
    run(tmp_path, steps=1)
    assert other.exists()


def test_tasks_of_slurm_without_a_rank_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(RuntimeError, match="srun starts 8 tasks, none of which has a RANK"), distributed.session():
        pass


# Going on


@pytest.mark.parametrize("step", [8, 12, 20])
def test_an_evaluation_that_a_crash_cut_off_is_made_up_for(tmp_path, step):
    """At a step that is saved too, in between, and at the end."""
    whole = run(tmp_path / "whole", save_steps=4)
    with pytest.raises(MemoryError):
        run(tmp_path / "cut", failing(step, "evaluate"), save_steps=4)
    assert run(tmp_path / "cut", save_steps=4) == whole
    assert same(tmp_path / "whole", tmp_path / "cut")
    for kind in ("itc", "evaluation"):
        assert [line["step"] for line in lines(tmp_path / "cut", kind)] == [
            line["step"] for line in lines(tmp_path / "whole", kind)
        ]
    score = Path("best", "score.json")
    assert (tmp_path / "whole" / score).read_text() == (tmp_path / "cut" / score).read_text()


def test_speed_after_going_on_is_that_of_its_own_steps(tmp_path):
    with pytest.raises(MemoryError):
        run(tmp_path, failing(19), save_steps=18, log_steps=4)
    state = read_newest(tmp_path)
    write_whole(newest(tmp_path), {**state, "seconds": state["seconds"] + 1000})
    run(tmp_path, log_steps=4, save_steps=18)
    assert lines(tmp_path)[-1]["samples_per_second"] > 10 and lines(tmp_path)[-1]["seconds"] > 1000


def test_tensorboard_drops_the_steps_that_are_done_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(MemoryError):
        run(tmp_path, failing(8), tensorboard=True)
    run(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("itc")] == list(range(1, 21))


def test_a_failed_start_does_not_block_its_correction(tmp_path):
    def absent(recipe, saved):
        raise FileNotFoundError("trian.json")

    with pytest.raises(FileNotFoundError):
        run(tmp_path, absent, seed=1)
    run(tmp_path, seed=2)
    assert Recipe.load(tmp_path / "recipe.json").seed == 2
    with pytest.raises(ValueError, match="different: seed"):
        run(tmp_path, seed=3)


def test_a_run_without_checkpoint_begins_anew_and_keeps_its_log(tmp_path):
    with pytest.raises(MemoryError):
        run(tmp_path, failing(5), save_steps=0)
    run(tmp_path, save_steps=0)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 21))
    assert (tmp_path / "log.jsonl.1").is_file() and (tmp_path / "best.1" / "score.json").is_file()


def test_figures_of_numpy_can_be_read_again(tmp_path):
    class Measured(Toy):
        def evaluate(self):
            return {"distance": np.float64(super().evaluate()["distance"])}

    run(tmp_path, Measured)
    assert type(read_newest(tmp_path)["evaluation"]["distance"]) is float


def test_a_task_is_made_from_what_was_saved(tmp_path):
    made = []

    def make(recipe, saved):
        made.append(saved)
        return Toy(recipe, saved)

    with pytest.raises(train.Interrupted):
        run(tmp_path, stopping(5))
    run(tmp_path, make)
    assert made == [{"answers": ["yes", "no"]}]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_a_run_does_not_hold_the_checkpoint_it_went_on_from(tmp_path):
    """A file that is mapped takes room on the disk after it was deleted."""
    mapped = []

    class Looking(Toy):
        def evaluate(self):
            mapped.append("checkpoint-" in Path("/proc/self/maps").read_text())
            return super().evaluate()

    with pytest.raises(train.Interrupted):
        run(tmp_path, stopping(5))
    run(tmp_path, Looking)
    assert mapped and not any(mapped)


def test_the_optimiser_is_saved_by_names():
    """Another order of the parameters changes nothing."""
    objective = ToyObjective(3)
    optimizer = make_optimizer(objective, Optim(lr=0.1))
    objective(torch.randn(4, 2)).backward()
    optimizer.step()
    other = ToyObjective(3)
    other._modules["line"]._parameters = dict(reversed(other._modules["line"]._parameters.items()))
    other._parameters = dict(reversed(other._parameters.items()))
    its = make_optimizer(other, Optim(lr=0.1))
    load_optimizer_state(other, its, optimizer_state(objective, optimizer))
    found = optimizer_state(other, its)
    for name, values in optimizer_state(objective, optimizer).items():
        assert all(torch.equal(value, found[name][key]) for key, value in values.items()), name
    with pytest.raises(ValueError, match=r"1 parameters that the model lacks \(nobody\)"):
        load_optimizer_state(other, its, {"nobody": {}})


# Numbers that are not finite


class Exploding(Toy):
    """One gradient of step 5 is too large for its square."""

    def losses(self, objective, batch, step, progress):
        loss = super().losses(objective, batch, step, progress)["itc"]
        return {"itc": loss + (1e25 * self.objective.line.weight.sum() if step == 4 else 0)}


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_overflows_reaches_neither_weights_nor_checkpoint(tmp_path, clip_norm):
    made = []

    def make(recipe, saved):
        made.append(Exploding(recipe, saved))
        return made[0]

    optim = Optim(lr=0.01, min_lr=0.001, warmup_lr=0.001, clip_norm=clip_norm)
    with pytest.raises(FloatingPointError, match=r"step 5: .*gradient_norm inf.*lower optim.lr, or .*optim.clip_norm"):
        run(tmp_path, make, optim=optim, log_steps=2, save_steps=2, evaluate_steps=0)
    assert all(bool(value.isfinite().all()) for value in made[0].objective.state_dict().values())
    assert read_newest(tmp_path)["step"] == 4


def test_a_loss_that_is_not_a_number_is_never_saved(tmp_path):
    """Though the log looks at it first, at the same step."""

    class Wild(Toy):
        def losses(self, objective, batch, step, progress):
            loss = super().losses(objective, batch, step, progress)["itc"]
            return {"itc": loss * (float("nan") if step == 7 else 1)}

    with pytest.raises(FloatingPointError, match=r"step 8: a loss is not a number.*itc nan"):
        run(tmp_path, Wild, log_steps=10, save_steps=4, evaluate_steps=0)
    assert read_newest(tmp_path)["step"] == 4


# Devices


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA RTX A1000", "bfloat16", None),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA A10G", "bfloat16", None),
    ],
)
def test_peaks_are_of_exact_names_and_of_the_precision(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert Runtime(torch.device("cuda", 0), precision).peak_flops() == peak


def test_what_a_run_computes_on_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("albef.engine.runtime.computes_in_bfloat16", lambda _: False)
    run(tmp_path, precision="auto")
    assert "computes on cpu in float32, the device does not compute in bfloat16" in capsys.readouterr().err


def test_switches_are_put_back(tmp_path):
    seen = []

    class Looking(Toy):
        def evaluate(self):
            seen.append((torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()))
            return {}

    run(tmp_path, Looking, precision="tf32", deterministic=True, steps=1, evaluate_steps=0)
    assert seen == [("high", True)]
    assert torch.get_float32_matmul_precision() == "highest" and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("kind", "ranks", "wanted"),
    [(None, 1, "cpu"), ("cuda", 2, "cuda:1"), ("xpu", 2, "xpu:1"), ("mps", 1, "mps:0"), ("mps", 2, "cpu")],
)
def test_the_accelerator_of_a_rank(monkeypatch, kind, ranks, wanted):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: ranks)
    if ranks > 1:
        for name, value in {"RANK": 1, "WORLD_SIZE": ranks, "LOCAL_RANK": 1}.items():
            monkeypatch.setenv(name, str(value))
    assert distributed.own_device() == torch.device(wanted)


def test_a_rank_without_a_device_says_so(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(RuntimeError, match="rank 1 of this host has no device, there are 1; lower --nproc-per-node"):
        distributed.own_device()


# Runs of version 0.1.0


def test_a_run_of_version_0_1_0_goes_on(tmp_path):
    """With its losses and figures, as that version would have had them in one piece."""
    folder = tmp_path / "run"
    shutil.copytree(OLD, folder)
    train.train(make_task, Recipe.load(folder / "recipe.json"), folder, CPU)
    wanted = [json.loads(line) for line in (folder / "undisturbed.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        for name in {"itc", "itm", "mlm", "lr"} & other.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-4), one
        for way, figures in other.get("evaluation", {}).items():  # this version knows one way of scoring more
            assert one["evaluation"][way] == figures, one
    assert newest(folder).name == "checkpoint-00000010-finished.pt"
    old, best = (json.loads((place / "best" / "score.json").read_text())["score"] for place in (OLD, folder))
    assert best >= old


def test_a_damaged_run_of_version_0_1_0_names_the_file(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(OLD, folder)
    (folder / "model" / "config.json").write_text("")
    with pytest.raises(ValueError, match=r"model/config\.json: .*restore it"):
        train.train(make_task, Recipe.load(folder / "recipe.json"), folder, CPU)
    (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        train.train(make_task, Recipe.load(folder / "recipe.json"), folder, CPU)


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    """And figures may be NumPy's."""

    class Scored(Toy):
        def evaluate(self):
            super().evaluate()
            return {"distance": np.float32([0.5, math.nan, 0.1, 0.7, math.nan][len(self.evaluated) - 1])}

        def score(self, evaluation):
            return evaluation["distance"]

    train.train(Scored, toy_recipe(), tmp_path, CPU)
    scored = json.loads((tmp_path / "best" / "score.json").read_text())
    assert (scored["step"], round(scored["score"], 3)) == (16, 0.7)


# Two ranks


def _stop_at_once(rank, folder):
    write = checkpointer.write_whole

    def slow(path, state):
        time.sleep(1.0)
        write(path, state)

    checkpointer.write_whole = slow
    with pytest.raises(train.Interrupted):
        run(folder, stopping(5) if rank else Toy, save_steps=0)
    assert newest(folder).name == "checkpoint-00000010.pt", "a rank left before the checkpoint was written"


def _see_broken(rank, folder):
    class Broken(Toy):
        def batches(self, start_step):
            for step in range(start_step, 100):
                yield {"broken": [(f"{rank}-{step}.png", "empty")] if step % 5 == rank else []}

    recipe = toy_recipe(evaluate_steps=0, log_steps=10)
    train.train(Broken, replace(recipe, data=replace(recipe.data, broken_limit=0.5)), folder, CPU)


def _overflow(rank, folder):
    class OnOne(Exploding):
        def losses(self, objective, batch, step, progress):
            return super().losses(objective, batch, step if rank else 0, progress)

    with pytest.raises(FloatingPointError, match="step 5"):
        run(folder, OnOne, log_steps=2, save_steps=2, evaluate_steps=0)


def _gather(rank):
    for own in (torch.arange(6.0).view(3, 2), torch.arange(3)):
        assert torch.equal(distributed.gather(own + 10 * rank), torch.cat([own, own + 10]))
    assert distributed.from_first(["of", rank]) == ["of", 0]


def _all_that_two_ranks_do(rank, folder):
    _stop_at_once(rank, folder / "stopped")
    _see_broken(rank, folder / "broken")
    _overflow(rank, folder / "overflow")
    _gather(rank)
    with pytest.raises(RuntimeError, match="trains in this folder already"):
        run(folder / "held")
    with pytest.raises(FileExistsError):
        run(folder / "held" / "run.json")


def test_two_ranks_stop_count_complain_and_refuse_together(tmp_path):
    """A stop with a slow save; broken images of both; one rank's overflow; somebody else's folder; no folder."""
    with owned(tmp_path / "held"):
        two_ranks(_all_that_two_ranks_do, tmp_path)
    counted = lines(tmp_path / "broken")
    assert [line["broken"] for line in counted] == [4, 8]
    named = [name for line in counted for name in line["broken_images"]]
    assert sorted(named) == sorted(f"{rank}-{step}.png (empty)" for rank in (0, 1) for step in range(rank, 20, 5))
    assert read_newest(tmp_path / "broken")["broken"] == {
        "seen": 20 * 4 + 8,
        "failures": 8,
        "reasons": {name.removesuffix(" (empty)"): "empty" for name in named},
        "named": 8,
    }
    assert read_newest(tmp_path / "overflow")["step"] == 4


# Killed


@pytest.mark.parametrize("options", [["--kills", 5], ["--kills", 3, "--ranks", 2]], ids=["alone", "two ranks"])
def test_killed_runs_go_on_to_the_bytes_of_an_undisturbed_one(options):
    """`python -m tests.kills --kills 20` is the long form."""
    command = [sys.executable, "-m", "tests.kills", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
