"""Timed procedures over exported graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xarch.bench.timing import measure
from xarch.contracts.bench import BenchCase, Call
from xarch.registry.registry import Registry

Cases = Callable[[Sequence[str], Path], Iterable[BenchCase]]
"""Maps the names of the exported graphs and their folder to procedures."""

RUNS, SECONDS = 10, 5.0
"""Number of timed runs of a procedure, and the time limit in seconds."""


def cases_of(registry: Registry, family: str, target: str = "") -> Cases:
    """Return the procedures of a target if it defines any, else those of its family."""

    def cases(graphs: Sequence[str], folder: Path) -> list[BenchCase]:
        if target:
            spec = registry.get("target", target)
            adapter = registry.create("target", target)
            with registry.guard(spec, "bench_cases"):
                own = adapter.bench_cases(graphs, folder)
                if own is not None:
                    return list(own)
        spec = registry.get("family", family)
        made = registry.create("family", family)
        with registry.guard(spec, "bench_cases"):
            return list(made.bench_cases(graphs, folder))

    return cases


def measure_case(case: BenchCase, call: Call) -> dict[str, Any]:
    """Return the milliseconds of one run of a procedure, and the units per second at the median."""
    result = measure(lambda: case.drive(call), warm_up=1, runs=RUNS, seconds=SECONDS)
    return {
        **asdict(result),
        "unit": case.unit,
        "amount": case.amount,
        "per_second": round(1e3 * case.amount / result.p50_ms, 2),
        "graphs": list(case.graphs),
        "figures": dict(case.figures),
    }
