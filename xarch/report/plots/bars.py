"""Bar charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from xarch.report.plots.canvas import THEME, Canvas, Ticks, drawable, label
from xarch.report.wording import number

ROLE = {"teacher": "teacher", "student": "student"}


def comparison_svg(name: str, values: Sequence[tuple[str, float]], text: Callable[[float], str] = number) -> str | None:
    """Draw horizontal bars of teacher, student and baselines, each labelled with its value formatted by ``text``."""
    values = [(who, v) for who, v in values if drawable(v)]
    if not values:
        return None
    with Canvas(name, 3.3, 0.2 + 0.28 * len(values)) as canvas:
        axes = canvas.axes
        top = max(max(v for _, v in values), 0.0)
        for row, (who, value) in enumerate(values):
            axes.barh(row, value, height=0.62, color=THEME[ROLE.get(who, "baseline")])
            axes.text(max(value, 0.0) + 0.02 * (top or 1.0), row, text(value), va="center", fontweight="bold")
        axes.set_yticks(range(len(values)), [label(who) for who, _ in values])
        axes.tick_params(axis="y", colors=THEME["ink"])
        axes.invert_yaxis()
        axes.set_xlim(min(0.0, *(v for _, v in values)), (top or 1.0) * 1.3)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.axvline(0, color=THEME["faint"], linewidth=0.8)
        return canvas.svg()


def sites_svg(name: str, values: Sequence[tuple[str, float]], chosen: Collection[str], unit: str) -> str | None:
    """Draw one vertical bar per site; chosen sites are solid, the others pale."""
    drawn = [(site, v) for site, v in values if drawable(v)]
    if not drawn:
        return None
    with Canvas(name, max(3.3, 0.17 * len(drawn) + 0.8), 1.8) as canvas:
        axes = canvas.axes
        for at, (site, value) in enumerate(drawn):
            strong = not chosen or site in chosen
            axes.bar(at, value, width=0.72, color=THEME["student" if strong else "teacher"])
        every = max(1, math.ceil(len(drawn) / 16))
        axes.set_xticks(range(0, len(drawn), every), [_last(site) for site, _ in drawn[::every]])
        axes.set_xlim(-0.7, len(drawn) - 0.3)
        axes.grid(axis="y")
        axes.set_xlabel(_first(drawn[0][0]))
        axes.set_ylabel(label(unit))
        axes.yaxis.set_major_formatter(Ticks())
        axes.locator_params(axis="y", nbins=4)
        return canvas.svg()


def _last(site: str) -> str:
    return label(site.rsplit(".", 1)[-1], 6)


def _first(site: str) -> str:
    return label(site.rsplit(".", 1)[0]) if "." in site else ""
