"""SIGINT, SIGTERM and SIGUSR1 stop a command: at once where its products appear by renaming, and after the current step
where a checkpoint is due. A second signal ends it without one, a third ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar

from xarch.errors import StopSignal

_STDERR = 2
_NOTICE = b"\nstopping after the current step; press Ctrl-C again to stop immediately\n"
_WATCHED = ("SIGINT", "SIGTERM", "SIGUSR1")
SAME_SECONDS = 1.0
"""A signal of another kind within this time belongs to the same request: a terminal and a supervisor both send one."""


@dataclass
class _State:
    """The request itself, shared by nested contexts."""

    received: str | None = None
    at: float = 0.0
    deferring: int = 0


class StopRequest:
    """Context manager in which signals stop the command. Within another one it shares the request of that one; outside
    the main thread it has no effect.

    A signal raises :class:`~xarch.errors.StopSignal` where the main thread is. Code that must reach a checkpoint first
    runs in :meth:`deferred` and looks at :attr:`received`.
    """

    _active: ClassVar[StopRequest | None] = None

    def __init__(self) -> None:
        self._state = _State()
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> str | None:
        """Name of the signal that asked for the stop."""
        return self._state.received

    def __enter__(self) -> StopRequest:
        outer = StopRequest._active
        if outer is not None:
            self._state = outer._state
        elif threading.current_thread() is threading.main_thread():
            StopRequest._active = self
            for name in _WATCHED:
                number = getattr(signal, name, None)
                if number is not None:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if StopRequest._active is self:
            StopRequest._active = None
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only take note of a signal; raise it on leaving, unless the block itself ended because of it.

        Raises:
            StopSignal: a signal came and the block ended normally.
        """
        self._state.deferring += 1
        try:
            yield
        finally:
            self._state.deferring -= 1
        self.check()

    def check(self) -> None:
        """Raise a request that came while it was deferred, or that a library caught and dropped.

        Raises:
            StopSignal: a signal came.
        """
        if self.received is not None and not self._state.deferring:
            raise StopSignal(self.received)

    def request(self, name: str) -> None:
        """Ask for a stop as a first signal does.

        Raises:
            StopSignal: it is not deferred.
        """
        self._state.received, self._state.at = name, time.monotonic()
        self.check()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        state, name, now = self._state, signal.Signals(number).name, time.monotonic()
        if state.received is None:
            self.request(name)
            if number == signal.SIGINT and os.isatty(_STDERR):
                # Written directly to the descriptor: Python's streams may be mid-write when the signal arrives.
                os.write(_STDERR, _NOTICE)
            return
        notice = state.received == "SIGUSR1" and name != "SIGUSR1"
        if notice:
            # A scheduler announces a time limit with it; the signal at the limit itself is the first to insist.
            state.received, state.at = name, now
        elif name == state.received or now - state.at >= SAME_SECONDS:
            for watched in self._previous:
                signal.signal(watched, signal.SIG_DFL)
            raise KeyboardInterrupt
