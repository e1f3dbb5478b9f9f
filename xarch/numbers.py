"""Numbers as people read them."""

from __future__ import annotations


def count(value: float) -> str:
    """1234567 -> "1.23 M"; small whole numbers stay as they are."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}" if value != int(value) else str(int(value))


def size(value: float) -> str:
    """Bytes: 1500000 -> "1.5 MB"."""
    for step, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= step:
            return f"{value / step:.3g} {unit}"
    return f"{int(value)} B"


def duration(seconds: float) -> str:
    """90 -> "1 m 30 s"; two parts at most."""
    if seconds < 1:
        return "<1 s"
    whole = round(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")) if n]
    return " ".join(parts[:2])


def figure(value: float) -> str:
    """A measured number with four digits."""
    return f"{value:.4g}"
