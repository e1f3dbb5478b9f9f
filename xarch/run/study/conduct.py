"""Runs a study: starts its runs, keeps finished ones, resumes interrupted ones, and writes the results."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xarch._version import __version__
from xarch.config.study import StudyConfig, load_study
from xarch.engine.signals import StopRequest
from xarch.errors import Interrupted, UsageError, XarchError
from xarch.files.atomic import sweep, write_json, write_text
from xarch.files.bounded_json import read_json
from xarch.files.folder_lock import LOCK, FolderLock
from xarch.files.run_dir import RunDir
from xarch.numbers import duration
from xarch.report.study import study_page
from xarch.run.study.arms import StudyRun, arms_of, runs_of
from xarch.run.study.executors import Executor, Job, make_executor
from xarch.run.study.results import Outcome, document, read_outcome

POLL_SECONDS = 0.1
CONVERT = (sys.executable, "-m", "xarch", "convert")


class StudyFailed(XarchError):
    """Raised when runs of a study failed; the exit code is that of the first one, ``document`` the content of
    study.json."""

    kind = "study"

    def __init__(self, what: str, hint: str, exit_code: int, document: dict[str, Any]) -> None:
        super().__init__(what, hint)
        self.exit_code, self.document = exit_code, document

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.what, self.hint, self.exit_code, self.document)


@dataclass
class Progress:
    """Progress of a study.

    Attributes:
        total, done, failed: numbers of runs.
        running: names of the active runs.
        seconds: estimated seconds left, None if unknown.
    """

    total: int
    done: int = 0
    failed: int = 0
    running: tuple[str, ...] = ()
    seconds: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.done}/{self.total} runs done"]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{len(self.running)} running"] if self.running else []
        parts += [f"about {duration(self.seconds)} left"] if self.seconds is not None and self.done < self.total else []
        return ", ".join(parts)


Watch = Callable[[str, Progress], None]
"""Called with an event as text ("" for none) and the progress of the study."""


@dataclass
class Study:
    """A study in its folder.

    Attributes:
        config, name, out: see :func:`conduct`.
        arms, runs: its arms and runs, in order.
        outcomes: outcome of every run so far.
        retry: also run failed runs again. command: command that runs a conversion; a configuration, ``--resume`` and
            ``--out`` are added.
        chosen: names of the runs to start if they are not done; none for all.
    """

    config: StudyConfig
    name: str
    out: Path
    arms: Sequence[Any]
    runs: Sequence[StudyRun]
    retry: bool = False
    command: Sequence[str] = CONVERT
    watch: Watch = lambda event, progress: None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    chosen: Collection[str] = ()
    _spent: list[float] = field(default_factory=list)

    @property
    def resume_command(self) -> str:
        """Return the command that resumes this study."""
        return f"xarch study {shlex.quote(str(self.out / 'study.yaml'))} --out {shlex.quote(str(self.out))}"

    def run(self) -> dict[str, Any]:
        """Compute the missing runs; return the content of study.json.

        Raises:
            StudyFailed: some runs failed; the others are done and in the table.
            Interrupted: a signal came; every running conversion wrote a checkpoint.
            UsageError: a figure named by the study was measured in no run.
        """
        for run in self.runs:
            self.outcomes[run.name] = self._known(run)
        waiting = [r for r in self.runs if self._to_run(self.outcomes[r.name]) and self._is_chosen(r)]
        try:
            executor = make_executor(self.config.executor) if waiting else None
            with StopRequest() as stop, stop.deferred(), contextlib.closing(executor or _Nothing()):
                if executor is not None:
                    self._work(executor, waiting, stop)
        finally:
            found = self._write()
        self._raise_if_failed(found)
        self._raise_if_unknown()
        return found

    def _to_run(self, outcome: Outcome) -> bool:
        return outcome.state != "done" and (self.retry or outcome.state != "failed")

    def _is_chosen(self, run: StudyRun) -> bool:
        return not self.chosen or run.name in self.chosen

    def _known(self, run: StudyRun) -> Outcome:
        """Return the outcome that an earlier start left in a run folder.

        Raises:
            UsageError: it belongs to another configuration.
        """
        stored = _stored(run.mark) if run.mark.is_file() else {}
        same = stored.get("digest") == run.digest
        if run.folder.is_dir() and not same:
            raise UsageError(
                f"{run.folder} is a run of a configuration other than {run.config}",
                f"choose another --out, or remove {run.folder} to repeat this run",
            )
        outcome = read_outcome(run.folder)
        if outcome.state == "waiting" and same and stored.get("state") == "failed":
            outcome = Outcome("failed", reason=stored["reason"], exit_code=stored["exit_code"])
        return replace(outcome, seconds=stored.get("seconds") if same else None)

    def _work(self, executor: Executor, waiting: list[StudyRun], stop: StopRequest) -> None:
        jobs: dict[StudyRun, tuple[Job, float]] = {}
        try:
            while waiting or jobs:
                while waiting and len(jobs) < self.config.jobs:
                    run = waiting.pop(0)
                    jobs[run] = (self._start(executor, run), time.monotonic())
                    self._tell(f"{run.name} started", jobs, waiting)
                for run in [r for r, (job, _) in jobs.items() if job.poll() is not None]:
                    job, started = jobs.pop(run)
                    self._ended(run, job.poll(), time.monotonic() - started)
                    self._write()
                    self._tell(self._words(run), jobs, waiting)
                self._raise_if_stopped(stop, jobs)
                self._tell("", jobs, waiting)
                time.sleep(POLL_SECONDS if jobs else 0)
        except KeyboardInterrupt:
            for job, _ in jobs.values():
                job.kill()
            raise
        except Exception:
            self._stop(jobs)
            raise

    def _start(self, executor: Executor, run: StudyRun) -> Job:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        self._mark(run, self.outcomes[run.name])
        threads = str(self.config.threads)
        command = [*self.command, str(run.config), "--resume", "--out", str(run.folder)]
        return executor.submit(command, run.folder, {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})

    def _ended(self, run: StudyRun, code: int | None, seconds: float, *, stopped: bool = False) -> None:
        outcome = replace(read_outcome(run.folder), seconds=round(self._seconds(run) + seconds, 1))
        if stopped and outcome.state != "done":
            outcome = replace(outcome, state="interrupted", reason="")
        elif outcome.state != "done":
            reason = outcome.reason or _last_line(run.log) or f"ended with exit code {code}"
            outcome = replace(outcome, state="failed", reason=reason, exit_code=code if code and code > 0 else 1)
        self.outcomes[run.name] = outcome
        self._mark(run, outcome)
        if outcome.state == "done":
            self._spent.append(seconds)

    def _mark(self, run: StudyRun, outcome: Outcome) -> None:
        """Record the study's own facts about a run."""
        kept = {"digest": run.digest, "seconds": outcome.seconds, "state": outcome.state}
        write_json(run.mark, {**kept, "reason": outcome.reason, "exit_code": outcome.exit_code})

    def _seconds(self, run: StudyRun) -> float:
        return self.outcomes[run.name].seconds or 0.0

    def _words(self, run: StudyRun) -> str:
        outcome = self.outcomes[run.name]
        figures = "  ".join(f"{k} {v:.4g}" for k, v in outcome.chosen(self.config.metrics).items())
        ended = f"{run.name} {outcome.state} after {duration(outcome.seconds)}"
        return f"{ended}: {outcome.reason}" if outcome.reason else f"{ended}  {figures}".rstrip()

    def _raise_if_stopped(self, stop: StopRequest, jobs: dict[StudyRun, tuple[Job, float]]) -> None:
        if stop.received is None:
            return
        self._stop(jobs)
        left = sum(o.state != "done" for o in self.outcomes.values())
        raise Interrupted(f"{stop.received}: {left} of {len(self.runs)} runs remain", self.resume_command)

    def _stop(self, jobs: dict[StudyRun, tuple[Job, float]]) -> None:
        """Stop every running conversion after a checkpoint."""
        for job, _ in jobs.values():
            job.stop()
        while any(job.poll() is None for job, _ in jobs.values()):
            time.sleep(POLL_SECONDS)
        for run, (job, started) in jobs.items():
            self._ended(run, job.poll(), time.monotonic() - started, stopped=True)
        jobs.clear()

    def _tell(self, event: str, jobs: Mapping[StudyRun, Any], waiting: Sequence[StudyRun]) -> None:
        states = [o.state for o in self.outcomes.values()]
        progress = Progress(
            len(self.runs), states.count("done"), states.count("failed"), tuple(r.name for r in jobs), None
        )
        if self._spent:
            mean = sum(self._spent) / len(self._spent)
            running = sum(max(mean - (time.monotonic() - started), 0.0) for _, started in jobs.values())
            progress.seconds = (running + mean * len(waiting)) / min(self.config.jobs, max(len(jobs) + len(waiting), 1))
        self.watch(event, progress)

    def _write(self) -> dict[str, Any]:
        """Write study.json and report.html with the current results."""
        found = document(self.config, self.name, self.arms, self.runs, self.outcomes, self.resume_command, __version__)
        write_text(self.out / "study.json", found.text())
        write_text(self.out / "report.html", study_page(found.data()))
        return found.data()

    def _raise_if_failed(self, found: dict[str, Any]) -> None:
        failed = [(r, self.outcomes[r.name]) for r in self.runs if self.outcomes[r.name].state == "failed"]
        if not failed:
            return
        lines = [f"{run.name}: {o.reason or 'unknown reason'}" for run, o in failed[:3]]
        more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
        raise StudyFailed(
            f"{len(failed)} of {len(self.runs)} runs failed: {'; '.join(lines)}{more}",
            f"see {failed[0][0].log}; `{self.resume_command} --retry` runs them again",
            failed[0][1].exit_code,
            found,
        )

    def _raise_if_unknown(self) -> None:
        have = {name for o in self.outcomes.values() if o.state == "done" for name in o.figures}
        wrong = [metric for metric in self.config.metrics if have and metric not in have]
        if wrong:
            raise UsageError(
                f"metrics: no run measured {wrong[0]!r}; available figures: {', '.join(sorted(have))}",
                "correct the file, then start the study again with the same --out; finished runs are kept",
            )


