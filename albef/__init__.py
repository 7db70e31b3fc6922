"""ALBEF: align vision and language before fusing them (Li et al., NeurIPS 2021).

from albef import AlbefModel, Processor

model, processor = AlbefModel.from_pretrained(folder), Processor.from_pretrained(folder)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> module; imported when first used, so that `import albef` costs nothing
_PUBLIC = {
    "AlbefConfig": "albef.models.config",
    "AlbefForAnswering": "albef.models.answering",
    "AlbefForClassification": "albef.models.classifier",
    "AlbefForPairs": "albef.models.classifier",
    "AlbefModel": "albef.models.albef",
    "Processor": "albef.data.processor",
    "PretrainObjective": "albef.objectives.pretrain",
    "Recipe": "albef.recipe",
    "Pipeline": "albef.pipeline",
    "load": "albef.pipeline",
    "open_sources": "albef.data.sources",
    "preset": "albef.models.config",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'albef' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
