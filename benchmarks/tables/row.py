"""One line of a table, and how the points of a result are summed up in it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Points = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        what: what was measured.
        figure: the mean over seeds, the fastest repeat, or the median, as the benchmark says.
        spread: least and most over seeds or repeats.
        seeds: how many seeds or repeats.
        rival: what the figure is to be compared with, from the same result; empty where none was measured.
    """

    what: str
    figure: str
    spread: str = ""
    seeds: str = ""
    rival: str = ""


def mean(values: Iterable[float], digits: int = 1) -> str:
    return f"{statistics.mean(values):.{digits}f}"


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Least and most; once if they look alike."""
    values = list(values)
    return "–".join(dict.fromkeys(f"{v:.{digits}f}" for v in (min(values), max(values))))


def grouped(points: Points, *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Points by the values of some keys, in the order of their first appearance."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for point in points:
        found.setdefault(tuple(point.get(k) for k in keys), []).append(point)
    return found


def of(points: Points, *path: str) -> list[Any]:
    """One value of every point that has it."""
    found: list[Any] = list(points)
    for key in path:
        found = [p[key] for p in found if isinstance(p, dict) and key in p]
    return found
