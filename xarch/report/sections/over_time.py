"""Quality over training time: how fast the student approaches its final quality."""

from __future__ import annotations

from typing import Any

from xarch.report.blocks import Block, Figure, Figures, Section, Table, Text
from xarch.report.files import RunInfo, dig, table_of
from xarch.report.plots.over_time import over_time_svg
from xarch.report.wording import duration, figure, number, percent, with_unit

FIGURES = 3
SHARES = (0.5, 0.9, 0.99)
"""Fractions of the total gain whose time is reported."""


def over_time(files: RunInfo) -> Section | None:
    """Show curves of the figures that changed and the values after each stage; None without a curve."""
    rows = [r for r in files.quality if isinstance(r.get("seconds"), int | float) and table_of(r, "student")]
    if len(rows) < 2:
        return None
    metric = str(rows[-1].get("metric", ""))
    names = _changing(rows, metric)
    stages = _stages(rows)
    figures = []
    for name in names[:FIGURES]:
        points = [(float(r["seconds"]), float(r["student"][name])) for r in rows]
        title = with_unit(name, files.unit_of(name))
        svg = over_time_svg(f"over-time-{name}", points, stages, teacher=dig(rows[-1], "teacher", name))
        if svg is not None:
            words = f"{title}: {number(points[0][1])} at the start, {number(points[-1][1])} "
            figures.append(Figure(svg, f"{words}after {duration(points[-1][0])} of training.", title))
    blocks: list[Block] = [Figures(figures)] if figures else []
    if names:
        blocks.append(Text(_reached(rows, names[0], _higher(files, names[0]))))
    blocks.append(_ends(files, rows, names[:FIGURES]))
    return Section("Quality over time", blocks)


def _higher(files: RunInfo, name: str) -> bool | None:
    """Return whether more of a figure is better, None if nobody says it."""
    own = name == dig(files.eval, "metric")
    found = dig(files.eval, "higher_is_better") if own else dig(files.eval, "directions", name)
    return found if isinstance(found, bool) else None


def _changing(rows: list[dict[str, Any]], metric: str) -> list[str]:
    """Return the figures that every row has and that vary, headline figure first."""
    names = [
        name
        for name in rows[0]["student"]
        if all(isinstance(r["student"].get(name), int | float) for r in rows)
        and len({r["student"][name] for r in rows}) > 1
    ]
    return sorted(names, key=lambda n: n != metric)


def _stages(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Return (name, start, end) of every stage, in seconds of training."""
    ends: dict[str, float] = {str(r.get("stage")): float(r["seconds"]) for r in rows}
    spans, start = [], 0.0
    for folder, end in ends.items():
        spans.append((folder.split("-", 1)[-1], start, end))
        start = end
    return spans


def _reached(rows: list[dict[str, Any]], name: str, higher: bool | None) -> str:
    """Describe how fast the figure approaches its final value, if that is better than the first."""
    first, last = (float(r["student"][name]) for r in (rows[0], rows[-1]))
    if last == first or (higher is not None and (last > first) != higher):
        return f"From {number(first)} to {number(last)}: no gain."
    parts = []
    for share in SHARES:
        there = (r["seconds"] for r in rows if (r["student"][name] - first) / ((last - first) or 1.0) >= share)
        parts.append(f"{percent(share, 1)} after {duration(next(there, rows[-1]['seconds']))}")
    total = duration(rows[-1]["seconds"])
    return f"From {number(first)} to {number(last)}. Share of the total gain: {', '.join(parts)} ({total} in total)."


def _ends(files: RunInfo, rows: list[dict[str, Any]], names: list[str]) -> Table:
    last = {str(r.get("stage")): r for r in rows}
    head = ["after", "steps", "time", "CPU time", *(with_unit(n, files.unit_of(n)) for n in names)]
    body = [
        [folder, number(r.get("step")), duration(r["seconds"]), duration(r.get("cpu_seconds")),
         *(figure(n, r["student"][n]) for n in names)]
        for folder, r in last.items()
    ]  # fmt: skip
    note = "Time counts initialisation and stages, not evaluation. Figures are for a few fixed held-out samples."
    return Table(head, body, "lrrr" + "r" * len(names), note)
