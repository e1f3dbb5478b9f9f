"""Conformance classes for the tests of plugins, one per registered kind; subclass them.

The names load on first use; pytest collects a class only where a plugin subclasses it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "BatchStepConformance": "xarch.testing.batch_step",
    "ConnectorConformance": "xarch.testing.connector",
    "DataConformance": "xarch.testing.data",
    "FamilyConformance": "xarch.testing.family",
    "MethodConformance": "xarch.testing.method",
    "MetricConformance": "xarch.testing.metric",
    "ObjectiveConformance": "xarch.testing.objective",
    "OptimiserConformance": "xarch.testing.optimiser",
    "ScheduleConformance": "xarch.testing.optimiser",
    "SourceConformance": "xarch.testing.source",
    "StageConformance": "xarch.testing.stage",
    "TargetConformance": "xarch.testing.target",
}

__all__ = [
    "BatchStepConformance",
    "ConnectorConformance",
    "DataConformance",
    "FamilyConformance",
    "MethodConformance",
    "MetricConformance",
    "ObjectiveConformance",
    "OptimiserConformance",
    "ScheduleConformance",
    "SourceConformance",
    "StageConformance",
    "TargetConformance",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'xarch.testing' has no attribute {name!r}")


if TYPE_CHECKING:
    from xarch.testing.batch_step import BatchStepConformance
    from xarch.testing.connector import ConnectorConformance
    from xarch.testing.data import DataConformance
    from xarch.testing.family import FamilyConformance
    from xarch.testing.method import MethodConformance
    from xarch.testing.metric import MetricConformance
    from xarch.testing.objective import ObjectiveConformance
    from xarch.testing.optimiser import OptimiserConformance, ScheduleConformance
    from xarch.testing.source import SourceConformance
    from xarch.testing.stage import StageConformance
    from xarch.testing.target import TargetConformance
