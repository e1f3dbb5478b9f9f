"""``xarch bench``: benchmark an export folder or any ONNX file.

A file that xarch did not write is opened in a separate process with a time limit, because a graph can crash the
runtime, exhaust memory or never return.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xarch.bench.cases import Cases, measure_case
from xarch.bench.graph import measure_graph
from xarch.bench.machine import machine
from xarch.errors import UsageError
from xarch.export.check import inspect_onnx
from xarch.export.examples import load_examples
from xarch.export.in_place import GraphCalls
from xarch.export.stored import passed, read_profile
from xarch.files.bounded_json import read_json
from xarch.files.manifest import verify
from xarch.files.records import Absent, typed
from xarch.hardware import load_average
from xarch.numbers import count
from xarch.threads import busy

FOREIGN_SECONDS = 300.0
"""Time limit in seconds for a file that xarch did not write in this run."""


def bench_export(
    export_dir: Path,
    *,
    threads: int,
    say: Callable[[str], None],
    cases: Cases | None = None,
    teacher: Path | None = None,
    teacher_cases: Cases | None = None,
) -> dict[str, Any]:
    """Measure every graph of an export and every procedure over its graphs.

    Latencies are in milliseconds per call: ``graphs.NAME.p50_ms`` on the graph's example inputs, ``cases.NAME.p50_ms``
    of a procedure; ``cpu_ms`` is the CPU time of a call. ``busy`` says why other times are too long, if they are.
    Entries of the same name in the folder ``teacher`` are measured next: ``teacher.graphs.NAME``,
    ``teacher.cases.NAME``; ``teacher.speed_up.NAME`` is the student's speed divided by the teacher's. ``dtype`` and
    ``teacher.dtype`` are the precisions of the two: an 8-bit student is compared with the teacher in 8 bits where that
    could be made.

    Args:
        cases, teacher_cases: the procedures of student and teacher.

    Raises:
        UsageError: the folder contains no accepted export, or a damaged file.
    """
    if not passed(export_dir):
        raise UsageError(f"{export_dir} contains no export that passed the parity gate", "run `xarch export` again")
    verify(export_dir)
    provider = read_profile(export_dir)["profile"]["provider"]
    student = _Side(export_dir, provider, threads, cases)
    rival = absent = None
    if teacher is not None and teacher.is_dir():
        verify(teacher)
        file = teacher / "absent.json"
        absent = typed(Absent, read_json(file), file)["reason"] if file.is_file() else None
    if teacher is not None and teacher.is_dir() and absent is None:
        rival = _Side(teacher, provider, threads, teacher_cases)
    result: dict[str, Any] = {
        "provider": provider,
        "dtype": student.dtype,
        "threads": threads,
        "machine": machine(),
        "load_average": load_average(),
        "busy": busy(threads),
        "graphs": {},
        "cases": {},
    }
    if absent is not None:
        result["teacher"] = {"absent": absent}
    for kind, names in (("graphs", student.graphs), ("cases", student.cases)):
        for name in names:
            figures = result[kind][name] = student.measure(kind, name)
            say(f"bench: {name} ({student.dtype}) {_told(figures)}")
            if rival is not None and name in (rival.graphs if kind == "graphs" else rival.cases):
                other = rival.measure(kind, name)
                compared = result.setdefault("teacher", {"dtype": rival.dtype})
                compared.setdefault(kind, {})[name] = other
                compared.setdefault("speed_up", {})[name] = round(_rate(figures) / _rate(other), 3)
                say(f"bench: teacher {name} ({rival.dtype}) {_told(other)}")
    return result


class _Side:
    """Measures the graphs of one folder and the procedures over them."""

    def __init__(self, folder: Path, provider: str, threads: int, cases: Cases | None) -> None:
        self.folder, self.provider, self.threads = folder, provider, threads
        self.graphs = {path.stem: inspect_onnx(path) for path in sorted(folder.glob("*.onnx"))}
        precisions = {facts["metadata"].get("xarch.dtype", "float32") for facts in self.graphs.values()}
        self.dtype = ", ".join(sorted(precisions))
        self._prepack = {n: facts["metadata"].get("xarch.prepack") != "false" for n, facts in self.graphs.items()}
        made = cases(list(self.graphs), folder) if cases is not None and self.graphs else ()
        self.cases = {case.name: case for case in made}
        self._call = GraphCalls(folder, provider, threads=threads)

    def measure(self, kind: str, name: str) -> dict[str, Any]:
        if kind == "cases":
            return measure_case(self.cases[name], self._call)
        facts = self.graphs[name]
        figures = measure_graph(
            self.folder / f"{name}.onnx",
            self.provider,
            threads=self.threads,
            given=load_examples(self.folder, name),
            prepack=self._prepack[name],
            work=work_of(facts["metadata"]),
        )
        return {**figures, "weight_bytes": sum(facts["external_weight_bytes"].values()) + facts["inline_weight_bytes"]}


def _rate(figures: dict[str, Any]) -> float:
    """Return units per second, or calls per second if no unit is counted."""
    own = figures.get("throughput", {}).get("per_second") or figures.get("per_second")
    return float(own or 1e3 / figures["p50_ms"])


def _told(figures: dict[str, Any]) -> str:
    known = figures.get("throughput") or figures
    rate = f", {count(known['per_second'])} {known['unit']}/s" if "per_second" in known else ""
    return f"{figures['p50_ms']:.2f} ms, {figures['cpu_ms']:.2f} CPU ms{rate}"


def work_of(metadata: dict[str, str]) -> dict[str, Any] | None:
    """Return the work done by one call of a graph, from its metadata; None if it is not stated."""
    return json.loads(metadata["xarch.work"]) if "xarch.work" in metadata else None


def bench_model(
    path: Path,
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    seconds: float = FOREIGN_SECONDS,
) -> dict[str, Any]:
    """Measure one ONNX file from any source in a separate process.

    Raises:
        UsageError: it is not a valid model, stores data outside its folder, cannot run, or takes too long.
    """
    path = Path(path)
    inspect_onnx(path)
    command = [sys.executable, "-m", "xarch.bench.worker", str(path), provider, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"the bench of {path} exceeded its time limit of {seconds:.0f} s") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"the process exited with code {done.returncode}"])[-1]
        raise UsageError(f"{path} cannot be measured: {reason}")
    return {
        "provider": provider,
        "threads": threads,
        "machine": machine(),
        "busy": busy(threads),
        **json.loads(done.stdout),
    }
