"""The least an operation must do, and how long the machine needs for it at its measured limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """Amounts that no implementation of the same algorithm gets around."""

    bytes: float
    """Inputs read once and results written once."""
    flops: float
    exps: float
    matmul: bool
    """Whether the floating-point operations are matrix products, so that their rate is that of a large matmul."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Shortest time at the machine's limits, and which of them it is."""

    seconds: float
    bound: str


def floor(work: Work, limits: dict[str, float]) -> Floor:
    """The largest of the times for memory, arithmetic and exponentials, as if they overlapped perfectly."""
    arithmetic = "matmul" if work.matmul else "fma"
    times = {
        "memory": work.bytes / limits["copy_bytes_per_s"],
        arithmetic: work.flops / limits[f"{arithmetic}_flops_per_s"],
        "exp": work.exps / limits["exp_per_s"],
    }
    bound = max(times, key=times.__getitem__)
    return Floor(times[bound], bound)
