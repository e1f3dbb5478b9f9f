"""Actionable errors: what happened, what to do next, and the exit code."""

from __future__ import annotations


class XarchError(Exception):
    """An error with a message for the user instead of a traceback.

    Args:
        what: what happened, where, the value seen and the value wanted.
        hint: the next thing to do, a command where there is one.
    """

    exit_code = 1
    kind = "error"

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return self.what if self.hint is None else f"{self.what}\nhelp: {self.hint}"

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return type(self), (self.what, self.hint)


class UsageError(XarchError):
    """The command, the configuration or a file given by the user is wrong (exit code 2)."""

    exit_code = 2
    kind = "usage"


class PlanError(XarchError):
    """The plan cannot be carried out: shapes, vocabularies, memory, export operators (exit code 3)."""

    exit_code = 3
    kind = "plan"


class PluginError(XarchError):
    """A plugin is missing, broken or ambiguous, or raised an exception (exit code 4)."""

    exit_code = 4
    kind = "plugin"


class DivergedError(XarchError):
    """Loss or gradient norm became NaN or infinite (exit code 5)."""

    exit_code = 5
    kind = "diverged"


class ParityError(XarchError):
    """An exported graph does not reproduce the student (exit code 6)."""

    exit_code = 6
    kind = "parity"


class QualityError(XarchError):
    """The student misses a quality gate of its recipe (exit code 7)."""

    exit_code = 7
    kind = "quality"


class BusyError(XarchError):
    """Another process is writing the run or study (exit code 8)."""

    exit_code = 8
    kind = "busy"


class OutOfMemoryError(XarchError):
    """Memory ran out after the allowed retries (exit code 75)."""

    exit_code = 75
    kind = "out-of-memory"


class Interrupted(XarchError):
    """A signal stopped the run after a checkpoint; it can be resumed (exit code 130)."""

    exit_code = 130
    kind = "interrupted"


class StopSignal(KeyboardInterrupt):
    """Raised where the main thread is when a signal asks this process to stop. Code on the way up cleans up as for
    Ctrl-C; where the command ends, it becomes :class:`Interrupted`.

    Args:
        name: of the signal.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class StorageError(Interrupted):
    """A file could not be written or read: full disk, quota, read-only or removed folder, failing device (exit code
    130). What was complete before is intact, so the run can be resumed, or the command repeated."""

    kind = "storage"
