"""What a plugin's tests import: conformance classes to subclass, and small models made in code.

The names load on first use; pytest collects a class only where a plugin subclasses it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "SourceConformance": "xarch.testing.source",
    "TargetConformance": "xarch.testing.target",
    "tiny_llama": "xarch.testing.tiny",
    "tiny_text": "xarch.testing.tiny",
}

__all__ = ["SourceConformance", "TargetConformance", "tiny_llama", "tiny_text"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'xarch.testing' has no attribute {name!r}")


if TYPE_CHECKING:
    from xarch.testing.source import SourceConformance
    from xarch.testing.target import TargetConformance
    from xarch.testing.tiny import tiny_llama, tiny_text
