"""The run folder: one place for everything a conversion reads and writes."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from xarch.errors import UsageError
from xarch.files.atomic import append_text, finite, naming, read_json, sweep, write_json
from xarch.printable import log_line

STATES = ("planned", "running", "interrupted", "failed", "done")


class RunDir:
    """Paths and small files of a run; knows names, not meanings.

    Args:
        path: the folder; see :meth:`create` and :meth:`open`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.plan = self.path / "plan.json"
        self.run_json = self.path / "run.json"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.curve = self.path / "curve.jsonl"
        self.log = self.path / "log.txt"
        self.tb = self.path / "tb"
        self.stages_dir = self.path / "stages"
        self.student = self.path / "student"
        self.eval_json = self.path / "eval.json"
        self.export_dir = self.path / "export"
        self.bench_dir = self.path / "bench"
        self.report_html = self.path / "report.html"
        self.report_md = self.path / "report.md"

    def teacher_bench(self, profile: str) -> Path:
        """Return the folder of the teacher's graphs for one export profile, used only by the bench."""
        return self.bench_dir / "teacher" / profile

    @staticmethod
    def new_path(name: str) -> Path:
        """A fresh name under ``runs/`` for a run called ``name``."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "run"
        return Path("runs") / f"{time.strftime('%Y-%m-%d')}_{stem}_{secrets.token_hex(3)}"

    @classmethod
    def create(cls, path: Path | str | None, name: str) -> RunDir:
        """A new, empty run folder; without ``path`` a fresh name under ``runs/``.

        Raises:
            UsageError: the folder already holds a run or other files.
        """
        run = cls(cls.new_path(name) if path is None else path)
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            if run.status.exists():
                raise UsageError(
                    f"{run.path} already holds a run ({run.state()})",
                    f"continue it with `xarch convert --resume --out {run.path}`, or choose another --out",
                )
            raise UsageError(f"{run.path} exists and is not empty", "choose another --out")
        try:
            run.stages_dir.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"cannot create {run.path}: {e.strerror}", "choose another --out") from e
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """An existing run folder; leftovers of interrupted writes are swept.

        Raises:
            UsageError: the folder is not a run.
        """
        run = cls(path)
        if not run.plan.is_file():
            raise UsageError(f"{run.path} is not a run folder: it has no plan.json")
        for folder in (run.path, run.export_dir, run.bench_dir, *run.stages_dir.glob("*/checkpoints")):
            if folder.is_dir():
                sweep(folder)
        return run

    def stage(self, index: int, name: str) -> Path:
        """Folder of a stage, ``stages/01-NAME``; made when missing."""
        folder = self.stages_dir / f"{index:02d}-{name}"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        return folder

    def state(self) -> str:
        """The state in status.json, "planned" when there is none."""
        return str(read_json(self.status).get("state", "planned")) if self.status.exists() else "planned"

    def set_status(self, state: str, *, reason: str = "", resume: str = "", **more: Any) -> None:
        """Write status.json."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}, one of {', '.join(STATES)}")
        content = {"state": state, "reason": reason, "resume": resume, **more}
        try:
            write_json(self.status, content)
        except OSError:
            # A disk without room for a new file still lets an old one be overwritten in its own blocks.
            if not self.status.is_file():
                raise
            with naming(self.status), open(self.status, "r+", encoding="utf-8") as f:
                f.write(json.dumps(content) + "\n")
                f.truncate()

    @staticmethod
    def append_row(file: Path, row: dict[str, Any]) -> None:
        """Append one line to a file of JSON lines."""
        append_text(file, json.dumps(finite(row), allow_nan=False) + "\n")

    @staticmethod
    def rows_size(file: Path) -> int:
        """Bytes of a file of lines now; stored in checkpoints so that a resumed run can cut what came after."""
        return file.stat().st_size if file.exists() else 0

    @staticmethod
    def cut_rows(file: Path, size: int) -> None:
        """Truncate lines written after a checkpoint, so that a resumed run writes them once."""
        if file.exists() and file.stat().st_size > size:
            os.truncate(file, size)

    def say(self, text: str) -> None:
        """Append a timestamped line to log.txt."""
        append_text(self.log, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {log_line(text)}\n")
