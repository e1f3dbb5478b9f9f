"""Timed procedures over exported graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from xarch.bench.timing import measure
from xarch.contracts.bench import BenchCase
from xarch.export.session import open_session
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


class BenchSessions:
    """Return a ``Call`` that opens each graph of a folder on first use.

    Args:
        prepack: maps a graph to whether its weights are repacked, see :func:`xarch.export.session.open_session`.
    """

    def __init__(self, folder: Path, provider: str, *, threads: int, prepack: dict[str, bool]) -> None:
        self.folder, self.provider, self.threads, self.prepack = folder, provider, threads, prepack
        self._open: dict[str, tuple[ort.InferenceSession, list[str]]] = {}

    def __call__(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if graph not in self._open:
            path, prepack = self.folder / f"{graph}.onnx", self.prepack.get(graph, True)
            session = open_session(path, self.provider, threads=self.threads, prepack=prepack)
            self._open[graph] = session, [output.name for output in session.get_outputs()]
        session, names = self._open[graph]
        return dict(zip(names, session.run(names, inputs), strict=True))


def measure_case(case: BenchCase, call: BenchSessions) -> dict[str, Any]:
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
