"""Loss curves of every stage."""

from __future__ import annotations

from collections import Counter
from typing import Any

from xarch.report.blocks import Block, Cell, Details, Figure, Figures, Section, Table
from xarch.report.files import RunInfo, StageMetrics, dig, rows_of, table_of
from xarch.report.outcome import undone_of
from xarch.report.plots.curves import curve_svg
from xarch.report.wording import number, percent, words

MANY = 6
"""Figures of a match beyond which they are folded."""


def training(files: RunInfo) -> Section | None:
    """Show loss curves, validation before and after, and the figures at start and end."""
    figures = [f for f in (_figure(files, s, c) for s, c in files.metrics.items()) if f is not None]
    blocks: list[Block] = [Figures(figures)] if figures else []
    rows = [row for folder, summary in files.stages.items() for row in _validation(files, folder, summary)]
    if rows:
        head = ["stage", "validated", "before", "after", "change", "result"]
        blocks.append(Table(head, rows, "llrrrl"))
    ends: list[list[str]] = []
    pairs: list[list[str]] = []
    for folder, summary in files.stages.items():
        found = _ends(table_of(summary, "metrics"), _sites(files, folder))
        members = Counter(map(_match, found))
        for name, value in found.items():
            row = [folder, _named(files, folder, name), number(_first(files, folder, name)), number(value)]
            (pairs if members[_match(name)] > MANY else ends).append(row)
    if ends:
        blocks.append(_table(ends))
    if pairs:
        blocks.append(Details(f"{len(pairs)} figures of matches of many pairs", [_table(pairs)]))
    return Section("Training", blocks) if blocks else None


def _table(rows: list[list[str]]) -> Table:
    return Table(["stage", "figure", "start", "end"], [list(row) for row in rows], "llrr")


def _match(figure: str) -> str:
    """Return what the figures of all pairs of a match have in common."""
    return ".".join(figure.split(".")[:2])


def _first(files: RunInfo, folder: str, name: str) -> float | None:
    """Return the first logged value of a figure."""
    metrics = files.metrics.get(folder)
    points = metrics.values.get(name, []) if metrics is not None else []
    return points[0][1] if points else None


def _sites(files: RunInfo, folder: str) -> int:
    """Return over how many sites the loss of a stage is a sum; 1 for a student that runs as a whole."""
    planned = next((row for row in rows_of(files.plan, "stages") if row.get("folder") == folder), {})
    return max(1, len({str(row.get("site")) for row in rows_of(planned, "matches")}))


def _objectives(files: RunInfo, folder: str) -> str:
    planned = next((row for row in rows_of(files.plan, "stages") if row.get("folder") == folder), {})
    return " + ".join(dict.fromkeys(str(row.get("objective")) for row in rows_of(planned, "matches")))


def _named(files: RunInfo, folder: str, name: str) -> str:
    sites = _sites(files, folder)
    mean = f", mean over {sites} sites" if sites > 1 and name.startswith(("match.", "weighted.")) else ""
    return words(name.removeprefix("match.")) + mean


def _ends(metrics: dict[str, Any], sites: int) -> dict[str, Any]:
    """Select figures for the table: a single match equals the loss, the loss over several sites is a sum that means
    nothing, and validation has its own table."""
    matches = [name for name in metrics if name.startswith("match.")]
    hidden = {"grad_norm"}
    if sites > 1 and matches:
        hidden.add("loss")
    if len(matches) < 2:
        hidden |= {name for name in metrics if name.startswith("weighted.")} | set(() if sites > 1 else matches)
    return {k: v for k, v in metrics.items() if k not in hidden and not k.startswith("validation")}


def _figure(files: RunInfo, folder: str, curve: StageMetrics) -> Figure | None:
    losses = curve.values.get("loss")
    if not losses or len(losses) < 2:
        return None
    unit = str(dig(files.plan, "unit", default="unit")) if curve.units else "step"

    def over_units(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
        return [(curve.units.get(step, step), value) for step, value in points]

    parts = {k.removeprefix("match."): over_units(v) for k, v in curve.values.items() if k.startswith("match.")}
    sites = _sites(files, folder)
    losses = [(step, value / sites) for step, value in losses]
    series = {"loss": over_units(losses)}
    if 1 < len(parts) <= 3:
        series |= parts
    begins = _phases(files, folder, in_units=bool(curve.units))
    svg = curve_svg(f"loss-{folder}", series, axis=f"{unit}s", marks=[x for _, x in begins])
    if svg is None:
        return None
    first, last = losses[0][1], losses[-1][1]
    what = "; ".join(filter(None, [_objectives(files, folder), f"mean over {sites} sites" if sites > 1 else ""]))
    what = f" ({what})" if what else ""
    text = f"Loss of stage {folder}{what}: {number(first)} at the first step, {number(last)} at step {len(losses)}."
    if begins:
        text += f" Dashed lines: phases begin at step {', '.join(str(step) for step, _ in begins)}."
    ended = table_of(files.stages.get(folder), "ended")
    early = f"; stopped at step {number(ended.get('step'))} of {number(ended.get('steps'))}: {ended.get('reason')}"
    return Figure(svg, text, f"{folder}: loss{what} {number(first)} → {number(last)}{early if ended else ''}")


def _phases(files: RunInfo, folder: str, *, in_units: bool) -> list[tuple[int, float]]:
    """Return (step, place on the axis) where each phase of a stage begins."""
    planned = next((row for row in rows_of(files.plan, "stages") if row.get("folder") == folder), {})
    steps, units = planned.get("steps"), planned.get("units")
    if not isinstance(steps, int) or not isinstance(units, int):
        return []
    starts = [row.get("from") for row in rows_of(files.plan, "config", "stages", str(planned.get("name")), "phases")]
    shares = sorted(share for share in starts if isinstance(share, int | float) and 0 <= share <= 1)
    return [(round(share * steps), share * (units if in_units else steps)) for share in shares]


def _validation(files: RunInfo, folder: str, summary: dict[str, Any]) -> list[list[str | Cell]]:
    """Return the row of a stage, from ``validation`` in its summary or from its metrics."""
    metrics, found = table_of(summary, "metrics"), table_of(summary, "validation")
    before = found.get("before", metrics.get("validation_before"))
    after = found.get("after", metrics.get("validation_after"))
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return []
    why = undone_of(summary)
    kept = Cell(f"rolled back: {why}", "warn") if why else Cell("kept", "good")
    name = str(summary.get("name", ""))
    figure = dig(files.settings(name), "validation", "metric") or "loss"
    return [[folder, words(str(figure)), number(before), number(after), percent(after - before, abs(before)), kept]]
