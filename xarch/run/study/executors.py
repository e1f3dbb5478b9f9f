"""Executors of a study: local processes, or a cluster through submitit or Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xarch.config.study import ExecutorConfig
from xarch.errors import Interrupted, UsageError


class Job(ABC):
    """A submitted run."""

    @abstractmethod
    def poll(self) -> int | None:
        """Return its exit code, None while it is pending or running; if the job was lost, a code other than the
        command's."""

    @abstractmethod
    def stop(self) -> None:
        """Request a checkpoint and a stop."""

    def kill(self) -> None:
        """Kill it immediately."""
        self.stop()


class Executor(ABC):
    """Starts commands."""

    @abstractmethod
    def submit(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Job:
        """Start a command whose output goes to ``FOLDER.log``; ``environment`` extends the current one.

        Raises:
            UsageError: another process is using ``folder``.
        """

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Release resources after the last job."""


def make_executor(config: ExecutorConfig) -> Executor:
    """Create the executor that a study names.

    Raises:
        UsageError: its package is not installed, or an option is wrong.
    """
    if config.name == "local":
        if config.options:
            raise UsageError(f"executor local has no options, got {', '.join(sorted(config.options))}", "use `jobs`")
        return Local()
    try:
        return Submitit(config.options) if config.name == "submitit" else Ray(config.options)
    except ImportError as e:
        raise UsageError(f"executor {config.name}: {e}", "pip install 'xarch[cluster]'") from e


class Local(Executor):
    """Runs commands as local processes."""

    def submit(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Job:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _owned(folder) as passed, open(f"{folder}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                pass_fds=passed,
                # Ctrl-C must reach only the study, which then stops its runs itself.
                start_new_session=True,
            )
        return _Process(process)


@contextlib.contextmanager
def _owned(folder: Path) -> Any:
    """Return file descriptors to pass to the process working in ``folder``. One holds a lock that lives as long as that
    process, even if the study that started it is killed.
    """
    try:
        import fcntl
    except ImportError:
        yield ()
        return
    with open(f"{folder}.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another process is using {folder}", "wait for it or stop it, then start the study again"
            ) from None
        yield (lock.fileno(),)


class _Process(Job):
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self._send(signal.SIGINT)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


class Submitit(Executor):
    """Submits cluster (Slurm) jobs through submitit; options are those of ``update_parameters``, and ``cluster``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        import submitit

        self._package: Any = submitit
        self._options = dict(options)
        self._cluster = self._options.pop("cluster", None)

    def submit(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Job:
        logs = folder.parent / "jobs"
        executor = self._package.AutoExecutor(folder=str(logs), cluster=self._cluster)
        try:
            executor.update_parameters(**{"name": f"{folder.parent.name}-{folder.name}", **self._options})
        except (NameError, TypeError, ValueError) as e:
            raise UsageError(f"executor submitit: {e}", "options are those of its update_parameters") from e
        return _SubmititJob(executor.submit(run_command, list(command), f"{folder}.log", dict(environment)))


class _SubmititJob(Job):
    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        return 1 if error is not None else int(self.job.result())

    def stop(self) -> None:
        self.job.cancel()


class Ray(Executor):
    """Runs tasks on a Ray cluster; options are those of ``ray.init``, and ``resources`` of a task (``{num_cpus:
    2}``)."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        import ray

        settings = dict(options)
        resources = settings.pop("resources", {"num_cpus": 1})
        self._ray: Any = ray
        if not ray.is_initialized():
            ray.init(**{"log_to_driver": False, **settings})
        self._task = ray.remote(**resources)(run_command)

    def submit(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Job:
        return _RayJob(self._ray, self._task.remote(list(command), f"{folder}.log", dict(environment)))

    def close(self) -> None:
        self._ray.shutdown()


class _RayJob(Job):
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def poll(self) -> int | None:
        ready, _ = self.ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.TaskCancelledError:
            return Interrupted.exit_code
        except self.ray.exceptions.RayError:
            # A task whose node was lost has no exit code; the run folder shows its progress.
            return 1

    def stop(self) -> None:
        self.ray.cancel(self.reference)


def run_command(command: list[str], log: str, environment: dict[str, str]) -> int:
    """Run a command in a cluster worker and forward interrupts to it."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | environment
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            return process.wait()
