"""Convert a matplotlib figure to SVG that can be embedded in a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as MplFigure
from matplotlib.ticker import Formatter

THEME = {
    "ink": "#010203",
    "faint": "#020304",
    "grid": "#030405",
    "student": "#040506",
    "teacher": "#050607",
    "baseline": "#060708",
    "third": "#070809",
    "ground": "#08090a",
    **{f"heat{i}": f"#0a0b1{i}" for i in range(9)},
}
"""Colour role -> placeholder that is replaced by ``var(--ROLE)``, so that one SVG works in both themes."""

PIXELS = 1.45
"""Pixels per point at full size: a 9-point label is 13 pixels high."""

SERIES = ("student", "baseline", "third", "teacher")
_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": THEME["grid"],
    "axes.labelcolor": THEME["faint"],
    "text.color": THEME["ink"],
    "xtick.color": THEME["faint"],
    "ytick.color": THEME["faint"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": THEME["grid"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
}


def drawable(value: float) -> bool:
    """Whether a value can be drawn: finite and small enough for an axis."""
    return abs(value) < 1e100


def label(text: str, most: int = 22) -> str:
    """Shorten a name so that it fits next to an axis."""
    return text if len(text) <= most else text[: most - 1] + "…"


class Ticks(Formatter):
    """Labels of an axis with as many digits as tell them apart, at least three."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return f"{value:.3g}"

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the labels of all ticks."""
        labels: list[str] = []
        for digits in range(3, 10):
            labels = [f"{value:.{digits}g}" for value in values]
            if len(set(labels)) == len(labels):
                break
        return labels


class Canvas:
    """One figure with one pair of axes; a context manager. Call :meth:`svg` inside the block.

    Args:
        name: unique on the page; prefix of the SVG ids.
        width, height: inches; a phone shows 3.5 inches at full scale.
    """

    def __init__(self, name: str, width: float = 3.3, height: float = 2.1) -> None:
        import matplotlib

        self.name = re.sub(r"\W+", "-", name)
        settings: Any = {**_RC, "svg.hashsalt": self.name}
        self._rc = matplotlib.rc_context(settings)
        self._size = (width, height)

    def __enter__(self) -> Canvas:
        self._rc.__enter__()
        self.figure = MplFigure(figsize=self._size, layout="constrained")
        self._paper = FigureCanvasSVG(self.figure)
        self.axes: Axes = self.figure.add_subplot()
        return self

    def __exit__(self, *error: object) -> None:
        self._rc.__exit__(None, None, None)

    def svg(self) -> str:
        """Return the SVG; call it inside the block."""
        out = io.StringIO()
        for part in (self.figure, self.axes):
            part.patch.set(facecolor="none", edgecolor="none")
        with warnings.catch_warnings():
            # Labels stay text, so the browser supplies glyphs that matplotlib's font lacks.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            # savefig lays the figure out a second time for a size that is known
            self._paper.print_svg(out, metadata={"Date": None, "Creator": None})
        return _inline(out.getvalue(), self.name)


def _inline(svg: str, name: str) -> str:
    """Return the ``<svg>`` element with unique ids, theme colours and a responsive size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href)="#([^"]+)"', rf'\1="#{name}-\2"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for role, color in THEME.items():
        svg = svg.replace(color, f"var(--{role})")
    svg = re.sub(r"font: ([^;\"']*?)([\d.]+px) [^;\"]*", r"font-size: \2", svg)
    width = re.search(r'viewBox="0 0 ([\d.]+) ', svg).group(1)  # type: ignore[union-attr]
    head = re.sub(r'\s(width|height)="[^"]*"', "", svg[: svg.index(">")])
    natural = round(float(width) * PIXELS)
    return f'{head} aria-hidden="true" style="--natural: {natural}px"{svg[svg.index(">") :]}'
