"""Human-readable numbers; "–" for anything that is not a number."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"


def count(value: Any) -> str:
    """1234567 -> "1.23 M"; small whole numbers stay as they are."""
    if not known(value):
        return NONE
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.3g} {unit}"
    if value == int(value) or abs(value) >= 1e3:
        return str(round(value))
    return f"{value:.3g}"


def size(value: Any) -> str:
    """Bytes: 1500000 -> "1.5 MB"."""
    if not known(value):
        return NONE
    for step, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= step:
            return f"{value / step:.3g} {unit}"
    return f"{int(value)} B"


def duration(seconds: Any) -> str:
    """90 -> "1 m 30 s"; two parts at most."""
    if not known(seconds):
        return NONE
    if seconds < 1:
        return "<1 s"
    whole = round(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")) if n]
    return " ".join(parts[:2])


def figure(value: float) -> str:
    """A measured number with four digits."""
    return f"{value:.4g}"


def number(value: Any, digits: int = 4) -> str:
    """``digits`` significant digits, no exponent for everyday sizes; "–" for anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if math.isnan(value) or math.isinf(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{max(digits - 2, 1)}e}"
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(places, 0), 6)}f}"


def percent(part: float, whole: float) -> str:
    """``part`` as a share of ``whole``."""
    return f"{100 * part / whole:.3g} %" if whole else "–"


def known(value: Any) -> bool:
    """Return whether something is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
