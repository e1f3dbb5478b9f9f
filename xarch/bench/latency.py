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

from xarch.bench.graph import measure_graph
from xarch.bench.machine import machine
from xarch.errors import UsageError
from xarch.export.check import inspect_onnx
from xarch.files.atomic import read_json, write_json
from xarch.hardware import load_average

FOREIGN_SECONDS = 300.0
"""Time limit for a file that xarch did not write in this run."""


def bench_export(
    export_dir: Path, out_json: Path, *, threads: int, say: Callable[[str], None], teacher: Path | None = None
) -> dict[str, Any]:
    """Measure every graph of an export and write ``out_json``.

    A graph that ``teacher`` (a folder) holds too is measured there right after: ``teacher.graphs.NAME``, and
    ``teacher.speed_up.NAME`` is the student's speed over the teacher's.

    Latencies are in milliseconds: ``graphs.NAME.p50_ms`` per call on example inputs and, for a language student,
    ``language.first_token.N`` for a prompt of N tokens and ``language.decode.N`` per token after N tokens.

    Raises:
        UsageError: the folder holds no accepted export.
    """
    from xarch_decoder.bench import LanguageGraphs, is_language, measure_language

    export_dir = Path(export_dir)
    parity = export_dir / "parity.json"
    if not parity.is_file() or not read_json(parity)["passed"]:
        raise UsageError(f"{export_dir} holds no export that passed its parity gate", "run `xarch export` again")
    provider = read_json(export_dir / "profile.json")["profile"]["provider"]
    facts = {path.stem: inspect_onnx(path) for path in sorted(export_dir.glob("*.onnx"))}
    metadata = {name: found["metadata"] for name, found in facts.items()}
    language = [name for name, found in metadata.items() if is_language(found)]
    driven = None
    if any(metadata[name]["xarch.tokens"] == "1" for name in language):
        driven = LanguageGraphs(export_dir, metadata, provider, threads=threads)
    graphs: dict[str, Any] = {}
    rival = _Rival(teacher, provider, threads)
    for name, found in facts.items():
        path, single = export_dir / f"{name}.onnx", metadata[name].get("xarch.tokens") == "1"
        given = driven.initial() if driven is not None and name in language else {}
        work = work_of(metadata[name])
        figures = measure_graph(path, provider, threads=threads, given=given, prepack=not single, work=work)
        figures["weight_bytes"] = sum(found["external_weight_bytes"].values()) + found["inline_weight_bytes"]
        graphs[name] = figures
        say(f"bench: {name} {figures['p50_ms']:.2f} ms{_speed(figures)}")
        rival.measure(name, figures, say)
    result: dict[str, Any] = {
        "provider": provider,
        "threads": threads,
        "machine": machine(),
        "load_average": load_average(),
        "graphs": graphs,
    }
    if rival.result:
        result["teacher"] = rival.result
    if driven is not None:
        result["language"] = measure_language(driven, say)
    write_json(out_json, result)
    return result


def work_of(metadata: dict[str, str]) -> dict[str, Any] | None:
    """What a call of a graph gets done, from its metadata; None if it does not say."""
    return json.loads(metadata["xarch.work"]) if "xarch.work" in metadata else None


class _Rival:
    """The teacher's own graphs beside the student's."""

    def __init__(self, folder: Path | None, provider: str, threads: int) -> None:
        self.folder, self.provider, self.threads = folder, provider, threads
        self.result: dict[str, Any] = {}
        if folder is not None and (folder / "absent.json").is_file():
            self.result = {"absent": read_json(folder / "absent.json")["reason"]}

    def measure(self, name: str, student: dict[str, Any], say: Callable[[str], None]) -> None:
        path = None if self.folder is None else self.folder / f"{name}.onnx"
        if path is None or not path.is_file():
            return
        work = work_of(inspect_onnx(path)["metadata"])
        figures = measure_graph(path, self.provider, threads=self.threads, work=work)
        self.result.setdefault("graphs", {})[name] = figures
        own, other = (f.get("throughput", {}).get("per_second", 1 / f["p50_ms"]) for f in (student, figures))
        self.result.setdefault("speed_up", {})[name] = round(own / other, 3)
        say(f"bench: {name} of the teacher {figures['p50_ms']:.2f} ms{_speed(figures)}")


def _speed(figures: dict[str, Any]) -> str:
    known = figures.get("throughput")
    return f", {known['per_second'] / 1e6:.3g} M {known['unit']}/s" if known else ""


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
