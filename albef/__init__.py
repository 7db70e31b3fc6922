"""ALBEF: align vision and language before fusing them (Li et al., NeurIPS 2021).

from albef import AlbefModel, Processor

model, processor = AlbefModel.from_pretrained(folder), Processor.from_pretrained(folder)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from albef.data.processor import Processor as Processor
    from albef.data.sources import open_sources as open_sources
    from albef.evaluation import evaluate as evaluate
    from albef.models.albef import AlbefModel as AlbefModel
    from albef.models.answering import AlbefForAnswering as AlbefForAnswering
    from albef.models.classifier import AlbefForClassification as AlbefForClassification
    from albef.models.classifier import AlbefForPairs as AlbefForPairs
    from albef.models.config import AlbefConfig as AlbefConfig
    from albef.models.config import preset as preset
    from albef.objectives.pretrain import PretrainObjective as PretrainObjective
    from albef.pipeline import Pipeline as Pipeline
    from albef.pipeline import load as load
    from albef.protocols import PROTOCOLS as PROTOCOLS
    from albef.protocols import Rules as Rules
    from albef.recipe import Recipe as Recipe

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
    "evaluate": "albef.evaluation",
    "load": "albef.pipeline",
    "open_sources": "albef.data.sources",
    "preset": "albef.models.config",
    "PROTOCOLS": "albef.protocols",
    "Rules": "albef.protocols",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'albef' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
