"""Names, units and numbers of a report."""

from __future__ import annotations

from typing import Any

from xarch import numbers

NBSP = "\u00a0"
"""Keeps a number and its unit on one line."""

_SPELLED = {"kl": "KL", "psnr": "PSNR", "ssim": "SSIM", "nll": "NLL", "top1": "top-1", "stderr": "standard error"}


def number(value: Any, digits: int = 4) -> str:
    """See :func:`xarch.numbers.number`."""
    return _unbroken(numbers.number(value, digits))


def count(value: Any) -> str:
    """See :func:`xarch.numbers.count`."""
    return _unbroken(numbers.count(value))


def size(value: Any) -> str:
    """See :func:`xarch.numbers.size`."""
    return _unbroken(numbers.size(value))


def figure(name: str, value: Any) -> str:
    """A figure by its name: what is called bytes is a size, everything else a number."""
    return size(value) if name.split("_")[-1] == "bytes" else number(value)


def duration(value: Any) -> str:
    """See :func:`xarch.numbers.duration`."""
    return _unbroken(numbers.duration(value))


def words(name: str) -> str:
    """``top1_agreement`` -> "top-1 agreement"."""
    return " ".join(_SPELLED.get(word, word) for word in name.replace("_", " ").split(" "))


def with_unit(name: str, unit: str = "") -> str:
    """Name and unit of a figure."""
    return f"{words(name)} ({unit})" if unit else words(name)


def percent(part: float, whole: float) -> str:
    """See :func:`xarch.numbers.percent`."""
    return _unbroken(numbers.percent(part, whole))


def _unbroken(text: str) -> str:
    return text.replace(" ", NBSP)
