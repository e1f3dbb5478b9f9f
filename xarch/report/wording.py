"""Formatting of names, units and numbers in a report."""

from __future__ import annotations

from typing import Any

from xarch import numbers

NBSP = "\u00a0"
"""Keeps a number and its unit on one line."""

_SPELLED = {"kl": "KL", "psnr": "PSNR", "ssim": "SSIM", "nll": "NLL", "ece": "ECE", "top1": "top-1", "top5": "top-5"}
_SPELLED |= {"stderr": "standard error"}


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
    """Format a figure: as a size if its name ends in "bytes", else as a number."""
    return size(value) if name.split("_")[-1] == "bytes" else number(value)


def rate(per_second: Any, unit: str) -> str:
    """``rate(3113.2, "token")`` -> "3113 tokens/s"; "–" if there is no value."""
    text = count(per_second)
    return text if text == numbers.NONE else f"{text} {unit.removesuffix('s')}s/s"


def plural(n: Any, noun: str) -> str:
    """``plural(2, "thread")`` -> "2 threads"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def duration(value: Any) -> str:
    """See :func:`xarch.numbers.duration`."""
    return _unbroken(numbers.duration(value))


def words(name: str) -> str:
    """Turn a key into words: ``top1_agreement`` -> "top-1 agreement"."""
    return " ".join(_SPELLED.get(word, word) for word in name.replace("_", " ").split(" "))


def with_unit(name: str, unit: str = "") -> str:
    """Return the name of a figure with its unit."""
    return f"{words(name)} ({unit})" if unit else words(name)


def percent(part: float, whole: float) -> str:
    """See :func:`xarch.numbers.percent`."""
    return _unbroken(numbers.percent(part, whole))


def _unbroken(text: str) -> str:
    return text.replace(" ", NBSP)