def _stored(mark: Path) -> dict[str, Any]:
    """Return the study's own facts about a run.

    Raises:
        UsageError: the file is damaged.
    """
    found = read_json(mark)
    wanted = {"digest": str, "state": str, "reason": str, "exit_code": int}
    if not isinstance(found, dict) or not all(isinstance(found.get(k), kind) for k, kind in wanted.items()):
        raise UsageError(f"{mark} is damaged: it does not hold {', '.join(wanted)}", "remove it and start again")
    return found


class _Nothing:
    def close(self) -> None:
        """Do nothing: no executor was created."""


def conduct(
    study: Path | str | Mapping[str, Any],
    out: Path | str | None = None,
    *,
    jobs: int | None = None,
    retry: bool = False,
    only_arms: Sequence[str] = (),
    only_seeds: Sequence[int] = (),
    watch: Watch | None = None,
    command: Sequence[str] = CONVERT,
) -> dict[str, Any]:
    """Run a study, or its missing runs; return the content of study.json.

    Args:
        study: a YAML file or plain data.
        out: its folder; by default a new one under ``studies/``. When restarted with the same folder, finished runs are
            kept and interrupted ones are resumed.
        jobs: number of parallel runs; overrides the file.
        retry: also run failed runs again.
        only_arms, only_seeds: run these arms and seeds only, by default all. The table shows all that are done.
        watch: called with events and progress. command: command that runs a conversion.

    Raises:
        BusyError: another process runs this study.
        UsageError: the study or one of its configurations is wrong, or has no such arm or seed; nothing was run.
        StudyFailed, Interrupted: see :meth:`Study.run`.
    """
    config, name, folder = load_study(study)
    if jobs is not None:
        config = config.model_copy(update={"jobs": jobs})
    path = Path(out) if out is not None else Path("studies") / RunDir.new_path(name).name
    arms = arms_of(config)
    with _begun(path):
        runs = runs_of(config, arms, folder, path)
        chosen = _chosen(runs, only_arms, only_seeds)
        _copy(study, config, folder, path / "study.yaml")
        made = Study(config, name, path, arms, runs, retry, command, chosen=chosen)
        if watch is not None:
            made.watch = watch
        return made.run()


