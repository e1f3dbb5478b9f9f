"""Training time excluding evaluations; resuming continues from the saved value."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Wall-clock seconds, and CPU seconds of all threads of this process."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def rounded(self) -> dict[str, float]:
        """Return rounded values for JSON."""
        return {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3)}


class Stopwatch:
    """Starts running when created.

    Args:
        before: time already spent by an interrupted process.
    """

    def __init__(self, before: Spent | None = None) -> None:
        self._before = before or Spent()
        self._start = _now()
        self._pauses = 0

    @property
    def spent(self) -> Spent:
        """Return the time spent so far."""
        if self._pauses:
            return self._before
        now = _now()
        since = Spent(now.seconds - self._start.seconds, now.cpu_seconds - self._start.cpu_seconds)
        return self._before + since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside this context."""
        self._before = self.spent
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._start = _now()


def _now() -> Spent:
    return Spent(time.monotonic(), time.process_time())
