"""Names the plugin that is loading where a user would see nothing: it takes long, or it ends the process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import NoReturn

SLOW_SECONDS = 5.0
"""Time after which a plugin that is still loading is named."""

_STDERR = 2


@contextlib.contextmanager
def watched(owner: str, name: str) -> Iterator[None]:
    """Name a plugin on standard error while it loads, if it takes long or calls ``os._exit``.

    ``os._exit`` runs no handler and cannot be prevented, only announced: while a plugin loads, the function first
    writes who calls it. A process that the plugin forks may call it as usual.

    Args:
        owner: the plugin as errors name it.
        name: by which it is disabled.
    """
    advice = f"XARCH_DISABLE_PLUGINS={name} leaves it out"
    slow = threading.Timer(SLOW_SECONDS, _write, [f"loading {owner} takes more than {SLOW_SECONDS:g} s; {advice}"])
    slow.daemon = True
    process, leave = os.getpid(), os._exit

    def announced(status: int) -> NoReturn:
        if os.getpid() == process:
            _write(f"{owner} ended this process by os._exit({status}) while it was loading; {advice}")
        leave(status)

    with contextlib.suppress(RuntimeError):
        # Without memory for a thread it loads unwatched.
        slow.start()
    setattr(os, "_exit", announced)  # noqa: B010
    try:
        yield
    finally:
        setattr(os, "_exit", leave)  # noqa: B010
        slow.cancel()


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        # To the descriptor: what Python buffers is lost by an exit without handlers.
        os.write(_STDERR, f"xarch: {text}\n".encode())
