"""A plan on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xarch.cli.tables import table
from xarch.config.provenance import DEFAULT
from xarch.numbers import count, duration, size

if TYPE_CHECKING:
    from rich.console import Console

    from xarch.config.schema import Until
    from xarch.planning.plan import Plan, PlannedMatch, PlannedStage


def show_plan(plan: Plan, console: Console, *, origins: bool = False) -> None:
    """Teacher, student, stages, exports, gates, checks and estimates; with ``origins`` where every value came from."""
    for label, text in _head(plan):
        _line(console, label, text)
    console.print(stage_table(plan))
    for label, text in _tail(plan):
        _line(console, label, text, "yellow" if label == "warning" else "")
    if origins:
        console.print(origin_table(plan))


def stage_table(plan: Plan) -> Any:
    """One line a stage."""
    columns = ["#", "stage", "kind", "matches", "trains", f"{plan.unit}s", "batch", "memory", "time"]
    rows = [_stage(s) for s in plan.stages]
    return table(columns, rows, right=("#", f"{plan.unit}s", "batch", "memory", "time"))


def origin_table(plan: Plan) -> Any:
    """Every value that is not a default, with its origin."""
    values = dict(_flat(plan.config.model_dump(mode="json")))
    rows = [
        [key, _short(values.get(key)), origin]
        for key, origin in plan.provenance.items()
        if origin != DEFAULT and key in values
    ]
    return table(["key", "value", "from"], rows)


def _head(plan: Plan) -> Iterator[tuple[str, str]]:
    t, s = plan.teacher, plan.student
    yield "teacher", f"{t.title}, {count(t.parameters)} parameters, {size(t.weight_bytes)} ({t.ref})"
    tensors = f"{len(s.copied)} tensors copied, {len(s.mapped)} mapped, {len(s.new)} new"
    yield "student", f"{s.target}, {count(s.parameters)} parameters: {tensors}"
    yield "data", f"{plan.data.get('title', '')} ({plan.data.get('ref', '')})"


def _tail(plan: Plan) -> Iterator[tuple[str, str]]:
    for e in plan.export:
        yield "export", f"{e.profile}: {', '.join(e.graphs)} (opset {e.opset})"
    gates = ", ".join(f"{name} {limits(gate)}" for name, gate in plan.gates.items())
    yield "quality", f"{plan.metric or 'no metric for this family'}" + (f"; gates: {gates}" if gates else "; no gates")
    for c in plan.checks:
        yield "check", f"{'ok' if c.ok else 'FAILED'} {c.name}: {c.detail}"
    for text in plan.warnings:
        yield "warning", text
    rough, where = plan.estimates, f"{plan.device}, {plan.threads} thread{'s' if plan.threads != 1 else ''}"
    needs = f"{size(rough.peak_bytes)} memory, {size(rough.disk_bytes)} disk"
    yield "estimate", f"{duration(rough.seconds)}, {needs} ({where})"


def limits(gate: Mapping[str, Any]) -> str:
    """``<= 0.2`` or ``>= 0.9``, or both."""
    signs = {"min": ">=", "max": "<="}
    return " and ".join(f"{sign} {gate[key]:g}" for key, sign in signs.items() if gate.get(key) is not None) or "any"


def _stage(s: PlannedStage) -> list[str]:
    trained = ", ".join(f"{name} ({count(n)})" for name, n in s.trains.items()) or "-"
    kind = f"{s.kind}, {s.scope}" if s.kind == "gradient" else s.kind
    return [
        str(s.index),
        s.name,
        kind
        + (f", {s.passes} passes" if s.passes > 1 else "")
        + (", teacher cached" if s.cache.use else "")
        + until_text(s.config.until),
        _matches(s.matches),
        trained,
        count(s.units),
        str(s.batch),
        size(s.memory_bytes),
        duration(s.seconds),
    ]


def until_text(until: Until | None) -> str:
    """``, until plateau or 20 s``."""
    if until is None:
        return ""
    ends = [*(["plateau"] if until.plateau else []), *([duration(until.seconds)] if until.seconds else [])]
    return f", until {' or '.join(ends)}"


def _matches(matches: list[PlannedMatch]) -> str:
    """Matches that differ only in their site are shown once, with the number of sites."""
    found: Counter[str] = Counter()
    for m in matches:
        student = m.student.removeprefix(f"{m.site}.") if m.site else m.student
        teacher = (m.teacher or "none").removeprefix(f"{m.site}.") if m.site else m.teacher or "none"
        sides = student if student == teacher else f"{student} < {teacher}"
        found[f"{sides} {m.objective}"] += 1
    return ", ".join(text if n == 1 else f"{text} x{n}" for text, n in found.items()) or "-"


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

    console.print(Text.assemble((f"{label:<9} ", "dim"), (text, style)))
