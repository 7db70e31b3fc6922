"""What `albef demo` does, beside the library that it shows; its modules are imported when they are first used.

run         pre-trains a tiny model on emoji, searches images in a drawing style that no training saw, explains both
search      searches these images with the model that comes with the package
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {"run": "albef_demo.emoji", "search": "albef_demo.shipped"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'albef_demo' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)
