from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
from collections.abc import Iterator

import pytest

from xarch.engine import signals
from xarch.engine.signals import StopRequest
from xarch.errors import StopSignal


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


def test_a_signal_stops_at_once_where_nothing_defers_it() -> None:
    with terminal() as shown, StopRequest() as stop:
        with pytest.raises(StopSignal) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.name == stop.received == "SIGTERM"
        assert read(shown, 0.2) == ""
        with pytest.raises(KeyboardInterrupt) as second:
            signal.raise_signal(signal.SIGTERM)
        assert not isinstance(second.value, StopSignal)


def test_a_deferred_interrupt_is_answered_and_the_second_stops() -> None:
    with terminal() as shown, StopRequest() as stop, contextlib.suppress(KeyboardInterrupt), stop.deferred():
        signal.raise_signal(signal.SIGINT)
        assert stop.received == "SIGINT"
        assert "press Ctrl-C again to stop immediately" in read(shown)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert read(shown, 0.2) == ""
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL, "a third ends the process"


def test_what_a_scheduler_sends_is_taken_in_silence_and_raised_at_the_end() -> None:
    with terminal() as shown, StopRequest() as stop:
        deferred = stop.deferred()
        deferred.__enter__()
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == "SIGTERM"
        assert read(shown, 0.2) == ""
        with pytest.raises(StopSignal):
            deferred.__exit__(None, None, None)


def test_an_error_of_a_deferred_block_is_the_one_that_is_raised() -> None:
    def work(stop: StopRequest) -> None:
        with stop.deferred():
            stop.request("SIGTERM")
            raise ZeroDivisionError

    with StopRequest() as stop, pytest.raises(ZeroDivisionError):
        work(stop)


def test_two_kinds_at_once_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches a process from its terminal, and as another signal from whoever supervises it."""
    with StopRequest() as stop, contextlib.suppress(StopSignal), stop.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == "SIGINT"
        monkeypatch.setattr(signals, "SAME_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_the_notice_of_a_time_limit_is_not_the_first_of_two() -> None:
    with StopRequest() as stop, contextlib.suppress(StopSignal), stop.deferred():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_request_within_another_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest() as outer:
        with StopRequest() as inner, contextlib.suppress(StopSignal), outer.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert inner.received == outer.received == "SIGTERM"
        with pytest.raises(StopSignal):
            inner.check()


def test_handlers_are_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with StopRequest():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in before} == before