def _chosen(runs: Sequence[StudyRun], arms: Sequence[str], seeds: Sequence[int]) -> set[str]:
    """Return the names of the runs of these arms and seeds.

    Raises:
        UsageError: the study has no such arm or seed.
    """
    for kind, wanted, known in (("arm", arms, [r.arm for r in runs]), ("seed", seeds, [r.seed for r in runs])):
        unknown = [value for value in wanted if value not in known]
        if unknown:
            available = ", ".join(map(str, dict.fromkeys(known)))
            raise UsageError(f"the study has no {kind} {unknown[0]!r}", f"available {kind}s: {available}")
    return {r.name for r in runs if (not arms or r.arm in arms) and (not seeds or r.seed in seeds)}


@contextlib.contextmanager
def _begun(path: Path) -> Iterator[None]:
    """Make the folder of a study, or hold the existing one.

    Raises:
        UsageError: it is not a study. BusyError: another process runs it.
    """
    if path.is_dir() and any(p.name != LOCK for p in path.iterdir()) and not (path / "configs").is_dir():
        raise UsageError(f"{path} exists and is not a study", "choose another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot create {path}: {e.strerror}", "choose another --out") from e
    lock = FolderLock(path)
    lock.acquire()
    try:
        # Not below the runs: each has a lock of its own, and its process may live.
        for folder in (path, path / "configs", *path.glob("runs/*")):
            if folder.is_dir():
                sweep(folder)
        yield
    finally:
        lock.release()


def _copy(study: Path | str | Mapping[str, Any], config: StudyConfig, folder: Path, to: Path) -> None:
    """Copy the study file into the study's folder, so that resuming needs nothing else."""
    from xarch.config.yaml_text import dump_yaml

    if not isinstance(study, Mapping) and Path(study).resolve() == to.resolve():
        return
    data = config.model_dump(mode="json", exclude_defaults=True)
    beside = folder / config.base if isinstance(config.base, str) else None
    if beside is not None and beside.is_file():
        data["base"] = os.path.relpath(beside, to.parent)
    write_text(to, dump_yaml(data))


def _last_line(log: Path) -> str:
    """Return the last line of a process's output, if it has no status file."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    errors = [line for line in lines if line.startswith("error (")]
    return (errors or lines or [""])[-1][:300]
