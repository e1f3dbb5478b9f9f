"""``xarch bench``: an export folder, or any ONNX file.

A file from elsewhere is opened in a process of its own with a time limit, because a graph can make a runtime crash,
allocate without end or never return.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xarch.bench.cases import BenchSessions, Cases, measure_case
from xarch.bench.graph import measure_graph
from xarch.bench.machine import machine
from xarch.errors import UsageError
from xarch.export.check import inspect_onnx
from xarch.export.examples import load_examples
from xarch.files.atomic import read_json, write_json
from xarch.hardware import load_average
from xarch.numbers import count

FOREIGN_SECONDS = 300.0
"""Time limit for a file that xarch did not write in this run."""


def bench_export(
    export_dir: Path,
    out_json: Path,
    *,
    threads: int,
    say: Callable[[str], None],
    cases: Cases | None = None,
    teacher: Path | None = None,
    teacher_cases: Cases | None = None,
) -> dict[str, Any]:
    """Measure every graph of an export and every procedure over its graphs, and write ``out_json``.

    Latencies are milliseconds of a call: ``graphs.NAME.p50_ms`` on the graph's example inputs, ``cases.NAME.p50_ms`` of
    a procedure. What ``teacher`` (a folder) has under the same name is measured right after: ``teacher.graphs.NAME``,
    ``teacher.cases.NAME``, and ``teacher.speed_up.NAME`` is the student's speed over the teacher's.

    Args:
        cases, teacher_cases: the procedures of student and teacher.

    Raises:
        UsageError: the folder holds no accepted export.
    """
    export_dir = Path(export_dir)
    parity = export_dir / "parity.json"
    if not parity.is_file() or not read_json(parity)["passed"]:
        raise UsageError(f"{export_dir} holds no export that passed its parity gate", "run `xarch export` again")
    provider = read_json(export_dir / "profile.json")["profile"]["provider"]
    student = _Side(export_dir, provider, threads, cases)
    absent = teacher / "absent.json" if teacher is not None else None
    rival = None
    if teacher is not None and teacher.is_dir() and not (absent and absent.is_file()):
        rival = _Side(teacher, provider, threads, teacher_cases)
    result: dict[str, Any] = {
        "provider": provider,
        "threads": threads,
        "machine": machine(),
        "load_average": load_average(),
        "graphs": {},
        "cases": {},
    }
    if absent is not None and absent.is_file():
        result["teacher"] = {"absent": read_json(absent)["reason"]}
    for kind, names in (("graphs", student.graphs), ("cases", student.cases)):
        for name in names:
            figures = result[kind][name] = student.measure(kind, name)
            say(f"bench: {name} {_told(figures)}")
            if rival is not None and name in (rival.graphs if kind == "graphs" else rival.cases):
                other = rival.measure(kind, name)
                compared = result.setdefault("teacher", {})
                compared.setdefault(kind, {})[name] = other
                compared.setdefault("speed_up", {})[name] = round(_rate(figures) / _rate(other), 3)
                say(f"bench: {name} of the teacher {_told(other)}")
    write_json(out_json, result)
    return result


class _Side:
    """The graphs of one folder and the procedures over them."""

    def __init__(self, folder: Path, provider: str, threads: int, cases: Cases | None) -> None:
        self.folder, self.provider, self.threads = folder, provider, threads
        self.graphs = {path.stem: inspect_onnx(path) for path in sorted(folder.glob("*.onnx"))}
        self._prepack = {n: facts["metadata"].get("xarch.prepack") != "false" for n, facts in self.graphs.items()}
        made = cases(list(self.graphs), folder) if cases is not None and self.graphs else ()
        self.cases = {case.name: case for case in made}
        self._call = BenchSessions(folder, provider, threads=threads, prepack=self._prepack)

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
    """Units per second, or calls where nothing is counted."""
    own = figures.get("throughput", {}).get("per_second") or figures.get("per_second")
    return float(own or 1e3 / figures["p50_ms"])


def _told(figures: dict[str, Any]) -> str:
    known = figures.get("throughput") or figures
    rate = f", {count(known['per_second'])} {known['unit']}/s" if "per_second" in known else ""
    return f"{figures['p50_ms']:.2f} ms{rate}"


def work_of(metadata: dict[str, str]) -> dict[str, Any] | None:
    """What a call of a graph gets done, from its metadata; None if it does not say."""
    return json.loads(metadata["xarch.work"]) if "xarch.work" in metadata else None


def bench_model(
    path: Path,
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    seconds: float = FOREIGN_SECONDS,
) -> dict[str, Any]:
    """Measure one ONNX file, wherever it comes from, in a process of its own.

    Raises:
        UsageError: it is not a valid model, keeps data outside its folder, cannot run, or takes too long.
    """
    path = Path(path)
    inspect_onnx(path)
    command = [sys.executable, "-m", "xarch.bench.worker", str(path), provider, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path} did not finish its bench in {seconds:.0f} s and was stopped") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
        raise UsageError(f"{path} cannot be measured: {reason}")
    return {"provider": provider, "threads": threads, "machine": machine(), **json.loads(done.stdout)}
