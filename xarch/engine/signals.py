"""SIGINT, SIGTERM and SIGUSR1 request a stop after the current step; a second SIGINT stops immediately."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_STDERR = 2
_NOTICE = b"\nstopping after the current step; press Ctrl-C again to stop immediately\n"
_WATCHED = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequest:
    """Context manager that turns signals into a flag. It has no effect outside the main thread."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in _WATCHED:
                number = getattr(signal, name, None)
                if number is not None:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None and number == signal.SIGINT and os.isatty(_STDERR):
            # Written directly to the descriptor: Python's streams may be mid-write when the signal arrives.
            os.write(_STDERR, _NOTICE)
        self.received = signal.Signals(number).name
