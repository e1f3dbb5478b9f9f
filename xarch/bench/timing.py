"""Latency of a call: percentiles over repetitions after a warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds per call over ``runs`` repetitions, by the clock, and of the CPU summed over all threads."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    cpu_ms: float
    runs: int


def measure(call: Callable[[], object], *, warm_up: int = 2, runs: int = 50, seconds: float = 3.0) -> Timing:
    """Time ``call`` for ``runs`` repetitions or ``seconds``, at least 3 times, after ``warm_up`` calls."""
    for _ in range(warm_up):
        call()
    samples: list[float] = []
    cpu: list[float] = []
    until = time.perf_counter() + seconds
    while len(samples) < runs and (len(samples) < 3 or time.perf_counter() < until):
        start, spent = time.perf_counter(), time.process_time()
        call()
        cpu.append(1e3 * (time.process_time() - spent))
        samples.append(1e3 * (time.perf_counter() - start))
    return timing(samples, cpu)


def timing(samples_ms: Sequence[float], cpu_ms: Sequence[float]) -> Timing:
    """Return the percentiles of samples in milliseconds, and the median CPU time."""
    p50, p90, p99 = (round(float(p), 4) for p in np.percentile(samples_ms, (50, 90, 99)))
    return Timing(p50, p90, p99, round(min(samples_ms), 4), round(float(np.median(cpu_ms)), 4), len(samples_ms))
