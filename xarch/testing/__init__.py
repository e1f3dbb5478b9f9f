"""What a plugin's tests import: conformance classes to subclass.

The names load on first use; pytest collects a class only where a plugin subclasses it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "SourceConformance": "xarch.testing.source",
    "TargetConformance": "xarch.testing.target",
}

__all__ = ["SourceConformance", "TargetConformance"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'xarch.testing' has no attribute {name!r}")


if TYPE_CHECKING:
    from xarch.testing.source import SourceConformance
    from xarch.testing.target import TargetConformance
