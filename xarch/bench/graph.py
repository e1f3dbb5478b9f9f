"""Benchmark of one ONNX file: load time, latency, provider of each node and the slowest operators."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from xarch.bench.timing import measure
from xarch.errors import UsageError
from xarch.export.check import inspect_onnx
from xarch.export.session import open_session

PROFILED_RUNS, PROFILED_SECONDS = 5, 1.0
"""Number of runs of which the runtime records every node, and the time after which no further one begins: a loop over
tokens has hundreds of thousands of records a run."""

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def example_inputs(
    session: ort.InferenceSession, given: Mapping[str, np.ndarray], sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Return inputs that a session accepts: those in ``given``, else seeded noise or zeros. Free dimensions have the
    size listed for their symbol in ``sizes``, or 1.

    Integers are zero, because the valid range is unknown.

    Raises:
        UsageError: an input is not a numeric tensor.
    """
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name in given:
            inputs[value.name] = given[value.name]
            continue
        if value.type not in _TYPES:
            raise UsageError(f"input {value.name!r} has type {value.type}, which the bench cannot generate")
        kind = np.dtype(_TYPES[value.type])
        known = sizes or {}
        shape = [d if isinstance(d, int) and d >= 0 else known.get(str(d), 1) for d in value.shape]
        noise = rng.standard_normal(shape) if kind.kind == "f" else np.zeros(shape)
        inputs[value.name] = noise.astype(kind)
    return inputs


def graph_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of an exported graph (``metadata_props``), e.g. ``xarch.config``."""
    return dict(inspect_onnx(path)["metadata"])


def measure_graph(
    path: Path,
    provider: str,
    *,
    threads: int,
    given: Mapping[str, np.ndarray] | None = None,
    prepack: bool = True,
    work: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure one graph on example inputs; see :func:`example_inputs`.

    Args:
        work: work done by one call (the graph's ``xarch.work``), to report units per second.
    """
    start = time.perf_counter()
    session = open_session(path, provider, threads=threads, prepack=prepack)
    loaded = time.perf_counter() - start
    inputs = example_inputs(session, given or {}, work["sizes"] if work else {})
    result = measure(lambda: session.run(None, inputs))
    return {
        **asdict(result),
        **({} if work is None else {"throughput": _throughput(work, result.p50_ms)}),
        "load_seconds": round(loaded, 3),
        "inputs": {name: list(value.shape) for name, value in inputs.items()},
        "prepacked": prepack,
        **_placement(path, provider, threads, inputs, prepack),
    }


def _throughput(work: Mapping[str, Any], call_ms: float) -> dict[str, Any]:
    """Return the units per call, and per second at the median latency."""
    return {"unit": work["unit"], "per_call": work["amount"], "per_second": round(1e3 * work["amount"] / call_ms, 1)}


def _placement(
    path: Path, provider: str, threads: int, inputs: Mapping[str, np.ndarray], prepack: bool
) -> dict[str, Any]:
    """Return the nodes per provider and the slowest operators, from the runtime's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, provider, threads=threads, prepack=prepack, profile=Path(folder) / "nodes")
        until = time.perf_counter() + PROFILED_SECONDS
        for _ in range(PROFILED_RUNS):
            session.run(None, inputs)
            if time.perf_counter() > until:
                break
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    placed: dict[str, set[str]] = {}
    spent: Counter[str] = Counter()
    for event in events:
        details = event.get("args", {})
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        placed.setdefault(details.get("provider", "unknown"), set()).add(details.get("node_index", event["name"]))
        spent[details.get("op_name", "unknown")] += event["dur"]
    total = sum(spent.values()) or 1
    return {
        "nodes_per_provider": {name: len(nodes) for name, nodes in sorted(placed.items())},
        "time_per_operator": {op: round(us / total, 4) for op, us in spent.most_common(8)},
    }
