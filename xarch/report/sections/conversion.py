"""What was converted: teacher, student and stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from xarch.report.blocks import Block, Cell, Section, Table, Text
from xarch.report.files import RunInfo, dig, names_of, rows_of, table_of
from xarch.report.outcome import undone_of
from xarch.report.wording import count, duration, number, size, words

FEW_JOINED = 3
"""Taps of one match that are all named."""
MOST_SHOWN = 400
"""Maximum characters shown of a decision."""


def conversion(files: RunInfo) -> Section | None:
    """Show teacher and student, and the planned stages as a table."""
    plan = files.plan
    if not plan:
        return None
    blocks: list[Block] = [_models(files)]
    if rows_of(plan, "stages"):
        blocks.append(_stages(files))
    blocks += [Text(w, "warn") for w in names_of(plan, "warnings")]
    return Section("What was converted", blocks)


def _models(files: RunInfo) -> Table:
    plan = files.plan
    teacher, student = table_of(plan, "teacher"), table_of(plan, "student")
    parameters = dig(files.student, "parameters") or student.get("parameters")
    rows = [_teacher("teacher", teacher)] if teacher else []
    rows += [_teacher(f"teacher {name}", other) for name, other in table_of(plan, "teachers").items()]
    rows += [
        ["student", str(student.get("title", "–")), _options(student.get("options")), count(parameters),
         size(files.student_bytes)],
    ]  # fmt: skip
    data = table_of(plan, "data")
    rows.append(["data", str(data.get("title", "–")), str(data.get("ref", "–")), "", size(dig(data, "size", "bytes"))])
    return Table(["", "what", "reference or options", "parameters", "bytes"], rows, "lllrr")


def _teacher(name: str, teacher: Any) -> list[str]:
    title, ref = (str(dig(teacher, key, default="–")) for key in ("title", "ref"))
    return [name, title, ref, count(dig(teacher, "parameters")), size(dig(teacher, "weight_bytes"))]


def _options(options: Any) -> str:
    """Format options as ``a=1, b.c=2``; unset options are left out."""
    return ", ".join(f"{k}={v}" for k, v in _flat(options)) or "default options"


def _flat(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items() if isinstance(options, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _stages(files: RunInfo) -> Table:
    rows: list[list[str | Cell]] = []
    for stage in rows_of(files.plan, "stages"):
        summary = files.stages.get(str(stage.get("folder")), {})
        settings = files.settings(str(stage.get("name", "")))
        trained = table_of(stage, "trains")
        rows.append(
            [
                str(stage.get("index", "")),
                str(stage.get("name", "")),
                f"{settings.get('kind', '–')}, {settings.get('scope', '–')}",
                _matches(stage),
                ", ".join(f"{k} ({count(v)})" for k, v in trained.items()) or "–",
                count(stage.get("units")),
                _steps(stage, summary),
                size(stage.get("memory_bytes")),
                duration(stage.get("seconds")),
                _took(summary),
            ]
        )
    head = ["#", "stage", "kind, scope", "matches", "trains", f"{files.unit}s", "steps", "memory", "planned", "actual"]
    return Table(head, rows, "rllllrrrrl", "Planned memory and time are estimates.")


def _took(summary: dict[str, Any]) -> Cell | str:
    if "seconds" not in summary:
        return Cell("not run", "quiet")
    took = duration(summary.get("seconds"))
    why = undone_of(summary)
    return Cell(f"{took}, rolled back: {why}", "warn") if why else took


def _steps(stage: dict[str, Any], summary: dict[str, Any]) -> str:
    """Return ``212 of 620 (plateau)`` for a stage that stopped early."""
    ended = table_of(summary, "ended")
    planned = number(stage.get("steps"))
    return f"{number(ended.get('step'))} of {planned} ({ended.get('reason')})" if ended else planned


def _matches(stage: dict[str, Any]) -> str:
    """List each match once; pairs that differ only in the number of their site or layer are counted."""
    seen: dict[str, int] = {}
    for match in rows_of(stage, "matches"):
        site, objective = match.get("site"), str(match.get("objective"))
        student, right = _joined(names_of(match, "student")), str(match.get("right") or "–")
        if site:
            student, right = (t.removeprefix(f"{site}.") for t in (student, right))
        arrow = student if student == right else f"{student} ← {right}"
        through = f" through {match['connector']}" if match.get("connector") else ""
        weight = match.get("weight")
        factor = "" if weight in (1, 1.0, None) else f" × {weight if isinstance(weight, int | float) else 'schedule'}"
        key = f"{match.get('match')}: {_numbered(arrow)} ({objective}{through}){factor}"
        seen[key] = seen.get(key, 0) + 1
    return "; ".join(f"{key}, {n} pairs" if n > 1 else key for key, n in seen.items()) or "–"


def _joined(names: list[str]) -> str:
    """Return the taps that an objective gets together; many that differ only in numbers are named once."""
    return " + ".join(names if len(names) <= FEW_JOINED else dict.fromkeys(map(_numbered, names)))


def _numbered(arrow: str) -> str:
    """Replace layer numbers by ``*``."""
    return re.sub(r"(?<=\.)\d+(?=\.|$| )", "*", arrow)


def decisions(files: RunInfo) -> Section | None:
    """Show the decisions of the stages about the student's structure."""
    rows = []
    for folder, summary in files.stages.items():
        for name, value in table_of(summary, "decisions").items():
            short = _short(value)
            shown = ", ".join(map(str, short)) if isinstance(short, list) else str(short)
            rows.append([folder, words(str(name)), shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]} …"])
    return Section("Decisions", [Table(["stage", "decision", "value"], rows)]) if rows else None


def _short(value: Any) -> Any:
    """Return a JSON value with four digits of every number."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _short(each) for key, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list) else value


def tensors(files: RunInfo) -> Section | None:
    """Show how the student was initialised: tensors copied, mapped and new."""
    student = table_of(files.plan, "student")
    kinds = {
        "copied": "unchanged",
        "mapped": "computed from teacher tensors",
        "own": "from the student's own weights",
        "new": "newly initialised",
        "unused": "teacher tensors that are not used",
    }
    if not any(names_of(student, kind) for kind in kinds):
        return None
    rows = []
    for kind in kinds:
        for pattern, number_of in _patterns(names_of(student, kind)).items():
            rows.append([kind, pattern, number(number_of)])
    totals = ", ".join(f"{len(names)} {k} ({m})" for k, m in kinds.items() if (names := names_of(student, k)))
    return Section("Tensors", [Text(totals), Table(["how", "tensor", "count"], rows, "llr")])


def _patterns(names: list[str]) -> dict[str, int]:
    """Count names that differ only in numbers together: ``blocks.*.mlp.up.weight``."""
    counted: dict[str, int] = {}
    for name in names:
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        counted[pattern] = counted.get(pattern, 0) + 1
    return counted
