"""`albef evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from albef.commands.common import check_places, image_size
from albef.protocols import Rules


@dataclass(frozen=True, kw_only=True)
class Evaluate(Rules):
    """A saved model of any task by that task's official rules.

    albef evaluate runs/mine/model --data dev.json --image-root images --json figures.json
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """folder of a saved model, e.g. runs/mine/model; or emoji, photos or world, which come along; or hf://owner/name"""

    data: Annotated[tuple[str, ...], arg(metavar="DATA ...")]
    """the task's JSON lists; tar shards, folders, world:test"""

    image_size: str | None = None
    """pixels, if other than the model's: 384, or height and width, 256x512"""

    json: Path | None = None
    """also write the figures to this file"""

    def run(self) -> None:
        check_places(self.results, self.json)
        from albef import distributed, evaluation, pipeline
        from albef.files import write_atomically

        rules = Rules(**{field.name: getattr(self, field.name) for field in fields(Rules)})
        size = image_size(self.image_size) or evaluation.size_of(rules)
        with distributed.session() as device:
            loaded = pipeline.load(self.model, device=device, image_size=size)
            figures = evaluation.measure(loaded, self.data, rules, print)
            if distributed.rank() == 0:
                print(evaluation.table(figures))
                if self.json:
                    write_atomically(self.json, json.dumps(figures, indent=2) + "\n")
