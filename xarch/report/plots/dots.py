"""Dot plots: one dot per seed, with the mean of each arm."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from xarch.report.plots.canvas import THEME, Canvas, drawable, label


def dots_svg(name: str, arms: Sequence[tuple[str, Sequence[float]]], unit: str, reference: float | None) -> str | None:
    """Draw one row per arm, one dot per seed and a tick at the mean; ``reference`` (the teacher) is a vertical line."""
    arms = [(arm, [v for v in values if drawable(v)]) for arm, values in arms]
    if not any(values for _, values in arms):
        return None
    with Canvas(name, 4.6, 0.6 + 0.3 * len(arms)) as canvas:
        axes = canvas.axes
        for row, (_, values) in enumerate(arms):
            if not values:
                continue
            axes.plot(values, [row] * len(values), "o", color=THEME["student"], markersize=5, alpha=0.6)
            axes.plot([statistics.fmean(values)], [row], "|", color=THEME["ink"], markersize=15, markeredgewidth=2)
        if reference is not None and drawable(reference):
            axes.axvline(reference, color=THEME["teacher"], linewidth=1.2, linestyle="--")
        axes.set_yticks(range(len(arms)), [label(arm, 34) for arm, _ in arms])
        axes.tick_params(axis="y", colors=THEME["ink"])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_xlabel(label(unit, 40))
        return canvas.svg()
