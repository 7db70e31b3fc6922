"""What the paper's five losses count."""

from __future__ import annotations

from dataclasses import dataclass, fields

from albef.errors import AlbefValueError


@dataclass(frozen=True)
class Weights:
    """What each loss of the paper counts in the sum. `itc_mod` and `mlm_mod` are momentum distillation's share of ITC
    and MLM: `(1 - alpha) * itc * hard + alpha * itc_mod * soft` (paper eq. 6 and 7, where all are 1)."""

    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 1.0
    itc_mod: float = 1.0
    mlm_mod: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise AlbefValueError(f"objective.weights.{field.name} is {value}, but must be at least 0 and finite")
