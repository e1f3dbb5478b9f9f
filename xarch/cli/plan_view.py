"""Print a plan."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xarch.cli.tables import table
from xarch.config.provenance import DEFAULT
from xarch.numbers import count, duration, size
from xarch.threads import Threads, busy

if TYPE_CHECKING:
    from rich.console import Console

    from xarch.config.schema import Limit, Ramp, Until
    from xarch.planning.plan import Plan, PlannedMatch, PlannedStage


def show_plan(plan: Plan, console: Console, *, origins: bool = False) -> None:
    """Print teacher, student, stages, exports, gates, checks and estimates; with ``origins`` also the origins."""
    for label, text in _head(plan):
        _line(console, label, text)
    console.print(stage_table(plan))
    if any(stage.matches for stage in plan.stages):
        console.print(match_table(plan))
    for stage in plan.stages:
        for text in _conditions(stage):
            _line(console, stage.name, text)
    for label, text in _tail(plan):
        _line(console, label, text, "yellow" if label == "warning" else "")
    if origins:
        console.print(origin_table(plan))


def stage_table(plan: Plan) -> Any:
    """Return a table with one row per stage."""
    columns = ["#", "stage", "kind", "trains", f"{plan.unit}s", "batch", "memory", "time"]
    rows = [_stage(s) for s in plan.stages]
    return table(columns, rows, right=("#", f"{plan.unit}s", "batch", "memory", "time"))


def match_table(plan: Plan) -> Any:
    """Return a table with one row per match and stage; pairs that differ only in their site share a row."""
    columns = ["stage", "match", "student", "compared with", "objective", "weight", "mask"]
    rows = [row for stage in plan.stages for row in _matches(stage)]
    if all(row[-1] == "-" for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return table(columns, rows, right=("weight",), whole=("stage", "match"))


def origin_table(plan: Plan) -> Any:
    """Return a table of all values that are not defaults, with their origin."""
    values = dict(_flat(plan.config.model_dump(mode="json")))
    rows = [
        [key, _short(values.get(key)), origin]
        for key, origin in plan.provenance.items()
        if origin != DEFAULT and key in values
    ]
    return table(["key", "value", "from"], rows)


def _head(plan: Plan) -> Iterator[tuple[str, str]]:
    t, s = plan.teacher, plan.student
    if t is None:
        yield "teacher", "none"
    else:
        yield "teacher", f"{t.title}, {count(t.parameters)} parameters, {size(t.weight_bytes)} ({t.ref})"
    for name, other in plan.teachers.items():
        yield "teacher", f"{name}: {other.title}, {count(other.parameters)} parameters ({other.ref})"
    own = f", {len(s.own)} from its own weights" if s.own else ""
    tensors = f"{len(s.copied)} tensors copied, {len(s.mapped)} mapped{own}, {len(s.new)} new"
    yield "student", f"{s.title}, {count(s.parameters)} parameters: {tensors}"
    yield from s.traits.items()
    yield "data", f"{plan.data.get('title', '')} ({plan.data.get('ref', '')})"


def _tail(plan: Plan) -> Iterator[tuple[str, str]]:
    for e in plan.export:
        yield "export", f"{e.profile}: {', '.join(e.graphs) or 'no graph'} (opset {e.opset})"
    gates = ", ".join(f"{name} {limits(gate)}" for name, gate in plan.config.gates.items())
    yield "quality", f"{plan.metric or 'no metric for this family'}" + (f"; gates: {gates}" if gates else "; no gates")
    for c in plan.checks:
        yield "check", f"{c.state}: {c.name}: {c.detail}"
    for text in plan.warnings:
        yield "warning", text
    rough, where = plan.estimates, f"{plan.device}, {Threads(plan.threads, plan.threads_why)}"
    needs = f"{size(rough.peak_bytes)} memory, {size(rough.disk_bytes)} disk"
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in rough.parts.items() if seconds >= 1)
    yield "estimate", f"{duration(rough.seconds)}{f' ({parts})' if parts else ''}, {needs} ({where})"
    if plan.device == "cpu" and (why := busy(plan.threads)):
        yield "estimate", f"{why}; the time above is that of a machine without other work"


def limits(limit: Limit) -> str:
    """Format a limit as ``<= 0.2``, ``>= 0.9`` or both."""
    signs = {">=": limit.min, "<=": limit.max}
    return " and ".join(f"{sign} {value:g}" for sign, value in signs.items() if value is not None) or "any"


def _stage(s: PlannedStage) -> list[str]:
    trained = ", ".join(f"{name} ({count(n)})" for name, n in s.trains.items()) or "-"
    kind = f"{s.kind}, {s.scope}" if s.trains else s.kind
    return [
        str(s.index),
        s.name,
        kind
        + (f", {s.passes} passes" if s.passes > 1 else "")
        + (", teacher cached" if s.cache.use else "")
        + until_text(s.config.until),
        trained,
        count(s.units),
        str(s.batch),
        size(s.memory_bytes),
        duration(s.seconds),
    ]


def until_text(until: Until | None) -> str:
    """Format a stopping rule as ``, until plateau or 20 s``."""
    if until is None:
        return ""
    ends = [*(["plateau"] if until.plateau else []), *([duration(until.seconds)] if until.seconds else [])]
    return f", until {' or '.join(ends)}"


def _matches(stage: PlannedStage) -> Iterator[list[str]]:
    """Yield the matches of a stage; pairs that differ only in their site or tap share a row with their number."""
    groups: dict[tuple[str, str], list[PlannedMatch]] = {}
    for m in stage.matches:
        groups.setdefault((m.match, m.objective), []).append(m)
    for (name, objective), found in groups.items():
        first, several = found[0], f" x{len(found)}" if len(found) > 1 else ""
        settings = stage.config.matches[name]
        given = [settings.student] if isinstance(settings.student, str) else settings.student
        student, right = (given, settings.teacher) if several else (first.student, first.right)
        through = f" through {first.connector} ({count(first.parameters)})" if first.connector else ""
        reads = "".join(f", {argument}: {ref}" for argument, ref in first.aux.items())
        yield [
            stage.name,
            name + several,
            ", ".join(student) + through,
            ("same tap" if [right] == list(student) else right or "nothing") + reads,
            objective + (f" ({first.units})" if first.units else ""),
            weight_text(first.weight),
            first.mask or "-",
        ]


def weight_text(weight: float | Ramp) -> str:
    """Format a weight as ``0.5``, or as ``0 to 1`` if it changes over the stage."""
    return f"{weight:g}" if isinstance(weight, float | int) else f"{weight.start:g} to {weight.end:g}"


def _conditions(stage: PlannedStage) -> Iterator[str]:
    """Yield the settings of a stage other than its matches."""
    settings = stage.config
    for figure, limit in settings.requires.items():
        yield f"starts only if {figure} {limits(limit)}"
    if settings.batch.steps:
        yield "batch steps: " + ", ".join(_call(name, options or {}) for name, options in settings.batch.steps.items())
    for phase in settings.phases:
        yield f"from {phase.start:.0%}: " + ", ".join(f"{key} = {_written(value)}" for key, value in phase.set.items())
    if settings.ema is not None:
        yield f"EMA with decay {settings.ema.decay:g}" + (", adopted at the end" if settings.ema.adopt else "")
    if stage.coupled:
        yield f"batches are not split: {stage.coupled}"


def _written(value: Any) -> str:
    """Format a value as in the configuration."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _call(name: str, options: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key} {_written(value)}" for key, value in options.items())
    return f"{name} ({given})" if given else name


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _flat(item, f"{path}.{i}")
    else:
        yield path, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    from rich.text import Text

    indent = " " * 10
    first, *rest = Text(text, style).wrap(console, max(console.width - len(indent), 20)) or [Text()]
    console.print(Text.assemble((f"{label:<9} ", "dim"), first))
    for line in rest:
        console.print(Text.assemble(indent, line))
