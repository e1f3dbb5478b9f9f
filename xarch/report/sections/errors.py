"""Per-site figures: how near each replaced module came, and what a probe measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch.report.blocks import Block, Details, Figure, Figures, Section, Table
from xarch.report.files import Curve, RunFiles, natural, table_of
from xarch.report.plots.bars import sites_svg
from xarch.report.plots.heat import heat_svg
from xarch.report.sites import sites_of
from xarch.report.wording import number, with_unit

BUILT_IN = ("gradient", "closed_form")
MOMENTS = 5
"""Rows of the heat map of one stage, from its first step to its last."""


def site_errors(files: RunFiles) -> Section | None:
    """Heat maps: tables of the summaries over stages, and each local stage over its course."""
    maps = [_heat(f"table-{table}", with_unit(table), rows) for table, rows in _tables(files).items()]
    for folder, curve in files.curves.items():
        rows = _course(curve)
        if len(rows) > 1:
            maps.append(_heat(f"course-{folder}", f"{folder}: loss over its course", rows))
    found = [m for m in maps if m is not None]
    narrow = [figure for figure, _ in found if not figure.wide]
    blocks: list[Block] = [Figures(narrow)] if narrow else []
    blocks += [figure for figure, _ in found if figure.wide]
    blocks += [Details(f"{figure.caption} (table)", [table]) for figure, table in found]
    return Section("Error per layer", blocks) if blocks else None


def probe(files: RunFiles) -> Section | None:
    """What a probing stage measured for each site, with the chosen ones marked."""
    blocks: list[Block] = []
    chosen = sites_of(files).replaced
    for folder, summary in files.stages.items():
        if summary.get("kind") in BUILT_IN:
            continue
        for table, values in _numbers(summary).items():
            ordered = sorted(values.items(), key=lambda item: natural(item[0]))
            marked = chosen & values.keys() if not values.keys() <= chosen else set()
            svg = sites_svg(f"probe-{folder}-{table}", ordered, marked, with_unit(table))
            if svg is None:
                continue
            low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
            text = f"{with_unit(table)} of {len(values)} sites: least {number(values[low])} ({low}), most "
            text += f"{number(values[high])} ({high})."
            caption = f"{folder}: {with_unit(table)}" + ("; strong bars were replaced" if marked else "")
            blocks.append(Figure(svg, text, caption, wide=True))
            rows = [[site, number(value), "replaced" if site in marked else ""] for site, value in ordered]
            blocks.append(Details("as a table", [Table(["site", with_unit(table), ""], rows, "lrl")]))
    return Section("Probe", blocks) if blocks else None


def _numbers(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    tables = table_of(dict(summary), "per_site")
    return {
        name: {str(s): float(v) for s, v in values.items() if isinstance(v, int | float)}
        for name, values in tables.items()
        if isinstance(values, dict) and values
    }


def _tables(files: RunFiles) -> dict[str, list[tuple[str, dict[str, float]]]]:
    """Table name -> rows (stage, values); losses of different stages have different units, so they stay apart."""
    found: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for folder, summary in files.stages.items():
        if summary.get("kind") not in BUILT_IN:
            continue
        for table, values in _numbers(summary).items():
            if table != "loss":
                found.setdefault(table, []).append((folder, values))
    return found


def _course(curve: Curve) -> list[tuple[str, dict[str, float]]]:
    """Rows (moment, site -> loss) of a stage whose sites train side by side."""
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
