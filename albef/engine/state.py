"""The whole state of a run, as one value that is saved and loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from albef.data.broken import BrokenCounter
from albef.errors import AlbefValueError

FORMAT = 1
"""Of a saved state. Version 0.1.0 wrote none, see `engine.legacy`."""

OptimizerState = dict[str, dict[str, Tensor]]  # by parameter: step [], exp_avg and exp_avg_sq of its shape


@dataclass
class RunState:
    """A run between two steps.

    objective       student, teacher and queues
    optimizer       AdamW; its state is saved by the names of parameters, whose order may change
    task            what the task needs to be made again without its sources: sizes, words, answers; plain values
    recipe          the recipe's values
    fingerprint     of the training data: `pairs`, and digests of samples by what they say
    broken          images that could not be read, of all ranks; the first `named` of them stand in the log
    step, seconds   steps done, and the time they took
    evaluation      the last one's figures, of `evaluated_step`; the run began with an evaluation at -1
    best            score and step of the best evaluation
    finished        whether the run has reached its end, and has been evaluated and exported there
    """

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    task: dict[str, Any]
    recipe: dict[str, Any]
    fingerprint: dict[str, Any]
    broken: BrokenCounter
    named: int = 0
    step: int = 0
    seconds: float = 0.0
    evaluation: dict[str, Any] = field(default_factory=dict)
    evaluated_step: int = -1
    best: tuple[float, int] | None = None
    finished: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts, lists and dicts only, so that `torch.load(weights_only=True)` reads them."""
        return {
            "format": FORMAT,
            "objective": self.objective.state_dict(),
            "optimizer": optimizer_state(self.objective, self.optimizer),
            "task": self.task,
            "recipe": self.recipe,
            "fingerprint": self.fingerprint,
            "broken": {
                "seen": self.broken.seen,
                "failures": self.broken.failures,
                "reasons": dict(self.broken.reasons),
                "named": self.named,
            },
            "step": self.step,
            "seconds": self.seconds,
            "evaluation": self.evaluation,
            "evaluated_step": self.evaluated_step,
            "best": self.best,
            "finished": self.finished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave. ValueError for another format or another number of pairs.

        `task` and `recipe` stay as they are: the task was made from the saved one, and the recipes have been compared.
        """
        check_format(state)
        self.objective.load_state_dict(state["objective"])
        load_optimizer_state(self.objective, self.optimizer, state["optimizer"])
        broken = state["broken"]
        self.broken.seen, self.broken.failures = broken["seen"], broken["failures"]
        self.broken.reasons, self.named = dict(broken["reasons"]), broken["named"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.evaluation, self.evaluated_step = state["evaluation"], state["evaluated_step"]
        self.best = tuple(state["best"]) if state["best"] else None
        self.finished = state["finished"]


def check_format(state: dict[str, Any]) -> None:
    if state.get("format") != FORMAT:
        raise AlbefValueError(
            f"the checkpoint has format {state.get('format')!r}, this version reads {FORMAT} and those of 0.1.0; "
            "go on with the version of albef that wrote it, or a newer one"
        )


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimiser's state of each parameter of `module`, by the parameter's name."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {names[parameter]: dict(values) for parameter, values in optimizer.state.items()}


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Loads what `optimizer_state` gave. ValueError for a name that belongs to none of the optimiser's parameters."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    if unknown := sorted(state.keys() - set(own)):
        raise AlbefValueError(
            f"the checkpoint's optimiser has {len(unknown)} parameters that the model lacks "
            f"({', '.join(unknown[:5])}); go on with the version of albef that wrote it"
        )
    # cloned, since on a CPU the optimiser would otherwise keep what is mapped from the file
    numbered = {
        number: {key: value.clone() for key, value in state[name].items()}
        for number, name in enumerate(own)
        if name in state
    }
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
