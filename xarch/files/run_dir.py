"""The run folder: one place for everything a conversion reads and writes."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xarch.errors import BusyError, UsageError
from xarch.files.atomic import append_text, finite, fsync_path, is_leftover, json_text, naming, sweep_tree, write_text
from xarch.files.bounded_json import read_json
from xarch.files.folder_lock import LOCK, FolderLock
from xarch.files.manifest import (
    MANIFEST,
    Entry,
    Fault,
    Manifest,
    entry_of,
    files_below,
    raise_first,
    read_self_sealed,
    sealed_faults,
    self_sealed,
    verify,
)
from xarch.files.regular import refuse_links_out
from xarch.printable import log_line

STATES = ("planned", "running", "interrupted", "failed", "done")
PLAN = "plan.json"
CARD = "README.md"
BASELINE = "evaluation.json"
NO_ROWS: Mapping[str, Any] = {"bytes": 0, "sha256": ""}
"""Mark of a file of lines without lines."""


class RunDir:
    """Paths and small files of a run; knows names, not meanings.

    Args:
        path: the folder; see :meth:`create` and :meth:`open`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.lock, self.manifest = FolderLock(self.path), Manifest(self.path)
        self.config = self.path / "config.yaml"
        self.plan = self.path / PLAN
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
    def create(cls, path: Path | str | None, name: str, head: Mapping[str, str]) -> RunDir:
        """A new run folder; it appears in one step, with its plan.

        Args:
            path: the folder; by default a fresh name under ``runs/``.
            name: of the run.
            head: file name -> text of the files it begins with, among them plan.json.

        Raises:
            UsageError: the folder already holds a run or other files.
        """
        run = cls(cls.new_path(name) if path is None else path)
        run._refuse_used(head)
        try:
            if run.path.exists():
                # Somebody made it, perhaps as a mount point, so it cannot be replaced.
                with run.held():
                    run._refuse_used(head)
                    _begin(run.path, head)
            else:
                run.path.parent.mkdir(parents=True, exist_ok=True)
                _appear(run.path, head)
        except OSError as e:
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                run._refuse_used(head)
            raise UsageError(f"cannot create {run.path}: {e.strerror}", "choose another --out") from e
        return run

    def _refuse_used(self, head: Mapping[str, str]) -> None:
        """Refuse a folder that holds anything but what an interrupted start leaves behind."""
        if not self.path.exists():
            return
        if self.plan.exists():
            raise UsageError(
                f"{self.path} already holds a run ({self.state()})",
                f"continue it with `xarch convert --resume --out {self.path}`, or choose another --out",
            )
        begun = {LOCK, MANIFEST, "stages", *head}
        inside = list(self.path.iterdir()) if self.path.is_dir() else [self.path]
        # A file of the user's may be called config.yaml, so there must be a lock as well.
        ours = self.lock.path.exists() and all(p.name in begun or is_leftover(p) for p in inside)
        if inside and not ours:
            raise UsageError(f"{self.path} exists and is not empty", "choose another --out")

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """An existing run folder, for reading; nothing is changed in it.

        Raises:
            UsageError: the folder is not a run, or a link leads out of it.
        """
        run = cls(path)
        if not run.plan.is_file():
            raise UsageError(f"{run.path} is not a run folder: it has no plan.json")
        refuse_links_out(run.path)
        run.manifest.require()
        return run

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder's lock, for writing; what interrupted writes left behind is swept first.

        Raises:
            BusyError: another process is writing.
            UsageError: a link leads out of the folder; writing would follow it.
        """
        if self.lock.held:
            yield
            return
        refuse_links_out(self.path)
        self.lock.acquire()
        try:
            sweep_tree(self.path)
            yield
        finally:
            self.lock.release()

    def stage(self, index: int, name: str) -> Path:
        """Folder of a stage, ``stages/01-NAME``; made when missing."""
        self.lock.check()
        folder = self.stages_dir / f"{index:02d}-{name}"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        return folder

    def state(self) -> str:
        """The state in status.json, "planned" when there is none."""
        return str(self.read_status()["state"]) if self.status.exists() else "planned"

    def read_status(self) -> dict[str, Any]:
        """The content of status.json.

        Raises:
            UsageError: it is damaged.
        """
        from xarch.files.records import Status, typed

        sealed = self.manifest.path.is_file()
        return typed(Status, read_self_sealed(self.status) if sealed else read_json(self.status), self.status)

    def read_evaluation(self) -> dict[str, Any]:
        """The content of eval.json.

        Raises:
            UsageError: it is missing or damaged.
        """
        from xarch.files.records import EvaluationRecord, typed

        return typed(EvaluationRecord, self.read_json(self.eval_json), self.eval_json)

    def set_status(self, state: str, *, reason: str = "", resume: str = "", **more: Any) -> None:
        """Write status.json."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}, one of {', '.join(STATES)}")
        text = self_sealed({"state": state, "reason": reason, "resume": resume, **more})
        self.lock.check()
        try:
            write_text(self.status, text)
        except OSError:
            # A disk without room for a new file still lets an old one be overwritten in its own blocks.
            if not self.status.is_file():
                raise
            with naming(self.status), open(self.status, "r+", encoding="utf-8") as f:
                f.write(text)
                f.truncate()

    def check(self, file: Path) -> None:
        """Check a file of the run, or of its student or exports, against the manifest that covers it, if there is one.
        Files that grow while a run lasts are checked once it is done.

        Raises:
            UsageError: it is missing or damaged.
        """
        if file == self.status:
            self.read_status()
        elif file.parent != self.path and (file.parent / MANIFEST).is_file():
            verify(file.parent, [file.name])
        elif file.suffix != ".jsonl" or self.manifest.knows(file):
            self.manifest.check(file)

    def read_json(self, file: Path) -> Any:
        """Parse a JSON file of the run.

        Raises:
            UsageError: it is missing, not JSON, or not as the manifest says.
        """
        self.manifest.check(file)
        return read_json(file)

    def write_json(self, file: Path, data: Any) -> None:
        """Record and replace a JSON file of the run."""
        self.write_text(file, json_text(data))

    def write_text(self, file: Path, text: str) -> None:
        """Record and replace a text file of the run."""
        self.lock.check()
        self.manifest.expect(file, text)
        write_text(file, text)

    def seal(self, status: Mapping[str, Any]) -> None:
        """Record every file of the finished run as it is now, then write status.json."""
        own = [self.student, *self.sealed_folders()]
        skip = [p.relative_to(self.path).as_posix() for p in own]
        files = [self.path / n for n in files_below(self.path, skip)]
        card = self.student / CARD
        growing = [f for f in files if f.suffix == ".jsonl" or f == self.log or self.tb in f.parents]
        fixed = [f for f in files if f not in growing and f != self.status]
        self.manifest.replace([*fixed, *([card] if card.is_file() else [])], growing)
        self.set_status(**status)

    def sealed_folders(self) -> list[Path]:
        """Folders of the run with a manifest of their own, except the student's."""
        exports = [*self.export_dir.glob("*"), *self.bench_dir.glob("teacher/*")]
        return sorted(p for p in (*exports, *self.stages_dir.glob("*/checkpoints/step-*")) if p.is_dir())

    def faults(self, *, checkpoints: bool = True) -> list[Fault]:
        """Return the files of the run that are damaged or missing.

        Args:
            checkpoints: also those of checkpoints, which are passed over when a run is resumed.
        """
        folders = [p for p in (self.student, *self.sealed_folders()) if p.is_dir()]
        chosen = [p for p in folders if checkpoints or self.stages_dir not in p.parents]
        found = self.manifest.faults()
        try:
            self.state()
        except UsageError as e:
            found.append(Fault(self.status, e.what, False))
        return found + [fault for folder in chosen for fault in sealed_faults(folder)]

    def refuse_damage(self, found: Sequence[Fault]) -> None:
        """Raise the first fault of a file that cannot be made again from others.

        Raises:
            UsageError: a file is damaged, or one that only the training makes is missing. Logs, the report and the
                model card may be edited.
        """
        loose = (self.report_html, self.report_md, self.log, self.student / CARD)
        final = (self.metrics, self.curve, self.run_json, self.plan)
        raise_first(
            [
                f
                for f in found
                if (f.file in final or f.file.name == BASELINE if f.missing else f.file not in loose)
                and self.tb not in f.file.parents
            ]
        )

    def append_row(self, file: Path, row: dict[str, Any]) -> None:
        """Append one line to a file of JSON lines."""
        self.lock.check()
        append_text(file, json.dumps(finite(row), allow_nan=False) + "\n")

    @staticmethod
    def rows_mark(file: Path) -> Entry:
        """Size and sha256 of a file of lines, which is forced to disk; stored in checkpoints, for :meth:`cut_rows`."""
        if not file.exists():
            return dict(NO_ROWS)
        fsync_path(file)
        return entry_of(file)

    @staticmethod
    def cut_rows(file: Path, mark: Mapping[str, Any]) -> None:
        """Truncate lines written after a checkpoint, so that a resumed run writes them once.

        Raises:
            UsageError: the lines before it are not those that the checkpoint saw.
        """
        size = mark["bytes"]
        if size and entry_of(file, size)["sha256"] != mark["sha256"]:
            raise UsageError(
                f"{file} is damaged or was changed: its first {size} bytes are not those of the checkpoint",
                "restore it, or start a new run",
            )
        if file.exists() and file.stat().st_size > size:
            os.truncate(file, size)

    def say(self, text: str) -> None:
        """Append a timestamped line to log.txt."""
        self.lock.check()
        append_text(self.log, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {log_line(text)}\n")


def _begin(folder: Path, head: Mapping[str, str]) -> None:
    """Write the first files of a run; plan.json, which makes it one, comes last."""
    manifest = Manifest(folder)
    manifest.replace([])
    for name, text in sorted(head.items(), key=lambda item: item[0] == PLAN):
        manifest.expect(folder / name, text)
        write_text(folder / name, text)
    (folder / "stages").mkdir(exist_ok=True)


def _appear(final: Path, head: Mapping[str, str]) -> None:
    """Write the first files in a hidden folder beside ``final``, then rename it. Those of dead processes are swept."""
    for leftover in final.parent.glob(f".{glob.escape(final.name)}.tmp-*"):
        lock = FolderLock(leftover)
        with contextlib.suppress(BusyError, UsageError):
            lock.acquire()
            shutil.rmtree(leftover, ignore_errors=True)
            lock.release()
    partial = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    partial.mkdir()
    lock = FolderLock(partial)
    try:
        lock.acquire()
        _begin(partial, head)
        os.rename(partial, final)
        fsync_path(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        lock.release()
