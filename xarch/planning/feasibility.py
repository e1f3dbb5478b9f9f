"""What of a configuration can be done: exports that a small copy passes."""

from __future__ import annotations

from typing import Any

from xarch.config.schema import RunConfig
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.model import Student
from xarch.errors import PlanError
from xarch.planning.export_check import trial_operators
from xarch.planning.plan import (
    PlannedExport,
)
from xarch.planning.resolve import Resolved
from xarch.registry.registry import Registry


def planned_export(
    registry: Registry, target: Resolved, student: Student, facts: Any, name: str, config: RunConfig
) -> PlannedExport:
    """Graphs and operators of one export.

    Raises:
        PlanError: they do not fit the profile.
    """
    profile = registry.create("export", name)
    adapter: TargetAdapter = target.adapter
    with registry.guard(registry.get("target", target.name), f"export graphs for {name}"):
        graphs = adapter.export_graphs(student, profile, config.export.options)
        free = [f"{g.name}.{i}" for g in graphs for i in g.dynamic]
        if profile.static and free:
            raise PlanError(f"export {name!r} needs static shapes; {', '.join(free[:3])} are dynamic")
        operators = trial_operators(adapter, facts, target.options, profile, config.export.options)
    return PlannedExport(profile=name, opset=profile.max_opset, graphs=[g.name for g in graphs], operators=operators)
