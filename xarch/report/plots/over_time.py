"""A figure over training time, across all stages."""

from __future__ import annotations

from collections.abc import Sequence

from xarch.report.plots.canvas import THEME, Canvas, Ticks, drawable, label

NARROW = 0.12
"""Fraction of the width that a stage needs for its name to fit."""


def over_time_svg(
    name: str,
    points: Sequence[tuple[float, float]],
    stages: Sequence[tuple[str, float, float]],
    *,
    teacher: float | None = None,
) -> str | None:
    """Draw (seconds, value) with the stages marked; return None for fewer than two points.

    Args:
        stages: (name, start, end) in seconds.
        teacher: the teacher's value, drawn as a dashed line.
    """
    drawn = [(x, y) for x, y in points if drawable(y)]
    if len(drawn) < 2:
        return None
    with Canvas(name) as canvas:
        axes = canvas.axes
        axes.plot(*zip(*drawn, strict=True), "o-", color=THEME["student"], linewidth=1.6, markersize=3)
        if teacher is not None and drawable(teacher):
            axes.axhline(teacher, color=THEME["teacher"], linewidth=1.0, linestyle=(0, (4, 3)))
            axes.text(0.99, teacher, "teacher", color=THEME["faint"], ha="right", va="bottom", fontsize=7.5,
                      transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set_xlim(left=0)
        right = axes.get_xlim()[1]
        for i, (stage, start, end) in enumerate(stages):
            if i:
                axes.axvline(start, color=THEME["grid"], linewidth=1.0)
            if end - start > NARROW * right:
                axes.text((start + end) / 2, 1.0, label(stage, 12), color=THEME["faint"], ha="center", va="bottom",
                          fontsize=7.5, transform=axes.get_xaxis_transform())  # fmt: skip
        axes.grid(axis="y")
        axes.set_xlabel("training seconds")
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:.4g}")
        axes.yaxis.set_major_formatter(Ticks())
        axes.locator_params(axis="x", nbins=6)
        return canvas.svg()
