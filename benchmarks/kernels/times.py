"""Which of a point's times is compared, and whether it was taken beside other work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BUSY = 1.1
"""A thread that waited for a core took longer by the clock than of the CPU by more than this factor."""


def clock(point: Mapping[str, Any]) -> str:
    """The time that counts: of the CPU, which other processes disturb least; by the clock on a GPU."""
    return "seconds" if point["device"] == "cuda" else "cpu_seconds"


def busy(figures: Mapping[str, float]) -> bool:
    """Whether the machine was busy while these figures of a CPU were taken; several threads hide it."""
    return figures["seconds"] > BUSY * figures["cpu_seconds"]
