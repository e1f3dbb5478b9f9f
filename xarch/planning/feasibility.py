"""What of a configuration can be done: stages whose taps exist, exports that a small copy passes, weights that are all
accounted for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from xarch.config.schema import Match, RunConfig, Stage
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.local import sites_of
from xarch.contracts.model import Initialisation, Student
from xarch.contracts.tap import Tap
from xarch.errors import PlanError
from xarch.planning.describe import COPIES
from xarch.planning.export_check import trial_operators
from xarch.planning.plan import Check, PlannedExport
from xarch.planning.resolve import Resolved, export_options
from xarch.registry.registry import Registry

SHOWN = 5


def active_stages(
    config: RunConfig, student: Student, teachers: Mapping[str, Mapping[str, Tap]]
) -> tuple[list[tuple[str, Stage]], list[str]]:
    """The stages that run, and why optional ones do not.

    Args:
        teachers: name -> taps, "" for the main teacher.
    """
    active: list[tuple[str, Stage]] = []
    left_out: list[str] = []
    for name, stage in config.stages.items():
        if stage.skip:
            continue
        lacking = _lacking(stage, student, teachers) if stage.optional else None
        if lacking is None:
            active.append((name, stage))
        else:
            left_out.append(f"stage {name} is left out: {lacking}")
    return active, left_out


def _lacking(stage: Stage, student: Student, teachers: Mapping[str, Mapping[str, Tap]]) -> str | None:
    """The first tap of a stage's matches that one side does not have."""
    own = set(student.taps()) | {leaf for site in sites_of(student).values() for leaf in site.taps}
    for match in stage.matches.values():
        wanted = [match.student] if isinstance(match.student, str) else match.student
        absent = next((w for w in wanted if not _any(w, own)), None)
        if absent is not None:
            return f"the student has no tap {absent}"
        reason = _lacking_right(match, wanted, own, teachers)
        if reason:
            return reason
    return None


def _lacking_right(
    match: Match, wanted: list[str], own: Collection[str], teachers: Mapping[str, Mapping[str, Tap]]
) -> str | None:
    if match.teacher is None:
        return None
    model, colon, name = match.teacher.rpartition(":")
    if colon and (model == "batch" or model == "*"):
        return None
    if model in ("student", *COPIES):
        return None if _any(name, own) else f"the student has no tap {name}"
    taps = teachers.get(model, {})
    known = set(taps) | {tap.leaf for tap in taps.values()}
    names = wanted if name == "same" else [name]
    absent = next((n for n in names if not _any(n, known)), None)
    return None if absent is None else f"the {model or 'main'} teacher has no tap {absent}"


def _any(pattern: str, names: Collection[str]) -> bool:
    """Whether a pattern, in which ``{j}`` stands for any layer, names one of them."""
    parts = pattern.split("{")
    loose = parts[0] + "".join("*" + part.partition("}")[2] for part in parts[1:])
    return any(fnmatchcase(name, loose) for name in names)


def planned_export(
    registry: Registry, target: Resolved, student: Student, facts: Any, name: str, config: RunConfig
) -> PlannedExport:
    """Graphs and operators of one export.

    Raises:
        UsageError: an option of the export is wrong.
        PlanError: they do not fit the profile.
    """
    profile = registry.create("export", name)
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
