"""Signs of life: nothing that works is silent for longer than a person waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

SILENT_SECONDS = 5.0
LONGEST_SECONDS = 60.0
"""Between two signs of life in a file, whose reader scrolls; a terminal shows them all the time."""
SHOWN_AFTER_SECONDS = 1.0


class Heartbeat:
    """Calls ``beat`` from a thread of its own when nothing was said for 5 seconds, then for 10, 20, ... 60.

    Args:
        beat: prints a sign of life.
        clock: returns seconds; replaced in tests.
    """

    def __init__(self, beat: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.beat, self.clock = beat, clock
        self.last, self.gap = clock(), SILENT_SECONDS
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def said(self) -> None:
        """Record that something was printed; the first call starts the thread."""
        self.last, self.gap = self.clock(), SILENT_SECONDS
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Beat if nothing was said for long enough."""
        if self.clock() - self.last >= self.gap:
            self.beat()
            self.last, self.gap = self.clock(), min(2 * self.gap, LONGEST_SECONDS)

    def stop(self) -> None:
        """End the thread; safe to call twice."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.check()


class Activity:
    """A spinner on a terminal's standard error while a command has printed nothing yet, from its first second on.

    Args:
        text: what is shown.
    """

    def __init__(self, text: str) -> None:
        self.text, self.lock = text, threading.Lock()
        self.status: Status | None = None
        self.timer: threading.Timer | None = None
        if sys.stderr.isatty():
            self.timer = threading.Timer(SHOWN_AFTER_SECONDS, self._show)
            self.timer.daemon = True
            self.timer.start()

    def stop(self) -> None:
        """Remove the spinner, or never show it; safe to call twice."""
        if self.timer is None:
            return
        self.timer.cancel()
        with self.lock:
            self.timer = None
            if self.status is not None:
                self.status.stop()
                self.status = None

    def _show(self) -> None:
        from xarch.cli.console import make_console

        with self.lock:
            if self.timer is not None:
                console = make_console(sys.stderr)
                if not console.is_dumb_terminal:
                    self.status = console.status(self.text)
                    self.status.start()
