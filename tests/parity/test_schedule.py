"""Learning rates and distillation weights of every official training script, step by step."""

import pytest

from albef.engine.optim import official_learning_rate, ramp
from albef.recipe import Optim
from tests.parity import golden


def runs():
    return golden.json_of("lr_schedule")


def name(run):
    return f"{run['script']}-{run['steps_per_epoch']}x{run['epochs_run']}"


def expand(changes, steps):
    """A value for every step from the steps at which it changes."""
    ends = [step for step, _ in changes[1:]] + [steps]
    return [value for (step, value), end in zip(changes, ends, strict=True) for _ in range(step, end)]


@pytest.mark.parametrize("run", runs(), ids=name)
def test_learning_rate(run):
    schedule, per_epoch = run["schedule"], run["steps_per_epoch"]
    assert schedule["sched"] == "cosine"
    optim = Optim(**{field: schedule[field] for field in ("lr", "min_lr", "warmup_lr", "warmup_epochs")})
    recorded = expand(run["lr_changes"], run["epochs_run"] * per_epoch)
    ours = [official_learning_rate(optim, step, per_epoch, schedule["epochs"]) for step in range(len(recorded))]
    assert ours == pytest.approx(recorded, rel=1e-9, abs=0)


@pytest.mark.parametrize("run", [run for run in runs() if run["alpha_config"] is not None], ids=name)
def test_distillation_weight(run):
    per_epoch, warm_up = run["steps_per_epoch"], run["warm_up"] in (None, True)
    last = run["alpha_changes"][-1][0] + 1  # only the first changes are recorded
    recorded = expand(run["alpha_changes"], last)
    ours = [ramp(run["alpha_config"], step, per_epoch if warm_up else 0) for step in range(last)]
    assert ours == pytest.approx(recorded, abs=1e-9)  # recorded with nine decimals
