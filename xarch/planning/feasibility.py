"""What of a configuration can be done: exports that a small copy passes, weights that are all accounted for."""

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
    """Graphs and operators of one export.

    Raises:
        UsageError: an option of the export is wrong.
        PlanError: they do not fit the profile.
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
    """What initialisation does, and whether it accounts for every tensor of the teacher.

    Args:
        start: as planned.
        weights: names of the teacher's tensors; None if they are not known before the weights are loaded.

    Raises:
        PlanError: a tensor of the teacher would be dropped without a word, or one that is to be read does not exist.
    """
    counts = f"{len(start.copied)} tensors copied, {len(start.mapped)} mapped, {len(start.new)} new"
    unused = f", {len(start.unused)} of the teacher unused" if start.unused else ""
    checks = [Check(name="initialisation", state="ok", detail=counts + unused)]
    if not (start.copied or start.mapped):
        return checks
    if weights is None:
        why = "its headers do not tell their names; proven when they are loaded"
        return [*checks, Check(name="teacher's weights", state="not checked", detail=why)]
    account_for(start, weights)
    return [*checks, Check(name="teacher's weights", state="ok", detail=f"all {len(weights)} are accounted for")]


def account_for(start: Initialisation, weights: Collection[str]) -> None:
    """Every tensor of the teacher is read by one of the student's, or is deliberately not read.

    Raises:
        PlanError: a tensor would be dropped without a word.
    """
    if not (start.copied or start.mapped):
        return
    sources = start.sources or {}
    read = {name for own in (*start.copied, *start.mapped) for name in sources.get(own, (own,))}
    dropped = sorted(set(weights) - read - set(start.unused))
    if dropped:
        raise PlanError(
            f"{len(dropped)} tensors of the teacher would be dropped: nothing of the student comes from "
            f"{', '.join(dropped[:SHOWN])}{', …' if len(dropped) > SHOWN else ''}",
            "the target does not know this teacher's parts; it should read them, name them in "
            "Initialisation.unused, or refuse such a teacher",
        )
