"""Heat maps of values per site, over stages or over the steps of one stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.ticker import NullLocator

from xarch.report.plots.canvas import THEME, Canvas, Ticks, label

LEVELS = 9


def heat_svg(name: str, rows: Sequence[tuple[str, Mapping[str, float]]], sites: Sequence[str]) -> str | None:
    """Draw one row per entry and one column per site; missing values stay empty."""
    grid = np.array([[values.get(s, math.nan) for s in sites] for _, values in rows], dtype=float)
    grid[~(np.abs(grid) < 1e100)] = math.nan
    if grid.size == 0 or np.isnan(grid).all():
        return None
    edges = level_edges(grid)
    colors = ListedColormap([THEME[f"heat{i}"] for i in range(LEVELS)])
    with Canvas(name, max(3.3, 0.17 * len(sites) + 1.6), 0.6 + 0.2 * len(rows)) as canvas:
        axes = canvas.axes
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(grid), cmap=colors, norm=BoundaryNorm(edges, LEVELS), edgecolors=THEME["ground"],
            linewidth=1.5,
        )  # fmt: skip
        axes.invert_yaxis()
        every = max(1, math.ceil(len(sites) / 16))
        axes.set_xticks(np.arange(0, len(sites), every) + 0.5, [label(s.rsplit(".", 1)[-1], 6) for s in sites[::every]])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [label(row) for row, _ in rows])
        axes.tick_params(axis="y", colors=THEME["ink"])
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel(label(sites[0].rsplit(".", 1)[0]) if "." in sites[0] else "")
        bar = canvas.figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, aspect=10)
        bar.outline.set_visible(False)
        bar.set_ticks([edges[0], edges[LEVELS // 2], edges[-1]])
        bar.ax.yaxis.set_major_formatter(Ticks())
        bar.ax.yaxis.set_minor_locator(NullLocator())
        return canvas.svg()


def level_edges(grid: np.ndarray) -> np.ndarray:
    """Return the boundaries of the colour levels: linear, or logarithmic if values span more than a factor of 20."""
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    if low == high:
        pad = abs(low) * 0.05 or 0.5
        low, high = low - pad, high + pad
    if low > 0 and high / low > 20:
        return np.geomspace(low, high, LEVELS + 1)
    return np.linspace(low, high, LEVELS + 1)
