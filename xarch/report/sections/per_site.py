"""Figures per site: how closely its module matches, and the measurements behind decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch.report.blocks import Block, Cell, Details, Figure, Figures, Section, Table
from xarch.report.files import RunInfo, StageMetrics, names_of, natural, rows_of, table_of
from xarch.report.plots.bars import sites_svg
from xarch.report.plots.heat import heat_svg
from xarch.report.wording import number, with_unit

MOMENTS_OF_A_STAGE: tuple[str, ...] = ("before", "after")
BEFORE = "_before"
"""Ends the name of a figure that a stage measured before its change."""
MOMENTS = 5
"""Number of heat-map rows for one stage, spread over its steps."""


def per_site(files: RunInfo) -> Section | None:
    """Show what a stage measured before and after itself, and its losses over its steps, as heat maps; other figures as
    bars. Stages measure on data of their own, so each has a scale of its own."""
    tables = _tables(files)
    maps = [
        _heat(f"table-{folder}-{name}", f"{folder}: {_titled(files, name)}", rows)
        for folder, name, rows in tables
        if len(rows) > 1
    ]
    for folder, metrics in files.metrics.items():
        rows = _course(metrics)
        if len(rows) > 1:
            maps.append(_heat(f"course-{folder}", f"{folder}: loss over the stage", rows))
    found = [m for m in maps if m is not None]
    narrow = [figure for figure, _ in found if not figure.wide]
    blocks: list[Block] = [Figures(narrow)] if narrow else []
    blocks += [figure for figure, _ in found if figure.wide]
    blocks += [Details(f"{figure.caption} (table)", [table]) for figure, table in found]
    for folder, name, rows in tables:
        if len(rows) == 1:
            blocks += _bars(files, name, folder, rows[0][1])
    blocks += _of_matches(files)
    return Section("Per site", blocks) if blocks else None


def _titled(files: RunInfo, name: str) -> str:
    return with_unit(name, files.unit_of(name.partition(" of ")[0]))


def _bars(files: RunInfo, name: str, folder: str, values: dict[str, float]) -> list[Block]:
    """Draw one bar per site; if stages dropped some sites, those in the student are solid."""
    ordered = sorted(values.items(), key=lambda item: natural(item[0]))
    kept = set(names_of(files.student, "sites"))
    marked = kept & values.keys() if not values.keys() <= kept else set()
    title = _titled(files, name)
    svg = sites_svg(f"sites-{folder}-{name}", ordered, marked, title)
    if svg is None:
        return []
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    text = f"{title} of {len(values)} sites: min {number(values[low])} ({low}), max {number(values[high])} ({high})."
    caption = f"{folder}: {title}" + ("; solid bars are sites of the student" if marked else "")
    rows = [[site, number(value), "in the student" if site in marked else ""] for site, value in ordered]
    table = Table(["site", title, ""], rows, "lrl")
    return [Figure(svg, text, caption, wide=True), Details("table", [table])]


def _numbers(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    tables = table_of(dict(summary), "per_site")
    return {
        name: {str(s): float(v) for s, v in values.items() if isinstance(v, int | float)}
        for name, values in tables.items()
        if isinstance(values, dict) and values
    }


def _places(files: RunInfo, folder: str) -> dict[str, tuple[str, str]]:
    """Return the name of a value in a stage's tables -> (its match, its site or tap); no place for a match of the whole
    model."""
    planned = next((row for row in rows_of(files.plan, "stages") if row.get("folder") == folder), {})
    found = {}
    for row in rows_of(planned, "matches"):
        match, label, site = str(row.get("match")), str(row.get("label")), row.get("site")
        place = site if isinstance(site, str) else label.removeprefix(match).removeprefix(".")
        found[f"{label}.{site}" if isinstance(site, str) else label] = (match, place)
    return found


def _tables(files: RunInfo) -> list[tuple[str, str, list[tuple[str, dict[str, float]]]]]:
    """Return (stage, name, rows of a table). What a stage measured before and after itself is one table. Figures of
    different stages, measured on different data, are not; nor are those of a stage's matches, of different values."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for folder, summary in files.stages.items():
        places = _places(files, folder)
        for table, values in _numbers(summary).items():
            if table == "loss":
                continue
            by_match: dict[str, dict[str, float]] = {}
            for name, value in values.items():
                match, place = places.get(name, ("", name))
                if place:
                    by_match.setdefault(match, {})[place] = value
            base = table.removesuffix(BEFORE)
            for match, own in by_match.items():
                title = f"{base} of {match}" if match and len(by_match) > 1 else base
                found.setdefault((folder, title), {})["before" if base != table else "after"] = own
    tables = []
    for (folder, title), moments in found.items():
        rows = [(when, moments[when]) for when in MOMENTS_OF_A_STAGE if when in moments]
        tables.append((folder, title, rows))
    return _joined(tables)


