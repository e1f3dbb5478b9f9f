"""The lock of a run or study folder: who holds it may write there, and is alive."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
import weakref
from pathlib import Path
from typing import Any

from xarch.errors import BusyError, StorageError, UsageError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_UNFIT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENXIO)
_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """The right to write in a folder: ``flock`` on its file ``.lock``, which the system takes back when the process
    ends, however it ends. The file also says who holds it; it stays when the lock is released.

    NFS passes the lock on to the server, so that processes on several machines see each other, except where it is
    mounted with ``nolock`` or ``local_lock``: those see only processes of their own machine. Where a file system knows
    no locks at all, the process named in the file counts as the holder while it lives; if it ran on another machine,
    nobody here can know, and the file has to be removed by hand.

    ``filelock``, which guards the user's cache, empties the file of a holder whom it waits for, and a forked worker
    keeps its lock.

    Args:
        folder: the folder; it must exist when the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            BusyError: another process holds it, or this one by another object.
            UsageError: the folder cannot be written.
        """
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        except OSError as e:
            if e.errno not in _UNFIT:
                raise
            raise UsageError(f"cannot lock {self.folder}: {e.strerror}", "a folder you may write is needed") from e
        try:
            self._take(file)
            # Who holds it is for others to read; on a full disk the lock works without.
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(_self()).encode() + b"\n", 0)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _HELD.add(self)

    def _take(self, file: int) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._busy(_holder(file)) from None
        except OSError as e:
            if e.errno not in _NO_LOCKS:
                raise UsageError(f"cannot lock {self.folder}: {e.strerror}") from e
            other = _holder(file)
            if other and _may_live(other):
                raise self._busy(other) from None

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
            self.forget()

    def forget(self) -> None:
        """Close the file without touching the lock of a parent process that shares it."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            StorageError: it was removed or replaced.
        """
        if self._file is None:
            return
        own = os.fstat(self._file)
        try:
            there: os.stat_result | None = os.stat(self.path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
            raise StorageError(
                f"{self.folder} was removed or replaced while xarch was writing it; nothing more is written",
                "restore the folder and resume, or start again",
            )

    def _busy(self, other: dict[str, Any]) -> BusyError:
        who = f"process {other['pid']} on {other['host']} since {other['since']}" if other else "another process"
        hint = "wait for it or stop it (SIGTERM; a conversion then writes a checkpoint); `xarch inspect` only reads"
        if other and other["host"] != socket.gethostname():
            hint += f"; if that machine is gone and the file system knows no locks, remove {self.path}"
        return BusyError(f"{self.folder} is in use: {who} is writing it", hint)


def _self() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "born": _born(os.getpid())}
    return {**facts, "command": " ".join(sys.argv)[:200]}


def _holder(file: int) -> dict[str, Any]:
    """Who wrote the file; {} if it does not say."""
    try:
        said = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError):
        return {}
    known = isinstance(said, dict) and isinstance(said.get("pid"), int) and {"host", "since"} <= said.keys()
    return said if known else {}


def _may_live(other: dict[str, Any]) -> bool:
    """Whether a process may still live; one of another machine always may."""
    if other["host"] != socket.gethostname():
        return True
    try:
        os.kill(other["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return other.get("born") == _born(other["pid"])


def _born(pid: int) -> str | None:
    """When a process began, so that a number used again is not taken for it; None where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _after_fork() -> None:
    for lock in list(_HELD):
        lock.forget()


if hasattr(os, "register_at_fork"):
    # A forked child, such as a worker that loads data, shares the lock and would keep it after its parent's death.
    os.register_at_fork(after_in_child=_after_fork)
