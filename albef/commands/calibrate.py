"""`albef calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Fit, on validation pairs, how much ITM counts in a search, and the temperature of its probabilities.

    albef calibrate runs/mine/model --data dev.json

    Both numbers are written into the model's config.json, and search and match use them from then on. The pairs should
    be ones that the model was not trained on. See docs/tasks.md for what the probability then means.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """folder of a saved model, e.g. runs/mine/model; or emoji, photos or world, which come along; or hf://owner/name"""

    data: Annotated[tuple[str, ...], arg(metavar="DATA ...")]
    """JSON lists of images with captions, tar shards, folders, world:validation"""

    out: Path | None = None
    """write a calibrated copy of the model to this new folder, and leave the model as it is"""

    image_root: str | None = None
    """folder that the paths in JSON lists are relative to"""

    captions: int | None = None
    """only the first so many captions of each image"""

    k: int = 128
    """candidates on the shortlist"""

    def run(self) -> None:
        from albef import calibration, distributed, evaluation, pipeline

        calibration.check_place(self.model, self.out)
        with distributed.session() as device:
            loaded = pipeline.load(self.model, device=device)
            numbers, figures = calibration.calibrate(loaded, self.data, self.k, self.captions, self.image_root)
            if distributed.rank() == 0:
                print(evaluation.table(figures))
                print(f"written: {calibration.write(self.model, self.out, numbers)}")
