"""Curves: the losses of a stage, and what plugins draw."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from xarch.report.plots.canvas import SERIES, THEME, Canvas, Ticks, drawable, label
from xarch.report.wording import count

BESIDE = 3
"""Up to this many curves are named where the axes are empty; the names of more stand below them, in two columns."""
HEIGHT, LINE = 2.1, 0.17
"""Inches of a figure and of one line of names."""
STYLES = ("-", "--", ":", "-.")
"""Of curves that share a colour."""
FEW = 12
"""Up to this many points of a curve are marked."""
POINTS = 300
"""Maximum number of points per curve; each is the mean of its neighbours."""


def curve_svg(
    name: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    axis: str,
    marks: Sequence[float] = (),
    bounds: tuple[float, float] | None = None,
) -> str | None:
    """Draw one or more curves; return None if nothing can be drawn.

    Args:
        series: label -> (x, value), in order; values that are not finite are skipped; "teacher" and "student" have
            their colours.
        axis: what the horizontal axis counts, e.g. "steps".
        marks: places on it where something begins, e.g. a phase of the stage.
        bounds: of the vertical axis, which then is linear; by default those of the values.
    """
    drawn = {key: _thinned(points) for key, points in series.items()}
    drawn = {key: points for key, points in drawn.items() if len(points[0])}
    if not drawn:
        return None
    values = np.concatenate([y for _, y in drawn.values()])
    below = -(-len(drawn) // 2) if len(drawn) > BESIDE else 0
    with Canvas(name, height=HEIGHT + LINE * below) as canvas:
        axes = canvas.axes
        smooth = len(drawn) == 1 and len(values) > 20
        for (key, (x, y)), (role, style) in zip(drawn.items(), _looks(drawn), strict=True):
            color = THEME[role]
            alpha, marker = 0.35 if smooth else 1.0, "." if len(x) <= FEW else ""
            axes.plot(x, y, style, color=color, linewidth=1.0, alpha=alpha, marker=marker, label=label(key))
            if smooth:
                axes.plot(x, _smooth(y), color=color, linewidth=1.8)
            axes.plot(x[-1:], y[-1:], "o", color=color, markersize=3.5)
        if bounds is not None:
            axes.set_ylim(*bounds)
        elif values.min() > 0 and values.max() / values.min() > 8:
            axes.set_yscale("log")
        elif 0 <= values.min() < 0.5 * values.max():
            axes.set_ylim(bottom=0)
        for mark in marks:
            axes.axvline(mark, color=THEME["faint"], linewidth=0.8, linestyle=(0, (2, 2)))
        axes.grid(axis="y")
        axes.set_xlabel(label(axis))
        axes.xaxis.set_major_formatter(lambda v, _: count(v))
        axes.yaxis.set_major_formatter(Ticks())
        axes.yaxis.set_minor_formatter(lambda v, _: "")
        axes.locator_params(axis="x", nbins=5, integer=True)
        if below:
            canvas.figure.legend(frameon=False, loc="outside lower center", handlelength=1.2, ncols=2)
        elif len(drawn) > 1:
            axes.legend(frameon=False, loc="best", handlelength=1.2)
        return canvas.svg()


def _looks(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return colour role and style of every curve: those of teacher and student, the others in turn."""
    free = [role for role in SERIES if role not in names] or SERIES
    others = itertools.cycle((role, style) for style, role in itertools.product(STYLES, free))
    return [(name, STYLES[0]) if name in SERIES else next(others) for name in names]


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    data = np.array([p for p in points if drawable(p[1])], dtype=float).reshape(-1, 2)
    if len(data) > POINTS:
        data = np.array([part.mean(0) for part in np.array_split(data, POINTS)])
    return data[:, 0], data[:, 1]


def _smooth(y: np.ndarray) -> np.ndarray:
    """Return the moving average over a tenth of the curve; the window shrinks at both ends."""
    half = max(1, len(y) // 20)
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)
