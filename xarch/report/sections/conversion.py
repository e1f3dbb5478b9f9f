"""What was converted, into what, by which stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xarch.report.blocks import Block, Cell, Section, Strip, Table, Text
from xarch.report.files import RunFiles, dig, names_of, rows_of, table_of
from xarch.report.sites import sites_of
from xarch.report.wording import count, duration, number, percent, size


def conversion(files: RunFiles) -> Section | None:
    """Teacher and student, and the plan as a table."""
    plan = files.plan
    if not plan:
        return None
    blocks: list[Block] = [_models(files)]
    if rows_of(plan, "stages"):
        blocks.append(_stages(files))
    blocks += [Text(w, "warn") for w in names_of(plan, "warnings")]
    return Section("What was converted", blocks)


def _models(files: RunFiles) -> Table:
    plan = files.plan
    teacher, student = table_of(plan, "teacher"), table_of(plan, "student")
    parameters = dig(files.student, "parameters") or student.get("parameters")
    rows = [
        ["teacher", str(teacher.get("title", "–")), str(teacher.get("ref", "–")), count(teacher.get("parameters")),
         size(teacher.get("weight_bytes"))],
        ["student", str(student.get("target", "–")), _options(student.get("options")), count(parameters),
         size(files.student_bytes)],
    ]  # fmt: skip
    data = table_of(plan, "data")
    rows.append(["data", str(data.get("title", "–")), str(data.get("ref", "–")), "", size(dig(data, "size", "bytes"))])
    return Table(["", "what", "reference or options", "parameters", "bytes"], rows, "lllrr")


def _options(options: Any) -> str:
    """``a=1, b.c=2``; what is not set is left out."""
    return ", ".join(f"{k}={v}" for k, v in _flat(options)) or "default options"


def _flat(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items() if isinstance(options, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _stages(files: RunFiles) -> Table:
    unit = str(dig(files.plan, "unit", default="unit"))
    rows = []
    for stage in rows_of(files.plan, "stages"):
        summary = files.stages.get(str(stage.get("folder")), {})
        trained = table_of(stage, "trains")
        took = summary.get("seconds")
        rows.append(
            [
                str(stage.get("index", "")),
                str(stage.get("name", "")),
                f"{stage.get('kind', '')}, {stage.get('scope', '')}",
                _matches(stage),
                ", ".join(f"{k} ({count(v)})" for k, v in trained.items()) or "–",
                count(stage.get("units")),
                _steps(stage, summary),
                size(stage.get("memory_bytes")),
                duration(stage.get("seconds")),
                duration(took) if took is not None else Cell("not run", "quiet"),
            ]
        )
    head = ["#", "stage", "kind, scope", "matches", "trains", f"{unit}s", "steps", "memory", "planned", "took"]
    return Table(head, rows, "rllllrrrrr", "Planned memory and time are estimates.")


def _steps(stage: dict[str, Any], summary: dict[str, Any]) -> str:
    """``212 of 620 (plateau)`` for a stage that ended early."""
    ended = table_of(summary, "ended")
    planned = number(stage.get("steps"))
    return f"{number(ended.get('step'))} of {planned} ({ended.get('reason')})" if ended else planned


def _matches(stage: dict[str, Any]) -> str:
    """Each kind of match once: sites differ in their number only."""
    seen: dict[str, int] = {}
    for match in rows_of(stage, "matches"):
        site = match.get("site")
        student, teacher = str(match.get("student")), str(match.get("teacher") or "–")
        if site:
            student, teacher = (t.removeprefix(f"{site}.") for t in (student, teacher))
        arrow = student if student == teacher else f"{student} ← {teacher}"
        weight = match.get("weight")
        factor = "" if weight in (1, 1.0, None) else f" × {weight if isinstance(weight, int | float) else 'schedule'}"
        key = f"{arrow} ({match.get('objective')}){factor}"
        seen[key] = seen.get(key, 0) + 1
    return "; ".join(f"{key} × {n} sites" if n > 1 else key for key, n in seen.items()) or "–"


def layers(files: RunFiles) -> Section | None:
    """The model as a strip: which places were replaced."""
    sites = sites_of(files)
    if not sites.every:
        return None
    target = str(dig(files.plan, "student", "target", default="student"))
    words = (f"replaced by {target}", "kept from the teacher")
    share = f"{len(sites.replaced)} of {len(sites.every)} places replaced"
    share += f" ({percent(len(sites.replaced), len(sites.every))})"
    return Section("Layers", [Text(share), Strip([(s, s in sites.replaced) for s in sites.every], words)])


def tensors(files: RunFiles) -> Section | None:
    """How the student was initialised: tensors copied, mapped and new."""
    student = table_of(files.plan, "student")
    kinds = {"copied": "as they are", "mapped": "computed from the teacher's", "new": "not from the teacher"}
    if not any(names_of(student, kind) for kind in kinds):
        return None
    rows = []
    for kind in kinds:
        for pattern, number_of in _patterns(names_of(student, kind)).items():
            rows.append([kind, pattern, number(number_of)])
    totals = ", ".join(f"{len(names_of(student, k))} {k} ({m})" for k, m in kinds.items())
    return Section("Tensors", [Text(totals), Table(["how", "tensor", "count"], rows, "llr")])


def _patterns(names: list[str]) -> dict[str, int]:
    """Names that differ in numbers only, counted together: ``blocks.*.mlp.up.weight``."""
    counted: dict[str, int] = {}
    for name in names:
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        counted[pattern] = counted.get(pattern, 0) + 1
    return counted
