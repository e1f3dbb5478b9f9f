"""Feasibility of a configuration: exports checked on a small copy, and all teacher weights accounted for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from xarch.config.schema import RunConfig
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.model import Initialisation, Student
from xarch.errors import PlanError
from xarch.planning.export_check import trial_operators
from xarch.planning.plan import Check, PlannedExport
from xarch.planning.resolve import Resolved, export_options
from xarch.registry.registry import Registry

SHOWN = 5


def planned_export(
    registry: Registry, target: Resolved, student: Student, facts: Any, name: str, config: RunConfig
) -> PlannedExport:
    """Check one export and return its graphs and operators.

    Raises:
        UsageError: an export option is invalid.
        PlanError: they do not satisfy the profile.
    """
    profile = registry.create("export", name, where="export.profiles")
    adapter: TargetAdapter = target.adapter
    options = export_options(adapter, config)
    with registry.guard(registry.get("target", target.name), f"export graphs for {name}"):
        graphs = adapter.export_graphs(student, profile, options)
        free = [f"{g.name}.{i}" for g in graphs for i in g.dynamic]
        if profile.static and free:
            raise PlanError(f"export {name!r} needs static shapes; {', '.join(free[:3])} are dynamic")
        operators = trial_operators(adapter, facts, target.options, profile, options)
    return PlannedExport(profile=name, opset=profile.max_opset, graphs=[g.name for g in graphs], operators=operators)


def initialisation_checks(start: Initialisation, weights: Collection[str] | None) -> list[Check]:
    """Check what initialisation does, and that it accounts for every teacher tensor.

    Args:
        start: planned initialisation.
        weights: names of the teacher's tensors; None if unknown before the weights are loaded.

    Raises:
        PlanError: a teacher tensor would be silently dropped, or one to be read does not exist.
    """
    own = f", {len(start.own)} from its own weights" if start.own else ""
    counts = f"{len(start.copied)} tensors copied, {len(start.mapped)} mapped{own}, {len(start.new)} new"
    unused = f", {len(start.unused)} of the teacher unused" if start.unused else ""
    checks = [Check(name="initialisation", state="ok", detail=counts + unused)]
    if not (start.copied or start.mapped):
        return checks
    if weights is None:
        why = "its headers do not list tensor names; checked when the weights are loaded"
        return [*checks, Check(name="teacher's weights", state="not checked", detail=why)]
    account_for(start, weights)
    return [*checks, Check(name="teacher's weights", state="ok", detail=f"all {len(weights)} are accounted for")]


def account_for(start: Initialisation, weights: Collection[str]) -> None:
    """Check that every teacher tensor is read by a student tensor, or is deliberately not read.

    Raises:
        PlanError: a tensor would be silently dropped.
    """
    if not (start.copied or start.mapped):
        return
    sources = start.sources or {}
    read = {name for own in (*start.copied, *start.mapped) for name in sources.get(own, (own,))}
    dropped = sorted(set(weights) - read - set(start.unused))
    if dropped:
        raise PlanError(
            f"{len(dropped)} teacher tensors would be dropped: no student tensor reads "
            f"{', '.join(dropped[:SHOWN])}{', …' if len(dropped) > SHOWN else ''}",
            "the target does not support these parts of the teacher; it should read them, list them in "
            "Initialisation.unused, or reject such a teacher",
        )
