"""Runs that version 0.1.0 began: their checkpoints in the form of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from albef.errors import AlbefValueError
from albef.models.legacy import upgrade

NAME = "checkpoint.pt"
MODEL, SCORE = "model", Path("best", "score.json")
FILES = ("tokenizer.json", "preprocessor_config.json")


def upgraded(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A checkpoint of any version as `RunState` takes it.

    That of 0.1.0 has no format, numbers the optimiser's parameters in the order of its two groups, and left the
    model's sizes and words to the run's `model` folder and the best score to `best/score.json`. ValueError that names
    the file if one of these cannot be read.
    """
    if "format" in state:
        return state
    lines = _lines(folder / "log.jsonl") if state["evaluation"] else []
    evaluated = [line["step"] for line in lines if line.get("evaluation") == state["evaluation"]]
    scored = _json(folder / SCORE) if (folder / SCORE).is_file() else None
    best = (scored["score"], scored["step"]) if scored and scored["step"] <= state["step"] else None
    task = _task(folder / MODEL)
    return {
        "format": 1,
        "objective": upgrade(state["objective"]),
        "optimizer": _by_name(state["objective"], state["optimizer"], task["config"].get("architecture")),
        "task": task,
        "recipe": {},
        "fingerprint": {"pairs": state["pairs"]},
        "broken": {"seen": 0, "failures": 0, "reasons": {}, "named": 0},
        "step": state["step"],
        "seconds": state["seconds"],
        "evaluation": state["evaluation"],
        "evaluated_step": evaluated[-1] if evaluated else -1,
        "best": best,
        "finished": False,
    }


def _by_name(objective: dict[str, Any], optimizer: dict[str, Any], architecture: str | None) -> dict[str, Any]:
    """The optimiser's state by parameter: first those without weight decay, then the others, as the model has them.

    A teacher's parameters and buffers are not learnt, so they are in neither group.
    """
    frozen = "model.vision_proj." if architecture == "AlbefForTextAssignment" else "teacher."
    learnt = [name for name in objective if name.startswith("model.") and not name.startswith(frozen)]
    plain = [name for name in learnt if objective[name].ndim == 1 or name.endswith(".bias")]
    names = plain + [name for name in learnt if name not in set(plain)]
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    if len(names) != len(numbers):
        raise AlbefValueError(
            f"the checkpoint's optimiser has {len(numbers)} parameters and its model {len(names)}; go on with the "
            "version of albef that wrote it"
        )
    known = optimizer["state"]
    state = {name: known[number] for name, number in zip(names, numbers, strict=True) if number in known}
    # a count of steps for each row, so that what splits a parameter by its rows splits its count too
    steps = upgrade({name: values["step"].expand(values["exp_avg"].shape[:1]) for name, values in state.items()})
    first, second = (
        upgrade({name: values[key] for name, values in state.items()}) for key in ("exp_avg", "exp_avg_sq")
    )
    return {
        name: {"step": step.flatten()[0], "exp_avg": first[name], "exp_avg_sq": second[name]}
        for name, step in steps.items()
    }


def _task(folder: Path) -> dict[str, Any]:
    answers = folder / "answers.json"
    return {
        "config": _json(folder / "config.json"),
        "files": {name: _text(folder / name) for name in FILES},
        **({"answers": _json(answers)} if answers.is_file() else {}),
    }


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise AlbefValueError(
            f"{path}: {error}; a run of version 0.1.0 needs it to go on, restore it from a copy, for example from best/"
        ) from error
    return text


def _json(path: Path) -> Any:
    return json.loads(_text(path))


def _lines(path: Path) -> list[dict[str, Any]]:
    """A log's lines; one that a crash cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
