"""Drawing functions for the report sections of plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xarch.report.blocks import Figure
from xarch.report.plots.bars import comparison_svg
from xarch.report.plots.curves import curve_svg
from xarch.report.wording import number


def bars(name: str, values: Sequence[tuple[str, float]], title: str) -> Figure | None:
    """Draw horizontal bars, e.g. teacher, student and baselines; return None if no value is finite.

    Args:
        name: unique in the report; letters and hyphens only.
        values: (label, number), from top to bottom.
    """
    svg = comparison_svg(name, values)
    said = ", ".join(f"{who} {number(value)}" for who, value in values)
    return None if svg is None else Figure(svg, f"{title}: {said}.", title)


def lines(
    name: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    axis: str,
    bounds: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
) -> Figure | None:
    """Draw curves; return None if no value is finite.

    Args:
        name: unique in the report; letters and hyphens only.
        series: label -> [(x, y)]; "teacher" and "student" have their colours.
        axis: what the horizontal axis counts, e.g. "steps".
        bounds: of the vertical axis, e.g. (0, 1) for shares; by default those of the values, on a logarithmic axis if
            they span much.
        marks: places on the horizontal axis where something begins.
    """
    svg = curve_svg(
        name, {label: list(points) for label, points in series.items()}, axis=axis, bounds=bounds, marks=marks
    )
    ends = ", ".join(f"{label} {number(p[0][1])} → {number(p[-1][1])}" for label, p in series.items() if p)
    return None if svg is None else Figure(svg, f"{title}: {ends}.", title)


def heat(
    name: str, rows: Sequence[tuple[str, Mapping[str, float]]], columns: Sequence[str], text: str, caption: str = ""
) -> Figure | None:
    """Draw a value for each row and column as a colour; None if there are none.

    Args:
        rows: (label, column -> value), from the top.
        text: what it shows, for Markdown and screen readers.
    """
    from xarch.report.plots.heat import heat_svg

    svg = heat_svg(name, rows, columns)
    return None if svg is None else Figure(svg, text, caption)
