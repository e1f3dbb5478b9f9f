"""What of a configuration can be done: stages whose taps exist, exports that a small copy passes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from xarch.config.schema import RunConfig, Stage
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.model import Student
from xarch.contracts.tap import Tap
from xarch.errors import PlanError
from xarch.planning.export_check import trial_operators
from xarch.planning.plan import (
    PlannedExport,
)
from xarch.planning.resolve import Resolved
from xarch.registry.registry import Registry


def active_stages(
    config: RunConfig, student: Student, teacher_taps: dict[str, Tap]
) -> tuple[list[tuple[str, Stage]], list[str]]:
    """The stages that run, and why optional ones do not."""
    active: list[tuple[str, Stage]] = []
    left_out: list[str] = []
    for name, stage in config.stages.items():
        if stage.skip:
            continue
        lacking = _lacking(stage, student, teacher_taps) if stage.optional else None
        if lacking is None:
            active.append((name, stage))
        else:
            left_out.append(f"stage {name} is left out: {lacking}")
    return active, left_out


def _lacking(stage: Stage, student: Student, teacher_taps: dict[str, Tap]) -> str | None:
    """The first tap of a stage's matches that one side does not have."""
    own = set(student.taps()) | {leaf for site in student.sites().values() for leaf in site.taps}
    known = set(teacher_taps) | {tap.leaf for tap in teacher_taps.values()}
    for match in stage.matches:
        if not any(fnmatchcase(tap, match.student) for tap in own):
            return f"the student has no tap {match.student}"
        wanted = match.student if match.teacher == "same" else match.teacher
        if wanted is None or wanted.startswith("batch:"):
            continue
        if not any(fnmatchcase(tap, wanted) for tap in known):
            return f"the teacher has no tap {wanted}"
    return None


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
