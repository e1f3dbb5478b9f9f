"""The results of a run, read from the files in its folder."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xarch.cli.tables import table
from xarch.config.validation import validated
from xarch.export.stored import PROFILE, read_parity, read_profile
from xarch.files.bounded_json import read_json
from xarch.files.run_dir import RunDir
from xarch.numbers import count, figure, size

if TYPE_CHECKING:
    from rich.console import Console


def run_document(path: Path) -> dict[str, Any]:
    """Return the results of a run for scripts; missing parts are None or empty."""
    run = RunDir(path)
    evaluation = run.read_evaluation() if run.eval_json.is_file() else None
    status = run.read_status() if run.status.is_file() else None
    return {
        "run": str(path),
        "status": status,
        "trial": _is_trial(run),
        "evaluation": evaluation,
        "gates": _gates(run, evaluation),
        "export": {f.parent.name: _export(f.parent) for f in sorted(path.glob("export/*/parity.json"))},
        "bench": {f.stem: run.read_json(f) for f in sorted(path.glob("bench/*.json"))},
        "student": _student(path / "student"),
        "report": str(path / "report.html") if (path / "report.html").is_file() else None,
        "next": _next(path, status or {}),
    }


def show_verdict(document: Mapping[str, Any], console: Console) -> None:
    """Print quality against the teacher, gates, parity, files, and suggested next commands."""
    if document["trial"] and document["evaluation"]:
        console.print("trial: every step works; the figures of a truncated model measure nothing", markup=False)
    quality = () if document["trial"] else _quality(document)
    rows = [*quality, *_gate_rows(document), *_parity_rows(document), *_file_rows(document)]
    if rows:
        console.print(table(["", "item", "result"], rows))
    for command in document["next"]:
        console.print(f"next  {command}", markup=False, soft_wrap=True)


def _is_trial(run: RunDir) -> bool:
    plan = run.read_json(run.plan) if run.plan.is_file() else None
    config = plan.get("config") if isinstance(plan, dict) else None
    return isinstance(config, dict) and bool(config.get("tiny"))


def _gates(run: RunDir, evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from xarch.config.schema import Gate
    from xarch.run.gates import check, gateable

    plan = run.read_json(run.plan) if run.plan.is_file() else None
    config = plan.get("config") if isinstance(plan, dict) else None
    if evaluation is None or not isinstance(config, dict) or config.get("tiny"):
        return []
    gates = {n: validated(Gate, gate, f"{run.plan}: gates.{n}") for n, gate in (config.get("gates") or {}).items()}
    figures = gateable(evaluation)
    known = {name: gate for name, gate in gates.items() if name in figures}
    return [asdict(result) for result in check(figures, known)]


def _export(folder: Path) -> dict[str, Any]:
    parity = read_parity(folder)
    files = sorted(f for f in folder.iterdir() if f.suffix in (".onnx", ".rejected", ".data"))
    return {
        "passed": parity["passed"],
        "worst_rel_l2": _worst(parity),
        "top1_agreement": [
            g["top1_agreement"] for g in parity["graphs"].values() if g.get("top1_agreement") is not None
        ],
        "measures": {graph: g["measures"] for graph, g in parity["graphs"].items() if g.get("measures")},
        "files": {str(f): f.stat().st_size for f in files},
        "runner": _runner(folder),
    }


def _runner(folder: Path) -> dict[str, Any] | None:
    """Return the program in the folder of an export, if there is one."""
    found = read_profile(folder).get("runner") if (folder / PROFILE).is_file() else None
    return found if isinstance(found, dict) else None


def _worst(parity: Mapping[str, Any]) -> float | None:
    found = [
        output["rel_l2"]
        for graph in parity["graphs"].values()
        for case in graph.get("cases", [])
        for output in case.get("outputs", {}).values()
        if output.get("rel_l2") is not None
    ]
    return max(found, default=None)


def _student(folder: Path) -> dict[str, Any] | None:
    weights = folder / "model.safetensors"
    if not (folder / "config.json").is_file() or not weights.is_file():
        return None
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        return None
    return {"path": str(folder), "parameters": config.get("parameters"), "bytes": weights.stat().st_size}


def _next(path: Path, status: Mapping[str, Any]) -> list[str]:
    """Suggest commands: resume a stopped run, or use the files of a finished one."""
    name = shlex.quote(str(path))
    if status.get("state") != "done":
        return [status["resume"]] if status.get("resume") else []
    exported = any(path.glob("export/*/*.onnx"))
    programs = (
        f"python {shlex.quote(str(f.parent / told['program']))} {told['usage']}"
        for f in sorted(path.glob("export/*/profile.json"))
        if (told := _runner(f.parent))
    )
    run = list(itertools.islice(programs, 1))
    return [*run, f"xarch bench {name}" if exported else f"xarch export {name} --profile cpu", f"xarch inspect {name}"]


def _quality(document: Mapping[str, Any]) -> Iterator[list[str]]:
    found = document["evaluation"]
    if not found:
        return
    name, unit = found["metric"], found.get("unit", "")
    unit = f" {unit}" if unit else ""
    better = "higher is better" if found.get("higher_is_better") else "lower is better"
    variants = {f"student, {label}": figures for label, figures in found.get("variants", {}).items()}
    sides = {"teacher": found["teacher"], "student": found["student"], **variants, **found.get("baselines", {})}
    for side, figures in sides.items():
        if name in figures:
            note = f" ({better})" if side == "student" else ""
            yield ["", f"{name}, {side}", f"{figure(figures[name])}{unit}{note}"]


def _gate_rows(document: Mapping[str, Any]) -> Iterator[list[str]]:
    for gate in document["gates"]:
        state = "passed" if gate["passed"] else "missed"
        yield [state, f"gate {gate['name']}", f"{figure(gate['value'])}, required {gate['limit']}"]


def _parity_rows(document: Mapping[str, Any]) -> Iterator[list[str]]:
    for target, export in document["export"].items():
        worst = export["worst_rel_l2"]
        text = f"largest relative error {worst:.2g}" if worst is not None else "no figures"
        if export["top1_agreement"]:
            text += f", top-1 agreement {min(export['top1_agreement']):.4g}"
        state = "passed" if export["passed"] else "failed"
        yield [state, f"parity {target}", text]
        for graph, measures in export["measures"].items():
            for name, entry in measures.items():
                yield [state if export["passed"] else "", f"{name}, {target} {graph}", _measured(entry)]


def _measured(entry: Mapping[str, Any]) -> str:
    """Format a measure of the parity gate with its limits."""
    unit = f" {entry['unit']}" if entry.get("unit") else ""
    bounds = [f"{how} {entry[key]:g}" for key, how in (("minimum", "at least"), ("maximum", "at most")) if key in entry]
    shown = "no number" if entry["value"] is None else f"{figure(entry['value'])}{unit}"
    return shown + (f", required {' and '.join(bounds)}{unit}" if bounds else "")


def _file_rows(document: Mapping[str, Any]) -> Iterator[list[str]]:
    student = document["student"]
    if student:
        yield [
            "",
            "student",
            f"{student['path']} ({count(student['parameters'] or 0)} parameters, {size(student['bytes'])})",
        ]
    for target, export in document["export"].items():
        graphs = sum(Path(file).suffix == ".onnx" for file in export["files"])
        folder = next((str(Path(file).parent) for file in export["files"]), "")
        if graphs:
            told = f"{graphs} graph{'s' if graphs != 1 else ''}, {size(sum(export['files'].values()))}"
            yield ["", f"export {target}", f"{folder} ({told})"]
        for file in export["files"]:
            if file.endswith(".rejected"):
                yield ["", f"export {target}", f"{file} was rejected"]
    if document["report"]:
        yield ["", "report", document["report"]]
