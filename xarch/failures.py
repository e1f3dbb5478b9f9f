"""What a failure of the machine means to a user: memory that ran out, storage that failed, or neither.

Libraries report both by exceptions of their own (safetensors, onnxruntime, torch), and code between them and a command
wraps those again, so an error is judged together with the errors that it was raised from.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from xarch.errors import Interrupted, OutOfMemoryError, StopSignal, StorageError, UsageError, XarchError

_MEMORY_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "defaultcpuallocator",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "can't start new thread",
    "os error 12)",
)
"""How torch, CUDA, onnxruntime, Rust, C++ and Python say that memory ran out, in lower case."""

_PLAIN = (ValueError, TypeError, LookupError, AttributeError)
"""Errors of code about values; their text says nothing about the machine."""

_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EROFS", "EIO", "EFBIG", "EMFILE", "ENFILE", "ESTALE", "EREMOTEIO", "ENOTCONN", "ENXIO",
        "ENODEV", "ENOLCK", "EACCES", "EPERM",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Errors of storage that no code can be blamed for."""

_PLACES = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP,
     errno.EBUSY, errno.EXDEV, errno.EMLINK, errno.ETXTBSY)
)  # fmt: skip
"""Errors of storage that may be a mistake of the code: it looked in the wrong place, or somebody moved the files."""

_ADVICE = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space within the quota",
    errno.EROFS: "make that place writable",
    errno.EACCES: "make that place accessible",
    errno.EPERM: "make that place accessible",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "close other programs",
}

_WRAPPED = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE))
"""Errors of storage that stay one, whatever an error raised from them is about."""

_SHOWN = 80
"""Characters shown of a name that is too long."""

_RUST = re.compile(r"\(os error (\d+)\)")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a failed allocation, of memory or of a thread, or was raised from one."""
    return any(_reports_memory(e) for e in _chain(error))


def is_machine_failure(error: BaseException) -> bool:
    """Return whether an error is one of memory or storage, so that no plugin is to blame for it."""
    return is_out_of_memory(error) or _number(error) in _MACHINE


def is_overlong_name(error: BaseException) -> bool:
    """Return whether an error says that the name of a file is longer than the system takes: a mistake of whoever gave
    it, not of the code that used it."""
    return _number(error) == errno.ENAMETOOLONG


def as_error(error: BaseException, command: str = "") -> XarchError | None:
    """Return the error for the user, None if ``error`` is neither one, nor a signal, nor a failure of the machine.

    Args:
        command: to be run when the cause is removed.
    """
    if isinstance(error, StopSignal):
        return Interrupted(f"stopped by {error.name}", command or None)
    if isinstance(error, OutOfMemoryError | StorageError):
        if error.hint and "xarch " not in error.hint:
            error.hint = _then(error.hint, command)
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"out of memory: {_line(error)}",
            _then("use smaller batches (`stages.NAME.batch`, `evaluate.batch`) or free memory", command),
        )
    if isinstance(error, XarchError):
        for cause in _chain(error):
            number = _number(cause)
            if cause is not error and number in _WRAPPED:
                return _storage(error.what, number, command)
        return error
    number = _number(error)
    if number not in _MACHINE | _PLACES | {errno.ENAMETOOLONG}:
        return None
    if number == errno.ENAMETOOLONG:
        return _overlong(error)
    assert number is not None
    reason = os.strerror(number)
    reason = reason if reason in str(error) else _line(error)
    return _storage(f"{reason}: {_place(error)}", number, command)


@contextlib.contextmanager
def translated(command: str = "") -> Iterator[None]:
    """Raise failures of the machine as errors for the user; see :func:`as_error`."""
    try:
        yield
    except Exception as e:
        error = as_error(e, command)
        if error is None or error is e:
            raise
        raise error from e


def system_error(error: BaseException, path: object) -> OSError | None:
    """Return the OSError at ``path`` that an error of a library reports in its text, None if it reports none."""
    number = _number(error)
    return None if number is None else OSError(number, os.strerror(number), str(path))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it was raised from. An XarchError is about what it says unless it was raised ``from``
    another one."""
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        yield step
        implicit = None if step.__suppress_context__ or isinstance(step, XarchError) else step.__context__
        step = step.__cause__ or implicit


def _reports_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, (XarchError, *_PLAIN)):
        return False
    text = str(error).lower()
    return any(word in text for word in _MEMORY_WORDS)


def _number(error: BaseException) -> int | None:
    """Return the system's error number, also from the text of a library; None if there is none."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, (XarchError, *_PLAIN)):
        return None
    text = str(error)
    found = _RUST.search(text)
    if found is not None:
        return int(found[1])
    return next((number for number in _WRAPPED | {errno.EROFS} if os.strerror(number) in text), None)


def _storage(what: str, number: int, command: str) -> StorageError:
    advice = _ADVICE.get(number, "check that place")
    return StorageError(f"{what} (errno {number}, {errno.errorcode.get(number, '?')})", _then(advice, command))


def _overlong(error: BaseException) -> UsageError:
    name = str(error.filename) if isinstance(error, OSError) and error.filename is not None else _line(error)
    said = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}… ({len(name)} characters)"
    return UsageError(f"the name of a file is too long: {said}", "name an existing file or folder")


def _then(advice: str, command: str) -> str:
    return f"{advice}, then {command}" if command else advice


def _place(error: BaseException) -> str:
    """Return the file that an error is about, else the innermost module of xarch or a plugin on its traceback."""
    if isinstance(error, OSError) and error.filename is not None:
        return str(error.filename)
    found, step = "", error.__traceback__
    while step is not None:
        name = str(step.tb_frame.f_globals.get("__name__", ""))
        found = f"in {name}.{step.tb_frame.f_code.co_name}" if name.startswith("xarch") else found
        step = step.tb_next
    return found or type(error).__name__


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
