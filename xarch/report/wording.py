"""Numbers as a person reads them."""

from __future__ import annotations

import math
from typing import Any

UNITS = {
    "perplexity": "per token",
    "cross_entropy": "nats/token",
    "kl": "nats/token",
    "kl_stderr": "nats/token",
    "perplexity_ratio": "× teacher",
    "top1_agreement": "share",
    "top1_accuracy": "share",
    "psnr": "dB",
}
"""Units of figures that several metrics use; a metric's headline figure brings its own."""


NBSP = "\u00a0"
"""Keeps a number and its unit on one line."""

_SPELLED = {"kl": "KL", "psnr": "PSNR", "ssim": "SSIM", "nll": "NLL", "top1": "top-1", "stderr": "standard error"}


def number(value: Any, digits: int = 4) -> str:
    """``digits`` significant digits, no exponent for everyday sizes; "–" for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if math.isnan(value) or math.isinf(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", NBSP)
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{max(digits - 2, 1)}e}"
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(places, 0), 6)}f}"


def count(value: Any) -> str:
    """1234567 -> "1.23 M"."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{NBSP}{letter}"
    return f"{value:g}"


def size(value: Any) -> str:
    """Bytes: 1234567 -> "1.23 MB"."""
    text = count(value)
    return text if text == "–" else (f"{text}B" if text[-1].isalpha() else f"{text}{NBSP}B")


def figure(name: str, value: Any) -> str:
    """A figure by its name: what is called bytes is a size, everything else a number."""
    return size(value) if name.split("_")[-1] == "bytes" else number(value)


def duration(value: Any) -> str:
    """Seconds: 75 -> "1 min 15 s"."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if value < 10:
        return f"{value:.2g}{NBSP}s" if value < 1 else f"{value:.1f}{NBSP}s"
    if value < 60:
        return f"{value:.0f}{NBSP}s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {seconds}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60}{NBSP}min"


def words(name: str) -> str:
    """``top1_agreement`` -> "top-1 agreement"."""
    return " ".join(_SPELLED.get(word, word) for word in name.replace("_", " ").split(" "))


def with_unit(name: str, unit: str = "") -> str:
    """Name and unit of a figure."""
    unit = unit or UNITS.get(name, "")
    return f"{words(name)} ({unit})" if unit else words(name)


def percent(part: float, whole: float) -> str:
    """``part`` as a share of ``whole``."""
    return f"{100 * part / whole:.3g}{NBSP}%" if whole else "–"
