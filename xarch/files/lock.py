"""Lock of a folder in the user's cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from xarch.errors import UsageError

NOTICE_SECONDS = 1.0


@contextlib.contextmanager
def one_at_a_time(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of ``folder``, which is created if missing; the system releases it when its holder dies. ``say`` is
    called with a line if this process has to wait.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".lock")
        try:
            held.acquire(timeout=NOTICE_SECONDS)
        except Timeout:
            say(f"another process is preparing files in {folder}; waiting for it")
            held.acquire()
    except OSError as e:
        raise UsageError(f"cannot write {folder}: {e.strerror}", "set XARCH_HOME to a folder you may write") from e
    try:
        yield
    finally:
        held.release()
