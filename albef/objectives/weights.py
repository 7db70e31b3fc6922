"""What the paper's five losses count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

Weight = Annotated[float, Meta(ge=0, le=1e6)]


@dataclass(frozen=True)
class Weights:
    """What each loss of the paper counts in the sum. `itc_mod` and `mlm_mod` are momentum distillation's share of ITC
    and MLM: `(1 - alpha) * itc * hard + alpha * itc_mod * soft` (paper eq. 6 and 7, where all are 1)."""

    itc: Weight = 1.0
    itm: Weight = 1.0
    mlm: Weight = 1.0
    itc_mod: Weight = 1.0
    mlm_mod: Weight = 1.0
