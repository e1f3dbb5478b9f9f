from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
from collections.abc import Iterator

import pytest

from xarch.engine.signals import StopRequest


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """A terminal as standard error; what is written to it can be read from the file given. No fixture: between setup
    and call pytest puts its own file there."""
    shown, terminal = pty.openpty()
    kept = os.dup(2)
    os.dup2(terminal, 2)
    try:
        yield shown
    finally:
        os.dup2(kept, 2)
        for file in (shown, terminal, kept):
            os.close(file)


def read(shown: int, seconds: float = 20) -> str:
    """What the terminal shows, or nothing if nothing comes in this time: a terminal takes its own time."""
    ready, _, _ = select.select([shown], [], [], seconds)
    return os.read(shown, 1000).decode() if ready else ""


def test_the_first_interrupt_is_answered_and_the_second_stops() -> None:
    with terminal() as shown, StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == "SIGINT"
        assert "press Ctrl-C again to stop immediately" in read(shown)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert read(shown, 0.2) == ""


def test_what_a_scheduler_sends_is_taken_in_silence() -> None:
    with terminal() as shown, StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == "SIGTERM"
        assert read(shown, 0.2) == ""


def test_handlers_are_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with StopRequest():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in before} == before
