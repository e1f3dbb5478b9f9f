"""Read everything a report needs from a run folder once; missing or damaged files are left out and noted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xarch.errors import UsageError
from xarch.files.bounded_json import parse_json, read_bounded
from xarch.files.regular import open_regular
from xarch.files.run_dir import RunDir
from xarch.printable import clean

MAX_FILE = 1 << 28
"""Size limit of a JSON file in bytes."""
MAX_LINE = 1 << 20


@dataclass
class StageMetrics:
    """Figures of one stage: name -> [(step, value)], ordered by step."""

    units: dict[int, int] = field(default_factory=dict)
    values: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


@dataclass
class RunInfo:
    """The contents of a run folder; missing or damaged files are represented as empty.

    Attributes:
        path: the run folder.
        plan, run, status: plan.json, run.json and status.json as plain data.
        stages: summary.json by stage folder, in order.
        metrics: the figures of metrics.jsonl by stage folder.
        quality: curve.jsonl, evaluated figures over training time.
        parity, profile, bench: by export profile.
        student_bytes: size of model.safetensors, None if there is no student.
        rejected: export profile -> graphs that failed the parity gate.
        notes: problems found while reading and building.
    """

    path: Path
    plan: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, StageMetrics] = field(default_factory=dict)
    quality: list[dict[str, Any]] = field(default_factory=list)
    student: dict[str, Any] = field(default_factory=dict)
    student_bytes: int | None = None
    eval: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)
    profile: dict[str, dict[str, Any]] = field(default_factory=dict)
    bench: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The title that its author chose, or the name of the run."""
        return str(self.wording("title") or dig(self.plan, "name", default=self.path.name))

    def wording(self, key: str) -> Any:
        """A ``report`` setting of the run, None if it is empty."""
        return dig(self.plan, "config", "report", key) or None

    @property
    def family(self) -> str:
        """Family of the student, "" if unknown."""
        return str(dig(self.student, "family") or dig(self.plan, "student", "family", default=""))

    @property
    def method(self) -> str:
        """Name of the method or recipe, "" for a custom configuration."""
        return str(dig(self.plan, "config", "recipe", default=""))

    @property
    def unit(self) -> str:
        """Unit of the budget, e.g. "token"."""
        return str(dig(self.plan, "unit", default="sample"))

    @property
    def decisions(self) -> dict[str, Any]:
        """Decisions of the stages about the student's structure."""
        found = {k: v for summary in self.stages.values() for k, v in table_of(summary, "decisions").items()}
        return found | table_of(self.student, "decisions")

    def settings(self, stage: str) -> dict[str, Any]:
        """The configuration of the stage called ``name``."""
        return table_of(self.plan, "config", "stages", stage)

    def unit_of(self, figure: str) -> str:
        """Unit of an evaluated figure, "" if the metric does not state one."""
        if figure == dig(self.eval, "metric"):
            return str(dig(self.eval, "unit", default=""))
        return str(dig(self.eval, "units", figure, default=""))

    def file(self, name: str) -> bytes | None:
        """Return the contents of a file in the run folder, e.g. a picture named in eval.json; None if it is missing.

        Links, and paths that leave the folder, count as missing.
        """
        path = self.path / name
        if path.is_symlink() or not path.resolve().is_relative_to(self.path.resolve()) or not path.is_file():
            return None
        return path.read_bytes() if path.stat().st_size <= MAX_FILE else None