def _joined(
    tables: list[tuple[str, str, list[tuple[str, dict[str, float]]]]],
) -> list[tuple[str, str, list[tuple[str, dict[str, float]]]]]:
    """Join what a stage measured once under names that differ in their last part, ``share.0`` and ``share.1``, to one
    table with a row for each."""
    parts: dict[tuple[str, str], list[tuple[str, dict[str, float]]]] = {}
    for folder, title, rows in tables:
        stem, dot, last = title.rpartition(".")
        if dot and len(rows) == 1:
            parts.setdefault((folder, stem), []).append((last, rows[0][1]))
    made, done = [], set()
    for folder, title, rows in tables:
        key = (folder, title.rpartition(".")[0])
        if len(rows) > 1 or len(parts.get(key, ())) < 2:
            made.append((folder, title, rows))
        elif key not in done:
            done.add(key)
            made.append((*key, sorted(parts[key], key=lambda row: natural(row[0]))))
    return made


def _of_matches(files: RunInfo) -> list[Block]:
    """Return a table of the figures of matches that compare whole models, which have no site."""
    rows: list[list[str | Cell]] = []
    for folder, summary in files.stages.items():
        places = _places(files, folder)
        for figure, values in _numbers(summary).items():
            for name, value in values.items():
                match, place = places.get(name, ("", name))
                if not place:
                    rows.append([folder, match, _titled(files, figure), number(value)])
    table = Table(["stage", "match", "figure", ""], rows, "lllr")
    return [Details("Figures of matches of the whole model", [table])] if rows else []


def _course(curve: StageMetrics) -> list[tuple[str, dict[str, float]]]:
    """Return rows (moment, site -> loss) of a stage whose sites are trained independently."""
    if "loss" not in curve.values:
        return []
    sites = {k.removeprefix("site."): dict(v) for k, v in curve.values.items() if k.startswith("site.")}
    steps = sorted({step for points in sites.values() for step in points})
    if len(steps) < 2:
        return []
    moments = min(MOMENTS, len(steps))
    chosen = [steps[round(i * (len(steps) - 1) / (moments - 1))] for i in range(moments)]
    return [(f"step {s}", {site: points[s] for site, points in sites.items() if s in points}) for s in chosen]


def _heat(name: str, title: str, rows: list[tuple[str, dict[str, float]]]) -> tuple[Figure, Table] | None:
    sites = sorted({s for _, values in rows for s in values}, key=natural)
    if len(sites) < 2:
        return None
    svg = heat_svg(name, rows, sites)
    if svg is None:
        return None
    means = [f"{label} {number(sum(v.values()) / len(v))}" for label, v in rows if v]
    text = f"{title}, mean over {len(sites)} sites: {', '.join(means)}."
    cells = [[site, *(number(v.get(site)) for _, v in rows)] for site in sites]
    table = Table(["site", *(label for label, _ in rows)], cells, "l" + "r" * len(rows))
    return Figure(svg, text, title, wide=len(sites) > 12), table
