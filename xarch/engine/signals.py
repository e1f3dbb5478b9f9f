"""SIGINT, SIGTERM and SIGUSR1 ask a run to stop after the current step; a second SIGINT stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_STDERR = 2
_NOTICE = b"\nstopping after the current step; Ctrl-C once more stops at once\n"
_WATCHED = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequest:
    """Context manager that turns signals into a flag. Outside the main thread it watches nothing."""

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
            # Written past Python's streams, which may be in the middle of a line when a signal comes.
            os.write(_STDERR, _NOTICE)
        self.received = signal.Signals(number).name