def read_run(run: RunDir) -> RunInfo:
    """Read a run folder; missing parts raise no error."""
    found = RunInfo(run.path)
    read = _Reader(run, found.notes)
    found.plan, found.run, found.status = read.json(run.plan), read.json(run.run_json), read.json(run.status)
    found.config_text = read.text(run.config)
    for folder in _folders(run.stages_dir):
        summary = read.json(folder / "summary.json")
        if summary:
            found.stages[folder.name] = summary
    found.metrics = dict(read.metrics(run.metrics))
    found.quality = list(read.rows(run.curve))
    found.student = read.json(run.student / "config.json")
    weights = run.student / "model.safetensors"
    found.student_bytes = weights.stat().st_size if weights.is_file() else None
    found.eval = read.json(run.eval_json)
    for folder in _folders(run.export_dir):
        found.parity[folder.name] = read.json(folder / "parity.json")
        found.profile[folder.name] = read.json(folder / "profile.json")
        found.rejected[folder.name] = sorted(f.name.removesuffix(".onnx.rejected") for f in folder.glob("*.rejected"))
    if run.bench_dir.is_dir():
        found.bench = {f.stem: read.json(f) for f in sorted(run.bench_dir.glob("*.json"))}
    return found


def dig(data: Any, *keys: str, default: Any = None) -> Any:
    """Return ``data[k1][k2]...``, or ``default`` if a level is missing or not a mapping."""
    for key in keys:
        if not isinstance(data, dict) or data.get(key) is None:
            return default
        data = data[key]
    return data


def table_of(data: Any, *keys: str) -> dict[str, Any]:
    """Return the mapping at ``data[k1][k2]...``, empty if there is none."""
    found = dig(data, *keys)
    return found if isinstance(found, dict) else {}


def rows_of(data: Any, *keys: str) -> list[dict[str, Any]]:
    """Return the mappings in the list at ``data[k1][k2]...``; other items are skipped."""
    found = dig(data, *keys)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def names_of(data: Any, *keys: str) -> list[str]:
    """Return the strings in the list at ``data[k1][k2]...``."""
    found = dig(data, *keys)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def natural(name: str) -> list[Any]:
    """Sort key that places blocks.10 after blocks.9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


class _Reader:
    def __init__(self, run: RunDir, notes: list[str]) -> None:
        self.run, self.root, self.notes = run, run.path, notes

    def sound(self, path: Path) -> bool:
        """Whether a file is there and as its manifest says; if it is not, it is noted and left out."""
        try:
            if path.is_file():
                self.run.check(path)
                return True
        except UsageError as e:
            self.notes.append(e.what)
        return False

    def text(self, path: Path) -> str:
        if not self.sound(path):
            return ""
        try:
            return str(clean(read_bounded(path, MAX_FILE).decode("utf-8", "replace")))
        except UsageError as e:
            self.notes.append(e.what)
            return ""

    def json(self, path: Path) -> dict[str, Any]:
        text = self.text(path)
        if not text:
            return {}
        try:
            data = parse_json(text, self._name(path))
        except UsageError as e:
            self.notes.append(e.what)
            return {}
        if not isinstance(data, dict):
            self.notes.append(f"{self._name(path)} contains no JSON object")
            return {}
        return dict(clean(data))

    def rows(self, path: Path) -> Iterator[dict[str, Any]]:
        """Return the objects of a JSON Lines file; incomplete lines are skipped."""
        if not self.sound(path):
            return
        damaged = 0
        with open_regular(path) as f:
            while line := f.readline(MAX_LINE):
                try:
                    yield dict(clean(json.loads(line)))
                except (ValueError, TypeError, RecursionError):
                    damaged += 1
        if damaged:
            self.notes.append(f"{self._name(path)}: {damaged} lines could not be read")

    def metrics(self, path: Path) -> Iterator[tuple[str, StageMetrics]]:
        """Return the logged figures of every stage."""
        found: dict[str, StageMetrics] = {}
        for row in self.rows(path):
            stage, step = row.get("stage"), row.get("step")
            if not isinstance(stage, str) or not isinstance(step, int):
                continue
            curve = found.setdefault(stage, StageMetrics())
            for key, value in row.items():
                if key == "units" and isinstance(value, int):
                    curve.units[step] = value
                elif key not in ("stage", "step") and isinstance(value, int | float):
                    curve.values.setdefault(key, []).append((step, float(value)))
        yield from found.items()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()
